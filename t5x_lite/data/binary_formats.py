"""Reads binary files: Arrow, Parquet and ArrayRecord. Each row is a record; its place is its row number, from 0."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from t5x_lite.data.class_labels import Labels, labels_in, named
from t5x_lite.data.opened_files import File, plain, require_unchanged, version_of
from t5x_lite.data.records import Example, OnBad, Read, Scanned
from t5x_lite.data.text_formats import json_record
from t5x_lite.data.user_cache import atomic_file, cache_dir
from t5x_lite.errors import DataError, one_line


class _OfRows:
    """Implements `where`, which is the same in all these formats."""

    def where(self, path: Path, begin: int) -> str:
        return f" row {begin}"


@dataclasses.dataclass(frozen=True)
class ArrowRows(_OfRows):
    """Reads Arrow IPC files and streams (Hugging Face's `save_to_disk` writes streams). Maps the file into memory, so
    the whole file is never loaded.

    labels: ((path of a ClassLabel feature, names), …), see class_labels.py. Its numbers are read as these names.
    """

    labels: Labels = ()

    def named(self, name: str, fields: Sequence[str] | None = None) -> Self:
        """Returns the format that reads the ClassLabel features of this file as their names: those in these fields;
        None: all."""
        file = File.of(name)
        labels = _labels_in(_batches(self.local(file), file))
        kept = tuple((path, names) for path, names in labels if fields is None or path[0] in fields)
        return dataclasses.replace(self, labels=kept)

    def local(self, file: File) -> Path:
        return plain(file)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        row, batches = 0, _batches(path, file)
        if (labels := _labels_in(batches)) and not set(self.labels) <= set(labels):
            raise DataError(f"{file.name}: its ClassLabel features differ from the first file's; save both files again")
        for batch in batches:
            for begin in range(0, len(batch), 1024):
                try:
                    part = batch.slice(begin, 1024)
                    part.validate(full=True)
                    examples = part.to_pylist()
                except (ValueError, TypeError, ArithmeticError, OSError) as error:
                    raise DataError(
                        f"{file.name}: corrupted near row {row} ({one_line(error)}); get it again"
                    ) from None
                for example in examples:
                    try:
                        yield Scanned(row, 0, self._read(example))
                    except (ValueError, TypeError, AttributeError) as error:  # also of values that are no numbers
                        bad(DataError(f"{file.name}: row {row}: {error}"), 1)
                    row += 1

    def reader(self, path: Path, file: File) -> Read:
        batches = _batches(path, file)
        ends = np.cumsum([len(batch) for batch in batches])
        version = version_of(path, file)

        def row_of(row: int) -> Example:
            number = int(np.searchsorted(ends, row, side="right"))
            batch = batches[number]
            (example,) = batch.slice(row - int(ends[number]) + len(batch), 1).to_pylist()
            return self._read(example)

        def read(places: Sequence[tuple[int, int]]) -> list[Example]:
            require_unchanged(
                path, version, file
            )  # before reading, because reading a page that is no longer in the file kills the process
            try:
                examples = [row_of(row) for row, _ in places]
            except (ValueError, TypeError, ArithmeticError, OSError) as error:
                require_unchanged(path, version, file)
                raise DataError(f"{file.name}: corrupted ({one_line(error)}); get it again") from None
            require_unchanged(path, version, file)
            return examples

        return read

    def _read(self, example: Mapping[str, Any]) -> Example:
        return texts(named(example, self.labels))


@dataclasses.dataclass(frozen=True)
class ParquetRows(ArrowRows):
    """Copies a Parquet file to the cache as Arrow and reads the copy, because Parquet gives no access to single rows.
    Verifies the file's checksums, if it has any."""

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
                raise DataError(
                    f"{file.name} is not an intact Parquet file ({one_line(error)}); get it again"
                ) from None
        return copy


@dataclasses.dataclass(frozen=True)
class ArrayRecordRows(_OfRows):
    """Reads ArrayRecord files whose records are JSON objects. (For files that TFDS wrote, use `sources.Tfds`.)"""

    def local(self, file: File) -> Path:
        return plain(file)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        read = self.reader(path, file)
        reader = self._opened(path, file)
        for row in range(reader.num_records()):
            try:
                (example,) = read([(row, 0)])
            except DataError as error:
                bad(error, 1)
            else:
                yield Scanned(row, 0, example)

    def reader(self, path: Path, file: File) -> Read:
        reader = self._opened(path, file)

        def record(row: int) -> Example:
            where = f"{file.name}, record {row}"
            try:
                (data,) = reader.read([row])
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{where}: not a JSON object; use sources.Tfds for data sets that TFDS wrote") from None
            except Exception as error:  # the library raises many classes of exceptions
                raise DataError(f"{where}: {one_line(error)}; the file is corrupted, get it again") from None
            return json_record(text, where)

        return lambda places: [record(row) for row, _ in places]

    def _opened(self, path: Path, file: File):
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            reader = ArrayRecordReader(str(path))
            if not reader.ok() or not reader.num_records():
                raise ValueError("it has no records")
        except Exception as error:
            raise DataError(
                f"{file.name} is not an intact ArrayRecord file ({one_line(error)}); get it again"
            ) from None
        return reader


def _batches(path: Path, file: File) -> list:
    """Returns the record batches of an Arrow file, mapped into memory. Raises DataError if a batch is corrupted or the
    end of the file is missing."""
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
        if mapped.read(8) != b"\xff\xff\xff\xff\0\0\0\0":  # without this check a truncated file reads like a short one
            raise ValueError("its end is missing")
        mapped.seek(0)
        return list(pyarrow.ipc.open_stream(mapped))
    except (pyarrow.ArrowException, ValueError, OSError, TypeError) as error:
        raise DataError(f"{file.name} is not an intact Arrow file ({one_line(error)}); get it again") from None


def _labels_in(batches: list) -> Labels:
    return labels_in(batches[0].schema.metadata or {}) if batches else ()


def texts(example: Mapping[str, Any]) -> Example:
    """Returns an example in which bytes are decoded to text, also inside lists and objects. Bytes that are not UTF-8,
    such as an image, stay bytes. A template that reads such bytes raises DataError."""
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
