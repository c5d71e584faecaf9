"""Writes to the console. The console may disappear during a run, and its text is never interpreted as markup."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def optional(stream: TextIO) -> Iterator[None]:
    """Runs a block that writes to stdout or stderr, and suppresses its write errors.

    If writing fails (a closed terminal, a full disk, a closed pipe), all later output to the stream is discarded
    silently. So Python's flush at the end of the process cannot fail either, which would exit with 120.
    """
    try:
        yield
        stream.flush()
    except (OSError, SystemExit):  # rich exits on a broken pipe
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def plain(soft_wrap: bool = False) -> "Console":
    """Returns a rich console on stdout that prints text verbatim, also in tables: `[red]` and `:smile:` are only text.

    soft_wrap: leave long lines for the terminal to wrap.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)


def tell(text: str) -> None:
    """Prints a message of t5x_lite to stderr."""
    with optional(sys.stderr):
        print(f"t5x-lite: {text}", file=sys.stderr)
