"""Tests the whole loop with real processes, signals and files."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from waiting import wait_until

from t5x_lite import cli, runtime, train
from t5x_lite import config as configs
from t5x_lite.checkpoints.checkpoint import Checkpoints
from t5x_lite.data import registry
from t5x_lite.data.pipeline import TrainBatches
from t5x_lite.errors import CheckpointError
from t5x_lite.evaluation.during_training import EvaluationDuringTraining

TESTS = Path(__file__).parent
CONFIG = str(TESTS / "experiments" / "tiny.py")
DRIVER = TESTS / "run_recording_batches.py"
NO_DEPRECATIONS = ("-W", "error::DeprecationWarning", "-W", "error::PendingDeprecationWarning")
BERT = f"--config={CONFIG}:bert_tiny"
SIX = ["--config.data.mixture=tiny_corpus", "--config.train.total_steps=6", "--config.checkpoint.keep_last=9"]
SIX += ["--config.eval.untrained=false", "--config.eval.every_steps=0", "--config.eval.max_examples=2"]
FILES = ("loss_curve.png", "config.json", "metrics.jsonl", "report.html")


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": one_device, "BATCH_LOG": str(workdir) + ".batches"}
    return subprocess.Popen(
        [sys.executable, *NO_DEPRECATIONS, str(DRIVER), "train", BERT, f"--workdir={workdir}", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def params(workdir: Path, step: int) -> dict:
    return ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "params")


def leaves(tree: dict, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, dict):
        return {k: v for name, child in tree.items() for k, v in leaves(child, f"{path}/{name}").items()}
    return {path: np.asarray(tree)}


def train_losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert len(dict(losses)) == len(losses), "a step is logged twice"
    return dict(losses)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    """Returns the workdir of a six-step run on text, saved every second step. Only read or copy it."""
    workdir = tmp_path_factory.mktemp("six") / "run"
    assert cli.run(["train", BERT, f"--workdir={workdir}", *SIX]) == 0
    return workdir


def test_a_signal_saves_at_once_and_the_run_goes_on(tmp_path):
    flags = [*SIX, "--config.train.total_steps=2000", "--config.checkpoint.every_steps=2000"]
    workdir = tmp_path / "run"
    process = start(workdir, *flags)
    wait_until(lambda: lines(Path(f"{workdir}.batches")) >= 8, process)
    process.send_signal(signal.SIGINT)  # as Ctrl-C does; SIGTERM to one of two processes: test_processes.py
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75, output
    (saved,) = [int(d.name) for d in (workdir / "checkpoints").iterdir()]
    assert f"saved at step {saved}" in output and "same command" in output
    assert max(train_losses(workdir)) == saved
    assert cli.run(["train", BERT, f"--workdir={workdir}", *flags, f"--config.train.total_steps={saved + 2}"]) == 0
    assert sorted(train_losses(workdir)) == list(range(1, saved + 3))


@pytest.mark.parametrize("preset", ["t5_tiny", "bert_tiny", "gpt2_tiny"])
def test_one_loop_trains_evaluates_and_infers_with_every_architecture(tmp_path, preset, capsys):
    workdir = tmp_path / "run"
    assert (
        cli.run(["train", f"--config={CONFIG}:{preset}", f"--workdir={workdir}", "--config.mesh=data=4,tensor=2"]) == 0
    )
    for name in FILES:
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "tensorboard").glob("events*"))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if "eval/tiny_animal/accuracy" in row]
    assert evaluated == [0, 3, 6]
    assert "baseline/tiny_animal/accuracy" in rows[0]
    predictions = (workdir / "predictions" / "step_6" / "tiny_animal.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in predictions] == list(range(10))
    page = (workdir / "report.html").read_text()
    assert "tiny_animal" in page and "data:image/png;base64" in page and "http" not in page.replace("http-", "")
    assert sorted(int(d.name) for d in (workdir / "checkpoints").iterdir()) == [2, 4, 6]

    before = rows[-1]["eval/tiny_animal/loss"]
    assert cli.run(["eval", f"--workdir={workdir}", f"--config={CONFIG}"]) == 0
    again = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert again["step"] == 6 and again["eval/tiny_animal/loss"] == before

    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"inputs": f"animal: the red cat {i}", "targets": "cat"}) + "\n" for i in range(11))
    )
    infer = ["infer", f"--workdir={workdir}", f"--input={source}", f"--output={output}", f"--config={CONFIG}"]
    assert cli.run(infer) == 0
    first = output.read_text()
    results = [json.loads(line) for line in first.splitlines()]
    assert [r["inputs"] for r in results] == [json.loads(line)["inputs"] for line in source.read_text().splitlines()]
    assert all("prediction" in r and r["score"] <= 0 and not r["truncated"] for r in results)
    if preset == "bert_tiny":
        output.write_text(first[: first.index("cat 4") + 3])  # as after a kill
        assert cli.run(infer) == 0
        assert output.read_text() == first
    lengthy, short = tmp_path / "lengthy.jsonl", tmp_path / "short.jsonl"
    lengthy.write_text(
        "".join(json.dumps({"inputs": text}) + "\n" for text in ("animal: the cat", "animal: cat " * 99))
    )
    capsys.readouterr()
    assert cli.run([*infer[:2], f"--input={lengthy}", f"--output={short}", infer[4]]) == 0
    assert [json.loads(line)["truncated"] for line in short.read_text().splitlines()] == [False, True]
    assert "1 of them truncated" in capsys.readouterr().out
    if preset == "bert_tiny":
        assert cli.run([*infer, "--config.eval.batch_rows=4"]) == 0  # does not affect the lines
    capsys.readouterr()
    for flag, message in (
        ("--config.seed=7", "seed 0 → 7"), ("--checkpoint=2", "checkpoint"), ("--mode=score", "mode 'predict' →"),
        ("--config.eval.max_decode_tokens=3", "eval.max_decode_tokens"), ("--checkpoint=all", "a step"),
    ):  # fmt: skip
        if preset != "bert_tiny" or "score" not in flag:
            assert cli.run([*infer, flag]) == 2 and message in capsys.readouterr().err
            assert output.read_text() == first
    output.with_name("out.jsonl.settings.json").unlink()
    assert cli.run(infer) == 2 and "settings.json, which names its settings, is missing" in capsys.readouterr().err
    about = workdir / "checkpoints" / "6" / "MANIFEST.json"
    about.rename(workdir / "manifest")
    assert cli.run(infer) > 0 and "MANIFEST.json cannot be read" in capsys.readouterr().err
    (workdir / "manifest").rename(about)
    if preset != "bert_tiny":
        scores = tmp_path / "scores.jsonl"
        assert cli.run([*infer[:3], f"--output={scores}", infer[4], "--mode=score"]) == 0
        assert all(json.loads(line)["logprob"] < 0 for line in scores.read_text().splitlines())


def test_a_signal_ends_an_evaluation_and_nothing_is_lost(tmp_path, capsys):
    """SIGTERM during the evaluation of the untrained model and of step 2: the run ends at once and resumes."""

    def interrupting(targets, predictions):
        if calls.pop(0):
            signal.raise_signal(signal.SIGTERM)
        return {"share": 1.0}

    configs.load(CONFIG)  # registers its tasks
    animal = registry.get("tiny_animal")
    registry.add(dataclasses.replace(animal, name="tiny_interrupting", metrics=(interrupting,)))
    workdir = tmp_path / "run"
    run = ["train", BERT, f"--workdir={workdir}", "--config.data.mixture=tiny_animal"]
    run += ["--config.eval.tasks=tiny_interrupting,tiny_animal", "--config.train.total_steps=4"]
    run += ["--config.eval.every_steps=2", "--config.checkpoint.every_steps=4", "--config.checkpoint.keep_last=9"]
    calls = [False, True]  # the first call scores the baseline
    assert cli.run(run) == 75
    assert "stopped before the first step" in capsys.readouterr().out
    calls = [False, False, True]
    assert cli.run(run) == 75
    assert "stopped and saved at step 2" in capsys.readouterr().out
    calls = [False, False]
    assert cli.run(run) == 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/tiny_animal/loss" in row] == [0, 2, 4]
    assert sorted(train_losses(workdir)) == [1, 2, 3, 4]
    assert "baseline/tiny_animal/accuracy" in rows[0]


def test_resuming_with_another_config_is_refused(six_steps, capsys):
    train = ["train", BERT, f"--workdir={six_steps}", *SIX]
    assert cli.run([*train, "--config.seed=1"]) == 2
    assert "seed: 0 → 1" in capsys.readouterr().err
    assert cli.run([*train, "--config.data.length=32"]) == 2
    assert "data.length: 64 → 32" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    code = cli.run(
        [
            *("train", BERT, f"--workdir={workdir}", *SIX, "--config.optimizer.learning_rate=1e38"),
            *("--config.optimizer.clip_norm=0", "--config.schedule.warmup_steps=0"),
            "--config.checkpoint.every_steps=1",
        ]
    )
    assert code == 76
    message = capsys.readouterr().err
    assert "is not finite" in message and "learning_rate" in message
    for directory in (workdir / "checkpoints").iterdir():
        for path, array in leaves(params(workdir, int(directory.name))).items():
            assert np.isfinite(array).all(), path


def poisoned(monkeypatch, number: int):
    """Puts NaN weights into the `number`-th batch that each TrainBatches hands out."""
    following = TrainBatches.__next__

    def poison(self):
        batch = following(self)
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == number:
            batch = batch | {"mlm_weights": np.full_like(batch["mlm_weights"], np.nan)}
        return batch

    monkeypatch.setattr(TrainBatches, "__next__", poison)
    return following


def test_a_batch_that_is_not_finite_can_be_skipped(tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, 3)
    run = ["train", BERT, f"--workdir={tmp_path / 'run'}", *SIX]
    assert cli.run([*run, "--config.train.on_nonfinite=skip"]) == 0
    assert "the loss or gradient at step 3 is not finite" in capsys.readouterr().out
    assert sorted(train_losses(tmp_path / "run")) == [1, 2, 4, 5, 6]
    before, after = (leaves(params(tmp_path / "run", step)) for step in (2, 4))
    assert any(not np.array_equal(before[path], after[path]) for path in before)


def test_a_rollback_is_a_run_that_never_saw_those_batches(tmp_path, monkeypatch, capsys):
    """Step 5 is not finite: the run continues from checkpoint 4 with batch 6 and frees the bad state's memory."""
    following = poisoned(monkeypatch, 5)
    alive, restore = [], Checkpoints.restore

    def counted(self, *arguments):
        alive.append(sum(array.nbytes for array in jax.live_arrays()))
        return restore(self, *arguments)

    monkeypatch.setattr(Checkpoints, "restore", counted)
    before = sum(array.nbytes for array in jax.live_arrays())
    rolled, clean = tmp_path / "rolled", tmp_path / "clean"
    run = ["train", BERT, *SIX]
    assert cli.run([*run, f"--workdir={rolled}", "--config.train.on_nonfinite=rollback"]) == 0
    out = capsys.readouterr().out
    assert "the loss or gradient at step 5 is not finite" in out and f"resuming {rolled} at step 4" in out
    assert alive[0] - before < sum(leaf.nbytes for leaf in leaves(params(rolled, 4)).values())

    def without_the_fifth(self):
        batch = following(self)
        self.taken = getattr(self, "taken", 0) + 1
        return following(self) if self.taken == 5 else batch

    monkeypatch.setattr(TrainBatches, "__next__", without_the_fifth)
    assert cli.run([*run, f"--workdir={clean}"]) == 0
    assert train_losses(rolled) == train_losses(clean)
    ours, theirs = leaves(params(rolled, 6)), leaves(params(clean, 6))
    for path in theirs:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE, errno.EDQUOT, errno.ECHILD])
def test_a_disk_that_fails_anywhere_is_the_disks_error(tmp_path, monkeypatch, number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runtime, "start", fails)
    with pytest.raises(OSError if number == errno.ECHILD else CheckpointError, match=os.strerror(number)):
        train.run(SimpleNamespace(cfg=configs.base()), tmp_path, EvaluationDuringTraining)


def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_resumed(six_steps, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(six_steps, workdir)
    assert cli.run(["verify", str(workdir)]) == 0
    (workdir / "checkpoints" / "6" / "progress" / "metadata").write_text("{}")
    assert cli.run(["verify", str(workdir)]) == 74
    assert "6: progress/metadata has 2 bytes" in capsys.readouterr().out
    assert cli.run(["train", BERT, f"--workdir={workdir}", *SIX, "--config.optimizer.b2=0.999"]) == 0
    out = capsys.readouterr().out
    assert "checkpoint 6 is corrupted and was renamed to 6.corrupt: progress/metadata" in out
    assert f"resuming {workdir} at step 4" in out
    whole, again = leaves(params(six_steps, 6)), leaves(params(workdir, 6))
    for path in whole:
        np.testing.assert_array_equal(again[path], whole[path], err_msg=path)


def test_fine_tuning_starts_from_another_runs_parameters(six_steps, tmp_path, capsys):
    second = tmp_path / "classify"
    code = cli.run(
        [
            *("train", BERT, f"--workdir={second}", *SIX, "--config.data.mixture=tiny_animal"),
            *(f"--config.init.checkpoint={six_steps}", "--config.optimizer.learning_rate=0"),
            "--config.train.total_steps=2",
        ]
    )
    assert code == 0
    assert "fresh: classification" in capsys.readouterr().out
    old, new = leaves(params(six_steps, 6)), leaves(params(second, 2))
    shared = [path for path in new if path in old]
    assert shared and all(np.array_equal(old[path], new[path]) for path in shared)
    assert [path for path in new if path not in old] == ["/classification/bias", "/classification/kernel"]
