"""Defines summarisation tasks as text, in T5's format: CNN/DailyMail, XSum, DialogSum.

All but DialogSum can be read from TFDS. All can be read from a directory of JSON lines or CSV: --config.data.dir=DIR,
where DIR holds dialogsum/dialogsum.train.jsonl and so on.
"""

from collections.abc import Sequence

from t5x_lite.data import registry
from t5x_lite.data.preprocess import template
from t5x_lite.data.records import Example
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Files, Tfds
from t5x_lite.data.text_formats import JsonLines, Table
from t5x_lite.tasks.published import Published
from t5x_lite.tasks.text_metrics import rouge


def rows(path: str) -> Sequence[Example]:
    """JSON lines or CSV, by the name."""
    return Files({"all": path}, Table() if path.endswith(".csv") else JsonLines()).split("all")


def _files(name: str) -> dict[str, Sequence[str]]:
    """Returns {split: candidate file names}: the file names that occur in copies of these data sets."""
    called = {"train": ("train",), "validation": ("validation", "val", "dev"), "test": ("test",)}
    endings = (".jsonl", ".json", ".csv")
    return {
        split: [f"{prefix}{own}{ending}" for prefix in ("", f"{name}.") for own in names for ending in endings]
        for split, names in called.items()
    }


def summary(*fields: str):
    """Returns a function that fills a row's `summary` with the first of `fields` that the row has."""

    def apply(row: Example) -> Example:
        name = next(field for field in fields if field in row) if any(f in row for f in fields) else fields[0]
        return {**row, "summary": row[name]}

    return apply


def _task(name: str, text: str, summaries: tuple[str, ...], tfds: Tfds | None) -> Task:
    made = summary(*summaries)
    source = Published(name, _files(name), rows, tfds, of_file=made, of_tfds=made)
    return Task(
        name,
        source,
        (template(inputs=f"summarize: {{{text}}}", targets="{summary}"),),
        metrics=(rouge,),
        baseline="copy",
    )


TASKS = (
    registry.add(_task("cnn_dailymail", "article", ("highlights",), Tfds("cnn_dailymail:3.4.0"))),
    registry.add(_task("xsum", "document", ("summary",), Tfds("xsum"))),
    registry.add(
        _task("dialogsum", "dialogue", ("summary", "summary1"), None)
    ),  # its test set has three summaries per dialogue
)
