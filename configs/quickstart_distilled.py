"""Distils the quickstart's encoder of configs/quickstart_encoder.py into one with half the layers, as DistilBERT was.

    t5x-lite train --config=configs/quickstart_encoder.py --workdir=runs/encoder
    t5x-lite train --config=configs/quickstart_distilled.py:runs/encoder --workdir=runs/distilled

The student begins with every second layer of the teacher. It learns the teacher's predictions at a temperature of 2
(factor 5), the directions of its hidden states (factor 1), and the data's targets (factor 2; Sanh et al. 2019, §3, and
the code of DistilBERT). Not yet run.

A text-to-text student learns from texts that its teacher wrote (Kim & Rush 2016): write them once with the verb infer,
and train on its output as data.files.
"""

from t5x_lite import config


def get_config(teacher: str = "runs/encoder"):
    cfg = config.base()
    cfg.model.preset = "bert_tiny"
    cfg.model.num_encoder_layers = 1  # of 2
    cfg.model.dropout_rate = cfg.model.attention_dropout_rate = 0.0
    cfg.init.checkpoint = cfg.distill.teacher = teacher
    cfg.init.adapt = True
    cfg.data.mixture = "python_docs"
    cfg.data.length = 128
    cfg.data.batch_rows = 16
    cfg.optimizer.name = "adafactor"
    cfg.optimizer.learning_rate = 0.01
    cfg.schedule.name = "linear"
    cfg.schedule.warmup_steps = 50
    cfg.loss.z_loss = 0.0
    cfg.train.total_steps = 1000
    cfg.train.log_every_steps = 25
    cfg.eval.every_steps = 500
    cfg.eval.batch_rows = 64
    cfg.checkpoint.every_steps = 500
    return cfg
