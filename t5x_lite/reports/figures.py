"""Draws figures as PNG: curves, and for predictions a confusion matrix, a calibration diagram or text lengths."""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from t5x_lite import console

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 20  # more would make the confusion matrix illegible
OTHER = "(no label)"


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """Returns an empty figure and its axes. Sizes are in inches. The axes take three quarters of the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def png_of(figure: "Figure") -> bytes:
    """Returns the figure as PNG. Shows its texts verbatim, so `$` does not start a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def curves(
    points_of: Mapping[str, Sequence[tuple[int, float]]], ylabel: str, height: float, unmarked: Collection[str] = ()
) -> bytes:
    """Draws one line per name through the name's points (step, value). Marks the points unless `unmarked` has the name.

    height: the figure's height in inches.
    """
    figure, axes = new_figure(10.6, height)
    for name, points in points_of.items():
        steps, values = zip(*points, strict=True)
        marker, width = ("", 1) if name in unmarked else ("o", 1.6)
        axes.plot(steps, values, label=console.safe(name), linewidth=width, marker=marker, markersize=4)
    axes.set(xlabel="step", ylabel=console.safe(ylabel))
    axes.grid(alpha=0.3)
    if points_of:
        axes.legend(frameon=False)
    return png_of(figure)


def of_predictions(rows: Sequence[Mapping]) -> dict[str, bytes]:
    """Returns the figures that suit the rows of a predictions file, {title: PNG}.

    If there are few different targets and they repeat, they are treated as classes: the figures are a confusion matrix
    and a calibration diagram. For other texts, the figure is a histogram of lengths. Numbers get no figure.
    """
    labels = sorted({row["target"].strip() for row in rows})
    others = [row for row in rows if row["prediction"].strip() not in labels]
    are_many = len(labels) > min(MOST_CLASSES, len(rows) / 2)
    if all(map(_is_number, labels)) and (are_many or len(others) > len(rows) / 2):
        return {}
    if are_many:
        return {"lengths": lengths(rows)}
    return {"confusion": confusion(rows, labels), "calibration": reliability(rows)}


def confusion(rows: Sequence[Mapping], labels: Sequence[str]) -> bytes:
    """Draws the confusion matrix of counts. Rows are targets, columns are predictions.

    The last column counts predictions that are not a class.
    """
    columns = [*labels, OTHER]
    counts = counts_of(rows, labels)
    figure, axes = new_figure(1.6 + 0.7 * len(columns), 1.4 + 0.55 * len(labels))
    axes.imshow([[n / max(sum(line), 1) for n in line] for line in counts], cmap="Blues", vmin=0, vmax=1)
    for y, line in enumerate(counts):
        for x, n in enumerate(line):
            axes.text(x, y, str(n), ha="center", va="center", color="white" if n > sum(line) / 2 else "black")
    axes.set_xticks(range(len(columns)), list(map(console.safe, columns)), rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), list(map(console.safe, labels)))
    axes.set(xlabel="prediction", ylabel="target")
    return png_of(figure)


def counts_of(rows: Sequence[Mapping], labels: Sequence[str]) -> list[list[int]]:
    """Returns counts[target][prediction], as in `confusion`."""
    place = {label: i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for row in rows:
        counts[place[row["target"].strip()]][place.get(row["prediction"].strip(), len(labels))] += 1
    return counts


def reliability(rows: Sequence[Mapping]) -> bytes:
    """Draws the share of correct predictions against the model's probability for its prediction, in 15 bins."""
    from t5x_lite.reports import confidence  # imported here, because it needs numpy

    right = [row["prediction"].strip() == row["target"].strip() for row in rows]
    diagram = confidence.calibration([math.exp(min(row["score"], 0.0)) for row in rows], right)
    figure, axes = new_figure(4, 3.4)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    sizes = [10 + 190 * bin_["examples"] / len(rows) for bin_ in diagram]
    axes.scatter([b["confidence"] for b in diagram], [b["accuracy"] for b in diagram], sizes)
    axes.set(xlabel="probability of the answer", ylabel="share of correct answers", xlim=(0, 1), ylim=(0, 1))
    return png_of(figure)


def lengths(rows: Sequence[Mapping]) -> bytes:
    """Draws histograms of the number of words in targets and predictions."""
    figure, axes = new_figure(5, 3)
    both = [[len(row[name].split()) for row in rows] for name in ("target", "prediction")]
    axes.hist(both, bins=20, label=["targets", "predictions"])
    axes.set(xlabel="words", ylabel="texts")
    axes.legend(frameon=False)
    return png_of(figure)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
