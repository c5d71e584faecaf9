"""Trains one small T5 from scratch on five published tasks at once: it judges, compares, translates and summarises.

    t5x-lite vocab --size=8000 --output=runs/multitask.model --input <(zcat DIR/multi30k/train.*.gz) \
        DIR/SST-2/train.tsv DIR/MRPC/train.tsv DIR/STS-B/train.tsv DIR/dialogsum/dialogsum.dev.jsonl
    t5x-lite train --config=configs/multitask.py --workdir=runs/multitask --config.data.dir=DIR

DIR has five folders, as they were published: SST-2, MRPC and STS-B (from GLUE), multi30k and dialogsum. They may be one
level deeper. You do not need DialogSum's training set: the model trains on the 500 dialogues of its development set and
is evaluated on its test set. Every task is text to text, with the prefix that T5 uses for it. Results: README.md.
"""

import dataclasses

from t5x_lite import config
from t5x_lite.data.registry import Mixture, add
from t5x_lite.tasks import summarization

DIALOGSUM = next(task for task in summarization.TASKS if task.name == "dialogsum")
FILES = DIALOGSUM.source.files  # type: ignore[attr-defined]  (a Published)

add(
    dataclasses.replace(
        DIALOGSUM,
        name="dialogsum_small",
        source=dataclasses.replace(
            DIALOGSUM.source,  # type: ignore[arg-type]
            files={"train": FILES["validation"], "validation": FILES["test"]},
        ),
    )
)
add(
    Mixture(
        "five_tasks",
        {"multi30k_en_de": 0.5, "glue_sst2": 0.2, "glue_mrpc": 0.1, "glue_stsb": 0.1, "dialogsum_small": 0.1},
    )
)


def get_config():
    cfg = config.base()
    cfg.model.preset = "t5_tiny"
    cfg.model.d_model, cfg.model.d_ff, cfg.model.num_heads = 192, 512, 6
    cfg.model.num_encoder_layers = cfg.model.num_decoder_layers = 3
    cfg.data.mixture = "five_tasks"
    cfg.data.vocabulary = "runs/multitask.model"
    cfg.data.batch_rows = 8
    cfg.data.length, cfg.data.targets_length = 256, 128

    cfg.optimizer.name = "adafactor"
    cfg.optimizer.learning_rate = 0.02
    cfg.schedule.name = "cosine"
    cfg.schedule.warmup_steps = 200
    cfg.train.total_steps = 900
    cfg.train.log_every_steps = 50

    cfg.eval.every_steps = 0
    cfg.eval.batch_rows = 64
    cfg.eval.max_examples = 256
    cfg.eval.max_decode_tokens = 48
    cfg.checkpoint.every_steps = 300
    return cfg
