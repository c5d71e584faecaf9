"""Fills templates with the records of local files: the source behind `data.inputs`, `data.targets` and `data.text`."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from t5x_lite.data.preprocess import fill
from t5x_lite.data.records import Chained, Example, Records
from t5x_lite.data.sources import Files
from t5x_lite.errors import DataError


@dataclasses.dataclass(frozen=True)
class Filled:
    """A source whose examples are templates, filled with the records of the source `source`: {name: filled template}.

    A template is a text with fields in braces: "{title}: {body}", "{answers[0]}". List items are joined by spaces;
    booleans become "true" and "false". Reading an example raises DataError, which names the record's line, if the
    record lacks a field of the template or the field is null.

    templates: (name, template) pairs.
    labels: the allowed values of "targets"; () allows all. Reading an example with any other value raises DataError.
    """

    source: Files
    templates: tuple[tuple[str, str], ...]
    labels: tuple[str, ...] = ()

    def split(self, name: str) -> "FilledRecords":
        return FilledRecords(self.source.split(name), dict(self.templates), self.labels)

    def tolerant(self, max_bad_fraction: float) -> "Filled":
        """Returns a copy of this source that skips bad records, up to this fraction of all records."""
        return dataclasses.replace(self, source=self.source.tolerant(max_bad_fraction))

    def fingerprint(self, split: str) -> str:
        """Returns a text that changes whenever any example changes."""
        return f"{self.source.fingerprint(split)} {self.templates}"


class FilledRecords(Sequence[Example]):
    """A sequence of the examples of one split: the templates, filled with each record."""

    def __init__(self, rows: Records | Chained, templates: Mapping[str, str], labels: tuple[str, ...]):
        self._rows, self._labels = rows, labels
        self._templates = dict(templates)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        return self._filled(self._rows[place], place)

    def read_many(self, places: Sequence[int]) -> list[Example]:
        """Returns several examples at once, faster than one by one."""
        rows = self._rows.read_many(places)
        return [self._filled(row, place) for row, place in zip(rows, places, strict=True)]

    def _filled(self, row: Example, place: int) -> Example:
        example = {name: self._fill(name, row, place) for name in self._templates}
        if self._labels and example["targets"].strip() not in self._labels:
            raise DataError(
                f"{self.where(place)}: label {example['targets']!r} is not one of {', '.join(self._labels)}; correct "
                "the label, or add it to data.labels"
            )
        return example

    def text(self, name: str, place: int) -> str:
        """Returns one field of an example: the filled template `name`."""
        return self._fill(name, self._rows[place], place)

    def is_unlabelled(self) -> bool:
        """Returns whether the split has records, but no labels: every target is empty, or -1 as in Hugging Face's test
        sets."""
        template = self._templates.get("targets")
        with contextlib.suppress(ValueError):
            if template is not None and len(self):
                return all(fill(template, row).strip() in ("", "-1") for row in self._rows)
        return False

    def where(self, place: int) -> str:
        """Returns the file and line of an example, for messages."""
        return self._rows.where(place)

    def _fill(self, name: str, row: Example, place: int) -> str:
        try:
            text = fill(self._templates[name], row)
        except ValueError as error:
            raise DataError(
                f"{self.where(place)}: {error}, which {name} needs; the record has {', '.join(map(str, row))[:200]}"
            ) from None
        if name != "text" and not text.strip():  # a corpus may hold empty texts; they give no example
            raise DataError(
                f"{self.where(place)}: {name} is empty; fill it in, remove the record, or skip such records with "
                "data.max_bad_fraction=0.01"
            )
        return text
