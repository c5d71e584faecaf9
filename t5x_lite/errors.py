"""Errors a user can act on, and the exit codes they end the process with.

Every error says what happened, what was got, what is allowed and how to fix it, in at most three
lines. The command line prints the message alone; a traceback is left for our own bugs.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user can fix. `exit_code` is the status the command line ends with."""

    exit_code = 2


class ConfigError(UserError):
    """A key, value or combination that cannot work (exit 2); found before a device is touched."""


class DataError(UserError):
    """A record, file, label or token that breaks the data contract (exit 65)."""

    exit_code = 65


class CheckpointError(UserError):
    """A checkpoint or workdir that cannot be read or written (exit 74)."""

    exit_code = 74


class DivergedError(UserError):
    """The loss is no longer finite (exit 76: starting again would only repeat it)."""

    exit_code = 76


RESTART_ME = 75  # EX_TEMPFAIL: interrupted after saving; the same command goes on from there
INTERNAL = 70  # EX_SOFTWARE: our own bug, or no memory left


class LostProcessError(UserError):
    """Another process of the run is gone, or never came (exit 75: the same command goes on)."""

    exit_code = RESTART_ME


class OutOfMemoryError(UserError):
    """No memory left on a device (exit 70: starting again would only repeat it)."""

    exit_code = INTERNAL


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters of it; the name of its class where it has no text.

    >>> first_line(ValueError("no room\\nTraceback of a library, …"))
    'no room'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def cannot_write(workdir: Path, error: OSError) -> CheckpointError:
    """Of a workdir that takes no file, with the room that is left on its disk."""
    left = ""
    with contextlib.suppress(OSError):
        left = f"; {shutil.disk_usage(workdir).free:,} bytes free"
    return CheckpointError(f"cannot write to the workdir {workdir}: {error.strerror}{left}")


OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)  # whatever was done with it


@contextlib.contextmanager
def of_the_disk(directory: Path) -> Iterator[None]:
    """An OSError of a disk that is full, read-only, broken or gone becomes a CheckpointError; others stay as they are.

    directory: named where the error does not name a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        raise CheckpointError(
            f"{error.filename or directory}: {error.strerror}; mend the disk, and the same command goes on"
        ) from error


def one_line(error: BaseException) -> str:
    """What an error says, in at most 200 characters of one line; its kind if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
