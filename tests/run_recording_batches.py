"""Runs `t5x-lite` and appends digests of all trained rows to $BATCH_LOG, one line per batch. Each of several processes
has its own file. $HANG_AT: the number of the batch that never arrives (at the last process). $HEARTBEAT_S, $START_S:
replace the values in t5x_lite/cluster/processes.py."""

import hashlib
import os
import sys
import time
from pathlib import Path

from t5x_lite import cli
from t5x_lite.cluster import processes
from t5x_lite.data.pipeline import TrainBatches

following = TrainBatches.__next__
process, number = os.environ.get("JAX_PROCESS_ID", ""), os.environ.get("JAX_NUM_PROCESSES", "1")
log = Path(os.environ["BATCH_LOG"] + process)
hang_at = int(os.environ.get("HANG_AT", 0)) if int(process or 0) == int(number) - 1 else 0
count = 0


def recorded(self):
    global count
    count += 1
    if count == hang_at:
        time.sleep(3600)
    batch = following(self)
    names = sorted(batch)
    rows = range(len(batch[names[0]]))
    digests = [
        hashlib.sha256(b"".join(n.encode() + batch[n][row].tobytes() for n in names)).hexdigest() for row in rows
    ]
    with log.open("a") as out:
        out.write(" ".join(digests) + "\n")
    return batch


if __name__ == "__main__":
    TrainBatches.__next__ = recorded
    for name in ("HEARTBEAT_S", "START_S"):
        setattr(processes, name, int(os.environ.get(name, getattr(processes, name))))
    sys.exit(cli.run(sys.argv[1:]))
