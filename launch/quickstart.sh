#!/usr/bin/env bash
# Sets up, then runs the main job on the built-in corpus, from text to report:
#
#   bash launch/quickstart.sh [WORKDIR] [--config.KEY=VALUE ...]
#
# The same command again goes on where it stopped. WORKDIR is
# /tmp/tttnn-quickstart if not given, and --config=configs/quickstart.py:short
# takes minutes less; launch/setup_env.sh says what else can be chosen.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

workdir=${TMPDIR:-/tmp}/tttnn-quickstart
if [[ $# -gt 0 && $1 != -* ]]; then
  workdir=$1
  shift
fi
mkdir -p "$workdir" || die "cannot make the work directory $workdir"
workdir=$(cd "$workdir" && pwd)

flags=(--workdir="$workdir" "$@")
if [[ " $* " != *' --config='* ]]; then
  flags=(--config=configs/quickstart.py "${flags[@]}")
fi

# shellcheck disable=SC2119
setup_env
# Large arrays on huge pages: page faults were up to a quarter of a step on CPU.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
say "python -m tttnn.main ${flags[*]}"
cd "$REPO"
exec "$PYTHON" -m tttnn.main "${flags[@]}"
