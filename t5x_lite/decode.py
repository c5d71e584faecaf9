"""Decoding with a cache of keys and values, for text_to_text and decoder_only models.

Every strategy is `prefill`, once, then a loop that chooses a token from `logits_BV` and calls `step`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import Cache

PROMPT = {
    "text_to_text": ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions"),
    "decoder_only": ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions"),
}


class Decoding(NamedTuple):
    """Where the rows of a batch stand: what comes next, and what has been read."""

    logits_BV: jax.Array  # float32, of the next token
    positions_B: jax.Array  # of the next token in its example
    cache: Cache


def greedy(
    module: nn.Module,
    params: Any,
    batch: Mapping[str, Any],
    *,
    max_tokens: int,
    eos_id: int,
    start_id: int = 0,
) -> dict[str, jax.Array]:
    """The most probable token at each step, until `eos_id` or `max_tokens` tokens.

    One example per row (segment id 1; 0 on padding, which stands right of the tokens). A text_to_text
    model reads `encoder_*` and starts from `start_id`; a decoder_only model reads the prompts in
    `decoder_input_tokens`, of different lengths, and goes on from the last token of each. Rows of
    padding alone generate nothing. Compiled once for each shape of the batch.

    Returns {"tokens": int32 [B, max_tokens], "lengths": int32 [B], tokens before the end, `eos_id`
    not counted, "logprob": float32 [B], the natural log-probability of the tokens and of the `eos_id`
    that ended them}. Past its length a row holds `eos_id`. A length of max_tokens: no end was found.

    Raises ConfigError for a model that does not generate, or for more positions than it has learned.
    """
    config = module.config  # type: ignore[attr-defined]
    if config.architecture not in PROMPT:
        raise ConfigError(f"a {config.architecture} model does not generate text; allowed: {', '.join(sorted(PROMPT))}")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens}; it must be at least 1")
    prompt = {name: batch[name] for name in PROMPT[config.architecture]}
    read = 1 if config.architecture == "text_to_text" else prompt["decoder_input_tokens"].shape[1]
    if config.positions == "learned" and read + max_tokens - 1 > config.max_positions:
        raise ConfigError(
            f"prompts of {read} and max_tokens={max_tokens} need {read + max_tokens - 1} positions; the model "
            f"has model.max_positions={config.max_positions}. Shorten the prompts or lower max_tokens"
        )
    return _greedy(module, params, prompt, max_tokens=max_tokens, eos_id=eos_id, start_id=start_id)


@functools.partial(jax.jit, static_argnames=("module", "max_tokens", "eos_id", "start_id"))
def _greedy(module, params, batch, *, max_tokens: int, eos_id: int, start_id: int) -> dict[str, jax.Array]:
    prompt_ids = batch[PROMPT[module.config.architecture][1]]
    batch_rows = prompt_ids.shape[0]

    def choose(count, decoding: Decoding, out):
        """The token after `count` others: (token_B, outputs with it)."""
        token_B = jnp.argmax(decoding.logits_BV, axis=-1).astype(jnp.int32)
        token_B = jnp.where(out["done"], eos_id, token_B)
        logprob_B = token_logprob(decoding.logits_BV, token_B)
        going_B = ~out["done"]
        done_B = out["done"] | (token_B == eos_id)
        return token_B, {
            "tokens": lax.dynamic_update_slice_in_dim(out["tokens"], token_B[:, None], count, axis=1),
            "lengths": out["lengths"] + ~done_B,
            "logprob": out["logprob"] + jnp.where(going_B, logprob_B, 0.0),
            "done": done_B,
        }

    def unfinished(state):
        count, _, _, out = state
        return (count < max_tokens) & ~jnp.all(out["done"])

    def body(state):
        count, token_B, decoding, out = state
        decoding = step(module, params, token_B, decoding)
        token_B, out = choose(count, decoding, out)
        return count + 1, token_B, decoding, out

    decoding = prefill(module, params, batch, max_tokens=max_tokens, start_id=start_id)
    out = {
        "tokens": jnp.full((batch_rows, max_tokens), eos_id, jnp.int32),
        "lengths": jnp.zeros((batch_rows,), jnp.int32),
        "logprob": jnp.zeros((batch_rows,), jnp.float32),
        "done": jnp.all(prompt_ids == 0, axis=1),
    }
    token_B, out = choose(0, decoding, out)
    *_, out = lax.while_loop(unfinished, body, (jnp.int32(1), token_B, decoding, out))
    return {name: out[name] for name in ("tokens", "lengths", "logprob")}


def prefill(module, params, batch, *, max_tokens: int, start_id: int = 0) -> Decoding:
    """Reads the prompts at once, with room in the cache for `max_tokens` tokens, the last of them not read."""
    if module.config.architecture == "text_to_text":
        start_B1 = jnp.full_like(batch["encoder_input_tokens"][:, :1], start_id)
        batch = dict(batch) | {
            "decoder_input_tokens": start_B1,
            "decoder_segment_ids": jnp.ones_like(start_B1),
            "decoder_positions": jnp.zeros_like(start_B1),
        }
    segment_ids_BL = batch["decoder_segment_ids"]
    lengths_B = jnp.sum(segment_ids_BL > 0, axis=1, dtype=jnp.int32)
    capacity = segment_ids_BL.shape[1] + max_tokens - 1
    hidden_BLD, cache = module.apply({"params": params}, batch, capacity, method="prefill")
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    hidden_BD = jnp.take_along_axis(hidden_BLD, last_B1[..., None], axis=1)[:, 0]
    logits_BV = module.apply({"params": params}, hidden_BD, method="next_logits")
    return Decoding(logits_BV, lengths_B, cache)


def step(module, params, token_B: jax.Array, decoding: Decoding) -> Decoding:
    """Reads one chosen token per row."""
    positions_B = decoding.positions_B
    logits_BV, cache = module.apply({"params": params}, token_B, positions_B, decoding.cache, method="step")
    return Decoding(logits_BV, positions_B + 1, cache)


def token_logprob(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """The natural log-probability of one token per row, [B]."""
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
