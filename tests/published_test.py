"""Published figures: their totals, computed anew, and beside one's own."""

import ml_collections
import pytest

from tttnn.corpus import tasks
from tttnn.jobs import report
from tttnn.reporting import compared
from tttnn.reporting import published


@pytest.fixture(scope='module')
def runs():
  return {run.name: run for run in published.load('hardt_sun_2024')}


@pytest.mark.parametrize(
  'name, count, total',
  [
    ('gpt2-large-in-context', 20, 1.0643),
    ('gpt2-large-interpolation', 20, 0.9926),
    ('gpt2-large-interpolation-0', 20, 1.0703),
    ('gptneo-1.3B-in-context', 20, 0.7403),
    # The curve of `pile_all` as the paper's tables have it.
    *(
      (name, count, total)
      for name, totals in {
        'gpt2': (
          1.2079,
          1.1487,
          1.1260,
          1.0872,
          1.0573,
          1.0249,
          1.0094,
          0.9922,
        ),
        'gpt2-split': (
          *(1.2402, 1.1724, 1.1486, 1.1107),
          *(1.0828, 1.0529, 1.0398, 1.0242),
        ),
        'gpt2-large': (
          *(1.0724, 0.9843, 0.9591, 0.9171),
          *(0.8914, 0.8669, 0.8611, 0.8537),
        ),
        'gptneo-1.3B': (
          *(0.7385, 0.7351, 0.7323, 0.7248),
          *(0.7181, 0.7117, 0.7109, 0.7103),
        ),
      }.items()
      for count, total in zip((0, 1, 2, 5, 10, 20, 30, 50), totals, strict=True)
    ),
  ],
)
def test_totals_follow_from_the_tasks(runs, name, count, total):
  assert runs[name].total(count) == pytest.approx(total, abs=5.01e-5)


def test_totals_are_those_that_were_published(runs):
  compared_totals = 0
  for run in runs.values():
    for (task, metric, count), value in run.values.items():
      if task == 'pile_all' and not run.source.endswith('rounded'):
        assert run.total(count, metric) == pytest.approx(value, rel=1e-9)
        compared_totals += 1
  assert compared_totals > 60


def test_every_run_has_the_22_tasks_and_a_source(runs):
  assert len(runs) == 16
  for run in runs.values():
    for count in run.counts:
      assert len(run.by_domain(count)) == len(tasks.TASKS) == 22
    assert run.source and run.protocol in ('whole', 'split')


def _config(**values):
  defaults = {'inputs': '', 'title': '', 'aggregation': 'all', 'published': ''}
  return ml_collections.ConfigDict({'report': defaults | values})


def test_a_report_of_published_figures_alone(tmp_path, capsys):
  report.run(_config(published='hardt_sun_2024'), tmp_path)
  out = capsys.readouterr().out
  text = (tmp_path / 'report' / 'tables.md').read_text()
  for total in ('1.0643', '0.7403', '0.9926'):
    assert total in out and total in text
  assert '1.2079 | 1.1487 | 1.1260 | 1.0872 | 1.0573 | 1.0249' in text
  assert compared.NOT_THE_PILE not in text
  for name in ('published_curves', 'published_domains'):
    for kind in ('pdf', 'png'):
      assert (tmp_path / 'report' / f'{name}.{kind}').exists()


def test_an_unknown_set_says_which_there_are(tmp_path):
  with pytest.raises(ValueError, match=r"'nobody_1999'.*hardt_sun_2024"):
    report.run(_config(published='nobody_1999'), tmp_path)


def test_without_published_figures_results_are_needed(tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    report.run(_config(), tmp_path)
