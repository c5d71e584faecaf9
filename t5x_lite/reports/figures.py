"""Figures of a task's predictions, as PNG: which classes are mistaken for which, calibration, lengths."""

import io
import math
from collections.abc import Mapping, Sequence

from t5x_lite.reports import confidence

MOST_CLASSES = 20  # that a confusion matrix is legible with
OTHER = "(no label)"


def of_predictions(rows: Sequence[Mapping]) -> dict[str, bytes]:
    """{title: PNG} of the rows of a predictions' file, as far as they make sense: classes are targets that are few and
    come again; other texts have lengths; numbers neither."""
    labels = sorted({row["target"].strip() for row in rows})
    others = [row for row in rows if row["prediction"].strip() not in labels]
    are_many = len(labels) > min(MOST_CLASSES, len(rows) / 2)
    if all(map(_is_number, labels)) and (are_many or len(others) > len(rows) / 2):
        return {}
    if are_many:
        return {"lengths": lengths(rows)}
    return {"confusion": confusion(rows, labels), "calibration": reliability(rows)}


def confusion(rows: Sequence[Mapping], labels: Sequence[str]) -> bytes:
    """How often each class (down) was answered by which (across); the last column is what is no class."""
    columns = [*labels, OTHER]
    counts = counts_of(rows, labels)
    figure, axes = _figure(1.6 + 0.7 * len(columns), 1.4 + 0.55 * len(labels))
    axes.imshow([[n / max(sum(line), 1) for n in line] for line in counts], cmap="Blues", vmin=0, vmax=1)
    for y, line in enumerate(counts):
        for x, n in enumerate(line):
            axes.text(x, y, str(n), ha="center", va="center", color="white" if n > sum(line) / 2 else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="prediction", ylabel="target")
    return _png(figure)


def counts_of(rows: Sequence[Mapping], labels: Sequence[str]) -> list[list[int]]:
    """[target][prediction] counts; the last prediction is what is no label."""
    place = {label: i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for row in rows:
        counts[place[row["target"].strip()]][place.get(row["prediction"].strip(), len(labels))] += 1
    return counts


def reliability(rows: Sequence[Mapping]) -> bytes:
    """Share of right answers against the probability that the model gave them, in 15 bins."""
    right = [row["prediction"].strip() == row["target"].strip() for row in rows]
    diagram = confidence.calibration([math.exp(min(row["score"], 0.0)) for row in rows], right)
    figure, axes = _figure(4, 3.4)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    sizes = [10 + 190 * bin_["examples"] / len(rows) for bin_ in diagram]
    axes.scatter([b["confidence"] for b in diagram], [b["accuracy"] for b in diagram], sizes)
    axes.set(xlabel="probability of the answer", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    return _png(figure)


def lengths(rows: Sequence[Mapping]) -> bytes:
    """Words of the targets and of the predictions."""
    figure, axes = _figure(5, 3)
    both = [[len(row[name].split()) for row in rows] for name in ("target", "prediction")]
    axes.hist(both, bins=20, label=["targets", "predictions"])
    axes.set(xlabel="words", ylabel="texts")
    axes.legend(frameon=False)
    return _png(figure)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _png(figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
