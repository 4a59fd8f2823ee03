#!/usr/bin/env bash
# Makes this host a part of a Ray cluster that can serve a store:
#
#   bash launch/cluster.sh head [PORT]       on one host; says how others join
#   bash launch/cluster.sh join HEAD:PORT    on each of the others
#   bash launch/cluster.sh stop              on any host
#
# Behind a --dry-run it only prints the commands.
#
# Every host needs this repository, the head's token in ~/.ray/auth_token, and,
# under the same path on all, the store with the files of those shards that it
# is to hold. TTTNN_CPUS is the number of CPUs that actors may have here, all if
# not given. launch/setup_env.sh says which environment is used.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

USAGE="launch/cluster.sh [--dry-run] head [PORT] | join HEAD:PORT | stop"
if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
case ${1:-}:$# in
  head:1 | head:2 | join:2 | stop:1) ;;
  *) usage "$USAGE" ;;
esac
PYTHON=.venv/bin/python  # Of a dry run.
run setup_env cluster
ray=$(dirname "$PYTHON")/ray
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
token=$HOME/.ray/auth_token
flags=(--disable-usage-stats ${TTTNN_CPUS:+--num-cpus="$TTTNN_CPUS"})
cd "$REPO"

# Without what Ray says; its errors are shown.
quietly() {
  if [[ -n ${DRY_RUN:-} ]]; then
    run "$@"
  else
    "$@" >/dev/null
  fi
}

case $1 in
  head)
    umask 077
    quietly "$ray" get-auth-token --generate
    umask 022
    quietly "$ray" start --head --port="${2:-6379}" --include-dashboard=false \
      "${flags[@]}"
    say "this is the head of a cluster. On each of the other hosts:"
    say "  copy $token of this host to ~/.ray/, for its user alone (chmod 600)"
    say "  bash launch/cluster.sh join $(hostname -f):${2:-6379}"
    ;;
  join)
    [[ -n ${DRY_RUN:-}${RAY_AUTH_TOKEN:-} || -s $token ]] ||
      die "no $token here: copy that of the head"
    quietly "$ray" start --address="$2" "${flags[@]}"
    [[ -n ${DRY_RUN:-} ]] || say "joined $2"
    ;;
  stop)
    run "$ray" stop
    ;;
esac
