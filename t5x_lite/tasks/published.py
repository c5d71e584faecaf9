"""Reads published data sets from TFDS, or from a local directory in the published layout. The examples are the same."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.data import preprocess, registry
from t5x_lite.data.opened_files import braces
from t5x_lite.data.records import Example, Format
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Files, Tfds
from t5x_lite.data.text_formats import JsonLines, ParallelLines
from t5x_lite.errors import ConfigError, DataError, one_line
from t5x_lite.lookup import unknown

Read = Callable[[str], Sequence[Example]]


@dataclasses.dataclass(frozen=True)
class Published:
    """The source of a published data set.

    folder: the name of the directory in which it is published.
    files: {split: candidate file names}. The first that exists is read. {en,de} in a name means two parallel files.
    read: a function from a path to rows, or the format of the files.
    tfds: the data set's source in TFDS; None if TFDS lacks the data set, or has it in an unsuitable form.
    of_file, of_tfds: functions from a row to an example.
    directory: the directory that holds the folder, or the folder itself; "": reads from TFDS.
    """

    folder: str
    files: Mapping[str, Sequence[str]]
    read: Read | Format
    tfds: Tfds | None
    of_file: Callable[[Example], Example] = dict
    of_tfds: Callable[[Example], Example] = dict
    directory: str = ""

    def at(self, directory: str) -> "Published":
        """Returns a copy of this source that reads from a local directory."""
        return dataclasses.replace(self, directory=directory)

    def split(self, name: str) -> Sequence[Example]:
        """Returns the examples of a split. Raises ConfigError if the split is unknown, DataError if the split's file is
        not found."""
        if self.directory or self.tfds is None:
            if name not in self.files:
                raise ConfigError(unknown(f"split of {self.folder}", name, self.files))
            return Mapped(self._rows(name), self.of_file)
        try:
            return Mapped(self.tfds.split(name), self.of_tfds)
        except DataError as error:
            raise DataError(
                f"{error}. Or give the published files with --config.data.dir=DIR, where DIR/{self.folder} holds "
                f"{self.files['train' if 'train' in self.files else next(iter(self.files))][0]}"
            ) from error

    def fingerprint(self, split: str) -> str:
        """Returns a text that changes whenever any example changes."""
        rows = self.split(split)
        own = getattr(rows.rows, "fingerprint", None) if isinstance(rows, Mapped) else None
        function = self.of_file if self.directory else self.of_tfds
        return f"{own} {preprocess.identity(function)}" if own else registry.digest(rows)

    def _rows(self, split: str) -> Sequence[Example]:
        path = self.find(split)
        if not callable(self.read):
            form = ParallelLines() if braces(path) else self.read
            return Files({split: path}, form).split(split)
        return _read(self.read, path)

    def find(self, split: str) -> str:
        """Returns the path of a split's file. If there is none, raises DataError, which lists the places that were
        searched."""
        if not self.directory:
            raise DataError(
                f"the data set {self.folder!r} is not available from TFDS; give its files with --config.data.dir=DIR, "
                f"where DIR/{self.folder} holds {self.files[split][0]}"
            )
        root = Path(self.directory).expanduser()
        if not root.is_dir():
            raise DataError(f"data.dir={self.directory!r} is not a directory; give the one that holds {self.folder}")
        folders = [root / self.folder, *sorted(root.glob(f"*/{self.folder}")), root]
        for folder in folders:
            for name in self.files[split]:
                paths = list((braces(name) or {"": name}).values())
                if all((folder / path).is_file() for path in paths):
                    return str(folder / name)
        names = self.files[split]
        raise DataError(
            f"data.dir={self.directory!r}: no file for split {split!r} of {self.folder}; looked for "
            f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''} there, in {self.folder}/ and in */{self.folder}/"
        )


@functools.cache
def _read(read: Read, path: str) -> Sequence[Example]:
    return read(path)


@dataclasses.dataclass(frozen=True)
class Mapped(Sequence):
    """A sequence of `function(row)` for every row. An item is computed when it is accessed.

    Raises DataError, which names the place of the row, if `function` fails on a row.
    """

    rows: Sequence[Example]
    function: Callable[[Example], Example]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        if place >= len(self.rows):
            raise IndexError(place)
        row = self.rows[place]
        try:
            return self.function(row)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            where = getattr(self.rows, "where", lambda place: f"example {place}")(place)
            raise DataError(f"{where}: differs from the published layout: {_reason(error)}") from error


@dataclasses.dataclass(frozen=True)
class Chosen(Sequence):
    """A sequence of the rows at `places`."""

    rows: Sequence[Example]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        return self.rows[self.places[place]]


def use_directory(directory: str) -> None:
    """Makes every registered task of a published data set read its files from `directory`."""
    for entry in list(registry.REGISTRY.values()):
        if isinstance(entry, Task) and isinstance(entry.source, Published):
            registry.add(dataclasses.replace(entry, source=entry.source.at(directory)))


def read_json(path: str) -> Any:
    """Returns the contents of a JSON file. Raises DataError, which names the file, if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error


def nested(expand: Callable[[Example], Iterable[Example]]) -> Read:
    """Returns a function that reads a file of JSON lines, in which a line holds several examples. `expand` yields the
    examples of a line."""

    def read(path: str) -> list[Example]:
        rows = Files({"all": path}, JsonLines()).split("all")
        found = []
        for place in range(len(rows)):
            with as_data_error(rows.where(place)):
                found.extend(expand(rows[place]))
        return found

    return read


@contextlib.contextmanager
def as_data_error(where: str):
    """Converts an error in the `with` block to a DataError whose message begins with `where`. Converts only the kinds
    of errors that a row with a different layout causes."""
    try:
        yield
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{where}: differs from the published layout: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else one_line(error)
