#!/usr/bin/env bash
# Runs a command again until it ends well, on machines that may be taken away:
#
#   bash launch/retry.sh [--tries=10] [--pause=5] [--dry-run] -- COMMAND...
#
# Every job goes on where it stopped. Before the second try it waits --pause
# seconds, then twice as long each time, 10 minutes at most. It does not try
# again after status 78, by which tttnn/main.py says that the command cannot
# succeed, nor after 126 and 127, where there is none. SIGTERM and SIGINT reach
# the command as SIGTERM, and end it. The exit status is that of the last try.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

USAGE="launch/retry.sh [--tries=N] [--pause=SECONDS] [--dry-run] -- COMMAND..."
tries=10 pause=5 longest=600
while [[ $# -gt 0 ]]; do
  case $1 in
    --tries=*) tries=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    --dry-run) DRY_RUN=1 ;;
    --) break ;;
    *) usage "$USAGE" ;;
  esac
  shift
done
[[ ${1:-} == -- && $# -gt 1 ]] || usage "$USAGE"
shift
[[ $tries =~ ^[1-9][0-9]*$ ]] || usage "$USAGE; --tries=$tries is not 1 or more"
[[ $pause =~ ^[0-9]+$ ]] || usage "$USAGE; --pause=$pause is not 0 or more"

if [[ -n ${DRY_RUN:-} ]]; then
  echo "up to $tries times, $pause s after the first:"
  run "$@"
  exit
fi

child='' signals=0
stop() {
  signals=$((signals + 1))
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

# Waits for $child, in the background of which signals are handled at once.
# They end `wait`, not the child.
finish() {
  local seen
  [[ $signals == 0 ]] || kill -TERM "$child" 2>/dev/null
  while :; do
    seen=$signals
    wait "$child"
    status=$?
    [[ $signals != "$seen" ]] || break
  done
  child=''
}

for ((try = 1; ; try++)); do
  "$@" <&0 &
  child=$!
  finish
  case $status in
    0) exit 0 ;;
    78 | 126 | 127)
      say "status $status: it cannot succeed, so it is not tried again"
      exit "$status"
      ;;
  esac
  if [[ $signals != 0 ]]; then
    say "stopped"
    exit "$status"
  elif ((try >= tries)); then
    say "status $status at try $try, the last one"
    exit "$status"
  fi
  say "status $status at try $try of $tries; again in $pause s"
  failed=$status
  sleep "$pause" &
  child=$!
  finish
  [[ $signals == 0 ]] || exit "$failed"
  pause=$((pause * 2 < longest ? pause * 2 : longest))
done
