"""Pre-trains a BERT on the quickstart's documentation (masked tokens, next sentence), then trains it to classify.

    t5x-lite train --config=configs/quickstart_encoder.py --workdir=runs/encoder
    t5x-lite train --config=configs/quickstart_encoder.py:classify --workdir=runs/encoder_classify \
        --config.init.checkpoint=runs/encoder

Without --config.init.checkpoint the second command trains the classifier from scratch, for comparison.
On 2 CPU cores, pre-training takes 5:10 minutes and reaches a next-sentence accuracy of 80.8%. The classifier then
reaches 64.8% (macro F1 63.2); trained from scratch, it reaches 52.3% (42.9). Always choosing the most frequent class
gives 18.5% (3.5). The results are from README.md.
"""

from t5x_lite import config


def get_config(phase: str = "pretrain"):
    cfg = config.base()
    cfg.model.preset = "bert_tiny"
    cfg.model.dropout_rate = cfg.model.attention_dropout_rate = 0.0  # so few steps memorise nothing
    cfg.data.length = 128
    cfg.data.batch_rows = 16
    cfg.optimizer.name = "adafactor"
    cfg.schedule.name = "linear"
    cfg.loss.z_loss = 0.0
    cfg.train.log_every_steps = 25
    cfg.eval.batch_rows = 64
    if phase == "pretrain":
        cfg.data.mixture = "python_docs"
        cfg.optimizer.learning_rate = 0.03
        cfg.schedule.warmup_steps = 200
        cfg.train.total_steps = 3000
        cfg.eval.every_steps = 1000
        cfg.checkpoint.every_steps = 500
    elif phase == "classify":
        cfg.data.mixture = "python_docs_classify"
        cfg.optimizer.learning_rate = 0.02
        cfg.schedule.warmup_steps = 30
        cfg.train.total_steps = 300
        cfg.eval.every_steps = 100
        cfg.checkpoint.every_steps = 100
        cfg.checkpoint.keep_best = "python_docs_classify/accuracy"
    else:
        raise config.ConfigError(f"unknown phase {phase!r} of quickstart_encoder.py; allowed: pretrain, classify")
    return cfg
