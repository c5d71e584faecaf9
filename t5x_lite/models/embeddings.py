"""Embeddings of texts: vectors whose cosines say how alike the texts are."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import LARGEST_SCALE, ModelConfig
from t5x_lite.models.layers import named


class Embeddings(nn.Module):
    """Makes an embedding of each text's pooled state.

    An embedding has the length √(1 / temperature). So the product of two embeddings is their cosine divided by the
    temperature, and the loss needs no temperature of its own.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, pooled_BED: jax.Array) -> dict[str, jax.Array]:
        """Returns the outputs of the model's heads "contrastive" and "similarity", float32 [B, E, D] and [B, E].

        The similarity of a slot is the cosine of its text and the text in the next slot.
        """
        unit_BED = unit(pooled_BED.astype(jnp.float32))
        outputs = {}
        if "contrastive" in self.config.heads:
            outputs["contrastive"] = unit_BED * jnp.sqrt(self._scale())
        if "similarity" in self.config.heads:
            outputs["similarity"] = (unit_BED * jnp.roll(unit_BED, -1, axis=1)).sum(-1)
        return outputs

    def _scale(self) -> jax.Array | float:
        if not self.config.learned_temperature:
            return 1 / self.config.temperature
        first = nn.initializers.constant(-math.log(self.config.temperature))
        log_scale = self.param("log_scale", named(first, ()), ())
        return jnp.minimum(jnp.exp(log_scale), LARGEST_SCALE)


def unit(vectors: jax.Array) -> jax.Array:
    """Returns the vectors along the last axis, scaled to length 1. A vector of zeros stays one."""
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
