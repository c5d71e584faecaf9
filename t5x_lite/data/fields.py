"""Reads the fields of a task's examples: texts, ids, labels, numbers, words and tags.

If a field is missing or wrong, the functions raise DataError, which says how to correct it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.registry import Task, label_names
from t5x_lite.data.targets import Match, Number, Similarity
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import DataError


class Encoded(dict[str, Any]):
    """An example from a cache. It holds token ids in place of each text. For a corpus that an encoder reads, it holds
    one array of token ids per sentence, in a list.

    label: the class index or number that the example's `targets` stands for, if the task has labels or numbers.
    """

    label: float = 0


def text_of(example: Mapping[str, Any], field: str, task: Task) -> Any:
    """Returns a field of an example as text; for an example from a cache, the field's ids."""
    if field not in example:
        raise DataError(
            f"task {task.name!r} needs the field {field!r}; after its preprocessors an example has "
            f"{', '.join(map(str, example)) or 'no fields'}. Make {field!r} with preprocess.template({field}='…')"
        )
    if example[field] is None:
        raise DataError(
            f"task {task.name!r}: the field {field!r} of an example is null; correct the data, or drop such examples "
            "with preprocess.keep"
        )
    if isinstance(example[field], bytes):
        raise DataError(
            f"task {task.name!r}: the field {field!r} of an example holds bytes that are not UTF-8; decode them in the "
            "source or in a preprocessor"
        )
    return example[field] if isinstance(example, Encoded) else str(example[field])


def vocabulary_of(field: str, vocabulary: Vocabulary) -> Vocabulary:
    """Returns the vocabulary that encodes a field. Marian's targets have their own."""
    return getattr(vocabulary, "for_targets", vocabulary) if field == "targets" else vocabulary


def ids_of(texts: Sequence, vocabulary: Vocabulary) -> list[np.ndarray]:
    """Returns the ids of each text. Texts from a cache are already ids."""
    return vocabulary.encode(texts) if not len(texts) or isinstance(texts[0], str) else list(texts)


def words_of(example: Mapping[str, Any], task: Task) -> list[str]:
    """Returns the words of a tagging example. Its field `tokens` is a list, or a text with spaces between words."""
    tokens = example.get("tokens")
    if isinstance(tokens, list | tuple):
        return [str(token) for token in tokens]
    return text_of(example, "tokens", task).split()


def tag_ids(example: Mapping[str, Any], task: Task) -> np.ndarray:
    """Returns the class index of each word's tag, int32 [words]. Raises DataError if a tag is missing or unknown."""
    names = task.target.classes
    tags, count = list(example.get("tags") or ()), len(words_of(example, task))
    unknown = [tag for tag in tags if tag not in names]
    if unknown or len(tags) != count:
        if unknown:
            problem = f"tag {unknown[0]!r} is not one of {', '.join(names)}"
            fix = "correct the data, or add the tag to the task's tags"
        else:
            problem, fix = f"{len(tags)} tags for {count} words", "correct the data, so that each word has one tag"
        raise DataError(f"task {task.name!r}: {problem}, in {' '.join(words_of(example, task))[:80]!r}; {fix}")
    return np.array([names.index(tag) for tag in tags], np.int32)


def check_target(example: Mapping[str, Any], task: Task) -> None:
    """Raises DataError if the task has labels and the example's target is not one of them, if the task has numbers and
    the target is not a number, or if the task compares texts and one of them is missing or empty."""
    if isinstance(task.target, Match | Similarity):
        from t5x_lite.data import text_pairs  # few tasks compare texts

        text_pairs.check(example, task)
    if task.target.several:
        label_set(example, task)
    elif isinstance(task.target, Number):
        number(example, task)
    elif task.labels:
        label(example, task)


def label_set(example: Mapping[str, Any], task: Task) -> list[bool]:
    """Returns, for each of the task's labels, whether the target names it. Raises DataError if it names another."""
    named = label_names(text_of(example, "targets", task))
    for name in named:
        _require_label(name, example, task)
    return [label in named for label in task.labels]


def label(example: Mapping[str, Any], task: Task) -> int:
    """Returns the class index of an example's target. Raises DataError if it is not one of the task's labels."""
    if isinstance(example, Encoded):
        return int(example.label)
    target = text_of(example, "targets", task).strip()
    _require_label(target, example, task)
    return task.labels.index(target)


def number(example: Mapping[str, Any], task: Task) -> float:
    """Returns the number that an example's target stands for. Raises DataError if the target is not a finite number."""
    if isinstance(example, Encoded):
        return example.label
    target = text_of(example, "number" if "number" in example else "targets", task).strip()
    try:
        value = float(target)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"task {task.name!r}: target {target!r} is not a finite number; correct it in the data "
            f"({beginnings(example, task)})"
        )
    return value


def _require_label(name: str, example: Mapping[str, Any], task: Task) -> None:
    if name not in task.labels:
        raise DataError(
            f"task {task.name!r}: label {name!r} is not one of {', '.join(task.labels)}; "
            f"correct the data, or add the label to the task's labels ({beginnings(example, task)})"
        )


def beginnings(example: Mapping[str, Any], task: Task) -> str:
    """Returns the beginnings of an example's texts, so that a reader of an error message can identify the example."""
    names = dict.fromkeys(("inputs", *task.segments))
    return ", ".join(f"{name} {str(example[name])[:80]!r}" for name in names if name in example)
