"""Continues a model as a model of another architecture or depth: says from which stored array each parameter comes.

    decoder_only → encoder_only    the decoder's layers, whose attention now sees both sides
    encoder_only → decoder_only    the encoder's layers, whose attention now sees only the past
    decoder_only → text_to_text    both stacks from the decoder; cross-attention from its self-attention (Zhang et al.
                                   2025, "Encoder-decoder Gemma", §3)
    encoder_only → text_to_text    the encoder; the decoder starts fresh
    text_to_text → encoder_only    the encoder
    text_to_text → decoder_only    the decoder without its cross-attention

If the stacks differ in depth, the new layers take the old ones in order, evenly spaced: with half as many layers, every
second one, from the first (Sanh et al. 2019, DistilBERT, §3).
"""

import functools
import re
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.checkpoints.loading import Origin
from t5x_lite.errors import CheckpointError
from t5x_lite.models.config import MERGED, ModelConfig
from t5x_lite.models.positions import bucket_boundaries, relative_buckets

ENCODER, DECODER, BOTH = ("encoder",), ("decoder",), ("encoder", "decoder")
STACKS = {  # (stacks of the old model, stacks of the new model) -> {new stack: the old stack that it continues}
    (DECODER, ENCODER): {"encoder": "decoder"},
    (ENCODER, DECODER): {"decoder": "encoder"},
    (DECODER, BOTH): {"encoder": "decoder", "decoder": "decoder"},
    (ENCODER, BOTH): {"encoder": "encoder"},
    (BOTH, ENCODER): {"encoder": "encoder"},
    (BOTH, DECODER): {"decoder": "decoder"},
}
TABLE, DECODER_TABLE = "token_embedding", "decoder_token_embedding"  # T5Gemma has both
# Fields that decide what a layer computes from its parameters. They must be equal in both models.
OF_LAYERS = (
    "norm", "norm_position", "qk_norm", "activation", "gated_mlp", "positions", "position_offset", "rotary_dim",
    "rotary_interleaved", "rotary_base", "rotary_factor", "rotary_original_positions", "rotary_scaling",
    "rotary_local_base", "local_window", "layer_pattern", "relative_buckets", "relative_max_distance", "parallel_block",
    "share_layers", "scan_layers", "query_dim", "attention_softcap", "scale_embeddings", "embedding_norm",
)  # fmt: skip


def origins(old: ModelConfig, new: ModelConfig, parameters: Iterable[str], stored: Iterable[str]) -> dict[str, Origin]:
    """Returns {path of a parameter of the new model: the Origin of its value}. Other parameters start fresh.

    parameters: the paths of the new model's parameters.  stored: those of the old model's.
    Raises CheckpointError if the layers of the two models compute different functions.
    """
    differing = [name for name in OF_LAYERS if getattr(old, name) != getattr(new, name)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"init.adapt: the layers of the checkpoint's model and of the run's differ in {', '.join(differing)}; set "
            f"for example model.{name}={getattr(old, name)}"
        )
    if old.body == MERGED and new.stacks == ENCODER and old.local_window:
        raise CheckpointError(
            f"init.adapt: the encoder of a model with body={MERGED} has model.local_window={old.local_window} tokens "
            "on both sides together, an encoder_only model so many on each; continue a model without a window"
        )
    there = set(stored)
    every = {path: _origin(path, old, new, there) for path in parameters}
    found = {path: origin for path, origin in every.items() if origin is not None}
    if left := _left_out(found.values(), there):
        raise CheckpointError(
            f"init.adapt: the run's layers have no place for {len(left)} parameters of the checkpoint's layers, for "
            f"example {left[0]}; give the run's model the same biases, LoRA and adapters (attention_bias, mlp_bias, "
            "lora_rank, lora_targets, adapter_dim)"
        )
    return found


def _left_out(origins: Iterable[Origin], stored: set[str]) -> list[str]:
    """Returns the stored parameters that a continued layer would lose. Cross-attention may be lost."""
    taken = {origin.path for origin in origins}
    layers = {tuple(path.split("/")[:2]) for path in taken if path.startswith(("encoder/", "decoder/"))}
    left = (path for path in stored - taken if tuple(path.split("/")[:2]) in layers)
    return sorted(path for path in left if "cross_attention" not in path)


def _origin(path: str, old: ModelConfig, new: ModelConfig, stored: set[str]) -> Origin | None:
    stack, _, rest = path.partition("/")
    if stack == DECODER_TABLE and path not in stored:
        return Origin(f"{TABLE}/{rest}", "the decoder's table from the only table")
    if stack == TABLE and new.stacks == DECODER and f"{DECODER_TABLE}/{rest}" in stored:
        return Origin(f"{DECODER_TABLE}/{rest}", "the table from the decoder's table")
    if stack not in ("encoder", "decoder"):
        return Origin(path) if path in stored else None
    old_stack = stack if old.stacks == new.stacks else STACKS[old.stacks, new.stacks].get(stack)
    if old_stack is None:
        return None
    hows, changes = [], []
    if old_stack != stack:
        hows.append(f"{stack} from {old_stack}")
    if "cross_attention" in rest and f"{old_stack}/{rest}" not in stored:
        rest = rest.replace("cross_attention", "self_attention")
        hows = [f"cross-attention from the {old_stack}'s self-attention"]
    depth, old_depth = (getattr(model, f"num_{name}_layers") for model, name in ((new, stack), (old, old_stack)))
    of_old = np.arange(depth) * old_depth // depth
    if depth != old_depth and not new.share_layers and (match := re.match(r"layers(?:_(\d+))?/", rest)):
        hows.append(f"{depth} layers from {old_depth}")
        if match[1] is None:  # scanned: the layers are stacked
            changes.append(functools.partial(jnp.take, indices=of_old, axis=0))
        else:
            rest = f"layers_{of_old[int(match[1])]}/{rest[match.end() :]}"
    if "relative_bias/" in rest and old_stack != stack:
        hows.append("relative biases by distance")
        changes.append(_biases_by_distance(new, bidirectional=stack == "encoder"))
    source = f"{old_stack}/{rest}"
    if source not in stored:
        return None
    return Origin(source, ", ".join(hows), functools.partial(_in_turn, changes))


def _in_turn(changes: list[Callable[[jax.Array], jax.Array]], array: jax.Array) -> jax.Array:
    for change in changes:
        array = change(array)
    return array


def _biases_by_distance(config: ModelConfig, bidirectional: bool) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that makes a table of relative biases [..., buckets] for attention to both sides from one
    for attention to the past, or the other way round.

    bidirectional: of the new table. A new bucket gets the bias that the old table has for the bucket's smallest
    distance in the past. So a model that is continued as an encoder begins with the same biases on both sides.
    """
    buckets, most = config.relative_buckets, config.relative_max_distance
    distances = np.concatenate([[0], bucket_boundaries(buckets // 2 if bidirectional else buckets, most)])
    if bidirectional:
        distances = np.tile(distances, 2)
    of_old = relative_buckets(-distances, bidirectional=not bidirectional, num_buckets=buckets, max_distance=most)
    return functools.partial(jnp.take, indices=np.asarray(of_old), axis=-1)
