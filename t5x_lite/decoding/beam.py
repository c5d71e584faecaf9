"""Beam search finds the most probable texts of each example. A beam is an unfinished text.

Each step extends the K beams of an example by one token. It takes the (1 + E)·K best continuations of the beams, where
E is the number of end tokens. The K best continuations that do not end become the next beams. A continuation that ends
becomes a finished text if it is among the K best of all continuations, as in transformers. (T5X accepts every
continuation that ends.) `EARLY_STOPPING` says when an example is done. The loop runs until all examples are done; a
done example no longer changes.

Additional dimension letters: K beams, J continuations, T tokens, R = B·K rows. The K rows of an example are adjacent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Says when an example with K finished texts is done. "never": when no beam can become better than the worst finished
# text (T5X's t5x/decoding.py: beam_search). False: when no beam would be better than the worst finished text if the
# beam ended now (transformers' default). True: immediately.
EARLY_STOPPING = ("never", False, True)

Texts = dict[str, jax.Array]  # tokens [B, K, T], logprobs [B, K, T] and lengths [B, K] of beams or finished texts


class State(NamedTuple):
    """Holds the state of the search after `count` tokens."""

    count: jax.Array
    token_R: Any  # int32, the last token of each beam, which the model has not read yet
    parent_R: Any  # int32, the row of the beam to which token_R was appended
    decoding: Any
    history: Any
    live: Texts  # the beams
    live_scores_BK: jax.Array  # float32, sum of log-probabilities; −inf: no beam
    done: Texts  # the finished texts, best first
    done_scores_BK: jax.Array  # float32, penalised; −inf: no text
    closed_B: jax.Array  # bool, the example is done


def search(
    decoding: Any,
    history: Any,
    done_B: jax.Array,
    read: Callable[[jax.Array, Any], Any],
    rules: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]],
    written: Callable[[Any, jax.Array], Any],
    reorder: Callable[[Any, jax.Array], Any],
    *,
    beams: int,
    texts: int,
    capacity: int,
    most_B: jax.Array,
    ends: tuple[int, ...],
    penalty: tuple[float, float],
    early_stopping: bool | str,
) -> dict[str, jax.Array]:
    """Returns the `texts` best texts of each example, in the format of generate.generate.

    decoding, history: R rows; the K rows of an example are equal.  done_B: True for examples that get no text.
    read(token_R, decoding) → decoding.  written(history, token_R) → history.
    rules(count, logits_RV, history) → (logits_RV with −inf for forbidden tokens, normaliser_R). Logits minus
    normaliser_R are log-probabilities.
    reorder(decoding or history, rows_R) → the rows of its first argument in the order rows_R.
    capacity: T.  most_B: the number of tokens after which a text is finished without an end.  ends: the tokens that end
    a text; the first of them also fills the space after the end.  penalty: length_penalty, length_offset of `Strategy`.
    """
    batch_rows = len(done_B)

    def extend(state: State) -> State:
        """Returns the state with one more token in each beam, and with the texts that this token finished."""
        count, logits_RV = state.count, state.decoding.logits_RV
        allowed_RV, normaliser_R = rules(count, logits_RV, state.history)
        kept = (1 + len(ends)) * beams
        total_BJ, parent_BJ, token_BJ = _continuations(allowed_RV, normaliser_R, state.live_scores_BK, kept)
        rows_BJ = jnp.arange(batch_rows)[:, None] * beams + parent_BJ
        model_normaliser_R = jax.nn.logsumexp(logits_RV, axis=1)  # of the model's logits, before the rules
        logprob_BJ = logits_RV[rows_BJ, token_BJ] - model_normaliser_R[rows_BJ]
        ends_BJ = jnp.isin(token_BJ, jnp.array(ends))
        after = _append(_pick(state.live, parent_BJ), count, token_BJ, logprob_BJ, ends_BJ)

        # A continuation that ends becomes a finished text only if it is among the first K. The continuations after the
        # first K only ensure that K beams remain. The last allowed token finishes all of the first K.
        last_B = count + 1 >= most_B
        is_first_1J = jnp.arange(token_BJ.shape[1])[None, :] < beams
        finishes_BJ = (ends_BJ | last_B[:, None]) & is_first_1J & ~state.closed_B[:, None]
        new_scores_BJ = jnp.where(finishes_BJ, _penalised(total_BJ, count + 1, penalty), -jnp.inf)
        done_scores_BK, index_BK = lax.top_k(jnp.concatenate([state.done_scores_BK, new_scores_BJ], axis=1), beams)
        done = _pick(jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.done, after), index_BK)

        live_scores_BK, index_BK = lax.top_k(jnp.where(ends_BJ, -jnp.inf, total_BJ), beams)
        live = _pick(after, index_BK)
        token_R, parent_R = (array_BK.reshape(-1) for array_BK in _pick((token_BJ, rows_BJ), index_BK))
        history = written(reorder(state.history, parent_R), token_R)
        closed_B = state.closed_B | last_B | ~improvable(count + 1, live_scores_BK, done_scores_BK)
        fields = count + 1, token_R, parent_R, state.decoding, history
        return State(*fields, live, live_scores_BK, done, done_scores_BK, closed_B)

    def improvable(count: jax.Array, live_scores_BK: jax.Array, done_scores_BK: jax.Array) -> jax.Array:
        """Returns bool [B]: True if the search may still improve an example's K finished texts (see EARLY_STOPPING).

        With "never", the best beam's log-probability is scored as if the beam had the maximal length. No text that
        grows from a beam can score higher, because further tokens only lower the log-probability, and the penalty
        favours long texts. Otherwise, the best beam is scored with its present length.
        """
        worst_B = done_scores_BK[:, -1]  # −inf: fewer than K texts are finished
        bound_B = _penalised(live_scores_BK[:, 0], most_B if early_stopping == "never" else count, penalty)
        return (bound_B > worst_B) & ((early_stopping is not True) | (worst_B == -jnp.inf))

    def step(state: State) -> State:
        return extend(state._replace(decoding=read(state.token_R, reorder(state.decoding, state.parent_R))))

    blank = _blank(batch_rows, beams, capacity, ends[0])
    first_BK = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), (batch_rows, beams))
    none_BK = jnp.full((batch_rows, beams), -jnp.inf)
    begin = State(jnp.int32(0), None, None, decoding, history, blank, first_BK, blank, none_BK, done_B)
    end = lax.while_loop(lambda state: ~jnp.all(state.closed_B), step, extend(begin))
    done = jax.tree.map(lambda empty, x: jnp.where(_of_rank(done_B, x.ndim), empty, x), blank, end.done)
    done["score"] = jnp.where(done_B[:, None], 0.0, end.done_scores_BK)
    return {name: array[:, :texts] for name, array in done.items()}


def _continuations(
    allowed_RV: jax.Array, normaliser_R: jax.Array, live_scores_BK: jax.Array, kept: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the `kept` best continuations of each example, best first: (scores, beam indices, tokens), all [B, J]."""
    batch_rows, beams = live_scores_BK.shape
    # Take the best continuations of each beam first, so that the second sort is over K·J continuations instead of K·V.
    best_RJ, token_RJ = lax.top_k(allowed_RV, min(kept, allowed_RV.shape[1]))
    best_RJ -= normaliser_R[:, None]
    width = best_RJ.shape[1]
    total_BKJ = live_scores_BK[:, :, None] + best_RJ.reshape(batch_rows, beams, width)
    total_BJ, place_BJ = lax.top_k(total_BKJ.reshape(batch_rows, -1), min(kept, beams * width))
    token_BJ = jnp.take_along_axis(token_RJ.reshape(batch_rows, -1), place_BJ, axis=1).astype(jnp.int32)
    return total_BJ, place_BJ // width, token_BJ


def _append(texts: Texts, count: jax.Array, token_BJ: jax.Array, logprob_BJ: jax.Array, ends_BJ: jax.Array) -> Texts:
    """Returns the texts with one more token at index `count`. An end token does not count towards the length."""
    return {
        "tokens": lax.dynamic_update_slice_in_dim(texts["tokens"], token_BJ[..., None], count, axis=2),
        "logprobs": lax.dynamic_update_slice_in_dim(texts["logprobs"], logprob_BJ[..., None], count, axis=2),
        "lengths": texts["lengths"] + ~ends_BJ,
    }


def _penalised(logprob: jax.Array, length: jax.Array, penalty: tuple[float, float]) -> jax.Array:
    """Returns the score of texts of `length` tokens, by the equation in strategy.Strategy's docstring."""
    exponent, offset = penalty
    return logprob / ((offset + length) / (offset + 1)) ** exponent


def _blank(batch_rows: int, beams: int, capacity: int, end: int) -> Texts:
    """Returns texts of 0 tokens, filled with `end`."""
    return {
        "tokens": jnp.full((batch_rows, beams, capacity), end, jnp.int32),
        "logprobs": jnp.zeros((batch_rows, beams, capacity), jnp.float32),
        "lengths": jnp.zeros((batch_rows, beams), jnp.int32),
    }


def _pick(tree: Any, index_BK: jax.Array) -> Any:
    """Returns the elements `index_BK` along axis 1 of each array: [B, J, …] → [B, K, …]."""
    return jax.tree.map(lambda x: jnp.take_along_axis(x, _of_rank(index_BK, x.ndim), 1), tree)


def _of_rank(array: jax.Array, rank: int) -> jax.Array:
    """Returns the array with trailing axes of size 1, so that it broadcasts against arrays of `rank` axes."""
    return array.reshape(*array.shape, *[1] * (rank - array.ndim))
