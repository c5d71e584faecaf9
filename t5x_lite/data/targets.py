"""What a task's examples have to be turned into: the kinds of targets, one for each head of an encoder.

A model that writes text writes each of them as the example's field `targets`. An encoder predicts it with the head that
its kind names (heads.py), which data/convert_encoder.py prepares and evaluation/read_heads.py reads.
"""

import dataclasses
from typing import Any

from t5x_lite.errors import ConfigError


class Target:
    """A kind of target.

    head: what an encoder predicts it with; "" for none.
    labels: the texts that `targets` may be, if they are few.
    classes: the names of the head's outputs.
    several: whether an example may have several of the labels.
    fields: fields of an example that an encoder reads behind the task's segments.
    """

    head: str = ""
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    several: bool = False
    fields: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What distinguishes it from other targets, as JSON-able data."""
        return {}


@dataclasses.dataclass(frozen=True)
class Text(Target):
    """Any text. An encoder has no head for it."""


@dataclasses.dataclass(frozen=True)
class Corpus(Target):
    """None: a corpus, whose objective the feature converter brings. An encoder restores masked tokens."""

    head = "mlm"


@dataclasses.dataclass(frozen=True)
class Classes(Target):
    """One of the labels, or with `several` any number of them with commas between ("joy, surprise"; "": none).

    Metrics of several labels compare them with `postprocess=registry.label_names`.
    """

    labels: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    several: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not self.labels:
            raise ConfigError("Classes needs labels; there are none")
        if self.several and any("," in label or not label.strip() for label in self.labels):
            raise ConfigError(
                "with several labels to an example none may be empty or have a comma, which stands between them in "
                f"`targets`; they are {self.labels}"
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
    """A number, written as text; where that is rounded, the example's field `number` is the number itself."""

    head = "regression"

    def identity(self) -> dict[str, Any]:
        return {"regression": True}


@dataclasses.dataclass(frozen=True)
class Tags(Target):
    """A tag for each word (BIO): an example's `tokens` and `tags` are its words and their tags."""

    classes: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    head = "token_classification"

    def identity(self) -> dict[str, Any]:
        return {"tags": list(self.classes)}


@dataclasses.dataclass(frozen=True)
class Span(Target):
    """A part of the last segment. An example's `answer_span` is (begin, end) in characters, None where there is none.

    always: whether every example has one.
    """

    always: bool = True
    head = "span"

    def identity(self) -> dict[str, Any]:
        return {"extractive": "always" if self.always else "sometimes"}


@dataclasses.dataclass(frozen=True)
class Choices(Target):
    """One of several candidates, which stand in `fields`, one for each label; `targets` is the right one's label. An
    encoder reads each of them behind the segments."""

    labels: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    fields: tuple[str, ...]  # pyright: ignore[reportGeneralTypeIssues]
    head = "multiple_choice"

    def identity(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "choices": list(self.fields)}
