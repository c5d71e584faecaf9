"""The training step: microbatches, randomness, donation, and what happens when numbers stop being finite."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_models import FAMILIES
from training import assert_trees_close, start, training_batch, with_dropout

from t5x_lite.cluster.sharding import Layout, make_mesh
from t5x_lite.errors import ConfigError
from t5x_lite.models import build
from t5x_lite.reports import metric_sums
from t5x_lite.training import losses, step, step_metrics
from t5x_lite.training.microbatches import split_rows

GPT2 = FAMILIES["gpt2"]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_microbatches_give_the_gradient_of_the_whole_batch(family):
    """The rows' weights range from 0 to full, so a mean of means would give a different gradient. With plain gradient
    descent at rate 1, the gradient is what a step subtracts from the parameters."""
    config = dataclasses.replace(FAMILIES[family], scan_layers=True)
    loss_fn = functools.partial(losses.loss_sums, z_loss=1e-3, label_smoothing=0.1)
    state = start(config, rows=16, optimizer=optax.sgd(1.0), drawn=True).state

    def gradient(microbatches, mesh=(1, 1, 1)):
        run = start(
            config, mesh, rows=16, optimizer=optax.sgd(1.0), state=state, microbatches=microbatches, loss_fn=loss_fn
        )
        run.advance(1)
        return jax.tree.map(lambda old, new: np.asarray(old) - new, state.params, run.state.params), run.metrics[0]

    expected, metrics_of_whole = gradient(1)
    scale = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    for microbatches, mesh in ((2, (1, 1, 1)), (4, (2, 1, 2))):
        grads, metrics_of_parts = gradient(microbatches, mesh)
        assert_trees_close(grads, expected, atol=1e-6 * scale)
        assert metrics_of_parts == pytest.approx(metrics_of_whole, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "mesh"),
    [
        ("gpt2", {}, (1, 1, 1)),
        ("gpt2", {"tie_embeddings": False}, (2, 2, 2)),
        ("bert", {"heads": ("mlm", "nsp")}, (2, 1, 2)),
    ],
)
def test_logits_made_in_chunks_change_no_number(family, changes, mesh):
    config = dataclasses.replace(FAMILIES[family], **changes, scan_layers=True)
    state = start(config, rows=16, optimizer=optax.sgd(1.0), drawn=True).state

    def run(chunk_tokens: int, microbatches: int = 1):
        loss_fn = functools.partial(losses.loss_sums, z_loss=1e-3, label_smoothing=0.1, chunk_tokens=chunk_tokens)
        options = {"state": state, "microbatches": microbatches, "loss_fn": loss_fn}
        return start(config, mesh, rows=16, optimizer=optax.sgd(1.0), **options).advance(1)

    expected = run(0)
    for chunk_tokens, microbatches in ((48, 1), (32, 2)):
        ours = run(chunk_tokens, microbatches)
        assert ours.metrics[0] == pytest.approx(expected.metrics[0], rel=1e-5)
        assert_trees_close(ours.state, expected.state, rtol=1e-5, atol=1e-5)


def test_no_logits_of_the_whole_batch_exist_if_they_are_made_in_chunks():
    config = FAMILIES["gpt2"]
    batch = training_batch(config, 16)
    tokens = batch["decoder_input_tokens"].size
    params = start(config, rows=16).state.params

    def program(chunk_tokens: int) -> str:
        loss_fn = functools.partial(losses.loss_sums, chunk_tokens=chunk_tokens)

        def loss(params):
            return loss_fn(build(config).apply({"params": params}, batch, method="projected"), batch)["lm"].sum

        return jax.jit(jax.grad(loss)).lower(params).compile().as_text()

    whole = re.compile(rf"f32\[(16,{tokens // 16}|{tokens}),{config.vocab_size}\]")
    assert whole.search(program(0))
    assert not whole.search(program(tokens // 4))


def test_microbatches_move_no_rows_between_devices():
    """Each device splits its own rows; only gradients and scalars move between devices."""
    layout = Layout(make_mesh(data=8))
    split = jax.jit(lambda b: split_rows(b, 2, layout), in_shardings=layout.batch_sharding)
    rows = jax.ShapeDtypeStruct((32, 6), jnp.int32)
    text = split.lower({"x": rows}).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    parts = split({"x": np.arange(32)})["x"]
    assert sorted(np.asarray(parts).ravel()) == list(range(32))
    assert parts.shape == (2, 16)
    with pytest.raises(ConfigError, match="32 rows is not divisible by microbatches=5; use a divisor of 32"):
        split_rows({"x": jnp.zeros(32)}, 5, layout)


def test_dropout_depends_on_the_step_and_nothing_that_ran_before():
    run = start(with_dropout("gpt2", num_decoder_layers=1), rows=4)
    fresh = jax.device_get(run.state)

    def loss_at(number):
        state = fresh.replace(step=np.int32(number))
        run.state = jax.device_put(state, jax.tree.map(lambda array: array.sharding, run.state))
        return run.advance(1).metrics[-1]["loss"]

    assert loss_at(0) == loss_at(0)
    assert loss_at(1) != loss_at(0)
    assert loss_at(1) == loss_at(1)


def test_keys_differ_by_seed_step_and_purpose():
    keys = [step.step_key(*which) for which in ((0, 3, "init"), (0, 3, "dropout"), (1, 3, "init"), (0, 4, "init"))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_a_step_that_is_not_finite_is_counted_and_changes_nothing():
    run = start(GPT2, rows=4).advance(1)
    before = jax.device_get(run.state)
    good = run.batch
    for number, poison in enumerate((np.nan, np.inf), 1):
        weights = np.array(good["decoder_loss_weights"])
        weights[0, 0] = poison
        run.batch = good | {"decoder_loss_weights": jnp.asarray(weights)}
        run.advance(1)
        assert run.metrics[-1]["is_finite"] == 0.0
        counted = before.replace(step=before.step + number)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.state), counted)
    run.batch = good
    run.advance(1)
    assert run.metrics[-1]["is_finite"] == 1.0
    assert int(run.state.step) == int(before.step) + 3


def test_the_state_is_donated_and_aliased_whole():
    run = start(GPT2, (2, 2, 2))
    compiled = run.train_step.lower(run.state, run.batch).compile()
    memory = compiled.memory_analysis()
    state_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(run.state))
    assert memory.alias_size_in_bytes == state_bytes
    old = run.state
    run.advance(1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    # No array covers the whole vocabulary: tables, logits and their gradients stay sharded.
    whole, half = (re.findall(rf"\[(?:\d+,)*{size}(?:,\d+)*\]", compiled.as_text()) for size in (48, 24))
    assert GPT2.vocab_size == 48 and half and not whole


def test_metrics_and_learning_rate_of_each_step():
    run = start(GPT2, rows=4).advance(2)
    assert [m["learning_rate"] for m in run.metrics] == pytest.approx([0.01, 0.0099])
    batch = training_batch(GPT2, 4)
    for values in run.metrics:
        assert values["lm/weight"] == batch["decoder_loss_weights"].sum()
        assert values["tokens"] == (batch["decoder_segment_ids"] > 0).sum()
        assert values["positions"] == batch["decoder_segment_ids"].size
        assert values["loss"] == pytest.approx(values["lm/loss_sum"] / values["lm/weight"], rel=1e-6)
        assert values["grad_norm"] > 0


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_norms_by_layer_add_up_and_do_not_depend_on_scanning(family):
    unrolled, scanned = (dataclasses.replace(FAMILIES[family], scan_layers=scans) for scans in (False, True))
    runs = [start(config, optimizer=optax.sgd(0.1), layer_norms=True).advance(1) for config in (unrolled, scanned)]
    of_each = [{k: v for k, v in run.metrics[0].items() if k.startswith("grad_norm/")} for run in runs]
    assert of_each[0] == pytest.approx(of_each[1], rel=1e-4)
    stack = "encoder"
    layers = {f"grad_norm/{stack}/layers_{i}" for i in range(FAMILIES[family].num_encoder_layers)}
    assert layers | {"grad_norm/token_embedding"} <= of_each[0].keys()
    total = runs[0].metrics[0]["grad_norm"]
    assert sum(v**2 for v in of_each[0].values()) == pytest.approx(total**2, rel=1e-5)
    summed = metric_sums.add(
        metric_sums.add(None, runs[0].metrics[0] | {"steps": 1}), runs[0].metrics[0] | {"steps": 1}
    )
    assert metric_sums.finalise(summed).items() >= of_each[0].items()


def test_training_lowers_the_loss_and_eval_agrees_with_it():
    run = start(GPT2, rows=4)
    evaluate = step.make_eval_step(run.module, run.layout, run.state.params)
    before = metric_sums.finalise(metric_sums.add(None, step_metrics.fetch(evaluate(run.state.params, run.batch))))
    run.advance(30)
    assert before["loss"] == pytest.approx(run.metrics[0]["loss"], rel=1e-6)
    assert run.metrics[-1]["loss"] < before["loss"] - 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_abstract_state_is_the_state_in_shape_dtype_and_place(optimizer):
    run = start(FAMILIES["t5"], (1, 4, 2), optimizer=optimizer)
    abstract = step.abstract_state(run.module, run.optimizer, run.layout, run.batch)
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding) or pytest.fail(f"{a} {b}"),
        abstract,
        run.state,
    )
    # The optimizer's arrays are sharded like their parameters, even factored ones.
    split = {leaf.sharding.spec for leaf in jax.tree.leaves(run.state.opt_state) if leaf.ndim}
    assert {axis for spec in split for axis in spec if axis} == {"fsdp", "tensor"}


class WithRouter(nn.Module):
    """A language model with its own loss, whose weight differs between microbatches."""

    config: Any
    constrain: Any

    @nn.compact
    def __call__(self, batch, train=False):
        outputs = build(dataclasses.replace(self.config, module=None), self.constrain)(batch, train)
        is_odd = batch["decoder_input_tokens"] % 2 * (batch["decoder_segment_ids"] > 0)
        balance = jnp.square(outputs["lm"]).mean(-1)
        return outputs | {losses.AUXILIARY: {"balance": ((balance * is_odd).sum(), is_odd.sum().astype(jnp.float32))}}


def test_a_models_own_losses_have_the_gradient_of_the_whole_batch():
    config = dataclasses.replace(GPT2, module=WithRouter)
    state = start(config, rows=16, optimizer=optax.sgd(1.0), drawn=True).state

    def after(microbatches):
        run = start(config, rows=16, optimizer=optax.sgd(1.0), state=state, microbatches=microbatches).advance(1)
        return jax.device_get(run.state.params), run.metrics[0]

    whole, metrics = after(1)
    assert metrics["loss"] == pytest.approx(
        metrics["lm/loss_sum"] / metrics["lm/weight"] + metrics["balance/loss_sum"] / metrics["balance/weight"]
    )
    for microbatches in (2, 4):
        parts, metrics_of_parts = after(microbatches)
        assert_trees_close(parts, whole, atol=1e-6)
        assert metrics_of_parts == pytest.approx(metrics, rel=1e-5)
    run = start(config, rows=16, optimizer=optax.sgd(1.0))
    evaluate = step.make_eval_step(build(config), run.layout, run.state.params)
    assert not [name for name in evaluate(run.state.params, run.batch) if "balance" in name]
