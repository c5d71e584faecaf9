"""The verb `compare`: what differs between runs, in their configs, their results and their curves."""

import base64
import html
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from t5x_lite import atomic
from t5x_lite import config as configs
from t5x_lite.errors import ConfigError
from t5x_lite.reports import run_page
from t5x_lite.reports.results import curves, read_metrics


def run(workdirs: list[Path], output: Path | None) -> None:
    """Prints the tables of `differences` and `results`; with `output`, a page that also has the curves."""
    for workdir in workdirs:
        if not (workdir / "config.json").is_file():
            raise ConfigError(f"no run in {str(workdir)!r}; give workdirs of `t5x-lite train`")
    names = _names(workdirs)
    tables = {"Config": differences(workdirs, names), "Results": results(workdirs, names)}
    console = Console()
    for title, rows in tables.items():
        table = Table(title=title, title_justify="left")
        for column in rows[0] if rows else ():
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_text(value) for value in row.values()))
        console.print(table if rows else f"{title}: nothing differs")
    if output:
        parts = ["<!doctype html><html lang=en><meta charset=utf-8>"]
        parts.append(f"<title>{html.escape(' · '.join(names))}</title><style>{run_page.STYLE}</style>")
        for title, rows in tables.items():
            parts += [f"<h2>{title}</h2>", run_page.html_table(rows, "Nothing differs.")]
        parts += ["<h2>Curves</h2>", _curves(workdirs, names)]
        atomic.write(output, "\n".join([*parts, "</html>"]))
        console.print(f"see {output}")


def differences(workdirs: list[Path], names: list[str]) -> list[dict[str, Any]]:
    """The config keys that are not the same in all runs, a row each."""
    flat = [configs.flat(configs.from_json(workdir / "config.json")) for workdir in workdirs]
    differing = [key for key in flat[0] if len({json.dumps(f[key], default=list) for f in flat}) > 1]
    return [{"key": key, **{n: str(f[key]) for n, f in zip(names, flat, strict=True)}} for key in differing]


def results(workdirs: list[Path], names: list[str]) -> list[dict[str, Any]]:
    """The last value of every evaluation metric, and of the training loss and speed, a row each. Of runs that differ in
    their seed alone also the mean and standard deviation."""
    last: list[dict[str, Any]] = []
    for workdir in workdirs:
        found: dict[str, Any] = {}
        for row in read_metrics(workdir):
            found |= {
                k: v for k, v in row.items() if k.startswith("eval/") or k in ("train/loss", "train/tokens_per_s")
            }
            found["step"] = row["step"]
        last.append(found)
    keys = sorted({key for found in last for key in found})
    rows = [{"metric": key, **{n: found.get(key) for n, found in zip(names, last, strict=True)}} for key in keys]
    for group in seeds(workdirs):
        for row in rows:
            values = [last[run][row["metric"]] for run in group if row["metric"] in last[run]]
            column = f"{', '.join(names[run] for run in group)}: mean ± sd"
            row[column] = _mean_and_deviation(values) if len(values) == len(group) else None
    return rows


def seeds(workdirs: list[Path]) -> list[list[int]]:
    """The numbers of the runs that are one but for their seed (and name), where there are several of them."""
    groups: dict[str, list[int]] = {}
    for number, workdir in enumerate(workdirs):
        flat = configs.flat(configs.from_json(workdir / "config.json"))
        same = {key: value for key, value in flat.items() if key not in ("seed", "name")}
        groups.setdefault(json.dumps(same, default=list), []).append(number)
    return [group for group in groups.values() if len(group) > 1]


def _mean_and_deviation(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}"


def _names(workdirs: list[Path]) -> list[str]:
    """Each run's own name where all have different ones, else its path."""
    short = [workdir.resolve().name for workdir in workdirs]
    return short if len(set(short)) == len(short) else [str(workdir) for workdir in workdirs]


def _curves(workdirs: list[Path], names: list[str]) -> str:
    """Pictures of the training loss and every evaluation metric, a line for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [curves(read_metrics(w), "eval/") | curves(read_metrics(w), "train/loss") for w in workdirs]
    metrics = sorted({metric for of_run in found for metric in of_run if not metric.startswith("train/loss/")})
    out = []
    for metric in metrics:
        figure = Figure(figsize=(9, 3.2), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, of_run in zip(names, found, strict=True):
            if metric in of_run:
                axes.plot(*zip(*of_run[metric], strict=True), label=name, marker="o", markersize=3)
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.tight_layout()
        out.append(_picture(figure, metric))
    return "\n".join(out)


def _picture(figure: Any, name: str) -> str:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
