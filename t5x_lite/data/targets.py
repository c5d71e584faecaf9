"""Defines the kinds of targets that a task can have. Each kind except `Text` has its own encoder head.

A model that generates text generates the example's field `targets`, whatever the kind of target. An encoder predicts
the target with the head for its kind (heads.py): data/convert_encoder.py prepares the arrays that the head needs, and
evaluation/read_heads.py reads the head's output.
"""

import dataclasses
import math
from typing import Any

from t5x_lite.errors import ConfigError


class Target:
    """The base class of the kinds of targets.

    head: the head that an encoder predicts the target with; "" for none.
    labels: the texts that the field `targets` may hold; () for any text.
    classes: the names of the head's outputs.
    several: whether an example may have several labels.
    fields: the fields of an example that an encoder reads after the task's segments.
    texts: how many texts of an example an encoder reads side by side in a row; they do not attend to each other.
    """

    head: str = ""
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    several: bool = False
    fields: tuple[str, ...] = ()
    texts: int = 1

    def identity(self) -> dict[str, Any]:
        """Returns JSON-able data that distinguishes the target from other targets, for the task's fingerprint."""
        return {}


@dataclasses.dataclass(frozen=True)
class Text(Target):
    """A target that may be any text. No head of an encoder predicts it."""


@dataclasses.dataclass(frozen=True)
class Corpus(Target):
    """The target of a corpus. The feature converter's objective makes it from the text. An encoder restores masked
    tokens."""

    head = "mlm"


@dataclasses.dataclass(frozen=True)
class Classes(Target):
    """A target that is one of the labels. With `several`, it is any number of labels, separated by commas ("joy,
    surprise"; "" for none).

    For metrics of several labels, give the task `postprocess=registry.label_names`.
    Raises ConfigError if `labels` is empty, or if `several` is true and a label is empty or contains a comma.
    """

    labels: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    several: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not self.labels:
            raise ConfigError("Classes needs labels; got none. Give at least one, such as Classes(('no', 'yes'))")
        if self.several and any("," in label or not label.strip() for label in self.labels):
            raise ConfigError(
                f"Classes(labels={self.labels}, several=True): a label may not be empty or contain a comma, because "
                "commas separate the labels in `targets`; rename it"
            )

    @property
    def head(self) -> str:  # type: ignore[override]
        return "multi_label" if self.several else "classification"

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.labels

    def identity(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "multi_label": self.several}


@dataclasses.dataclass(frozen=True)
class Number(Target):
    """A target that is a number, written as text. If the text is rounded, the example's field `number` holds the exact
    number."""

    head = "regression"

    def identity(self) -> dict[str, Any]:
        return {"regression": True}


def number_in(text: str) -> float | None:
    """Returns the finite number that a text spells; None if it spells none.

    >>> number_in("3.8"), number_in("nan"), number_in("four")
    (3.8, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Tags(Target):
    """A target that is one tag per word (BIO). An example's field `tokens` holds its words, and `tags` holds one tag
    per word."""

    classes: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    head = "token_classification"

    def identity(self) -> dict[str, Any]:
        return {"tags": list(self.classes)}


@dataclasses.dataclass(frozen=True)
class Span(Target):
    """A target that is a part of the last segment. An example's field `answer_span` is (begin, end) in characters, or
    None.

    always: whether every example has an answer.
    """

    always: bool = True
    head = "span"

    def identity(self) -> dict[str, Any]:
        return {"extractive": "always" if self.always else "sometimes"}


@dataclasses.dataclass(frozen=True)
class Choices(Target):
    """A target that is one of several candidates. The candidate with the label labels[i] is in the example's field
    fields[i]. `targets` is the label of the correct candidate. An encoder reads each candidate after the segments."""

    labels: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    fields: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    head = "multiple_choice"

    @property
    def texts(self) -> int:  # type: ignore[override]
        return len(self.fields)

    def identity(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "choices": list(self.fields)}


@dataclasses.dataclass(frozen=True)
class Match(Target):
    """A target that is the text that matches the inputs, such as the answer to a question.

    An encoder embeds each text on its own. It is trained so that the embedding of the inputs (the first of the task's
    segments) is closer to that of the match than to those of all other matches and negatives in the batch.

    fields: the example's field with the match, and then the fields of hard negatives, if there are any: texts that do
        not match although they look as if they did.
    """

    fields: tuple[str, ...] = ("targets",)  # pyright: ignore[reportIncompatibleVariableOverride]
    head = "contrastive"

    @property
    def texts(self) -> int:  # type: ignore[override]
        return 1 + len(self.fields)

    def __post_init__(self) -> None:
        _require_fields(self)

    def identity(self) -> dict[str, Any]:
        return {"match": list(self.fields)}


@dataclasses.dataclass(frozen=True)
class Similarity(Number):
    """A target that is a number that says how similar two texts are, written as text.

    An encoder embeds each text on its own: the first of the task's segments, and the field `fields[0]`. It predicts the
    cosine of the two embeddings, and is trained to predict a cosine of 0 for the number `low` and 1 for `high`. For
    metrics, use correlations: predictions are cosines, targets are numbers from `low` to `high`.
    """

    low: float
    high: float
    fields: tuple[str, ...]  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    head = "similarity"
    texts = 2

    def __post_init__(self) -> None:
        _require_fields(self)
        if len(self.fields) != 1:
            raise ConfigError(f"{self}: fields must name one field, of the text to compare with the inputs")
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"Similarity(low={self.low}, high={self.high}): low must be below high, both finite")

    def cosine(self, number: float) -> float:
        """Returns the cosine that stands for a number."""
        return (number - self.low) / (self.high - self.low)

    def identity(self) -> dict[str, Any]:
        return {"similarity": [self.low, self.high, *self.fields]}


def _require_fields(target: Match | Similarity) -> None:
    if isinstance(target.fields, str):
        raise ConfigError(f"{target}: fields must be a tuple; write ({target.fields!r},)")
    object.__setattr__(target, "fields", tuple(target.fields))
    if not target.fields:
        raise ConfigError(f"{target}: fields is empty; name the field of the text to compare with the inputs")
