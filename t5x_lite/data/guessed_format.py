"""Guesses the format of a local file from its name and its first lines, and states each guess in words."""

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t5x_lite.data import json_documents
from t5x_lite.data.binary_formats import ArrayRecordRows, ArrowRows, ParquetRows
from t5x_lite.data.line_pattern import PatternLines
from t5x_lite.data.opened_files import braces
from t5x_lite.data.records import Format, open_records
from t5x_lite.data.text_formats import (
    JsonLines,
    Paragraphs,
    ParallelLines,
    Sentences,
    Table,
    TextLines,
    WholeFiles,
    cells_of,
    is_comment,
)
from t5x_lite.data.text_lines import MAX_RECORD_BYTES, lines_of
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import suggest

SAMPLED_LINES = 1000  # the first lines of a file, from which its header and kind are guessed
LONGEST_COLUMN_NAME = 64  # characters
SUFFIXES = {
    "text": ("txt", "text"),
    "json": ("jsonl", "ndjson", "json"),
    "csv": ("csv",),
    "tsv": ("tsv", "tab"),
    "parquet": ("parquet", "pq"),
    "arrow": ("arrow",),
    "array_record": ("array_record", "arrayrecord"),
    "conll": ("conll", "bio", "iob", "iob2"),
}
KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
OTHER_KINDS = {
    **dict.fromkeys(("xlsx", "xls", "ods"), "save the sheet as CSV"),
    **dict.fromkeys(("zip", "tar", "tgz", "7z", "bz2", "xz", "zst"), "unpack it (only gzip needs no unpacking)"),
    **dict.fromkeys(("pdf", "docx", "doc", "epub", "html"), "extract its text into a .txt with one example a line"),
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """Holds the user's settings for reading files. Whatever is not set is detected.

    header: for tables: whether the first row names the columns; None: detected.
    delimiter: for tables: the character between cells; "": detected.
    text_record: for text files: what a record is (see TEXT_RECORDS); "": detected.
    line_pattern: for text files: a regular expression that splits each line into its named groups; "": none.
    split: what divides one set of files into splits (see data/divide.py); "": the hash of each record.
    names: for Arrow and Parquet files: the fields whose ClassLabel numbers are read as names; None: all. (The names in
        a field that no template uses would change the hashes of its records for nothing.)
    """

    header: bool | None = None
    delimiter: str = ""
    text_record: str = ""
    line_pattern: str = ""
    split: str = ""
    names: tuple[str, ...] | None = None


DETECTED = Reading()
FOR_KINDS = {  # {setting: (the kinds of files that it is for, their name)}
    **dict.fromkeys(("header", "delimiter"), (("csv", "tsv"), "CSV and TSV")),
    **dict.fromkeys(("text_record", "line_pattern"), (("text",), "text")),
}
# {what a record of a text file is: its format and note}.
TEXT_RECORDS: dict[str, tuple[Format, str]] = {
    "line": (TextLines(), "text, one example a line; blank lines are left out"),
    "paragraph": (Paragraphs(), "text, one example a paragraph; the blank lines between paragraphs are left out"),
    "file": (WholeFiles(), "text, one example a file, with its line breaks and blank lines"),
}


def kind_of(name: str) -> str | None:
    """Returns the kind of a file (a key of SUFFIXES) by its suffix; None for an unknown suffix."""
    return KIND_OF_SUFFIX.get(name.lower().removesuffix(".gz").rpartition(".")[2])


def format_of(path: str, *more: str, tolerant: bool, reading: Reading) -> tuple[Format, list[str]]:
    """Returns (format, notes for the user) of the file `path`. more: further files, which must fit the same format.

    Raises ConfigError if the suffix is unknown, or if a setting is for other kinds of files.
    """
    kind = "parallel" if braces(path) else kind_of(path)
    if kind is None:
        raise ConfigError(_unknown_suffix(path))
    for name, (kinds, words) in FOR_KINDS.items():
        if getattr(reading, name) not in (None, "") and kind not in kinds:
            raise ConfigError(
                f"data.{name}={getattr(reading, name)!r} is for {words} files, and {path} is of another kind; unset it"
            )
    if kind == "parallel":
        return ParallelLines(), [f"text files, a line each: {', '.join(braces(path))}"]
    if kind in ("csv", "tsv"):
        return _table(path, more, kind, reading)
    if kind == "conll":
        return _conll(path)
    if kind == "text":
        return _text(path, reading)
    form, words = _with_fields(path, kind, reading.names)
    fields = tuple(open_records(path, form, tolerant=tolerant)[0])
    return form, [f"{words} with the fields {', '.join(fields)}", *_names_note(form)]


def _unknown_suffix(path: str) -> str:
    """Returns the error message for a file whose suffix is unknown."""
    near = suggest(Path(path).suffix.removeprefix("."), KIND_OF_SUFFIX)
    way = next((OTHER_KINDS[part] for part in path.lower().split(".")[-2:] if part in OTHER_KINDS), "")
    if way:
        return f"data.files: {path!r} is in an unsupported format; {way}"
    known = ", ".join(f".{suffix}" for suffix in KIND_OF_SUFFIX)
    return (
        f"data.files: {path!r} has no known suffix{f' (.{near[0]}?)' if near else ''}; allowed: {known}, each also "
        "with .gz; or two parallel files such as train.{en,de}"
    )


def _with_fields(path: str, kind: str, names: tuple[str, ...] | None) -> tuple[Format, str]:
    """Returns (format, its name) of a file whose records have names for their fields."""
    if kind == "json":
        document = json_documents.document(path) if path.lower().removesuffix(".gz").endswith(".json") else None
        return (document, document.words) if document else (JsonLines(), "JSON lines")
    if kind == "array_record":
        return ArrayRecordRows(), "ArrayRecord of JSON"
    rows, words = (ParquetRows(), "Parquet") if kind == "parquet" else (ArrowRows(), "Arrow")
    return rows.named(path, names), words


def _names_note(form: Format) -> list[str]:
    labels = form.labels if isinstance(form, ArrowRows) else ()
    shown = [(path, ", ".join(names[:10]) + ", …" * (len(names) > 10)) for path, names in labels]
    return [f"{'.'.join(path)}: a ClassLabel, read as its names {names}" for path, names in shown]


def _text(path: str, reading: Reading) -> tuple[Format, list[str]]:
    if reading.line_pattern:
        if reading.text_record not in ("", "line"):
            raise ConfigError(
                f"data.line_pattern splits lines, but data.text_record={reading.text_record!r}; unset one of them"
            )
        form = PatternLines(reading.line_pattern)
        return form, [f"text, one example a line, split by data.line_pattern into {', '.join(form.fields)}"]
    if reading.text_record:
        form, note = TEXT_RECORDS[reading.text_record]
        return form, [note]
    blank = [not line.strip() for line in _sample(path)]
    is_stray = 100 * sum(blank[1:-1]) < len(blank) or len(blank) <= 2  # fewer than 1% of the lines are blank
    form, note = TEXT_RECORDS["line" if is_stray else "paragraph"]
    return form, [f"{note} (data.text_record changes this)"]


def _table(path: str, more: Sequence[str], kind: str, reading: Reading) -> tuple[Format, list[str]]:
    lines = _sample(path)
    guess = "\t" if kind == "tsv" else max(",;\t|", key=lambda d: len(next(_rows(lines, d, True), [])))
    delimiter = reading.delimiter.replace("\\t", "\t") or guess
    if len(delimiter) > 1:
        raise ConfigError(f"data.delimiter={reading.delimiter!r}: must be one character")
    quoting = kind == "csv" or _quotes_cells((line for p in (path, *more) for line in lines_of(p)), delimiter)
    rows = list(_rows(lines, delimiter, quoting))
    words = {",": "CSV", "\t": "TSV"}.get(delimiter, f"CSV with the delimiter {delimiter!r}")
    words += "" if quoting == (kind == "csv") else ", cells quoted"
    if not rows or (has_header(rows) if reading.header is None else reading.header):
        return Table(delimiter, (), quoting), [f"{words} with the columns {', '.join(rows[0] if rows else [])}"]
    columns = tuple(f"column_{n + 1}" for n in range(len(rows[0])))
    example = " | ".join(cell[:30] for cell in rows[0])
    return Table(delimiter, columns, quoting), [
        f"{words} without a header, {len(columns)} columns",
        f"columns named {', '.join(columns)}; the first row is {example} (data.header=true if it names the columns)",
    ]


def _sample(path: str) -> list[str]:
    return list(itertools.islice(lines_of(path), SAMPLED_LINES))


def _rows(lines: Sequence[str], delimiter: str, quoting: bool) -> Iterator[list[str]]:
    """Yields the rows of a sample, up to the first that cannot be parsed."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    style = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    try:
        yield from (row for row in csv.reader(lines, delimiter=delimiter, quoting=style) if row)
    except csv.Error:  # reading the whole file raises the error again, with the line
        return


def _quotes_cells(lines: Iterable[str], delimiter: str) -> bool:
    """Returns whether quotes enclose cells (otherwise they are part of the text). They enclose cells if some cell
    begins with a quote, and if every such cell also ends with a quote and doubles the quotes inside it.

    >>> _quotes_cells(['"so, so"|no'], "|"), _quotes_cells(['"so" so|"no"'], "|")
    (True, False)
    """
    some = False
    for cell in (cell for line in lines if '"' in line for cell in line.split(delimiter) if cell.startswith('"')):
        if not re.fullmatch(r'"(?:[^"]|"")*"', cell):
            return False
        some = True
    return some


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether the first row names the columns. It does if its cells are short, are not numbers, and do not
    occur again further down in their columns. The first cell may be empty, because pandas leaves the name of the index
    column empty.

    >>> has_header([["text", "label"], ["good", "1"]]), has_header([["good", "yes"], ["bad", "no"], ["fair", "yes"]])
    (True, False)
    """
    first, rest = rows[0], rows[1:]
    if not all(
        0 < len(cell.strip()) <= LONGEST_COLUMN_NAME for cell in first[not first[0].strip() and len(first) > 1 :]
    ):
        return False
    if any(_is_number(cell) for cell in first):
        return False
    return not any(cell in (row[n] for row in rest if n < len(row)) for n, cell in enumerate(first))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _conll(path: str) -> tuple[Format, list[str]]:
    lines = [line for line in _sample(path) if line.strip(" \t") and not is_comment(line)]
    count = len(cells_of(lines[0])) if lines else 2
    columns = ("tokens", *(f"column_{n + 2}" for n in range(count - 2)), "tags")[-max(count, 1) :]
    return Sentences(columns), [f"sentences with the CoNLL columns {', '.join(columns)}"]
