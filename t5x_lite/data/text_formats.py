"""Formats of text files: lines, paragraphs, JSON lines, CSV, CoNLL's columns, and parallel files.

A format finds, checks and reads the records of a file. records.py stores their places in an index.
"""

import csv
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t5x_lite.data.opened_files import File, braces, open_file, open_handle, plain, require_unchanged, version_of
from t5x_lite.data.records import Example, OnBad, Read, Records, Scanned, open_records
from t5x_lite.data.text_lines import MAX_RECORD_BYTES, Line, bare, read_lines
from t5x_lite.errors import DataError, one_line
from t5x_lite.side_files import unique_keys

BLOCK_BYTES = 1 << 20  # read at a time
LIST_TO_LINES = "write one object a line (jq -c .[] FILE > FILE.jsonl converts a list of objects)"


class OfLines:
    """Implements what text formats share: a record is a run of bytes in a plain local file."""

    def local(self, file: File) -> Path:
        return plain(file, is_text=True)

    def reader(self, path: Path, file: File) -> Read:
        version = version_of(path, file)

        def read(places: Sequence[tuple[int, int]]) -> list[Example]:
            handle = open_handle(path, version)
            descriptor, examples = handle.fileno(), []
            try:
                for begin, length in places:
                    examples.append(self.parse(os.pread(descriptor, length, begin).decode("utf-8"), file.name))
            except (ValueError, csv.Error, StopIteration, RecursionError):
                require_unchanged(handle, version, file)
                begin, _ = places[len(examples)]  # this change altered neither the file's time nor its size
                raise DataError(
                    f"{file.name}: the record at byte {begin} has changed since the file was indexed; "
                    f"touch {file.name} and start again"
                ) from None
            require_unchanged(handle, version, file)  # after reading, to catch changes made while reading
            return examples

        return read

    def where(self, path: Path, begin: int) -> str:
        with open_file(str(path)) as file:
            blocks = (file.read(min(BLOCK_BYTES, begin - at)) for at in range(0, begin, BLOCK_BYTES))
            return str(1 + sum(block.count(b"\n") for block in blocks))

    def parse(self, text: str, where: str) -> Example:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TextLines(OfLines):
    """Makes an example {field: line} of each line. Leaves out blank lines, unless `keep_blank` is true."""

    field: str = "text"
    keep_blank: bool = False

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        for line in read_lines(path, file.name):
            if line.error:
                bad(line.error, 1)
            elif self.keep_blank or line.text.strip():
                yield Scanned(line.begin, line.end - line.begin, {self.field: line.text})

    def parse(self, text: str, where: str) -> Example:
        return {self.field: bare(text)}


@dataclasses.dataclass(frozen=True)
class Paragraphs(OfLines):
    """Makes an example {field: text} of each paragraph: a run of lines that are not blank."""

    field: str = "text"

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        for lines in _blocks(path, file.name, bad):
            text = "\n".join(line.text for line in lines)
            yield Scanned(lines[0].begin, lines[-1].end - lines[0].begin, {self.field: text})

    def parse(self, text: str, where: str) -> Example:
        return {self.field: "\n".join(map(bare, text.removesuffix("\n").split("\n")))}


@dataclasses.dataclass(frozen=True)
class WholeFiles(OfLines):
    """Makes one example {field: text} of each file. The text is that of the file: it keeps all line breaks and blank
    lines, but no byte-order mark. A file of white space alone gives no example."""

    field: str = "text"

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        begin = end = 0
        wrong, is_blank = None, True
        for line in read_lines(path, file.name):
            begin = line.begin if line.number == 1 else begin
            end, wrong, is_blank = line.end, wrong or line.error, is_blank and not line.text.strip()
        if end - begin >= MAX_RECORD_BYTES:
            wrong = wrong or DataError(f"{file.name} is longer than {MAX_RECORD_BYTES >> 20} MB, the most of a record")
        if wrong:
            bad(wrong, 1)
        elif not is_blank:
            text = path.read_bytes()[begin:end].decode("utf-8")
            yield Scanned(begin, end - begin, {self.field: text})

    def parse(self, text: str, where: str) -> Example:
        return {self.field: text}


@dataclasses.dataclass(frozen=True)
class JsonLines(OfLines):
    """Reads JSON objects, one per line."""

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        for line in read_lines(path, file.name):
            try:
                if line.error:
                    raise line.error
                if not line.text.strip():
                    continue
                row = json_record(line.text, self.place(file, line.number))
            except DataError as error:
                bad(error, 1)
            else:
                yield Scanned(line.begin, line.end - line.begin, row)

    def place(self, file: File, number: int) -> str:
        """Returns the place of the record in the line `number`, for messages."""
        return f"{file.name}:{number}"

    def parse(self, text: str, where: str) -> Example:
        return json.loads(text)


def json_record(text: str, where: str) -> Example:
    """Returns the JSON object in `text` as an example.

    Raises DataError, which names the place `where`, if the text is not a JSON object, repeats a key, holds NaN or an
    infinity (JSON has neither), or holds half of a surrogate pair (which is not text).
    """
    try:
        row = strict_json(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        if text.count("[") + text.count("{") > 100:  # JSON that can be read may be nested too deeply to write
            json.dumps(row)
    except (ValueError, RecursionError) as error:
        way = LIST_TO_LINES if text.lstrip()[:1] == "[" else "write one object a line"
        way += " (jq -c . FILE > FILE.jsonl does that)" if text.strip() == "{" else ""
        raise DataError(f"{where}: not JSON ({one_line(error)}); {way}") from None
    if isinstance(row, list):
        raise DataError(f"{where}: a JSON list; {LIST_TO_LINES}")
    if not isinstance(row, dict):
        raise DataError(f'{where}: a JSON {type(row).__name__}; write an object such as {{"text": "…"}}')
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# Decodes JSON. Raises ValueError if the text is not JSON, repeats a key, or holds NaN or an infinity.
strict_json = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_no_constant).decode


@dataclasses.dataclass(frozen=True)
class Table(OfLines):
    """Reads CSV and TSV. Each column becomes a text field.

    columns: names of the columns, for a file without a header.
    quoting: False if quotes are text, as in GLUE's files.
    drops_short_rows: leaves out rows with too few columns; the published file of GLUE's QQP has such rows.
    """

    delimiter: str = ","
    columns: tuple[str, ...] = ()
    quoting: bool = True
    drops_short_rows: bool = False

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        lines: list[Line] = []  # of the current record; a quoted cell may span several

        def texts() -> Iterator[str]:
            for line in read_lines(path, file.name):
                lines.append(line)
                yield line.text + "\n"

        header = list(self.columns)
        rows = self._cells(texts())
        while True:
            lines.clear()
            try:
                cells = next(rows, None)
                if cells is None:
                    return
                where = f"{file.name}:{lines[0].number}"
                if wrong := next((line.error for line in lines if line.error), None):
                    if not header:
                        raise wrong
                    bad(wrong, 1)
                elif not header:
                    header = cells
                    if repeated := [name for name in header if header.count(name) > 1]:
                        raise DataError(
                            f"{where}: two columns are named {repeated[0]!r}; rename one, or if this line is data, "
                            "put a header line above it"
                        )
                elif cells and len(cells) != len(header):
                    if not (self.drops_short_rows and len(cells) < len(header)):
                        bad(self._ragged(header, cells, where), 1)
                elif cells:
                    begin, end = lines[0].begin, lines[-1].end
                    yield Scanned(begin, end - begin, dict(zip(header, cells, strict=True)))
            except csv.Error as error:
                why = f"{error} in the record that begins here; is a quote left open?"
                if "new-line character" in str(error):
                    why = "a carriage return inside a cell; if it ends every line, tr '\\r' '\\n' converts the file"
                wrong = DataError(f"{file.name}:{lines[0].number}: {why}")
                if not header or "end of data" in str(error):  # the record swallowed the rest of the file
                    raise wrong from None
                bad(wrong, len(lines))

    def reader(self, path: Path, file: File) -> Read:
        rows = self._cells(line.text + "\n" for line in read_lines(path, file.name))
        header = list(self.columns) or next(filter(None, rows))
        read = dataclasses.replace(self, columns=tuple(header))
        return super(Table, read).reader(path, file)

    def parse(self, text: str, where: str) -> Example:
        lines = (bare(line) + "\n" for line in bare(text).split("\n"))
        return dict(zip(self.columns, next(self._cells(lines)), strict=True))

    def _cells(self, lines: Iterable[str]):
        style = csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE
        csv.field_size_limit(MAX_RECORD_BYTES)  # a long document exceeds the default of 131,072
        return csv.reader(lines, delimiter=self.delimiter, quoting=style, strict=self.quoting)

    def _ragged(self, header: Sequence[str], cells: Sequence[str], where: str) -> DataError:
        return DataError(
            f"{where}: {len(cells)} columns; the header has {len(header)} "
            f"({', '.join(header)}). Quote cells that contain the delimiter {self.delimiter!r}"
        )


@dataclasses.dataclass(frozen=True)
class Sentences(OfLines):
    """Reads CoNLL's columns: each line holds a token and its tags, and a blank line ends a sentence.

    An example is a sentence. It has one text per column: all tokens, or all tags, joined by spaces. A line is split at
    tabs, or at spaces if it has no tab. Comments ("# sent_id = 1") and lines that begin with -DOCSTART- are left out.
    """

    columns: tuple[str, ...] = ("tokens", "tags")

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        for lines in _blocks(path, file.name, bad):
            try:
                row = self._row([(f"{file.name}:{line.number}", line.text) for line in lines])
            except DataError as error:
                bad(error, 1)
            else:
                if row:
                    yield Scanned(lines[0].begin, lines[-1].end - lines[0].begin, row)

    def parse(self, text: str, where: str) -> Example:
        lines = text.removesuffix("\n").split("\n")
        return self._row([(where, bare(line)) for line in lines])

    def _row(self, lines: Sequence[tuple[str, str]]) -> Example:
        rows = []
        for where, line in lines:
            if is_comment(line):
                continue
            cells = cells_of(line)
            if len(cells) != len(self.columns) or not all(cells):
                raise DataError(
                    f"{where}: {len(cells)} columns, {line[:60]!r}; every line must have {len(self.columns)} "
                    f"({', '.join(self.columns)}), separated by a tab or one space"
                )
            rows.append(cells)
        return {name: " ".join(cells) for name, cells in zip(self.columns, zip(*rows, strict=True), strict=False)}


def is_comment(line: str) -> bool:
    """Returns whether a line of a CoNLL file is a comment on the sentence or document below it, and not a token.

    >>> is_comment("# sent_id = 1"), is_comment("-DOCSTART- O"), is_comment("# O")
    (True, True, False)
    """
    of_conll_u = r"# ?(\S+ )?\S+ = |# ?new(doc|par)\b"
    return re.match(rf"-DOCSTART-|{of_conll_u}|#\t\S+://", line) is not None  # the last alternative is GermEval's


def cells_of(line: str) -> list[str]:
    """Returns the cells of a CoNLL line, without the spaces that some files have at the end of lines."""
    return line.split("\t") if "\t" in line else line.rstrip(" ").split(" ")


@dataclasses.dataclass(frozen=True)
class ParallelLines:
    """Reads files in parallel, line by line: "train.{en,de}.gz" stands for two files and gives examples
    {"en": …, "de": …}.

    Lines that are blank in all files are left out. It is an error if the files have different numbers of lines, or if
    any line is bad: leaving out a bad line would misalign all lines after it.
    """

    def local(self, file: File) -> Path:
        return Path(file.name)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        sides = self._sides(file)
        lengths = {name: len(side) for name, side in sides.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{file.name}: {', '.join(f'{n} has {c:,} lines' for n, c in lengths.items())}; parallel files must "
                "have equally many lines"
            )
        for number in range(min(lengths.values())):
            row = {name: side[number][name] for name, side in sides.items()}
            if any(text.strip() for text in row.values()):
                yield Scanned(number, 0, row)

    def reader(self, path: Path, file: File) -> Read:
        sides = self._sides(file)

        def read(places: Sequence[tuple[int, int]]) -> list[Example]:
            numbers = [number for number, _ in places]
            rows = zip(*(side.read_many(numbers) for side in sides.values()), strict=True)
            return [{name: text for row in sided for name, text in row.items()} for sided in rows]

        return read

    def where(self, path: Path, begin: int) -> str:
        return str(begin + 1)

    def _sides(self, file: File) -> dict[str, Records]:
        paths = braces(file.name)
        return {field: open_records(path, TextLines(field, keep_blank=True)) for field, path in paths.items()}


def _blocks(path: Path, name: str, bad: OnBad) -> Iterator[list[Line]]:
    """Yields each run of lines that are not blank. If a run has a bad line, calls `bad` once instead."""
    for is_blank, run in itertools.groupby(
        read_lines(path, name), lambda line: not line.text.strip() and not line.error
    ):
        lines = [] if is_blank else list(run)
        if wrong := next((line.error for line in lines if line.error), None):
            bad(wrong, 1)
        elif lines:
            yield lines
