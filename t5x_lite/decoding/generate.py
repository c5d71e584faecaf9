"""Decoding with a cache of keys and values, for text_to_text and decoder_only models.

Every strategy calls `prefill` once and then loops: it chooses a token from `logits_RV` and calls `step`. Greedy
decoding and sampling are in this module; beam search is in beam.py. logit_rules.py restricts which tokens may come
next, and constraint.py restricts which texts may be generated.

Additional dimension letter: R rows. R is the number of examples B times the texts or beams per example; the rows of an
example are adjacent.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from t5x_lite import own_code
from t5x_lite.decoding import beam, logit_rules
from t5x_lite.decoding.buckets import bounded, bucket
from t5x_lite.decoding.constraint import PrefixTree
from t5x_lite.decoding.logit_rules import History
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import Cache, repeat_rows

PROMPT = {
    "text_to_text": ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions"),
    "decoder_only": ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions"),
}


class Decoding(NamedTuple):
    """Holds the state of the model between two tokens: what it has read, and its prediction of the next token."""

    logits_RV: jax.Array  # float32, of the next token
    positions_R: jax.Array  # int32, of the next token in its example
    cache: Cache
    visible_BKM: Any = None  # bool, which slots of a shared cache each beam attends to; None: one cache per row


def generate(
    module: nn.Module,
    params: Any,
    batch: Mapping[str, Any],
    strategy: Strategy,
    *,
    eos_id: int,
    start_id: int = 0,
    choices: PrefixTree | None = None,
    seed: int = 0,
    row_ids: Any = None,
    limits: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Generates texts for each row of a batch of prompts.

    A text ends with an end token (`eos_id` or one of `strategy.other_ends`) or after `strategy.max_tokens` tokens.
    Each row has one example (segment id 1) and then padding (segment id 0). A text_to_text model reads `encoder_*`,
    [B, S], and starts from `start_id`. A decoder_only model reads prompts of any lengths in `decoder_*`, [B, L], and
    continues each prompt after its last token. A row with only padding gets no text.

    choices: constraint.prefix_tree(…) of the texts that may be generated.
    seed, row_ids: a row's random numbers depend only on the seed and its row id. If an example's row id is its number
    in the data set, the example gets the same texts in any batch. The default row id is the row's index.
    limits: (min_tokens of each row, max_tokens of each row), both int32 [B]. They override the strategy's limits, but
    the strategy's max_tokens stays the upper bound for every row.
    The program is compiled once per batch shape, strategy, and bucket (see `buckets.bucket`) of max_tokens.

    Returns N = strategy.texts texts per row, the best first, as numpy arrays (jax.Arrays if the batch is split over
    processes):
        tokens    int32 [B, N, max_tokens], the text's tokens and its end, then `eos_id` in the rest
        lengths   int32 [B, N], tokens before the end; max_tokens if the text has no end
        logprobs  float32 [B, N, max_tokens], the model's natural log-probability of each token and of the end, before
                  the strategy changes it; 0 after the end
        score     float32 [B, N], ranks the texts: the sum of logprobs. Beam search penalises it (see `Strategy`) and
                  excludes the forced first and last tokens

    Raises ConfigError if the model cannot generate, if the strategy is invalid, or if the model has too few positions.
    """
    config = module.config  # type: ignore[attr-defined]
    if config.architecture not in PROMPT:
        raise ConfigError(f"a {config.architecture} model does not generate text; allowed: {', '.join(sorted(PROMPT))}")
    if not hasattr(module, "prefill"):
        raise ConfigError(
            f"model.module={own_code.name_of(type(module))} cannot generate text: it lacks prefill, next_logits and "
            "step; define these methods as in models/decoder_only.py, or evaluate on corpora only"
        )
    if choices is not None:
        for name in ("min_tokens", "no_repeat_ngram_size", "first_token", "last_token", "other_ends"):
            if getattr(strategy, name):
                raise ConfigError(
                    f"{name}={getattr(strategy, name)} does not work with constrained decoding; leave it unset"
                )
        strategy = dataclasses.replace(strategy, max_tokens=int(choices.depth))
    strategy.validate()
    prompt = {name: batch[name] for name in PROMPT[config.architecture]}
    rows, columns = np.shape(prompt[PROMPT[config.architecture][0]])
    read = 1 if config.architecture == "text_to_text" else columns
    if limits is None:
        limits = np.full(rows, strategy.min_tokens), np.full(rows, strategy.max_tokens)
    elif config.architecture == "decoder_only":
        read = np.sum(np.asarray(prompt["decoder_segment_ids"]) > 0, axis=1)
    needed = int(np.max(read + limits[1])) - 1
    if config.positions == "learned" and needed > config.max_positions:
        raise ConfigError(
            f"prompts of {np.max(read)} tokens and up to {np.max(limits[1])} new tokens need {needed} positions, but "
            f"model.max_positions={config.max_positions}; shorten the prompts or lower max_tokens"
        )
    out = _generate(
        module,
        dataclasses.replace(strategy, max_tokens=bucket(strategy.max_tokens), min_tokens=0),
        eos_id,
        start_id,
        params,
        prompt,
        np.asarray(limits[0], np.int32),
        np.minimum(limits[1], strategy.max_tokens).astype(np.int32),
        choices,
        np.uint32(seed % 2**32),
        jnp.arange(rows) if row_ids is None else row_ids,
    )
    # On the host, because each length would be a program on the devices.
    here = {name: np.asarray(x) if x.is_fully_addressable else x for name, x in out.items()}
    return {name: x[:, :, : strategy.max_tokens] if x.ndim == 3 else x for name, x in here.items()}


@bounded
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    module: Any,
    strategy: Strategy,
    eos_id: int,
    start_id: int,
    params: Any,
    batch: Mapping[str, jax.Array],
    least_B: jax.Array,
    most_B: jax.Array,
    choices: PrefixTree | None,
    seed: jax.Array,
    row_ids: jax.Array,
) -> dict[str, jax.Array]:
    """Generates as `generate` does, after its checks, in one compiled program.

    strategy.max_tokens is rounded up to a bucket; least_B and most_B hold the min_tokens and max_tokens of each row.
    """
    segment_ids_BL = batch[PROMPT[module.config.architecture][1]]
    paths = max(strategy.beams, strategy.texts)
    ends = tuple(dict.fromkeys((eos_id, *strategy.other_ends)))
    decoding = prefill(module, params, batch, new_slots=(strategy.max_tokens - 1) * strategy.beams, start_id=start_id)
    decoding = branch(decoding, paths) if strategy.beams > 1 else repeat(decoding, paths)
    history = History(*(jnp.repeat(array, paths, axis=0) for array in _history(module, strategy, batch, start_id)))
    done_B = jnp.all(segment_ids_BL == 0, axis=1)
    least_R, most_R = (jnp.repeat(limit_B, paths) for limit_B in (least_B, most_B))
    read = functools.partial(step, module, params)
    rules = functools.partial(logit_rules.apply, strategy, choices, ends, least_R, most_R)
    written = functools.partial(logit_rules.append, choices)
    if strategy.beams > 1:
        penalty = (strategy.length_penalty, strategy.length_offset)
        return beam.search(
            decoding, history, done_B, read, rules, written, reorder,
            beams=strategy.beams, texts=strategy.texts, capacity=strategy.max_tokens, most_B=most_B,
            ends=ends, penalty=penalty, early_stopping=strategy.early_stopping,
        )  # fmt: skip
    keys_R = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(row_ids)
    keys_R = jax.vmap(lambda key: jax.random.split(key, paths))(keys_R).reshape(-1)

    def choose(count: jax.Array, decoding: Decoding, history: History) -> jax.Array:
        logits_RV, _ = rules(count, decoding.logits_RV, history)
        return _sample(strategy, logits_RV, keys_R, count) if strategy.temperature else _first_largest(logits_RV)

    out = _one_by_one(
        decoding, history, jnp.repeat(done_B, paths), read, choose, written,
        capacity=strategy.max_tokens, most_R=most_R, ends=ends,
    )  # fmt: skip
    texts = {name: out[name].reshape(-1, paths, *out[name].shape[1:]) for name in ("tokens", "lengths", "logprobs")}
    texts["score"] = jnp.sum(texts["logprobs"], axis=2)
    best_BN = jnp.argsort(-texts["score"], axis=1)  # samples are not sorted yet
    by_score = {n: jnp.take_along_axis(x, best_BN[..., None] if x.ndim == 3 else best_BN, 1) for n, x in texts.items()}
    return by_score if paths > 1 else texts


def _one_by_one(
    decoding: Decoding,
    history: History,
    done_R: jax.Array,
    read: Callable[[jax.Array, Decoding], Decoding],
    choose: Callable[[jax.Array, Decoding, History], jax.Array],
    written: Callable[[History, jax.Array], History],
    *,
    capacity: int,
    most_R: jax.Array,
    ends: tuple[int, ...],
) -> dict[str, jax.Array]:
    """Generates one text per row, token by token. Returns tokens and logprobs [R, T], lengths and done [R].

    capacity: T.  read, written, ends: as in beam.search.
    choose(count, decoding, history) → token_R, the token at index `count`.
    """

    def write(count: jax.Array, decoding: Decoding, history: History, out: dict[str, jax.Array]):
        """Chooses the next token, token_R. Returns (token_R, the history with it, the output with it)."""
        token_R = jnp.where(out["done"], ends[0], choose(count, decoding, history).astype(jnp.int32))
        logprob_R = jnp.where(out["done"], 0.0, token_logprob(decoding.logits_RV, token_R))
        ended_R = out["done"] | jnp.isin(token_R, jnp.array(ends))
        return token_R, written(history, token_R), {
            "tokens": lax.dynamic_update_slice_in_dim(out["tokens"], token_R[:, None], count, axis=1),
            "lengths": out["lengths"] + ~ended_R,
            "logprobs": lax.dynamic_update_slice_in_dim(out["logprobs"], logprob_R[:, None], count, axis=1),
            "done": ended_R | (count + 1 >= most_R),
        }  # fmt: skip

    def body(state):
        count, token_R, decoding, history, out = state
        decoding = read(token_R, decoding)
        token_R, history, out = write(count, decoding, history, out)
        return count + 1, token_R, decoding, history, out

    out = {
        "tokens": jnp.full((len(done_R), capacity), ends[0], jnp.int32),
        "lengths": jnp.zeros(done_R.shape, jnp.int32),
        "logprobs": jnp.zeros((len(done_R), capacity), jnp.float32),
        "done": done_R,
    }
    token_R, history, out = write(jnp.int32(0), decoding, history, out)
    state = (jnp.int32(1), token_R, decoding, history, out)
    *_, out = lax.while_loop(lambda state: ~jnp.all(state[-1]["done"]), body, state)
    return out


def greedy(
    module: nn.Module, params: Any, batch: Mapping[str, Any], *, max_tokens: int, eos_id: int, start_id: int = 0
) -> dict[str, Any]:
    """Generates one text per row, with the most probable token at each step.

    Returns `generate`'s arrays without the axis N; "logprob", [B], replaces "score".
    """
    out = generate(module, params, batch, Strategy(max_tokens=max_tokens), eos_id=eos_id, start_id=start_id)
    return {name: out[name][:, 0] for name in ("tokens", "lengths", "logprobs")} | {"logprob": out["score"][:, 0]}


def _first_largest(logits_RV: jax.Array) -> jax.Array:
    """Returns the argmax over V, int32 [R]; 0 for a row with NaN.

    It avoids jnp.argmax, which XLA's CPU backend compiles to a scalar loop. That loop took 5 % of the time per token.
    """
    top_R1 = logits_RV.max(axis=1, keepdims=True)
    ids_RV = lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
    return jnp.where(logits_RV < top_R1, logits_RV.shape[1] - 1, ids_RV).min(axis=1)


def _sample(strategy: Strategy, logits_RV: jax.Array, keys_R: jax.Array, count: jax.Array) -> jax.Array:
    logits_RV = logits_RV / strategy.temperature
    if strategy.top_k:
        logits_RV = logit_rules.keep_top_k(logits_RV, strategy.top_k)
    if strategy.top_p < 1:
        logits_RV = logit_rules.keep_top_p(logits_RV, strategy.top_p)
    return jax.vmap(lambda key, logits_V: jax.random.categorical(jax.random.fold_in(key, count), logits_V))(
        keys_R, logits_RV
    )


def _history(module: Any, strategy: Strategy, batch: Mapping[str, jax.Array], start_id: int) -> History:
    """Returns the history of each prompt: its tokens for a decoder_only model, `start_id` for a text_to_text model."""
    tokens_BL, segment_ids_BL, _ = (batch[name] for name in PROMPT[module.config.architecture])
    if module.config.architecture == "text_to_text":
        tokens_BL = jnp.full_like(tokens_BL[:, :1], start_id)
        segment_ids_BL = jnp.ones_like(tokens_BL)
    return logit_rules.begin(strategy, tokens_BL, segment_ids_BL, module.config.vocab_size)


def prefill(module: Any, params: Any, batch: Mapping[str, jax.Array], *, new_slots: int, start_id: int = 0) -> Decoding:
    """Reads all tokens of the prompts at once. Returns a `Decoding` of B rows, whose cache has `new_slots` free slots.

    start_id: the token from which a text_to_text model starts.
    """
    if module.config.architecture == "text_to_text":
        start_B1 = jnp.full_like(batch["encoder_input_tokens"][:, :1], start_id)
        batch = dict(batch) | {
            "decoder_input_tokens": start_B1,
            "decoder_segment_ids": jnp.ones_like(start_B1),
            "decoder_positions": jnp.zeros_like(start_B1),
        }
    segment_ids_BL = batch["decoder_segment_ids"]
    lengths_B = jnp.sum(segment_ids_BL > 0, axis=1, dtype=jnp.int32)
    capacity = segment_ids_BL.shape[1] + new_slots
    hidden_BLD, cache = module.apply({"params": params}, batch, capacity, method="prefill")
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    hidden_BD = jnp.take_along_axis(hidden_BLD, last_B1[..., None], axis=1)[:, 0]
    logits_BV = module.apply({"params": params}, hidden_BD, method="next_logits")
    return Decoding(logits_BV, lengths_B, cache)


def step(module: Any, params: Any, token_R: jax.Array, decoding: Decoding) -> Decoding:
    """Reads one token per row, token_R (int32 [R]), and returns the `Decoding` after it."""
    _, positions_R, cache, visible_BKM = decoding
    if visible_BKM is not None:
        beams, slots = visible_BKM.shape[1:]
        own_KM = jnp.arange(slots)[None, :] == cache["index"] + jnp.arange(beams)[:, None]  # the beam's new slot
        visible_BKM |= own_KM[None]
    BK = cache["segment_ids"].shape[0], -1
    read = {"params": params}, token_R.reshape(BK), positions_R.reshape(BK), cache, visible_BKM
    logits_BKV, cache = module.apply(*read, method="step")
    return Decoding(logits_BKV.reshape(len(token_R), -1), positions_R + 1, cache, visible_BKM)


def repeat(decoding: Decoding, times: int) -> Decoding:
    """Repeats every row `times` times, side by side. Each copy has its own cache."""
    if times == 1:
        return decoding
    logits_RV, positions_R, cache, _ = decoding
    return Decoding(
        jnp.repeat(logits_RV, times, axis=0), jnp.repeat(positions_R, times, axis=0), repeat_rows(cache, times)
    )


def branch(decoding: Decoding, beams: int) -> Decoding:
    """Turns every row into `beams` adjacent beams that share one cache.

    After the prompt's slots, each step adds one slot per beam. A beam attends to the slots of the prompt and to the
    slots of its text's tokens, even if these tokens were written by a different beam, whose text it has continued. So
    no step copies the cache.
    """
    logits_RV, positions_R, cache, _ = decoding
    visible_BKM = jnp.repeat(cache["segment_ids"][:, None] > 0, beams, axis=1)
    return Decoding(jnp.repeat(logits_RV, beams, axis=0), jnp.repeat(positions_R, beams, axis=0), cache, visible_BKM)


def reorder(state: Decoding | History, rows_R: jax.Array) -> Any:
    """Returns the rows `rows_R` of `state`: a history, or the decoding of beams.

    Each row must be replaced by a row of the same example. Positions and cache stay as they are, because all beams of
    an example are at the same position and share one cache.
    """
    if isinstance(state, History):
        return History(*(array[rows_R] for array in state))
    visible_BKM = state.visible_BKM
    visible_RM = visible_BKM.reshape(len(rows_R), -1)[rows_R]
    return state._replace(logits_RV=state.logits_RV[rows_R], visible_BKM=visible_RM.reshape(visible_BKM.shape))


def token_logprob(logits_RV: jax.Array, token_R: jax.Array) -> jax.Array:
    """Returns the natural log-probability of one token per row: logits_RV and int32 token_R → float32 [R]."""
    chosen_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)[:, 0]
    return chosen_R - jax.nn.logsumexp(logits_RV, axis=-1)
