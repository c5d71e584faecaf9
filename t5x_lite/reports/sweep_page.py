"""Makes the page of a sweep: all its settings as a drawing and as a table.

A row is one setting with the runs of all its seeds. It is a dict:
    point   {parameter: value}; the same parameters in all rows
    mean    the mean of the metric over the runs; None without runs
    sd      the metric's standard deviation over the runs; None with fewer than two runs
    runs    the names of the runs
"""

import math
from collections.abc import Sequence
from typing import Any

from t5x_lite.reports.page import Markup, shell, table, tag, together, wide

SWEEP_EXIT = "sweep_exit.txt"  # in the workdir of a sweep's run: the exit status of the run
STYLE = Markup("""<style>
svg { width: 100%; min-width: 600px; font-size: 12px } path { fill: none; stroke-width: 2; opacity: .75 }
path:hover { stroke-width: 5; opacity: 1 } line { stroke: var(--dim) }
circle { fill: var(--accent) } text { fill: var(--text); paint-order: stroke; stroke: var(--page); stroke-width: 4px }
</style>""")  # the outline keeps texts readable where lines cross them
WIDTH, HEIGHT, TOP, SIDE = 960, 360, 30, 80  # sizes of the drawing and its margins, in the view box's pixels


def page(title: str, metric: str, maximize: bool, rows: Sequence[dict[str, Any]], points: int) -> str:
    """Returns the whole page. points: the number of runs that the complete sweep has."""
    runs = sum(len(row["runs"]) for row in rows)
    better = "higher" if maximize else "lower"
    settings_table = [
        {
            **{short_name(name): str(row["point"][name]) for name in varying(rows)},
            "mean ± sd": "–" if row["mean"] is None else f"{row['mean']:.4g} ± {number_text(row['sd'])}",
            "n": str(len(row["runs"])),
            "runs": ", ".join(row["runs"]),
        }
        for row in rows
    ]
    return shell(
        title,
        STYLE,
        tag("p", f"{metric}, {better} is better; {len(rows)} settings, {runs} of {points} runs."),
        drawing(metric, [row for row in rows if row["mean"] is not None]),
        tag("h2", "Settings"),
        table(settings_table, "No runs yet."),
        tag("p", common_settings(rows)),
    )


def drawing(metric: str, rows: Sequence[dict[str, Any]]) -> Markup:
    """Returns a scatter plot if one parameter varies, parallel coordinates if several do, and nothing if none does."""
    names = varying(rows)
    if not names:
        return Markup()
    return wide(scatter(metric, rows, names[0]) if len(names) == 1 else parallel_coordinates(metric, rows))


def scatter(metric: str, rows: Sequence[dict[str, Any]], name: str) -> Markup:
    """Returns an SVG with one point per setting: the parameter `name` to the right, the metric upwards."""
    left, right, bottom = SIDE, WIDTH - SIDE, TOP + HEIGHT

    def x_of(share: float) -> float:  # the outer points do not lie on the axis
        return left + (0.05 + 0.9 * share) * (right - left)

    def y_of(share: float) -> float:
        return bottom - (0.05 + 0.9 * share) * HEIGHT

    (x_shares, x_ticks), (y_shares, y_ticks) = (
        scale(values) for values in ([row["point"][name] for row in rows], [row["mean"] for row in rows])
    )
    parts = [tag("line", x1=left, x2=right, y1=bottom, y2=bottom), tag("line", x1=left, x2=left, y1=TOP, y2=bottom)]
    for row, x, y in zip(rows, x_shares, y_shares, strict=True):
        tip = tag("title", f"{settings_text(row['point'])}: {row['mean']:.4g}")
        parts.append(tag("circle", tip, cx=f"{x_of(x):.1f}", cy=f"{y_of(y):.1f}", r=5))
    for text, share in x_ticks:
        parts.append(tag("text", text, x=f"{x_of(share):.0f}", y=bottom + 18, text_anchor="middle"))
    for text, share in y_ticks:
        parts.append(tag("text", text, x=left - 8, y=f"{y_of(share) + 4:.0f}", text_anchor="end"))
    parts.append(tag("text", metric, x=0, y=TOP - 12))
    parts.append(tag("text", short_name(name), x=right, y=bottom + 36, text_anchor="end"))
    return tag("svg", together(*parts), viewBox=f"0 0 {WIDTH} {bottom + TOP + 12}")


def parallel_coordinates(metric: str, rows: Sequence[dict[str, Any]]) -> Markup:
    """Returns an SVG. It has one axis per varying parameter, one axis for the metric, and one line per setting.

    A line's colour shows the metric, from blue (low) to red (high).
    """
    columns = {short_name(name): [row["point"][name] for row in rows] for name in varying(rows)}
    columns[metric] = [row["mean"] for row in rows]
    step = (WIDTH - 2 * SIDE) / max(len(columns) - 1, 1)
    lines, texts, places = [], [], []
    for number, (name, values) in enumerate(columns.items()):
        x = SIDE + number * step
        shares, ticks = scale(values)
        places.append([(x, TOP + HEIGHT * (1 - share)) for share in shares])
        lines.append(tag("line", x1=f"{x:.0f}", x2=f"{x:.0f}", y1=TOP, y2=TOP + HEIGHT))
        # The names of the outer axes extend inwards, where there is space.
        name_x, anchor = {0: (0, "start"), len(columns) - 1: (WIDTH, "end")}.get(number, (x, "middle"))
        texts.append(tag("text", name, x=f"{name_x:.0f}", y=TOP - 12, text_anchor=anchor))
        for text, share in ticks:
            texts.append(tag("text", text, x=f"{x + 6:.0f}", y=f"{TOP + HEIGHT * (1 - share) + 4:.0f}"))
    for row, line, quality in zip(rows, zip(*places, strict=True), scale(columns[metric])[0], strict=True):
        path = " L ".join(f"{x:.1f} {y:.1f}" for x, y in line)
        tip = tag("title", f"{settings_text(row['point'])}: {row['mean']:.4g}")
        lines.append(tag("path", tip, d=f"M {path}", stroke=f"hsl({240 * (1 - quality):.0f} 75% 45%)"))
    return tag("svg", together(*lines, *texts), viewBox=f"0 0 {WIDTH} {HEIGHT + 2 * TOP}")


def scale(values: Sequence[Any]) -> tuple[list[float], list[tuple[str, float]]]:
    """Returns (the position of each value on its axis, from 0 to 1; pairs (label of the axis, its position)).

    Numbers are placed by their size, or by their logarithm if all are above 0 and the largest is at least 10 times the
    smallest. Other values are placed in the order of their names.
    """
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        names = sorted({str(v) for v in values})
        share_of = {name: (n + 0.5) / len(names) for n, name in enumerate(names)}
        return [share_of[str(v)] for v in values], list(share_of.items())
    low, high = min(values), max(values)
    by = math.log if low > 0 and high / low >= 10 else float
    spread = (by(high) - by(low)) or 1.0
    ticks: list[tuple[str, float]] = []
    for value in sorted(set(values), reverse=True) if len(set(values)) <= 6 else [high, low]:
        share = (by(value) - by(low)) / spread
        if not ticks or ticks[-1][1] - share > 0.034:  # otherwise labels would overlap
            ticks.append((f"{value:.4g}", share))
    return [(by(v) - by(low)) / spread for v in values], ticks


def varying(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the names of the parameters whose values differ between settings."""
    return [name for name in rows[0]["point"] if len({str(row["point"][name]) for row in rows}) > 1] if rows else []


def common_settings(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the parameters that have the same value in all settings, with these values, as text."""
    names = varying(rows)
    common = {name: value for name, value in rows[0]["point"].items() if name not in names} if rows else {}
    return f"in all runs: {settings_text(common)}" if common else ""


def settings_text(point: dict[str, Any]) -> str:
    """Returns the settings of a point as text.

    >>> settings_text({"config.seed": 1, "config.model.preset": "t5_tiny"})
    'seed=1 model.preset=t5_tiny'
    """
    return " ".join(f"{short_name(name)}={value}" for name, value in point.items())


def short_name(parameter: str) -> str:
    """Returns a parameter's name without `config.`. The rest is the name of a config key."""
    return parameter.removeprefix("config.")


def number_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
