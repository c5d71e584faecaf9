"""Implements the verb `sweep`: trains on this machine with the many settings that a file in wandb's format lists.

A point is one choice of values for all parameters. It has its own workdir under `--output`, named by a
hash of its settings. After a kill, the same command runs the points that are not done; an interrupted point resumes
from its newest checkpoint.
"""

import ctypes
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from t5x_lite import atomic, console
from t5x_lite.cluster import lock
from t5x_lite.errors import RESTART_ME, ConfigError, writing
from t5x_lite.lookup import lookup, unknown
from t5x_lite.redaction import has_secret
from t5x_lite.reports import sweep_page
from t5x_lite.reports.results import read_metrics
from t5x_lite.reports.sweep_page import SWEEP_EXIT

if TYPE_CHECKING:
    import numpy as np

SEED = "config.seed"  # points that differ only in this parameter share a row of the table
KEYS = ("command", "description", "method", "metric", "name", "parameters", "program", "project", "entity", "run_cap")
POLL_S = 0.2
MOST_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, as YAML 1.2 and JSON do. For PyYAML, which follows YAML 1.1, it is a text: it has no
    point."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep file, checked."""

    command: tuple[str, ...]
    points: tuple[dict[str, Any], ...]
    metric: str
    maximize: bool


def run(file: Path, output: Path, jobs: int, point: int | None, only_print: bool) -> int:
    """Runs every point that is not done, `jobs` at a time. Writes `output`/sweep.html and returns the exit status.

    point: the number of the only point to run (for a Slurm array); None: all.
    only_print: run nothing, and print the commands that run the sweep elsewhere.
    Raises ConfigError for an invalid sweep file, a point out of range, or a program that is not installed.
    """
    sweep = read(file)
    terminal = console.plain(soft_wrap=True)
    if only_print:
        for line in equivalents(file, output, len(sweep.points), jobs):
            terminal.print(line)
        return 0
    if point is not None and not 0 <= point < len(sweep.points):
        raise ConfigError(f"--point={point}: must be 0 to {len(sweep.points) - 1}")
    chosen = sweep.points if point is None else sweep.points[point : point + 1]
    if shutil.which(sweep.command[0]) is None:
        raise ConfigError(f"{file}: program {sweep.command[0]!r} does not exist; install it or correct its path")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    waiting = [p for p in chosen if not _is_done(output / run_id(p))]
    terminal.print(f"{len(chosen)} points, {len(chosen) - len(waiting)} of them done; {jobs} at a time")
    failed = _run_all(sweep, waiting, output, jobs, terminal)
    rows = collect(sweep, output)
    _print(sweep.metric, rows, terminal)
    page = sweep_page.page(file.stem, sweep.metric, sweep.maximize, rows, len(sweep.points))
    atomic.write_output(output / "sweep.html", page)
    terminal.print(f"see {output / 'sweep.html'}")
    return failed


def read(file: Path) -> Sweep:
    """Reads a sweep from a YAML file. Raises ConfigError if it breaks wandb's format or uses a feature that we lack."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{file} is longer than {MOST_BYTES:,} bytes; give the YAML file of a sweep")
        content = _Loader(file.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters"), dict):
        raise ConfigError(f"{file} has no parameters; write `parameters: {{…}}` as in wandb's documentation of sweeps")
    for key in content:
        if key not in KEYS:
            raise ConfigError(f"{file}: " + unknown("key", key, KEYS))
    metric = content.get("metric")
    goal = metric.get("goal", "minimize") if isinstance(metric, dict) else None
    if not isinstance(metric, dict) or "name" not in metric or goal not in ("minimize", "maximize"):
        raise ConfigError(f"{file}: metric={metric!r}; write `metric: {{name: eval/TASK/METRIC, goal: maximize}}`")
    make = lookup("method", str(content.get("method", "")), {"grid": _grid, "random": _random})
    command = content.get("command") or ()
    if not any("$WANDB_RUN_ID" in str(part) for part in command) or "${args}" not in command:
        raise ConfigError(
            f"{file}: command={list(command)}; it needs ${{args}} and a separate workdir for each point: "
            "[t5x-lite, train, --config=FILE.py, --workdir=runs/sweep/$WANDB_RUN_ID, ${args}]"
        )
    cap = content.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise ConfigError(f"{file}: run_cap={cap!r}: must be the number of points to run, 1 or more")
    points = {run_id(point): point for point in make(content["parameters"], cap)}  # a point drawn twice runs once
    program = str(content.get("program", "t5x-lite"))
    parts = {"${program}": [program], "${interpreter}": ["python"], "${env}": ["/usr/bin/env"]}
    flat = [one for part in command for one in parts.get(str(part), [str(part)])]
    return Sweep(tuple(flat), tuple(points.values()), str(metric["name"]), goal == "maximize")


def run_id(point: dict[str, Any]) -> str:
    """Returns a hash of a point's settings. It is the name of the point's workdir and of its run in wandb."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]


# Points ---------------------------------------------------------------------------------------------------------------


def _grid(parameters: dict[str, Any], run_cap: int | None) -> list[dict[str, Any]]:
    """Returns the combinations of all values, at most `run_cap`."""
    choices = {}
    for name, given in parameters.items():
        given = _checked(name, given)
        if not {"value", "values"} & given.keys():
            raise ConfigError(f"parameter {name!r}: {given}; with method: grid, write value or values")
        choices[name] = given.get("values", [given.get("value")])
    points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return points[:run_cap]


def _random(parameters: dict[str, Any], run_cap: int | None) -> list[dict[str, Any]]:
    """Returns `run_cap` random points, the same ones every time."""
    if not run_cap:
        raise ConfigError("method: random needs run_cap; set it to the number of points")
    import numpy as np

    rng = np.random.default_rng(0)
    given = {name: _checked(name, parameters[name]) for name in parameters}
    return [{name: _draw(name, given[name], rng) for name in given} for _ in range(run_cap)]


def _draw(name: str, given: dict[str, Any], rng: "np.random.Generator") -> Any:
    if "value" in given:
        return given["value"]
    if "values" in given:
        try:
            return given["values"][int(rng.choice(len(given["values"]), p=given.get("probabilities")))]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"parameter {name!r}: probabilities={given['probabilities']!r}; {error}") from error
    low, high = given.get("min"), given.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = given.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "normal":
        return float(rng.normal(given.get("mu", 0.0), given.get("sigma", 1.0)))
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low > high:
        raise ConfigError(f"parameter {name!r}: {given}; write value, values, or min and max")
    if kind == "int_uniform":
        return int(rng.integers(int(low), int(high) + 1))
    if kind == "uniform":
        return float(f"{rng.uniform(low, high):.6g}")
    if kind == "log_uniform_values" and low <= 0:
        raise ConfigError(f"parameter {name!r}: min={low}: must be above 0 for log_uniform_values")
    if kind == "log_uniform_values":
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.6g}")
    allowed = ("int_uniform", "uniform", "log_uniform_values", "normal")
    raise ConfigError(f"parameter {name!r}, min={low}: " + unknown("distribution", kind, allowed))


def _checked(name: str, given: Any) -> dict[str, Any]:
    if not re.fullmatch(r"config\.[\w.]+", str(name)):
        raise ConfigError(f"parameter {name!r} is not a config key; write for example config.optimizer.learning_rate")
    if not isinstance(given, dict) or (
        "values" in given and not (isinstance(given["values"], list) and given["values"])
    ):
        raise ConfigError(f"parameter {name!r}: {given!r}; write value: X, values: [X, …], or min: X and max: Y")
    if has_secret(str(given)):
        raise ConfigError(f"parameter {name!r} holds a password or token; give it as an environment variable")
    return given


# Running --------------------------------------------------------------------------------------------------------------


def _run_all(sweep: Sweep, waiting: Sequence[dict], output: Path, jobs: int, terminal: Console) -> int:
    """Runs the points. Returns the exit status of the first point that fails, or 0 if none does.

    Passes SIGINT and SIGTERM on to the points, which save and stop. In this case, returns RESTART_ME.
    """
    queue, running, failed = list(waiting), {}, 0
    asked = False

    def stop(number: int, frame) -> None:
        nonlocal asked
        asked = True
        for process in running:
            process.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while (queue and not asked) or running:
            while queue and len(running) < jobs and not asked:
                point = queue.pop(0)
                process = _start(sweep, point, output)
                running[process] = point
                if asked:  # the signal came while the point was starting
                    process.send_signal(signal.SIGTERM)
                terminal.print(f"{run_id(point)}  {sweep_page.settings_text(point)}")
            time.sleep(POLL_S)
            for process in [p for p in running if p.poll() is not None]:
                point = running.pop(process)
                workdir = output / run_id(point)
                atomic.write_output(workdir / SWEEP_EXIT, str(process.returncode))
                if process.returncode:
                    failed = failed or process.returncode
                    terminal.print(f"{workdir.name}  exit {process.returncode}; see {workdir / 'output.txt'}")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return RESTART_ME if asked else abs(failed)


def _start(sweep: Sweep, point: dict[str, Any], output: Path) -> subprocess.Popen:
    workdir = output / run_id(point)
    again = {lock.AGAIN: "1"} if workdir.exists() else {}  # if a sweep was killed, its point may still be saving there
    with writing(workdir):
        workdir.mkdir(exist_ok=True)
        log = (workdir / "output.txt").open("ab")
    arguments = [f"--{name}={value}" for name, value in point.items()]
    command = [one for part in sweep.command for one in (arguments if part == "${args}" else [part])]
    command = [part.replace("$WANDB_RUN_ID", workdir.name) for part in command]
    command = [f"--workdir={workdir}" if part.startswith("--workdir=") else part for part in command]
    with log:
        return subprocess.Popen(
            command,
            env=os.environ | again,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so Ctrl-C reaches a point only through the sweep, once
            preexec_fn=functools.partial(_end_with, os.getpid()) if sys.platform == "linux" else None,
        )


def _end_with(sweep_pid: int) -> None:
    """Makes the kernel send SIGTERM to this point if the sweep is killed, so that the point saves and stops."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != sweep_pid:  # the sweep was killed before this call
        os._exit(1)


def _is_done(workdir: Path) -> bool:
    return (workdir / SWEEP_EXIT).is_file() and (workdir / SWEEP_EXIT).read_text() == "0"


def equivalents(file: Path, output: Path, points: int, jobs: int) -> list[str]:
    """Returns the commands that run the same sweep with wandb's agents, and those that run it as a Slurm array."""
    one = f"t5x-lite sweep {shlex.quote(str(file))} --output={shlex.quote(str(output))} --point=$SLURM_ARRAY_TASK_ID"
    return [
        "# wandb: the first command prints the SWEEP_ID; start an agent on each machine",
        f"wandb sweep {shlex.quote(str(file))}",
        "wandb agent SWEEP_ID",
        "# Slurm: afterwards, run the same command without --point to collect the results",
        f"sbatch --array=0-{points - 1}%{jobs} --requeue --wrap={shlex.quote(one)}",
    ]


# Results --------------------------------------------------------------------------------------------------------------


def collect(sweep: Sweep, output: Path) -> list[dict[str, Any]]:
    """Returns one row per setting, best first: {"point", "values", "mean", "sd", "runs"}.

    values: for each seed, the last value of the metric. mean, sd: over the seeds; None if there are too few values.
    """
    groups: dict[str, dict[str, Any]] = {}
    for point in sweep.points:
        setting = {name: value for name, value in point.items() if name != SEED}
        row = groups.setdefault(json.dumps(setting), {"point": setting, "values": [], "runs": []})
        values = [r[sweep.metric] for r in read_metrics(output / run_id(point)) if sweep.metric in r]
        if values:
            row["values"].append(values[-1])
            row["runs"].append(run_id(point))
    for row in groups.values():
        values = row["values"]
        row["mean"] = statistics.fmean(values) if values else None
        row["sd"] = statistics.stdev(values) if len(values) > 1 else None
    sign = -1 if sweep.maximize else 1
    return sorted(groups.values(), key=lambda row: math.inf if row["mean"] is None else sign * row["mean"])


def _print(metric: str, rows: list[dict[str, Any]], terminal: Console) -> None:
    names = sweep_page.varying(rows)
    table = Table(title=metric, title_justify="left")
    for name in (*map(sweep_page.short_name, names), "mean", "sd", "runs"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = sweep_page.number_text(row["mean"]), sweep_page.number_text(row["sd"])
        table.add_row(*(str(row["point"][name]) for name in names), *numbers, str(len(row["runs"])))
    terminal.print(table)
    terminal.print(sweep_page.common_settings(rows))
