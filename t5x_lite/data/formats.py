"""The formats of files: how their records are found, checked and read. See records.py for what becomes of them."""

import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data.records import (
    BLOCK_BYTES,
    MAX_RECORD_BYTES,
    Example,
    File,
    Line,
    OnBad,
    Read,
    Records,
    Scanned,
    bare,
    braces,
    one_line,
    open_file,
    open_handle,
    open_records,
    plain,
    read_lines,
    require_unchanged,
    version_of,
)
from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError

LIST_TO_LINES = "write one object a line (of a list of them, jq -c .[] FILE > FILE.jsonl makes that)"

# ------------------------------------------------------------------------------------------------------ lines of text


class _OfLines:
    """What formats of text have in common: they are read from a plain local file by byte."""

    def local(self, file: File) -> Path:
        return plain(file)

    def reader(self, path: Path, file: File) -> Read:
        version = version_of(path, file)

        def read(places: Sequence[tuple[int, int]]) -> list[Example]:
            handle = open_handle(path, version)
            number, found = handle.fileno(), []
            try:
                for begin, length in places:
                    found.append(self.parse(os.pread(number, length, begin).decode("utf-8"), file.name))
            except (ValueError, csv.Error, StopIteration, RecursionError):
                require_unchanged(handle, version, file)  # else a change that its time and size do not show
                begin, _ = places[len(found)]
                raise DataError(f"{file.name}: byte {begin} is not what it was when the file was indexed") from None
            require_unchanged(handle, version, file)  # after it was read: what it was then is what counts
            return found

        return read

    def where(self, path: Path, begin: int) -> str:
        with open_file(str(path)) as file:
            blocks = (file.read(min(BLOCK_BYTES, begin - at)) for at in range(0, begin, BLOCK_BYTES))
            return str(1 + sum(block.count(b"\n") for block in blocks))

    def parse(self, text: str, where: str) -> Example:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TextLines(_OfLines):
    """An example {field: line} for each line; blank ones are left out unless kept."""

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
class Paragraphs(_OfLines):
    """An example {field: text} for each run of lines without a blank one."""

    field: str = "text"

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        for lines in _blocks(path, file.name, bad):
            text = "\n".join(line.text for line in lines)
            yield Scanned(lines[0].begin, lines[-1].end - lines[0].begin, {self.field: text})

    def parse(self, text: str, where: str) -> Example:
        return {self.field: "\n".join(map(bare, text.removesuffix("\n").split("\n")))}


@dataclasses.dataclass(frozen=True)
class JsonLines(_OfLines):
    """JSON objects, one a line. A key that comes twice and numbers that JSON does not know (NaN) are errors."""

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        for line in read_lines(path, file.name):
            try:
                if line.error:
                    raise line.error
                if not line.text.strip():
                    continue
                row = self._strictly(line.text, f"{file.name}:{line.number}")
            except DataError as error:
                bad(error, 1)
            else:
                yield Scanned(line.begin, line.end - line.begin, row)

    def parse(self, text: str, where: str) -> Example:
        return json.loads(text)

    def _strictly(self, text: str, where: str) -> Example:
        try:
            row = _STRICT.decode(text)
            if "\\ud" in text or "\\uD" in text:  # half a surrogate pair is no text
                json.dumps(row, ensure_ascii=False).encode("utf-8")
            if text.count("[") + text.count("{") > 100:  # what can be read can be nested too deeply to be written
                json.dumps(row)
        except (ValueError, RecursionError) as error:
            way = LIST_TO_LINES if text.lstrip()[:1] == "[" else "write one object a line"
            way += " (jq -c . FILE > FILE.jsonl makes that)" if text.strip() == "{" else ""
            raise DataError(f"{where}: not JSON ({one_line(error)}); {way}") from None
        if isinstance(row, list):
            raise DataError(f"{where}: a JSON list; {LIST_TO_LINES}")
        if not isinstance(row, dict):
            raise DataError(f'{where}: a JSON {type(row).__name__}; write an object such as {{"text": "…"}}')
        return row


@dataclasses.dataclass(frozen=True)
class Table(_OfLines):
    """CSV and TSV, a text field for each column.

    columns: names where the file has no header.  quoting: False where quotes are text, as in GLUE's files.
    drops_short_rows: leave out rows with too few columns, such as those that GLUE's QQP was published with.
    """

    delimiter: str = ","
    columns: tuple[str, ...] = ()
    quoting: bool = True
    drops_short_rows: bool = False

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        lines: list[Line] = []  # of the record being read: with quotes it may go on over several

        def fed() -> Iterator[str]:
            for line in read_lines(path, file.name):
                lines.append(line)
                yield line.text + "\n"

        header = list(self.columns)
        rows = self._cells(fed())
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
                            f"{where}: two columns are named {repeated[0]!r}; rename one, or put a line with names "
                            "above the first row if this is that"
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
                    why = "a carriage return in the midst of a cell; if lines end in it, tr '\\r' '\\n' mends the file"
                found = DataError(f"{file.name}:{lines[0].number}: {why}")
                if not header or "end of data" in str(error):  # it has swallowed all that is left, maybe nearly all
                    raise found from None
                bad(found, len(lines))

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
        csv.field_size_limit(MAX_RECORD_BYTES)  # 131,072 by default: less than a long document
        return csv.reader(lines, delimiter=self.delimiter, quoting=style, strict=self.quoting)

    def _ragged(self, header: Sequence[str], cells: Sequence[str], where: str) -> DataError:
        return DataError(
            f"{where}: {len(cells)} columns; the header has {len(header)} "
            f"({', '.join(header)}). Quote cells that hold the delimiter {self.delimiter!r}"
        )


@dataclasses.dataclass(frozen=True)
class Sentences(_OfLines):
    """CoNLL's columns: a token and its tags a line, a blank line between sentences.

    An example has a text for each column, its tokens or tags with a space between them. Columns are cut at tabs,
    where a line has one, else at spaces. Lines that begin with -DOCSTART- are left out.
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
            if line.startswith("-DOCSTART-"):
                continue
            cells = line.split("\t") if "\t" in line else line.split(" ")
            if len(cells) != len(self.columns) or not all(cells):
                raise DataError(
                    f"{where}: {len(cells)} columns, {line[:60]!r}; every line has {len(self.columns)} "
                    f"({', '.join(self.columns)}), with a tab or one space between them"
                )
            rows.append(cells)
        return {name: " ".join(cells) for name, cells in zip(self.columns, zip(*rows, strict=True), strict=False)}


@dataclasses.dataclass(frozen=True)
class ParallelLines:
    """Files whose lines belong together, as one: "train.{en,de}.gz" gives examples {"en": …, "de": …}.

    Pairs that are blank on all sides are left out. Files of different length are an error, and so is any bad
    line: without it, those behind it would belong to others.
    """

    def local(self, file: File) -> Path:
        return Path(file.name)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        sides = self._sides(file)
        lengths = {name: len(side) for name, side in sides.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{file.name}: {', '.join(f'{n} has {c:,} lines' for n, c in lengths.items())}; line by line they must "
                "belong together"
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


# ------------------------------------------------------------------------------------------------------------- tables


class _OfRows:
    """What tables have in common: a record is a row, and its place is the row's number."""

    def where(self, path: Path, begin: int) -> str:
        return f" row {begin}"


@dataclasses.dataclass(frozen=True)
class ArrowRows(_OfRows):
    """Arrow IPC, as a file or as the stream that Hugging Face's `save_to_disk` writes; mapped, never loaded."""

    def local(self, file: File) -> Path:
        return plain(file)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        row = 0
        for batch in _batches(path, file):
            for begin in range(0, len(batch), 1024):
                try:
                    part = batch.slice(begin, 1024)
                    part.validate(full=True)
                    examples = part.to_pylist()
                except (ValueError, TypeError, ArithmeticError, OSError) as error:
                    raise DataError(f"{file.name}: damaged about row {row} ({one_line(error)}); get it again") from None
                for example in examples:
                    yield Scanned(row, 0, texts(example))
                    row += 1

    def reader(self, path: Path, file: File) -> Read:
        batches = _batches(path, file)
        ends = np.cumsum([len(batch) for batch in batches])
        version = version_of(path, file)

        def row_of(row: int) -> Example:
            number = int(np.searchsorted(ends, row, side="right"))
            batch = batches[number]
            (example,) = batch.slice(row - int(ends[number]) + len(batch), 1).to_pylist()
            return texts(example)

        def read(places: Sequence[tuple[int, int]]) -> list[Example]:
            require_unchanged(path, version, file)  # before: pages that a shorter file lacks end the process
            try:
                found = [row_of(row) for row, _ in places]
            except (ValueError, TypeError, ArithmeticError, OSError) as error:
                require_unchanged(path, version, file)
                raise DataError(f"{file.name}: damaged ({one_line(error)}); get it again") from None
            require_unchanged(path, version, file)
            return found

        return read


@dataclasses.dataclass(frozen=True)
class ParquetRows(ArrowRows):
    """Parquet, checksums checked where the file has them. Its rows cannot be read one by one: it is read from a copy
    in the cache, as Arrow."""

    def local(self, file: File) -> Path:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet

        copy = cache_dir() / "files" / f"{file.key}.arrow"
        if copy.exists():
            return copy
        with atomic_file(copy) as out:
            try:
                table = pyarrow.parquet.ParquetFile(plain(file), page_checksum_verification=True)
                with pyarrow.ipc.new_stream(out, table.schema_arrow) as writer:
                    for batch in table.iter_batches(batch_size=1024):
                        writer.write_batch(batch)
            except (pyarrow.ArrowException, ValueError, OSError, TypeError) as error:
                raise DataError(f"{file.name} is no whole Parquet file ({one_line(error)}); get it again") from None
        return copy


@dataclasses.dataclass(frozen=True)
class ArrayRecordRows(_OfRows):
    """ArrayRecord whose records are JSON objects. (TFDS writes other records: read those through `Tfds`.)"""

    def local(self, file: File) -> Path:
        return plain(file)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        read = self.reader(path, file)
        reader = self._opened(path, file)
        for row in range(reader.num_records()):
            try:
                (found,) = read([(row, 0)])
            except DataError as error:
                bad(error, 1)
            else:
                yield Scanned(row, 0, found)

    def reader(self, path: Path, file: File) -> Read:
        reader = self._opened(path, file)

        def record(row: int) -> Example:
            where = f"{file.name}, record {row}"
            try:
                (data,) = reader.read([row])
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(
                    f"{where}: not a JSON object; data sets that TFDS wrote are read by sources.Tfds"
                ) from None
            except Exception as error:  # whatever the library finds wrong
                raise DataError(f"{where}: {one_line(error)}; the file is damaged, get it again") from None
            return JsonLines()._strictly(text, where)

        return lambda places: [record(row) for row, _ in places]

    def _opened(self, path: Path, file: File):
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            reader = ArrayRecordReader(str(path))
            if not reader.ok() or not reader.num_records():
                raise ValueError("it has no records")
        except Exception as error:
            raise DataError(f"{file.name} is no whole ArrayRecord file ({one_line(error)}); get it again") from None
        return reader


def _batches(path: Path, file: File) -> list:
    """The record batches of an Arrow file, mapped into memory. DataError where one is broken or the end is missing."""
    import pyarrow
    import pyarrow.ipc

    try:
        mapped = pyarrow.memory_map(str(path))
        head = mapped.read(6)
        mapped.seek(0)
        if head == b"ARROW1":
            opened = pyarrow.ipc.open_file(mapped)
            return [opened.get_batch(i) for i in range(opened.num_record_batches)]
        size = mapped.size()
        mapped.seek(max(size - 8, 0))
        if mapped.read(8) != b"\xff\xff\xff\xff\0\0\0\0":  # without it a cut-off file reads like a shorter one
            raise ValueError("its end is missing")
        mapped.seek(0)
        return list(pyarrow.ipc.open_stream(mapped))
    except (pyarrow.ArrowException, ValueError, OSError, TypeError) as error:
        raise DataError(f"{file.name} is no whole Arrow file ({one_line(error)}); get it again") from None


# ------------------------------------------------------------------------------------------------------------- parts


def _blocks(path: Path, name: str, bad: OnBad) -> Iterator[list[Line]]:
    """Runs of lines that are not blank."""
    for is_blank, run in itertools.groupby(
        read_lines(path, name), lambda line: not line.text.strip() and not line.error
    ):
        lines = [] if is_blank else list(run)
        if wrong := next((line.error for line in lines if line.error), None):
            bad(wrong, 1)
        elif lines:
            yield lines


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} comes twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def texts(example: Mapping[str, Any]) -> Example:
    """An example whose bytes are text, those in lists and objects too. What cannot be, such as an image, stays bytes:
    an error for whom it reaches."""
    return {name: _text(value) for name, value in example.items()}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, Mapping):
        return texts(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes | list | Mapping):
        return [_text(item) for item in value]
    return value
