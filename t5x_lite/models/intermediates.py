"""What a model computes on the way to its outputs: hidden states and attention maps.

Layers record them (flax's `sow`) for the one who asks alone: nothing is spent on them elsewhere.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.attention import INTERMEDIATES


class Intermediates(NamedTuple):
    """hidden: of "encoder" and "decoder", [N + 1, B, L, D]: what each layer reads, and what the stack gives (behind its
    final norm, where it has one).
    attention: of "encoder", "decoder" and "cross" (decoder to encoder), float32 [N, B, H, L, M]: the share of its
    attention that query l gives to key m, before dropout. Each row sums to 1.
    """

    hidden: dict[str, jax.Array]
    attention: dict[str, jax.Array]


def apply(module: nn.Module, params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], Intermediates]:
    """The outputs of a module that `models.build` made, and its intermediates. To be jitted."""
    outputs, recorded = module.apply({"params": params}, batch, mutable=[INTERMEDIATES])
    stacks: Any = recorded[INTERMEDIATES]
    scanned: bool = module.config.scan_layers  # type: ignore[attr-defined]
    hidden, attention = {}, {}
    for name, stack in stacks.items():
        hidden[name] = jnp.concatenate([_of_layers(stack, scanned, "hidden"), stack["hidden"][0][None]])
        attention[name] = _of_layers(stack, scanned, "self_attention", "weights")
    if len(stacks) == 2:
        attention["cross"] = _of_layers(stacks["decoder"], scanned, "cross_attention", "weights")
    return outputs, Intermediates(hidden, attention)  # type: ignore[arg-type]


def _of_layers(stack: Mapping[str, Any], scanned: bool, *path: str) -> jax.Array:
    """What all layers recorded under a path, [N, …]."""
    layers = sorted((name for name in stack if name != "hidden"), key=lambda name: (len(name), name))
    found = [array for name in layers for array in functools.reduce(lambda tree, part: tree[part], path, stack[name])]
    return found[0] if scanned else jnp.stack(found)  # a layer that is shared has several
