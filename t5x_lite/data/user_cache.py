"""Manages the user's cache directory. Its files can be rebuilt; they are kept because rebuilding takes time."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from t5x_lite import atomic
from t5x_lite.errors import DataError


def cache_dir() -> Path:
    """Returns $T5X_LITE_CACHE, else t5x_lite in $XDG_CACHE_HOME, else ~/.cache/t5x_lite."""
    if own := os.environ.get("T5X_LITE_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "t5x_lite"
    return Path.home() / ".cache" / "t5x_lite"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file with `atomic.file`, after creating its directory if needed. Raises DataError if the file cannot be
    written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. Set T5X_LITE_CACHE to a writable directory."
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing. Raises DataError if it cannot be written."""
    with atomic_file(path) as file:
        file.write(content)


def remembered(path: Path, make: Callable[[], Any]) -> Any:
    """Returns the JSON-able data in a file of the cache. If the file cannot be read, returns `make()` and tries to
    store the result in the file."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        made = make()
    with contextlib.suppress(DataError):
        write_atomically(path, json.dumps(made).encode())
    return made
