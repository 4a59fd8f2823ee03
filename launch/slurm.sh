#!/usr/bin/env bash
# Submits to SLURM, from a directory that the nodes see as well:
#
#   bash launch/slurm.sh array FILE [--dry-run] [SBATCH OPTION...]
#
# a job array, a task for each line of FILE, which is a command: that is what
# `launch/sweep.py --print=commands` prints (where the first look neighbours up,
# submit these before: --array=0-0, and then the others behind them); or
#
#   bash launch/slurm.sh nodes N [--dry-run] [SBATCH OPTION...] -- COMMAND...
#
# one run of `python -m tttnn.main ...` on N nodes, a process on each, which
# gets the flags of --config.distributed. Its `python` is that of the
# environment, which must be there (see launch/setup_env.sh); to make it, on a
# node with GPUs:  srun SRUN OPTION... bash launch/gpu_node.sh
#
# --dry-run prints the job instead. What is cut off by the time limit or for
# another job is queued again, and goes on where it was.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

USAGE="launch/slurm.sh array FILE [--dry-run] [SBATCH OPTION...] |"
USAGE+=" nodes N [--dry-run] [SBATCH OPTION...] -- COMMAND..."
[[ $# -ge 2 ]] || usage "$USAGE"
kind=$1 what=$2
shift 2
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
  if [[ $1 == --dry-run ]]; then
    DRY_RUN=1
  else
    options+=("$1")
  fi
  shift
done
VENV=${VIRTUAL_ENV:-${TTTNN_VENV:-$REPO/.venv}}
here=$(printf '%q' "$PWD")

array() {
  local file last
  file=$(realpath -e "$what" 2>/dev/null) || usage "$USAGE; there is no file $what"
  last=$(($(wc -l <"$file") - 1))
  [[ $last -ge 0 ]] || die "$what has no lines"
  cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=tttnn
#SBATCH --array=0-$last
#SBATCH --requeue
set -euo pipefail
cd $here
command=\$(sed -n "\$((SLURM_ARRAY_TASK_ID + 1))p" $(printf '%q' "$file"))
eval "exec \$command"
END
}

nodes() {
  # Of one node of the job, where process 0 is. Jobs that are there at the same
  # time should not have the same port.
  cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=tttnn
#SBATCH --nodes=$what
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
set -euo pipefail
cd $here
export PATH=$(printf '%q' "$VENV/bin"):\$PATH
read -r head < <(scontrol show hostnames "\$SLURM_JOB_NODELIST")
export COORDINATOR=\$head:\$((20000 + SLURM_JOB_ID % 20000))
exec srun --kill-on-bad-exit=1 bash -c 'exec "\$@" \\
  --config.distributed.coordinator="\$COORDINATOR" \\
  --config.distributed.processes="\$SLURM_NTASKS" \\
  --config.distributed.process="\$SLURM_PROCID"' bash$(printf ' %q' "$@")
END
}

case $kind in
  array)
    [[ $# -eq 0 ]] || usage "$USAGE"
    job=$(array)
    ;;
  nodes)
    [[ $# -ge 2 && $what =~ ^[1-9][0-9]*$ ]] || usage "$USAGE"
    shift
    [[ -n ${DRY_RUN:-} || -x $VENV/bin/python ]] ||
      die "there is no environment $VENV yet: see the head of this script"
    job=$(nodes "$@")
    ;;
  *) usage "$USAGE" ;;
esac
run sbatch "${options[@]}" <<<"$job"
[[ -z ${DRY_RUN:-} ]] || echo "$job"
