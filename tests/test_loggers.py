"""A run keeps its numbers whatever happens to a logger: no network, a resume, a logger that breaks."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from tensorboardX.proto import event_pb2

from t5x_lite import cli, config, inspect
from t5x_lite.reports.loggers import Loggers
from t5x_lite.reports.results import read_metrics

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens, so it refuses at once


def loggers(workdir: Path, mode: str = "disabled", resume_step: int | None = 0) -> Loggers:
    workdir.mkdir(exist_ok=True)
    cfg = config.base()
    cfg.wandb.mode = mode
    return Loggers(workdir, "run", cfg.to_dict(), resume_step)


def recorded_runs(workdir: Path) -> list[str]:
    """Returns the ids of the offline recordings, from the names of wandb's files."""
    return [path.name.removesuffix(".wandb").rpartition("-")[2] for path in (workdir / "wandb").rglob("run-*.wandb")]


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def test_wandb_records_offline_and_a_resumed_run_keeps_its_id(tmp_path):
    for resume_step in (0, 1):
        out = loggers(tmp_path, "offline", resume_step)
        out.scalars(resume_step + 1, {"train/loss": 2.0})
        out.table(resume_step + 1, "predictions/task", [{"target": "a", "prediction": "b"}])
        out.close()
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert recorded_runs(tmp_path) == [identity, identity]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_without_a_network_wandb_records_offline_and_says_how_to_send_it(tmp_path, no_network, capsys):
    out = loggers(tmp_path, "online")
    out.scalars(1, {"train/loss": 2.0})
    out.close()
    assert recorded_runs(tmp_path) == [(tmp_path / "wandb_id.txt").read_text()]
    assert f"wandb sync {tmp_path}" in capsys.readouterr().err
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 2.0}]


@pytest.mark.parametrize("broken", ["TensorBoard", "metrics.jsonl", "wandb"])
def test_a_writer_that_fails_is_switched_off_with_one_warning(tmp_path, capsys, broken):
    out = loggers(tmp_path, "offline")
    logger = out.loggers[broken]
    logger.scalars = lambda *_: (_ for _ in ()).throw(OSError("disk is gone"))
    for step in (1, 2):
        out.scalars(step, {"train/loss": 2.0})
    out.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "disk is gone" in line]
    assert len(warnings) == 1 and broken in warnings[0]
    if broken != "metrics.jsonl":
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def events(workdir: Path) -> list:
    """Returns the events of a workdir. TensorBoard's records are a length, its checksum, an event and its checksum."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_something_else_in_the_place_of_a_log_switches_it_off_and_stops_no_run(tmp_path, capsys, name):
    place = tmp_path / name
    place.mkdir() if name == "metrics.jsonl" else place.write_text("")
    out = loggers(tmp_path)
    assert " is off: " in capsys.readouterr().err
    out.scalars(1, {"train/loss": 1.0})
    out.close()
    assert read_metrics(tmp_path) == ([] if name == "metrics.jsonl" else [{"step": 1, "train/loss": 1.0}])


def test_tensorboard_has_the_numbers_and_is_told_what_a_resume_takes_back(tmp_path):
    out = loggers(tmp_path)
    out.scalars(3, {"train/loss": 2.5})
    (first, event) = events(tmp_path)
    assert first.file_version == "brain.Event:2"
    assert (event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) == (3, "train/loss", 2.5)
    out.close()
    (tmp_path / "tensorboard").rename(tmp_path / "before")  # file names differ only by seconds
    again = loggers(tmp_path, resume_step=2)
    again.close()
    assert [(e.step, e.session_log.status) for e in events(tmp_path)[1:]] == [(3, event_pb2.SessionLog.START)]


FULL = """
import resource, sys
from pathlib import Path
from t5x_lite import config
from t5x_lite.reports.loggers import Loggers
out = Loggers(Path(sys.argv[1]), "run", config.base().to_dict(), 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
for step in range(100):
    out.scalars(step, {"train/loss": 2.0})
out.close()
"""


def test_a_full_disk_switches_writers_off_and_the_process_ends(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for writer in ("metrics.jsonl", "TensorBoard"):
        assert done.stderr.count(f"{writer} is off from here on: [Errno 27]") == 1, done.stderr


def test_steps_after_the_checkpoint_are_kept_once(tmp_path):
    """A run that logged three steps and resumes from the checkpoint of step 2 repeats step 3."""
    first = loggers(tmp_path)
    for step in (1, 2, 3):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # a line that a crash cut off
    again = loggers(tmp_path, resume_step=2)
    again.scalars(3, {"train/loss": 30.0})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": s, "train/loss": loss} for s, loss in ((1, 1.0), (2, 2.0), (3, 30.0))]


def test_damaged_lines_are_dropped_and_the_others_kept(tmp_path, capsys):
    out = loggers(tmp_path)
    out.scalars(1, {"train/loss": 2.0, "time/unix": 1764450123.4567, "tokens": 123456789012})
    out.close()
    file, whole = tmp_path / "metrics.jsonl", read_metrics(tmp_path)
    assert whole == [{"step": 1, "train/loss": 2.0, "time/unix": 1764450123.457, "tokens": 123456789012}]
    damaged = (
        b"\xff{}",
        b"5",
        b"{}",
        b'{"step": null}',
        b'{"step": "1"}',
        b'{"step": 1, "a": "b"}',
        b"[" * 10**5,
        b"null",
    )
    for line in damaged:
        file.write_bytes(file.read_bytes() + line + b"\n")
    file.write_bytes(file.read_bytes() + b'{"step": 2, "train/lo')  # the line a crash cut off
    assert read_metrics(tmp_path) == whole
    evaluation = loggers(tmp_path, resume_step=None)  # begins a line of its own
    evaluation.scalars(1, {"eval/task/loss": 1.0})
    evaluation.close()
    assert read_metrics(tmp_path) == [*whole, {"step": 1, "eval/task/loss": 1.0}]
    assert capsys.readouterr().err == ""
    loggers(tmp_path, resume_step=1).close()
    assert "metrics.jsonl: 9 corrupted line(s) are dropped" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 1]


def test_an_evaluation_adds_to_a_run_that_goes_on(tmp_path):
    """`t5x-lite eval` beside a running `train`: neither loses a line of the other."""
    run = loggers(tmp_path)
    run.scalars(50, {"train/loss": 2.0})
    evaluation = loggers(tmp_path, resume_step=None)
    evaluation.scalars(25, {"eval/task/loss": 1.0})
    evaluation.close()
    run.scalars(75, {"train/loss": 3.7e-7})
    run.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [50, 25, 75]
    assert read_metrics(tmp_path)[-1]["train/loss"] == 3.7e-7  # small values keep all digits


def test_only_the_first_process_writes(tmp_path):
    out = Loggers(tmp_path, "run", config.base().to_dict(), 0, active=False)
    out.scalars(1, {"train/loss": 1.0})
    out.close()
    assert list(tmp_path.iterdir()) == []


TALKS = """
import sys
from t5x_lite import console
from t5x_lite.reports.terminal import Terminal
sys.stdin.readline()  # the console is gone
terminal = Terminal(10, 0)
for step in range(3):
    terminal.line(f"step {step}")
    console.tell("careful")
terminal.close()
console.tell("ends")
sys.exit(75)
"""


def test_a_run_goes_on_without_its_console():
    process = subprocess.Popen(
        [sys.executable, "-c", TALKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin and process.stdout
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 75
    if (device := Path("/dev/full")).exists():
        with device.open("w") as full:
            done = subprocess.run([sys.executable, "-c", TALKS], stdin=subprocess.DEVNULL, stdout=full, stderr=full)
        assert done.returncode == 75


@pytest.mark.parametrize(("verb", "code"), [("tasks", 0), ("train", 70)])
def test_a_broken_pipe_ends_a_list_well_and_nothing_else(verb, code, monkeypatch, capsys):
    broken = mock.Mock(side_effect=BrokenPipeError)  # a function of this file would count as the user's own code
    monkeypatch.setattr(*((inspect, "print_tasks") if verb == "tasks" else (config, "load")), broken)
    assert cli.run([verb, *(["--config=c.py", "--workdir=w"] if verb == "train" else [])]) == code
    assert ("BrokenPipeError" in capsys.readouterr().err) == (code == 70)
