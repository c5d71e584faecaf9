"""Describes files as they were when opened. Gives each file a key that identifies it, makes plain local copies to read,
and checks that a file has not changed since it was opened."""

import dataclasses
import functools
import gzip
import hashlib
import io
import os
import re
import zlib
from pathlib import Path

from t5x_lite.data.remote_files import BLOCK_BYTES, FETCHED, fetch, is_remote, open_remote, size_and_version
from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError
from t5x_lite.lookup import suggest

VERSION = 1  # part of every key; raise it when a format reads a file differently
OPEN_FILES = 128
# gzip packs text to a third or a tenth, but zeros to a thousandth, so that a small file could fill the disk.
LARGEST_RATIO = 200
UNPACKED_BYTES = 1 << 29  # up to this size, any ratio is allowed
MAX_RECORD_BYTES = 1 << 28  # a longer line is not text, and would fill the memory


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was when opened.

    name: a path or a URL (gs://…). A name with braces stands for several files.
    """

    name: str
    size: int  # bytes
    mtime_ns: int
    version: str = ""  # of a remote file, as its file system reports it

    @staticmethod
    def of(name: str) -> "File":
        """Returns the file of this name as it is now. Raises DataError if it is missing or empty."""
        if "{" in name and (parts := [File.of(part) for part in braces(name).values()]):
            sizes, times, versions = zip(*((part.size, part.mtime_ns, part.version) for part in parts), strict=True)
            return File(name, sum(sizes), sum(times), " ".join(versions))
        try:
            if is_remote(name):
                size, version = size_and_version(name)
                file = File(name, size, 0, version)
            else:
                stat = os.stat(name)  # noqa: PTH116  (a wildcard may match 10,000 files; a Path of each takes longer)
                file = File(name, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise cannot_read(name, error) from None
        if file.size == 0:
            raise DataError(f"{name} is empty (0 bytes); is it the right file?")
        return file

    @functools.cached_property
    def key(self) -> str:
        """Returns 24 hex digits that identify the file and its contents: they change when the file does."""
        if parts := braces(self.name):
            return digest("".join(File.of(part).key for part in parts.values()).encode())
        if is_remote(self.name):
            place, ends = self.name, b""
        else:
            place = str(Path(self.name).absolute())
            with open_file(self.name) as file:
                ends = file.read(1 << 16)
                file.seek(max(self.size - (1 << 16), 0))
                ends += file.read(1 << 16)
        return digest(repr((VERSION, place, self.size, self.mtime_ns, self.version)).encode() + ends)


def braces(pattern: str) -> dict[str, str]:
    """Returns {alternative: path} for a pattern with one pair of braces; {} for any other name.

    >>> braces("train.{en,de}.gz")
    {'en': 'train.en.gz', 'de': 'train.de.gz'}
    """
    parts = re.fullmatch(r"([^{}]*)\{([^{}]+,[^{}]+)\}([^{}]*)", pattern)
    return {part: parts[1] + part + parts[3] for part in parts[2].split(",")} if parts else {}


def plain(file: File, is_text: bool = False) -> Path:
    """Returns the path of a local, uncompressed file with the contents of `file`: `file` itself, or a copy in the
    cache.

    is_text: whether to refuse a line of MAX_RECORD_BYTES or more while the copy is made. So a small compressed file
        cannot fill the disk with what is refused afterwards.
    Raises DataError if the file is broken or empty, if it unpacks to a suspicious size, or if the copy cannot be
    written. Then no part of the copy stays.
    """
    is_packed = file.name.endswith(".gz")
    if not is_remote(file.name) and not is_packed:
        return Path(file.name)
    if not is_packed and file.version.startswith(FETCHED):
        return fetch(file.name)[0]
    copy = cache_dir() / "files" / f"{file.key}-{Path(file.name.removesuffix('.gz')).name[-50:]}"
    if copy.exists():
        return copy
    with atomic_file(copy) as out:
        written = line_bytes = 0
        try:
            with open_remote(file.name, file.version) if is_remote(file.name) else open_file(file.name) as raw:
                source = gzip.GzipFile(fileobj=raw) if is_packed else raw  # type: ignore[call-overload]
                while block := source.read(BLOCK_BYTES):
                    out.write(block)
                    written += len(block)
                    line_bytes = len(block) - ends - 1 if (ends := block.rfind(b"\n")) >= 0 else line_bytes + len(block)
                    if is_packed and written > max(UNPACKED_BYTES, LARGEST_RATIO * file.size):
                        raise DataError(
                            f"{file.name} unpacks to more than {LARGEST_RATIO} times its {file.size:,} bytes, as no "
                            "text does; if you trust it, unpack it yourself"
                        )
                    if is_text and line_bytes >= MAX_RECORD_BYTES:
                        raise too_long_line(file.name)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{file.name}: corrupted after {written} bytes of text ({error}); get the file again"
            ) from None
    if not written:
        copy.unlink()
        raise DataError(f"{file.name} is empty (0 bytes of text); is it the right file?")
    return copy


@functools.lru_cache(maxsize=OPEN_FILES)
def open_handle(path: Path, version: tuple[int, int]) -> io.FileIO:
    """Opens a local file for reading bytes and returns its handle; for the same path and version, returns the same
    handle again. Raises DataError if the file cannot be opened."""
    return open_file(str(path), buffering=0)  # type: ignore[return-value]


def open_file(name: str, buffering: int = -1):
    """Opens a local file for reading bytes. Raises DataError if it cannot be opened."""
    try:
        return Path(name).open("rb", buffering=buffering)
    except OSError as error:
        raise cannot_read(name, error) from None


def version_of(path: Path, file: File) -> tuple[int, int]:
    """Returns (modification time in ns, size in bytes) of the file at `path`, which is `file` itself or a copy of it.

    For `file` itself, these are the values from when it was opened; for a copy, they are the copy's current values.
    """
    if path == Path(file.name):
        return file.mtime_ns, file.size
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def require_unchanged(path: Path | io.FileIO, version: tuple[int, int], file: File) -> None:
    """Raises DataError, which names `file`, if the file at `path` no longer has this version. path: a path, or an open
    handle."""
    try:
        stat = os.fstat(path.fileno()) if isinstance(path, io.FileIO) else path.stat()
    except OSError as error:
        raise cannot_read(file.name, error) from None
    if (stat.st_mtime_ns, stat.st_size) != version:
        raise DataError(f"{file.name} changed while it was being read; start again, and do not modify it meanwhile")


def too_long_line(where: str) -> DataError:
    """Returns the error for a line of MAX_RECORD_BYTES or more. where: the file, with the line's number if known."""
    return DataError(f"{where}: a line longer than {MAX_RECORD_BYTES >> 20} MB; is it a text file?")


def cannot_read(name: str, error: OSError) -> DataError:
    """Returns the error for a file that cannot be opened. Its message suggests a similar name if there is one."""
    path = Path(name)
    near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
    hint = f"did you mean {path.parent / near[0]}?" if near else f"is {path.parent} the right directory?"
    return DataError(f"cannot read {name}: {error.strerror or error}; {hint}")


def digest(data: bytes) -> str:
    """Returns the first 24 hex digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:24]
