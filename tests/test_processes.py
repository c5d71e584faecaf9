"""Two real processes with 4 devices each, started by launch/local.sh: same run as on one, and either can stop it."""

import contextlib
import functools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from waiting import wait_until

from t5x_lite import cli, runtime
from t5x_lite.cluster import processes, rendezvous
from t5x_lite.data.pipeline import TrainBatches
from t5x_lite.errors import INTERNAL, DataError, LostProcessError

TESTS = Path(__file__).parent
CONFIG = f"--config={TESTS / 'experiments' / 'tiny.py'}:bert_tiny"
LOCAL = TESTS.parent / "launch" / "local.sh"
FLAGS = ("--config.model.num_heads=8", "--config.model.head_dim=4", "--config.model.num_encoder_layers=1")
FLAGS += ("--config.eval.untrained=false", "--config.eval.max_examples=10")
FLAGS += ("--config.eval.every_steps=0", "--config.checkpoint.every_steps=1000", "--config.train.grace_s=200")


STEPS = 20


def two(workdir: Path, log: Path, *flags: str, **environment: str) -> subprocess.Popen:
    return started(["train", CONFIG, f"--workdir={workdir}", *FLAGS, *flags], log, **environment)


def started(command: list[str], log: Path, **environment: str) -> subprocess.Popen:
    program = shlex.join([sys.executable, str(TESTS / "run_recording_batches.py")])
    return subprocess.Popen(
        [str(LOCAL), "2", *command],
        env=os.environ
        | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
        | {"T5X_LITE": program, "BATCH_LOG": str(log)}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def when_trained(process: subprocess.Popen, log: Path, batches: int) -> None:
    """Waits until the last process has taken this many batches."""
    wait_until(lambda: len(lines(log)) >= batches, process)


def losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return [loss for _, loss in found]


def saved(workdir: Path) -> list[int]:
    return sorted(int(d.name) for d in (workdir / "checkpoints").iterdir())


@pytest.fixture
def rows_of_one(monkeypatch):
    """Yields the digests of the rows that runs in this process train on, one line per batch."""
    import hashlib

    following, found = TrainBatches.__next__, []

    def recorded(self):
        batch = following(self)
        names = sorted(batch)
        rows = range(len(batch[names[0]]))
        digest = [hashlib.sha256(b"".join(n.encode() + batch[n][r].tobytes() for n in names)).hexdigest() for r in rows]
        found.append(" ".join(digest))
        return batch

    monkeypatch.setattr(TrainBatches, "__next__", recorded)
    return found


@pytest.mark.slow
def test_two_processes_are_one_run_and_stop_together(tmp_path, rows_of_one, capsys):
    """Runs FSDP × tensor on two processes until one gets SIGTERM, resumes on one process, then on two with the tensor
    axis over both. Rows, their places and losses equal an uninterrupted run on one process."""
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    run = ["train", CONFIG, *FLAGS, f"--config.train.total_steps={STEPS}"]
    assert cli.run([*run, f"--workdir={whole}"]) == 0
    expected = rows_of_one[:STEPS]
    rows_of_one.clear()

    first = two(parts, log, "--config.mesh=fsdp=4,tensor=2", "--config.train.total_steps=1000")
    when_trained(first, Path(f"{log}1"), 3)
    os.kill(children(first)[1], signal.SIGTERM)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 75, output
    (stopped,) = saved(parts)
    assert f"stopped and saved at step {stopped}" in output and 3 <= stopped < STEPS - 2
    halves = [lines(Path(f"{log}{process}"))[:stopped] for process in (0, 1)]
    assert [" ".join(both) for both in zip(*halves, strict=True)] == expected[:stopped]

    until = stopped + 2
    flags = ["--config.mesh=data=4,tensor=2", f"--config.train.total_steps={until}"]
    assert cli.run([*run, f"--workdir={parts}", *flags]) == 0
    assert f"resuming {parts} at step {stopped}" in capsys.readouterr().out
    assert rows_of_one[: until - stopped] == expected[stopped:until]

    for process in (0, 1):
        Path(f"{log}{process}").unlink()
    last = two(parts, log, "--config.mesh=tensor=8", f"--config.train.total_steps={STEPS}")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    for process in (0, 1):
        assert lines(Path(f"{log}{process}"))[: STEPS - until] == expected[until:]
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-6)
    predictions = [
        [json.loads(row) for row in lines(workdir / "predictions" / f"step_{STEPS}" / "tiny_animal.jsonl")]
        for workdir in (parts, whole)
    ]
    assert [row["index"] for row in predictions[0]] == list(range(10))
    assert [r["prediction"] for r in predictions[0]] == [r["prediction"] for r in predictions[1]]

    source, outputs = tmp_path / "in.txt", [tmp_path / "two.jsonl", tmp_path / "one.jsonl"]
    source.write_text("".join(f"animal: the {'red ' * (n % 4)}cat\n" for n in range(45)))  # the last chunk has 13
    infer = ["infer", CONFIG, f"--workdir={whole}", f"--input={source}"]
    both = started([*infer, f"--output={outputs[0]}"], log)
    output, _ = both.communicate(timeout=300)
    assert both.returncode == 0, output
    assert cli.run([*infer, f"--output={outputs[1]}"]) == 0
    from_two, from_one = ([json.loads(line) for line in lines(path)] for path in outputs)
    assert len(from_two) == 45 and [row.pop("score") for row in from_two] == pytest.approx(
        [row.pop("score") for row in from_one], abs=2e-5
    )
    assert from_two == from_one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pair_of(program: str) -> list[subprocess.Popen]:
    """Starts two processes of one run, each with this program."""
    both = os.environ | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    both["XLA_FLAGS"] = both["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    return [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=both | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]


def meet(port: int, number: int, process: int, timeout_s: float, said: list) -> threading.Thread:
    def come():
        try:
            rendezvous.wait(f"127.0.0.1:{port}", number, process, timeout_s)
            said.append("met")
        except LostProcessError as error:
            said.append(str(error))

    thread = threading.Thread(target=come)
    thread.start()
    return thread


def test_processes_meet_in_any_order_and_strangers_do_not_count():
    port, said = free_port(), []
    early = meet(port, 3, 2, 60, said)
    first = meet(port, 3, 0, 60, said)
    for content in (b"GET / HTTP/1.1", b""):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(content)
    assert early.is_alive() and first.is_alive()
    for thread in (meet(port, 3, 1, 60, said), early, first):
        thread.join(60)
    assert said == ["met"] * 3


def test_who_is_missing_at_the_start_is_named(monkeypatch):
    port, said = free_port(), []
    for thread in (meet(port, 4, 0, 0.5, said), meet(port, 4, 2, 0.5, said)):
        thread.join(60)
    assert sorted(said)[0].startswith("of 4 processes, 1, 3 did not connect within 0 s")
    assert sorted(said)[1].startswith(f"process 2 did not reach all processes at 127.0.0.1:{port}")
    with socket.create_server(("", port)):
        meet(port, 2, 0, 0.5, said).join(60)
    assert f"process 0 cannot listen on port {port}: Address already in use" in said[-1]


ONE_FAILS = """
import os
from t5x_lite.cluster import processes
from t5x_lite.errors import DataError
def fails(there):
    if os.environ["JAX_PROCESS_ID"] == there:
        raise DataError("a bad row") if there == "1" else OSError(28, "full")
    return 5
with processes.joined():
    for do in (lambda: processes.on_each(lambda: fails("1")), lambda: processes.on_first(lambda: fails("0"))):
        try:
            do()
        except Exception as error:
            print("->", getattr(error, "exit_code", None), error)
    print("->", processes.on_each(lambda: fails("2")), processes.on_first(lambda: [6]))
"""


@pytest.mark.slow
def test_what_fails_on_one_process_fails_on_all_and_they_go_on_together():
    pair = pair_of(ONE_FAILS)
    outputs = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    # XLA, Gloo and the coordinator may say something too
    first, second = ([line for line in output.splitlines() if line.startswith("->")] for output in outputs)
    assert first == ["-> 65 a bad row", "-> None [Errno 28] full", "-> 5 [6]"], outputs
    assert second == ["-> 65 a bad row", "-> 70 OSError: [Errno 28] full (on another process)", "-> 5 [6]"], outputs


JOINED = """
import os, sys, time
from t5x_lite.cluster import processes
processes.HEARTBEAT_S = 5
with processes.joined():
    print("joined", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_run_that_changes_its_devices_at_every_stop_is_the_run_that_never_did(tmp_path, rows_of_one, monkeypatch):
    """Seven topologies, three steps on each: the rows, their places and the losses are the same."""
    topologies = [(8, "data=8"), (1, ""), (2, "fsdp=2"), (4, "data=4"), (8, "data=4,tensor=2"), (8, "fsdp=2,tensor=4")]
    topologies += [(8, "fsdp=4,sequence=2")]
    start, following, steps = runtime.start, TrainBatches.__next__, 3 * len(topologies)
    run = ["train", CONFIG, *FLAGS, f"--config.train.total_steps={steps}", "--config.data.prefetch_batches=0"]
    assert cli.run([*run, f"--workdir={tmp_path / 'whole'}", "--config.mesh=fsdp=8"]) == 0
    expected, taken = rows_of_one[:steps], 0
    rows_of_one.clear()

    def stopping(self):
        nonlocal taken
        taken += 1
        if taken % 3 == 0 and taken < steps:
            signal.raise_signal(signal.SIGTERM)
        return following(self)

    monkeypatch.setattr(TrainBatches, "__next__", stopping)
    for number, (count, mesh) in enumerate(topologies):
        monkeypatch.setattr(runtime, "start", functools.partial(start, devices=jax.devices()[:count]))
        code = cli.run([*run, f"--workdir={tmp_path / 'parts'}", f"--config.mesh={mesh}"])
        assert code == (0 if number == len(topologies) - 1 else 75)
        assert saved(tmp_path / "parts")[-1] == 3 * (number + 1)
    assert rows_of_one[:steps] == expected
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_when_one_process_dies_or_freezes_the_other_ends_and_says_so(victim, number):
    pair = pair_of(JOINED)
    for process in pair:
        assert process.stdout and process.stdout.readline() == "joined\n"
    pair[victim].send_signal(number)
    output, _ = pair[1 - victim].communicate(timeout=60)  # jax's own heartbeat would take 100 s to miss
    pair[victim].kill()
    pair[victim].communicate()
    assert pair[1 - victim].returncode == 75, output
    assert "lost another process" in output


DIES = """
import os, signal, sys
from t5x_lite import cli
from t5x_lite.cluster import processes
from {module} import {kind}
processes.HEARTBEAT_S = 5
plain, calls = {kind}.{method}, []
def dies(self, *arguments, **options):
    calls.append(1)
    if os.environ["JAX_PROCESS_ID"] == "{victim}" and len(calls) == {call}:
        print("dies", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, *arguments, **options)
{kind}.{method} = dies
sys.exit(cli.run({command}))
"""
MOMENTS = {  # module, class, method, the victim, and which of its calls
    "training": ("t5x_lite.data.pipeline", "TrainBatches", "__next__", 1, 4),
    "evaluation": ("t5x_lite.evaluation.predict", "Predictor", "predict", 1, 1),
    "save": ("t5x_lite.checkpoints.checkpoint", "Checkpoints", "save", 1, 1),
    "mirror": ("t5x_lite.checkpoints.mirror", "Mirror", "push", 0, 1),
    "infer": ("t5x_lite.evaluation.predict", "Predictor", "predict", 1, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_one_process_is_killed_the_other_ends_with_75(tmp_path, moment):
    module, kind, method, victim, call = MOMENTS[moment]
    flags = [CONFIG, f"--workdir={tmp_path / 'run'}", *FLAGS, "--config.train.total_steps=6"]
    command = ["train", *flags, "--config.checkpoint.every_steps=3", "--config.eval.every_steps=2"]
    if moment == "mirror":
        command.append(f"--config.checkpoint.mirror={tmp_path / 'mirror'}")
    if moment == "infer":
        assert cli.run(["train", *flags]) == 0
        (tmp_path / "in.jsonl").write_text('{"inputs": "animal: the cat"}\n' * 40)
        command = ["infer", f"--workdir={tmp_path / 'run'}", f"--input={tmp_path / 'in.jsonl'}"]
        command += [f"--output={tmp_path / 'out.jsonl'}", CONFIG]
    program = DIES.format(module=module, kind=kind, method=method, victim=victim, call=call, command=command)
    pair = pair_of(program)
    died, _ = pair[victim].communicate(timeout=300)
    assert pair[victim].returncode == -signal.SIGKILL and "dies" in died, died
    output, _ = pair[1 - victim].communicate(timeout=60)
    assert pair[1 - victim].returncode == 75, output
    assert "lost another process" in output and "Traceback" not in output, output


def test_only_what_speaks_of_other_processes_is_a_lost_one(monkeypatch):
    """Told by what `joined` raises, and by the status it has the process leave with."""
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.atexit, "register", lambda leave, code: left.append(code))
    left: list[int] = []

    def raised(error: Exception) -> Exception:
        with pytest.raises(Exception) as caught, processes.joined():
            raise error
        return caught.value

    for text, code in (
        ("FAILED_PRECONDITION: Buffer Definition Event: Gloo all-reduce failed: Connection closed by peer", 75),
        ("UNAVAILABLE: failed to connect to all addresses", 75),
        ("ABORTED: The following tasks are unhealthy (stopped sending heartbeats)", 75),
        ("INTERNAL: NCCL operation ncclAllReduce failed", 75),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", 70),
    ):
        assert getattr(raised(jax.errors.JaxRuntimeError(text)), "exit_code", None) == left[-1] == code, text
    lost = ValueError("UNKNOWN: Gloo all-gather failed: Connection reset by peer")  # as gather and put_batch raise it
    assert getattr(raised(lost), "exit_code", None) == left[-1] == 75
    bug = jax.errors.JaxRuntimeError("INTERNAL: CpuCallback error: ZeroDivisionError")
    for other in (bug, ValueError("Connection"), ValueError("Gloomy"), KeyError("NCCL"), DataError("label 'Gloo'")):
        assert raised(other) is other and left[-1] == getattr(other, "exit_code", INTERNAL)


@pytest.mark.slow
def test_a_hung_process_ends_and_says_where_it_hung(tmp_path):
    process = two(tmp_path / "run", tmp_path / "log", "--config.train.hang_s=8", HANG_AT="4")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert "no progress for" in output and "(train.hang_s) after step" in output
    assert "run_recording_batches.py" in output and "in recorded" in output  # the stacks


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=8", "tensor=8"])
def test_two_processes_read_the_documents_of_one(tmp_path, mesh):
    """Each process reads half of a step's documents, or all of them; metrics.jsonl has the hash of all."""
    flags = ["--config.data.mixture=tiny_corpus", "--config.data.batch_rows=32", "--config.data.documents_per_step=8"]
    flags.append("--config.train.total_steps=3")
    assert cli.run(["train", CONFIG, *FLAGS, *flags, f"--workdir={tmp_path / 'one'}"]) == 0
    process = two(tmp_path / "two", tmp_path / "log", *flags, f"--config.mesh={mesh}")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    found = []
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found.append(
            [(row["step"], row["documents/count"], row["documents/hash"]) for row in rows if "documents/hash" in row]
        )
    assert found[0] == found[1] and [(step, count) for step, count, _ in found[0]] == [(1, 8), (2, 8), (3, 8)]
