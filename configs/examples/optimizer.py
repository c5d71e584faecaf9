"""Your own optimizer: any optax optimizer, or your own GradientTransformation.

    t5x-lite train --config=configs/examples/optimizer.py --workdir=runs/own_optimizer

The function gets the schedule (number of updates made -> learning rate) and returns an optimizer that applies it.
optimizer.clip_norm clips the gradient before that. State with the shape of a parameter is sharded like the parameter.
"""

import optax

from t5x_lite import config


def nadamw(schedule):
    """AdamW with Nesterov's momentum (Dozat 2016)."""
    return optax.nadamw(schedule, b1=0.9, b2=0.98, weight_decay=0.1)


def get_config():
    cfg = config.base()
    cfg.model.preset = "gpt2_tiny"
    cfg.data.mixture = "python_docs"
    cfg.data.length = 128
    cfg.optimizer.name = nadamw
    cfg.optimizer.learning_rate = 3e-4
    cfg.schedule.name = "cosine"
    cfg.schedule.warmup_steps = 20
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    return cfg
