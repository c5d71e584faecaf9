#!/usr/bin/env bash
# Starts a run on a Cloud TPU VM slice of any size; creates the slice once there is capacity, and after a preemption:
#   launch/tpu_vm.sh [--dry-run] NAME TYPE VERB --workdir=DIR …         TYPE: v5litepod-16, v4-32, v6e-64, …
# Environment: ZONE, PROJECT; VERSION of the TPU's software; SPOT=0 for a slice that cannot be preempted; INSTALL, the
# command that installs t5x-lite and mounts the workdir's disk on a new VM. The workdir must be on a disk that all hosts
# share and that outlives the slice: a Filestore or a bucket.
set -uo pipefail
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if [[ $# -lt 3 || ! ${ZONE:-} || ! ${PROJECT:-} ]]; then sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
name=$1 type=$2; shift 2
version=${VERSION:-tpu-ubuntu2204-base}
install=${INSTALL:-"pip install 't5x-lite[tpu]'"}
place=("--zone=$ZONE" "--project=$PROJECT")
# A run can outlive its connection, so each host first ends the old run, which would still hold the TPU.
command='old=$(cat ~/t5x-lite.pid 2>/dev/null) && grep -qsa t5x-lite "/proc/$old/cmdline" && kill "$old" &&
  { timeout 120 tail --pid="$old" -f /dev/null || kill -KILL "$old"; }; echo $$ >~/t5x-lite.pid
  exec env JAX_COORDINATOR_ADDRESS=auto T5X_LITE_AGAIN=1 t5x-lite'$(printf ' %q' "$@")
spot=(--spot); if [[ ${SPOT:-1} == 0 ]]; then spot=(); fi

run() { echo "+$(printf ' %q' "$@")"; if [[ ! $dry ]]; then "$@"; fi; }
newest() { # prints the step of the newest checkpoint
  gcloud compute tpus tpu-vm ssh "$name" --worker=0 "${place[@]}" --command="ls $(printf %q "$workdir")/checkpoints" \
    2>/dev/null | grep -xE '[0-9]+' | sort -n | tail -1
}
state() { gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' 2>/dev/null; }
create() {
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" "${spot[@]}" "${place[@]}" || return
  if [[ ! $dry ]]; then until [[ $(state) == ACTIVE ]]; do sleep 30; done; fi
  run gcloud compute tpus tpu-vm ssh "$name" --worker=all "${place[@]}" --command="$install"
}
delete() { run gcloud compute tpus queued-resources delete "$name" --force --quiet "${place[@]}"; }

workdir=
for argument; do [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}; done
create || exit
failures=0
while true; do
  before=; if [[ ! $dry ]]; then before=$(newest); fi
  run gcloud compute tpus tpu-vm ssh "$name" --worker=all "${place[@]}" --command="$command"
  status=$?
  if [[ $dry ]]; then echo "# after exit 75, or when the slice was preempted (it is then created again):"; delete; exit; fi
  case $status in 0 | 2 | 65 | 70 | 74 | 76) exit "$status" ;; esac # done, or an error that a restart does not fix
  if [[ $(state) != ACTIVE ]]; then delete && create || exit; fi
  if [[ $(newest) != "$before" ]]; then failures=0; else failures=$((failures + 1)); fi
  if ((failures > 3)); then echo "tpu_vm.sh: 3 restarts left no newer checkpoint; giving up" >&2; exit "$status"; fi
done
