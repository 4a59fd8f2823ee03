#!/usr/bin/env bash
# Runs a command on a Cloud TPU VM, of one host or many, by gcloud:
#
#   bash launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE \
#     --type=v5litepod-8 [--version=tpu-ubuntu2204-base] [--spot] [--dry-run] \
#     -- python -m tttnn.main --config=configs/... ...
#
# makes the VM unless it is there, copies this checkout to ~/tttnn of each of
# its hosts, sets up there, and runs the command on all of them, whose `python`
# is that of the environment. On slices of several hosts, which must see the
# same files, the command needs --config.distributed.auto=true.
#
#   bash launch/tpu_vm.sh --name=... --project=... --zone=... --delete
#
# deletes the VM, which costs money until then. One that was preempted is made
# anew: with launch/retry.sh in front, the run goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

USAGE="launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE --type=TYPE"
USAGE+=" [--version=VERSION] [--spot] [--dry-run] -- COMMAND..."
USAGE+=" | --name=... --project=... --zone=... --delete"
name='' project='' zone='' type='' delete=''
version='tpu-ubuntu2204-base'
spot=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=(--spot) ;;
    --delete) delete=1 ;;
    --dry-run) DRY_RUN=1 ;;
    --)
      shift
      break
      ;;
    *) usage "$USAGE; what is $1?" ;;
  esac
  shift
done
for needed in name project zone; do
  [[ -n ${!needed} ]] || usage "$USAGE; --$needed is missing"
done
where=(--project="$project" --zone="$zone")
tpu=(gcloud compute tpus tpu-vm)
if [[ -z ${DRY_RUN:-} ]]; then
  command -v gcloud >/dev/null ||
    die "there is no gcloud here: https://cloud.google.com/sdk/docs/install"
fi

if [[ -n $delete ]]; then
  run "${tpu[@]}" delete "$name" "${where[@]}" --quiet
  exit
fi
[[ -n $type ]] || usage "$USAGE; --type is missing, such as v5litepod-8"
[[ $# -gt 0 ]] || usage "$USAGE; the COMMAND is missing"

create() {
  run "${tpu[@]}" create "$name" "${where[@]}" --accelerator-type="$type" \
    --version="$version" "${spot[@]}"
}

# Ubuntu 22.04 has 3.11 beside its Python 3.10.
remote="set -euo pipefail
mkdir -p ~/tttnn
tar -C ~/tttnn -xzf ~/tttnn.tgz
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  command -v python3.11 >/dev/null || {
  sudo apt-get -qq update
  sudo apt-get -qq install -y python3.11-venv
}
cd ~/tttnn
export TTTNN_PLATFORM=tpu
source launch/setup_env.sh
setup_env
export PATH=\$VENV/bin:\$PATH
exec$(printf ' %q' "$@")"

look=("${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)')
if [[ -n ${DRY_RUN:-} ]]; then
  run "${look[@]}"
  echo '# Unless it is READY:'
  create
else
  state=$("${look[@]}" 2>/dev/null || echo NONE)
  case $state in
    READY) say "$name is there" ;;
    NONE) create ;;
    PREEMPTED | TERMINATED)
      say "$name is $state: it is made anew"
      run "${tpu[@]}" delete "$name" "${where[@]}" --quiet
      create
      ;;
    *) die "$name is $state, not READY: wait, or delete it by --delete" ;;
  esac
fi

archive=${TMPDIR:-/tmp}/tttnn-$$.tgz
trap 'rm -f "$archive"' EXIT
# With .git, whose commit is written into the results.
run tar -C "$REPO" --exclude='./.venv*' --exclude=__pycache__ -czf "$archive" .
run "${tpu[@]}" scp "$archive" "$name:tttnn.tgz" "${where[@]}" --worker=all
run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all \
  --command="bash -c $(printf '%q' "$remote")"
