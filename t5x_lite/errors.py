"""Defines the errors that a user can fix. Each class of errors has its own exit status.

In at most three lines, every message says what is wrong, what was given, what is allowed and how to fix it. The command
line prints only this message; it prints tracebacks only for bugs in t5x_lite.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """An error that the user can fix. `exit_code` is the exit status of the command line."""

    exit_code = 2


class ConfigError(UserError):
    """A config key, value or combination cannot work (exit 2). It is detected before a device is touched."""


class DataError(UserError):
    """A record, file, label or token breaks the data contract (exit 65)."""

    exit_code = 65


class CheckpointError(UserError):
    """A checkpoint or workdir cannot be read or written (exit 74)."""

    exit_code = 74


class DivergedError(UserError):
    """The loss or a prediction is not finite (exit 76; a restart would only repeat the error)."""

    exit_code = 76


RESTART_ME = 75  # EX_TEMPFAIL: interrupted after saving; the same command resumes
INTERNAL = 70  # EX_SOFTWARE: a bug in t5x_lite, or out of memory


class LostProcessError(UserError):
    """Another process of the run was lost or never started (exit 75; the same command resumes)."""

    exit_code = RESTART_ME


class OutOfMemoryError(UserError):
    """A device ran out of memory (exit 70; a restart would only repeat the error)."""

    exit_code = INTERNAL


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, at most 300 characters; if it has no text, the name of its class.

    >>> first_line(ValueError("no room\\nTraceback of a library, …"))
    'no room'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def cannot_write(workdir: Path, error: OSError) -> CheckpointError:
    """Returns the error for a workdir that cannot be written to; it states the free bytes of the disk."""
    left = ""
    with contextlib.suppress(OSError):
        left = f"; {shutil.disk_usage(workdir).free:,} bytes free"
    return CheckpointError(f"cannot write to the workdir {workdir}: {error.strerror or first_line(error)}{left}")


OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)  # for any operation on a file


@contextlib.contextmanager
def of_the_disk(directory: Path) -> Iterator[None]:
    """Turns an OSError into a CheckpointError if the disk is full, read-only, broken or gone. Other errors pass.

    directory: the path that the message shows if the error names no file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        raise CheckpointError(
            f"{error.filename or directory}: {error.strerror}; fix the disk, then run the same command again to resume"
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns every OSError of the block into a CheckpointError that says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        in_its_place = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in the place of its directory" if in_its_place else error.strerror or first_line(error)
        raise CheckpointError(f"cannot write {path}: {reason}; make it writable, or use a different path") from error


def one_line(error: BaseException) -> str:
    """Returns an error's text as one line of at most 200 characters; if it has no text, the name of its class."""
    return " ".join(str(error).split())[:200] or type(error).__name__
