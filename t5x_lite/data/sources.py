"""Defines sources, from which a task's examples come. All give random access, so shuffling and resuming cost nothing.

Files are read strictly (records.py, text_formats.py, binary_formats.py): a bad byte or a row with too many columns
raises DataError, which names the file and the line.
"""

import contextlib
import dataclasses
import functools
import glob
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.data.binary_formats import ArrayRecordRows, ArrowRows, ParquetRows, texts
from t5x_lite.data.divide import sizes_of
from t5x_lite.data.opened_files import File
from t5x_lite.data.records import (
    HASH,
    PERCENT,
    Chained,
    Example,
    Format,
    Records,
    divide_records,
    open_records,
    records_of,
)
from t5x_lite.data.text_formats import JsonLines, Paragraphs, ParallelLines, Sentences, Table, TextLines
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import unknown


@dataclasses.dataclass(frozen=True)
class Function:
    """A source of the examples that `function(split)` returns. The function is called once per split, on first use."""

    function: Callable[[str], Sequence[Example]]
    splits: tuple[str, ...] = ("train", "validation", "test")

    def split(self, name: str) -> Sequence[Example]:
        if name not in self.splits:
            raise ConfigError(unknown("split", name, self.splits))
        return self._examples(name)

    @functools.cache  # noqa: B019  (sources live as long as the process)
    def _examples(self, name: str) -> Sequence[Example]:
        return self.function(name)


@dataclasses.dataclass(frozen=True)
class Files:
    """A source of files in a format of text_formats.py or binary_formats.py. Construct it with `Text`, `Jsonl`, `Csv`
    and the other functions below.

    files: {split: path}, or one path whose examples are split by hash. A path may have wildcards (it then stands for
        all matching files, sorted by name), end in .gz, or be a URL such as gs://…
    max_bad_fraction: the fraction of the records that may be bad. Bad records are left out. With 0, the first bad
        record raises DataError.
    division: what divides one path's examples into splits, as data/divide.py explains; "": their hash. Sizes may also
        take the missing splits from the path of "train".
    """

    files: Mapping[str, str] | str
    form: Format
    max_bad_fraction: float = 0.0
    division: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits. Some may have no example, unless sizes or paths are given."""
        sizes = sizes_of(self.division)
        if isinstance(self.files, str):
            return ("train", *sizes) if sizes else tuple(PERCENT)
        return (*self.files, *sizes)

    def split(self, name: str) -> Records | Chained:
        """Returns the records of a split.

        Raises ConfigError for an unknown split, DataError if a file cannot be read or too many records are bad.
        """
        if name not in self.splits:
            raise ConfigError(unknown("split", name, self.splits))
        sizes, is_one = sizes_of(self.division), isinstance(self.files, str)
        paths = matching(self.files if is_one else self.files.get(name, self.files.get("train")))  # type: ignore
        tolerant = self.max_bad_fraction > 0
        if sizes and name in ("train", *sizes):
            files = tuple(File.of(path) for path in paths)
            parts = _divided(files, self.form, tolerant, self.division)[["train", *sizes].index(name)]
        else:
            split, by = (name, self.division or HASH) if is_one else ("", HASH)
            parts = [open_records(path, self.form, split, tolerant, by) for path in paths]
        bad, total = sum(part.bad for part in parts), sum(part.total for part in parts)
        if bad > self.max_bad_fraction * total:
            first = next(path for path, part in zip(paths, parts, strict=True) if part.bad)
            raise DataError(
                f"{first}{', …' * (len(paths) > 1)}: {bad:,} of {total:,} records are bad, more than "
                f"max_bad_fraction={self.max_bad_fraction:g}; correct them (0 shows the first), or allow more"
            )
        return parts[0] if len(parts) == 1 else Chained(parts)

    def tolerant(self, max_bad_fraction: float) -> "Files":
        """Returns a source of the same files that allows this fraction of bad records."""
        return dataclasses.replace(self, max_bad_fraction=max_bad_fraction)

    def fingerprint(self, split: str) -> str:
        """Returns a text that changes whenever any example changes."""
        return self.split(split).fingerprint


def Text(files: Mapping[str, str] | str, paragraphs: bool = False) -> Files:
    """Returns a source of text files. Each line that is not blank becomes an example `{"text": …}`. With `paragraphs`,
    each run of such lines becomes one example."""
    return Files(files, Paragraphs() if paragraphs else TextLines())


def Jsonl(files: Mapping[str, str] | str) -> Files:
    """Returns a source of JSON objects, one per line."""
    return Files(files, JsonLines())


def Csv(
    files: Mapping[str, str] | str, delimiter: str = ",", columns: Sequence[str] = (), quoting: bool = True
) -> Files:
    """Returns a source of tables. Each column becomes a text field.

    delimiter: "," or "\\t".
    columns: names of the columns, for a file without a header.
    quoting: False if quotes are text, as in GLUE's files.
    """
    return Files(files, Table(delimiter, tuple(columns), quoting))


def Conll(files: Mapping[str, str] | str, columns: Sequence[str] = ("tokens", "tags")) -> Files:
    """Returns a source of sentences in CoNLL's columns: a line holds a token and its tags. Each column of a sentence
    becomes a text with spaces between tokens."""
    return Files(files, Sentences(tuple(columns)))


def ParallelText(files: Mapping[str, str] | str) -> Files:
    """Returns a source of parallel text files, such as translations: "train.{en,de}.gz" stands for two files and gives
    examples {"en": …, "de": …}."""
    return Files(files, ParallelLines())


def Parquet(files: Mapping[str, str] | str) -> Files:
    """Returns a source of Parquet files. Each column becomes a field."""
    return Files(files, ParquetRows())


def Arrow(files: Mapping[str, str] | str) -> Files:
    """Returns a source of Arrow files, such as those of Hugging Face's `save_to_disk` ("DIR/train/*.arrow")."""
    return Files(files, ArrowRows())


def ArrayRecord(files: Mapping[str, str] | str) -> Files:
    """Returns a source of ArrayRecord files of JSON objects. (`Tfds` reads the files that TFDS writes.)"""
    return Files(files, ArrayRecordRows())


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A source that reads a data set of TensorFlow Datasets (TFDS) without TensorFlow, through TFDS's `data_source`.
    The data set's files must be array_record or parquet. Bytes that are UTF-8 become str.

    splits: {split: its name in TFDS}.
    """

    name: str
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    data_dir: str | None = None

    def split(self, name: str) -> Sequence[Example]:
        """Returns the examples of a split. Raises ConfigError if the split is unknown, DataError if TFDS fails."""
        if name not in self.splits:
            raise ConfigError(unknown("split", name, self.splits))
        import tensorflow_datasets as tfds

        # Without TensorFlow, tfds finds its own data sets only after their module is imported.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.text.{self.name.split('/')[0].split(':')[0]}")
        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir, try_gcs=False)
            source = builder.as_data_source(split=self.splits[name])  # pyright: ignore[reportCallIssue]
            return _Decoded(source)
        except Exception as error:  # tfds raises many classes; the user needs the reason
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"cannot open the TFDS data set {self.name!r}, split {self.splits[name]!r}: {reason}. "
                "Prepare it with file_format='array_record' (builder.download_and_prepare) and give its data_dir"
            ) from error


class _Decoded(Sequence):
    """A data source whose bytes are decoded to str."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        return texts(self._source[index])


@functools.lru_cache(maxsize=8)
def _divided(files: tuple[File, ...], form: Format, tolerant: bool, division: str) -> list[list[Records]]:
    return divide_records([records_of(file, form, "", tolerant, HASH) for file in files], division)


def matching(pattern: str) -> list[str]:
    """Returns the paths that match a pattern with wildcards, sorted by name. A path without wildcards is returned
    unchanged, even if there is no such file.

    Raises DataError if no file matches the wildcards.
    """
    if not any(c in pattern for c in "*?["):
        return [pattern]
    if "://" in pattern:
        from etils import epath

        parent, _, name = pattern.rpartition("/")
        paths = sorted(str(path) for path in epath.Path(parent).glob(name))
    else:
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute pattern)
    paths = paths or [pattern] * Path(pattern).exists()  # a file whose name only looks like a pattern
    if not paths:
        raise DataError(f"no file matches {pattern!r}; is {Path(pattern).parent} the right directory?")
    return paths
