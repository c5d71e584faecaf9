"""Rules that decide which token may come next. They read the history of a text and change a step's logits, [R, V].

A rule is a pure function that returns logits; forbidden tokens have the logit −inf.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5x_lite.decoding import constraint
from t5x_lite.decoding.constraint import PrefixTree
from t5x_lite.decoding.strategy import Strategy


class History(NamedTuple):
    """Holds the facts about each row's text so far that the rules read."""

    node_R: jax.Array  # int32, the row's node in the constraint's tree
    tokens_RT: jax.Array  # int32, the tokens that the decoder has read, then V; [R, 0] if no rule needs tokens
    lengths_R: jax.Array  # int32, the number of tokens read


def begin(strategy: Strategy, tokens_BL: jax.Array, segment_ids_BL: jax.Array, vocab_size: int) -> History:
    """Returns the history of B prompts, with room for strategy.max_tokens more tokens.

    tokens_BL, segment_ids_BL: the decoder's prompts; 0 in segment_ids_BL is padding, to the right of the tokens.
    """
    node_B, lengths_B = jnp.full(len(tokens_BL), constraint.ROOT, jnp.int32), jnp.sum(segment_ids_BL > 0, axis=1)
    if strategy.repetition_penalty == 1 and not strategy.no_repeat_ngram_size:
        return History(node_B, jnp.zeros((len(tokens_BL), 0), jnp.int32), lengths_B)
    tokens_BL = jnp.where(segment_ids_BL > 0, tokens_BL, vocab_size)
    room = ((0, 0), (0, strategy.max_tokens))
    return History(node_B, jnp.pad(tokens_BL, room, constant_values=vocab_size), lengths_B)


def append(choices: PrefixTree | None, history: History, token_R: jax.Array) -> History:
    """Returns the history with one more token in each row."""
    node_R, tokens_RT, lengths_R = history
    if choices is not None:
        node_R = constraint.advance(choices, node_R, token_R)
    if tokens_RT.shape[1]:
        tokens_RT = tokens_RT.at[jnp.arange(len(token_R)), lengths_R].set(token_R)
    return History(node_R, tokens_RT, lengths_R + 1)


def apply(
    strategy: Strategy,
    choices: PrefixTree | None,
    ends: tuple[int, ...],
    least_R: jax.Array,
    most_R: jax.Array,
    count: jax.Array,
    logits_RV: jax.Array,
    history: History,
) -> tuple[jax.Array, jax.Array]:
    """Returns (logits_RV with −inf for forbidden tokens, normaliser_R).

    A logit minus its row's normaliser is the log-probability among all tokens, including the forbidden ones.

    least_R, most_R: int32, min_tokens and max_tokens of each row.  count: the number of tokens generated so far.
    """
    penalised = strategy.repetition_penalty != 1
    normalised = penalised and strategy.beams > 1  # beams compare penalised log-probabilities, as in transformers
    if normalised:
        logits_RV = jax.nn.log_softmax(logits_RV)
    if penalised:
        logits_RV = penalise_repetition(logits_RV, history.tokens_RT, strategy.repetition_penalty)
    normaliser_R = jnp.zeros(len(logits_RV)) if normalised else jax.nn.logsumexp(logits_RV, axis=1)
    if choices is not None:
        return constraint.forbid(choices, history.node_R, logits_RV), normaliser_R
    if strategy.no_repeat_ngram_size:
        logits_RV = forbid_repetition(logits_RV, history.tokens_RT, history.lengths_R, strategy.no_repeat_ngram_size)
    logits_RV = forbid_ends(logits_RV, ends, count < least_R)
    for token, place_R in ((strategy.first_token, 0), (strategy.last_token, most_R - 1)):
        if token is not None:
            logits_RV = force(logits_RV, token, count == place_R, normaliser_R)
    return logits_RV, normaliser_R


def penalise_repetition(logits_RV: jax.Array, tokens_RT: jax.Array, penalty: float) -> jax.Array:
    """Lowers the logits of tokens that already occur in their row.

    Positive logits are divided by `penalty`, and negative logits are multiplied by `penalty` (Keskar et al. 2019, CTRL,
    §4.1, as commonly implemented).

    tokens_RT: int32, the tokens of each row; V marks an empty slot.
    """
    seen_RV = _marked(logits_RV, tokens_RT)
    penalised_RV = jnp.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
    return jnp.where(seen_RV, penalised_RV, logits_RV)


def forbid_repetition(logits_RV: jax.Array, tokens_RT: jax.Array, lengths_R: jax.Array, size: int) -> jax.Array:
    """Forbids each token that would make an n-gram occur twice in its row (Paulus et al. 2018, §2.5).

    size: n, the number of tokens in an n-gram.
    tokens_RT: int32, the `lengths_R` tokens of each row, then V in the empty slots.
    """
    starts = max(tokens_RT.shape[1] - size + 1, 0)  # the number of n-grams
    rows_R1 = jnp.arange(len(tokens_RT))[:, None]
    latest_RN = tokens_RT[rows_R1, lengths_R[:, None] + jnp.arange(1 - size, 0)[None, :]]
    matches_RS = jnp.ones((len(tokens_RT), starts), bool)
    for place in range(size - 1):
        matches_RS &= tokens_RT[:, place : place + starts] == latest_RN[:, place : place + 1]
    next_RS = tokens_RT[:, size - 1 :]  # V after the row's last token; V forbids no token
    return jnp.where(_marked(logits_RV, jnp.where(matches_RS, next_RS, logits_RV.shape[1])), -jnp.inf, logits_RV)


def _marked(logits_RV: jax.Array, tokens_RT: jax.Array) -> jax.Array:
    """Returns bool [R, V]: True where a token occurs in a row of tokens_RT. In tokens_RT, V marks an empty slot."""
    rows_R1 = jnp.arange(len(tokens_RT))[:, None]
    return jnp.zeros(logits_RV.shape, bool).at[rows_R1, tokens_RT].set(True, mode="drop")


def forbid_ends(logits_RV: jax.Array, ends: tuple[int, ...], before_R: jax.Array) -> jax.Array:
    """Forbids the tokens that end a text in rows where `before_R` is True, because the text is too short to end."""
    ends_V = jnp.isin(jnp.arange(logits_RV.shape[1]), jnp.array(ends))
    return jnp.where(before_R[:, None] & ends_V[None, :], -jnp.inf, logits_RV)


def force(logits_RV: jax.Array, token: int, here_R: jax.Array, logit_R: jax.Array) -> jax.Array:
    """Forbids all tokens except `token` in rows where `here_R` is True, and sets the logit of `token` to `logit_R`.

    here_R: bool [R], or a scalar for all rows.
    """
    only_RV = jnp.where(jnp.arange(logits_RV.shape[1])[None, :] == token, logit_R[:, None], -jnp.inf)
    return jnp.where(jnp.reshape(here_R, (-1, 1)), only_RV, logits_RV)


def keep_top_k(logits_RV: jax.Array, k: int) -> jax.Array:
    """Forbids all but the `k` most probable tokens of each row. Tokens that tie with the k-th one stay allowed.

    Source: Fan et al. 2018, §5.4.
    """
    k = min(k, logits_RV.shape[1])
    return jnp.where(logits_RV < lax.top_k(logits_RV, k)[0][:, -1:], -jnp.inf, logits_RV)


def keep_top_p(logits_RV: jax.Array, p: float) -> jax.Array:
    """Keeps, in each row, the fewest tokens whose probabilities sum to at least `p`, and forbids the others.

    This is nucleus sampling (Holtzman et al. 2020, §3.1).
    """
    sorted_RV = -jnp.sort(-logits_RV, axis=1)
    probabilities_RV = jax.nn.softmax(sorted_RV, axis=1)
    before_RV = jnp.cumsum(probabilities_RV, axis=1) - probabilities_RV
    least_R1 = jnp.min(jnp.where(before_RV < p, sorted_RV, jnp.inf), axis=1, keepdims=True)
    return jnp.where(logits_RV < least_R1, -jnp.inf, logits_RV)
