"""Writes files atomically: a file is complete or absent, even if the process is killed or the power fails."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from t5x_lite.errors import writing


@contextlib.contextmanager
def file(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file. It replaces `path` when the block ends; if the block fails, it is deleted instead.

    So nobody else ever sees a partial file at `path`. The directory must exist. Raises OSError.
    """
    partial = partial_path(path)
    try:
        with partial.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Returns a new hidden path beside `path`. Its name fits on the disk even if that of `path` is very long."""
    return path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex}")  # 50 characters are at most 200 bytes of 255


def write(path: Path, content: bytes | str) -> None:
    """Writes `content` (text as UTF-8) completely or not at all. Raises OSError."""
    with file(path) as out:
        out.write(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: bytes | str) -> None:
    """Writes a file that the user asked for, like `write`, after making its directory if needed.

    Raises CheckpointError if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a directory, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise  # the three errors above pass: mounted buckets have no directories to sync
    finally:
        os.close(descriptor)
