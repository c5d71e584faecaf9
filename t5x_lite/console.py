"""The console, which may go in the middle of a run: a closed terminal, a full disk, a pipe nobody reads any more."""

import contextlib
import os
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def optional(stream: TextIO) -> Iterator[None]:
    """What the block writes to stdout or stderr; where that fails, it and all that follows go nowhere, without an error
    (nor at the end of the process, when Python would write what is left, and exit with 120)."""
    try:
        yield
        stream.flush()
    except (OSError, SystemExit):  # rich makes an exit of a broken pipe
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
