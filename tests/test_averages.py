"""The moving average of weights: its numbers, its place in checkpoints, and how it is evaluated and loaded."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from training import start, with_dropout

from t5x_lite import cli, load
from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.models import paths
from t5x_lite.reports.loggers import Loggers
from t5x_lite.training.averages import Averaging, next_average

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
ANIMALS = ["--config.data.mixture=tiny_animal", "--config.train.total_steps=6", "--config.checkpoint.keep_last=9"]
ANIMALS += ["--config.eval.untrained=false"]
AVERAGE = ["--config.average.decay=0.6", "--config.average.every_steps=2"]


def part(workdir: Path, step: int, name: str) -> dict[str, np.ndarray]:
    tree = ocp.PyTreeCheckpointer().restore(workdir.absolute() / "checkpoints" / str(step) / name)
    return {path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """Returns the workdir of six steps with an average, saved every second step. Only read or copy it."""
    workdir = tmp_path_factory.mktemp("average") / "run"
    arguments = ["train", f"--config={CONFIG}:bert_tiny", f"--workdir={workdir}", *ANIMALS, *AVERAGE]
    assert cli.run([*arguments, "--config.checkpoint.keep_best=tiny_animal/average/accuracy"]) == 0
    return workdir


def test_the_average_is_the_formula_s():
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=3).astype(np.float32) for _ in range(30)]
    ours = expected = rng.normal(size=3).astype(np.float32)
    for step, new in enumerate(steps, 1):
        ours = next_average(Averaging(0.9, 3), {"x": ours}, {"x": jnp.asarray(new)}, jnp.int32(step))["x"]
        if step % 3 == 0:
            d = min(0.9**3, (1 + step // 3) / (10 + step // 3))
            expected = d * expected + (1 - d) * new
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_eight_devices_average_alike_and_shard_it():
    config = with_dropout("t5", scan_layers=True)
    options = {"averaging": Averaging(0.9), "optimizer": optax.sgd(0.1)}  # which compiles faster than AdamW
    one = start(config, drawn=True, **options)
    eight = start(config, (1, 2, 2, 2), state=one.state, **options)
    before = jax.device_get(one.state.average)
    one.advance(2), eight.advance(2)
    for ours, theirs in zip(jax.tree.leaves(eight.state.average), jax.tree.leaves(one.state.average), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight.state.average))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(one.state.average), strict=True))


def test_a_checkpoint_has_the_average_of_the_parameters(averaged):
    two, four = part(averaged, 2, "params"), part(averaged, 4, "params")
    before, after = part(averaged, 2, "average"), part(averaged, 4, "average")
    d = min(0.6**2, 3 / 12)
    for path in after:
        np.testing.assert_allclose(after[path], d * before[path] + (1 - d) * four[path], rtol=1e-5, atol=1e-7)
    assert two.keys() == before.keys()


def test_a_resumed_average_is_the_uninterrupted_one(averaged, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(averaged, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    arguments = ["train", f"--config={CONFIG}:bert_tiny", f"--workdir={workdir}", *ANIMALS, *AVERAGE]
    assert cli.run([*arguments, "--config.checkpoint.keep_best=tiny_animal/average/accuracy"]) == 0
    for name in ("params", "average"):
        ours, theirs = part(workdir, 6, name), part(averaged, 6, name)
        assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)


def test_it_is_evaluated_beside_the_weights_and_loaded_by_name(averaged, capsys):
    rows = [json.loads(line) for line in (averaged / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert {"eval/tiny_animal/accuracy", "eval/tiny_animal/average/accuracy"} <= names
    raw, mean = (load(averaged, f"6{weights}").params for weights in ("", "+average"))
    stored = part(averaged, 6, "average")
    for path, leaf in paths.flatten(mean).items():
        np.testing.assert_array_equal(leaf, stored[path], err_msg=path)
    assert any((leaf != paths.flatten(raw)[path]).any() for path, leaf in paths.flatten(mean).items())
    last = paths.flatten(load(averaged, "latest+mean:3").params)
    three = [part(averaged, step, "params") for step in (2, 4, 6)]
    for path, leaf in last.items():
        np.testing.assert_allclose(leaf, np.mean([params[path] for params in three], 0), rtol=1e-5, atol=1e-7)
    assert cli.run(["eval", f"--workdir={averaged}", "--checkpoints=6+mean:2", f"--config={CONFIG}"]) == 0
    assert "tiny_animal/mean:2" in capsys.readouterr().out
    assert load(averaged, "best+average")


def test_the_untrained_model_needs_no_average_and_its_predictions_are_logged_once(tmp_path, capsys, monkeypatch):
    tables = []
    monkeypatch.setattr(Loggers, "table", lambda self, step, name, rows: tables.append((step, name)))
    flags = [*ANIMALS[:2], *AVERAGE, "--config.checkpoint.keep_best=tiny_animal/average/accuracy"]
    flags += ["--config.train.total_steps=2", "--config.eval.every_steps=0"]
    assert cli.run(["train", f"--config={CONFIG}:bert_tiny", f"--workdir={tmp_path}", *flags]) == 0
    assert "is not a metric of this run" not in capsys.readouterr().out
    assert cli.run(["eval", f"--workdir={tmp_path}", "--checkpoints=2+average", f"--config={CONFIG}"]) == 0
    assert tables == [(0, "predictions/tiny_animal"), (2, "predictions/tiny_animal")]


def test_weights_that_are_not_there(averaged, tmp_path):
    with pytest.raises(CheckpointError, match=r"has only 3 checkpoints up to step 6; raise checkpoint.keep_last"):
        load(averaged, "latest+mean:4")
    with pytest.raises(ConfigError, match="must be raw, average or mean:K, such as latest"):
        load(averaged, "latest+ema")
    shutil.copytree(averaged, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6" / "average")
    (tmp_path / "run" / "checkpoints" / "6" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError):
        load(tmp_path / "run", "6+average")


@pytest.mark.parametrize("name", ["schedule_free", "prodigy"])
def test_an_optimizer_with_copies_of_the_first_parameters_copies_those_of_the_checkpoint(averaged, tmp_path, name):
    flags = [f"--config.optimizer.name={name}", "--config.schedule.name=constant", "--config.optimizer.learning_rate=0"]
    flags += [f"--config.init.checkpoint={averaged}", "--config.train.total_steps=1", "--config.seed=5"]
    assert cli.run(["train", f"--config={CONFIG}:bert_tiny", f"--workdir={tmp_path}", *ANIMALS, *flags]) == 0
    which = "average" if name == "schedule_free" else "optimizer"
    tree = ocp.PyTreeCheckpointer().restore(tmp_path.absolute() / "checkpoints" / "1" / which)
    stored = {paths.text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path, first in part(averaged, 6, "params").items():
        (copy,) = (leaf for key, leaf in stored.items() if key == path or key.endswith(f"params0/{path}"))
        np.testing.assert_allclose(copy, first, rtol=1e-6, atol=1e-7, err_msg=path)


def test_a_schedule_free_run_uses_its_average(tmp_path):
    flags = ["--config.optimizer.name=schedule_free", "--config.schedule.name=constant", "--config.optimizer.b1=0.9"]
    arguments = ["train", f"--config={CONFIG}:bert_tiny", f"--workdir={tmp_path}", *ANIMALS, *flags]
    assert cli.run(arguments) == 0
    stored, params = part(tmp_path, 6, "average"), part(tmp_path, 6, "params")
    assert any((stored[path] != params[path]).any() for path in params)
    assert all(np.isfinite(stored[path]).all() for path in params)
    for path, leaf in paths.flatten(load(tmp_path).params).items():
        np.testing.assert_array_equal(leaf, stored[path])
    for path, leaf in paths.flatten(load(tmp_path, "latest+raw").params).items():
        np.testing.assert_array_equal(leaf, params[path])


def test_a_run_starts_from_an_average(averaged, tmp_path, capsys):
    still = ["--config.optimizer.learning_rate=0", "--config.train.total_steps=1"]
    for weights, name in (("", "params"), ("+average", "average")):
        workdir = tmp_path / name
        source = f"--config.init.checkpoint={averaged}{weights}"
        assert cli.run(["train", f"--config={CONFIG}:bert_tiny", f"--workdir={workdir}", *ANIMALS, source, *still]) == 0
        ours, theirs = part(workdir, 1, "params"), part(averaged, 6, name)
        assert all((ours[path] == theirs[path]).all() for path in theirs)
