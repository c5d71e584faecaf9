"""Adapters (Houlsby et al. 2019, §2.1): a small trainable MLP after each sublayer of a frozen model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import ACTIVATIONS, named


class Adapter(nn.Module):
    """Computes x + activation(x·down + bias)·up. `up` is initialised to 0, so an adapter starts as the identity."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] → [B, L, D]."""
        config, dtype = self.config, x_BLD.dtype
        wide, narrow = config.d_model, config.adapter_dim
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        down: Any = self.param("down", named(init, ("embed", "lora")), (wide, narrow), jnp.float32)
        bias: Any = self.param("bias", named(nn.initializers.zeros, ("lora",)), (narrow,), jnp.float32)
        up: Any = self.param("up", named(nn.initializers.zeros, ("lora", "embed")), (narrow, wide), jnp.float32)
        hidden = ACTIVATIONS[config.activation](x_BLD @ down.astype(dtype) + bias.astype(dtype)[None, None, :])
        return x_BLD + hidden @ up.astype(dtype)
