"""Cross entropy of logits. chunked_cross_entropy.py fuses it with the product that makes them."""

import functools
import math

import jax
import jax.numpy as jnp

from t5x_lite.models.tracing import platform


def token_losses(
    logits: jax.Array, targets: jax.Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Returns each target's cross entropy under softmax(logits), and whether the target is predicted correctly.

    The prediction is correct if no logit exceeds the target's logit.

    Let p = softmax(logits), log Z = logsumexp(logits), and s be the label smoothing. Let q be the smoothed target: 1−s
    for the target's class and s/(V−1) for each other class. Then

            loss = −Σ_v q_v log p_v + Σ_v q_v log q_v + z_loss · (log Z)²

    The second sum makes a perfect prediction of q cost 0 (t5x/losses.py; the z-loss is Mesh TensorFlow's).

    The forward pass keeps e = exp(logits − maximum), in the logits' dtype and sharding. From e, the backward pass
    computes

            (1 + 2·z_loss·log Z)·e/Σe − q

    in one pass. This needs one [..., V] buffer less than automatic differentiation. If the logits are sharded over the
    vocabulary, they stay on their devices: only one number per target is summed over devices. (`correct` compares the
    target's logit with the maximum, because an argmax on a CPU would take longer than everything else.)

    Args:
      logits: [..., V].
      targets: int [...], in [0, V).
    Returns:
      loss [...] in nats and correct [...] (1 or 0), float32.
    """
    # The product that made the logits is flat too (Embedding.attend), so XLA does not copy them.
    losses, correct = _token_losses(  # pyright: ignore[reportGeneralTypeIssues]  (a custom_vjp)
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), z_loss, label_smoothing
    )
    return losses.reshape(targets.shape), correct.reshape(targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _token_losses(logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float):
    return _token_losses_forward(logits, targets, z_loss, label_smoothing)[0]


def _token_losses_forward(logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float):
    x = logits.astype(jnp.float32)
    V = x.shape[-1]
    on, off = _target_probabilities(V, label_smoothing)
    total = None
    if platform() == "gpu":
        from t5x_lite.models import fusion

        top, total = fusion.top_and_total(x)
    else:
        top = x.max(-1)
    # The backward pass needs e, so e is stored. Storing it also saves time: XLA's CPU backend takes three times as long
    # to sum an exp that it does not store.
    e = jnp.exp(x - top[..., None])
    total = e.sum(-1) if total is None else total
    log_z = jnp.log(total) + top
    picked = jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]  # NaN for a target ≥ V: stops the run
    loss = log_z - (on - off) * picked
    if off:
        loss += on * math.log(on) + (V - 1) * off * math.log(off) - off * x.sum(-1)
    if z_loss:
        loss += z_loss * jnp.square(log_z)
    return (loss, (picked == top).astype(jnp.float32)), (e.astype(logits.dtype), targets, total, log_z)


def _target_probabilities(V: int, label_smoothing: float) -> tuple[float, float]:
    """Returns (probability of the target, probability of each other class)."""
    return 1.0 - label_smoothing, label_smoothing / (V - 1) if V > 1 else 0.0


def _token_losses_backward(z_loss: float, label_smoothing: float, kept, cotangents):
    e, targets, total, log_z = kept
    d_loss = cotangents[0]
    on, off = _target_probabilities(e.shape[-1], label_smoothing)
    ids = jax.lax.broadcasted_iota(jnp.int32, e.shape, e.ndim - 1)
    q = jnp.where(ids == targets[..., None], on, off)
    d_logits = d_loss[..., None] * (((1 + 2 * z_loss * log_z) / total)[..., None] * e.astype(jnp.float32) - q)
    return d_logits.astype(e.dtype), None


_token_losses.defvjp(_token_losses_forward, _token_losses_backward)
