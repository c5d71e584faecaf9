"""Writes to the console, which may disappear during a run.

Texts are never interpreted as markup or as commands to the terminal, and passwords in them are hidden (redaction.py).
"""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

from t5x_lite.redaction import redact

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # all control characters but tab and newline


def safe(text: object) -> str:
    """Returns a text as people may see it: without secrets, and with control characters written out.

    A terminal would obey control characters: move the cursor, change its title, delete lines. Lone surrogates, which
    stand for the bytes of a file name that are not UTF-8, cannot be printed.

    >>> safe("\x1b[2Jpassword=hunter2")
    '\\\\x1b[2Jpassword=[redacted]'
    """
    return _COMMANDS.sub(lambda found: f"\\x{ord(found[0]):02x}", redact(str(text)))


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


def plain(soft_wrap: bool = False, stderr: bool = False) -> "Console":
    """Returns a rich console on stdout or stderr.

    It prints all texts verbatim, even `[red]` and `:smile:`, also in tables. Texts pass through `safe`; a rich Text
    does not, so make it of a safe text.
    soft_wrap: whether the terminal, not rich, wraps long lines.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # rich calls it for every str, also in tables
            return super().render_str(safe(text), **options)

    return Plain(markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap, stderr=stderr)


def say(text: object) -> None:
    """Prints a line to stdout."""
    with optional(sys.stdout):
        print(safe(text))


def tell(text: str) -> None:
    """Prints a message of t5x_lite to stderr."""
    with optional(sys.stderr):
        print(f"t5x-lite: {safe(text)}", file=sys.stderr)


class SafeFormatter(logging.Formatter):
    """Formats log records as safe texts."""

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))
