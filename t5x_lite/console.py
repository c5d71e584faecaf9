"""The console: it may go away in the middle of a run, and text that it shows is never markup."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def optional(stream: TextIO) -> Iterator[None]:
    """A block that writes to stdout or stderr.

    If that fails (a closed terminal, a full disk, a pipe that nobody reads), all later output to the stream is
    discarded, without an error. Nor is there an error at the end of the process, when Python flushes the stream and
    would exit with 120.
    """
    try:
        yield
        stream.flush()
    except (OSError, SystemExit):  # rich makes an exit of a broken pipe
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def plain(soft_wrap: bool = False) -> "Console":
    """A rich console on stdout that shows text as it is, in tables too: `[red]` and `:smile:` are only text.

    soft_wrap: leaves it to the terminal to break long lines.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)


def tell(text: str) -> None:
    """A message of ours, on stderr."""
    with optional(sys.stderr):
        print(f"t5x-lite: {text}", file=sys.stderr)
