#!/usr/bin/env bash
# Sets up on this machine with NVIDIA GPUs, checks that JAX sees them, and runs
# a command, whose `python` is that of the environment:
#
#   bash launch/gpu_node.sh [--dry-run] [--] [COMMAND...]
#   bash launch/gpu_node.sh python -m tttnn.main --config=configs/... ...
#
# launch/setup_env.sh says which environment is used.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

USAGE="launch/gpu_node.sh [--dry-run] [--] [COMMAND...]"
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) DRY_RUN=1 ;;
    --)
      shift
      break
      ;;
    *) usage "$USAGE" ;;
  esac
  shift
done

check_gpus() {
  local there seen
  there=$(nvidia-smi -L | grep -c '^GPU')
  seen=$("$PYTHON" -c 'import jax
print(sum(device.platform == "gpu" for device in jax.local_devices()))')
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    there=$(awk -F, '{print NF}' <<<"$CUDA_VISIBLE_DEVICES")
  fi
  [[ $seen == "$there" ]] || die "JAX sees $seen of $there GPUs (see above)"
  say "JAX sees $seen GPUs"
}

export TTTNN_PLATFORM=gpu
if [[ -z ${DRY_RUN:-} ]]; then
  nvidia-smi -L >/dev/null || die "nvidia-smi finds no GPU on this machine"
fi
run setup_env gpu
run check_gpus
[[ $# -gt 0 ]] || exit 0
if [[ -z ${DRY_RUN:-} ]]; then
  export PATH=$VENV/bin:$PATH
fi
run "$@"
