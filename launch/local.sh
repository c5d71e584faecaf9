#!/usr/bin/env bash
# Starts several processes of one run on this machine:
#   launch/local.sh [--dry-run] PROCESSES VERB --workdir=DIR …
# Environment: PORT of the coordinator; GPUS of this machine, divided among the processes; T5X_LITE, the command.
# Exits with the status of the first process that fails; the others, which would wait for it forever, are killed.
set -uo pipefail
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
  echo "local.sh: bash $BASH_VERSION cannot tell which process ended; use bash 5.1 or later" >&2
  exit 2
fi
count=$1; shift
port=${PORT:-$((20000 + RANDOM % 10000))}
read -ra program <<<"${T5X_LITE:-t5x-lite}"

declare -A running=()
asked=
trap 'asked=1; kill -TERM "${!running[@]}" 2>/dev/null' TERM INT
for ((process = 0; process < count && !asked; process++)); do
  command=(env "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$process")
  if [[ ${GPUS:-} ]]; then
    each=$((GPUS / count))
    command+=("CUDA_VISIBLE_DEVICES=$(seq -s, $((process * each)) $((process * each + each - 1)))")
  fi
  command+=("${program[@]}" "$@")
  echo "+$(printf " %q" "${command[@]}")"
  if [[ ! $dry ]]; then "${command[@]}" & running[$!]=1; fi
done

status=$((process < count ? 75 : 0)) # stopped before all processes had started
while ((${#running[@]})); do
  ended=
  wait -n -p ended "${!running[@]}"
  this=$?
  if [[ ! ${ended:-} ]]; then continue; fi # a signal ended `wait`; the trap passed it on
  unset "running[$ended]"
  if ((this && !status)); then
    status=$this
    (sleep "${GRACE_S:-20}"; kill -KILL "${!running[@]}") >/dev/null 2>&1 & # the others end soon after the first, or never
    killer=$!
  fi
done
if [[ ${killer:-} ]]; then kill "$killer" 2>/dev/null; fi # otherwise it might kill new processes with these pids
exit "$status"
