"""A model continues as one of another architecture, and every parameter is reported."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import NO_DROPOUT, SIZES, forward, random_batch, random_params

from t5x_lite import adapted_params, cli
from t5x_lite.errors import CheckpointError
from t5x_lite.models import paths
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions import BiasTable
from t5x_lite.models.presets import preset
from t5x_lite.models.transformer import stack_layers, unstack_layers

LAYERS = {
    "encoder_only": {"num_encoder_layers": 2, "num_decoder_layers": 0},
    "decoder_only": {"num_encoder_layers": 0, "num_decoder_layers": 2},
    "text_to_text": {"num_encoder_layers": 2, "num_decoder_layers": 2},
}
PARTS = {
    "relative": preset("t5_1_1_small", **SIZES, num_encoder_layers=2, num_decoder_layers=2, tie_embeddings=True),
    "rotary": preset("t5_1_1_small", **SIZES, num_encoder_layers=2, num_decoder_layers=2, positions="rotary"),
    "two_tables": preset(
        "t5gemma_small",
        **SIZES,
        num_kv_heads=1,
        query_dim=5,
        local_window=3,
        num_encoder_layers=2,
        num_decoder_layers=2,
    ),
    "per_layer": preset("umt5_small", **SIZES, num_encoder_layers=2, num_decoder_layers=2, **NO_DROPOUT),
    "learned": preset("bart_base", **SIZES, num_encoder_layers=2, num_decoder_layers=2, max_positions=64, **NO_DROPOUT),
}


def model(architecture: str, parts: str = "relative", **changes) -> ModelConfig:
    heads = {"heads": ("mlm",)} if architecture == "encoder_only" else {}
    heads |= {} if architecture == "text_to_text" else {"share_embeddings": True}
    return dataclasses.replace(
        PARTS[parts], architecture=architecture, **LAYERS[architecture] | heads | changes
    ).validate()


def adapted(params, old: ModelConfig, new: ModelConfig):
    """Returns (the new model's parameters, {path: how}; paths without an origin keep fresh values)."""
    fresh, stored = paths.flatten(random_params(new, seed=9)), paths.flatten(params)
    origins = adapted_params.origins(old, new, fresh, stored)
    made = {path: origin.change(stored[origin.path]) for path, origin in origins.items()}
    assert all(made[path].shape == fresh[path].shape for path in made)
    return paths.unflatten(fresh | made), {path: origin.how for path, origin in origins.items()}


def assert_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


ALL = list(itertools.permutations(LAYERS, 2))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("old", "new"), ALL)
def test_scanned_and_unrolled_models_are_adapted_alike(old, new, parts):
    olds, news = (model(architecture, parts) for architecture in (old, new))
    params = random_params(olds)
    unrolled, hows = adapted(params, olds, news)
    scan = {"scan_layers": True}
    scanned, _ = adapted(stack_layers(params), *(dataclasses.replace(one, **scan) for one in (olds, news)))
    came = [path for path in hows if "layers" in path]
    flat, flat_scanned = paths.flatten(unrolled), paths.flatten(unstack_layers(scanned))
    assert came
    for path in hows:
        np.testing.assert_array_equal(flat[path], flat_scanned[path])


@pytest.mark.parametrize("parts", PARTS)
def test_there_and_back_gives_the_same_bits(parts):
    for first, second in (("encoder_only", "text_to_text"), ("decoder_only", "text_to_text")):
        old, new = model(first, parts), model(second, parts)
        params = random_params(old)
        there, _ = adapted(params, old, new)
        back, hows = adapted(there, new, old)
        stack = "encoder" if first == "encoder_only" else "decoder"
        assert_equal(back[stack], params[stack])
        assert_equal(back["token_embedding"], params["token_embedding"])
        assert not any(hows[path] for path in hows if "token_embedding" not in path)  # the same paths: loaded


@pytest.mark.parametrize("parts", PARTS)
def test_a_decoder_taken_from_an_encoder_decoder_computes_the_same_without_its_encoder(parts):
    """If cross-attention writes nothing, the decoder of an encoder-decoder is a language model."""
    old, new = model("text_to_text", parts), model("decoder_only", parts)
    params, batch = random_params(old), random_batch(old)
    silent = {
        path: jnp.zeros_like(array) if "cross_attention/out" in path or "cross_attention_norm" in path else array
        for path, array in paths.flatten(params).items()
    }
    if parts == "learned":  # after a post-norm, a silent branch is the norm alone, which no decoder has
        return
    expected = forward(old, paths.unflatten(silent), batch)["lm"]
    got = forward(new, adapted(params, old, new)[0], batch)["lm"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("parts", ["relative", "rotary", "per_layer", "learned"])
@pytest.mark.parametrize(("old", "new"), [("decoder_only", "encoder_only"), ("encoder_only", "decoder_only")])
def test_the_last_token_of_a_text_begins_as_it_ended(old, new, parts):
    """In a model of one layer, the last token attends to the same tokens before and after the change."""
    one = {f"num_{side}_layers": 1 for side in ("encoder", "decoder")}
    olds, news = (
        model(architecture, parts, **{name: one[name] for name in one if LAYERS[architecture][name]})
        for architecture in (old, new)
    )
    olds, news = (
        dataclasses.replace(each, heads=(), vocab_size=48) if each.architecture == "encoder_only" else each
        for each in (olds, news)
    )
    batch = random_batch(olds, segments=((9,), (4,)))
    for name in ("input_tokens", "segment_ids", "positions"):
        batch[f"encoder_{name}"] = batch[f"decoder_{name}"]
    params = random_params(olds)
    made, _ = adapted(params, olds, news)
    states = []
    for config, tree in ((olds, params), (news, made)):
        if config.architecture == "encoder_only":
            states.append(forward(config, tree, batch)["hidden"])
        else:  # with the identity as its table, a decoder's logits are its states
            eye = {"token_embedding": tree["token_embedding"], "decoder": tree["decoder"]}
            logits = forward(config, tree | eye, batch)["lm"]
            states.append((logits, tree))
    encoder_states = next(each for each in states if not isinstance(each, tuple))
    logits, tree = next(each for each in states if isinstance(each, tuple))
    config = olds if olds.architecture == "decoder_only" else news
    kernel = tree["token_embedding"]["embedding"].T if config.tie_embeddings else tree["logits"]["dense"]["kernel"]
    bias = tree["logits"]["bias"] if config.logits_bias else 0.0
    scale = config.d_model**-0.5 if config.logits_scale == "rsqrt_d_model" else 1.0
    for row, last in ((0, 8), (1, 3)):
        expected = scale * encoder_states[row, last] @ kernel + bias
        np.testing.assert_allclose(logits[row, last], expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_begins_as_the_decoder_s_self_attention():
    old, new = model("decoder_only"), model("text_to_text")
    params = random_params(old)
    made, hows = adapted(params, old, new)
    for layer in ("layers_0", "layers_1"):
        assert_equal(made["decoder"][layer]["cross_attention"], params["decoder"][layer]["self_attention"])
        assert_equal(made["decoder"][layer]["cross_attention_norm"], params["decoder"][layer]["self_attention_norm"])
        assert_equal(made["decoder"][layer]["mlp"], params["decoder"][layer]["mlp"])
        assert_equal(made["encoder"][layer]["mlp"], params["decoder"][layer]["mlp"])
    assert hows["decoder/layers_0/cross_attention/key/kernel"] == "cross-attention from the decoder's self-attention"
    assert hows["encoder/layers_0/mlp/wo/kernel"] == "encoder from decoder"
    assert hows["decoder/layers_0/mlp/wo/kernel"] == ""
    encoder_first = model("encoder_only")
    _, hows = adapted(random_params(encoder_first), encoder_first, new)
    assert not any(path.startswith("decoder/") for path in hows)  # the decoder starts fresh


def test_biases_of_both_sides_begin_as_those_of_the_past():
    old, new = model("decoder_only"), model("encoder_only")
    params = random_params(old)
    made, hows = adapted(params, old, new)
    table, made_table = (
        BiasTable(tree["relative_bias"]["embedding"], bidirectional, old.relative_max_distance)
        for tree, bidirectional in ((params["decoder"], False), (made["encoder"], True))
    )
    distances = np.arange(9)  # up to here, each distance has a bucket of its own on both sides
    for sign in (-1, 1):
        np.testing.assert_array_equal(made_table.at(sign * distances[1:]), table.at(-distances[1:]))
    np.testing.assert_array_equal(made_table.at(0), table.at(0))
    back, _ = adapted(made, new, old)
    again = BiasTable(back["decoder"]["relative_bias"]["embedding"], False, old.relative_max_distance)
    np.testing.assert_array_equal(again.at(-distances), table.at(-distances))
    assert hows["encoder/relative_bias/embedding"] == "encoder from decoder, relative biases by distance"


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(("depth", "taken"), [(1, [0]), (2, [0, 1]), (4, [0, 0, 1, 1]), (3, [0, 0, 1])])
def test_deeper_and_shallower_stacks_take_layers_in_order(depth, taken, scan):
    old, new = model("decoder_only"), model("encoder_only", num_encoder_layers=depth)
    params = random_params(old)
    if scan:
        old, new = (dataclasses.replace(each, scan_layers=True) for each in (old, new))
        made, hows = adapted(stack_layers(params), old, new)
        made = unstack_layers(made)
    else:
        made, hows = adapted(params, old, new)
    for layer, source in enumerate(taken):
        assert_equal(made["encoder"][f"layers_{layer}"], params["decoder"][f"layers_{source}"])
    assert any(f"{depth} layers from 2" in how for how in hows.values()) == (depth != 2)


def test_layers_that_would_compute_something_else_are_refused():
    old, new = model("decoder_only"), model("encoder_only", norm_position="post", activation="silu")
    with pytest.raises(
        CheckpointError, match=r"differ in norm_position, activation; set for example model\.norm_position=pre"
    ):
        adapted(random_params(old), old, new)


@pytest.mark.parametrize(
    ("name", "value"),
    [("local_window", 4), ("layer_pattern", "l"), ("rotary_local_base", 500.0), ("rotary_original_positions", 64)],
)
def test_other_windows_and_wavelengths_are_refused(name, value):
    old, new = model("decoder_only", "rotary"), model("encoder_only", "rotary", **{name: value})
    with pytest.raises(CheckpointError, match=rf"differ in {name}; set for example model\.{name}="):
        adapted(random_params(old), old, new)


def test_merged_attention_continues_a_decoder_but_no_encoder_continues_its_windows():
    old = model("decoder_only", "rotary", local_window=4)
    new = dataclasses.replace(old, architecture="text_to_text", body="merged_attention", num_encoder_layers=2)
    params = random_params(old)
    made, _ = adapted(params, old, new.validate())
    assert_equal(made["encoder"], params["decoder"])
    assert_equal(made["decoder"], params["decoder"])
    alone = dataclasses.replace(new, architecture="encoder_only", body="transformer", num_decoder_layers=0)
    with pytest.raises(CheckpointError, match=r"body=merged_attention has model.local_window=4 tokens on both sides"):
        adapted(random_params(new), new, dataclasses.replace(alone, heads=("mlm",)).validate())


@pytest.mark.parametrize("parts", [{"attention_bias": "all"}, {"mlp_bias": True}, {"lora_rank": 2}, {"adapter_dim": 4}])
@pytest.mark.parametrize(("old", "new"), ALL)
def test_layers_without_room_for_trained_parameters_are_refused(old, new, parts):
    plain, rich = model(new, "rotary"), model(old, "rotary", **parts)
    with pytest.raises(CheckpointError, match=r"have no place for .* of the checkpoint's layers, for example"):
        adapted(random_params(rich), rich, plain)
    plain, rich = model(old, "rotary"), model(new, "rotary", **parts)  # new parameters begin as if they were not there
    assert adapted(random_params(plain), plain, rich)[1]


# ------------------------------------------------------------------------------------------------------- a run

TINY = "tests/experiments/tiny.py"
SIX = ["--config.eval.untrained=False", "--config.eval.every_steps=0", "--config.data.mixture=tiny_corpus"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapt") / "decoder"
    run = ["train", f"--config={TINY}:gpt2_tiny", f"--workdir={workdir}", "--config.train.total_steps=2"]
    assert cli.run([*run, "--config.schedule.warmup_steps=1", *SIX]) == 0
    return workdir


def test_a_run_continues_another_architecture_only_if_asked(decoder, tmp_path, capsys):
    same = ("norm", "norm_position", "activation", "positions")
    like_gpt2 = [f"--config.model.{name}={getattr(preset('gpt2_tiny'), name)}" for name in same]
    run = [
        *("train", f"--config={TINY}:bert_tiny", f"--workdir={tmp_path / 'encoder'}", *SIX, *like_gpt2),
        *(f"--config.init.checkpoint={decoder}", "--config.train.total_steps=1", "--config.schedule.warmup_steps=0"),
        *("--config.model.embedding_norm=False", "--config.optimizer.learning_rate=0"),
        "--config.model.num_encoder_layers=2",  # both from one layer of the decoder
    ]
    assert cli.run(run) != 0
    assert "has a decoder, but the run's has an encoder; set init.adapt=True" in capsys.readouterr().err
    assert cli.run([*run, "--config.init.adapt=True"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "adapted: encoder from decoder, 2 layers from 1" in out and "fresh: " in out
    each = json.loads((tmp_path / "encoder" / "initial_params.json").read_text())
    assert each["encoder/layers_0/mlp/wi/kernel"] == "adapted: encoder from decoder, 2 layers from 1"
    assert each["token_embedding/embedding"] == "loaded" and each["mlm/bias"] == "fresh"
