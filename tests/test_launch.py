"""Launch scripts: the exact command of each, and when a run is restarted."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from waiting import wait_until

LAUNCH = Path(__file__).parents[1] / "launch"
TRAIN = ("train", "--config=configs/quickstart.py", "--workdir=/data/run", "--config.name=a b")
CASES = {
    "local": (("local.sh", "--dry-run", "2"), {"PORT": "12355"}),
    "local_gpus": (("local.sh", "--dry-run", "2"), {"PORT": "12355", "GPUS": "8"}),
    "slurm": (("slurm.sh", "--dry-run", "4"), {"SBATCH_FLAGS": "--time=24:00:00 --gpus-per-node=8"}),
    "tpu_vm": (("tpu_vm.sh", "--dry-run", "bert", "v5litepod-16"), {"ZONE": "us-west4-a", "PROJECT": "lab"}),
    "gke": (
        ("gke.sh", "--dry-run", "bert", "4"),
        {"IMAGE": "lab/t5x-lite", "VOLUME": "runs", "TPU": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4"},
    ),
    "restart": (("restart.sh", "--dry-run", "launch/local.sh", "2"), {}),
}


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [str(LAUNCH / script), *arguments], env=clean | environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_what_a_run_would_do(case):
    (script, *arguments), environment = CASES[case]
    done = launch(script, *arguments, *TRAIN, **environment)
    assert done.returncode == 0, done.stderr
    golden = Path(__file__).parent / "golden" / f"launch_{case}.txt"
    assert done.stdout == golden.read_text(), f"if it is meant so, write it to {golden}"
    assert "train --config=configs/quickstart.py --workdir=/data/run" in done.stdout.replace('", "', " ").replace(
        "\\", ""
    )


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_vm.sh", "gke.sh", "restart.sh"])
def test_a_script_called_wrongly_says_how(script):
    done = launch(script, "--nonsense")
    assert done.returncode == 2 and f"launch/{script} [--dry-run]" in done.stderr


def test_every_script_is_listed_here():
    assert {f.name for f in LAUNCH.iterdir()} == {case[0][0] for case in CASES.values()} | {"Containerfile"}


def test_a_run_is_started_again_while_it_helps(tmp_path):
    """Interrupted twice with a newer checkpoint each time, then killed without one: starts three times, not more."""
    run = tmp_path / "run.sh"
    run.write_text(
        'n=$(cat "$1/n" 2>/dev/null || echo 0); n=$((n + 1)); echo $n > "$1/n"\n'
        'if ((n <= 2)); then mkdir -p "$1/checkpoints/$n"; exit 75; fi\nkill -9 $$\n'
    )
    command = ("bash", str(run), str(tmp_path), f"--workdir={tmp_path}")
    done = launch("restart.sh", *command)
    assert done.returncode == 137 and (tmp_path / "n").read_text() == "6\n"
    assert "3 restarts left no newer checkpoint" in done.stderr
    for status in (0, 2, 65, 70, 74, 76):
        assert launch("restart.sh", "bash", "-c", f"exit {status}", f"--workdir={tmp_path}").returncode == status


def test_a_signal_between_two_runs_is_not_forgotten(tmp_path):
    """The signal comes while the launcher looks for the newest checkpoint and no run can receive it."""
    (tmp_path / "bin").mkdir()
    find = tmp_path / "bin" / "find"
    find.write_text(f"#!/bin/sh\ntouch {tmp_path}/looking; while [ ! -e {tmp_path}/asked ]; do sleep 0.02; done\n")
    find.chmod(0o755)
    command = [str(LAUNCH / "restart.sh"), "bash", "-c", f"touch {tmp_path}/ran", f"--workdir={tmp_path}"]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(command, env=os.environ | {"PATH": path}, start_new_session=True)
    wait_until((tmp_path / "looking").exists, process)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "asked").touch()
    assert process.wait(timeout=30) == 75
    assert not (tmp_path / "ran").exists()


def test_the_first_failure_is_the_launchers_and_takes_the_others_with_it(tmp_path):
    program = tmp_path / "program.sh"
    program.write_text("#!/bin/bash\nif [[ $JAX_PROCESS_ID == 1 ]]; then exit 65; fi\nexec sleep 600\n")
    program.chmod(0o755)
    done = launch("local.sh", "2", "train", "--workdir=x", T5X_LITE=str(program), GRACE_S="0.2")
    assert done.returncode == 65


@pytest.mark.parametrize("launcher", [["local.sh"], ["restart.sh", "launch/local.sh"]])
def test_a_signal_to_the_launcher_is_one_to_each_process_which_it_waits_for(tmp_path, launcher):
    program = tmp_path / "program.sh"
    program.write_text(
        f'#!/bin/bash\ncd {tmp_path}\ntrap "sleep 0.3; touch stopped.$JAX_PROCESS_ID; exit 75" TERM\n'
        "touch started.$JAX_PROCESS_ID\nwhile true; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    process = subprocess.Popen(
        [LAUNCH / launcher[0], *launcher[1:], "2", "train", f"--workdir={tmp_path}"],
        env=os.environ | {"T5X_LITE": str(program), "GRACE_S": "5"},
        cwd=LAUNCH.parent,
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: len(list(tmp_path.glob("started.*"))) == 2, process)
    process.terminate()
    assert process.wait(timeout=30) == 75
    assert len(list(tmp_path.glob("stopped.*"))) == 2
