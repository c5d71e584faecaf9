"""Implements the verb `compare`: how the configs, results and curves of runs differ."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from t5x_lite import atomic, console, lineage
from t5x_lite import config as configs
from t5x_lite.errors import ConfigError
from t5x_lite.reports import figures, glue_average
from t5x_lite.reports.page import Markup, image, shell, table, tag
from t5x_lite.reports.results import curves, read_metrics, values_of_steps
from t5x_lite.reports.sweep_page import SWEEP_EXIT

LONGEST_NAME = 60  # characters of a run's name that is made of settings


def run(workdirs: list[Path], output: Path | None) -> None:
    """Prints the tables of `differences` and `results`. With `output`, also writes a page with the tables and curves.

    If the runs have several of GLUE's tasks, also shows GLUE's average over their last evaluations. Skips paths that
    are not workdirs of runs, such as the sweep.html beside a sweep's runs. Raises ConfigError if no path is left.
    """
    others = [workdir for workdir in workdirs if not (workdir / "config.json").is_file()]
    workdirs = [workdir for workdir in workdirs if workdir not in others]
    listed = ", ".join(map(str, others[:5])) + (f", … {len(others)} in all" if len(others) > 5 else "")
    if not workdirs:
        raise ConfigError(f"no run in {listed}; give workdirs of `t5x-lite train`")
    if others:
        console.tell(f"skipped, because they are not workdirs of runs: {listed}")
    names = _names(workdirs)
    config = differences(workdirs, names)
    if len(workdirs) > 1:
        config.insert(0, {"key": "(workdir)", **dict(zip(names, map(str, workdirs), strict=True))})
    branches = {name: _lineage_text(workdir) for name, workdir in zip(names, workdirs, strict=True)}
    config += [{"key": "(branched from)", **branches}] * any(branches.values())
    tables = {"Config": config, "Results": results(workdirs, names)}
    terminal = console.plain()
    for title, rows in tables.items():
        terminal.print(_on_terminal(title, rows) if rows else f"{title}: nothing differs")
    average = glue_average.summary(map(_last_values, workdirs))
    if average:
        terminal.print(average)
    if output:
        parts = [part for title, rows in tables.items() for part in (tag("h2", title), table(rows, "Nothing differs."))]
        parts += [tag("p", average)] if average else []
        page = shell(" · ".join(names), *parts, tag("h2", "Curves"), *_curves(workdirs, names))
        atomic.write_output(output, page)
        terminal.print(f"see {output}")


def _lineage_text(workdir: Path) -> str:
    return ", which is from ".join(f"{entry['run']} at step {entry['step']}" for entry in lineage.of(workdir))


def differences(workdirs: list[Path], names: list[str]) -> list[dict[str, Any]]:
    """Returns one row per config key whose value is not the same in all runs."""
    flat = [configs.flat(configs.from_json(workdir / "config.json")) for workdir in workdirs]
    differing = [key for key in flat[0] if len({json.dumps(f[key], default=list) for f in flat}) > 1]
    return [{"key": key, **{n: str(f[key]) for n, f in zip(names, flat, strict=True)}} for key in differing]


def results(workdirs: list[Path], names: list[str]) -> list[dict[str, Any]]:
    """Returns one row per evaluation metric, one for the training loss, and one for the speed.

    A row has each run's last value. If several runs differ only in their seed, it also has their mean and standard
    deviation.
    """
    last: list[dict[str, Any]] = []
    for workdir in workdirs:
        of_run: dict[str, Any] = {}
        for row in read_metrics(workdir):
            of_run |= {
                k: v for k, v in row.items() if k.startswith("eval/") or k in ("train/loss", "train/tokens_per_s")
            }
            of_run["step"] = row["step"]
        last.append(of_run)
    keys = sorted({key for of_run in last for key in of_run})
    rows = [{"metric": key, **{n: of_run.get(key) for n, of_run in zip(names, last, strict=True)}} for key in keys]
    for group in seeds(workdirs):
        for row in rows:
            values = [last[run][row["metric"]] for run in group if row["metric"] in last[run]]
            column = f"{', '.join(names[run] for run in group)}: mean ± sd"
            row[column] = _mean_and_deviation(values) if len(values) == len(group) else None
    return rows


def _last_values(workdir: Path) -> dict[str, dict[str, float]]:
    """Returns {task: {metric: value}}, each task at the last step where it was evaluated."""
    last: dict[str, dict[str, float]] = {}
    for _, values in sorted(values_of_steps(read_metrics(workdir)).items()):
        last |= values
    return last


def seeds(workdirs: list[Path]) -> list[list[int]]:
    """Returns groups of two or more runs that differ only in seed and name, each as indices into `workdirs`."""
    groups: dict[str, list[int]] = {}
    for number, workdir in enumerate(workdirs):
        flat = configs.flat(configs.from_json(workdir / "config.json"))
        same = {key: value for key, value in flat.items() if key not in ("seed", "name")}
        groups.setdefault(json.dumps(same, default=list), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _mean_and_deviation(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"


def _names(workdirs: list[Path]) -> list[str]:
    """Returns the names of the runs' directories. If two names are equal, returns the directories' paths instead.

    A sweep names the directories of its runs by hashes. Its runs are named by the settings in which they differ, unless
    these are too long or the same for two runs.
    """
    names = [workdir.resolve().name for workdir in workdirs]
    if len(set(names)) < len(names):
        return [str(workdir) for workdir in workdirs]
    if not all((workdir / SWEEP_EXIT).is_file() for workdir in workdirs):
        return names
    rows = differences(workdirs, names)
    settings = [" ".join(f"{row['key'].rpartition('.')[2]}={row[name]}" for row in rows) for name in names]
    are_names = len(set(settings)) == len(names) and 0 < max(map(len, settings)) <= LONGEST_NAME
    return settings if are_names else names


def _curves(workdirs: list[Path], names: list[str]) -> Iterator[Markup]:
    """Yields one figure for the training loss and one per evaluation metric. A figure has one line per run."""
    curves_of = {}
    for name, workdir in zip(names, workdirs, strict=True):
        rows = read_metrics(workdir)
        curves_of[name] = curves(rows, "eval/") | curves(rows, "train/loss")
    for metric in sorted({metric for of_run in curves_of.values() for metric in of_run}):
        if not metric.startswith("train/loss/"):
            points_of = {name: of_run[metric] for name, of_run in curves_of.items() if metric in of_run}
            yield image(metric, figures.curves(points_of, metric, 3.4))


def _on_terminal(title: str, rows: list[dict[str, Any]]) -> Table:
    out = Table(title=title, title_justify="left")
    for column in rows[0]:
        out.add_column(column, overflow="fold")
    for row in rows:
        out.add_row(*map(_text, row.values()))
    return out


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
