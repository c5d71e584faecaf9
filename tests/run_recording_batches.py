"""`t5x-lite`, with a digest of every batch that was trained on appended to $BATCH_LOG."""

import hashlib
import os
import sys
from pathlib import Path

from t5x_lite import cli
from t5x_lite.data.pipeline import TrainBatches

following = TrainBatches.__next__


def recorded(self):
    batch = following(self)
    digest = hashlib.sha256(b"".join(name.encode() + batch[name].tobytes() for name in sorted(batch))).hexdigest()
    with Path(os.environ["BATCH_LOG"]).open("a") as log:
        log.write(digest + "\n")
    return batch


if __name__ == "__main__":
    TrainBatches.__next__ = recorded
    sys.exit(cli.run(sys.argv[1:]))
