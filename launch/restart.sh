#!/usr/bin/env bash
# Reruns a command as long as it makes progress:
#   launch/restart.sh [--dry-run] COMMAND … --workdir=DIR …
# Restarts after exit 75 (interrupted) and after a kill, not after an error in config or data. Gives up after 3 restarts
# in a row that left no newer checkpoint.
set -uo pipefail
if [[ ${1:-} == --dry-run ]]; then shift; printf '+'; printf ' %q' "$@"; echo; exit 0; fi
workdir=
for argument; do [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}; done
if [[ ! $workdir ]]; then sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; fi

newest() { find "$workdir/checkpoints" -maxdepth 1 -name '[0-9]*' ! -name '*.*' -printf '%f\n' 2>/dev/null | sort -n | tail -1; }
failures=0 asked='' child=''
trap 'asked=1; if [[ $child ]]; then kill -TERM "$child" 2>/dev/null; fi' TERM INT
while true; do
  before=$(newest)
  if [[ $asked ]]; then exit 75; fi
  "$@" &
  child=$!
  if [[ $asked ]]; then kill -TERM "$child" 2>/dev/null; fi # the signal came between the two lines above
  wait "$child"; status=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done # a signal ends `wait`, not the child
  if ((status != 75 && status < 128)) || [[ $asked ]]; then exit "$status"; fi
  if [[ $(newest) != "$before" ]]; then failures=0; else failures=$((failures + 1)); fi
  if ((failures > 3)); then
    echo "restart.sh: 3 restarts left no newer checkpoint in $workdir; giving up (exit $status)" >&2
    exit "$status"
  fi
  echo "restart.sh: exit $status after a start from checkpoint ${before:-none}; restarting" >&2
  export T5X_LITE_AGAIN=1 # tells the new run that the process which locks the workdir is about to end
done
