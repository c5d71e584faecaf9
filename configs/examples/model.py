"""Your own Flax model: a bag of words that classifies docstrings.

    t5x-lite train --config=configs/examples/model.py --workdir=runs/own_model

A module is made with (config, constrain) and maps a batch (t5x_lite/batch.py) to {head: output}. Everything else (data,
loss, checkpoints, evaluation) works as for the built-in models. Parameters made with nn.with_partitioning are sharded
by their logical axes; every device holds the others in full.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from t5x_lite import config


class BagOfWords(nn.Module):
    config: Any  # t5x_lite.models.config.ModelConfig
    constrain: Any

    @nn.compact
    def __call__(self, batch, train=False):
        embed = nn.Embed(self.config.vocab_size, self.config.d_model)
        x_BSD = embed(batch["encoder_input_tokens"])
        first_BE1 = jnp.take_along_axis(batch["encoder_segment_ids"], batch["pooled_positions"], axis=1)[..., None]
        is_of_BES = (batch["encoder_segment_ids"][:, None] == first_BE1).astype(x_BSD.dtype)
        mean_BED = is_of_BES @ x_BSD / jnp.maximum(is_of_BES.sum(-1, keepdims=True), 1)
        return {"classification": nn.Dense(self.config.num_classes)(mean_BED)}


def get_config():
    cfg = config.base()
    cfg.model.preset = "bert_tiny"  # sets the sizes and the kind of batch
    cfg.model.module = BagOfWords
    cfg.data.mixture = "python_docs_classify"
    cfg.data.length = 128
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 0.01
    cfg.schedule.warmup_steps = 20
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    return cfg
