"""Your own learning-rate schedule: warm-up, stable, decay.

    t5x-lite train --config=configs/examples/schedule.py --workdir=runs/own_schedule

The function maps the number of updates made to a share of optimizer.learning_rate. It is compiled into the step, so
write it in jax.numpy.
"""

import jax.numpy as jnp

from t5x_lite import config

WARMUP_STEPS, DECAY_STEPS, TOTAL_STEPS = 20, 40, 200


def warmup_stable_decay(updates):
    """Returns the share of the peak: a linear rise, a plateau, a linear fall to 0 (Hu et al. 2024, MiniCPM, §4)."""
    return jnp.clip(jnp.minimum(updates / WARMUP_STEPS, (TOTAL_STEPS - updates) / DECAY_STEPS), 0, 1)


def get_config():
    cfg = config.base()
    cfg.model.preset = "gpt2_tiny"
    cfg.data.mixture = "python_docs"
    cfg.data.length = 128
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 3e-3
    cfg.schedule.name = warmup_stable_decay
    cfg.train.total_steps = TOTAL_STEPS
    cfg.eval.every_steps = 0
    return cfg
