"""Reads the lines of UTF-8 text files. The error for a bad line names the file, the line and the byte."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from t5x_lite.data.opened_files import MAX_RECORD_BYTES, File, cannot_read, open_file, plain, too_long_line
from t5x_lite.errors import DataError

# For files that are not text, although their names say so: {first bytes of the file: its kind and what to do}.
BEGINNINGS = {
    b"PAR1": "a Parquet file; rename it to end in .parquet",
    b"ARROW1": "an Arrow file; rename it to end in .arrow",
    b"\x1f\x8b": "a gzip file; rename it to end in .gz",
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save it as CSV",
}


class Line(NamedTuple):
    number: int  # from 1
    begin: int  # offset of the first byte in the file, after a byte-order mark
    end: int  # offset of the byte after the newline
    text: str  # without byte-order mark, carriage return and newline; in a bad line, bad bytes are replaced or removed
    error: DataError | None  # names the first bad byte


def read_lines(path: Path, name: str) -> Iterator[Line]:
    """Yields the lines of the local UTF-8 file at `path`. Only a newline ends a line.

    name: the file's name in messages. If a line is bad, its `Line.error` is set. Raises DataError if the file cannot be
    read, or if a line has MAX_RECORD_BYTES or more.
    """
    begin = 0
    with open_file(str(path)) as file:
        for number in itertools.count(1):
            try:
                raw = file.readline(MAX_RECORD_BYTES)
            except OSError as error:
                raise cannot_read(name, error) from None
            if not raw:
                return
            end = begin + len(raw)
            if len(raw) == MAX_RECORD_BYTES:
                raise too_long_line(f"{name}:{number}")
            wrong = None
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                text = raw.decode("utf-8", errors="replace").replace("\0", "")
                other = "utf-16" if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                wrong = DataError(
                    f"{name}:{number}: byte 0x{raw[error.start]:02x} at offset {begin + error.start} is not UTF-8; "
                    f"check that it is a text file, and convert it (if it is {other}: iconv -f {other} -t utf-8)"
                )
            if "\0" in text:
                text = text.replace("\0", "")
                wrong = DataError(
                    f"{name}:{number}: a NUL byte at offset {begin + raw.index(0)}; the file is corrupted, or is not "
                    "UTF-8 (iconv -f utf-16 -t utf-8 converts UTF-16)"
                )
            if number == 1 and wrong and (other := next((k for b, k in BEGINNINGS.items() if raw.startswith(b)), "")):
                wrong = DataError(f"{name} is not text: it begins like {other}")
            if number == 1 and text.startswith("\ufeff"):  # a byte-order mark
                text, begin = text[1:], 3
            yield Line(number, begin, end, bare(text), wrong)
            begin = end


def lines_of(name: str) -> Iterator[str]:
    """Yields the lines of a text file, to guess its format from them. The file may be compressed or remote. Ignores the
    errors of bad lines.

    Raises DataError if the file cannot be read.
    """
    return (line.text for line in read_lines(plain(File.of(name), is_text=True), name))


def bare(line: str) -> str:
    """Returns a line without its newline and carriage return."""
    return line.removesuffix("\n").removesuffix("\r")
