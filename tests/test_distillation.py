"""Distillation: its losses and gradients equal torch's, runs learn from a teacher, and unfit teachers are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import cli
from t5x_lite.training.distillation import Weights, hidden_loss, loss_sums
from t5x_lite.training.losses import loss_sums as own_losses
from t5x_lite.training.losses import loss_weights, total_loss

ROWS, SLOTS, LENGTH, SIZE, IDS = 3, 4, 6, 8, 11
WEIGHTS = Weights(temperature=2.0, logits=5.0, cosine=1.0, hidden=0.5, targets=2.0)  # DistilBERT's, and hidden states


def example():
    """Returns (outputs of a student with 2 layers, a batch with the outputs of a teacher with 4 layers)."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    batch = {
        "mlm_targets": rng.integers(0, IDS, (ROWS, SLOTS)).astype(np.int32),
        "mlm_weights": rng.integers(0, 2, (ROWS, SLOTS)).astype(np.float32),
        "encoder_segment_ids": (np.arange(LENGTH) < np.array([[6], [2], [4]])).astype(np.int32),
        "teacher/mlm": normal(ROWS, SLOTS, IDS),
        "teacher/hidden/encoder": normal(ROWS, 5, LENGTH, SIZE),
    }
    return {"mlm": normal(ROWS, SLOTS, IDS), "hidden/encoder": normal(ROWS, 3, LENGTH, SIZE)}, batch


def test_losses_and_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
    outputs, batch = example()

    def ours(outputs):
        sums = loss_sums(own_losses, WEIGHTS, outputs, batch)
        return total_loss(sums, {name: loss.weight for name, loss in sums.items()} | loss_weights(batch))

    value, gradients = jax.value_and_grad(ours)(jax.tree.map(jnp.asarray, outputs))

    logits, states = (torch.tensor(outputs[name], requires_grad=True) for name in ("mlm", "hidden/encoder"))
    teacher, of_teacher = (torch.tensor(batch[f"teacher/{name}"]) for name in ("mlm", "hidden/encoder"))
    is_masked = torch.tensor(batch["mlm_weights"]) > 0
    is_token = torch.tensor(batch["encoder_segment_ids"]) > 0
    soft = [torch.nn.functional.log_softmax(x[is_masked] / 2, -1) for x in (logits, teacher)]
    divergence = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)(*soft) * 2**2
    targets = torch.tensor(batch["mlm_targets"]).long()
    masked = torch.nn.functional.cross_entropy(logits[is_masked], targets[is_masked])
    last = [x[:, -1][is_token] for x in (states, of_teacher)]
    cosine = torch.nn.CosineEmbeddingLoss()(*last, torch.ones(len(last[0])))
    pairs = [(1, 2), (2, 4)]  # a layer of the student, and the teacher's
    hidden = sum(((states[:, i] - of_teacher[:, j])[is_token] ** 2).mean() for i, j in pairs) / len(pairs)
    expected = 5 * divergence + 2 * masked + cosine + 0.5 * hidden
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients["mlm"], logits.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients["hidden/encoder"], states.grad, rtol=1e-4, atol=1e-6)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    outputs, batch = example()
    batch |= {f"teacher/{name}": array for name, array in outputs.items()}
    sums = loss_sums(own_losses, WEIGHTS._replace(targets=0.0), outputs, batch)
    weights = {name: loss.weight for name, loss in sums.items()}
    assert float(total_loss(sums, weights)) == pytest.approx(0, abs=1e-5)
    assert float(np.abs(hidden_loss(outputs["hidden/encoder"], outputs["hidden/encoder"])).max()) == 0


CONFIG = """
from t5x_lite import config
from t5x_lite.data import registry, vocabularies
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function

COLORS, ANIMALS, PLACES = ("red", "blue"), ("cat", "dog", "fox"), ("mat", "log", "rock")
TEXTS = [f"the {color} {animal} sat on a {place}. it was {color}. a {animal} is an animal."
         for color in COLORS for animal in ANIMALS for place in PLACES]
SAID = [{"inputs": text, "targets": ("cat", "dog")["dog" in text]} for text in TEXTS]
BYTES = vocabularies.ByteVocabulary()
registry.add(Task("tiny_corpus", Function(lambda split: [{"text": text} for text in TEXTS]),
                  features={"text": Feature(BYTES)}))
registry.add(Task("tiny_label", Function(lambda split: SAID), labels=("cat", "dog"),
                  features={"inputs": Feature(BYTES), "targets": Feature(BYTES)}))


def get_config(preset="bert_tiny"):
    cfg = config.base()
    cfg.model.preset = preset
    cfg.model.d_model, cfg.model.d_ff, cfg.model.head_dim, cfg.model.num_heads = 16, 16, 8, 2
    cfg.data.mixture, cfg.data.length, cfg.data.batch_rows, cfg.eval.batch_rows = "tiny_corpus", 64, 8, 8
    cfg.data.targets_length = 64
    cfg.optimizer.name, cfg.optimizer.learning_rate, cfg.schedule.name = "adamw", 1e-3, "constant"
    cfg.train.total_steps, cfg.eval.every_steps, cfg.eval.untrained = 2, 0, False
    cfg.train.log_every_steps, cfg.checkpoint.every_steps = 1, 1
    cfg.mesh = "data=4,tensor=2"
    if preset.startswith("bert"):
        cfg.model.num_encoder_layers, cfg.model.scan_layers = 4, True  # one layer to compile
    return cfg
"""


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Returns (config file, workdir of a trained teacher)."""
    directory = tmp_path_factory.mktemp("distilled")
    file, teacher = directory / "distilled.py", directory / "teacher"
    file.write_text(CONFIG)
    assert cli.run(["train", f"--config={file}", f"--workdir={teacher}"]) == 0
    return file, teacher


def train(taught, workdir, *flags, preset="bert_tiny"):
    file, teacher = taught
    student = ["--config.model.num_encoder_layers=2"] if preset.startswith("bert") else []
    flags = (*student, f"--config.distill.teacher={teacher}", *flags)
    return cli.run(["train", f"--config={file}:{preset}", f"--workdir={workdir}", *flags])


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "train/loss" in row}


def test_a_student_begins_with_every_second_layer_and_resumes_bit_for_bit(taught, tmp_path, capsys):
    _, teacher = taught
    init = (f"--config.init.checkpoint={teacher}", "--config.init.adapt=true")
    assert train(taught, tmp_path / "whole", *init, "--config.train.total_steps=4") == 0
    assert "adapted: 2 layers from 4" in " ".join(capsys.readouterr().out.split())
    assert train(taught, tmp_path / "parts", *init) == 0
    assert train(taught, tmp_path / "parts", *init, "--config.train.total_steps=4") == 0
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    for name in ("train/loss", "train/grad_norm"):
        assert whole[4][name] == parts[4][name]
    names = {name.removeprefix("train/loss/") for name in whole[1] if name.startswith("train/loss/")}
    assert names == {"mlm", "nsp", "teacher_mlm", "teacher_nsp", "cosine_encoder"}


@pytest.mark.slow
def test_microbatches_learn_the_same(taught, tmp_path):
    for parts in (1, 2):
        flags = [f"--config.train.microbatches={parts}", "--config.train.total_steps=1", "--config.distill.hidden=1"]
        flags += ["--config.model.dropout_rate=0", "--config.model.attention_dropout_rate=0"]
        assert train(taught, tmp_path / str(parts), *flags) == 0
    one, two = (metrics(tmp_path / str(parts))[1] for parts in (1, 2))
    for name in ("train/loss", "train/grad_norm", "train/loss/cosine_encoder", "train/loss/hidden_encoder"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "preset", "message"),
    [
        (["--config.model.vocab_size=512"], "bert_tiny", "has another vocabulary than the run (384 ids, the run 512)"),
        (["--config.model.d_model=32"], "bert_tiny", "has d_model=16, the run 32"),
        (["--config.data.mixture=tiny_label"], "bert_tiny", "share no head"),
        ([], "gpt2_tiny", "has the architecture encoder_only"),
        (["--config.distill.teacher=nowhere"], "bert_tiny", "distill.teacher=nowhere: cannot read"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(flags, preset, message, taught, tmp_path, capsys):
    assert train(taught, tmp_path / "run", *flags, preset=preset) == 2
    assert message in " ".join(capsys.readouterr().err.split())
