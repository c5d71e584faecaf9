"""Checkpoints on a real disk: when old ones are deleted, what a corrupted one reports, which one is best."""

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, random_params
from waiting import wait_until

from t5x_lite import cli
from t5x_lite.checkpoints import checkpoint, manifest
from t5x_lite.checkpoints.checkpoint import Checkpoints, newest_good, saved_steps
from t5x_lite.checkpoints.loading import load_model, load_params
from t5x_lite.checkpoints.mirror import Mirror
from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.hub import interchange
from t5x_lite.reports import results
from t5x_lite.training.step import TrainState

TINY = Path(__file__).parent / "experiments" / "tiny.py"
GOLDEN = Path(__file__).parent / "golden"


def state(step: int) -> TrainState:
    params = {"layer": {"kernel": jnp.full((4, 3), float(step)), "bias": jnp.zeros(3)}}
    return TrainState(jnp.int32(step), params, ({"count": jnp.int32(step)},))


def save(checkpoints: Checkpoints, *steps: int, keep=()) -> None:
    for step in steps:
        checkpoints.save(state(step), {"place": step}, "{}", keep)


def whole_steps(workdir: Path) -> list[int]:
    return [step for step, problem in checkpoint.verify(workdir).items() if problem is None]


def test_every_moment_of_a_save_may_be_the_last(tmp_path, monkeypatch):
    """For every k, the disk drops all changes from the k-th on: what remains is intact, and even with keep_last=1 a
    checkpoint always exists."""
    for k in range(100):
        workdir = tmp_path / str(k)
        checkpoints = Checkpoints(workdir, keep_last=1)
        save(checkpoints, 1)
        checkpoints.wait()
        changes = 0

        def counted(original, k=k):
            def change(*arguments, **options):
                nonlocal changes
                changes += 1
                if changes > k:
                    raise OSError("the process is dead")
                return original(*arguments, **options)

            return change

        with monkeypatch.context() as dying:
            for name in ("rename", "replace", "unlink", "mkdir"):
                dying.setattr(Path, name, counted(getattr(Path, name)))
            dying.setattr(checkpoint.shutil, "rmtree", counted(checkpoint.shutil.rmtree))
            try:
                save(checkpoints, 2)
                checkpoints.wait()
                died = False
            except CheckpointError:
                died = True
        assert saved_steps(workdir) == whole_steps(workdir) != []
        again = Checkpoints(workdir, keep_last=1)
        step = newest_good(workdir, pytest.fail)
        restored, data = again.restore(step, state(0))
        assert data == {"place": step} and float(restored.params["layer"]["kernel"][0, 0]) == step
        save(again, 3)
        again.close()
        assert sorted(saved_steps(workdir))[-1] == 3 and not (workdir / "saving").exists()
        if not died:
            assert k >= 4 and step == 2
            return
    pytest.fail("a save never came through")


def test_a_step_is_on_the_disk_before_it_appears_and_before_an_older_one_goes(tmp_path, monkeypatch):
    """Checks the order of syncs and renames, in case the power fails."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor):
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renamed(self, target):
        done.append(f"{self.parent.name}/{self.name} → {target.parent.name}")
        return rename(self, target)

    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.wait()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    save(checkpoints, 2)
    checkpoints.close()
    staged, root = tmp_path / "saving" / "2", tmp_path / "checkpoints"
    written = {staged / path.relative_to(root / "2") for path in (root / "2").rglob("*")}
    appears, goes = done.index("saving/2 → checkpoints"), done.index("checkpoints/1 → saving")
    missing = {str(path) for path in [staged, *written]} - set(done[:appears])
    assert {Path(path).name for path in missing} == {manifest.NAME}  # synced under its partial name
    assert any(f".{manifest.NAME}." in path for path in done[:appears])
    assert appears < done.index(str(root), appears) < goes


def test_every_corruption_is_found_and_the_older_step_taken(tmp_path):
    """200 random corruptions: a flipped bit, a cut or a missing file, in any file of the checkpoint."""
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1, 2)
    checkpoints.close()
    newest = tmp_path / "checkpoints" / "2"
    files = sorted(file for file in newest.rglob("*") if file.is_file())
    assert {"MANIFEST.json", "_CHECKPOINT_METADATA"} <= {file.name for file in files}
    rng = np.random.default_rng(0)
    for _ in range(200):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        kind = rng.choice(["flip", "cut", "gone"]) if content else "gone"
        place = int(rng.integers(len(content))) if content else 0
        if kind == "flip":
            flipped = content[place] ^ (1 << int(rng.integers(8)))
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        elif kind == "cut":
            file.write_bytes(content[:place])
        else:
            file.unlink()
        said: list[str] = []
        assert newest_good(tmp_path, said.append) == 1, (file, kind, place)
        assert file.name in said[0]
        newest.with_name("2.corrupt").rename(newest)
        with pytest.raises(CheckpointError, match=r"checkpoints/2 is corrupted"):
            load_params(newest, state(0).params)
        file.write_bytes(content)
    assert whole_steps(tmp_path) == [1, 2]

    files[0].unlink()
    said = []
    assert newest_good(tmp_path, said.append) == 1
    assert "checkpoint 2 is corrupted" in said[0] and files[0].name in said[0]
    assert (tmp_path / "checkpoints" / "2.corrupt").is_dir() and saved_steps(tmp_path) == [1]
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "params")
    with pytest.raises(CheckpointError, match=r"every checkpoint of .* is corrupted"):
        newest_good(tmp_path, said.append)
    assert saved_steps(tmp_path) == [1]  # kept for the user to inspect


@pytest.mark.parametrize("archive", sorted(GOLDEN.glob("checkpoint_of_*.zip")), ids=lambda path: path.stem)
def test_a_checkpoint_of_every_release_is_restored(tmp_path, archive):
    """This file's `save` of `state(7)` made each, with that release and the libraries of its time."""
    shutil.unpack_archive(archive, tmp_path)
    assert newest_good(tmp_path, pytest.fail) == 7
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    restored, data = checkpoints.restore(7, state(0))
    checkpoints.close()
    assert data == {"place": 7}
    jax.tree.map(np.testing.assert_array_equal, restored, state(7))
    loaded, report = load_params(tmp_path, state(0).params)
    jax.tree.map(np.testing.assert_array_equal, loaded, state(7).params)
    assert len(report.loaded) == 2
    (tmp_path / "checkpoints" / "7").rename(tmp_path / "checkpoints" / "8")
    assert "it is the checkpoint of step 7" in checkpoint.verify(tmp_path)[8]


NAMES = [
    "a b",
    "a[b",
    "a]b",
    "a{b}",
    "a%20b",
    "a:b,c",
    "ünï",
    "x" * 255,
    "ü" * 127,
    "-a",
    "#~$&!'\"",
    "a\nb",
    " a ",
    "[",
    "gs:a",
]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_path_has_in_it_a_sealed_step_restores(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for step, workdir in enumerate((tmp_path / name, Path(name), tmp_path / "link"), 1):
        checkpoint.check_path(workdir)
        checkpoints = Checkpoints(workdir, keep_last=3)
        save(checkpoints, step)
        checkpoints.close()
    (tmp_path / name).rename(tmp_path / "moved")
    assert whole_steps(tmp_path / "moved") == [1, 2, 3]
    for step in (1, 2, 3):
        params, _ = load_params(tmp_path / "moved" / "checkpoints" / str(step), state(0).params)
        assert params["layer"]["kernel"][0, 0] == step


@pytest.mark.parametrize("name", ["run[1]", "a*", "a?", "a\\b"])
def test_a_path_that_orbax_cannot_save_to_is_refused_and_never_sealed(tmp_path, capsys, name):
    with pytest.raises(ConfigError, match="checkpoints cannot be written below a path with"):
        checkpoint.check_path(tmp_path / name)
    for verb in (["train", f"--config={TINY}:bert_tiny", "--workdir"], ["import", str(tmp_path)]):
        out = str(tmp_path / name / "run")
        assert cli.run([*verb[:-1], f"{verb[-1]}={out}"] if verb[0] == "train" else [*verb, out]) == 2
        assert f"{out}: checkpoints cannot be written below a path with" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    if name in ("run[1]", "a\\b"):
        (tmp_path / name).mkdir()
        checkpoints = Checkpoints(tmp_path / name, keep_last=1)
        save(checkpoints, 1)
        with pytest.raises(CheckpointError, match=r"Orbax opens 0 of 2 arrays of params; missing: float32\[3\]"):
            checkpoints.wait()
        assert saved_steps(tmp_path / name) == []


@pytest.mark.parametrize("name", ["run[1]", "a*", "a?", "**", "a\\b"])
def test_a_checkpoint_that_was_moved_below_such_a_path_is_read_or_refused_in_plain_words(tmp_path, name):
    checkpoints = Checkpoints(tmp_path / "run", keep_last=1)
    save(checkpoints, 1)
    checkpoints.close()
    (tmp_path / "run").rename(tmp_path / name)
    assert whole_steps(tmp_path / name) == [1]
    for source in (tmp_path / name, tmp_path / name / "checkpoints" / "1"):
        if "\\" in name:
            with pytest.raises(CheckpointError, match="below a path with a backslash; rename the directory"):
                load_params(source, state(0).params)
        else:
            assert load_params(source, state(0).params)[0]["layer"]["kernel"][0, 0] == 1


def test_imported_weights_are_sealed_only_if_they_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "check_path", lambda path: None)
    config = FAMILIES["bert"]
    interchange.export_directory(config, random_params(config), tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"Orbax opens 0 of \d+ arrays of params"):
        interchange.import_directory(tmp_path / "hf", tmp_path / "a[1]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_random_key_in_the_optimizer_is_saved(tmp_path):
    """As optax.add_noise has one."""
    saved = dataclasses.replace(state(1), opt_state=(jax.random.key(3), jax.random.split(jax.random.key(4), 2)))
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(saved, {"place": 1}, "{}")
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, saved)
    checkpoints.close()
    for got, expected in zip(restored.opt_state, saved.opt_state, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(expected))


def test_a_step_under_another_step_s_name_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    save(checkpoints, 1, 2, 3)
    checkpoints.close()
    root = tmp_path / "checkpoints"
    (root / "3").rename(root / "4")
    assert whole_steps(tmp_path) == [1, 2]
    assert "it is the checkpoint of step 3" in checkpoint.verify(tmp_path)[4]
    with pytest.raises(CheckpointError, match="it is the checkpoint of step 3"):
        load_params(tmp_path, state(0).params)
    said: list[str] = []
    assert newest_good(tmp_path, said.append) == 2 and "step 3" in said[0]
    with pytest.raises(CheckpointError, match=r"is not there.*now there: 1, 2"):
        load_params(root / "7", state(0).params)
    for name in ("best", "2024"):  # elsewhere its name is the user's own
        shutil.copytree(root / "2", tmp_path / name)
        assert load_params(tmp_path / name, state(0).params)[0]["layer"]["kernel"][0, 0] == 2


def test_the_newest_and_the_kept_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1, 2, 3, 4, keep={1})
    checkpoints.close()
    assert saved_steps(tmp_path) == [1, 3, 4]
    restored, data = Checkpoints(tmp_path, keep_last=2).restore(3, state(0))
    assert int(restored.step) == 3 and data == {"place": 3}
    np.testing.assert_array_equal(restored.params["layer"]["kernel"], np.full((4, 3), 3.0))


def test_waiting_for_a_save_is_no_hang_while_bytes_come(tmp_path, monkeypatch):
    """Every piece that is written counts as a heartbeat; polling without progress does not."""

    class Watched(Mirror):
        """Counts how often the number of sent files is read."""

        looks = 0

        @property
        def sent(self) -> int:
            self.looks += 1
            return 0

        @sent.setter
        def sent(self, _) -> None:
            pass

    monkeypatch.setattr(checkpoint, "LOOK_S", 0.02)
    beats, while_idle, mirror = [], [], Watched(str(tmp_path / "mirror"))
    write = manifest.write

    def in_pieces(directory: Path, step: int) -> None:
        for piece in range(3):
            before = len(beats)
            (directory / f"{piece}").write_bytes(b"1234")
            wait_until(lambda before=before: len(beats) > before)
            looks = mirror.looks
            wait_until(lambda looks=looks: mirror.looks > looks + 5)
            while_idle.append(len(beats) - before)
        write(directory, step)

    monkeypatch.setattr(manifest, "write", in_pieces)
    checkpoints = Checkpoints(tmp_path, keep_last=1, beat=beats.append, mirror=mirror)
    save(checkpoints, 1)
    checkpoints.close()
    assert while_idle[1:] == [1, 1] and len(set(beats)) == len(beats)  # the first may come from Orbax itself
    assert whole_steps(tmp_path) == [1]


def damage_metadata(params: Path) -> None:
    (params / "_METADATA").write_text("{")


def damage_manifest(params: Path) -> None:
    (params / "manifest.ocdbt").write_bytes(b"")


def remove_data(params: Path) -> None:
    shutil.rmtree(params / "ocdbt.process_0")
    shutil.rmtree(params / "d", ignore_errors=True)


@pytest.mark.parametrize("damage", [damage_metadata, damage_manifest, remove_data])
def test_a_damaged_checkpoint_is_an_error_in_a_line(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.close()
    damage(tmp_path / "checkpoints" / "1" / "params")
    with pytest.raises(CheckpointError, match=r"checkpoints/1.*corrupted") as caught:
        load_params(tmp_path, state(0).params)
    assert "\n" not in str(caught.value)


def test_a_model_must_be_whole_and_a_start_need_not_be(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.close()
    wider = {"layer": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(5)}, "head": jnp.zeros(2)}
    loaded, report = load_params(tmp_path, wider)
    assert (report.loaded, report.fresh, report.reshaped) == (["layer/kernel"], ["head"], ["layer/bias"])
    np.testing.assert_array_equal(loaded["layer"]["kernel"], np.ones((4, 3)))
    assert "1 fresh, because their shapes differ: layer/bias" in str(report)
    with pytest.raises(CheckpointError, match="does not hold the model"):
        load_model(tmp_path, 1, wider)


def test_layers_of_another_shape_are_of_another_model(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    checkpoints.save(dataclasses.replace(state(1), params={"layers_0": {"a": jnp.ones(3)}, "b": jnp.ones(2)}), {}, "{}")
    checkpoints.close()
    with pytest.raises(
        CheckpointError, match=r"a different model: 1 param.* layers_0/a: \[3\] in .*, \[4\] in the model"
    ):
        load_params(tmp_path, {"layers_0": {"a": jnp.ones(4)}, "b": jnp.ones(2)})


def test_a_full_disk_says_so_at_the_next_step_and_the_old_checkpoint_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"is the disk full or read-only.*bytes are free") as caught:
            save(checkpoints, 2)
            while True:
                checkpoints.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 74 and "\n" not in str(caught.value)
    assert whole_steps(tmp_path) == [1]


FAILS_TO_SAVE = """
import pathlib, resource, sys
import numpy as np
from t5x_lite import cli
from t5x_lite.checkpoints.checkpoint import Checkpoints
from t5x_lite.training.step import TrainState

class Fails:
    def __del__(self):
        raise RuntimeError("another error that no code can catch")

def run(argv):
    cli._speak()
    Fails()
    params = {str(i): np.random.default_rng(i).random((300, 300)) for i in range(60)}
    checkpoints = Checkpoints(pathlib.Path(argv[0]), keep_last=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
    checkpoints.save(TrainState(np.int32(1), params, ({"count": np.int32(1)},)), {}, "{}")
    try:
        checkpoints.wait()
    except Exception as error:
        print(error, file=sys.stderr)
        return error.exit_code

cli.run = run
cli.main()
"""


def test_the_many_writes_of_a_save_that_failed_print_no_tracebacks(tmp_path):
    done = subprocess.run([sys.executable, "-c", FAILS_TO_SAVE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 74 and "is the disk full or read-only?" in done.stderr, done.stderr
    assert "Event loop is closed" not in done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count("another error that no code can catch") == 1


def test_a_disk_too_small_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    checkpoint.check_space(tmp_path, state(0), kept=0)  # 64 bytes
    with pytest.raises(CheckpointError, match="has 100 bytes free; 1 checkpoints and one being written take 128 more"):
        checkpoint.check_space(tmp_path, state(0), kept=1)
    for name, size in (("saving/3/params", 40), ("checkpoints/2/params", 64), ("checkpoints/1.corrupt/params", 900)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "checkpoints" / "2" / manifest.NAME).write_text("{}")
    with pytest.raises(CheckpointError, match="being written take 150 more"):  # of the 256 that will replace them
        checkpoint.check_space(tmp_path, state(0), kept=3)


def test_the_best_step_is_a_saved_one_by_the_metrics_own_direction():
    rows = [
        {"step": s, "eval/task/accuracy": a, "eval/task/loss": 3 - a} for s, a in ((0, 9), (5, 3), (10, 1), (15, 2))
    ]
    assert results.best_step(rows, "task/accuracy", saved=(10, 15)) == 15
    assert results.best_step(rows, "task/loss", saved=(5, 10, 15)) == 5
    assert results.best_step(rows, "task/f1", saved=(5, 10)) is None
    again = [*rows, {"step": 10, "eval/task/accuracy": 8.0}]  # evaluated twice: the later value counts
    assert results.best_step(again, "task/accuracy", saved=(5, 10, 15)) == 10
    undefined = [{"step": 0, "eval/task/accuracy": float("nan"), "eval/task/loss": float("nan")}, *rows[1:]]
    assert results.best_step(undefined, "task/accuracy", saved=(0, 5, 10)) == 5
    assert results.best_step(undefined, "task/loss", saved=(0, 5, 10)) == 5
    assert results.best_step(undefined, "task/loss", saved=(0,)) is None
    told = [{"step": 5, f"{results.LOWER}task/f1_error": 1.0}]  # the run itself says so, whatever the metric's name
    told += [
        {"step": step, "eval/task/f1_error": value, "eval/task/loss": -value} for step, value in ((5, 3.0), (9, 2.0))
    ]
    assert results.best_step(told, "task/f1_error", saved=(5, 9)) == 9
    assert [r["best step"] for r in results.results(undefined)] == [5, 5]
    assert [r["best step"] for r in results.results(undefined[:1])] == [0, 0]
