"""Reading the lines of UTF-8 text files. The error of a wrong line names its file, line and byte."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from t5x_lite.data.opened_files import File, cannot_read, open_file, plain
from t5x_lite.errors import DataError

MAX_RECORD_BYTES = 1 << 28  # a longer line is not text, and would fill the memory
# By their first bytes, files that are not text although their name says so, and what to do about them.
BEGINNINGS = {
    b"PAR1": "Parquet does; give its name the suffix .parquet",
    b"ARROW1": "Arrow does; give its name the suffix .arrow",
    b"\x1f\x8b": "gzip does; put .gz at the end of its name",
    b"PK\x03\x04": "a zip archive does, and a spreadsheet; unpack it, or save it as CSV",
}


class Line(NamedTuple):
    number: int  # from 1
    begin: int  # its first byte in the file, after a byte-order mark
    end: int  # the byte after its newline
    text: str  # without byte-order mark, carriage return and newline; if there is an error, what could be decoded
    error: DataError | None  # names its first bad byte


def read_lines(path: Path, name: str) -> Iterator[Line]:
    """The lines of the local UTF-8 file at `path`, which end at a newline and nowhere else.

    name: what messages call the file. A bad line has its error in `Line.error`. Raises DataError for a file that cannot
    be read, or a line that is too long.
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
                raise DataError(f"{name}:{number}: a line of more than {MAX_RECORD_BYTES >> 20} MB; is it a text file?")
            wrong = None
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                text = raw.decode("utf-8", errors="replace").replace("\0", "")
                other = "utf-16" if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                wrong = DataError(
                    f"{name}:{number}: byte 0x{raw[error.start]:02x} at offset {begin + error.start} is not UTF-8; "
                    f"convert the file (if it is {other}: iconv -f {other} -t utf-8)"
                )
            if "\0" in text:
                text = text.replace("\0", "")
                wrong = DataError(
                    f"{name}:{number}: a NUL byte at offset {begin + raw.index(0)}; the file is damaged, or is not "
                    "UTF-8 (iconv -f utf-16 -t utf-8 converts it)"
                )
            if number == 1 and wrong and (other := next((k for b, k in BEGINNINGS.items() if raw.startswith(b)), "")):
                wrong = DataError(f"{name} is no text: it begins as {other}")
            if number == 1 and text.startswith("\ufeff"):  # a byte-order mark
                text, begin = text[1:], 3
            yield Line(number, begin, end, bare(text), wrong)
            begin = end


def lines_of(name: str) -> Iterator[str]:
    """The lines of a text file, which may be compressed or remote, to guess its format from: errors are ignored."""
    return (line.text for line in read_lines(plain(File.of(name)), name))


def bare(line: str) -> str:
    """A line without its newline and carriage return."""
    return line.removesuffix("\n").removesuffix("\r")
