"""Your own learning-rate schedule: a triangle wave.

    t5x-lite train --config=configs/examples/schedule.py --workdir=runs/own_schedule

The function maps the number of updates made to a share of optimizer.learning_rate. It is compiled into the step, so
write it in jax.numpy.
"""

import jax.numpy as jnp

from t5x_lite import config

CYCLE_STEPS = 50


def triangle(updates):
    """Returns the share of the peak: it rises and falls linearly in each cycle (Smith 2017, §3.1)."""
    return 1 - jnp.abs(2 * (updates % CYCLE_STEPS) / CYCLE_STEPS - 1)


def get_config():
    cfg = config.base()
    cfg.model.preset = "gpt2_tiny"
    cfg.data.mixture = "python_docs"
    cfg.data.length = 128
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 3e-3
    cfg.schedule.name = triangle
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    return cfg
