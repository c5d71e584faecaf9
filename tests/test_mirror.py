"""Checkpoints in an object store (fsspec's in-memory store): what a kill leaves there, and an unavailable store."""

import shutil

import fsspec
import jax
import numpy as np
import pytest
from test_checkpoint import save, state

from t5x_lite import cli
from t5x_lite.checkpoints import checkpoint, manifest, mirror
from t5x_lite.checkpoints.checkpoint import Checkpoints
from t5x_lite.checkpoints.mirror import Mirror
from t5x_lite.errors import CheckpointError, ConfigError

URL = "memory://bucket/run"


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr(mirror, "FIRST_PAUSE_S", 0.001)
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def test_an_empty_workdir_goes_on_from_the_mirror(tmp_path, bucket):
    one, other = tmp_path / "one", tmp_path / "other"
    checkpoints = Checkpoints(one, keep_last=2, mirror=Mirror(URL))
    (one / "metrics.jsonl").write_text("{}\n")
    (one / "model" / "vocabulary").mkdir(parents=True)
    (one / "model" / "vocabulary" / "v.model").write_bytes(b"v")
    save(checkpoints, 1, 2, 3)
    checkpoints.close()
    assert Mirror(URL).steps() == [2, 3] == checkpoint.saved_steps(one)
    shutil.rmtree(one)
    other.mkdir()
    assert checkpoint.fetch(other, Mirror(URL)) == 3
    assert checkpoint.newest_good(other, pytest.fail) == 3
    again = Checkpoints(other, keep_last=2, mirror=Mirror(URL))
    restored, data = again.restore(3, state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))
    assert data == {"place": 3} and (other / "metrics.jsonl").read_text() == "{}\n"
    assert (other / "model" / "vocabulary" / "v.model").read_bytes() == b"v"
    again.close()
    assert checkpoint.fetch(other, Mirror(URL)) is None  # it has its own checkpoint


def test_a_copy_that_did_not_come_to_its_end_or_is_damaged_is_passed_over(tmp_path, bucket):
    checkpoints = Checkpoints(tmp_path / "one", keep_last=3, mirror=Mirror(URL))
    save(checkpoints, 1, 2, 3)
    checkpoints.close()
    bucket.rm(f"/bucket/run/3/{manifest.NAME}")
    bucket.pipe("/bucket/run/2/progress/metadata", b"{}")
    (tmp_path / "two").mkdir()
    assert checkpoint.fetch(tmp_path / "two", Mirror(URL)) == 1
    assert checkpoint.saved_steps(tmp_path / "two") == [1]
    bucket.pipe("/bucket/run/1/progress/metadata", b"{}")
    (tmp_path / "three").mkdir()
    with pytest.raises(CheckpointError, match=r"every checkpoint of memory://bucket/run is corrupted .*2: .*; 1: "):
        checkpoint.fetch(tmp_path / "three", Mirror(URL))
    assert Mirror(URL).steps() == [1, 2]  # nothing replaced them


@pytest.mark.parametrize("failures", [mirror.TRIES - 1, mirror.TRIES])
def test_a_store_that_is_away_is_tried_again_and_then_an_error(tmp_path, bucket, monkeypatch, failures):
    left, put = [failures], bucket.put_file

    def busy(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError("503 Service Unavailable")
        return put(*arguments, **options)

    checkpoints = Checkpoints(tmp_path, keep_last=1, mirror=Mirror(URL))
    monkeypatch.setattr(type(bucket), "put_file", staticmethod(busy))
    save(checkpoints, 1)
    if failures < mirror.TRIES:
        checkpoints.close()
        assert Mirror(URL).steps() == [1]
    else:
        with pytest.raises(CheckpointError, match=r"memory://bucket/run: 503 Service Unavailable, 5 times") as caught:
            checkpoints.close()
        assert caught.value.exit_code == 74
    assert checkpoint.newest_good(tmp_path, pytest.fail) == 1  # the workdir has it anyway


def test_what_is_no_store_is_an_error_of_the_config(capsys):
    with pytest.raises(ConfigError, match=r"checkpoint.mirror='nowhere://x': Protocol not known"):
        Mirror("nowhere://x")
    assert cli.run(["train", "--config=configs/quickstart.py", "--workdir=gs://bucket/run"]) == 2
    assert "--config.checkpoint.mirror=gs://bucket/run" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["memory://bucket/run[1]", "memory://bucket/*"])
def test_a_url_that_fsspec_takes_for_a_pattern_is_refused(url):
    with pytest.raises(ConfigError, match="give a path without"):
        Mirror(url)
