"""Defines the tasks of GLUE (Wang et al. 2018). Each definition serves both text models, in T5's format, and encoder
heads.

Reads from TFDS, or from a directory with GLUE's folders and files: --config.data.dir=DIR, where DIR holds
CoLA/train.tsv and so on.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5x_lite.data import registry
from t5x_lite.data.records import Example
from t5x_lite.data.registry import UNLABELLED, Mixture, Task
from t5x_lite.data.sources import Files, Tfds
from t5x_lite.data.targets import Number, number_in
from t5x_lite.data.text_formats import Table
from t5x_lite.tasks.metrics import Metric, accuracy, f1, matthews, pearson, spearman
from t5x_lite.tasks.published import Published

NLI = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")


@dataclasses.dataclass(frozen=True)
class Glue:
    """A task of GLUE.

    folder: the directory of its files.
    columns: {field: column of the file}, in the order in which an encoder reads the fields.
    labels: the class names, in the order of their ids; () for a task whose target is a number.
    train_rows: the number of training examples, for mixtures (t5/data/glue_utils.py).
    """

    folder: str
    columns: Mapping[str, str]
    labels: tuple[str, ...]
    label_column: str
    metrics: tuple[Metric, ...]
    train_rows: int = 0
    prefix: str = ""  # the first words of the inputs; "" means the task's name
    validation: str = "dev.tsv"
    test: str = "test.tsv"


PAIR = {"sentence1": "sentence1", "sentence2": "sentence2"}
_MNLI = Glue(
    "MNLI", {"premise": "sentence1", "hypothesis": "sentence2"}, NLI, "gold_label", (accuracy,), 392_702, "mnli",
    "dev_matched.tsv", "test_matched.tsv",
)  # fmt: skip
SUITE = {
    "cola": Glue("CoLA", {"sentence": "sentence"}, ("unacceptable", "acceptable"), "label", (matthews,), 8_551),
    "sst2": Glue("SST-2", {"sentence": "sentence"}, ("negative", "positive"), "label", (accuracy,), 67_349),
    "mrpc": Glue(
        "MRPC", {"sentence1": "#1 String", "sentence2": "#2 String"}, ("not_equivalent", "equivalent"), "Quality",
        (f1("equivalent", "not_equivalent"), accuracy), 3_668,
    ),
    "qqp": Glue(
        "QQP", {"question1": "question1", "question2": "question2"}, ("not_duplicate", "duplicate"), "is_duplicate",
        (f1("duplicate", "not_duplicate"), accuracy), 363_849,
    ),
    "stsb": Glue("STS-B", PAIR, (), "score", (pearson, spearman), 5_749),
    "mnli": _MNLI,
    "mnli_mismatched": dataclasses.replace(
        _MNLI, train_rows=0, validation="dev_mismatched.tsv", test="test_mismatched.tsv"
    ),
    "qnli": Glue("QNLI", {"question": "question", "sentence": "sentence"}, ENTAILMENT, "label", (accuracy,), 104_743),
    "rte": Glue("RTE", PAIR, ENTAILMENT, "label", (accuracy,), 2_490),
    "wnli": Glue("WNLI", PAIR, ("not_entailment", "entailment"), "label", (accuracy,)),
    "ax": dataclasses.replace(_MNLI, folder="diagnostic", train_rows=0, test="diagnostic.tsv", metrics=(matthews,)),
}  # fmt: skip
# {task: the file name that the benchmark's server expects in a submission}.
SUBMISSION = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "qqp": "QQP", "stsb": "STS-B", "mnli": "MNLI-m",
    "mnli_mismatched": "MNLI-mm", "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI", "ax": "AX",
}  # fmt: skip
NAMED_LABELS = (
    "mnli",
    "mnli_mismatched",
    "qnli",
    "rte",
    "ax",
)  # their submissions name the class; the others give its number


def of_file(glue: Glue, row: Example) -> Example:
    """A row of GLUE's files as the example that TFDS has: its fields, and `label` (-1: a test set's)."""
    texts = {field: row[column] for field, column in glue.columns.items()}
    written = row.get(glue.label_column, "").strip()
    if not glue.labels:
        return {**texts, "label": float(np.float32(written)) if written else -1.0}  # TFDS has it in float32
    if written in glue.labels:
        return {**texts, "label": glue.labels.index(written)}
    if written and not 0 <= int(written) < len(glue.labels):
        raise ValueError(f"the label {written!r} is none of {', '.join(glue.labels)}, nor the number of one")
    return {**texts, "label": int(written) if written else -1}


def as_text(prefix: str, labels: tuple[str, ...]) -> Callable[[Example], Example]:
    """Returns a preprocessor that makes the inputs in T5's format: the prefix, then "name: text" for every field,
    sorted by name (t5/data/preprocessors.py: glue, stsb)."""

    def apply(example: Example) -> Example:
        fields = sorted(field for field in example if field not in ("label", "idx"))
        inputs = " ".join([prefix, *(f"{field}: {example[field]}" for field in fields)])
        if example["label"] < 0:
            return {**example, "inputs": inputs, "targets": UNLABELLED}
        if labels:
            return {**example, "inputs": inputs, "targets": labels[example["label"]]}
        return {**example, "inputs": inputs, "targets": fifths(example["label"]), "number": example["label"]}

    return apply


def fifths(score: float) -> str:
    """Returns the nearest of STS-B's 21 classes, as text.

    >>> fifths(3.77), fifths(5.0)
    ('3.8', '5.0')
    """
    return f"{np.round(np.float32(score) * 5) / 5:.1f}"  # half to even, in float32, as TensorFlow rounds


def _rows(glue: Glue) -> Table | Callable[[str], Sequence[Example]]:
    table = Table("\t", quoting=False, drops_short_rows=True)  # QQP has a few short rows
    if glue.folder != "CoLA":
        return table
    return functools.partial(_cola_rows, table)


def _cola_rows(table: Table, path: str) -> Sequence[Example]:
    """CoLA's test file alone has a header."""
    columns = () if path.endswith("test.tsv") else ("source", "label", "mark", "sentence")
    return Files({"all": path}, dataclasses.replace(table, columns=columns)).split("all")


def _splits(name: str, glue: Glue) -> tuple[Mapping[str, Sequence[str]], dict[str, str]]:
    """Returns ({split: file names}, {split: its name in TFDS})."""
    if name == "ax":
        return {"test": (glue.test,)}, {"test": "test"}
    suffix = {"mnli": "_matched", "mnli_mismatched": "_mismatched"}.get(name, "")
    files = {"train": ("train.tsv",), "validation": (glue.validation,), "test": (glue.test,)}
    return files, {"train": "train", "validation": f"validation{suffix}", "test": f"test{suffix}"}


def _task(name: str, glue: Glue) -> Task:
    files, splits = _splits(name, glue)
    source = Published(
        glue.folder,
        files,
        _rows(glue),
        Tfds(f"glue/{'mnli' if name.startswith('mnli') else name}", splits),
        of_file=functools.partial(of_file, glue),
        of_tfds=of_tfds,
    )
    kind: dict = {"labels": glue.labels, "baseline": "majority"}
    if not glue.labels:
        kind = {"target": Number(), "postprocess": number_in, "reference": exact_number}
    prefix = glue.prefix or name
    return Task(
        f"glue_{name}", source, (as_text(prefix, glue.labels),), segments=tuple(glue.columns), metrics=glue.metrics,
        **kind,
    )  # fmt: skip


def exact_number(example: Example) -> float:
    """Returns the published score, because the target text is rounded to fifths."""
    return float(example["number"])


def of_tfds(example: Example) -> Example:
    """TFDS's example without its index, the label a number of Python's."""
    kept = {field: value for field, value in example.items() if field != "idx"}
    return {**kept, "label": np.asarray(example["label"]).item()}


def submission(task: str, predictions: Sequence[str]) -> tuple[str, str]:
    """Returns (name, content) of the file that submits a task's test predictions to gluebenchmark.com.

    predictions: the predicted texts, in the order of the test file. An invalid prediction becomes the first label, or
        the score 0.
    """
    name = task.removeprefix("glue_")
    glue = SUITE[name]
    lines = ["index\tprediction"]
    for index, text in enumerate(predictions):
        answer = text.strip()
        if not glue.labels:
            answer = f"{min(max(number_in(answer) or 0.0, 0.0), 5.0):.3f}"
        else:
            answer = answer if answer in glue.labels else glue.labels[0]  # the server rejects other texts
            answer = answer if name in NAMED_LABELS else str(glue.labels.index(answer))
        lines.append(f"{index}\t{answer}")
    return f"{SUBMISSION[name]}.tsv", "\n".join(lines) + "\n"


TASKS = {name: registry.add(_task(name, glue)) for name, glue in SUITE.items()}
registry.add(  # mnli_mismatched has 0 training rows: it is only evaluated
    Mixture("glue", {f"glue_{n}": float(glue.train_rows) for n, glue in SUITE.items() if n not in ("wnli", "ax")})
)
