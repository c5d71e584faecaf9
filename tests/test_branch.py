"""A branch continues a run from one of its checkpoints: bit for bit if nothing that matters changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from waiting import wait_until

from t5x_lite import cli, lineage

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
LOCAL = Path(__file__).parents[1] / "launch" / "local.sh"
BERT = f"--config={CONFIG}:bert_tiny"
SIX = ["--config.data.mixture=tiny_corpus", "--config.train.total_steps=6", "--config.checkpoint.keep_last=9"]
SIX += ["--config.eval.untrained=false", "--config.eval.every_steps=0", "--config.eval.max_examples=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the workdir of a run of six steps, saved every second step. Only read it."""
    workdir = tmp_path_factory.mktemp("branch") / "run"
    assert cli.run(["train", BERT, f"--workdir={workdir}", *SIX]) == 0
    return workdir


def params(workdir: Path, step: int) -> list[bytes]:
    def leaves(tree):
        return [leaf for child in tree.values() for leaf in leaves(child)] if isinstance(tree, dict) else [tree]

    tree = ocp.PyTreeCheckpointer().restore(workdir.absolute() / "checkpoints" / str(step) / "params")
    return [np.asarray(leaf).tobytes() for leaf in leaves(tree)]


def losses(workdir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def test_a_branch_without_changes_equals_the_run_bit_for_bit(run, tmp_path, capsys):
    new = tmp_path / "new"
    command = ["branch", str(run), str(new), "--at=4", f"--config={CONFIG}"]
    assert cli.run(command) == 0
    assert params(new, 6) == params(run, 6)
    assert losses(new) == losses(run)
    assert lineage.of(new) == [{"run": str(run), "step": 4, "changed": {"refuse": [], "warn": [], "free": []}}]
    capsys.readouterr()
    assert cli.run(["compare", str(run), str(new)]) == 0
    assert "branched from" in (out := capsys.readouterr().out) and "at step 4" in out.replace("\n", " ")
    assert cli.run([*command[:3], "--at=2", *command[4:]]) == 2
    assert f"is a branch of {run} at step 4, not of {run} at 2" in capsys.readouterr().err
    assert cli.run([*command[:3], "--config.train.total_steps=7", *command[4:]]) == 0  # resumes, as `train` would
    assert max(losses(new)) == 7


def test_a_cooldown_and_other_data(run, tmp_path, capsys):
    cooldown, anneal, both = tmp_path / "cooldown", tmp_path / "anneal", tmp_path / "both"
    wsd = ["--config.schedule.name=wsd", "--config.schedule.decay_steps=4", "--config.schedule.warmup_steps=0"]
    assert cli.run(["branch", str(run), str(cooldown), "--at=4", f"--config={CONFIG}", *wsd]) == 0
    assert losses(cooldown)[5] == losses(run)[5]  # computed before the first update of another size
    assert params(cooldown, 6) != params(run, 6)
    other = ["--config.data.mixture=tiny_animal", "--config.train.total_steps=7"]
    code = cli.run(
        ["branch", str(run), str(anneal), "--at=4", f"--config={CONFIG}", "--config.data.length=48", *other[1:]]
    )
    assert code == 0, capsys.readouterr().err
    assert {step: loss for step, loss in losses(anneal).items() if step <= 4} == {
        step: loss for step, loss in losses(run).items() if step <= 4
    }
    assert losses(anneal)[5] != losses(run)[5] and max(losses(anneal)) == 7
    assert cli.run(["branch", str(anneal), str(both), f"--config={CONFIG}", "--config.train.total_steps=8"]) == 0
    assert [(entry["run"], entry["step"]) for entry in lineage.of(both)] == [(str(anneal), 7), (str(run), 4)]


def test_what_a_branch_cannot_be(run, tmp_path, capsys, monkeypatch):
    new = tmp_path / "new"
    cases = {
        "no checkpoint '5'; use a step": ["--at=5"],
        "--at=all: a branch begins at one checkpoint": ["--at=all"],
        "cannot change optimizer.name": ["--config.optimizer.name=lion"],
        "cannot change model.d_model": ["--config.model.d_model=64"],
        "unknown task or mixture 'nothing'": ["--config.data.mixture=nothing"],
        "batch_rows=6 is not divisible by mesh axis": ["--config.data.batch_rows=6"],
    }
    for message, flags in cases.items():
        assert cli.run(["branch", str(run), str(new), f"--config={CONFIG}", *flags]) in (2, 74)
        assert message in capsys.readouterr().err
        assert not new.exists()
    new.mkdir()
    (new / "notes.txt").write_text("mine")
    assert cli.run(["branch", str(run), str(new), f"--config={CONFIG}"]) == 2
    assert "is not empty and no branch" in capsys.readouterr().err
    assert cli.run(["branch", str(run), "gs://bucket/new", f"--config={CONFIG}"]) == 2
    assert "must be a local or mounted directory" in capsys.readouterr().err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.run(["branch", str(run), ".", f"--config={CONFIG}"]) == 2
    assert "is the working directory" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "checkpoints" / "4" / "progress" / "metadata").write_text("{}")
    assert cli.run(["branch", str(damaged), str(tmp_path / "other"), "--at=4", f"--config={CONFIG}"]) == 74
    assert "is corrupted" in capsys.readouterr().err


def test_a_branch_leaves_the_mirror_of_its_run_alone(run, tmp_path, capsys):
    mirrored, mirror = tmp_path / "mirrored", f"file://{tmp_path / 'mirror'}"
    shutil.copytree(run, mirrored)
    config = json.loads((mirrored / "config.json").read_text())
    config["checkpoint"]["mirror"] = mirror
    (mirrored / "config.json").write_text(json.dumps(config))
    command = ["branch", str(mirrored), str(tmp_path / "new"), f"--config={CONFIG}", "--config.train.total_steps=7"]
    assert cli.run(command) == 2
    assert "holds the copies of" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert cli.run([*command, f"--config.checkpoint.mirror={mirror}2"]) == 0
    assert not (tmp_path / "mirror").exists() and (tmp_path / "mirror2" / "7").is_dir()


@pytest.mark.slow
def test_two_processes_branch_like_one(run, tmp_path):
    new = tmp_path / "new"
    flags = ["branch", str(run), str(new), "--at=4", f"--config={CONFIG}", "--config.eval.batch_rows=8"]
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    environment |= {"T5X_LITE": f"{sys.executable} -m t5x_lite.cli"}
    done = subprocess.run([LOCAL, "2", *flags], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(new).keys() == losses(run).keys()
    np.testing.assert_allclose(list(losses(new).values()), list(losses(run).values()), rtol=1e-6)


@pytest.mark.slow
def test_a_killed_branch_resumes(run, tmp_path):
    new = tmp_path / "new"
    flags = ["branch", str(run), str(new), "--at=4", f"--config={CONFIG}", "--config.train.total_steps=200"]
    flags += ["--config.checkpoint.every_steps=1"]
    process = subprocess.Popen([sys.executable, "-m", "t5x_lite.cli", *flags], env=os.environ)
    wait_until(lambda: (new / "checkpoints" / "8").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = ["--config.checkpoint.keep_last=9", "--config.train.total_steps=12"]
    assert cli.run([*flags[:-2], *kept]) == 0
    straight = tmp_path / "straight"
    assert cli.run(["train", BERT, f"--workdir={straight}", *SIX, "--config.train.total_steps=12"]) == 0
    assert params(new, 12) == params(straight, 12)
