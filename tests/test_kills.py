"""Kills runs in real processes: a resumed run ends bit for bit like a run that was never killed.

KILLS=30 pytest -m slow tests/test_kills.py kills 30 times; a few kills show that the test itself works.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from waiting import wait_until

from t5x_lite import cli, config, inspect
from t5x_lite.checkpoints import checkpoint
from t5x_lite.data import registry
from t5x_lite.data.pipeline import TrainBatches

TESTS = Path(__file__).parent
CONFIG = f"--config={TESTS / 'experiments' / 'tiny.py'}:bert_tiny"
NO_DEPRECATIONS = ("-W", "error::DeprecationWarning", "-W", "error::PendingDeprecationWarning")
KILLS = int(os.environ.get("KILLS", 3))
EVERY = 5  # steps between two saves
QUIET = ("--config.eval.untrained=false", "--config.eval.every_steps=0", "--config.eval.max_examples=2")


def start(workdir: Path, *flags: str) -> subprocess.Popen:
    one_device = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": one_device, "BATCH_LOG": f"{workdir}.batches"}
    driver = str(TESTS / "run_recording_batches.py")
    return subprocess.Popen(
        [sys.executable, *NO_DEPRECATIONS, driver, "train", CONFIG, f"--workdir={workdir}", *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def being_saved(workdir: Path, step: int) -> bool:
    return any((workdir / "saving").glob(f"{step}*")) or (workdir / "checkpoints" / str(step)).exists()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def train_losses(workdir: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in lines(workdir / "metrics.jsonl")]
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def assert_same_end(ours: Path, theirs: Path, step: int) -> None:
    """Asserts that parameters, optimizer and data position are equal bit for bit, and every step's loss."""
    for part in ("params", "optimizer"):
        a, b = (_leaves(w / "checkpoints" / str(step) / part) for w in (ours, theirs))
        assert a.keys() == b.keys()
        for name in b:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{part}/{name}")
    progress = [(w / "checkpoints" / str(step) / "progress" / "metadata").read_text() for w in (ours, theirs)]
    assert json.loads(progress[0]) == json.loads(progress[1])
    assert train_losses(ours) == train_losses(theirs)


def _leaves(directory: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def walk(tree, path: str) -> None:
        children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
        if children is None:
            found[path] = np.asarray(tree)
        for name, child in children or ():
            walk(child, f"{path}/{name}")

    walk(ocp.PyTreeCheckpointer().restore(directory), "")
    return found


@pytest.mark.slow
@pytest.mark.timeout(900 + 90 * KILLS)
def test_killed_at_any_moment_a_run_ends_bit_for_bit_like_one_that_never_was(tmp_path, capsys):
    """Every third kill comes while a checkpoint is being written, the others anywhere."""
    total = 20 * KILLS
    flags = (*QUIET, f"--config.train.total_steps={total}", f"--config.checkpoint.every_steps={EVERY}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, *flags)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    expected = lines(Path(f"{whole}.batches"))
    assert len(expected) == total

    log, rng = Path(f"{killed}.batches"), np.random.default_rng(KILLS)
    parts, lost = 0, []
    for number in range(KILLS):
        begins_at = max(checkpoint.saved_steps(killed), default=0)
        process = start(killed, *flags)
        if number % 3 == 2:
            of = min(begins_at + 2 * EVERY, total)  # not the first checkpoint: each start makes progress
            wait_until(lambda of=of: being_saved(killed, of), process, look_s=0.002)
            time.sleep(rng.uniform(0, 0.02))
        else:
            after = min(int(rng.integers(1, 30)), total - begins_at)
            wait_until(lambda after=after: len(lines(log)) >= after, process, look_s=0.002)
            time.sleep(rng.uniform(0, 0.02))
            if number == 0:  # no second run can start meanwhile
                assert cli.run(["train", CONFIG, f"--workdir={killed}", *flags]) == 2
                assert f"in use by a run (process {process.pid} on" in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
        digests = lines(log)
        assert digests == expected[begins_at : begins_at + len(digests)]
        log.unlink(missing_ok=True)
        found = checkpoint.verify(killed)
        assert not any(found.values()), found  # every file with a final name is complete
        parts += any(p.name.isdigit() or "tmp" in p.name for p in (killed / "saving").glob("*"))
        lost.append(begins_at + len(digests) - max(found, default=0))
    assert max(lost) <= 2 * EVERY  # a save ends before the next one begins
    process = start(killed, *flags)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert not (killed / "saving").exists()
    assert_same_end(killed, whole, total)
    with capsys.disabled():
        print(f"\n{KILLS} kills, {parts} of them left a checkpoint half written; steps lost: {lost}")


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mounts a small file system; skips if this process may not mount."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def at_batch(monkeypatch, number: int, action) -> None:
    """Calls `action` once, when a run takes its batch `number`."""
    following, taken = TrainBatches.__next__, 0

    def acting(self):
        nonlocal taken
        taken += 1
        if taken == number:
            action()
        return following(self)

    monkeypatch.setattr(TrainBatches, "__next__", acting)


RUN = ["train", CONFIG, *QUIET, "--config.train.total_steps=6", "--config.checkpoint.every_steps=2"]
RUN += ["--config.checkpoint.keep_last=1", "--config.data.prefetch_batches=0"]


@pytest.mark.skipif(shutil.which("mount") is None, reason="cannot mount a small disk")
def test_a_disk_that_fills_up_ends_the_run_and_with_room_again_it_goes_on(tmp_path, monkeypatch, capfd):
    whole = tmp_path / "whole"
    assert cli.run([*RUN, f"--workdir={whole}"]) == 0
    with small_disk(tmp_path / "disk", "16m") as disk:
        workdir, ballast = disk / "run", disk / "ballast"

        def fill() -> None:
            wait_until((workdir / "checkpoints" / "2").exists)  # it is saved in the background
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as out:
                while out.write(bytes(4096)):
                    pass

        with monkeypatch.context() as filling:
            at_batch(filling, 4, fill)
            assert cli.run([*RUN, f"--workdir={workdir}"]) == 74
        said = capfd.readouterr().err
        # The full disk stopped a save, or a smaller file before it.
        assert "bytes are free there" in said or "No space left on device; fix the disk" in said, said
        assert "Traceback" not in said
        assert checkpoint.verify(workdir) == {2: None}
        assert cli.run([*RUN, f"--workdir={workdir}"]) == 74  # before anything is compiled
        assert "bytes free" in capfd.readouterr().err
        ballast.unlink()
        assert cli.run([*RUN, f"--workdir={workdir}"]) == 0
        assert_same_end(workdir, whole, 6)


def test_a_metric_that_fails_ends_a_run_that_is_saved_or_is_left_out(tmp_path, capfd):
    def fails(targets, predictions):
        calls.append(len(targets))
        return {"share": 1 / (len(calls) == 1)}  # the first call scores the baseline

    config.load(CONFIG.removeprefix("--config="))  # registers its tasks
    registry.add(dataclasses.replace(registry.get("tiny_animal"), name="tiny_failing", metrics=(fails,)))
    run = [*RUN, f"--workdir={tmp_path}", "--config.data.mixture=tiny_animal", "--config.eval.tasks=tiny_failing"]
    calls: list[int] = []
    assert cli.run(run) == 2
    assert re.search(r"tiny_failing.*ZeroDivisionError.*test_kills.py, line \d+", capfd.readouterr().err)
    assert checkpoint.verify(tmp_path) == {6: None}
    assert cli.run([*run, "--config.eval.on_error=record"]) == 0
    assert "the evaluation at step 6 failed and was skipped" in capfd.readouterr().out


def test_no_memory_left_on_the_machine_is_no_bug(monkeypatch, capsys):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(inspect, "print_tasks", full)
    assert cli.run(["tasks"]) == 70
    assert "this machine ran out of memory" in capsys.readouterr().err


def test_a_workdir_that_vanishes_ends_the_run(tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "run"
    at_batch(monkeypatch, 3, lambda: shutil.rmtree(workdir, ignore_errors=True))
    assert cli.run([*RUN, f"--workdir={workdir}"]) == 74
    assert "Traceback" not in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.run([*RUN, f"--workdir={tmp_path / 'file' / 'run'}"]) == 74
    assert "cannot make the workdir" in capfd.readouterr().err
