"""A file as a sequence of examples: any of them at once, in constant memory, however long the file is.

The first time a file is opened all of it is read, record by record, so that whatever is wrong is found then, named
by file and line, and not hours into a run. What is kept is an index of 17 bytes a record, for larger files in the
user's cache, which later openings map into memory. A compressed or remote file is copied there first, a Parquet file
as Arrow.
"""

import array
import bisect
import contextlib
import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError
from t5x_lite.lookup import suggest

Example = Mapping[str, Any]
PERCENT = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100)}
_CODES = [code for code, share in enumerate(PERCENT.values()) for _ in share]  # of each percent

VERSION = 1  # of the index; raise it when what a format makes of a file changes
MAX_RECORD_BYTES = 1 << 28  # longer lines are no text: they would fill the memory
SMALL_BYTES = 1 << 20  # smaller files are read again rather than their index kept
OPEN_FILES = 128
BLOCK_BYTES = 1 << 20
# begin: byte of a record in its file, or its row in a table; length: bytes; check: of a hash of its contents;
# split: index into PERCENT.
INDEX = np.dtype([("begin", "<i8"), ("length", "<u4"), ("check", "<u4"), ("split", "u1")])


class Scanned(NamedTuple):
    """A record met while its file is read from end to end."""

    begin: int
    length: int
    row: Example


class Format(Protocol):
    """How a file's records are found and read. Frozen dataclasses: their repr says all that matters."""

    def local(self, file: "File") -> Path:
        """The file to read from: itself, or a copy in the cache that allows random access."""
        ...

    def scan(self, path: Path, file: "File") -> Iterator[Scanned]:
        """Every record, checked. DataError names `file` and the place of the first that is wrong."""
        ...

    def reader(self, path: Path, file: "File") -> Callable[[int, int], Example]:
        """The function from (begin, length) to the record there."""
        ...

    def where(self, path: Path, begin: int) -> str:
        """The place of a record for people: "line 12"."""
        ...


# ------------------------------------------------------------------------------------------------- files, their index


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was when it was opened. name: a path or a URL (gs://…)."""

    name: str
    size: int
    mtime_ns: int

    @staticmethod
    def of(name: str) -> "File":
        """DataError when it is not there, or empty."""
        if parts := [File.of(part) for part in braces(name).values()]:
            return File(name, sum(part.size for part in parts), sum(part.mtime_ns for part in parts))
        try:
            if "://" in name:
                stat = _remote(name).stat()
                size, mtime_ns = stat.length, int((stat.mtime or 0) * 1e9)
            else:
                stat = Path(name).stat()
                size, mtime_ns = stat.st_size, stat.st_mtime_ns
        except OSError as error:
            raise _cannot_read(name, error) from None
        except Exception as error:  # each remote file system has its own
            raise DataError(f"cannot read {name}: {_one_line(error)}; are you logged in there?") from error
        if size == 0:
            raise DataError(f"{name} is empty (0 bytes); is it the right file?")
        return File(name, size, mtime_ns)

    @functools.cached_property
    def key(self) -> str:
        """Another text when the file is another, or has changed."""
        if parts := braces(self.name):
            return _digest("".join(File.of(part).key for part in parts.values()).encode())
        ends = b""
        if "://" not in self.name:
            with _open(self.name) as file:
                ends = file.read(1 << 16)
                file.seek(max(self.size - (1 << 16), 0))
                ends += file.read(1 << 16)
        place = self.name if "://" in self.name else str(Path(self.name).absolute())
        return _digest(repr((VERSION, place, self.size, self.mtime_ns)).encode() + ends)


def open_records(name: str, form: Format, split: str = "") -> "Records":
    """The records of a file; with `split`, those whose hash puts them there. DataError when it holds none at all."""
    return _opened(File.of(name), form, split)


class Records(Sequence[Example]):
    """The records of an index, each read when asked for. Travels to other processes as a path and the index."""

    def __init__(self, file: File, path: Path, form: Format, index: np.ndarray):
        self.file, self.path, self._form, self._index = file, path, form, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        begin, length, _, _ = self._index[place].item()
        return self._read(begin, length)

    def where(self, place: int) -> str:
        """File and line of a record, for messages."""
        return f"{self.file.name}:{self._form.where(self.path, self._index[place].item()[0])}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Another text whenever a record is another, whatever file it is from."""
        return _digest(np.ascontiguousarray(self._index["check"]).tobytes())

    @functools.cached_property
    def _read(self) -> Callable[[int, int], Example]:
        return self._form.reader(self.path, self.file)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_read"}


class Chained(Sequence[Example]):
    """Sequences one after the other."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        part, inner = self._find(range(len(self))[place])
        return part[inner]

    def where(self, place: int) -> str:
        part, inner = self._find(place)
        return part.where(inner)

    @functools.cached_property
    def fingerprint(self) -> str:
        return _digest(" ".join(part.fingerprint for part in self._parts).encode())

    def _find(self, place: int) -> tuple[Records, int]:
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[number], place - int(self._ends[number] - len(self._parts[number]))


def hash_split(key: str) -> str:
    """The split a text belongs to, by its hash: 90% train, 5% validation, 5% test. Equal texts stay together."""
    return list(PERCENT)[_CODES[_hash(key) % 100]]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")


@functools.lru_cache(maxsize=4096)
def _opened(file: File, form: Format, split: str) -> Records:
    path, index = _indexed(file, form, bool(split))
    if split:  # the index is sorted by it
        code = list(PERCENT).index(split)
        low, high = (bisect.bisect_left(index["split"], c) for c in (code, code + 1))
        index = index[low:high]
    return Records(file, path, form, index)


@functools.lru_cache(maxsize=4096)
def _indexed(file: File, form: Format, by_hash: bool) -> tuple[Path, np.ndarray]:
    path = form.local(file)
    stored = cache_dir() / "indices" / f"{_digest(repr((file.key, form, by_hash)).encode())}.npy"
    index = _load(stored)
    if index is None:
        index = _scanned(form.scan(path, file), by_hash)
        if not len(index):
            raise DataError(f"{file.name} holds no example ({file.size} bytes); is it the right file?")
        if file.size >= SMALL_BYTES:
            with contextlib.suppress(DataError):  # nowhere to keep it: it is made again next time
                with atomic_file(stored) as out:
                    np.save(out, index)
                kept = _load(stored)
                index = index if kept is None else kept
    return path, index


def _load(path: Path) -> np.ndarray | None:
    """The index of a file, in memory only as far as it is used; None when there is none."""
    try:
        index = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return index if index.dtype == INDEX and index.ndim == 1 else None


def _scanned(records: Iterable[Scanned], by_hash: bool) -> np.ndarray:
    begins, lengths, hashes = array.array("q"), array.array("L"), array.array("Q")
    for begin, length, row in records:
        begins.append(begin)
        lengths.append(length)
        hashes.append(_hash(_SORTED.encode(row)))
    index = np.empty(len(begins), INDEX)
    hashed = np.array(hashes, np.uint64)
    index["begin"], index["length"], index["check"] = begins, lengths, hashed >> np.uint64(32)
    index["split"] = np.array(_CODES, np.uint8)[(hashed % np.uint64(100)).astype(np.intp)] if by_hash else 0
    if by_hash:
        index = index[np.argsort(index["split"], kind="stable")]
    return index


# ------------------------------------------------------------------------------------------------------ lines of text


class _Line(NamedTuple):
    number: int  # from 1
    begin: int  # in bytes
    end: int  # behind its newline
    text: str  # without byte-order mark, carriage return and newline


class _OfLines:
    """What formats of text have in common: they are read from a plain local file by byte."""

    def local(self, file: File) -> Path:
        return _plain(file)

    def reader(self, path: Path, file: File) -> Callable[[int, int], Example]:
        version = _version(path, file)

        def read(begin: int, length: int) -> Example:
            handle = _handle(path, version)
            _unchanged(handle, version, file)
            try:
                return self.parse(os.pread(handle.fileno(), length, begin).decode("utf-8"), file.name)
            except (ValueError, csv.Error, StopIteration):  # a change that its time and size do not show
                raise DataError(f"{file.name}: byte {begin} is not what it was when the file was indexed") from None

        return read

    def where(self, path: Path, begin: int) -> str:
        with _open(str(path)) as file:
            blocks = (file.read(min(BLOCK_BYTES, begin - at)) for at in range(0, begin, BLOCK_BYTES))
            return str(1 + sum(block.count(b"\n") for block in blocks))

    def parse(self, text: str, where: str) -> Example:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TextLines(_OfLines):
    """An example {field: line} for each line; blank ones are left out unless kept."""

    field: str = "text"
    keep_blank: bool = False

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        for line in _lines(path, file.name):
            if self.keep_blank or line.text.strip():
                yield Scanned(line.begin, line.end - line.begin, {self.field: line.text})

    def parse(self, text: str, where: str) -> Example:
        return {self.field: _bare(text)}


@dataclasses.dataclass(frozen=True)
class Paragraphs(_OfLines):
    """An example {field: text} for each run of lines without a blank one."""

    field: str = "text"

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        for lines in _blocks(path, file.name):
            text = "\n".join(line.text for line in lines)
            yield Scanned(lines[0].begin, lines[-1].end - lines[0].begin, {self.field: text})

    def parse(self, text: str, where: str) -> Example:
        return {self.field: "\n".join(map(_bare, text.removesuffix("\n").split("\n")))}


@dataclasses.dataclass(frozen=True)
class JsonLines(_OfLines):
    """JSON objects, one a line. A key that comes twice and numbers that JSON does not know (NaN) are errors."""

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        for line in _lines(path, file.name):
            if line.text.strip():
                row = self._strictly(line.text, f"{file.name}:{line.number}")
                yield Scanned(line.begin, line.end - line.begin, row)

    def parse(self, text: str, where: str) -> Example:
        return json.loads(text)

    def _strictly(self, text: str, where: str) -> Example:
        try:
            row = _STRICT.decode(text)
            if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is no text
                json.dumps(row, ensure_ascii=False).encode("utf-8")
            if text.count("[") + text.count("{") > 100:  # what can be read can be nested too deeply to be written
                json.dumps(row)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({_one_line(error)}); write one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f'{where}: a JSON {type(row).__name__}; write an object such as {{"text": "…"}}')
        return row


@dataclasses.dataclass(frozen=True)
class Table(_OfLines):
    """CSV and TSV, a text field for each column.

    columns: names where the file has no header.  quoting: False where quotes are text, as in GLUE's files.
    """

    delimiter: str = ","
    columns: tuple[str, ...] = ()
    quoting: bool = True

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        lines: list[_Line] = []  # of the record being read: with quotes it may go on over several

        def fed() -> Iterator[str]:
            for line in _lines(path, file.name):
                lines.append(line)
                yield line.text + "\n"

        header = list(self.columns)
        try:
            for cells in self._cells(fed()):
                where, begin, end = f"{file.name}:{lines[0].number}", lines[0].begin, lines[-1].end
                lines.clear()
                if not header:
                    header = cells
                    if repeated := [name for name in header if header.count(name) > 1]:
                        raise DataError(f"{where}: two columns are named {repeated[0]!r}; rename one")
                elif cells:
                    yield Scanned(begin, end - begin, self._row(header, cells, where))
        except csv.Error as error:
            raise DataError(
                f"{file.name}:{lines[0].number}: {error} in the record that begins here; is a quote left open?"
            ) from None

    def reader(self, path: Path, file: File) -> Callable[[int, int], Example]:
        header = list(self.columns) or next(self._cells(line.text + "\n" for line in _lines(path, file.name)))
        read = dataclasses.replace(self, columns=tuple(header))
        return super(Table, read).reader(path, file)

    def parse(self, text: str, where: str) -> Example:
        lines = (_bare(line) + "\n" for line in _bare(text).split("\n"))
        return self._row(self.columns, next(self._cells(lines)), where)

    def _cells(self, lines: Iterable[str]):
        style = csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
        csv.field_size_limit(MAX_RECORD_BYTES)  # 131,072 by default: less than a long document
        return csv.reader(lines, delimiter=self.delimiter, quoting=style, strict=self.quoting)

    def _row(self, header: Sequence[str], cells: Sequence[str], where: str) -> Example:
        if len(cells) != len(header):
            raise DataError(
                f"{where}: {len(cells)} columns; the header has {len(header)} "
                f"({', '.join(header)}). Quote cells that hold the delimiter {self.delimiter!r}"
            )
        return dict(zip(header, cells, strict=True))


@dataclasses.dataclass(frozen=True)
class Sentences(_OfLines):
    """CoNLL's columns: a token and its tags a line, a blank line between sentences.

    An example has a text for each column, its tokens or tags with a space between them. Columns are cut at tabs,
    where a line has one, else at spaces. Lines that begin with -DOCSTART- are left out.
    """

    columns: tuple[str, ...] = ("tokens", "tags")

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        for lines in _blocks(path, file.name):
            if row := self._row([(f"{file.name}:{line.number}", line.text) for line in lines]):
                yield Scanned(lines[0].begin, lines[-1].end - lines[0].begin, row)

    def parse(self, text: str, where: str) -> Example:
        lines = text.removesuffix("\n").split("\n")
        return self._row([(where, _bare(line)) for line in lines])

    def _row(self, lines: Sequence[tuple[str, str]]) -> Example:
        rows = []
        for where, line in lines:
            if line.startswith("-DOCSTART-"):
                continue
            cells = line.split("\t") if "\t" in line else line.split(" ")
            if len(cells) != len(self.columns) or not all(cells):
                raise DataError(
                    f"{where}: {len(cells)} columns, {line[:60]!r}; every line has {len(self.columns)} "
                    f"({', '.join(self.columns)}), with a tab or one space between them"
                )
            rows.append(cells)
        return {name: " ".join(cells) for name, cells in zip(self.columns, zip(*rows, strict=True), strict=False)}


@dataclasses.dataclass(frozen=True)
class ParallelLines:
    """Files whose lines belong together, as one: "train.{en,de}.gz" gives examples {"en": …, "de": …}.

    Pairs that are blank on all sides are left out. Files of different length are an error.
    """

    def local(self, file: File) -> Path:
        return Path(file.name)

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        sides = self._sides(file)
        lengths = {name: len(side) for name, side in sides.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{file.name}: {', '.join(f'{n} has {c:,} lines' for n, c in lengths.items())}; line by line they must "
                "belong together"
            )
        for number in range(min(lengths.values())):
            row = {name: side[number][name] for name, side in sides.items()}
            if any(text.strip() for text in row.values()):
                yield Scanned(number, 0, row)

    def reader(self, path: Path, file: File) -> Callable[[int, int], Example]:
        sides = self._sides(file)
        return lambda number, length: {name: side[number][name] for name, side in sides.items()}

    def where(self, path: Path, begin: int) -> str:
        return str(begin + 1)

    def _sides(self, file: File) -> dict[str, Records]:
        paths = braces(file.name)
        return {field: open_records(path, TextLines(field, keep_blank=True)) for field, path in paths.items()}


def braces(pattern: str) -> dict[str, str]:
    """{alternative: path} of a pattern with one pair of braces; nothing for any other name.

    >>> braces("train.{en,de}.gz")
    {'en': 'train.en.gz', 'de': 'train.de.gz'}
    """
    parts = re.fullmatch(r"([^{}]*)\{([^{}]+,[^{}]+)\}([^{}]*)", pattern)
    return {part: parts[1] + part + parts[3] for part in parts[2].split(",")} if parts else {}


# ------------------------------------------------------------------------------------------------------------- tables


class _OfRows:
    """What tables have in common: a record is a row, and its place is the row's number."""

    def where(self, path: Path, begin: int) -> str:
        return f" row {begin}"


@dataclasses.dataclass(frozen=True)
class ArrowRows(_OfRows):
    """Arrow IPC, as a file or as the stream that Hugging Face's `save_to_disk` writes; mapped, never loaded."""

    def local(self, file: File) -> Path:
        return _plain(file)

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        row = 0
        for batch in _batches(path, file):
            for begin in range(0, len(batch), 1024):
                try:
                    part = batch.slice(begin, 1024)
                    part.validate(full=True)
                    examples = part.to_pylist()
                except (ValueError, TypeError, ArithmeticError, OSError) as error:
                    raise DataError(
                        f"{file.name}: damaged about row {row} ({_one_line(error)}); get it again"
                    ) from None
                for example in examples:
                    yield Scanned(row, 0, texts(example, f"{file.name}, row {row}"))
                    row += 1

    def reader(self, path: Path, file: File) -> Callable[[int, int], Example]:
        batches = _batches(path, file)
        ends = np.cumsum([len(batch) for batch in batches])
        version = _version(path, file)

        def read(row: int, length: int) -> Example:
            _unchanged(path, version, file)
            number = int(np.searchsorted(ends, row, side="right"))
            batch = batches[number]
            (example,) = batch.slice(row - int(ends[number]) + len(batch), 1).to_pylist()
            return texts(example, f"{file.name}, row {row}")

        return read


@dataclasses.dataclass(frozen=True)
class ParquetRows(ArrowRows):
    """Parquet, checksums checked where the file has them. Its rows cannot be read one by one: it is read from a copy
    in the cache, as Arrow."""

    def local(self, file: File) -> Path:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet

        copy = cache_dir() / "files" / f"{file.key}.arrow"
        if copy.exists():
            return copy
        with atomic_file(copy) as out:
            try:
                table = pyarrow.parquet.ParquetFile(_plain(file), page_checksum_verification=True)
                with pyarrow.ipc.new_stream(out, table.schema_arrow) as writer:
                    for batch in table.iter_batches(batch_size=1024):
                        writer.write_batch(batch)
            except (pyarrow.ArrowException, ValueError, OSError, TypeError) as error:
                raise DataError(f"{file.name} is no whole Parquet file ({_one_line(error)}); get it again") from None
        return copy


@dataclasses.dataclass(frozen=True)
class ArrayRecordRows(_OfRows):
    """ArrayRecord whose records are JSON objects. (TFDS writes other records: read those through `Tfds`.)"""

    def local(self, file: File) -> Path:
        return _plain(file)

    def scan(self, path: Path, file: File) -> Iterator[Scanned]:
        read = self.reader(path, file)
        reader = self._opened(path, file)
        for row in range(reader.num_records()):
            yield Scanned(row, 0, read(row, 0))

    def reader(self, path: Path, file: File) -> Callable[[int, int], Example]:
        reader = self._opened(path, file)

        def read(row: int, length: int) -> Example:
            where = f"{file.name}, record {row}"
            try:
                (data,) = reader.read([row])
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(
                    f"{where}: not a JSON object; data sets that TFDS wrote are read by sources.Tfds"
                ) from None
            except Exception as error:  # whatever the library finds wrong
                raise DataError(f"{where}: {_one_line(error)}; the file is damaged, get it again") from None
            return JsonLines()._strictly(text, where)

        return read

    def _opened(self, path: Path, file: File):
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            reader = ArrayRecordReader(str(path))
            if not reader.ok() or not reader.num_records():
                raise ValueError("it has no records")
        except Exception as error:
            raise DataError(f"{file.name} is no whole ArrayRecord file ({_one_line(error)}); get it again") from None
        return reader


def _batches(path: Path, file: File) -> list:
    """The record batches of an Arrow file, mapped into memory. DataError where one is broken or the end is missing."""
    import pyarrow
    import pyarrow.ipc

    try:
        mapped = pyarrow.memory_map(str(path))
        head = mapped.read(6)
        mapped.seek(0)
        if head == b"ARROW1":
            opened = pyarrow.ipc.open_file(mapped)
            return [opened.get_batch(i) for i in range(opened.num_record_batches)]
        size = mapped.size()
        mapped.seek(max(size - 8, 0))
        if mapped.read(8) != b"\xff\xff\xff\xff\0\0\0\0":  # without it a cut-off file reads like a shorter one
            raise ValueError("its end is missing")
        mapped.seek(0)
        return list(pyarrow.ipc.open_stream(mapped))
    except (pyarrow.ArrowException, ValueError, OSError, TypeError) as error:
        raise DataError(f"{file.name} is no whole Arrow file ({_one_line(error)}); get it again") from None


# ------------------------------------------------------------------------------------------------------------ reading


def _lines(path: Path, name: str) -> Iterator[_Line]:
    """The lines of a UTF-8 file, ended by newline alone; DataError names the first bad byte."""
    begin = 0
    with _open(str(path)) as file:
        for number in itertools.count(1):
            try:
                raw = file.readline(MAX_RECORD_BYTES)
            except OSError as error:
                raise _cannot_read(name, error) from None
            if not raw:
                return
            end = begin + len(raw)
            if len(raw) == MAX_RECORD_BYTES:
                raise DataError(f"{name}:{number}: a line of more than {MAX_RECORD_BYTES >> 20} MB; is it a text file?")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}:{number}: byte 0x{raw[error.start]:02x} at offset {begin + error.start} is not UTF-8; "
                    "convert the file, for example with iconv -t utf-8"
                ) from None
            if "\0" in text:
                raise DataError(
                    f"{name}:{number}: a NUL byte at offset {begin + raw.index(0)}; the file is damaged, or is not "
                    "UTF-8 (iconv -f utf-16 -t utf-8 converts it)"
                )
            if number == 1 and text.startswith("\ufeff"):  # a byte-order mark
                text, begin = text[1:], 3
            yield _Line(number, begin, end, _bare(text))
            begin = end


def _blocks(path: Path, name: str) -> Iterator[list[_Line]]:
    """Runs of lines that are not blank."""
    for is_blank, lines in itertools.groupby(_lines(path, name), lambda line: not line.text.strip()):
        if not is_blank:
            yield list(lines)


def lines_of(name: str) -> Iterator[str]:
    """The lines of a text file that may be compressed or remote."""
    return (line.text for line in _lines(_plain(File.of(name)), name))


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _plain(file: File) -> Path:
    """A local file of the same bytes, decompressed: itself where it is that already, else a copy in the cache."""
    is_remote, is_packed = "://" in file.name, file.name.endswith(".gz")
    if not is_remote and not is_packed:
        return Path(file.name)
    copy = cache_dir() / "files" / f"{file.key}-{Path(file.name.removesuffix('.gz')).name}"
    if copy.exists():
        return copy
    with atomic_file(copy) as out:
        written = 0
        try:
            with _remote(file.name).open("rb") if is_remote else _open(file.name) as raw:
                source = gzip.GzipFile(fileobj=raw) if is_packed else raw  # type: ignore[call-overload]
                while block := source.read(BLOCK_BYTES):
                    out.write(block)
                    written += len(block)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{file.name}: broken after {written} bytes of text ({error}); get the file again"
            ) from None
    if not written:
        copy.unlink()
        raise DataError(f"{file.name} is empty (0 bytes of text); is it the right file?")
    return copy


def _remote(name: str):
    from etils import epath

    try:
        return epath.Path(name)
    except Exception as error:
        raise DataError(
            f"cannot read {name}: {_one_line(error)}; gs:// needs `pip install gcsfs`, s3:// `pip install s3fs`"
        ) from error


@functools.lru_cache(maxsize=OPEN_FILES)
def _handle(path: Path, version: tuple[int, int]) -> io.FileIO:
    return _open(str(path), buffering=0)  # type: ignore[return-value]


def _open(name: str, buffering: int = -1):
    try:
        return Path(name).open("rb", buffering=buffering)
    except OSError as error:
        raise _cannot_read(name, error) from None


def _version(path: Path, file: File) -> tuple[int, int]:
    """Time and size of what is read from, as they were when it was opened."""
    if path == Path(file.name):
        return file.mtime_ns, file.size
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _unchanged(path: Path | io.FileIO, version: tuple[int, int], file: File) -> None:
    try:
        stat = os.fstat(path.fileno()) if isinstance(path, io.FileIO) else path.stat()
    except OSError as error:
        raise _cannot_read(file.name, error) from None
    if (stat.st_mtime_ns, stat.st_size) != version:
        raise DataError(f"{file.name} was changed while it was read; start again, and leave it alone meanwhile")


def _cannot_read(name: str, error: OSError) -> DataError:
    path = Path(name)
    near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
    hint = f"did you mean {path.parent / near[0]}?" if near else f"is {path.parent} the right directory?"
    return DataError(f"cannot read {name}: {error.strerror or error}; {hint}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} comes twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_SORTED = json.JSONEncoder(sort_keys=True, default=str)


def texts(example: Mapping[str, Any], where: str) -> Example:
    """An example whose bytes are text."""
    try:
        return {k: v.decode("utf-8") if isinstance(v, bytes) else v for k, v in example.items()}
    except UnicodeDecodeError as error:
        raise DataError(f"{where} holds bytes that are not UTF-8: {error}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
