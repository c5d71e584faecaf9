"""Defines the tasks of SuperGLUE (Wang et al. 2019) as text, in T5's format (t5/data/preprocessors.py,
t5/data/glue_utils.py).

Reads from TFDS, or from a directory with SuperGLUE's folders and files: --config.data.dir=DIR, where DIR holds
BoolQ/train.jsonl and so on. The classification tasks also train encoder heads. Unlike T5's mixture, this one does not
add the Definite Pronoun Resolution set (1,322 examples, Rahman and Ng 2012) to WSC.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5x_lite.data import registry
from t5x_lite.data.records import Example
from t5x_lite.data.registry import UNLABELLED, Mixture, Task
from t5x_lite.data.sources import Tfds
from t5x_lite.data.targets import Choices, Classes
from t5x_lite.data.text_formats import JsonLines
from t5x_lite.tasks.metrics import accuracy, f1, grouped, macro_f1_of, matthews, of_groups, pairs, percent
from t5x_lite.tasks.published import Published, nested
from t5x_lite.tasks.text_metrics import squad

YES_NO = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
CB = ("entailment", "contradiction", "neutral")


@dataclasses.dataclass(frozen=True)
class SuperGlue:
    """A classification task of SuperGLUE.

    folder: the directory of its files.
    fields: the fields of an example, in the order of the text.
    labels: the class names, in the order of their ids.
    train_rows: the number of training examples, for mixtures; 0 for a task with only a test set.
    prefix: the first words of the text; "" means the task's name.
    columns: {field: its column in the files}, for fields whose names differ from their columns' names.
    """

    folder: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    train_rows: int = 0
    metrics: tuple = (accuracy,)
    prefix: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    segments: tuple[str, ...] = ("inputs",)  # fields that an encoder reads
    choices: tuple[str, ...] = ()  # fields from which an encoder chooses one


PREMISE = ("premise", "hypothesis")
SUITE = {
    "boolq": SuperGlue("BoolQ", ("passage", "question"), YES_NO, 9_427, segments=("question", "passage")),
    "cb": SuperGlue(
        "CB", ("hypothesis", "premise"), CB, 250, (macro_f1_of(*CB), accuracy),
        segments=PREMISE,
    ),
    "copa": SuperGlue(
        "COPA", ("choice1", "choice2", "premise", "question"), ("choice1", "choice2"), 400,
        segments=("premise", "question"), choices=("choice1", "choice2"),
    ),
    "rte": SuperGlue("RTE", ("hypothesis", "premise"), ENTAILMENT, 2_490, segments=PREMISE),
    "wic": SuperGlue("WiC", ("sentence1", "sentence2", "word"), YES_NO, 5_428),
    "axb": SuperGlue(
        "AX-b", ("hypothesis", "premise"), ENTAILMENT, 0, (matthews,), "rte",
        {"premise": "sentence1", "hypothesis": "sentence2"}, segments=PREMISE,
    ),
    "axg": SuperGlue("AX-g", ("hypothesis", "premise"), ENTAILMENT, 0, (accuracy,), "rte", segments=PREMISE),
}  # fmt: skip


def _files(*splits: str) -> dict[str, Sequence[str]]:
    names = {"train": ("train.jsonl",), "validation": ("val.jsonl", "validation.jsonl"), "test": ("test.jsonl",)}
    return {split: names[split] for split in splits}


ALL = ("train", "validation", "test")


def class_of(label: Any, labels: Sequence[str]) -> int:
    """Returns the id of a class. `label` is its name, its number or a truth value. Returns -1 if it is None or "", as
    in a test set.

    Raises ValueError for any other label.
    """
    if label is None or label == "":
        return -1
    text = str(label)
    for name, written in enumerate(labels):
        if text.lower() == written.lower():
            return name
    number = int(label)
    if not -1 <= number < len(labels):
        raise ValueError(f"the label {label!r} is not one of {', '.join(labels)}, nor a class number from 0")
    return number


def _of_row(task: SuperGlue) -> Callable[[Example], Example]:
    """Returns a function that maps a row to the row's fields and class id. The row may come from a file or from
    TFDS."""

    def apply(row: Example) -> Example:
        # Files name the column as in `columns`, and so does TFDS (axb); other columns have the field's name.
        texts = {field: str(row[task.columns.get(field, field)]) for field in task.fields}
        return {**texts, "label": class_of(row.get("label"), task.labels)}

    return apply


def as_text(prefix: str, fields: tuple[str, ...], labels: tuple[str, ...]) -> Callable[[Example], Example]:
    """Returns a preprocessor that makes the inputs in T5's format: the prefix, then "name: text" for each field. The
    target is the class."""

    def apply(example: Example) -> Example:
        inputs = " ".join([prefix, *(f"{field}: {example[field]}" for field in fields)])
        target = UNLABELLED if example["label"] < 0 else labels[example["label"]]
        return {**example, "inputs": inputs, "targets": target}

    return apply


def _task(name: str, task: SuperGlue) -> Task:
    splits = ALL if task.train_rows else ("test",)
    files = _files(*splits)
    if not task.train_rows:
        files = {"test": (f"{task.folder}.jsonl", "test.jsonl")}
    source = Published(
        task.folder, files, JsonLines(), Tfds(f"super_glue/{name}", dict(zip(splits, splits, strict=True))),
        of_file=_of_row(task), of_tfds=_of_row(task),
    )  # fmt: skip
    target = Choices(task.labels, task.choices) if task.choices else Classes(task.labels)
    return Task(
        f"super_glue_{name}", source, (as_text(task.prefix or name, task.fields, task.labels),), target=target,
        segments=task.segments, metrics=task.metrics,
        baseline="majority" if task.train_rows else "",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- MultiRC


def multirc_rows(row: Example) -> Iterator[Example]:
    """An example for each answer of each question of a passage, as TFDS has them."""
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": row["passage"]["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": class_of(answer.get("label"), YES_NO),
                "group": f"{row['idx']}-{question['idx']}",
            }


def _multirc_of_tfds(example: Example) -> Example:
    group = f"{int(example['idx']['paragraph'])}-{int(example['idx']['question'])}"
    kept = {field: example[field] for field in ("paragraph", "question", "answer")}
    return {**kept, "label": int(example["label"]), "group": group}


def multirc(example: Example) -> Example:
    """Without the paragraph's markup."""
    paragraph = re.sub(r"</?b>", "", example["paragraph"].replace("<br>", " "))
    example = {**example, "paragraph": paragraph, "query": f"{example['question']} {example['answer']}"}
    return as_text("multirc", ("question", "answer", "paragraph"), YES_NO)(example)


def group_and_answer(example: Example) -> tuple[str, str]:
    return example["group"], example["targets"]


# ------------------------------------------------------------------------------------------------------------ ReCoRD


def record_rows(row: Example) -> Iterator[Example]:
    """An example for each query of a passage; names and answers once each and in order, as TFDS has them."""
    text = row["passage"]["text"]
    entities = [text[entity["start"] : entity["end"] + 1] for entity in row["passage"]["entities"]]
    for query in row["qas"]:
        answers = [answer["text"] for answer in query.get("answers", ())]
        yield {
            "passage": text,
            "query": query["query"],
            "entities": sorted(set(entities)),
            "answers": sorted(set(answers)),
        }


def _record_train_rows(row: Example) -> Iterator[Example]:
    """In training, an example for each answer."""
    for example in record_rows(row):
        for answer in example["answers"]:
            yield {**example, "targets": answer}


def record(example: Example) -> Example:
    """Entities in a row; a highlight of the passage is a sentence."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", example["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    answers = [str(answer) for answer in example["answers"]]
    entities = ", ".join(map(str, example["entities"]))
    return {
        **example,
        "inputs": f"record query: {example['query']} entities: {entities} passage: {passage}",
        "targets": example.get("targets", answers[0] if answers else UNLABELLED),
        "answers": answers,
    }


def answers(example: Example) -> list[str]:
    return list(example["answers"])


# --------------------------------------------------------------------------------------------------------------- WSC

# Words that a referent may omit (t5/data/postprocessors.py: wsc_simple).
DETERMINERS = {
    "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the", "their",
    "these", "this", "those", "which", "whose", "your",
}  # fmt: skip


def _wsc_of_file(row: Example) -> Example:
    return {"text": row["text"], **row["target"], "label": class_of(row.get("label"), YES_NO)}


def _wsc_of_tfds(example: Example) -> Example:
    names = ("text", "span1_text", "span2_text", "span1_index", "span2_index")
    return {**{name: example[name] for name in names}, "label": int(example["label"])}


def wsc(example: Example) -> Example:
    """The pronoun between stars; what it stands for, or may, is the target.

    >>> wsc({"text": "Bob paid since he could", "span1_text": "Bob", "span2_text": "he", "span2_index": 3})["inputs"]
    'wsc: Bob paid since *he* could'
    """
    words, place, pronoun = example["text"].split(" "), int(example["span2_index"]), example["span2_text"]
    if pronoun not in words[place]:  # one published index is off by a word: "use it" at "use"
        place = min((i for i, word in enumerate(words) if pronoun in word), key=lambda i: abs(i - place))
    words[place] = words[place].replace(pronoun, f"*{pronoun}*", 1)
    return {**example, "inputs": f"wsc: {' '.join(words)}", "targets": example["span1_text"]}


def wsc_train(example: Example) -> Example | None:
    """Pronouns with what they do stand for alone."""
    return wsc(example) if example["label"] == 1 else None


def referent(example: Example) -> tuple[str, bool]:
    """Returns (the candidate referent, whether the pronoun refers to it)."""
    return example["span1_text"], example["label"] == 1


def wsc_accuracy(targets: Sequence[tuple[str, bool]], predictions: Sequence[str | None]) -> dict[str, float]:
    """Returns the share of right predictions. A prediction matches a candidate if, without determiners, all words of
    one are among the words of the other. If the candidate is the true referent, a prediction that matches it is right.
    Otherwise a prediction that does not match it is right. An empty prediction is wrong.

    >>> wsc_accuracy([("the man", True), ("the man", False)], ["Man", "man"])
    {'accuracy': 50.0}
    """
    right = []
    for (target, stands), predicted in pairs(targets, predictions):
        candidate, answer = (
            " ".join(word for word in (text or "").strip().lower().split() if word not in DETERMINERS)
            for text in (target, predicted)
        )
        same = ("'" in answer) == ("'" in candidate) and (
            set(answer.split()) <= set(candidate.split()) or set(candidate.split()) <= set(answer.split())
        )
        right.append(bool(answer) and same == stands)
    return {"accuracy": percent(right)}


# ------------------------------------------------------------------------------------------------------------- tasks

TASKS = {name: registry.add(_task(name, task)) for name, task in SUITE.items()}
registry.add(
    Task(
        "super_glue_multirc",
        Published("MultiRC", _files(*ALL), nested(multirc_rows), Tfds("super_glue/multirc"), of_tfds=_multirc_of_tfds),
        (multirc,),
        labels=YES_NO,
        segments=("paragraph", "query"),
        metrics=(of_groups(f1("True", "False")), grouped),
        reference=group_and_answer,
        baseline="majority",
    )
)


def _record_read(path: str) -> Sequence[Example]:
    return nested(_record_train_rows if path.endswith("train.jsonl") else record_rows)(path)


registry.add(
    Task(
        "super_glue_record",
        Published("ReCoRD", _files(*ALL), _record_read, None),  # TFDS lacks one training example for each answer
        (record,),
        metrics=(squad,),
        reference=answers,
    )
)
_WSC = Published("WSC", _files(*ALL), JsonLines(), Tfds("super_glue/wsc.fixed"), _wsc_of_file, _wsc_of_tfds)
registry.add(Task("super_glue_wsc_train", _WSC, (wsc_train,)))
registry.add(Task("super_glue_wsc", _WSC, (wsc,), metrics=(wsc_accuracy,), reference=referent))
registry.add(
    Mixture(
        "super_glue",
        {f"super_glue_{name}": float(task.train_rows) for name, task in SUITE.items() if task.train_rows}
        | {
            "super_glue_multirc": 27_243.0,
            "super_glue_record": 138_854.0,
            "super_glue_wsc_train": 259.0,
            "super_glue_wsc": 0.0,
        },
    )
)
