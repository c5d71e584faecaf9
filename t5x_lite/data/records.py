"""Opens a file of any length as a sequence of examples, with random access in constant memory.

The first time a file is opened, `scan` reads all of it, record by record. So errors are reported at once, with file and
line, and not hours into a run. (If bad records are tolerated, they are skipped and counted.) The result is an index of
17 bytes per record. The index of a file of SMALL_BYTES or more is kept in the user's cache, and later openings map it
into memory. A compressed or remote file is first copied to the cache, and a Parquet file is copied as Arrow.
"""

import array
import bisect
import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from t5x_lite.data.divide import divided, sizes_of, split_of
from t5x_lite.data.opened_files import File, digest
from t5x_lite.data.preprocess import written
from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError

Example = Mapping[str, Any]
# The splits of a file that is not divided into splits: the hash of a record, modulo 100, decides the record's split.
PERCENT = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100)}
HASH = "%"  # not a field's name: the hash of a record decides its split
_SORTED = json.JSONEncoder(sort_keys=True, default=str)
_CODES = [code for code, share in enumerate(PERCENT.values()) for _ in share]  # the split of each hash modulo 100

SMALL_BYTES = 1 << 20  # the index of a smaller file is not kept, because scanning the file again is fast
LONG_BYTES = 1 << 28  # scanning a file of this size takes long, so the log gives the reason
# An index has these fields and is sorted by split. begin: the byte where a record begins in its file, or its row in a
# table; length: the record's size in bytes; check: half of the hash of its contents; split: an index into PERCENT, or
# BAD.
INDEX = np.dtype([("begin", "<i8"), ("length", "<u4"), ("check", "<u4"), ("split", "u1")])
BAD = 255  # the split of a record that is skipped
SHOWN_BAD = 3  # the most bad records of a file that the log shows
OnBad = Callable[[DataError, int], None]  # called with an error and the number of bad records; may raise the error


class Scanned(NamedTuple):
    """A record of a file that is being scanned, with its place (`begin` and `length` as in INDEX)."""

    begin: int
    length: int
    row: Example


Read = Callable[[Sequence[tuple[int, int]]], list[Example]]  # returns the records at these (begin, length)


class Format(Protocol):
    """Defines how a file format finds and reads records. Formats are frozen dataclasses; their repr identifies them."""

    def local(self, file: File) -> Path:
        """Returns the path to read from: the file itself, or a copy in the cache that allows random access."""
        ...

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        """Yields every record after checking it. If a record is bad, calls `bad` with an error that names `file` and
        the record's place. Raises DataError if the file as a whole cannot be read."""
        ...

    def reader(self, path: Path, file: File) -> Read:
        """Returns the function that reads records by their (begin, length)."""
        ...

    def where(self, path: Path, begin: int) -> str:
        """Returns the line or row of a record, for messages."""
        ...


def open_records(name: str, form: Format, split: str = "", tolerant: bool = False, by: str = HASH) -> "Records":
    """Returns the records of a file; with `split`, only the records of that split.

    tolerant: whether to skip and count bad records.
    by: what assigns a record to a split: HASH (see PERCENT), or the field with this name.
    Raises DataError if the file has no good record, or if it has a bad one and `tolerant` is false.
    """
    return records_of(File.of(name), form, split, tolerant, by)


def divide_records(parts: Sequence["Records"], division: str) -> list[list["Records"]]:
    """Returns the parts of each split in ("train", *sizes_of(division)). Raises DataError as `divided` does."""
    codes = divided(np.concatenate([part.checks for part in parts]), division)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    of_parts = list(zip(parts, np.split(codes, ends), strict=True))
    return [[part.only(mine == code) for part, mine in of_parts] for code in range(len(sizes_of(division)) + 1)]


class Records(Sequence[Example]):
    """A sequence of the records in an index. Each is read when it is accessed. Pickling stores the path and the index,
    not the records.

    bad: the number of bad records in the whole file, which are skipped.
    total: the number of all records in the whole file, including bad ones.
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
        """Returns several records at once, in a quarter of the time that reading them one by one takes."""
        entries = self._index[np.asarray(places, np.int64)]
        return self._read(list(zip(entries["begin"].tolist(), entries["length"].tolist(), strict=True)))

    def where(self, place: int) -> str:
        """Returns the file and line (or row) of a record, for messages."""
        return f"{self.file.name}:{self._form.where(self.path, self._index[place].item()[0])}"

    @property
    def checks(self) -> np.ndarray:
        """Returns a hash of the contents of each record, uint32 [N]."""
        return self._index["check"]

    def only(self, wanted: np.ndarray) -> "Records":
        """Returns the records where `wanted`, bool [N], is true. Their index is in memory."""
        return Records(self.file, self.path, self._form, self._index[wanted], self.bad, self.total)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns a digest that changes whenever any record changes. It does not depend on the file that holds the
        records."""
        return digest(np.ascontiguousarray(self.checks).tobytes())

    @functools.cached_property
    def _read(self) -> Read:
        return self._form.reader(self.path, self.file)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_read"}


class Chained(Sequence[Example]):
    """Joins sequences of records, one after the other."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        part, inner = self._find(range(len(self))[place])
        return part[inner]

    def read_many(self, places: Sequence[int]) -> list[Example]:
        """Returns several records at once, which is faster than one by one."""
        wanted = np.asarray(places, np.int64)
        numbers = np.searchsorted(self._ends, wanted, side="right")
        examples: list[Example] = [{}] * len(places)
        for number in np.unique(numbers).tolist():
            at, part = np.flatnonzero(numbers == number), self._parts[number]
            inner = wanted[at] - (self._ends[number] - len(part))
            for place, example in zip(at.tolist(), part.read_many(inner.tolist()), strict=True):
                examples[place] = example
        return examples

    def where(self, place: int) -> str:
        """Returns the file and line (or row) of a record, for messages."""
        part, inner = self._find(place)
        return part.where(inner)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns a digest of the parts' fingerprints."""
        return digest(" ".join(part.fingerprint for part in self._parts).encode())

    def _find(self, place: int) -> tuple[Records, int]:
        number = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[number], place - int(self._ends[number] - len(self._parts[number]))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big")


@functools.cache
def records_of(file: File, form: Format, split: str, tolerant: bool, by: str) -> Records:
    """Does what `open_records` does, but takes a File, not a name. Results are cached, which is safe because `file`
    identifies the file's contents.

    Raises DataError as `open_records` does.
    """
    path, index = index_of(file, form, by if split else "", tolerant)
    code = list(PERCENT).index(split) if split else 0
    low, high, good = (bisect.bisect_left(index["split"], c) for c in (code, code + 1, BAD))
    return Records(file, path, form, index[low:high], len(index) - good, len(index))


@functools.cache  # without a limit: with one, wildcards that match more files scan all of them at every opening
def index_of(file: File, form: Format, by: str, tolerant: bool) -> tuple[Path, np.ndarray]:
    """Returns (the path to read a file from, the file's index). The index comes from the cache or from scanning the
    file. by: as for `open_records`; "" for an index without splits.

    Raises DataError if the file has no good record, or if it has a bad one and `tolerant` is false.
    """
    path = form.local(file)
    stored = cache_dir() / "indices" / f"{digest(repr((file.key, form, by)).encode())}.npy"
    index = _load(stored)
    if index is None or (not tolerant and index["split"][-1] == BAD):  # the scan raises the error of the bad record
        if file.size >= LONG_BYTES:
            note = "%s: reading and checking %s MB, once; later runs open the file immediately"
            logging.getLogger(__name__).info(note, file.name, f"{file.size >> 20:,}")
        index = scan(form, path, file, by, tolerant)
        if not (index["split"] < BAD).any():
            raise DataError(f"{file.name} holds no example ({file.size} bytes); check that it is the right file")
        if file.size >= SMALL_BYTES:
            with contextlib.suppress(DataError):  # if the cache cannot be written, the next process scans again
                with atomic_file(stored) as out:
                    np.save(out, index)
                kept = _load(stored)
                index = index if kept is None else kept
    return path, index


def _load(path: Path) -> np.ndarray | None:
    """Returns an index from the cache, mapped into memory, or None if it is missing or corrupted."""
    try:
        index = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return index if index.dtype == INDEX and index.ndim == 1 and len(index) else None


def scan(form: Format, path: Path, file: File, by: str, tolerant: bool) -> np.ndarray:
    """Reads a whole file and returns its index: the good records, sorted by split, and then one entry per bad record.
    by: as for `index_of`.

    Raises DataError if a record is bad and `tolerant` is false.
    """
    begins, lengths, hashes, codes = array.array("q"), array.array("L"), array.array("Q"), array.array("B")
    bad, field = 0, "" if by == HASH else by

    def note(error: DataError, records: int = 1) -> None:
        nonlocal bad
        if not tolerant:
            raise error from None
        bad += records
        if bad <= SHOWN_BAD:
            logging.getLogger(__name__).warning("skipped: %s", error)

    for begin, length, row in form.scan(path, file, note):
        try:
            code = _code_of(row, field) if field else 0
        except ValueError as error:
            has = ", ".join(map(str, row))[:200]
            note(DataError(f"{file.name}:{form.where(path, begin)}: data.split={field!r}: {error} (it has {has})"))
            continue
        begins.append(begin)
        lengths.append(length)
        hashes.append(_hash(_SORTED.encode(row)))
        codes.append(code)
    index = np.empty(len(begins), INDEX)
    hashed = np.array(hashes, np.uint64)
    index["begin"], index["length"], index["check"] = begins, lengths, hashed >> np.uint64(32)
    index["split"] = np.array(_CODES, np.uint8)[(hashed % np.uint64(100)).astype(np.intp)] if by == HASH else codes
    if by:
        index = index[np.argsort(index["split"], kind="stable")]
    return np.concatenate([index, np.array([(0, 0, 0, BAD)] * bad, INDEX)]) if bad else index


def _code_of(row: Example, field: str) -> int:
    """Returns the split that a field of a record names, as an index into PERCENT. Raises ValueError if it names no
    split."""
    name = written(row, field).strip()
    split = split_of(name)
    if split is None:
        raise ValueError(f"{name!r} is not a split; it must be train, validation or test")
    return list(PERCENT).index(split)
