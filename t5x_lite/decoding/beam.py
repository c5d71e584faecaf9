"""Beam search: the most probable texts, several prefixes of each followed at a time.

Of the (1 + ends) K best continuations of K beams the best K others than those that end are the new beams. Finished
texts are those among the first K that end, as in transformers (in T5X all of them may). When an example is done is said
by `EARLY_STOPPING`; it goes on as long as another one does, and then nothing changes. Letters beside the project's:
K beams, J continuations, T tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# When an example with K finished texts is done: "never" before no beam can become better than the worst of them (T5X's
# t5x/decoding.py: beam_search), False: if none would be better that ended now (transformers' default), True: at once.
EARLY_STOPPING = ("never", False, True)

Texts = dict[str, jax.Array]  # tokens [B, K, T], logprobs [B, K, T] and lengths [B, K] of beams or finished texts


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
    """The best `texts` of each example, as generate.generate returns them; its functions are handed in.

    decoding, history: of B·K rows, the K of an example side by side and alike.  read(token_R, decoding), rules(count,
    logits_RV, history) → logits, −inf where forbidden, and normaliser_R, which makes log-probabilities of them;
    written(history, token_R); reorder(state, rows_R).
    ends: the tokens that end a text; the first of them fills what is behind its own.
    penalty: (alpha, offset) of generate.Strategy. A text that is cut at its most_B tokens is finished there.
    """
    batch_rows, continuations = len(done_B), (1 + len(ends)) * beams
    exponent, offset = penalty

    def penalised(logprob: jax.Array, length: jax.Array) -> jax.Array:
        return logprob / ((offset + length) / (offset + 1)) ** exponent

    def start(count: int) -> Texts:
        return {
            "tokens": jnp.full((batch_rows, count, capacity), ends[0], jnp.int32),
            "logprobs": jnp.zeros((batch_rows, count, capacity), jnp.float32),
            "lengths": jnp.zeros((batch_rows, count), jnp.int32),
        }

    def pick(tree: Any, index_BK: jax.Array) -> Any:
        return jax.tree.map(
            lambda x: jnp.take_along_axis(x, index_BK.reshape(*index_BK.shape, *[1] * (x.ndim - 2)), 1), tree
        )

    def extend(count, decoding, history, live, live_scores_BK, done, done_scores_BK, closed_B):
        """One more token for every beam: (token_R, parents_R, …) with what was finished by it."""
        allowed_RV, normaliser_R = rules(count, decoding.logits_RV, history)
        # Of each beam first: one sort of a beam's own few instead of one over all K·V.
        best_RJ, token_RJ = lax.top_k(allowed_RV, min(continuations, allowed_RV.shape[1]))
        best_RJ -= normaliser_R[:, None]
        width = best_RJ.shape[1]
        total_BKJ = live_scores_BK[:, :, None] + best_RJ.reshape(batch_rows, beams, width)
        total_BJ, place_BJ = lax.top_k(total_BKJ.reshape(batch_rows, -1), min(continuations, beams * width))
        parent_BJ = place_BJ // width
        token_BJ = jnp.take_along_axis(token_RJ.reshape(batch_rows, -1), place_BJ, axis=1).astype(jnp.int32)

        rows_BJ = jnp.arange(batch_rows)[:, None] * beams + parent_BJ
        own_R = jax.nn.logsumexp(decoding.logits_RV, axis=1)  # the model's own, whatever the rules made of it
        logprob_BJ = decoding.logits_RV[rows_BJ, token_BJ] - own_R[rows_BJ]
        ends_BJ = jnp.isin(token_BJ, jnp.array(ends))
        after = pick(live, parent_BJ)
        after = {
            "tokens": lax.dynamic_update_slice_in_dim(after["tokens"], token_BJ[..., None], count, axis=2),
            "logprobs": lax.dynamic_update_slice_in_dim(after["logprobs"], logprob_BJ[..., None], count, axis=2),
            "lengths": after["lengths"] + ~ends_BJ,
        }
        # Finished: those that end, of the first K alone (the others are there so that K go on); at the last token all.
        last_B = count + 1 >= most_B
        finishes_BJ = (ends_BJ | last_B[:, None]) & (jnp.arange(token_BJ.shape[1]) < beams) & ~closed_B[:, None]
        new_scores_BJ = jnp.where(finishes_BJ, penalised(total_BJ, count + 1), -jnp.inf)
        done_scores_BK, index_BK = lax.top_k(jnp.concatenate([done_scores_BK, new_scores_BJ], axis=1), beams)
        both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), done, after)
        done = pick(both, index_BK)

        live_scores_BK, index_BK = lax.top_k(jnp.where(ends_BJ, -jnp.inf, total_BJ), beams)
        live = pick(after, index_BK)
        token_R, parent_R = pick((token_BJ, rows_BJ), index_BK)
        token_R, parent_R = token_R.reshape(-1), parent_R.reshape(-1)
        history = written(reorder(history, parent_R), token_R)
        closed_B |= last_B | ~improvable(count + 1, live_scores_BK, done_scores_BK)
        return token_R, parent_R, history, live, live_scores_BK, done, done_scores_BK, closed_B

    def improvable(count, live_scores_BK, done_scores_BK) -> jax.Array:
        """Whether an example goes on, [B]. A beam's logprob only falls; the kindest penalty is the longest text's."""
        worst_B = done_scores_BK[:, -1]  # −inf: there are fewer than K
        hoped_B = penalised(live_scores_BK[:, 0], most_B if early_stopping == "never" else count)
        return (hoped_B > worst_B) & ((early_stopping is not True) | (worst_B == -jnp.inf))

    def body(state):
        count, token_R, parent_R, decoding, *rest = state
        decoding = read(token_R, reorder(decoding, parent_R))
        token_R, parent_R, *rest = extend(count, decoding, *rest)
        return count + 1, token_R, parent_R, decoding, *rest

    first_BK = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), (batch_rows, beams))
    none_BK = jnp.full((batch_rows, beams), -jnp.inf)
    token_R, parent_R, *rest = extend(
        jnp.int32(0), decoding, history, start(beams), first_BK, start(beams), none_BK, done_B
    )
    state = (jnp.int32(1), token_R, parent_R, decoding, *rest)
    *_, done, scores_BK, _ = lax.while_loop(lambda state: ~jnp.all(state[-1]), body, state)
    empty = start(beams)
    done = jax.tree.map(lambda blank, x: jnp.where(done_B.reshape(-1, *[1] * (x.ndim - 1)), blank, x), empty, done)
    scores_BK = jnp.where(done_B[:, None], 0.0, scores_BK)
    return {name: array[:, :texts] for name, array in (done | {"score": scores_BK}).items()}
