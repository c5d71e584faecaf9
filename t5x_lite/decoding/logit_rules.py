"""What is done to logits before a token is chosen from them: pure functions, logits [R, V] in, logits out."""

import jax
import jax.numpy as jnp
from jax import lax


def penalise_repetition(logits_RV: jax.Array, tokens_RT: jax.Array, penalty: float) -> jax.Array:
    """Logits of tokens that were there before are divided by `penalty`, negative ones multiplied (Keskar et al. 2019,
    CTRL, §4.1, as everybody implements it). tokens_RT: those there were, V where there is none."""
    seen_RV = _marked(logits_RV, tokens_RT)
    penalised_RV = jnp.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
    return jnp.where(seen_RV, penalised_RV, logits_RV)


def forbid_repetition(logits_RV: jax.Array, tokens_RT: jax.Array, lengths_R: jax.Array, size: int) -> jax.Array:
    """−inf for a token that would make the last `size` tokens of a row such as it had before in this order (Paulus et
    al. 2018, §2.5). tokens_RT: what the row has, `lengths_R` of them, V behind."""
    starts = max(tokens_RT.shape[1] - size + 1, 0)  # of all runs of so many tokens
    rows_R1 = jnp.arange(len(tokens_RT))[:, None]
    latest_RN = tokens_RT[rows_R1, lengths_R[:, None] + jnp.arange(1 - size, 0)]
    alike_RS = jnp.ones((len(tokens_RT), starts), bool)
    for place in range(size - 1):
        alike_RS &= tokens_RT[:, place : place + starts] == latest_RN[:, place : place + 1]
    next_RS = tokens_RT[:, size - 1 :]  # V of a run that the row's end cuts, so that it forbids nothing
    return jnp.where(_marked(logits_RV, jnp.where(alike_RS, next_RS, logits_RV.shape[1])), -jnp.inf, logits_RV)


def _marked(logits_RV: jax.Array, tokens_RT: jax.Array) -> jax.Array:
    """bool [R, V]: the tokens of each row; V marks none."""
    rows_R1 = jnp.arange(len(tokens_RT))[:, None]
    return jnp.zeros(logits_RV.shape, bool).at[rows_R1, tokens_RT].set(True, mode="drop")


def forbid_ends(logits_RV: jax.Array, ends: tuple[int, ...], before_R: jax.Array) -> jax.Array:
    """No end of a text can be chosen where `before_R` is true: it is not long enough yet."""
    ends_V = jnp.isin(jnp.arange(logits_RV.shape[1]), jnp.array(ends))
    return jnp.where(before_R[:, None] & ends_V, -jnp.inf, logits_RV)


def force(logits_RV: jax.Array, token: int, here_R: jax.Array, logit_R: jax.Array) -> jax.Array:
    """Where `here_R` is true no other token can be chosen; that one has the logit `logit_R`."""
    only_RV = jnp.where(jnp.arange(logits_RV.shape[1]) == token, logit_R[:, None], -jnp.inf)
    return jnp.where(jnp.reshape(here_R, (-1, 1)), only_RV, logits_RV)


def keep_top_k(logits_RV: jax.Array, k: int) -> jax.Array:
    """−inf but for the `k` largest of each row, and their equals (Fan et al. 2018, §5.4)."""
    k = min(k, logits_RV.shape[1])
    return jnp.where(logits_RV < lax.top_k(logits_RV, k)[0][:, -1:], -jnp.inf, logits_RV)


def keep_top_p(logits_RV: jax.Array, p: float) -> jax.Array:
    """−inf but for the fewest tokens of each row that have a probability of at least `p` together (Holtzman et al.
    2020, nucleus sampling, §3.1)."""
    sorted_RV = -jnp.sort(-logits_RV, axis=1)
    probabilities_RV = jax.nn.softmax(sorted_RV, axis=1)
    before_RV = jnp.cumsum(probabilities_RV, axis=1) - probabilities_RV
    least_R1 = jnp.min(jnp.where(before_RV < p, sorted_RV, jnp.inf), axis=1, keepdims=True)
    return jnp.where(logits_RV < least_R1, -jnp.inf, logits_RV)
