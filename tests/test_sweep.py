"""Sweeps of a cheap program: the points, what a kill leaves, and the table and page."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from t5x_lite import cli, config, sweep
from t5x_lite.errors import ConfigError
from t5x_lite.reports import compare

SWEEP = """
program: {program}
method: grid
metric: {{name: eval/t/accuracy, goal: maximize}}
parameters:
  config.optimizer.learning_rate: {{values: [0.001, 0.01, 0.1]}}
  config.model.preset: {{values: [a, b]}}
  config.seed: {{values: [0, 1]}}
command: ["${{program}}", train, --workdir=runs/$WANDB_RUN_ID, "${{args}}"]
"""
# Each run records its start; its score is better the nearer its learning rate is to 0.01. While there is a file `hold`,
# runs after the first six wait.
PROGRAM = """#!{python}
import json, pathlib, sys, time
given = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[2:])
workdir = pathlib.Path(given["workdir"])
with open(workdir.parent / "starts", "a") as starts:
    starts.write(workdir.name + "\\n")
while (workdir.parent / "hold").exists() and len((workdir.parent / "starts").read_text().splitlines()) > 6:
    time.sleep(0.02)
value = {{"0.001": 50, "0.01": 70, "0.1": 20}}[given["config.optimizer.learning_rate"]] + 2 * int(given["config.seed"])
(workdir / "metrics.jsonl").write_text(json.dumps({{"step": 5, "eval/t/accuracy": value}}) + "\\n")
"""


@pytest.fixture
def file(tmp_path):
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.format(program=program))
    return path


def test_a_killed_sweep_goes_on_and_ends_with_its_table_and_page(file, tmp_path, capsys):
    output, starts = tmp_path / "out", tmp_path / "out" / "starts"
    command = [sys.executable, "-m", "t5x_lite.cli", "sweep", str(file), f"--output={output}", "--jobs=2"]
    output.mkdir()
    (output / "hold").touch()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(output.glob("*/sweep_exit.txt"))) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (output / "hold").unlink()
    done = {f.parent.name for f in output.glob("*/sweep_exit.txt") if f.read_text() == "0"}
    starts.unlink()
    assert cli.run(["sweep", str(file), f"--output={output}", "--jobs=4"]) == 0
    again = starts.read_text().splitlines()
    assert 4 <= len(done) <= 6 and len(again) == 12 - len(done) and not done & set(again)
    rows = sweep.collect(sweep.read(file), output)
    assert [(row["point"]["config.optimizer.learning_rate"], row["mean"]) for row in rows] == [
        (0.01, 71.0), (0.01, 71.0), (0.001, 51.0), (0.001, 51.0), (0.1, 21.0), (0.1, 21.0)
    ]  # fmt: skip
    assert all(row["sd"] == pytest.approx(2**0.5) and len(row["runs"]) == 2 for row in rows)
    page = (output / "sweep.html").read_text()
    assert page.count("<path ") == 6 and "71 ± 1.41" in page and "http" not in page
    assert "12 points, 0" not in capsys.readouterr().out
    assert cli.run(["sweep", str(file), f"--output={output}", "--point=12"]) == 2
    assert cli.run(["sweep", str(file), f"--output={output}", "--print"]) == 0
    printed = capsys.readouterr().out
    assert f"wandb sweep {file}" in printed and "sbatch --array=0-11%1" in printed


def test_a_signal_is_passed_on(file, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/bash\ntrap 'exit 75' TERM\ntouch started\nwhile true; do sleep 0.05; done\n")
    command = [sys.executable, "-m", "t5x_lite.cli", "sweep", str(file), f"--output={tmp_path / 'out'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)
    wait_until((tmp_path / "started").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert [f.read_text() for f in (tmp_path / "out").glob("*/sweep_exit.txt")] == ["75"]


def test_random_points_are_the_same_at_every_start(file):
    text = file.read_text().replace("method: grid", "method: random\nrun_cap: 5")
    text = text.replace("{values: [0.001, 0.01, 0.1]}", "{min: 0.001, max: 0.1, distribution: log_uniform_values}")
    file.write_text(text.replace("{values: [0, 1]}", "{min: 0, max: 3}"))
    points = sweep.read(file).points
    assert points == sweep.read(file).points and len({sweep.run_id(p) for p in points}) == 5
    assert all(0.001 <= p["config.optimizer.learning_rate"] <= 0.1 and p["config.seed"] in range(4) for p in points)


def test_every_spelling_of_a_number_is_a_number(file):
    numbers = [f"{sign}{digits}{e}{power}" for sign in ("", "-", "+") for digits in ("1", "25", "2.5", "3.", ".5")
               for e in "eE" for power in ("5", "-5", "+5", "05", "-12")]  # fmt: skip
    texts = ["1e", "e5", "1e5x", "1e-5 1", "x1e5", "a.b", "1e5-"]
    values = f"values: [{', '.join([*numbers, *texts])}]"
    file.write_text(file.read_text().replace("values: [0.001, 0.01, 0.1]", values).replace("[a, b]", "[a]"))
    points = [point["config.optimizer.learning_rate"] for point in sweep.read(file).points]
    assert [x for x in points if isinstance(x, str)][::2] == texts  # each point has two seeds
    given = dict.fromkeys(map(float, numbers))  # a point that is given twice runs once
    assert list(dict.fromkeys(x for x in points if not isinstance(x, str))) == list(given)
    assert all(isinstance(x, float | str) for x in points)


def test_a_program_that_is_not_there_is_an_error_before_any_point(file, tmp_path, capsys):
    file.write_text(file.read_text().replace("program: ", "program: /missing"))
    assert cli.run(["sweep", str(file), f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert "program '/missing" in error and "does not exist" in error and not (tmp_path / "out").exists()


def test_a_point_drawn_twice_is_one_run(file):
    file.write_text(file.read_text().replace("method: grid", "method: random\nrun_cap: 60"))
    assert len(sweep.read(file).points) == 12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: grid", "method: bayes", "unknown method 'bayes'"),
        ("method: grid", "methd: grid", "unknown key 'methd'; did you mean 'method'"),
        ("goal: maximize", "goal: up", "goal: maximize}"),
        ("config.seed", "seed", "is not a config key"),
        ("values: [0, 1]", "values: 3", "write value: X, values"),
        ("/$WANDB_RUN_ID", "", "a separate workdir for each point"),
        ("method: grid", "method: random", "needs run_cap"),
        ("method: grid", "method: grid\nrun_cap: many", "run_cap='many'"),
        ("method: grid", "method: [grid]", "unknown method"),
        ("{name: eval/t/accuracy, goal: maximize}", "accuracy", "write `metric"),
        ("values: [0, 1]", "values: [0, 1], probabilities: [1]", "probabilities=[1]"),
        ("values: [0, 1]", "min: 0, max: 1, distribution: log_uniform_values", "must be above 0"),
        ("method:", "{", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_run_says_why(file, old, new, message):
    text = file.read_text().replace(old, new)
    if "probabilities" in text or "log_uniform" in text:
        text = text.replace("method: grid", "method: random\nrun_cap: 3")
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        sweep.read(file)
    assert message in str(error.value)


def test_the_example_is_a_sweep():
    found = sweep.read(Path(__file__).parents[1] / "configs" / "sweep_quickstart.yaml")
    assert len(found.points) == 12
    keys = config.flat(config.base())
    assert all(name.removeprefix("config.") in keys for name in found.points[0])


def test_compare_shows_what_differs(tmp_path, capsys):
    for name, rate in (("one", 0.1), ("two", 0.2)):
        (tmp_path / name).mkdir()
        cfg = config.base()
        cfg.optimizer.learning_rate = rate
        (tmp_path / name / "config.json").write_text(config.to_json(cfg))
        rows = [{"step": s, "train/loss": rate * s, "eval/t/loss": rate} for s in (1, 2)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [tmp_path / "one", tmp_path / "two"]
    assert compare.differences(runs, ["one", "two"]) == [{"key": "optimizer.learning_rate", "one": "0.1", "two": "0.2"}]
    page = tmp_path / "page.html"
    assert cli.run(["compare", *map(str, runs), f"--output={page}"]) == 0
    out = capsys.readouterr().out
    assert "optimizer.learning_rate" in out and "train/loss" in out
    assert page.read_text().count("data:image/png") == 2
    assert cli.run(["compare", os.fspath(tmp_path)]) == 2


def test_compare_skips_what_is_no_run_and_names_a_sweep_s_runs_by_their_settings(tmp_path, capsys):
    for number, name in enumerate(("1a2b3c4d", "5e6f7a8b")):
        (tmp_path / name).mkdir()
        cfg = config.base()
        cfg.optimizer.learning_rate = 0.1 + number
        (tmp_path / name / "config.json").write_text(config.to_json(cfg))
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
        (tmp_path / name / "sweep_exit.txt").write_text("0")
    (tmp_path / "sweep.html").touch()
    everything, page = sorted(map(str, tmp_path.iterdir())), tmp_path / "page.html"
    assert cli.run(["compare", *everything, f"--output={page}"]) == 0
    said = capsys.readouterr()
    assert f"skipped, because they are not workdirs of runs: {tmp_path / 'sweep.html'}\n" in said.err
    title = "learning_rate=0.1 · learning_rate=1.1"
    shown = page.read_text()
    assert f"<title>{title}</title>" in shown and str(tmp_path / "1a2b3c4d") in shown  # where the run's files are
    (tmp_path / "5e6f7a8b" / "sweep_exit.txt").unlink()
    assert cli.run(["compare", *everything, f"--output={page}"]) == 0
    assert "<title>1a2b3c4d · 5e6f7a8b</title>" in page.read_text()
    assert cli.run(["compare", str(tmp_path / "sweep.html")]) == 2


def test_runs_that_differ_in_their_seed_alone_have_a_mean_and_a_deviation(tmp_path):
    runs = [tmp_path / name for name in ("a0", "a1", "b0", "a2")]
    for run, value in zip(runs, (70.0, 72.0, 50.0, 74.0), strict=True):
        run.mkdir()
        cfg = config.base()
        cfg.seed, cfg.optimizer.learning_rate = int(run.name[1]), 0.1 if run.name[0] == "a" else 0.2
        (run / "config.json").write_text(config.to_json(cfg))
        (run / "metrics.jsonl").write_text(json.dumps({"step": 5, "eval/t/accuracy": value}) + "\n")
    assert compare.seeds(runs) == [[0, 1, 3]]
    accuracy = next(row for row in compare.results(runs, [run.name for run in runs]) if "accuracy" in row["metric"])
    assert accuracy["a0, a1, a2: mean ± sd"] == "72 ± 2" and accuracy["b0"] == 50


def test_settings_and_names_that_look_like_markup_are_shown_as_they_are(file, tmp_path, capsys):
    """As markup, `[/red]` would end a style that is not open, and `[bold]` begin one."""
    file.write_text(file.read_text().replace("values: [a, b]", "values: ['[/red]', '[bold]<b>']"))
    output = tmp_path / "[bold]out"
    points = sweep.read(file).points
    for point in points:
        workdir = output / sweep.run_id(point)
        workdir.mkdir(parents=True)
        (workdir / "sweep_exit.txt").write_text("0")
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": 5, "eval/t/accuracy": 50.0}) + "\n")
    assert cli.run(["sweep", str(file), f"--output={output}"]) == 0
    out = capsys.readouterr().out
    assert out.count("[/red]") == 3 and out.count("[bold]<b>") == 3 and f"see {output / 'sweep.html'}" in out
    page = (output / "sweep.html").read_text()
    assert "<b>" not in page and page.count("[bold]&lt;b&gt;") == 3 + 3 + 1  # table, tips of the lines, axis
    runs = [output / sweep.run_id(point) for point in points[:2]]
    for run, name in zip(runs, ("[/red]", "<b>"), strict=True):
        cfg = config.base()
        cfg.name = name
        (run / "config.json").write_text(config.to_json(cfg))
    assert cli.run(["compare", *map(str, runs), f"--output={tmp_path / 'page.html'}"]) == 0
    out = capsys.readouterr().out
    assert "[/red]" in out and "<b>" in out
    page = (tmp_path / "page.html").read_text()
    assert "[/red]" in page and "&lt;b&gt;" in page and "<b>" not in page
