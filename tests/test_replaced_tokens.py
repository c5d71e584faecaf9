"""Replaced-token detection: what its draws, losses and gradients depend on, and the way from corpus to Hugging Face."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import FAMILIES, OTHERS, forward, random_batch, random_params
from training import assert_trees_close, start, training_batch

import t5x_lite
from t5x_lite import config, experiment, initial_params, runtime, train
from t5x_lite.data import registry
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation.during_training import EvaluationDuringTraining
from t5x_lite.hub import detector, interchange
from t5x_lite.hub.model import Model
from t5x_lite.models import build, paths
from t5x_lite.models.projection import Projection
from t5x_lite.models.replaced_tokens import replaced
from t5x_lite.models.transformer import stack_layers
from t5x_lite.training import losses, step

DESCENT = optax.sgd(0.1)
LOSS = functools.partial(losses.loss_sums, rtd_weight=50.0)
TEXT = "the cat sat on the mat and the dog did not sit on it. "


def with_generator(family: str = "bert", **changes):
    heads = {"heads": ("mlm", "rtd"), "num_heads": 4, "head_dim": 4}
    changes = heads | {"generator_layers": 1, "generator_width": 0.5} | changes
    return dataclasses.replace((FAMILIES | OTHERS)[family], **changes).validate()


MODELS = {
    "shared": with_generator(),
    "disentangled": with_generator("deberta", generator_embeddings="disentangled", generator_width=1.0),
    "separate": with_generator("modernbert", generator_embeddings="separate", generator_layers=2),
    "narrow": with_generator("electra", num_encoder_layers=1),  # its tables have the generator's width
    "wide": with_generator(generator_width=1.0, embedding_norm=False, positions="sinusoidal", embedding_dim=8),
}


def detecting(name: str, **changes):
    """Returns (the model's config, its parameters, a batch for it)."""
    model = dataclasses.replace(MODELS[name], **changes)
    params = random_params(model)
    return model, params, training_batch(model, 8)


def outputs_of(model, params, batch, key=None):
    module = build(model)
    rngs = None if key is None else {"sample": key, "dropout": key}
    apply = jax.jit(functools.partial(module.apply, method="projected", train=key is not None, rngs=rngs))
    return apply({"params": params}, batch)


@pytest.mark.parametrize("name", MODELS)
def test_scanned_equals_unrolled(name):
    model, params, batch = detecting(name)
    if model.norm_position == "pre_but_first":
        model = dataclasses.replace(model, norm_position="pre")
        params = random_params(model)
    scanned = dataclasses.replace(model, scan_layers=True)
    ours, theirs = forward(scanned, stack_layers(params), batch), forward(model, params, batch)
    assert set(ours) == {"mlm", "rtd"}
    assert_trees_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mesh", "changes"),
    [
        ("shared", (2, 2, 2), {"scan_layers": True}),
        ("disentangled", (1, 4, 2), {}),
        ("separate", (1, 2, 2, 2), {"num_encoder_layers": 1, "generator_layers": 1}),
        ("narrow", (4, 1, 2), {}),
    ],
)
def test_eight_devices_equal_one(name, mesh, changes):
    model = dataclasses.replace(MODELS[name], **changes)
    one = start(model, optimizer=DESCENT, drawn=True, loss_fn=LOSS)
    eight = start(model, mesh, optimizer=DESCENT, state=one.state, loss_fn=LOSS)
    one.advance(2)
    eight.advance(2)
    for ours, theirs in zip(eight.metrics, one.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert_trees_close(eight.state, one.state, atol=1e-4)


def test_microbatches_give_the_gradient_of_the_whole_batch():
    """With the same draws, although they are random."""
    model = MODELS["shared"]
    state = start(model, rows=16, optimizer=optax.sgd(1.0), drawn=True).state

    def after(microbatches, mesh=(1, 1, 1)):
        copy = jax.tree.map(jnp.copy, state)
        options = {"rows": 16, "optimizer": optax.sgd(1.0), "microbatches": microbatches, "loss_fn": LOSS}
        return start(model, mesh, state=copy, **options).advance(1)

    whole = after(1)
    for microbatches, mesh in ((2, (1, 1, 1)), (4, (2, 1, 2))):
        parts = after(microbatches, mesh)
        assert_trees_close(parts.state.params, whole.state.params, atol=2e-5)
        assert parts.metrics[0] == pytest.approx(whole.metrics[0], rel=1e-5, abs=1e-5)


def test_a_draw_is_a_function_of_seed_step_and_example():
    model, params, batch = detecting("shared")

    params["generator"]["mlm"]["norm"]["scale"] *= 0.2  # so that draws differ

    def logits(number, batch=batch, seed=2):
        key = step.step_key(seed, number, "sample")
        return np.asarray(outputs_of(model, params, batch, key)["rtd"].output)

    first = logits(5)
    np.testing.assert_array_equal(first, logits(5))
    assert np.abs(first - logits(6)).max() > 0.01 and np.abs(first - logits(5, seed=3)).max() > 0.01
    order = np.array([3, 1, 0, 2, 7, 6, 5, 4])
    moved = logits(5, {name: array[order] for name, array in batch.items()})
    np.testing.assert_allclose(moved, first[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["shared", "disentangled"])
@pytest.mark.parametrize("key", [None, jax.random.key(7)])
def test_packed_equals_unpacked(name, key):
    model, params, _ = detecting(name)
    packed = random_batch(model, segments=((5, 3),))
    packed |= {"mlm_positions": np.array([[1, 6, 3, 0]], np.int32), "mlm_weights": np.array([[1, 1, 1, 0]], np.float32)}
    packed["mlm_targets"] = np.array([[3, 4, 5, 0]], np.int32)
    alone = random_batch(model, segments=((5,), (3,)))
    for array in ("encoder_input_tokens", "token_type_ids"):
        alone[array][0, :5], alone[array][1, :3] = packed[array][0, :5], packed[array][0, 5:8]
    alone |= {"mlm_positions": np.array([[3, 1], [1, 0]], np.int32)}
    alone |= {"mlm_targets": np.array([[5, 3], [4, 0]], np.int32)}
    alone |= {"mlm_weights": np.array([[1, 1], [1, 0]], np.float32)}
    one, two = (outputs_of(model, params, batch, key) for batch in (packed, alone))
    for part in ("output", "targets"):
        a, b = (np.asarray(getattr(found["rtd"], part)) for found in (one, two))
        np.testing.assert_allclose(a[0, :5], b[0, :5], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a[0, 5:8], b[1, :3], rtol=1e-5, atol=1e-5)


def test_replaced_are_the_selected_tokens_that_are_not_drawn_as_they_were():
    batch = {
        "encoder_input_tokens": np.array([[9, 2, 9, 4, 0]], np.int32),
        "encoder_segment_ids": np.array([[1, 1, 1, 1, 0]], np.int32),
        "encoder_positions": np.array([[0, 1, 2, 3, 0]], np.int32),
        "mlm_positions": np.array([[0, 2, 3, 0]], np.int32),
        "mlm_targets": np.array([[5, 6, 4, 0]], np.int32),
        "mlm_weights": np.array([[1, 1, 1, 0]], np.float32),
    }
    sure = np.full((1, 4, 10), -100.0, np.float32)
    sure[0, np.arange(4), [5, 7, 4, 8]] = 0
    given, targets = replaced(batch, Projection(sure, np.eye(10, dtype=np.float32)), jax.random.key(0))
    assert given["encoder_input_tokens"].tolist() == [[5, 2, 7, 4, 0]]  # the last slot is unused
    assert targets.tolist() == [[0, 0, 1, 0, 0]]
    given, targets = replaced({k: v for k, v in batch.items() if "weights" not in k}, Projection(sure, np.eye(10)), 0)  # type: ignore[arg-type]
    assert given["encoder_input_tokens"].tolist() == [[9, 2, 9, 4, 0]] and not targets.any()


def test_draws_have_the_generators_probabilities():
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    rows = 20_000
    batch = {
        "encoder_input_tokens": np.arange(rows, dtype=np.int32)[:, None],
        "encoder_segment_ids": np.ones((rows, 1), np.int32),
        "encoder_positions": np.zeros((rows, 1), np.int32),
        "mlm_positions": np.zeros((rows, 1), np.int32),
        "mlm_targets": np.zeros((rows, 1), np.int32),
        "mlm_weights": np.ones((rows, 1), np.float32),
    }
    logits = np.log(probabilities).astype(np.float32)[None, None] + np.zeros((rows, 1, 1), np.float32)
    given, targets = replaced(batch, Projection(logits, np.eye(4, dtype=np.float32)), jax.random.key(3))
    shares = np.bincount(given["encoder_input_tokens"][:, 0], minlength=4) / rows
    np.testing.assert_allclose(shares, probabilities, atol=4 * np.sqrt(0.25 / rows))
    assert targets.mean() == pytest.approx(1 - shares[0])


@pytest.mark.parametrize("name", ["shared", "disentangled", "separate"])
def test_the_detector_trains_the_generator_only_through_a_shared_table(name):
    model, params, batch = detecting(name)

    def gradient(head):
        def loss(params):
            sums = losses.loss_sums(build(model).apply({"params": params}, batch, method="projected"), batch)
            return sums[head].sum

        return {path: float(jnp.abs(g).sum()) for path, g in paths.flatten(jax.jit(jax.grad(loss))(params)).items()}

    of_rtd, of_mlm = gradient("rtd"), gradient("mlm")
    generators = {path for path in of_rtd if path.startswith("generator/")}
    assert generators and all(of_rtd[path] == 0 for path in generators)
    assert of_rtd["token_embedding/embedding"] > 0 and of_rtd["rtd/output/kernel"] > 0
    trains_both = {path for path in of_mlm if of_mlm[path] > 0} - generators
    assert trains_both == ({"token_embedding/embedding", "type_embedding/embedding"} if name == "shared" else set())
    assert ("generator/token_embedding/embedding" in generators) == (name != "shared")


def test_a_difference_begins_as_zeros():
    model = MODELS["disentangled"]

    @jax.jit  # compiles only what draws the two tables
    def tables():
        params = nn.meta.unbox(build(model).init(jax.random.key(0), training_batch(model, 8)))["params"]
        return [part["token_embedding"]["embedding"] for part in (params, params["generator"])]

    difference, table = tables()
    assert not difference.any() and table.any()


def test_the_total_weighs_detection_but_no_report_does():
    model, params, batch = detecting("shared")
    sums = LOSS(outputs_of(model, params, batch), batch)
    weights = losses.loss_weights(batch)
    mlm, rtd = (float(sums[head].sum / sums[head].weight) for head in ("mlm", "rtd"))
    assert float(losses.total_loss(sums, weights)) == pytest.approx(mlm + 50 * rtd, rel=1e-6)
    metrics = start(model, optimizer=DESCENT, drawn=True, loss_fn=LOSS).advance(1).metrics[0]
    each = {head: metrics[f"{head}/loss_sum"] / metrics[f"{head}/weight"] for head in ("mlm", "rtd")}
    assert metrics["loss"] == pytest.approx(each["mlm"] + 50 * each["rtd"], rel=1e-5)
    with pytest.raises(DataError, match="rtd head needs a generator and rtd_weights"):
        losses.loss_sums({"rtd": jnp.zeros((8, 10))}, batch)


@pytest.mark.parametrize("kind", ["shared", "disentangled", "separate"])
def test_losses_are_those_of_transformers(kind, tmp_path):
    """Of the exported generator on the masked rows, and of the exported discriminator on the replaced ones."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = dataclasses.replace(MODELS["shared"], pooler_activation="gelu_erf", generator_embeddings=kind)
    params, batch = random_params(model), training_batch(model, 4)
    length = batch["encoder_segment_ids"].shape[1]
    batch["encoder_segment_ids"] = (np.arange(length) < [[10], [7], [3], [5]]).astype(np.int32)
    batch["encoder_positions"] = np.tile(np.arange(length, dtype=np.int32), (4, 1))
    batch["mlm_positions"] = np.array([[9, 2, 0, 1], [1, 3, 6, 0], [0, 2, 0, 0], [4, 0, 0, 0]], np.int32)
    batch["mlm_weights"] = np.array([[1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    batch["rtd_weights"] = batch["encoder_segment_ids"].astype(np.float32)
    found = outputs_of(model, params, batch)
    sums = losses.loss_sums(found, batch)
    tokens = replaced(batch, found["mlm"], jax.random.key(0))[0]["encoder_input_tokens"]
    vocabulary = ByteVocabulary()
    loaded = detector.split(Model(model, params, vocabulary))
    interchange.export_model(loaded, tmp_path / "out", family="electra")
    settings = [json.loads((tmp_path / "out" / part / "config.json").read_text()) for part in (".", "generator")]
    assert [each["architectures"] for each in settings] == [["ElectraForPreTraining"], ["ElectraForMaskedLM"]]
    inputs = {
        "attention_mask": torch.tensor(batch["encoder_segment_ids"]),
        "token_type_ids": torch.tensor(batch["token_type_ids"]),
    }
    labels = np.full((4, length), -100)
    for row, positions, targets, weights in zip(
        labels, *(batch[f"mlm_{part}"] for part in ("positions", "targets", "weights")), strict=True
    ):
        row[positions[weights > 0]] = targets[weights > 0]
    for part, kind, ids, targets, head in (
        (".", "ElectraForPreTraining", tokens, found["rtd"].targets, "rtd"),
        ("generator", "ElectraForMaskedLM", batch["encoder_input_tokens"], labels, "mlm"),
    ):
        theirs = getattr(transformers, kind).from_pretrained(tmp_path / "out" / part).eval()
        with torch.no_grad():
            out = theirs(input_ids=torch.tensor(np.array(ids)), labels=torch.tensor(np.array(targets)).long(), **inputs)
        assert float(sums[head].sum / sums[head].weight) == pytest.approx(float(out.loss), rel=1e-5), kind


def settings_for(mixture, **model):
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.vocabulary = "bert_tiny", mixture, "bytes"
    cfg.model.update({"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "num_encoder_layers": 1} | model)
    cfg.data.length, cfg.data.batch_rows, cfg.eval.batch_rows = 40, 8, 8
    cfg.train.total_steps, cfg.eval.untrained = 2, False
    return cfg


@pytest.fixture(scope="module", autouse=True)
def tasks():
    texts = [{"text": TEXT * n} for n in (1, 3, 2, 5)] * 4
    registry.add(Task("rtd_corpus", Function(lambda split: texts), features={"text": Feature()}))
    registry.add(Task("rtd_classes", Function(lambda split: [{"inputs": TEXT, "targets": "a"}] * 8), labels=("a", "b")))


def test_from_a_corpus_to_a_classifier(tmp_path):
    cfg = settings_for("rtd_corpus", generator_layers=1, generator_width=0.5, generator_embeddings="disentangled")
    cfg.data.objective, cfg.average.decay = "rtd", 0.5
    assert train.run(experiment.resolve(cfg), tmp_path / "run", EvaluationDuringTraining) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = {k: v for line in rows for k, v in json.loads(line).items()}
    assert abs(metrics["train/loss/rtd"] - np.log(2)) < 0.2 and 0 <= metrics["train/accuracy/rtd"] <= 1
    assert {"eval/rtd_corpus/rtd_accuracy", "eval/rtd_corpus/mlm_loss"} <= set(metrics)
    model = t5x_lite.load(tmp_path / "run")
    assert model.config.heads == ("rtd",) and not model.config.has_generator
    assert model.hidden(model.tokenize(["the cat"])).shape[-1] == 16
    mlm = model.generator
    assert mlm.config.heads == ("mlm",) and mlm(mlm.tokenize(["the cat"]))["mlm"].shape[-1] == mlm.config.vocab_size
    tuned = experiment.resolve(settings_for("rtd_classes"))
    training = runtime.make_training(tuned, runtime.start(tuned))
    for source, of_each_weights in (("run", "raw"), ("run", "average")):
        fresh = training.new_state().params
        params, _, of_each = initial_params.load(
            f"{tmp_path / source}+{of_each_weights}", fresh, tuned.model, tuned.classes, adapt=False
        )
        assert params.keys() == fresh.keys() and of_each.keys() == paths.flatten(fresh).keys()
        expected = t5x_lite.load(tmp_path / "run", f"latest+{of_each_weights}").params
        for part in ("token_embedding", "type_embedding", "encoder"):
            assert_trees_close(params[part], expected[part], rtol=0, atol=0)
    assert of_each["token_embedding/embedding"] == "adapted: the generator's table of tokens is added"


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ("rtd", {}, "data.objective=rtd with model.generator_layers=0: a generator replaces tokens; set"),
        ("", {"generator_layers": 1, "generator_width": 0.5}, "generator_layers=1 is for data.objective=rtd, not mlm"),
        ("rtd", {"generator_layers": 1}, r"generator_width=0.25 of model.num_heads=2 is 0.5, not .* use n/2"),
        ("rtd", {"generator_layers": 1, "generator_width": 0.0}, "model.generator_width=0.0"),
        ("rtd", {"generator_layers": 1, "generator_width": 0.5, "heads": ("mlm",)}, "needs mlm and rtd"),
        ("rtd", {"generator_layers": 1, "generator_embeddings": "tied"}, "unknown model.generator_embeddings 'tied'"),
        (
            "rtd",
            {"preset": "t5_1_1_small", "generator_layers": 1, "num_decoder_layers": 1},
            "for encoder_only models",
        ),
        ("rtd", {"preset": "elmo_tiny", "generator_layers": 1}, "this model has architecture=encoder_only, body=elmo"),
        ("rtd", {"preset": "gpt2_tiny", "num_encoder_layers": 0, "num_decoder_layers": 1}, "'rtd'"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(objective, model, message):
    cfg = settings_for("rtd_corpus", **model)
    cfg.data.objective = objective
    with pytest.raises(ConfigError, match=message):
        experiment.resolve(cfg)


def test_a_third_may_be_rounded():
    thirds = with_generator(d_model=12, d_ff=24, num_heads=3, head_dim=4, generator_width=0.3333, embedding_dim=0)
    from t5x_lite.models import generator

    assert [getattr(generator.of(thirds), n) for n in ("d_model", "d_ff", "num_heads", "head_dim")] == [4, 8, 1, 4]
