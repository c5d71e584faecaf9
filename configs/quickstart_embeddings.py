"""Trains an encoder to embed texts: the first sentence of a function's documentation finds the rest of it.

    t5x-lite train --config=configs/quickstart_embeddings.py --workdir=runs/embeddings

The examples are pairs from Python's own documentation. The other matches of the batch are the negatives.

After 300 steps (about 100 seconds on 2 idle CPU cores), the first of 389 texts is the right one for 43.4% of the
queries of the validation set (recall@1), and one of the first ten for 69.9%. Untrained, it is 4.6% and 13.9%.
"""

from t5x_lite import config


def get_config():
    cfg = config.base()
    cfg.model.preset = "bert_tiny"
    cfg.model.pooling = "mean"
    cfg.model.dropout_rate = cfg.model.attention_dropout_rate = 0.0
    cfg.data.mixture = "python_docs_search"
    cfg.data.length = 128
    cfg.data.batch_rows = 32
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 1e-3
    cfg.schedule.name = "linear"
    cfg.schedule.warmup_steps = 30
    cfg.train.total_steps = 300
    cfg.train.log_every_steps = 50
    cfg.eval.every_steps = 100
    cfg.eval.batch_rows = 32
    cfg.checkpoint.every_steps = 100
    return cfg
