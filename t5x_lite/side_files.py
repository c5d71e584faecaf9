"""Reads the small files beside a model's arrays: settings, manifests, vocabularies, metrics.

A directory may come from a stranger or from a bad disk. A FIFO in the place of a file would block its reader forever,
and /dev/zero would fill the memory. So every side file is opened here: only regular files, up to a size. All faults are
OSErrors that name the file (`filename`) and say what is wrong (`strerror`), or ValueErrors of the content.
"""

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

LARGEST = 200_000_000  # bytes; the largest side files are tokenizers (35 MB) and metrics of long runs
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def set_aside(path: Path) -> Path:
    """Renames a damaged file or directory to NAME.corrupt, and returns the new path. Replaces an older one.

    Raises OSError if it cannot be renamed.
    """
    target = path.with_name(f"{path.name}.corrupt")
    shutil.rmtree(target, ignore_errors=True)
    return path.rename(target)


def is_there(path: Path) -> bool:
    """Returns whether the directory has an entry of this name: a file, but also a FIFO or a broken link.

    Whoever reads the entry then gets an error, rather than the result without the file.
    """
    return os.path.lexists(path)


def opened(path: Path) -> BinaryIO:
    """Opens a regular file for reading, through links. Raises OSError for all other kinds, without waiting."""
    _require_regular(path, path.stat().st_mode)  # before it is opened, because opening a device may do something
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)  # it may have been replaced in between
    except OSError:
        file.close()
        raise
    return file


def read(path: Path, largest: int = LARGEST) -> bytes:
    """Returns the contents of a regular file of at most `largest` bytes. Raises OSError."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(largest + 1) if size <= largest else b""
    if max(size, len(content)) > largest:
        raise OSError(errno.EFBIG, f"it has {max(size, len(content)):,} bytes; at most {largest:,} are read", str(path))
    return content


def read_json(path: Path, largest: int = LARGEST) -> Any:
    """Returns the value in a JSON file.

    Raises OSError as `read` does; ValueError or RecursionError if the file is not JSON in UTF-8, or if an object has
    the same key twice. (Python would keep the last value, and other readers the first.)
    """
    return json.loads(read(path, largest).decode("utf-8-sig"), object_pairs_hook=unique_keys)


def why(error: BaseException) -> str:
    """Returns the reason in an error of this module, without the path, on one line of at most 200 characters.

    >>> why(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.json"))
    'No such file or directory'
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object's pairs as a dict. Raises ValueError if a key is repeated."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:80]!r} is repeated")
    return value


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "not a file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
