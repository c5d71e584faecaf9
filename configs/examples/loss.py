"""Your own loss: focal loss, for classes of unequal frequency.

    t5x-lite train --config=configs/examples/loss.py --workdir=runs/own_loss

The function gets the model's outputs and the batch and returns {name: LossSum(sum, weight)}: sums over the batch, never
means. The sums are divided once, so the gradient is the same for any number of microbatches and devices. Evaluation
measures plain cross entropy.
"""

import jax
import jax.numpy as jnp

from t5x_lite import config
from t5x_lite.training.losses import LossSum


def focal_loss(outputs, batch):
    """−(1 − p)² log p of the right class (Lin et al. 2017, eq. 5, γ = 2)."""
    logprobs_BEC = jax.nn.log_softmax(outputs["classification"])
    logprob_BE = jnp.take_along_axis(logprobs_BEC, batch["class_targets"][..., None], axis=-1)[..., 0]
    losses_BE, weights_BE = -((1 - jnp.exp(logprob_BE)) ** 2) * logprob_BE, batch["class_weights"]
    return {"focal": LossSum((losses_BE * weights_BE).sum(), weights_BE.sum())}


def get_config():
    cfg = config.base()
    cfg.model.preset = "bert_tiny"
    cfg.data.mixture = "python_docs_classify"
    cfg.data.length = 128
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 1e-3
    cfg.schedule.warmup_steps = 20
    cfg.loss.name = focal_loss
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    return cfg
