#!/usr/bin/env bash
# Makes this host a part of a Ray cluster that can serve a store:
#
#   bash launch/cluster.sh head [PORT]       on one host; says how others join
#   bash launch/cluster.sh join HEAD:PORT    on each of the others
#   bash launch/cluster.sh stop              on any host
#
# Every host needs this repository, the head's token in ~/.ray/auth_token, and,
# under the same path on all, the store with the files of those shards that it
# is to hold. TTTNN_CPUS is the number of CPUs that actors may have here, all if
# not given. launch/setup_env.sh says which environment is used.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

[[ $# -gt 0 ]] || die "usage: launch/cluster.sh head [PORT] | join HEAD:PORT | stop"
setup_env cluster
ray=$(dirname "$PYTHON")/ray
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
token=$HOME/.ray/auth_token
flags=(--disable-usage-stats ${TTTNN_CPUS:+--num-cpus="$TTTNN_CPUS"})
cd "$REPO"

case $1 in
  head)
    umask 077
    "$ray" get-auth-token --generate >/dev/null
    umask 022
    "$ray" start --head --port="${2:-6379}" --include-dashboard=false \
      "${flags[@]}" >/dev/null
    say "this is the head of a cluster. On each of the other hosts:"
    say "  copy $token of this host to ~/.ray/, for its user alone (chmod 600)"
    say "  bash launch/cluster.sh join $(hostname -f):${2:-6379}"
    ;;
  join)
    [[ $# -eq 2 ]] || die "usage: launch/cluster.sh join HEAD:PORT"
    [[ -n ${RAY_AUTH_TOKEN:-} || -s $token ]] ||
      die "no $token here: copy that of the head"
    "$ray" start --address="$2" "${flags[@]}" >/dev/null
    say "joined $2"
    ;;
  stop)
    "$ray" stop
    ;;
  *) die "'$1' is not head, join or stop" ;;
esac
