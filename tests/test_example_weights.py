"""Weights of tasks and classes, and the focal loss."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import cli
from t5x_lite.errors import ConfigError
from t5x_lite.training import losses
from t5x_lite.training.example_weights import parse, weighing

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
ROWS, SLOTS, CLASSES = 4, 3, 5


def example(rng):
    """Returns ({head: logits}, batch) of an encoder with a class head and masked tokens, on two tasks."""
    batch = {
        "class_targets": rng.integers(0, CLASSES, (ROWS, SLOTS)),
        "class_weights": rng.integers(0, 2, (ROWS, SLOTS)).astype(np.float32),
        "mlm_targets": rng.integers(0, 7, (ROWS, 2)),
        "mlm_weights": np.ones((ROWS, 2), np.float32),
        "encoder_task_ids": rng.integers(0, 3, (ROWS, 8)),
        "pooled_positions": rng.integers(0, 8, (ROWS, SLOTS)),
        "mlm_positions": rng.integers(0, 8, (ROWS, 2)),
    }
    logits = {"classification": rng.normal(size=(ROWS, SLOTS, CLASSES)), "mlm": rng.normal(size=(ROWS, 2, 7))}
    return {head: jnp.asarray(x, jnp.float32) for head, x in logits.items()}, batch


def mean_loss(outputs, batch, **options):
    sums = losses.loss_sums(outputs, batch, **options)
    return {head: float(loss.sum / loss.weight) for head, loss in sums.items()}


@pytest.mark.parametrize("seed", range(3))
def test_a_weight_of_2_is_the_example_twice(seed):
    outputs, batch = example(np.random.default_rng(seed))
    batch["class_weights"][:, 0] = 1
    weigh = weighing((1.0, 2.0), (1.0, 2.0, 1.0, 0.0, 1.0))
    ours = mean_loss(outputs, weigh({name: jnp.asarray(array) for name, array in batch.items()}))

    def copies(head, targets, positions, by_class):
        """Returns the mean over targets, each as often as its task and its class say."""
        log_p = np.asarray(jax.nn.log_softmax(outputs[head]))
        loss = -np.take_along_axis(log_p, batch[targets][..., None], -1)[..., 0]
        task = np.take_along_axis(batch["encoder_task_ids"], batch[positions], 1)
        times = np.where(task == 2, 2, 1) * (np.array([1, 2, 1, 0, 1])[batch[targets]] if by_class else 1)
        times = times * batch[f"{'class' if by_class else 'mlm'}_weights"]
        return np.repeat(loss.ravel(), times.astype(int).ravel()).mean()

    of_classes = copies("classification", "class_targets", "pooled_positions", True)
    np.testing.assert_allclose(ours["classification"], of_classes, rtol=1e-5)
    np.testing.assert_allclose(ours["mlm"], copies("mlm", "mlm_targets", "mlm_positions", False), rtol=1e-5)


def test_the_focal_loss_is_the_paper_s_and_has_a_gradient_everywhere():
    outputs, batch = example(np.random.default_rng(0))
    outputs["classification"] = outputs["classification"].at[0, 0, int(batch["class_targets"][0, 0])].set(200.0)
    batch["class_weights"][0, 0] = 1
    probabilities = np.asarray(jax.nn.softmax(outputs["classification"]))
    p = np.take_along_axis(probabilities, batch["class_targets"][..., None], -1)[..., 0]
    expected = ((1 - p) ** 0.5 * -np.log(p) * batch["class_weights"]).sum() / batch["class_weights"].sum()
    ours = mean_loss(outputs, batch, focal_gamma=0.5, z_loss=0.1, label_smoothing=0.1)
    np.testing.assert_allclose(ours["classification"], expected, rtol=1e-5)
    plain = mean_loss(outputs, batch, z_loss=0.1, label_smoothing=0.1)
    assert ours["mlm"] == plain["mlm"]  # not a head of classes

    def total(logits):
        return losses.loss_sums({"classification": logits}, batch, focal_gamma=0.5)["classification"].sum

    assert np.isfinite(jax.grad(total)(outputs["classification"])).all()


def test_weights_are_given_by_name():
    assert parse("k", (), ("a", "b")) == ()
    assert parse("k", ("b=2.5",), ("a", "b", "c")) == (1.0, 2.5, 1.0)
    assert parse("k", ("x=y=0",), ("x=y", "b")) == (0.0, 1.0)
    for texts, message in (
        (("a",), "entry 'a': write NAME=WEIGHT"),
        (("a=-1",), "a weight of 0 or more"),
        (("d=1",), "unknown k 'd'"),
        (("a=0", "b=0"), "nothing would train"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse("k", texts, ("a", "b"))


def test_a_run_takes_them_and_refuses_what_it_cannot_use(tmp_path, capsys):
    def train(name, *flags):
        workdir = tmp_path / str(len(list(tmp_path.iterdir())))
        command = ["train", f"--config={CONFIG}:{name}", f"--workdir={workdir}", "--config.train.total_steps=1"]
        code = cli.run([*command, "--config.eval.every_steps=0", "--config.eval.untrained=false", *flags])
        return code, capsys.readouterr().err

    weights = ["--config.loss.class_weights=cat=3", "--config.loss.task_weights=tiny_animal=2,tiny_corpus=0.5"]
    assert train("bert_tiny", *weights, "--config.loss.focal_gamma=2")[0] == 0
    for name, flag, message in (
        ("t5_tiny", "--config.loss.class_weights=cat=3", "loss.class_weights needs an encoder that predicts one class"),
        ("bert_tiny", "--config.loss.class_weights=cow=3", "unknown loss.class_weights 'cow'"),
        ("bert_tiny", "--config.loss.task_weights=tiny=3", "unknown loss.task_weights 'tiny'"),
    ):
        code, error = train(name, flag)
        assert code == 2 and message in error
