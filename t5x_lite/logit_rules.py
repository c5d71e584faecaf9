"""What is done to logits before a token is chosen from them: pure functions, logits [R, V] in, logits out."""

import jax
import jax.numpy as jnp
from jax import lax


def penalise_repetition(logits_RV: jax.Array, seen_RV: jax.Array, penalty: float) -> jax.Array:
    """Logits of tokens that were there before are divided by `penalty`, negative ones multiplied (Keskar et al. 2019,
    CTRL, §4.1, as everybody implements it)."""
    penalised_RV = jnp.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
    return jnp.where(seen_RV, penalised_RV, logits_RV)


def forbid_end(logits_RV: jax.Array, eos_id: int, before: jax.Array) -> jax.Array:
    """The end of sequence cannot be chosen where `before` is true: the text is not long enough yet."""
    return jnp.where(before & (jnp.arange(logits_RV.shape[1]) == eos_id), -jnp.inf, logits_RV)


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
