"""Reads files that are a single JSON value: a list of objects, an object that holds such a list ({"data": […]}), an
object of columns ({"text": […], "label": […]}), or SQuAD's layout."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.data.divide import split_of
from t5x_lite.data.opened_files import File, digest, plain
from t5x_lite.data.records import Example
from t5x_lite.data.text_formats import JsonLines
from t5x_lite.data.text_lines import read_lines
from t5x_lite.data.user_cache import atomic_file, cache_dir, remembered
from t5x_lite.errors import DataError, one_line
from t5x_lite.side_files import unique_keys

VERSION = 1  # of the cached layouts; raise it when `_layout_of` changes
MOST_BYTES = 1 << 30  # of a file; parsing needs several times as much memory
HOLDERS = ("data", "rows", "records", "examples", "instances", "items", "samples")  # keys that hold the list of objects
LINES = "write one object a line (jq -c '.[]' FILE > FILE.jsonl converts a list of objects)"
SUPPORTED = (
    'a list of objects, an object with such a list ({"data": […]}), an object of lists of equal lengths (columns), or '
    "SQuAD's layout"
)
# Decodes NaN and infinities, too: json_record then calls only their records bad.
_decode = json.JSONDecoder(object_pairs_hook=unique_keys).decode


@dataclasses.dataclass(frozen=True)
class JsonDocument(JsonLines):
    """Reads the records of a file that is a single JSON value. Writes them to the cache as JSON lines and reads that
    copy, because JSON gives no access to single records.

    layout: "list", "columns", "squad", or "key" for a list of objects under the key `key`.

    A record of SQuAD's layout is a question, with the fields id, title, context, question and answers
    ({"text": […], "answer_start": […]}), and is_impossible in SQuAD 2 (Rajpurkar et al. 2018).
    """

    layout: str
    key: str = ""

    @property
    def words(self) -> str:
        """Returns the layout's name, for the user."""
        names = {"list": "one JSON list", "columns": "JSON columns", "squad": "JSON in SQuAD's layout"}
        return names.get(self.layout, f"the JSON list under {self.key!r}")

    def local(self, file: File) -> Path:
        copy = cache_dir() / "files" / f"{file.key}-{digest(repr(self).encode())}.jsonl"
        if not copy.exists():
            rows = self._rows(_parsed(file), file.name)
            with atomic_file(copy) as out:
                for row in rows:
                    out.write(json.dumps(row).encode() + b"\n")
        return copy

    def place(self, file: File, number: int) -> str:
        return f"{file.name}: record {number}"

    def where(self, path: Path, begin: int) -> str:
        return f" record {super().where(path, begin)}"

    def _rows(self, value: Any, name: str) -> Sequence[Any]:
        try:
            if self.layout == "squad":
                return list(_questions(value))
            if self.layout == "columns":
                return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
            rows = value if self.layout == "list" else value[self.key]
            if not isinstance(rows, list):
                raise TypeError(f"not a list but a {type(rows).__name__}")
            return rows
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"the key {error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise DataError(f"{name} is not {self.words}, as the first file is: {why}") from None


def document(name: str) -> JsonDocument | None:
    """Returns the format of a .json file that is a single JSON value; None for a file of JSON lines.

    A file with one line that is an object is a file of JSON lines, unless the object has one of the layouts. Raises
    DataError if the file is a single JSON value in another layout.
    """
    file = File.of(name)
    path = cache_dir() / "files" / f"{file.key}-layout-{VERSION}.json"
    layout = remembered(path, lambda: _layout_in(file))
    return JsonDocument(*layout) if layout else None


def _layout_in(file: File) -> list[str] | None:
    lines = (line.text for line in read_lines(plain(file, is_text=True), file.name) if line.text.strip())
    first = next(lines, "")
    try:
        is_record = isinstance(_decode(first), dict)
    except (ValueError, RecursionError):
        is_record = False
    if is_record and next(lines, None) is not None:
        return None
    try:
        value = _parsed(file)
    except DataError:
        if first.rstrip().endswith("}"):
            return None  # reading it as JSON lines raises an error that names the line
        raise
    layout = _layout_of(value, file.name)
    if layout is None and not is_record:
        raise DataError(
            f"{file.name} is one JSON {type(value).__name__}; it must be {SUPPORTED}. If it has another layout, {LINES}"
        )
    return layout


def _parsed(file: File) -> Any:
    path = plain(file, is_text=True)
    if path.stat().st_size > MOST_BYTES:
        if path != Path(file.name):
            path.unlink(missing_ok=True)  # the copy of a file that is refused would only fill the cache
        raise DataError(f"{file.name} is one JSON value of over {MOST_BYTES >> 20:,} MB, too long to parse; {LINES}")
    try:
        return _decode(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name}: not JSON ({one_line(error)}); correct it, or {LINES}") from None


def _layout_of(value: Any, name: str) -> list[str] | None:
    """Returns the arguments of JsonDocument for a value; None if it has none of the layouts."""
    if _is_rows(value):
        return ["list"]
    if not isinstance(value, dict):
        return None
    data = value.get("data")
    if isinstance(data, list) and _is_rows(data) and isinstance(data[0].get("paragraphs"), list):
        return ["squad"]
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list)}
    of_rows = [key for key, rows in lists.items() if _is_rows(rows)]
    if len(value) == 1 and of_rows:
        return ["key", of_rows[0]]
    are_equally_long = len(lists) == len(value) and len(set(map(len, lists.values()))) == 1
    if are_equally_long and not all(map(split_of, of_rows or [""])):
        return ["columns"]
    holders = [key for key in of_rows if key in HOLDERS]
    if len(holders) == 1:
        return ["key", holders[0]]
    if len(of_rows) > 1:
        raise DataError(
            f"{name} has several lists of objects, {', '.join(of_rows[:8])}; write each to a file of its own: "
            f"jq -c '.{of_rows[0]}[]' FILE > {of_rows[0]}.jsonl"
        )
    return None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _questions(value: Mapping[str, Any]) -> Iterator[Example]:
    """Yields the questions of a file in SQuAD's layout: data → paragraphs → qas → answers."""
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                extra = {name: question[name] for name in ("is_impossible",) if name in question}
                yield {
                    "id": question["id"],
                    "title": article.get("title", ""),
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                } | extra
