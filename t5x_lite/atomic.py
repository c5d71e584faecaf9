"""Files that appear under their name whole or not at all, also where the process is killed or the power fails."""

import contextlib
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
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Writes the whole content (text as UTF-8) or nothing."""
    with file(path) as out:
        out.write(content.encode() if isinstance(content, str) else content)
