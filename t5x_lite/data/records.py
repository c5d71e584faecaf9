"""A file as a sequence of examples: any of them at once, in constant memory, however long the file is.

The first time a file is opened all of it is read, record by record, so that whatever is wrong is found then, named
by file and line, and not hours into a run. (Where some may be bad they are left out, and counted.) What is kept is an
index of 17 bytes a record, for larger files in the user's cache, which later openings map into memory. A compressed
or remote file is copied there first, a Parquet file as Arrow.
"""

import array
import bisect
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError
from t5x_lite.lookup import suggest

Example = Mapping[str, Any]
PERCENT = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100)}
_SORTED = json.JSONEncoder(sort_keys=True, default=str)
_CODES = [code for code, share in enumerate(PERCENT.values()) for _ in share]  # of each percent

VERSION = 1  # of the index; raise it when what a format makes of a file changes
MAX_RECORD_BYTES = 1 << 28  # longer lines are no text: they would fill the memory
SMALL_BYTES = 1 << 20  # smaller files are read again rather than their index kept
LONG_BYTES = 1 << 28  # to read so many takes long enough to say why
OPEN_FILES = 128
# What file systems of fsspec tell of a file that is another when its contents are: Google's, Amazon's, Azure's, HTTP's.
VERSION_MARKS = ("generation", "etag", "ETag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified")
FETCHED = "sha256="  # begins the version of a file of which they tell nothing
BLOCK_BYTES = 1 << 20
# begin: byte of a record in its file, or its row in a table; length: bytes; check: of a hash of its contents;
# split: index into PERCENT, or BAD. Sorted by it.
INDEX = np.dtype([("begin", "<i8"), ("length", "<u4"), ("check", "<u4"), ("split", "u1")])


BAD = 255  # the split of a record that is left out
SHOWN_BAD = 3  # of a file, in the log
OnBad = Callable[[DataError, int], None]  # what to do about so many records that are bad: raise it, or go on


class Scanned(NamedTuple):
    """A record met while its file is read from end to end."""

    begin: int
    length: int
    row: Example


Read = Callable[[Sequence[tuple[int, int]]], list[Example]]  # of (begin, length)


class Format(Protocol):
    """How a file's records are found and read. Frozen dataclasses: their repr says all that matters."""

    def local(self, file: "File") -> Path:
        """The file to read from: itself, or a copy in the cache that allows random access."""
        ...

    def scan(self, path: Path, file: "File", bad: OnBad) -> Iterator[Scanned]:
        """Every record, checked; those that are wrong go to `bad`, as errors that name `file` and their place. Raises
        what makes the whole file unreadable."""
        ...

    def reader(self, path: Path, file: "File") -> "Read":
        """The function from places to the records there."""
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
    version: str = ""  # of a remote file, in its file system's own terms

    @staticmethod
    def of(name: str) -> "File":
        """DataError when it is not there, or empty."""
        if parts := [File.of(part) for part in braces(name).values()]:
            sizes, times, versions = zip(*((part.size, part.mtime_ns, part.version) for part in parts), strict=True)
            return File(name, sum(sizes), sum(times), " ".join(versions))
        try:
            if "://" in name:
                file = _remote_file(name)
            else:
                stat = Path(name).stat()
                file = File(name, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise _cannot_read(name, error) from None
        if file.size == 0:
            raise DataError(f"{name} is empty (0 bytes); is it the right file?")
        return file

    @functools.cached_property
    def key(self) -> str:
        """Another text when the file is another, or has changed."""
        if parts := braces(self.name):
            return _digest("".join(File.of(part).key for part in parts.values()).encode())
        ends = b""
        if "://" not in self.name:
            with open_file(self.name) as file:
                ends = file.read(1 << 16)
                file.seek(max(self.size - (1 << 16), 0))
                ends += file.read(1 << 16)
        place = self.name if "://" in self.name else str(Path(self.name).absolute())
        return _digest(repr((VERSION, place, self.size, self.mtime_ns, self.version)).encode() + ends)


def open_records(name: str, form: Format, split: str = "", tolerant: bool = False) -> "Records":
    """The records of a file; with `split`, those whose hash puts them there. DataError when it holds none at all, or a
    bad one; these are left out and counted where `tolerant`."""
    return _opened(File.of(name), form, split, tolerant)


class Records(Sequence[Example]):
    """The records of an index, each read when asked for. Travels to other processes as a path and the index.

    bad: how many of the whole file, whatever the split, were left out; total: how many it has with them.
    """

    def __init__(self, file: File, path: Path, form: Format, index: np.ndarray, bad: int, total: int):
        self.file, self.path, self._form, self._index = file, path, form, index
        self.bad, self.total = bad, total

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        begin, length, _, _ = self._index[place].item()
        return self._read([(begin, length)])[0]

    def read_many(self, places: Sequence[int]) -> list[Example]:
        """Several at once, in a quarter of the time."""
        found = self._index[np.asarray(places, np.int64)]
        return self._read(list(zip(found["begin"].tolist(), found["length"].tolist(), strict=True)))

    def where(self, place: int) -> str:
        """File and line of a record, for messages."""
        return f"{self.file.name}:{self._form.where(self.path, self._index[place].item()[0])}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Another text whenever a record is another, whatever file it is from."""
        return _digest(np.ascontiguousarray(self._index["check"]).tobytes())

    @functools.cached_property
    def _read(self) -> Read:
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

    def read_many(self, places: Sequence[int]) -> list[Example]:
        """Several at once, sooner."""
        wanted = np.asarray(places, np.int64)
        numbers = np.searchsorted(self._ends, wanted, side="right")
        found: list[Example] = [{}] * len(places)
        for number in np.unique(numbers).tolist():
            at, part = np.flatnonzero(numbers == number), self._parts[number]
            inner = wanted[at] - (self._ends[number] - len(part))
            for place, example in zip(at.tolist(), part.read_many(inner.tolist()), strict=True):
                found[place] = example
        return found

    def where(self, place: int) -> str:
        part, inner = self._find(place)
        return part.where(inner)

    @functools.cached_property
    def fingerprint(self) -> str:
        return _digest(" ".join(part.fingerprint for part in self._parts).encode())

    def _find(self, place: int) -> tuple[Records, int]:
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[number], place - int(self._ends[number] - len(self._parts[number]))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")


@functools.lru_cache(maxsize=4096)
def _opened(file: File, form: Format, split: str, tolerant: bool) -> Records:
    path, index = _indexed(file, form, bool(split), tolerant)
    code = list(PERCENT).index(split) if split else 0
    low, high, good = (bisect.bisect_left(index["split"], c) for c in (code, code + 1, BAD))
    return Records(file, path, form, index[low:high], len(index) - good, len(index))


@functools.lru_cache(maxsize=4096)
def _indexed(file: File, form: Format, by_hash: bool, tolerant: bool) -> tuple[Path, np.ndarray]:
    path = form.local(file)
    stored = cache_dir() / "indices" / f"{_digest(repr((file.key, form, by_hash)).encode())}.npy"
    index = _load(stored)
    if index is None or (not tolerant and index["split"][-1] == BAD):  # what is bad is found again, to say it
        if file.size >= LONG_BYTES:
            note = "%s: %s MB are read and checked, once; from then on the file opens at once"
            logging.getLogger(__name__).info(note, file.name, f"{file.size >> 20:,}")
        index = _scanned(form, path, file, by_hash, tolerant)
        if not (index["split"] < BAD).any():
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
    return index if index.dtype == INDEX and index.ndim == 1 and len(index) else None


def _scanned(form: Format, path: Path, file: File, by_hash: bool, tolerant: bool) -> np.ndarray:
    """The index of a file: its records sorted by split, then as many entries as were bad."""
    begins, lengths, hashes = array.array("q"), array.array("L"), array.array("Q")
    bad = 0

    def note(error: DataError, records: int = 1) -> None:
        nonlocal bad
        if not tolerant:
            raise error from None
        bad += records
        if bad <= SHOWN_BAD:
            logging.getLogger(__name__).warning("left out: %s", error)

    for begin, length, row in form.scan(path, file, note):
        begins.append(begin)
        lengths.append(length)
        hashes.append(_hash(_SORTED.encode(row)))
    index = np.empty(len(begins), INDEX)
    hashed = np.array(hashes, np.uint64)
    index["begin"], index["length"], index["check"] = begins, lengths, hashed >> np.uint64(32)
    index["split"] = np.array(_CODES, np.uint8)[(hashed % np.uint64(100)).astype(np.intp)] if by_hash else 0
    if by_hash:
        index = index[np.argsort(index["split"], kind="stable")]
    return np.concatenate([index, np.array([(0, 0, 0, BAD)] * bad, INDEX)]) if bad else index


# ------------------------------------------------------------------------------------------------------------ reading


# What people take for text by its name, by its first bytes, and what to do about it.
BEGINNINGS = {
    b"PAR1": "Parquet does; give its name the suffix .parquet",
    b"ARROW1": "Arrow does; give its name the suffix .arrow",
    b"\x1f\x8b": "gzip does; put .gz at the end of its name",
    b"PK\x03\x04": "a zip archive does, and a spreadsheet; unpack it, or save it as CSV",
}


class Line(NamedTuple):
    number: int  # from 1
    begin: int  # in bytes
    end: int  # behind its newline
    text: str  # without byte-order mark, carriage return and newline; as far as it is one where there is an error
    error: DataError | None  # names its first bad byte


def read_lines(path: Path, name: str) -> Iterator[Line]:
    """The lines of a UTF-8 file, ended by newline alone."""
    begin = 0
    with open_file(str(path)) as file:
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
            wrong = None
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                text = raw.decode("utf-8", errors="replace").replace("\0", "")
                other = "utf-16" if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                wrong = DataError(
                    f"{name}:{number}: byte 0x{raw[error.start]:02x} at offset {begin + error.start} is not UTF-8; "
                    f"convert the file (if it is {other}: iconv -f {other} -t utf-8)"
                )
            if "\0" in text:
                text = text.replace("\0", "")
                wrong = DataError(
                    f"{name}:{number}: a NUL byte at offset {begin + raw.index(0)}; the file is damaged, or is not "
                    "UTF-8 (iconv -f utf-16 -t utf-8 converts it)"
                )
            if number == 1 and wrong and (other := next((k for b, k in BEGINNINGS.items() if raw.startswith(b)), "")):
                wrong = DataError(f"{name} is no text: it begins as {other}")
            if number == 1 and text.startswith("\ufeff"):  # a byte-order mark
                text, begin = text[1:], 3
            yield Line(number, begin, end, bare(text), wrong)
            begin = end


def braces(pattern: str) -> dict[str, str]:
    """{alternative: path} of a pattern with one pair of braces; nothing for any other name.

    >>> braces("train.{en,de}.gz")
    {'en': 'train.en.gz', 'de': 'train.de.gz'}
    """
    parts = re.fullmatch(r"([^{}]*)\{([^{}]+,[^{}]+)\}([^{}]*)", pattern)
    return {part: parts[1] + part + parts[3] for part in parts[2].split(",")} if parts else {}


def lines_of(name: str) -> Iterator[str]:
    """The lines of a text file that may be compressed or remote, to guess from: what is wrong in one is not said."""
    return (line.text for line in read_lines(plain(File.of(name)), name))


def bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def plain(file: File) -> Path:
    """A local file of the same bytes, decompressed: itself where it is that already, else a copy in the cache."""
    is_remote, is_packed = "://" in file.name, file.name.endswith(".gz")
    if not is_remote and not is_packed:
        return Path(file.name)
    if not is_packed and file.version.startswith(FETCHED):
        return _fetched(file.name)[0]
    copy = cache_dir() / "files" / f"{file.key}-{Path(file.name.removesuffix('.gz')).name}"
    if copy.exists():
        return copy
    with atomic_file(copy) as out:
        written = 0
        try:
            with _open_remote(file) if is_remote else open_file(file.name) as raw:
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


def _remote_file(name: str) -> File:
    """What a file system says of a file. Few have a time of change; where one has nothing that changes with the
    contents, these are fetched once a process and their hash is the version."""
    info = _remotely(name, lambda system, path: system.info(path))
    marks = " ".join(f"{mark}={info[mark]}" for mark in VERSION_MARKS if info.get(mark) is not None)
    if marks and info.get("size") is not None:
        return File(name, info["size"], 0, marks)
    copy, version = _fetched(name)
    return File(name, copy.stat().st_size, 0, version)


@functools.lru_cache(maxsize=4096)
def _fetched(name: str) -> tuple[Path, str]:
    """A copy of a remote file as it is now, named by the hash of its contents, and that hash."""
    directory, hashed = cache_dir() / "files", hashlib.sha256()
    passing = directory / f"{_digest(name.encode())}-{os.getpid()}"
    with atomic_file(passing) as out, _remotely(name, lambda system, path: system.open(path, "rb")) as raw:
        while block := raw.read(BLOCK_BYTES):
            hashed.update(block)
            out.write(block)
    return passing.replace(directory / f"{hashed.hexdigest()}.raw"), f"{FETCHED}{hashed.hexdigest()}"


def _open_remote(file: File):
    if file.version.startswith(FETCHED):
        return _fetched(file.name)[0].open("rb")
    return _remotely(file.name, lambda system, path: system.open(path, "rb"))


def _remotely(name: str, do: Callable[[Any, str], Any]) -> Any:
    """`do(file system, path)` of a URL; whatever it raises as a DataError."""
    try:
        import fsspec

        return do(*fsspec.core.url_to_fs(name))
    except FileNotFoundError:
        raise DataError(f"cannot read {name}: there is no such file; is the path right?") from None
    except ImportError as error:
        raise DataError(
            f"cannot read {name}: {one_line(error)} (gs:// needs `pip install gcsfs`, s3:// `pip install s3fs`, "
            "https:// `pip install aiohttp requests`)"
        ) from error
    except Exception as error:  # each remote file system has its own
        raise DataError(
            f"cannot read {name}: {one_line(error)}; is the address right, and are you logged in there?"
        ) from error


@functools.lru_cache(maxsize=OPEN_FILES)
def open_handle(path: Path, version: tuple[int, int]) -> io.FileIO:
    return open_file(str(path), buffering=0)  # type: ignore[return-value]


def open_file(name: str, buffering: int = -1):
    try:
        return Path(name).open("rb", buffering=buffering)
    except OSError as error:
        raise _cannot_read(name, error) from None


def version_of(path: Path, file: File) -> tuple[int, int]:
    """Time and size of what is read from, as they were when it was opened."""
    if path == Path(file.name):
        return file.mtime_ns, file.size
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def require_unchanged(path: Path | io.FileIO, version: tuple[int, int], file: File) -> None:
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


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
