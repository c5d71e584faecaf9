"""Decoding with a cache of keys and values, for text_to_text and decoder_only models.

Every strategy is `prefill`, once, then a loop that chooses a token from `logits_RV` and calls `step`: here greedily or
by sampling, in beam.py by beam search. What may be chosen: logit_rules.py, constraint.py. Of the shape letters, R is
B rows of examples times the texts written for each, those of an example side by side.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from t5x_lite.decoding import beam, constraint, logit_rules
from t5x_lite.decoding.buckets import bucket
from t5x_lite.decoding.constraint import PrefixTree
from t5x_lite.errors import ConfigError
from t5x_lite.models.transformer import Cache, repeat_rows

PROMPT = {
    "text_to_text": ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions"),
    "decoder_only": ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions"),
}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How texts are chosen. Greedily as it stands; with `beams` by beam search; with a `temperature` by sampling.

    The score by which beam search ranks texts of n tokens (their end is one) is
    logprob / ((length_offset + n) / (length_offset + 1)) ** length_penalty: T5's and GNMT's (Wu et al. 2016, §7).
    With an offset of 0 it is logprob / n ** length_penalty, as in transformers.
    """

    max_tokens: int = 64  # of a text, its end included; with a constraint its longest text decides
    min_tokens: int = 0  # before the end
    beams: int = 1
    length_penalty: float = 0.6  # of beam search; 0: none
    length_offset: int = 5
    temperature: float = 0.0  # 0: no sampling; 1: from the model's distribution
    top_k: int = 0  # sample from the k most probable tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens that are this probable together
    repetition_penalty: float = 1.0  # above 1: tokens that were there before become less likely
    no_repeat_ngram_size: int = 0  # no run of so many tokens comes twice, the prompt of a decoder included; 0: any may
    first_token: int | None = None  # what a text begins with, for certain: of BART, or the language of mBART's
    last_token: int | None = None  # what stands at max_tokens, for certain: an end
    other_ends: tuple[int, ...] = ()  # tokens that end a text as eos_id does: of a turn in a chat
    early_stopping: bool | str = "never"  # of beam search, by beam.EARLY_STOPPING
    texts: int = 1  # for each example: so many samples, or the best so many beams

    def validate(self) -> "Strategy":
        """Returns self; raises ConfigError naming the field, what it got and what is allowed."""
        least = {"max_tokens": 1, "min_tokens": 0, "beams": 1, "texts": 1, "top_k": 0, "no_repeat_ngram_size": 0}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)}; it must be at least {low}")
        for field in ("length_penalty", "length_offset", "temperature"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ConfigError(f"{field}={getattr(self, field)}; it must be a number, 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}; it must be above 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise ConfigError(f"repetition_penalty={self.repetition_penalty}; it must be above 0 (1: none)")
        if self.early_stopping not in beam.EARLY_STOPPING:
            raise ConfigError(f"early_stopping={self.early_stopping!r}; it must be one of {beam.EARLY_STOPPING}")
        if not isinstance(self.other_ends, tuple):
            raise ConfigError(f"other_ends={self.other_ends!r}; it must be a tuple of ids")
        if self.min_tokens >= self.max_tokens:
            raise ConfigError(f"min_tokens={self.min_tokens} is not below max_tokens={self.max_tokens}")
        if self.beams > 1 and self.temperature:
            raise ConfigError(f"beams={self.beams} and temperature={self.temperature}: give one of them")
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ConfigError(f"top_k={self.top_k}, top_p={self.top_p} are about sampling: set a temperature, say 1.0")
        if self.texts > 1 and not self.temperature and self.texts > self.beams:
            raise ConfigError(
                f"texts={self.texts}, but there are {self.beams} beams and no temperature; raise one of them"
            )
        return self


class Decoding(NamedTuple):
    """Where the rows of a batch stand: what comes next, and what has been read."""

    logits_RV: jax.Array  # float32, of the next token
    positions_R: jax.Array  # of the next token in its example
    cache: Cache
    visible_BKM: Any = None  # bool, the slots of the cache that each of K beams looks at; None: a row has its own cache


class History(NamedTuple):
    """What the rules must know of what a row has written."""

    node_R: jax.Array  # in the constraint's tree
    tokens_RT: jax.Array  # int32, what the decoder has read, V behind it; of no columns where nothing asks
    lengths_R: jax.Array  # of it


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
) -> dict[str, jax.Array]:
    """Texts for each row of a batch of prompts, until an end (`eos_id`, `strategy.other_ends`) or
    `strategy.max_tokens` tokens.

    One example per row (segment id 1; 0 on padding, which stands right of the tokens). A text_to_text model reads
    `encoder_*` and starts from `start_id`; a decoder_only model reads the prompts in `decoder_input_tokens`, of
    different lengths, and goes on from the last token of each. Rows of padding alone generate nothing.

    choices: constraint.prefix_tree(…) of what may be written.  seed, row_ids: sampling draws from them alone, so give
    an example's number in the data set and its texts are the same in any batch; by default, the row's number.  limits:
    int32 [B], [B], the strategy's min_tokens and max_tokens for each row, where they are not all alike.
    Compiled once for each shape of the batch, strategy, and bucket (see `buckets.bucket`) of max_tokens.

    Returns, for N = strategy.texts, best first:
        tokens    int32 [B, N, max_tokens]; past its length a text holds its end, and then `eos_id`
        lengths   int32 [B, N], tokens before the end, which is not counted; the most there may be: no end was found
        logprobs  float32 [B, N, max_tokens], the model's own natural log-probability of each token, the end
                  included and 0 behind it, whatever the strategy made of it
        score     float32 [B, N], what the texts are ranked by: the sum of logprobs, for beam search penalised and
                  without those of a first and last token that were for certain

    Raises ConfigError for a model that does not generate, or for more positions than it has learned.
    """
    config = module.config  # type: ignore[attr-defined]
    if config.architecture not in PROMPT:
        raise ConfigError(f"a {config.architecture} model does not generate text; allowed: {', '.join(sorted(PROMPT))}")
    if choices is not None:
        for name in ("min_tokens", "no_repeat_ngram_size", "first_token", "last_token", "other_ends"):
            if getattr(strategy, name):
                raise ConfigError(
                    f"{name}={getattr(strategy, name)} with a constraint: the texts to choose from decide"
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
            f"prompts of {np.max(read)} tokens and up to {np.max(limits[1])} new ones need {needed} positions; the "
            f"model has model.max_positions={config.max_positions}. Shorten the prompts or lower max_tokens"
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
    return {n: x[:, :, : strategy.max_tokens] if x.ndim == 3 else x for n, x in out.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(module, strategy, eos_id, start_id, params, batch, least_B, most_B, choices, seed, row_ids):
    segment_ids_BL = batch[PROMPT[module.config.architecture][1]]
    paths = max(strategy.beams, strategy.texts)
    ends = tuple(dict.fromkeys((eos_id, *strategy.other_ends)))
    read = functools.partial(step, module, params)
    decoding = prefill(module, params, batch, new_slots=(strategy.max_tokens - 1) * strategy.beams, start_id=start_id)
    decoding = branch(decoding, paths) if strategy.beams > 1 else repeat(decoding, paths)
    history = History(*(jnp.repeat(array, paths, axis=0) for array in _history(module, strategy, batch, start_id)))
    done_B = jnp.all(segment_ids_BL == 0, axis=1)
    least_R, most_R = (jnp.repeat(limit_B, paths) for limit_B in (least_B, most_B))

    def rules(count: jax.Array, logits_RV: jax.Array, history: History) -> tuple[jax.Array, jax.Array]:
        """Logits, −inf where forbidden, and what normalises them: a text's score is its probability among all."""
        penalised = strategy.repetition_penalty != 1
        normalised = penalised and strategy.beams > 1  # beams compare penalised log-probabilities, as in transformers
        if normalised:
            logits_RV = jax.nn.log_softmax(logits_RV)
        if penalised:
            logits_RV = logit_rules.penalise_repetition(logits_RV, history.tokens_RT, strategy.repetition_penalty)
        normaliser_R = jnp.zeros(len(logits_RV)) if normalised else jax.nn.logsumexp(logits_RV, axis=1)
        if choices is not None:
            return constraint.forbid(choices, history.node_R, logits_RV), normaliser_R
        if strategy.no_repeat_ngram_size:
            logits_RV = logit_rules.forbid_repetition(
                logits_RV, history.tokens_RT, history.lengths_R, strategy.no_repeat_ngram_size
            )
        logits_RV = logit_rules.forbid_ends(logits_RV, ends, count < least_R)
        for token, place_R in ((strategy.first_token, 0), (strategy.last_token, most_R - 1)):
            if token is not None:
                logits_RV = logit_rules.force(logits_RV, token, count == place_R, normaliser_R)
        return logits_RV, normaliser_R

    def written(history: History, token_R: jax.Array) -> History:
        node_R, tokens_RT, lengths_R = history
        if choices is not None:
            node_R = constraint.advance(choices, node_R, token_R)
        if tokens_RT.shape[1]:
            tokens_RT = tokens_RT.at[jnp.arange(len(token_R)), lengths_R].set(token_R)
        return History(node_R, tokens_RT, lengths_R + 1)

    if strategy.beams > 1:
        penalty = (strategy.length_penalty, strategy.length_offset)
        return beam.search(
            decoding, history, done_B, read, rules, written, reorder,
            beams=strategy.beams, texts=strategy.texts, capacity=strategy.max_tokens, most_B=most_B,
            ends=ends, penalty=penalty, early_stopping=strategy.early_stopping,
        )  # fmt: skip
    keys_R = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(row_ids)
    keys_R = jax.vmap(lambda key: jax.random.split(key, paths))(keys_R).reshape(-1)

    def choose(count, decoding: Decoding, history: History, out):
        """The token after `count` others: (token_R, history and outputs with it)."""
        logits_RV, _ = rules(count, decoding.logits_RV, history)
        token_R = _sample(strategy, logits_RV, keys_R, count) if strategy.temperature else _first_largest(logits_RV)
        token_R = jnp.where(out["done"], eos_id, token_R.astype(jnp.int32))
        logprob_R = jnp.where(out["done"], 0.0, token_logprob(decoding.logits_RV, token_R))
        ended_R = out["done"] | jnp.isin(token_R, jnp.array(ends))
        return token_R, written(history, token_R), {
            "tokens": lax.dynamic_update_slice_in_dim(out["tokens"], token_R[:, None], count, axis=1),
            "lengths": out["lengths"] + ~ended_R,
            "logprobs": lax.dynamic_update_slice_in_dim(out["logprobs"], logprob_R[:, None], count, axis=1),
            "done": ended_R | (count + 1 >= most_R),
        }  # fmt: skip

    def unfinished(state):
        *_, out = state
        return ~jnp.all(out["done"])

    def body(state):
        count, token_R, decoding, history, out = state
        decoding = read(token_R, decoding)
        token_R, history, out = choose(count, decoding, history, out)
        return count + 1, token_R, decoding, history, out

    done_R = jnp.repeat(done_B, paths)
    out = {
        "tokens": jnp.full((len(done_R), strategy.max_tokens), eos_id, jnp.int32),
        "lengths": jnp.zeros(done_R.shape, jnp.int32),
        "logprobs": jnp.zeros((len(done_R), strategy.max_tokens), jnp.float32),
        "done": done_R,
    }
    token_R, history, out = choose(jnp.int32(0), decoding, history, out)
    *_, out = lax.while_loop(unfinished, body, (jnp.int32(1), token_R, decoding, history, out))
    found = {name: out[name].reshape(-1, paths, *out[name].shape[1:]) for name in ("tokens", "lengths", "logprobs")}
    found["score"] = jnp.sum(found["logprobs"], axis=2)
    best_BN = jnp.argsort(-found["score"], axis=1)  # samples come in any order
    by_score = {n: jnp.take_along_axis(x, best_BN[..., None] if x.ndim == 3 else best_BN, 1) for n, x in found.items()}
    return by_score if paths > 1 else found


def greedy(
    module: nn.Module, params: Any, batch: Mapping[str, Any], *, max_tokens: int, eos_id: int, start_id: int = 0
) -> dict[str, jax.Array]:
    """The most probable token at each step: `generate`'s texts without the axis N, and their `logprob`, [B]."""
    out = generate(module, params, batch, Strategy(max_tokens=max_tokens), eos_id=eos_id, start_id=start_id)
    return {name: out[name][:, 0] for name in ("tokens", "lengths", "logprobs")} | {"logprob": out["score"][:, 0]}


def _first_largest(logits_RV: jax.Array) -> jax.Array:
    """argmax, of which XLA's CPU backend makes a loop over single numbers: a 20th of a token's time. NaN: token 0."""
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


def _history(module, strategy: Strategy, batch, start_id: int) -> History:
    """Of the B rows of a batch before anything is written, with room for what the decoder will read."""
    tokens_BL, segment_ids_BL, _ = (batch[name] for name in PROMPT[module.config.architecture])
    if module.config.architecture == "text_to_text":
        tokens_BL = jnp.full_like(tokens_BL[:, :1], start_id)
        segment_ids_BL = jnp.ones_like(tokens_BL)
    node_B, lengths_B = jnp.full(len(tokens_BL), constraint.ROOT, jnp.int32), jnp.sum(segment_ids_BL > 0, axis=1)
    if strategy.repetition_penalty == 1 and not strategy.no_repeat_ngram_size:
        return History(node_B, jnp.zeros((len(tokens_BL), 0), jnp.int32), lengths_B)
    nothing = module.config.vocab_size
    tokens_BL = jnp.where(segment_ids_BL > 0, tokens_BL, nothing)
    return History(node_B, jnp.pad(tokens_BL, ((0, 0), (0, strategy.max_tokens)), constant_values=nothing), lengths_B)


def prefill(module, params, batch, *, new_slots: int, start_id: int = 0) -> Decoding:
    """Reads the prompts at once, with room in the cache for so many more tokens."""
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


def step(module, params, token_R: jax.Array, decoding: Decoding) -> Decoding:
    """Reads one chosen token per row."""
    _, positions_R, cache, visible_BKM = decoding
    if visible_BKM is not None:
        beams, slots = visible_BKM.shape[1:]
        visible_BKM |= jnp.arange(slots) == cache["index"] + jnp.arange(beams)[:, None]  # its own
    BK = cache["segment_ids"].shape[0], -1
    read = {"params": params}, token_R.reshape(BK), positions_R.reshape(BK), cache, visible_BKM
    logits_BKV, cache = module.apply(*read, method="step")
    return Decoding(logits_BKV.reshape(len(token_R), -1), positions_R + 1, cache, visible_BKM)


def repeat(decoding: Decoding, times: int) -> Decoding:
    """Every row `times` times, side by side, each with a cache of its own."""
    if times == 1:
        return decoding
    logits_RV, positions_R, cache, _ = decoding
    return Decoding(
        jnp.repeat(logits_RV, times, axis=0), jnp.repeat(positions_R, times, axis=0), repeat_rows(cache, times)
    )


def branch(decoding: Decoding, beams: int) -> Decoding:
    """Every row as so many beams, side by side, in one cache: behind the prompt each of them has a slot at each step,
    and looks at the prompt's and at those of its ancestors. So no step copies the cache."""
    logits_RV, positions_R, cache, _ = decoding
    visible_BKM = jnp.repeat(cache["segment_ids"][:, None] > 0, beams, axis=1)
    return Decoding(jnp.repeat(logits_RV, beams, axis=0), jnp.repeat(positions_R, beams, axis=0), cache, visible_BKM)


def reorder(state: Decoding | History, rows_R: jax.Array) -> Any:
    """The rows `rows_R` of beams or of their histories; a beam comes from one of its own example's, all of which are
    as long."""
    if isinstance(state, History):
        return History(*(array[rows_R] for array in state))
    visible_BKM = state.visible_BKM
    visible_RM = visible_BKM.reshape(len(rows_R), -1)[rows_R]
    return state._replace(logits_RV=state.logits_RV[rows_R], visible_BKM=visible_RM.reshape(visible_BKM.shape))


def token_logprob(logits_RV: jax.Array, token_R: jax.Array) -> jax.Array:
    """The natural log-probability of one token per row, [R]."""
    chosen_R = jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)[:, 0]
    return chosen_R - jax.nn.logsumexp(logits_RV, axis=-1)
