"""The user's cache directory: what can be made again, kept so that it need not be."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from t5x_lite import atomic
from t5x_lite.errors import DataError


def cache_dir() -> Path:
    """$T5X_LITE_CACHE, else t5x_lite in $XDG_CACHE_HOME, else ~/.cache/t5x_lite."""
    if own := os.environ.get("T5X_LITE_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "t5x_lite"
    return Path.home() / ".cache" / "t5x_lite"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """`atomic.file` in a directory made if need be; DataError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.file(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. Set T5X_LITE_CACHE to a directory you may write to."
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing."""
    with atomic_file(path) as file:
        file.write(content)


def remembered(path: Path, make: Callable[[], Any]) -> Any:
    """JSON-able data out of a file of the cache, or as `make` makes it, which is then kept there where it can be."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = make()
    with contextlib.suppress(DataError):
        write_atomically(path, json.dumps(found).encode())
    return found
