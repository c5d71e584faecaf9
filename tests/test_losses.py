"""Checks the losses' values and gradients against plain formulas, and their compiled programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int
from promised_shapes import Array, assert_shapes

from t5x_lite.cluster import sharding
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.heads import WITH_LOSS
from t5x_lite.models.projection import Projection, Targeted
from t5x_lite.models.tracing import traced_for
from t5x_lite.training import chunked_cross_entropy, head_losses, losses

V = 11


def plain(logits, targets, z_loss, label_smoothing):
    """Computes the textbook cross entropy, for automatic differentiation."""
    log_p = jax.nn.log_softmax(logits)
    on = 1 - label_smoothing
    off = label_smoothing / (logits.shape[-1] - 1)
    q = jnp.where(jax.nn.one_hot(targets, logits.shape[-1]) > 0, on, off)
    entropy = -jnp.sum(jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1)), 0), -1)
    log_z = jax.nn.logsumexp(logits, -1)
    return -jnp.sum(q * log_p, -1) - entropy + z_loss * log_z**2


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_value_and_gradient_are_those_of_the_plain_formula(z_loss, label_smoothing):
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 5, V))
    targets = jax.random.randint(jax.random.key(1), (4, 5), 0, V)
    weights = jax.random.uniform(jax.random.key(2), (4, 5))

    def total(fn):
        return jax.value_and_grad(lambda x: jnp.sum(weights * fn(x)))(logits)

    ours = total(lambda x: losses.token_losses(x, targets, z_loss, label_smoothing)[0])
    theirs = total(lambda x: plain(x, targets, z_loss, label_smoothing))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    *(st.sampled_from([1, 6, 7]), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 99)),
    *(st.sampled_from(["cpu", "gpu"]), st.sampled_from([0.0, 0.1])),
)
def test_losses_fused_with_the_product_equal_those_of_logits(T, chunks, is_table, has_bias, seed, kind, smoothing):
    """Of each token, so that the sums per task are equal, too."""
    rng, D = np.random.default_rng(seed), 3
    x_BTD, targets_BT = rng.normal(size=(2, T, D)).astype(np.float32), rng.integers(0, V, (2, T))
    matrix = rng.normal(size=(V, D) if is_table else (D, V)).astype(np.float32)
    bias = rng.normal(size=V).astype(np.float32) if has_bias else None
    projection = Projection(x_BTD, matrix, bias, is_table)
    weights_BT = rng.uniform(size=(2, T)).astype(np.float32)

    def whole(projection):
        losses_BT, correct_BT = losses.token_losses(projection.logits(), targets_BT, 1e-2, smoothing)
        return (losses_BT * weights_BT).sum(), (losses_BT, correct_BT)

    def fused(projection):
        options = chunked_cross_entropy.Options(chunks, 1e-2, smoothing)
        loss, *each = chunked_cross_entropy.projected_losses(options, projection, targets_BT, weights_BT)
        return 3 * loss, tuple(each)

    with traced_for(kind):
        (loss, each), gradient = jax.value_and_grad(fused, has_aux=True)(projection)
    (expected, of_each), of_whole = jax.value_and_grad(whole, has_aux=True)(projection)
    np.testing.assert_allclose(loss, 3 * expected, rtol=1e-5)
    for ours, theirs in zip(each, of_each, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(of_whole), strict=True):
        np.testing.assert_allclose(ours, 3 * theirs, atol=1e-5)


def test_worked_example():
    """V = 2, logits (log 3, 0): p = (3/4, 1/4), log Z = log 4."""
    logits = jnp.log(jnp.array([[3.0, 1.0]]))
    loss, correct = losses.token_losses(logits, jnp.array([1]), 0.5, 0.0)
    np.testing.assert_allclose(loss, np.log(4) + 0.5 * np.log(4) ** 2, rtol=1e-6)
    assert correct.tolist() == [0.0]
    smoothed, correct = losses.token_losses(logits, jnp.array([0]), 0.0, 0.25)
    np.testing.assert_allclose(smoothed, 0.0, atol=1e-6)  # p is exactly the smoothed target
    assert correct.tolist() == [1.0]


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-1e4, 1e4), scale=st.floats(0, 50), smoothing=st.floats(0, 0.9), seed=st.integers(0, 9))
def test_finite_and_never_negative_and_shift_changes_nothing(shift, scale, smoothing, seed):
    logits = scale * np.random.default_rng(seed).normal(size=(3, V)).astype(np.float32)
    targets = np.arange(3)
    loss, _ = losses.token_losses(jnp.asarray(logits), targets, 0.0, smoothing)
    shifted, _ = losses.token_losses(jnp.asarray(logits + np.float32(shift)), targets, 0.0, smoothing)
    resolution = np.spacing(np.float32(abs(shift) + scale * 4)) * 4 * V
    assert np.isfinite(loss).all()
    assert (np.asarray(loss) >= -1e-4).all()  # float32 cancellation at large logits
    np.testing.assert_allclose(loss, shifted, atol=1e-4 + resolution)


def test_bfloat16_logits_are_summed_in_float32_and_get_a_bfloat16_gradient():
    logits = jax.random.normal(jax.random.key(0), (2, 4096)).astype(jnp.bfloat16)
    targets = jnp.array([1, 2])
    loss, _ = losses.token_losses(logits, targets)
    np.testing.assert_allclose(loss, plain(logits.astype(jnp.float32), targets, 0.0, 0.0), rtol=1e-6)
    assert loss.dtype == jnp.float32
    assert jax.grad(lambda x: losses.token_losses(x, targets)[0].sum())(logits).dtype == jnp.bfloat16


def test_a_target_past_the_vocabulary_is_not_finite():
    loss, _ = losses.token_losses(jnp.zeros((1, V)), jnp.array([V]))
    assert not np.isfinite(loss).any()


def test_logits_split_over_the_vocabulary_are_not_gathered():
    layout = sharding.Layout(sharding.make_mesh(data=2, fsdp=2, tensor=2))
    split = layout.sharding(("batch", "length", "vocab"))
    logits = jax.ShapeDtypeStruct((8, 16, 1024), jnp.float32, sharding=split)
    targets = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=layout.batch_sharding)
    grad = jax.grad(lambda x, t: losses.token_losses(x, t, 1e-4, 0.1)[0].sum())
    text = jax.jit(grad, out_shardings=split).lower(logits, targets).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_one_buffer_of_the_vocabulary_less_than_automatic_differentiation():
    logits = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    targets = jnp.zeros(64, jnp.int32)

    def kept(fn):
        """Returns the bytes that the backward pass keeps from the forward pass, without the logits."""
        _, pullback = jax.eval_shape(lambda x: jax.vjp(lambda x: fn(x).sum(), x), logits)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))

    ours = kept(lambda x: losses.token_losses(x, targets)[0])
    theirs = kept(lambda x: plain(x, targets, 0.0, 0.0))
    assert ours <= 64 * 4096 * 4 + 64 * 16
    assert ours < theirs


def test_heads_are_summed_with_their_own_weights():
    batch = {
        "mlm_targets": jnp.array([[1, 2], [3, 0]]),
        "mlm_weights": jnp.array([[1.0, 1.0], [0.5, 0.0]]),
        "nsp_targets": jnp.array([[0], [1]]),
        "nsp_weights": jnp.array([[1.0], [1.0]]),
        "regression_targets": jnp.array([[2.0], [4.0]]),
        "regression_weights": jnp.array([[1.0], [0.0]]),
    }
    logits = 2 * jax.random.normal(jax.random.key(0), (2, 2, V))
    outputs = {"mlm": logits, "nsp": jnp.array([[[2.0, 0.0]], [[3.0, 0.0]]]), "regression": jnp.array([[5.0], [9.0]])}
    sums = losses.loss_sums(outputs, batch)
    expected = (plain(logits, batch["mlm_targets"], 0, 0) * batch["mlm_weights"]).sum()
    np.testing.assert_allclose(sums["mlm"].sum, expected, rtol=1e-6)
    assert (float(sums["mlm"].weight), float(sums["nsp"].weight)) == (2.5, 2.0)
    assert float(sums["nsp"].correct) == 1.0
    assert float(sums["regression"].sum) == 9.0
    weights = losses.loss_weights(batch)
    assert {head: float(w) for head, w in weights.items()} == {"mlm": 2.5, "nsp": 2.0, "regression": 1.0}
    total = sums["mlm"].sum / 2.5 + sums["nsp"].sum / 2 + 9.0
    np.testing.assert_allclose(losses.total_loss(sums, weights), total, rtol=1e-6)


def test_a_head_with_nothing_to_learn_adds_nothing_and_no_nan():
    batch = {"nsp_targets": jnp.zeros((2, 1), jnp.int32), "nsp_weights": jnp.zeros((2, 1))}

    def loss(logits):
        return losses.total_loss(losses.loss_sums({"nsp": logits}, batch), losses.loss_weights(batch))

    value, grad = jax.value_and_grad(loss)(jnp.ones((2, 1, 2)))
    assert float(value) == 0.0
    assert not np.asarray(grad).any()


def test_outputs_and_batch_that_do_not_fit_are_named():
    with pytest.raises(DataError, match=r"nsp head needs nsp_targets and nsp_weights; the batch has mlm_targets"):
        losses.loss_sums({"nsp": jnp.zeros((1, 1, 2))}, {"mlm_targets": jnp.zeros((1, 1))})
    with pytest.raises(ConfigError, match="unknown output that has a loss 'hidden'"):
        losses.loss_sums({"hidden": jnp.zeros((1, 1, 2))}, {})


def test_the_loss_by_task_is_that_of_a_batch_with_the_other_tasks_left_out():
    rng = np.random.default_rng(0)
    task_ids = rng.integers(0, 3, (4, 6)).astype(np.int32)
    positions = rng.integers(0, 6, (4, 3)).astype(np.int32)
    batch = {"decoder_task_ids": task_ids, "encoder_task_ids": task_ids}
    batch |= {"mlm_positions": positions, "pooled_positions": positions}
    batch |= {"encoder_segment_ids": np.ones((4, 6), np.int32), "span_ends": positions}
    outputs, every_token = {}, ("lm", "token_classification", "rtd")
    sizes = {"span": (4, 6, 2), "rtd": (4, 6)} | dict.fromkeys(("regression", "similarity", "multiple_choice"), (4, 3))
    for head, (targets, weights) in ((name, (h.targets, h.weights)) for name, h in WITH_LOSS.items()):
        shape = (4, 6) if head in every_token else (4, 3)
        outputs[head] = rng.normal(size=sizes.get(head, (*shape, 5))).astype(np.float32)
        if head == "rtd":  # its model makes the targets
            outputs[head] = Targeted(outputs[head], rng.integers(0, 2, shape).astype(np.float32))
        batch[targets] = positions if head == "span" else rng.integers(0, 5, shape).astype(np.int32)
        if head == "multi_label":
            batch[targets] = rng.integers(0, 2, (4, 15)).astype(np.float32)
        batch[weights] = (rng.integers(0, 2, shape) * rng.random(shape)).astype(np.float32)
    whole = losses.loss_sums(outputs, batch, tasks=2)
    for task in (1, 2):
        alone = dict(batch)
        for head, weights in ((name, h.weights) for name, h in WITH_LOSS.items()):
            of_target = task_ids if head in every_token else np.take_along_axis(task_ids, positions, axis=1)
            alone[weights] = batch[weights] * (of_target == task)
        for head, expected in losses.loss_sums(outputs, alone).items():
            assert expected.task_sum is None
            np.testing.assert_allclose(whole[head].task_sum[task - 1], expected.sum, rtol=1e-6)
            np.testing.assert_allclose(whole[head].task_weight[task - 1], expected.weight, rtol=1e-6)


@given(sizes=st.tuples(*[st.integers(1, 5)] * 5))
def test_there_is_a_loss_and_a_verdict_for_each_target(sizes):
    B, S, E, V, C = sizes

    def of(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    logits = functools.partial(of, dtype=jnp.bfloat16)
    for function, arguments, axes in (
        (losses.token_losses, (logits(B, S, V), of(B, S)), "B S"),
        (head_losses.label_losses, (logits(B, E, C), of(B, E * C)), "B E"),
        (head_losses.span_losses, (logits(B, S, 2), of(B, E), of(B, E), of(B, S)), "B E"),
        (head_losses.choice_losses, (logits(B, E), of(B, E)), "B E"),
        (head_losses.squared_errors, (logits(B, E), of(B, E)), "B E"),
    ):
        loss, correct = jax.eval_shape(function, *arguments)
        expected = {"tokens": Int[Array, "B S"], "examples": Int[Array, "B E"], "loss": Float32[Array, axes]}
        assert_shapes(expected, {"tokens": of(B, S), "examples": of(B, E), "loss": loss})
        assert correct is None or (correct.shape, correct.dtype) == (loss.shape, loss.dtype)
