"""Writes `loss_curve.png`, `report.html` and `report.md` from the files of a workdir."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from t5x_lite import atomic, console, side_files
from t5x_lite.reports import figures, goodput
from t5x_lite.reports.page import Markup, image, shell, table, tag
from t5x_lite.reports.results import averages, curves, perplexities, read_metrics, read_predictions, results, title


def write(workdir: Path, predictions_shown: int) -> Path:
    """Writes the loss curve, report.html and report.md (only the results). Returns the path of report.html.

    Reads only files in the workdir. The page shows the first `predictions_shown` predictions of each task. Raises
    CheckpointError if a file cannot be written.
    """
    rows = read_metrics(workdir)
    config = side_files.read_json(workdir / "config.json")
    loss_curve = _loss_curve(rows)
    atomic.write_output(workdir / "loss_curve.png", loss_curve)
    path = workdir / "report.html"
    page = shell(
        title(config, workdir),
        tag("p", _summary(rows, config)),
        tag("h2", "Results"),
        table(results(rows), "No evaluation yet."),
        *(tag("p", line) for line in (*perplexities(rows), *averages(rows))),
        tag("h2", "Data"),
        table(seen(rows), "No step yet."),
        tag("h2", "Loss"),
        image("loss curve", loss_curve),
        *_learning_rate(rows),
        *_metric_curves(rows),
        tag("h2", "Time"),
        table(goodput.table(rows), "No step yet."),
        tag("h2", "Predictions"),
        *_predictions(workdir, predictions_shown),
        tag("h2", "Config"),
        tag("pre", json.dumps(config, indent=2)),
    )
    atomic.write_output(path, page)
    atomic.write_output(workdir / "report.md", markdown(workdir))
    return path


def markdown(workdir: Path) -> str:
    """Returns the results as a Markdown table, with the run's name as heading."""
    rows = read_metrics(workdir)
    config = side_files.read_json(workdir / "config.json")
    lines = [f"## {_plain(title(config, workdir))}", ""]
    if metrics := results(rows):
        cells = [
            ["–" if v is None else f"{v:.2f}" if isinstance(v, float) else _plain(str(v)) for v in row.values()]
            for row in metrics
        ]
        lines += [f"| {' | '.join(row)} |" for row in (list(metrics[0]), ["---"] * len(metrics[0]), *cells)]
    return "\n".join([*lines, "", "\n\n".join([*perplexities(rows), *averages(rows)])]).rstrip() + "\n"


def _plain(text: str) -> str:
    """Returns a text as Markdown that is shown as this text, on one line. Escapes it unless it is an ordinary name."""
    line = " ".join(console.safe(text).split())
    is_name = re.fullmatch(r"[A-Za-z0-9]([\w ./:=-]*[A-Za-z0-9])?", line)
    return line if is_name else re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line)


def seen(rows: list[dict]) -> list[dict]:
    """Returns one row per task: the examples, epochs and tokens that process 0 has trained on since step 0.

    A row also has the task's shares of all examples and of all tokens, and the training loss that was logged last.
    """
    last = next((row for row in reversed(rows) if any(key.startswith("train/examples/") for key in row)), {})
    names = [key.removeprefix("train/examples/") for key in last if key.startswith("train/examples/")]
    totals = {kind: sum(last[f"train/{kind}/{name}"] for name in names) for kind in ("examples", "tokens")}

    def loss(name: str) -> float | None:
        key = f"train/task_loss/{name}" if len(names) > 1 else "train/loss"
        return next((row[key] for row in reversed(rows) if key in row), None)

    return [
        {
            "task": name,
            "examples": int(last[f"train/examples/{name}"]),
            "share of examples %": 100 * last[f"train/examples/{name}"] / max(totals["examples"], 1),
            "epochs": last[f"train/epochs/{name}"],
            "tokens": int(last[f"train/tokens/{name}"]),
            "share of tokens %": 100 * last[f"train/tokens/{name}"] / max(totals["tokens"], 1),
            "training loss": loss(name),
        }
        for name in names
    ]


def _summary(rows: list[dict], config: dict) -> str:
    last = max((r["step"] for r in rows), default=0)
    speeds = sorted(r["train/tokens_per_s"] for r in rows if "train/tokens_per_s" in r)
    speed = f", {speeds[len(speeds) // 2]:,.0f} tokens/s (median)" if speeds else ""
    model, mixture, total = config["model"]["preset"], config["data"]["mixture"], config["train"]["total_steps"]
    return f"{model} on {mixture}: step {last} of {total}{speed}."


def _loss_curve(rows: list[dict]) -> bytes:
    """Draws the training loss and every task's evaluation loss against the step, as PNG."""
    evaluated = {name: points for name, points in curves(rows, "eval/").items() if name.endswith("/loss")}
    trained = curves(rows, "train/loss")
    if len(trained) == 2:  # if there is only one head, its loss is train/loss
        trained = {"train/loss": trained["train/loss"]}
    return figures.curves(evaluated | trained, "loss (nats per target token)", 4.7, unmarked=trained)


def _learning_rate(rows: list[dict]) -> Iterator[Markup]:
    """Yields a heading and the curve of the learning rate, if it changes."""
    rates = curves(rows, "train/learning_rate")
    if len({rate for points in rates.values() for _, rate in points}) > 1:
        yield tag("h2", "Learning rate")
        yield image("learning rate", figures.curves(rates, "learning rate", 2.2, unmarked=rates))


def _metric_curves(rows: list[dict]) -> Iterator[Markup]:
    """Yields a heading, and one figure per evaluation metric that has values at several steps. Leaves out losses.

    A figure has one line per task.
    """
    points_of: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, points in sorted(curves(rows, "eval/").items()):
        task, _, metric = name.removeprefix("eval/").rpartition("/")
        if len(points) > 1 and not f"_{metric}".endswith("_loss"):
            points_of.setdefault(metric, {})[task] = points
    if points_of:
        yield tag("h2", "Metrics")
    for metric, of_tasks in points_of.items():
        yield image(metric, figures.curves(of_tasks, metric, 2.8))


def _predictions(workdir: Path, shown: int) -> Iterator[Markup]:
    """Yields the figures of each task's newest predictions, and a table of the first `shown` of them."""
    found = (re.fullmatch(r"step_([0-9]+)", path.name) for path in (workdir / "predictions").glob("step_*"))
    steps = sorted(int(match[1]) for match in found if match)
    if not steps:
        yield tag("p", "No predictions yet.")
    newest = workdir / "predictions" / f"step_{steps[-1]}" if steps else None
    for file in sorted(newest.glob("*.jsonl")) if newest else []:
        rows = read_predictions(file)
        yield tag("h3", file.stem)
        yield from (image(name, png) for name, png in (figures.of_predictions(rows) if rows else {}).items())
        yield table([_prediction(row) for row in rows[:shown]], "No predictions shown.")


def _prediction(row: dict) -> dict[str, Markup]:
    """Returns a row of a predictions file as cells of a table. A mark and a colour show whether it is correct."""
    inputs = row["inputs"] if len(row["inputs"]) < 600 else row["inputs"][:600] + " …"
    mark, style = ("✓ yes", "right") if row["target"] == row["prediction"] else ("✗ no", "wrong")
    prediction = row["prediction"] if row["prediction"] != "" else tag("i", "(empty)")
    return {
        "input": tag("div", inputs, class_="passage"),
        "target": tag("div", row["target"], class_="passage"),
        "prediction": tag("div", prediction, class_="passage"),
        "equal": tag("span", mark, class_=style),
    }
