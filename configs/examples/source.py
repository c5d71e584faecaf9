"""Your own data source: anything with `split(name)` that returns a sequence of examples.

    t5x-lite train --config=configs/examples/source.py --workdir=runs/own_source

Access is random, by index, so shuffling, sharding and resuming cost nothing. An example is a dict; here {"text"}, for a
corpus. A task's preprocessors can make {"text"} or {"inputs", "targets"} from other fields. A source may also have
`fingerprint(split)`; without it, a resumed run compares the examples themselves.
"""

import dataclasses
from pathlib import Path

from t5x_lite import config
from t5x_lite.data.registry import Feature, Task, add


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The Python files below a directory, one example each; every tenth is for validation."""

    root: Path

    def split(self, name):
        files = sorted(self.root.rglob("*.py"))
        is_validation = [number % 10 == 0 for number in range(len(files))]
        wanted = name != "train"
        return [{"text": f.read_text()} for f, held_out in zip(files, is_validation, strict=True) if held_out == wanted]


add(Task("source_files", SourceFiles(Path(config.__file__).parent), features={"text": Feature()}))


def get_config():
    cfg = config.base()
    cfg.model.preset = "gpt2_tiny"
    cfg.data.mixture = "source_files"
    cfg.data.vocabulary = "bytes"
    cfg.data.length = 256
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 3e-3
    cfg.schedule.warmup_steps = 20
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    return cfg
