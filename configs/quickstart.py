"""Trains a T5 in a few minutes on a laptop: one model restores, classifies and summarises Python's documentation.

    t5x-lite train --config=configs/quickstart.py --workdir=runs/quickstart

A small text-to-text model (T5 1.1 with tied embeddings) trains on a mixture of span corruption and two supervised
tasks with prefixes. The data is the documentation in your Python installation; the first run collects it.
Results: README.md.
"""

from t5x_lite import config


def get_config():
    cfg = config.base()
    cfg.model.preset = "t5_tiny"
    cfg.data.mixture = "quickstart"
    cfg.data.batch_rows = 8
    cfg.data.length = 128
    cfg.data.targets_length = 48

    cfg.optimizer.name = "adafactor"  # scales its steps by a parameter's size: T5's first embeddings are large
    cfg.optimizer.learning_rate = 0.02
    cfg.schedule.name = "cosine"
    cfg.schedule.warmup_steps = 150
    cfg.train.total_steps = 2600
    cfg.train.log_every_steps = 50

    cfg.eval.every_steps = 1300
    cfg.eval.batch_rows = 64
    cfg.eval.max_examples = 192
    cfg.eval.max_decode_tokens = 32
    cfg.checkpoint.every_steps = 400
    cfg.checkpoint.keep_best = "python_docs_classify/accuracy"
    return cfg
