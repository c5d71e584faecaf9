#!/usr/bin/env bash
# Starts a run on GKE as a JobSet with one pod per host; the JobSet restarts it when it is interrupted:
#   launch/gke.sh [--dry-run] NAME HOSTS VERB --workdir=/data/DIR …
# Environment: IMAGE, built with launch/Containerfile; VOLUME, the claim of a shared disk, mounted at /data;
# TPU and TOPOLOGY (tpu-v5-lite-podslice and 4x4), or GPU (nvidia-h100-80gb); CHIPS per host.
# The dry run also prints the xpk command that does the same on a cluster made by xpk.
set -euo pipefail
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
if [[ $# -lt 3 || ! $2 =~ ^[1-9][0-9]*$ || ! ${IMAGE:-} || ! ${VOLUME:-} || ! ${TPU:-}${GPU:-} ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 hosts=$2; shift 2

if [[ ${TPU:-} ]]; then
  resource=google.com/tpu
  selector="{cloud.google.com/gke-tpu-accelerator: $TPU, cloud.google.com/gke-tpu-topology: $TOPOLOGY}"
  xpk=("--tpu-type=${XPK_TYPE:-v5litepod-16}")
else
  resource=nvidia.com/gpu
  selector="{cloud.google.com/gke-accelerator: $GPU}"
  xpk=("--device-type=${XPK_TYPE:-h100-80gb-8}" "--num-nodes=$hosts")
fi
arguments=$(printf ', "%s"' "t5x-lite" "${@//\"/\\\"}")

manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    maxRestarts: 100
    rules: # a restart does not fix an error in config, data or disk
      - {name: stop, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: t5x-lite, operator: In, values: [2, 65, 70, 74, 76]}
          template:
            spec:
              restartPolicy: Never
              subdomain: $name
              terminationGracePeriodSeconds: 120
              nodeSelector: $selector
              containers:
                - name: t5x-lite
                  image: $IMAGE
                  command: [${arguments#, }]
                  env:
                    - {name: JAX_COORDINATOR_ADDRESS, value: \"$name-hosts-0-0.$name:8476\"}
                    - {name: JAX_NUM_PROCESSES, value: \"$hosts\"}
                    - {name: T5X_LITE_AGAIN, value: \"1\"}
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}
                  resources: {limits: {$resource: ${CHIPS:-4}}}
                  volumeMounts: [{name: data, mountPath: /data}]
              volumes: [{name: data, persistentVolumeClaim: {claimName: $VOLUME}}]"

echo "+ kubectl apply -f - <<'MANIFEST'"
echo "$manifest"
echo MANIFEST
if [[ $dry ]]; then
  echo "# or, on a cluster made by xpk:"
  echo "+$(printf ' %q' xpk workload create "--workload=$name" "${xpk[@]}" "--docker-image=$IMAGE" --max-restarts=100 \
    "--command=t5x-lite$(printf ' %q' "$@")")"
else
  kubectl apply -f - <<<"$manifest"
fi
