#!/usr/bin/env bash
# A run on Slurm, one process on each node with all its GPUs, queued again whenever it is interrupted:
#   launch/slurm.sh [--dry-run] NODES VERB --workdir=DIR …
# Environment: SBATCH_FLAGS (--partition=… --time=… --gpus-per-node=…); T5X_LITE, the command; NAME of the job.
# The workdir must lie on a disk that all nodes share. Two minutes before its time is over the run is told to save.
set -euo pipefail
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
nodes=$1; shift
read -ra flags <<<"${SBATCH_FLAGS:-}"

script="#!/usr/bin/env bash
srun --kill-on-bad-exit=1 ${T5X_LITE:-t5x-lite}$(printf ' %q' "$@")
status=\$?
# Interrupted, or a node was lost: again, from the newest checkpoint; Slurm counts the restarts.
if ((status == 75 || status >= 128)) && ((\${SLURM_RESTART_COUNT:-0} < 100)); then scontrol requeue \"\$SLURM_JOB_ID\"; fi
exit \$status"
submit=(sbatch "--job-name=${NAME:-t5x-lite}" "--nodes=$nodes" --ntasks-per-node=1 --exclusive --requeue
  --open-mode=append --signal=TERM@120 "--output=slurm-%j.log" "${flags[@]}")

echo "+$(printf ' %q' "${submit[@]}") <<'SCRIPT'"
echo "$script"
echo SCRIPT
if [[ ! $dry ]]; then "${submit[@]}" <<<"$script"; fi
