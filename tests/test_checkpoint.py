"""Checkpoints on a real disk: when old ones go, what a damaged one says, which is best."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import evaluate
from t5x_lite.checkpoint import Checkpoints, load_model, load_params, saved_steps
from t5x_lite.errors import CheckpointError
from t5x_lite.step import TrainState


def state(step: int) -> TrainState:
    params = {"layer": {"kernel": jnp.full((4, 3), float(step)), "bias": jnp.zeros(3)}}
    return TrainState(jnp.int32(step), params, ({"count": jnp.int32(step)},))


def save(checkpoints: Checkpoints, *steps: int, keep=()) -> None:
    for step in steps:
        checkpoints.save(state(step), {"place": step}, "{}", keep)


def test_the_old_step_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    """With keep_last=1 there is never a moment without a complete checkpoint."""
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.wait()
    deleted_while: list[list[int]] = []
    delete = checkpoints._manager.delete
    monkeypatch.setattr(
        checkpoints._manager, "delete", lambda step: (deleted_while.append(saved_steps(tmp_path)), delete(step))
    )
    save(checkpoints, 2)
    assert 1 in saved_steps(tmp_path)
    checkpoints.close()
    assert deleted_while == [[1, 2]]  # the newer one was complete under its own name
    assert saved_steps(tmp_path) == [2]


def test_the_newest_and_the_kept_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1, 2, 3, 4, keep={1})
    checkpoints.close()
    assert saved_steps(tmp_path) == [1, 3, 4]
    restored, data = Checkpoints(tmp_path, keep_last=2).restore(3, state(0))
    assert int(restored.step) == 3 and data == {"place": 3}
    np.testing.assert_array_equal(restored.params["layer"]["kernel"], np.full((4, 3), 3.0))


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
    with pytest.raises(CheckpointError, match=r"checkpoints/1.*damaged") as caught:
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
    with pytest.raises(CheckpointError, match="does not hold the model"):
        load_model(tmp_path, 1, wider)


def test_a_write_that_fails_says_so(tmp_path, monkeypatch):
    """TensorStore reports a full disk as a ValueError."""
    checkpoints = Checkpoints(tmp_path, keep_last=1)

    def full() -> None:
        raise ValueError("OUT_OF_RANGE: Error writing file: File too large\nand 60 lines more")

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", full)
    with pytest.raises(CheckpointError, match="File too large; is the disk full") as caught:
        checkpoints.wait()
    assert caught.value.exit_code == 74


def test_the_best_step_is_a_saved_one_by_the_metrics_own_direction():
    rows = [
        {"step": s, "eval/task/accuracy": a, "eval/task/loss": 3 - a} for s, a in ((0, 9), (5, 3), (10, 1), (15, 2))
    ]
    assert evaluate.best_step(rows, "task/accuracy", saved=(10, 15)) == 15
    assert evaluate.best_step(rows, "task/loss", saved=(5, 10, 15)) == 5
    assert evaluate.best_step(rows, "task/f1", saved=(5, 10)) is None
    again = [*rows, {"step": 10, "eval/task/accuracy": 8.0}]  # evaluated once more: the later value counts
    assert evaluate.best_step(again, "task/accuracy", saved=(5, 10, 15)) == 10
