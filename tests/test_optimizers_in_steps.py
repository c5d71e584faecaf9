"""Laws of every optimizer in the training step of a tiny model: however the step runs, its numbers are the same."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import FAMILIES, random_params
from training import Run, assert_trees_close, start

from t5x_lite.checkpoints.checkpoint import Checkpoints
from t5x_lite.models import paths
from t5x_lite.models.transformer import stack_layers, unstack_layers
from t5x_lite.recipe_keys import OPTIMIZERS
from t5x_lite.training import parameter_groups, step, trainable

STEPS = 2
CONFIG = FAMILIES["t5_decoder"]  # without biases, of which some gradients are 0 in theory and noise in practice
MESH = (2, 2, 2)
# So that matrices are factored, bases and Hessians change within a few steps, and Prodigy steps far enough to compare.
HYPER_PARAMETERS = {
    "adafactor": {"min_dim_size_to_factor": 8},
    "ademamix": {"mix_warmup_steps": 3},
    "prodigy": {"initial_distance": 0.1},
    "sgd": {"momentum": 0.9},
    "soap": {"precondition_every_steps": 3},
    "sophia": {"hessian_every_steps": 3},
}


def each_optimizer(*quick: str):
    """Parametrizes a test by optimizer. Each takes seconds to compile, so the default run has only those named."""
    marked = [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in OPTIMIZERS]
    return pytest.mark.parametrize("name", marked)


def begun(name: str, mesh=(1, 1, 1), scanned: bool = False, is_trained=trainable.everything, **options) -> Run:
    """Returns a run of an optimizer from drawn parameters, before its first step."""
    config = dataclasses.replace(CONFIG, scan_layers=scanned)
    options |= {"hyper_parameters": HYPER_PARAMETERS.get(name, {}), "trainable": is_trained}
    run = start(config, mesh, optimizer=name, drawn=True, **options)
    params = random_params(CONFIG)
    params = stack_layers(params) if scanned else params
    places = jax.tree.map(lambda leaf: leaf.sharding, run.state.params)
    run.state = step.state_from(run.optimizer, run.state, jax.device_put(params, places), is_trained)
    return run


def flat(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in paths.flatten(jax.device_get(tree)).items()}


@each_optimizer("lamb")
def test_scanned_layers_on_eight_devices_make_the_steps_of_unrolled_ones_on_one(name):
    one, eight = begun(name).advance(STEPS), begun(name, MESH, scanned=True).advance(STEPS)
    for ours, theirs in zip(eight.metrics, one.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert_trees_close(unstack_layers(jax.device_get(eight.state.params)), one.state.params, rtol=1e-4, atol=2e-5)
    large = [leaf for leaf in jax.tree.leaves(eight.state.opt_state) if leaf.size >= 256]
    assert not any(leaf.sharding.is_fully_replicated for leaf in large)


@each_optimizer("soap")
def test_a_resumed_state_goes_on_bit_for_bit(name, tmp_path):
    run = begun(name, MESH, scanned=True).advance(STEPS)
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(run.state, {}, "{}")
    checkpoints.wait()
    like = step.abstract_state(run.module, run.optimizer, run.layout, run.batch)
    run.advance(STEPS)
    restored = dataclasses.replace(run, state=checkpoints.restore(STEPS, like)[0], metrics=[])
    checkpoints.close()
    restored.advance(STEPS)
    assert restored.metrics == run.metrics[STEPS:]
    assert jax.tree.structure(restored.state) == jax.tree.structure(run.state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored.state), jax.device_get(run.state))


@each_optimizer("adafactor")
def test_microbatches_make_the_update_of_the_whole_batch(name):
    whole = begun(name, scanned=True).advance(STEPS)
    for microbatches in (2, 4):
        parts = begun(name, scanned=True, microbatches=microbatches).advance(STEPS)
        for ours, theirs in zip(parts.metrics, whole.metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
        assert_trees_close(parts.state, whole.state, rtol=1e-4, atol=2e-5)


@each_optimizer("muon")
def test_frozen_groups_have_no_state_and_never_change(name):
    groups = parameter_groups.parse(("decoder/layers_0/.* frozen", "token_embedding/.* frozen"))
    is_trained = trainable.select("", random_params(CONFIG), False, groups)
    run = begun(name, is_trained=is_trained)
    before = flat(run.state.params)
    after = flat(run.advance(STEPS).state.params)
    trained = {*filter(is_trained, after)}
    assert {path for path in after if (before[path] != after[path]).any()} == trained
    leaves = jax.tree_util.tree_leaves_with_path(run.state.opt_state)
    names = [paths.text(key) for key, leaf in leaves if leaf.ndim]
    assert {path for path in after if any(path in name for name in names)} == trained
    assert all(any(path in name for path in trained) for name in names)
