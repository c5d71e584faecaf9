"""Sources: where a task's examples come from. All give random access, so order and resumption cost nothing.

Files are read as UTF-8, strictly: a bad byte or a ragged row is a DataError with file and line, never a guess.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest, unknown

Example = Mapping[str, Any]
PERCENT = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100)}


@dataclasses.dataclass(frozen=True)
class Function:
    """Examples made by `function(split)`; called once per split, when first needed."""

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
class Text:
    """Text files, an example `{"text": line}` for each line that is not blank. A file is read once per process.

    files: {split: path}, or one path whose lines are split by hash.
    """

    files: Mapping[str, str] | str

    def split(self, name: str) -> Sequence[Example]:
        return _split(self.files, name, read_text)


@dataclasses.dataclass(frozen=True)
class Jsonl:
    """JSON objects, one a line. files: {split: path}, or one path split by hash."""

    files: Mapping[str, str] | str

    def split(self, name: str) -> Sequence[Example]:
        return _split(self.files, name, read_jsonl)


@dataclasses.dataclass(frozen=True)
class Csv:
    """Tables, a text field for each column. files: {split: path}, or one path split by hash.

    delimiter: "," or "\\t".  columns: names where the file has no header.  quoting: False where quotes are text, as
    in GLUE's files.
    """

    files: Mapping[str, str] | str
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    quoting: bool = True

    def split(self, name: str) -> Sequence[Example]:
        return _split(self.files, name, read_csv, self.delimiter, self.columns, self.quoting)


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A TensorFlow Datasets data set through its TensorFlow-free `data_source` (array_record or parquet files).

    splits: {our name: theirs}; text comes as str.
    """

    name: str
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    data_dir: str | None = None

    def split(self, name: str) -> Sequence[Example]:
        if name not in self.splits:
            raise ConfigError(unknown("split", name, self.splits))
        import tensorflow_datasets as tfds

        # Without TensorFlow the data sets that come with tfds are found only once their module is imported.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.text.{self.name.split('/')[0].split(':')[0]}")
        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir, try_gcs=False)
            source = builder.as_data_source(split=self.splits[name])  # pyright: ignore[reportCallIssue]
            return _Decoded(source)
        except Exception as error:  # tfds raises many kinds; the cause is what the user needs
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"cannot open the TFDS data set {self.name!r}, split {self.splits[name]!r}: {reason}. "
                "Prepare it with file_format='array_record' (builder.download_and_prepare) and give its data_dir"
            ) from error


class _Decoded(Sequence):
    """A data source whose bytes come as str."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        example = self._source[index]
        try:
            return {k: v.decode("utf-8") if isinstance(v, bytes) else v for k, v in example.items()}
        except UnicodeDecodeError as error:
            raise DataError(f"example {index} of the TFDS data set holds text that is not UTF-8: {error}") from None


def read_text(path: Path) -> list[Example]:
    return [{"text": line} for _, line in _lines(path) if line.strip()]


def read_jsonl(path: Path) -> list[Example]:
    rows = []
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f'{path}:{number}: a JSON {type(row).__name__}; write an object such as {{"text": "…"}}')
        rows.append(row)
    return rows


def read_csv(path: Path, delimiter: str = ",", columns: Sequence[str] = (), quoting: bool = True) -> list[Example]:
    text = "\n".join(line for _, line in _lines(path))
    style = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=style, strict=quoting)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # 131,072 by default: less than a long document
    header = list(columns)
    rows = []
    begin = 1  # the line a record begins in; with quotes it may go on over several
    try:
        for cells in reader:
            line, begin = begin, reader.line_num + 1
            if not header:
                header = cells
                if repeated := [name for name in header if header.count(name) > 1]:
                    raise DataError(f"{path}:{line}: two columns are named {repeated[0]!r}; rename one")
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}:{line}: {len(cells)} columns; the header has {len(header)} "
                    f"({', '.join(header)}). Quote cells that hold the delimiter {delimiter!r}"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{begin}: {error} in the record that begins here; is a quote left open?") from None
    return rows


def hash_split(key: str) -> str:
    """The split a text belongs to, by its hash: 90% train, 5% validation, 5% test. Equal texts stay together."""
    percent = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") % 100
    return next(name for name, share in PERCENT.items() if percent in share)


def _split(
    files: Mapping[str, str] | str, name: str, read: Callable[..., list[Example]], *how: Any
) -> Sequence[Example]:
    if isinstance(files, str):
        if name not in PERCENT:
            raise ConfigError(unknown("split", name, PERCENT))
        return _hashed(files, *_version(files), read, *how)[name]
    if name not in files:
        raise ConfigError(unknown("split", name, files))
    return _read(files[name], *_version(files[name]), read, *how)


def _version(path: str) -> tuple[int, int]:
    """What changes when a file does; zeros for one that is not there, which reading it will say."""
    try:
        stat = Path(path).stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=64)
def _hashed(
    path: str, mtime_ns: int, size: int, read: Callable[..., list[Example]], *how: Any
) -> dict[str, list[Example]]:
    splits: dict[str, list[Example]] = {name: [] for name in PERCENT}
    for row in _read(path, mtime_ns, size, read, *how):
        splits[hash_split(json.dumps(row, sort_keys=True, default=str))].append(row)
    return splits


@functools.lru_cache(maxsize=64)
def _read(name: str, mtime_ns: int, size: int, read: Callable[..., list[Example]], *how: Any) -> list[Example]:
    path = Path(name)
    rows = read(path, *how)
    if not rows:
        raise DataError(f"{path} holds no example ({path.stat().st_size} bytes); is it the right file?")
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) of a UTF-8 file; a byte-order mark and carriage returns at line ends are dropped."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        parent = Path(path).parent
        near = suggest(Path(path).name, [p.name for p in parent.iterdir()]) if parent.is_dir() else []
        hint = f"did you mean {parent / near[0]}?" if near else f"is {parent} the right directory?"
        raise DataError(f"cannot read {path}: {error.strerror}; {hint}") from None
    if not data:
        raise DataError(f"{path} is empty (0 bytes); is it the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{number}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; "
            "convert the file, for example with iconv -t utf-8"
        ) from None
    return [(i, line.removesuffix("\r")) for i, line in enumerate(text.split("\n"), 1)]
