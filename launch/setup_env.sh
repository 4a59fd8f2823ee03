# shellcheck shell=bash
# Sourced by the scripts beside it: makes the Python environment, once.
#
#   source launch/setup_env.sh
#   setup_env [EXTRA...]      afterwards $PYTHON is the environment's interpreter
#   run COMMAND...            runs it, or only prints it if $DRY_RUN is set
#
# The environment is $VIRTUAL_ENV if one is active, else $TTTNN_VENV, else .venv
# in the repository. TTTNN_PLATFORM=cpu|gpu|tpu overrides what is detected, and
# PYTHON names the interpreter that a new environment is made with.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "== $*" >&2; }

die() {
  echo "error: $*" >&2
  exit 1
}

# 78 is EX_CONFIG, as of tttnn/main.py: launch/retry.sh does not try again.
usage() {
  echo "usage: $*" >&2
  exit 78
}

run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    echo "+$(printf ' %q' "$@")"
  else
    "$@"
  fi
}

detect_platform() {
  if nvidia-smi -L >/dev/null 2>&1; then
    echo gpu
  elif [[ -n ${TPU_NAME:-}${TPU_ACCELERATOR_TYPE:-} || -e /dev/accel0 ]]; then
    echo tpu
  else
    echo cpu
  fi
}

is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}
  do
    if is_recent "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer among: ${PYTHON:-python3, python3.14 to 3.11};" \
    "name one with PYTHON=/path/to/python"
}

make_venv() {
  local base
  base=$(find_python)
  "$base" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$("$base" --version) cannot make virtual environments; on Debian and" \
      "Ubuntu: sudo apt-get install python3-venv"
  say "making the environment $1 with $("$base" --version)"
  "$base" -m venv --clear "$1"
}

install() {
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" ||
    die "pip could not install $* into $VENV (see above)"
}

setup_env() {
  local platform=${TTTNN_PLATFORM:-$(detect_platform)}
  case $platform in
    cpu | gpu | tpu) ;;
    *) die "TTTNN_PLATFORM is '$platform', not cpu, gpu or tpu" ;;
  esac

  VENV=${VIRTUAL_ENV:-${TTTNN_VENV:-$REPO/.venv}}
  if [[ -z ${VIRTUAL_ENV:-} ]] && ! "$VENV/bin/python" -m pip -V &>/dev/null
  then
    make_venv "$VENV"
  fi
  PYTHON=$VENV/bin/python
  is_recent "$PYTHON" || die "$VENV has no Python 3.11 or newer"

  # One stamp an extra, of this checkout and its setup.py: a second run asks pip
  # for nothing.
  local extra stamp missing=()
  stamp="$REPO $(cksum <"$REPO/setup.py")"
  for extra in "$platform" "$@"; do
    [[ $(cat "$VENV/.tttnn-$extra" 2>/dev/null) == "$stamp" ]] ||
      missing+=("$extra")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0

  if [[ $platform == gpu ]] && "$PYTHON" -m pip show -q faiss-cpu 2>/dev/null
  then
    die "$VENV has faiss-cpu, over which faiss-gpu would be written:" \
      "pip uninstall faiss-cpu, or choose another environment by TTTNN_VENV"
  fi
  say "installing tttnn[$(IFS=,; echo "${missing[*]}")] into $VENV" \
    "(minutes, the first time)"
  # First and by its version: free to choose, pip may fetch gigabytes of CUDA.
  [[ " ${missing[*]} " != *' test '* ]] || install torch==2.13.0
  install -e "${REPO}[$(IFS=,; echo "${missing[*]}")]"
  for extra in "${missing[@]}"; do
    echo "$stamp" >"$VENV/.tttnn-$extra"
  done
}
