"""Files that appear under their name whole or not at all, also where the process is killed or the power fails."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends, and is gone when it fails: readers, and
    other processes writing the same, never see a part of it. The directory must be there; raises OSError."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Writes the whole content (text as UTF-8) or nothing."""
    with file(path) as out:
        out.write(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Returns when the bytes of a file are on the disk, or of a directory, the names in it; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise  # mounted buckets have no such thing as a directory
    finally:
        os.close(descriptor)
