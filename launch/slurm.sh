#!/usr/bin/env bash
# Submits a run to Slurm, one process per node with all its GPUs, and requeues it whenever it is interrupted:
#   launch/slurm.sh [--dry-run] NODES VERB --workdir=DIR …
# Environment: SBATCH_FLAGS (--partition=… --time=… --gpus-per-node=…); T5X_LITE, the command; NAME of the job.
# The workdir must be on a disk that all nodes share. Two minutes before its time limit, the run is signalled to save.
set -euo pipefail
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
nodes=$1; shift
workdir=
for argument; do [[ $argument == --workdir=* ]] && workdir=${argument#--workdir=}; done
if [[ ! $workdir ]]; then sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
read -ra flags <<<"${SBATCH_FLAGS:-}"

script="#!/usr/bin/env bash
command=(${T5X_LITE:-t5x-lite}$(printf ' %q' "$@"))
export workdir=$(printf %q "$workdir")
$(sed 's/^  //' <<'SCRIPT'
  export failed=$workdir/failed.$SLURM_JOB_ID
  restarts=$workdir/restarts.$SLURM_JOB_ID # counts restarts in a row that left no newer checkpoint
  newest() { find "$workdir/checkpoints" -maxdepth 1 -name '[0-9]*' ! -name '*.*' -printf '%f\n' 2>/dev/null | sort -n | tail -1; }
  if ((${SLURM_RESTART_COUNT:-0})); then export T5X_LITE_AGAIN=1; fi
  mkdir -p "$workdir" && rm -f "$failed"
  before=$(newest)
  # srun returns the highest exit status, which may come from a task that was killed because another failed. So a task
  # whose error a restart cannot fix writes its status to $failed. Signals reach the task and its shell; the shell waits.
  srun --kill-on-bad-exit=1 bash -c 'trap : TERM INT; "$@"; status=$?
    case $status in 2 | 65 | 70 | 74 | 76) echo "$status" >"$failed" ;; esac; exit "$status"' task "${command[@]}"
  status=$?
  if [[ $(newest) != "$before" ]]; then count=0; else count=$(($(cat "$restarts" 2>/dev/null || echo 0) + 1)); fi
  echo "$count" >"$restarts"
  # Interrupted, or a node was lost: run again from the newest checkpoint, as long as the run makes progress.
  if ((status == 75 || status >= 128)) && [[ ! -e $failed ]] && ((count <= 3)); then scontrol requeue "$SLURM_JOB_ID"; fi
  exit "$status"
SCRIPT
)"
submit=(sbatch "--job-name=${NAME:-t5x-lite}" "--nodes=$nodes" --ntasks-per-node=1 --exclusive --requeue
  --open-mode=append --signal=TERM@120 "--output=slurm-%j.log" "${flags[@]}")

echo "+$(printf ' %q' "${submit[@]}") <<'SCRIPT'"
echo "$script"
echo SCRIPT
if [[ ! $dry ]]; then "${submit[@]}" <<<"$script"; fi
