"""Writes to the console, which may disappear during a run. Texts are never interpreted as markup."""

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
    silently. So Python's flush at exit cannot fail either (if it failed, the process would exit with 120).
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
    """Returns a rich console on stdout. It prints all texts verbatim, even `[red]` and `:smile:`, also in tables.

    soft_wrap: whether the terminal, not rich, wraps long lines.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)


def tell(text: str) -> None:
    """Prints a message of t5x_lite to stderr."""
    with optional(sys.stderr):
        print(f"t5x-lite: {text}", file=sys.stderr)
