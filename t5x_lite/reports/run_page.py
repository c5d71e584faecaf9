"""`loss_curve.png` and `report.html` from the files of a workdir: one page that opens offline and shows the run."""

import base64
import html
import json
from pathlib import Path

from t5x_lite import atomic
from t5x_lite.reports import figures, goodput
from t5x_lite.reports.results import averages, curves, read_metrics, results, title

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .3em .8em; text-align: left; vertical-align: top;
border-bottom: 1px solid #eee } th { background: #f6f6f6 } .number { text-align: right; font-variant-numeric:
tabular-nums } img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px }
.right { color: #176b2c } .text { max-width: 34em; overflow-wrap: anywhere }
"""


def write(workdir: Path, predictions_shown: int) -> Path:
    """Draws the loss curve and writes the page, and report.md with its results; returns the page's path. Reads only
    what the run left on disk."""
    rows = read_metrics(workdir)
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    image = draw_curves(rows, workdir / "loss_curve.png")
    page = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(title(config, workdir))}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title(config, workdir))}</h1>",
        f"<p>{html.escape(_summary(rows, config))}</p>",
        "<h2>Results</h2>",
        html_table(results(rows), "No evaluation yet."),
        *(f"<p>{html.escape(line)}</p>" for line in averages(rows)),
        "<h2>Data</h2>",
        html_table(seen(rows), "No step yet."),
        "<h2>Loss</h2>",
        _image("loss curve", image.read_bytes()),
        "<h2>Time</h2>",
        html_table(goodput.table(rows), "No step yet."),
        "<h2>Predictions</h2>",
        *_predictions(workdir, predictions_shown),
        "<h2>Config</h2>",
        f"<pre>{html.escape(json.dumps(config, indent=2))}</pre></html>",
    ]
    path = workdir / "report.html"
    atomic.write(path, "\n".join(page))
    atomic.write(workdir / "report.md", markdown(workdir))
    return path


def markdown(workdir: Path) -> str:
    """The results as a Markdown table, under the run's name."""
    rows = read_metrics(workdir)
    table = results(rows)
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    lines = [f"## {title(config, workdir)}", ""]
    if table:
        cells = [
            ["–" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in r.values()] for r in table
        ]
        lines += [f"| {' | '.join(row)} |" for row in (list(table[0]), ["---"] * len(table[0]), *cells)]
    return "\n".join([*lines, "", *averages(rows)]).rstrip() + "\n"


def seen(rows: list[dict]) -> list[dict]:
    """One row per task: what process 0 has trained on since step 0, and the loss on it when last logged. The shares
    are of the examples and of the tokens."""
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


def draw_curves(rows: list[dict], path: Path) -> Path:
    """Training loss and every task's evaluation loss against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    evaluated = {name: points for name, points in curves(rows, "eval/").items() if name.endswith("/loss")}
    trained = curves(rows, "train/loss")
    if len(trained) == 2:  # of one head alone: the same curve again
        trained = {"train/loss": trained["train/loss"]}
    drawn = evaluated | trained
    for name, points in drawn.items():
        steps, values = zip(*points, strict=True)
        training = name in trained
        axes.plot(
            steps, values, label=name, linewidth=1 if training else 1.6, marker="" if training else "o", markersize=4
        )
    axes.set(xlabel="step", ylabel="loss (nats per target token)")
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    return path


def _summary(rows: list[dict], config: dict) -> str:
    last = max((r["step"] for r in rows), default=0)
    speeds = sorted(r["train/tokens_per_s"] for r in rows if "train/tokens_per_s" in r)
    speed = f", {speeds[len(speeds) // 2]:,.0f} tokens/s (median)" if speeds else ""
    model, mixture, total = config["model"]["preset"], config["data"]["mixture"], config["train"]["total_steps"]
    return f"{model} on {mixture}: step {last} of {total}{speed}."


def html_table(rows: list[dict], empty: str) -> str:
    """Rows of the same keys, which are the columns; numbers to the right."""
    if not rows:
        return f"<p>{empty}</p>"

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def cell(value: object) -> str:
        if is_number(value):
            return f'<td class="number">{value:{".2f" if isinstance(value, float) else ","}}</td>'
        if value is None:
            return '<td class="number">–</td>'
        return f"<td>{html.escape(str(value))}</td>"

    numbers = {k for row in rows for k, v in row.items() if is_number(v)}
    head = "".join(f"<th{' class=number' * (k in numbers)}>{html.escape(k)}</th>" for k in rows[0])
    body = "".join(f"<tr>{''.join(cell(v) for v in row.values())}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _image(name: str, png: bytes) -> str:
    return f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _predictions(workdir: Path, shown: int) -> list[str]:
    steps = sorted((workdir / "predictions").glob("step_*"), key=lambda p: int(p.name.removeprefix("step_")))
    out = [] if steps else ["<p>None yet.</p>"]
    for file in sorted(steps[-1].glob("*.jsonl")) if steps else []:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        drawn = figures.of_predictions(rows) if rows else {}
        rows = rows[:shown]
        out.append(f"<h3>{html.escape(file.stem)}</h3>")
        out += [_image(name, png) for name, png in drawn.items()]
        out.append("<table><tr><th>input<th>target<th>prediction</tr>")
        for row in rows:
            right = ' class="right"' if row["target"] == row["prediction"] else ""
            inputs = row["inputs"] if len(row["inputs"]) < 600 else row["inputs"][:600] + " …"
            predicted = html.escape(str(row["prediction"])) or "<i>(empty)</i>"
            out.append(
                f'<tr><td class="text">{html.escape(inputs)}<td class="text">{html.escape(str(row["target"]))}'
                f'<td class="text"><span{right}>{predicted}</span></tr>'
            )
        out.append("</table>")
    return out
