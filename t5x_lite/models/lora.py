"""LoRA (Hu et al. 2022): a dense layer computes x·kernel + x·a·b · alpha/rank.

The kernel is frozen; a and b are trained.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.config import ModelConfig


def added(
    module: nn.Module, config: ModelConfig, x_NI: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int
) -> jax.Array:
    """Returns x·a·b · alpha/rank, [N, outputs]. It is 0 at first, because b is initialised to 0.

    a and b are the parameters `lora_a` and `lora_b` of `module`.

    x_NI: the layer's inputs, flattened to N rows.  shape, axes: the shape and the axis names of the layer's kernel.
    inputs: how many leading axes of the kernel are contracted.
    """
    rank = config.lora_rank
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=tuple(range(inputs)), out_axis=-1)
    init_a = nn.with_partitioning(uniform, (*axes[:inputs], "lora"))
    init_b = nn.with_partitioning(nn.initializers.zeros, ("lora", *axes[inputs:]))
    a: Any = module.param("lora_a", init_a, (*shape[:inputs], rank), jnp.float32)  # bounds ±1/√inputs, as in peft
    b: Any = module.param("lora_b", init_b, (rank, *shape[inputs:]), jnp.float32)
    dropped = nn.Dropout(config.lora_dropout_rate, deterministic=not module.has_rng("dropout"), name="lora_dropout")
    low_NR = dropped(x_NI) @ a.astype(x_NI.dtype).reshape(-1, rank)
    return low_NR @ b.astype(x_NI.dtype).reshape(rank, -1) * (config.lora_alpha / rank)


def merged(config: ModelConfig, params: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
    """Returns (config, params) of an equivalent model without LoRA.

    In each layer with LoRA, the kernel becomes kernel + a·b · alpha/rank.
    """
    if not config.lora_rank:
        return config, params
    scale = config.lora_alpha / config.lora_rank

    def merge(tree: dict[str, Any]) -> dict[str, Any]:
        out = {k: merge(v) if isinstance(v, dict) else v for k, v in tree.items() if k not in ("lora_a", "lora_b")}
        if "lora_a" in tree:
            a, b = tree["lora_a"], tree["lora_b"]
            stacked = a.shape[: a.ndim + b.ndim - 2 - tree["kernel"].ndim]  # () or (layers,), if layers are scanned
            inputs, outputs = a.shape[len(stacked) : -1], b.shape[len(stacked) + 1 :]
            product = jnp.einsum(
                "nir,nro->nio",
                a.reshape(-1, math.prod(inputs), config.lora_rank),
                b.reshape(-1, config.lora_rank, math.prod(outputs)),
                precision=jax.lax.Precision.HIGHEST,
            )
            out["kernel"] = tree["kernel"] + scale * product.reshape(tree["kernel"].shape)
        return out

    return dataclasses.replace(config, lora_rank=0), merge(params)
