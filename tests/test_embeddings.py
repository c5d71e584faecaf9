"""Embeddings of texts: the contrastive loss, its exact gradient with microbatches, similarities and retrieval."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import FAMILIES, random_params
from training import assert_trees_close

import t5x_lite
from t5x_lite import cli
from t5x_lite.cluster.sharding import Layout, make_mesh
from t5x_lite.data import packing
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Match, Similarity
from t5x_lite.data.vocabularies import TokenizerVocabulary
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation.retrieval import ranks
from t5x_lite.heads import MATCH, NEGATIVE, QUERY
from t5x_lite.models import build
from t5x_lite.training import schedules, step
from t5x_lite.training.contrastive import contrastive_losses
from t5x_lite.training.losses import loss_sums

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
SETTINGS = {"heads": ("contrastive", "similarity"), "pooling": "mean", "learned_temperature": True}
BERT = dataclasses.replace(FAMILIES["bert"], **SETTINGS, dropout_rate=0.1, attention_dropout_rate=0.1)
ROWS = 16


def numbers(roles_BE, rng, size=6):
    return rng.normal(size=(*roles_BE.shape, size)).astype(np.float32)


@pytest.mark.parametrize("sizes", [(), (6, 2, 3)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_that_of_the_papers(sizes, symmetric):
    rng = np.random.default_rng(0)
    roles_BE = np.array([[QUERY, MATCH, NEGATIVE, QUERY, MATCH], [QUERY, MATCH, NEGATIVE, NEGATIVE, 0]])
    x_BED = numbers(roles_BE, rng)
    ours, right = contrastive_losses(jnp.asarray(x_BED), jnp.asarray(roles_BE), sizes, symmetric)
    x_ND, roles = x_BED.reshape(-1, 6).astype(np.float64), roles_BE.ravel()
    queries = np.flatnonzero(roles == QUERY)
    found = np.flatnonzero((roles == MATCH) | (roles == NEGATIVE))

    def product(i, j, size):
        a, b = x_ND[i, :size], x_ND[j, :size]
        whole = np.linalg.norm(x_ND[i]) * np.linalg.norm(x_ND[j])
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) * whole

    for i in queries:
        expected = 0.0
        for size in sizes or (6,):
            there = product(i, i + 1, size) - np.logaddexp.reduce([product(i, j, size) for j in found])
            back = product(i, i + 1, size) - np.logaddexp.reduce([product(j, i + 1, size) for j in queries])
            expected -= (there + back) / 2 if symmetric else there
        assert float(ours.ravel()[i]) == pytest.approx(expected, rel=1e-5)
        best = max(found, key=lambda j: product(i, j, 6))
        assert float(right.ravel()[i]) == (best == i + 1)


def pairs_batch():
    """Returns a batch in which rows hold two or one examples with two or three texts of one to three tokens."""
    rng, config = np.random.default_rng(3), BERT
    shape = (ROWS, 6)
    batch = {
        "contrastive_roles": np.zeros(shape, np.int32),
        "contrastive_weights": np.zeros(shape, np.float32),
        "similarity_targets": rng.uniform(size=shape).astype(np.float32),
        "similarity_weights": np.zeros(shape, np.float32),
        "pooled_positions": np.zeros(shape, np.int32),
        "encoder_input_tokens": rng.integers(0, config.vocab_size, (ROWS, 16)).astype(np.int32),
        "encoder_segment_ids": np.zeros((ROWS, 16), np.int32),
        "encoder_positions": np.zeros((ROWS, 16), np.int32),
        "token_type_ids": np.zeros((ROWS, 16), np.int32),
    }
    for row in range(ROWS):
        roles = [QUERY, MATCH, NEGATIVE, QUERY, MATCH][: rng.choice([2, 3, 5])]
        begin = 0
        for slot, role in enumerate(roles):
            length = rng.integers(1, 4)
            batch["contrastive_roles"][row, slot] = role
            batch["contrastive_weights"][row, slot] = role == QUERY
            batch["similarity_weights"][row, slot] = role == QUERY and row % 3 == 0
            batch["pooled_positions"][row, slot] = begin
            batch["encoder_segment_ids"][row, begin : begin + length] = slot + 1
            batch["encoder_positions"][row, begin : begin + length] = np.arange(length)
            begin += length
    return batch


def gradient(config, microbatches, devices, shift=None, **options):
    """Returns (what a step of gradient descent with rate 1 subtracts from the parameters, the step's metrics).

    shift: is added to the parameters before the step.
    """
    layout = Layout(make_mesh(jax.devices()[:devices], data=devices // 2 or 1, tensor=min(devices, 2)))
    module, batch, descent = build(config, layout), pairs_batch(), optax.sgd(1.0)
    shapes = step.abstract_state(module, descent, layout, batch)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = random_params(config)
    params["contrastive"]["log_scale"] = jnp.asarray(1.5)
    params = params if shift is None else jax.tree.map(jnp.add, params, shift)
    state = jax.device_put(zeros.replace(params=params), jax.tree.map(lambda leaf: leaf.sharding, shapes))
    before = jax.device_get(state.params)
    train_step = step.make_train_step(
        module, descent, schedules.make_schedule("constant", 1.0), layout, state, microbatches=microbatches,
        loss_fn=functools.partial(loss_sums, **options),
    )  # fmt: skip
    state, metrics = train_step(state, batch)
    return jax.tree.map(np.subtract, before, jax.device_get(state.params)), jax.device_get(metrics)


@pytest.mark.parametrize(
    ("microbatches", "devices"),
    [(4, 1), (4, 8), *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1, 8), (16, 1)))],
)
def test_microbatches_and_devices_give_the_gradient_of_the_whole_batch(microbatches, devices):
    config = dataclasses.replace(BERT, scan_layers=True, dropout_rate=0.0, attention_dropout_rate=0.0)
    options = {"embedding_sizes": (16, 8), "symmetric": True}
    expected, metrics_of_whole = gradient(config, 1, 1, **options)
    ours, metrics = gradient(config, microbatches, devices, **options)
    scale = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(expected)))
    assert_trees_close(ours, expected, atol=1e-6 * scale)
    assert metrics == {name: pytest.approx(value, rel=1e-5) for name, value in metrics_of_whole.items()}
    assert abs(expected["contrastive"]["log_scale"]) > 1e-3


def test_both_passes_drop_the_same_units():
    """Otherwise the gradient would not be the slope of the loss, which the first pass computes."""
    grads, metrics = gradient(BERT, 4, 1)
    norm = float(optax.tree.norm(grads))

    def loss_after(distance):
        return gradient(BERT, 4, 1, shift=jax.tree.map(lambda g: distance * g / norm, grads))[1]["loss"]

    assert (loss_after(0.01) - loss_after(-0.01)) / 0.02 == pytest.approx(norm, rel=1e-2)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_texts_of_a_row_do_not_see_each_other(pooling):
    config = dataclasses.replace(FAMILIES["bert"], heads=("contrastive", "similarity"), pooling=pooling)
    batch, params = pairs_batch(), random_params(config)
    together = build(config).apply({"params": params}, batch)["contrastive"]
    row = int((batch["contrastive_roles"] > 0).sum(axis=1).argmax())
    segments = batch["encoder_segment_ids"][row]
    for slot in range(int(segments.max())):
        own = segments == slot + 1
        alone = {name: np.zeros_like(array[:1]) for name, array in batch.items()}
        for name in ("encoder_input_tokens", "encoder_positions"):
            alone[name][0, : own.sum()] = batch[name][row][own]
        alone["encoder_segment_ids"][0, : own.sum()] = 1
        apart = build(config).apply({"params": params}, alone)["contrastive"]
        np.testing.assert_allclose(apart[0, 0], together[row, slot], rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(together, axis=-1)
    np.testing.assert_allclose(lengths, config.temperature**-0.5, rtol=1e-5)


def vocabulary(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "a", "cat", "dog", "tree"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return TokenizerVocabulary(tmp_path / "vocab.txt")


def test_an_example_becomes_texts_side_by_side(tmp_path):
    task = Task("t", None, target=Match(("targets", "wrong")), segments=("inputs",))  # type: ignore[arg-type]
    scored = dataclasses.replace(task, target=Similarity(1, 5, ("targets",)))
    examples = [{"inputs": "a cat", "targets": "cat", "wrong": "a dog", "number": 3}]
    converter = EncoderOnly(24, ("contrastive", "similarity"), choices=3)
    words = vocabulary(tmp_path)

    def filled(of):
        features, cut = converter.supervised(examples, of, words)
        assert not cut.any()
        return packing.fill(features, np.zeros(1, int), 1, converter.specs(), converter.sizes(pack=False))

    batch = filled(task)
    assert batch["encoder_input_tokens"][0, :12].tolist() == [2, 7, 8, 3, 2, 8, 3, 2, 7, 9, 3, 0]
    assert batch["encoder_segment_ids"][0, :12].tolist() == [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 0]
    assert batch["pooled_positions"].tolist() == [[0, 4, 7]]
    assert batch["contrastive_roles"].tolist() == [[QUERY, MATCH, NEGATIVE]]
    assert batch["contrastive_weights"].tolist() == [[1, 0, 0]] and not batch["similarity_weights"].any()
    batch = filled(scored)
    assert batch["similarity_targets"].tolist() == [[0.5, 0, 0]] and batch["similarity_weights"].tolist() == [[1, 0, 0]]
    assert not batch["contrastive_weights"].any()


def test_ranks_count_the_better_matches():
    rng = np.random.default_rng(0)
    queries, matches = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 50, 4)))
    matches[7] = matches[3]
    order = np.argsort(-(queries @ matches.T), axis=1)
    expected = [int(np.flatnonzero(np.isin(order[n], [3, 7] if n in (3, 7) else [n]))[0]) + 1 for n in range(50)]
    texts = np.where(np.arange(50) == 7, 3, np.arange(50))
    assert ranks(queries, matches, texts) == expected
    assert set(ranks(queries, matches[:1].repeat(50, axis=0), texts)) == {50, 49}  # a model that collapsed
    assert set(ranks(queries, matches * np.nan, texts)) == {50, 49}


TASKS = """
from t5x_lite import config
from t5x_lite.data import registry, vocabularies
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.targets import Match, Similarity
from t5x_lite.tasks.metrics import retrieval, spearman
from t5x_lite.data.targets import number_in

COLORS = ("red", "blue", "green", "grey")
ANIMALS = ("cat", "dog", "fox", "owl")
PAIRS = [{"inputs": f"{c} {a}", "targets": f"{a}, which is {c}", "score": "4"} for c in COLORS for a in ANIMALS]
BYTES = {name: Feature(vocabularies.ByteVocabulary()) for name in ("inputs", "targets")}
registry.add(Task("tiny_pairs", Function(lambda split: PAIRS), features=BYTES, target=Match(("targets",)),
                  metrics=(retrieval,)))
registry.add(Task("tiny_scores", Function(lambda split: [
    {"inputs": a["inputs"], "second": b["inputs"], "targets": str(float(len(set(a["inputs"].split())
     & set(b["inputs"].split()))))} for a in PAIRS[:6] for b in PAIRS[:6]]), features=BYTES,
    target=Similarity(0, 2, ("second",)), metrics=(spearman,), postprocess=number_in))


def get_config():
    cfg = config.base()
    cfg.model.preset, cfg.model.pooling, cfg.model.learned_temperature = "bert_tiny", "mean", True
    cfg.model.d_model = cfg.model.d_ff = 32
    cfg.model.head_dim, cfg.model.num_encoder_layers = 16, 1
    cfg.data.mixture, cfg.data.length, cfg.data.batch_rows = "tiny_pairs", 64, 8
    cfg.optimizer.name, cfg.optimizer.learning_rate, cfg.schedule.name = "adamw", 0.01, "constant"
    cfg.train.total_steps, cfg.eval.every_steps, cfg.eval.batch_rows = 30, 0, 8
    cfg.eval.tasks = ("tiny_pairs", "tiny_scores")
    return cfg
"""


def test_a_run_learns_to_embed_and_is_scored_by_retrieval_and_similarity(tmp_path, capsys):
    file, workdir = tmp_path / "pairs.py", tmp_path / "run"
    file.write_text(TASKS)
    assert cli.run(["train", f"--config={file}", f"--workdir={workdir}"]) == 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {name: value for row in rows if row["step"] == 30 for name, value in row.items()}
    first = {name: value for row in rows if row["step"] == 0 for name, value in row.items()}
    assert found["eval/tiny_pairs/recall@1"] > max(80, first["eval/tiny_pairs/recall@1"])
    assert found["eval/tiny_scores/spearman"] > 50
    model = t5x_lite.load(workdir)
    vectors = model.embed(["red cat", "cat, which is red", "owl, which is grey"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    predicted = (workdir / "predictions/step_30/tiny_pairs.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["prediction"] == "1" for line in predicted) / len(predicted) > 0.8


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ((), ["--config.loss.embedding_sizes=16,99"], "loss.embedding_sizes has '99'; it must be"),
        (
            (),
            ["--config.optimizer.name=sophia", "--config.train.microbatches=2", "--config.mesh=data=4,tensor=2"],
            "use 1 microbatch",
        ),
        ((': f"{a}, which is {c}"', ': " "'), [], "the field 'targets' of an example is empty"),
        (
            (),
            ["--config.data.mixture=tiny_scores", "--config.eval.tasks=tiny_scores", "--config.loss.symmetric=true"],
            "loss.symmetric needs an encoder",
        ),
        (('Match(("targets",))', "Match(())"), [], "fields is empty"),
        (('Match(("targets",))', 'Match("targets")'), [], "fields must be a tuple"),
        (("Similarity(0, 2,", "Similarity(0, 1,"), [], "the score 2.0 is not between low=0 and high=1"),
        (
            (),
            ["--config.model.preset=gpt2_tiny", "--config.model.num_encoder_layers=0"],
            "has the target Match, for encoders",
        ),
        ((), ["--config.model.temperature=0.01"], "must be above 0.01"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, flags, message, tmp_path, capsys):
    file = tmp_path / "pairs.py"
    text = TASKS
    if change:
        assert change[0] in text
        text = text.replace(*change)
    file.write_text(text)
    assert cli.run(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}", *flags]) in (2, 65)
    assert message in " ".join(capsys.readouterr().err.split())


def test_other_bodies_embed_nothing():
    with pytest.raises(ConfigError, match="contrastive"):
        dataclasses.replace(FAMILIES["gpt2"], heads=("contrastive",)).validate()
