"""Trainable parts of a model, and LoRA: frozen parameters stay bit-equal and have no optimizer state."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_models import FAMILIES, forward, random_batch, random_params
from training import assert_trees_close, start

from t5x_lite.data import convert, packing
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.models import lora
from t5x_lite.models.transformer import stack_layers, unstack_layers
from t5x_lite.training import parameter_groups, trainable, unfreezing


def paths(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def scaled(tree, factor: float, pattern: str):
    """Returns the tree; arrays whose paths match a pattern are multiplied by a factor."""
    flat = flatten_dict(tree, sep="/")
    return unflatten_dict({p: factor * x if re.search(pattern, p) else x for p, x in flat.items()}, sep="/")


def test_split_and_merge_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    for pattern in ("a/.*", "e", ".*", "a/b|e"):
        matches = trainable.select(pattern, tree, has_added=False)
        one, other = trainable.split(tree, matches)
        assert trainable.merge(one, other) == tree
        assert set(paths(one)) == {path for path in paths(tree) if re.fullmatch(pattern, path)}
    with pytest.raises(ConfigError, match="matches no parameter"):
        trainable.select("b", tree, has_added=False)
    with pytest.raises(ConfigError, match="not a regular expression"):
        trainable.select("(", tree, has_added=False)


@pytest.mark.parametrize(
    ("family", "optimizer", "changes", "pattern"),
    [
        ("gpt2", "adamw", {}, "decoder/layers_1/.*"),
        (
            "t5",
            "adafactor",
            {"lora_rank": 2, "scan_layers": True, "lora_targets": ("query", "out", "wo")},
            trainable.ADDED,
        ),
        ("t5_1_1", "adamw", {"prompt_tokens": 3, "num_encoder_layers": 1, "num_decoder_layers": 1}, trainable.ADDED),
        ("gpt_j", "adamw", {"adapter_dim": 2, "num_decoder_layers": 1}, trainable.ADDED),
    ],
)
def test_what_does_not_learn_stays_bit_equal_and_has_no_state(family, optimizer, changes, pattern):
    config = dataclasses.replace(FAMILIES[family], **changes)
    matches = lambda path: re.fullmatch(pattern, path) is not None  # noqa: E731
    run = start(config, (2, 2, 2), optimizer=optimizer, trainable=matches)
    before = paths(run.state.params)
    run.advance(2)
    after = paths(run.state.params)
    learned = {path for path in after if not np.array_equal(before[path], after[path])}
    assert learned and learned <= {path for path in after if matches(path)}
    if changes:
        assert learned == {path for path in after if matches(path)}
    count = sum(after[path].size for path in after if matches(path))
    held = sum(leaf.size for leaf in jax.tree.leaves(run.state.opt_state) if leaf.ndim)
    assert 0 < held <= 2 * count


@pytest.mark.parametrize("scan_layers", [False, True])
def test_layers_begin_to_learn_from_the_last(scan_layers):
    config = dataclasses.replace(FAMILIES["t5_1_1"], scan_layers=scan_layers)
    optimizer = unfreezing.gradually(optax.adamw(0.01, weight_decay=0.1), every_steps=2)
    run = start(config, optimizer=optimizer, drawn=True)
    unrolled = unstack_layers if scan_layers else lambda params: params
    before = paths(unrolled(jax.device_get(run.state.params)))
    for steps, late in ((2, "/layers_0/"), (1, "none")):
        after = paths(unrolled(jax.device_get(run.advance(steps).state.params)))
        same = {path for path in after if np.array_equal(before[path], after[path])}
        assert same == {path for path in after if late in path}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_groups_begin_to_learn_when_they_say(scan_layers):
    config = dataclasses.replace(FAMILIES["t5_1_1"], scan_layers=scan_layers)
    groups = parameter_groups.parse(("encoder/layers_0/mlp/.* from=2", "token_embedding/.* from=1"))
    optimizer = unfreezing.gradually(optax.adamw(0.01, weight_decay=0.1), every_steps=0, groups=groups)
    run = start(config, optimizer=optimizer, drawn=True)
    unrolled = unstack_layers if scan_layers else lambda params: params
    before = paths(unrolled(jax.device_get(run.state.params)))
    for late in (("encoder/layers_0/mlp/", "token_embedding/"), ("encoder/layers_0/mlp/",), ()):
        after = paths(unrolled(jax.device_get(run.advance(1).state.params)))
        same = {path for path in after if np.array_equal(before[path], after[path])}
        assert same == {path for path in after if path.startswith(late)} if late else not same


def test_a_prompt_stands_before_every_text_of_a_row():
    """Packed and unpacked agree; the vectors replace tokens that the data puts there, whatever the tokens are."""
    vocabulary = ByteVocabulary()
    config = dataclasses.replace(FAMILIES["t5"], prompt_tokens=2, vocab_size=260)
    converter = convert.TextToText(20, 8, prompt_tokens=2)
    texts = [{"inputs": "abc", "targets": "x"}, {"inputs": "de", "targets": "yz"}]
    task = convert.text_task("text_to_text")
    examples, truncated = converter.supervised(texts, task, vocabulary)
    inputs = examples["encoder_input_tokens"]
    expected = [[0, 0, *ids.tolist(), 1] for ids in vocabulary.encode(["abc", "de"])]
    assert [inputs[0].tolist(), inputs[1].tolist()] == expected and not truncated.any()
    assert converter.supervised([{"inputs": "a" * 18, "targets": "x"}], task, vocabulary)[1].all()
    fill = lambda rows: packing.fill(examples, np.array(rows), 2, converter.specs(), converter.sizes(True))  # noqa: E731
    packed, alone = fill([0, 0]), fill([0, 1])
    params = random_params(config)
    a, b = forward(config, params, packed)["lm"], forward(config, params, alone)["lm"]
    np.testing.assert_allclose(a[0, :2], b[0, :2], atol=1e-5)
    np.testing.assert_allclose(a[0, 2:5], b[1, :3], atol=1e-5)
    tokens = np.where(packed["encoder_positions"] < 2, 9, packed["encoder_input_tokens"])
    assert np.array_equal(forward(config, params, packed | {"encoder_input_tokens": tokens})["lm"][0], a[0])
    moved = params | {"prompt": params["prompt"] + 1}
    assert not np.allclose(forward(config, moved, packed)["lm"][0, :5], a[0, :5], atol=1e-3)


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("family", ["albert", "t5_1_1"])
def test_adapters_begin_as_nothing(family):
    config = FAMILIES[family]
    adapted = dataclasses.replace(config, adapter_dim=3)
    params, batch = random_params(adapted), random_batch(config)
    without = trainable.split(params, lambda path: "_adapter/" not in path)[0]
    nothing = scaled(params, 0, "/up$")
    plain = forward(config, without, batch)
    assert_trees_close(forward(adapted, nothing, batch), plain, atol=1e-6)
    assert not all(np.allclose(x, plain[head], atol=1e-2) for head, x in forward(adapted, params, batch).items())


def test_lora_of_layers_that_the_model_lacks_is_an_error():
    for family, targets, message in (
        ("bert", ("wi_0",), "MLPs have wi and wo"),
        ("t5_1_1", ("query", "wi"), "have wi_0, wi_1 and wo"),
        ("bert", (), "name some layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(FAMILIES[family], lora_rank=2, lora_targets=targets).validate()


@pytest.mark.parametrize("scan_layers", [False, True])
def test_lora_begins_as_nothing_and_merges_into_the_kernels(scan_layers):
    config = FAMILIES["t5_1_1"]
    changes = {"lora_rank": 3, "lora_alpha": 6.0, "lora_targets": ("query", "value", "out", "wi_0")}
    with_lora = dataclasses.replace(config, scan_layers=scan_layers, **changes)
    params, batch = random_params(dataclasses.replace(with_lora, scan_layers=False)), random_batch(config)
    params = scaled(params, 0.2, "lora")
    params = stack_layers(params) if scan_layers else params
    got = forward(with_lora, params, batch)["lm"]
    plain, merged = lora.merged(with_lora, params)
    assert plain.lora_rank == 0 and not any("lora" in path for path in paths(merged))
    np.testing.assert_allclose(forward(plain, merged, batch)["lm"], got, rtol=1e-5, atol=1e-5)
    dropping = dataclasses.replace(with_lora, lora_dropout_rate=0.5)
    once, again, other = (
        forward(dropping, params, batch, jax.random.key(seed, impl="unsafe_rbg"))["lm"] for seed in (1, 1, 2)
    )
    assert np.array_equal(once, again) and not np.allclose(once, other, atol=1e-3)
    assert np.array_equal(forward(dropping, params, batch)["lm"], got)
    none = scaled(params, 0, "lora_b$")
    without = lora.merged(with_lora, none)[1]
    assert not np.allclose(forward(plain, without, batch)["lm"], got, atol=1e-2)
    assert_trees_close(forward(with_lora, none, batch), forward(plain, without, batch), atol=1e-6)
