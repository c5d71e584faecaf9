"""The intermediates of a model: its hidden states and attention maps.

Layers record them with flax's `sow`. This costs nothing unless the caller makes the collection INTERMEDIATES mutable,
as `apply` does.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.attention import INTERMEDIATES
from t5x_lite.models.config import MERGED


class Intermediates(NamedTuple):
    """Holds the intermediates of a model with N layers per stack.

    hidden: {"encoder" or "decoder": [N + 1, B, L, D]}: the input of each layer, then the output of the stack (after
        its final norm, if it has one).
    attention: {"encoder", "decoder" or "cross" (decoder to encoder): float32 [N, B, H, L, M]}: the weight of key m for
        query l, before dropout. The weights of a query sum to 1; with merged attention (T5Gemma 2), those of "decoder"
        and "cross" together.
    """

    hidden: dict[str, jax.Array]
    attention: dict[str, jax.Array]


def apply(module: nn.Module, params: Any, batch: Mapping[str, Any]) -> tuple[dict[str, jax.Array], Intermediates]:
    """Returns (outputs, intermediates) of a module made by `models.build`. The caller may jit this function."""
    outputs, recorded = module.apply({"params": params}, batch, mutable=[INTERMEDIATES])
    stacks: Any = recorded[INTERMEDIATES]
    scanned: bool = module.config.scan_layers  # type: ignore[attr-defined]
    hidden, attention = hidden_states(stacks, scanned), {}
    for name, stack in stacks.items():
        attention[name] = _of_layers(stack, scanned, "self_attention", "weights")
    if len(stacks) == 2 and module.config.body == MERGED:  # type: ignore[attr-defined]
        own = hidden["decoder"].shape[2]  # keys; the encoder's are behind them
        attention["decoder"], attention["cross"] = jnp.split(attention["decoder"], [own], axis=-1)
    elif len(stacks) == 2:
        attention["cross"] = _of_layers(stacks["decoder"], scanned, "cross_attention", "weights")
    return outputs, Intermediates(hidden, attention)  # type: ignore[arg-type]


def hidden_states(stacks: Mapping[str, Any], scanned: bool) -> dict[str, jax.Array]:
    """Returns the hidden states of Intermediates. stacks: what the model recorded in the collection INTERMEDIATES."""
    return {
        name: jnp.concatenate([_of_layers(stack, scanned, "hidden"), stack["hidden"][0][None]])
        for name, stack in stacks.items()
    }


def _of_layers(stack: Mapping[str, Any], scanned: bool, *path: str) -> jax.Array:
    """Returns the arrays that all layers of a stack recorded under `path`, as one array [N, …]."""
    layers = sorted((name for name in stack if name != "hidden"), key=lambda name: (len(name), name))
    # A shared layer has recorded one array per call.
    arrays = [array for name in layers for array in functools.reduce(lambda tree, part: tree[part], path, stack[name])]
    return arrays[0] if scanned else jnp.stack(arrays)
