"""Any local file as a source, whose format, columns and splits are found by looking at it. `Found.notes` says in words
what was found, because a guess that nobody sees is an error that nobody finds.
"""

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from t5x_lite.data.binary_formats import ArrayRecordRows, ArrowRows, ParquetRows
from t5x_lite.data.opened_files import braces
from t5x_lite.data.preprocess import pieces, written
from t5x_lite.data.records import PERCENT, Chained, Example, Format, Records, open_records
from t5x_lite.data.sources import Files, matching
from t5x_lite.data.text_formats import JsonLines, Paragraphs, ParallelLines, Sentences, Table, TextLines
from t5x_lite.data.text_lines import MAX_RECORD_BYTES, lines_of
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

SAMPLED_LINES = 1000  # that a file's header and kind are guessed from
LONGEST_COLUMN_NAME = 64  # characters
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
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
    **dict.fromkeys(("zip", "tar", "tgz", "7z", "bz2", "xz", "zst"), "unpack it (gzip alone is read as it is)"),
    **dict.fromkeys(("pdf", "docx", "doc", "epub", "html"), "take its text out, into a .txt with an example a line"),
}


@dataclasses.dataclass(frozen=True)
class Found:
    """A source, its splits and fields, and what to tell the user about them."""

    source: Files
    splits: tuple[str, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...]


def find(spec: str, max_bad_fraction: float = 0.0) -> Found:
    """The source that `spec` names. A share `max_bad_fraction` of its records may be bad; they are left out.

        reviews.csv                          one file, split by hash into 90% train, 5% validation, 5% test
        shards/part-*.jsonl.gz               several as one, split by hash
        train=a.csv,validation=b.csv         a file for each split
        data/mrpc                            a directory: train.tsv, dev.tsv and so on, or Hugging Face's save_to_disk
        train=train.{en,de},test=test.{en,de}   files that belong together line by line, a field for each

    The last part of a name (SUFFIXES), before .gz, tells the format. ConfigError for a spec that cannot be understood,
    DataError for files without a record.
    """
    spec = re.sub(r"(^|=)~(?=/)", lambda begin: begin[1] + str(Path.home()), spec)  # shells do not expand "=~/"
    files = _files(spec)
    paths = [path for pattern in ([files] if isinstance(files, str) else files.values()) for path in matching(pattern)]
    form, notes = _format(*paths, tolerant=max_bad_fraction > 0)
    source = Files(files, form, max_bad_fraction)
    splits = tuple(PERCENT) if isinstance(files, str) else tuple(files)
    first = next((split for split in splits if len(source.split(split))), None)
    if first is None:
        raise DataError(f"data.files={spec!r}: there is no record in it")
    fields = tuple(source.split(first)[0])
    if not isinstance(files, str):
        is_named = not Path(spec).is_dir()  # the user wants all files that they name; templates choose the fields
        kept, others = _alike(files, form, () if is_named else fields, max_bad_fraction)
        if others and is_named:
            path, why = others[0]
            raise DataError(f"{path}: {why}; take it out of data.files, or put it in the same form")
        notes = [*notes, *(f"{path} is left out: {why}" for path, why in others)]
        source, splits = Files(kept, form, max_bad_fraction), tuple(kept)
    counts = ", ".join(f"{name} {len(source.split(name)):,}" for name in splits)
    how = "split by hash" if isinstance(files, str) else "splits"
    return Found(source, splits, fields, (f"{spec}: {notes[0]}; {how}: {counts}", *notes[1:]))


# -------------------------------------------------------------------------------------------------------------- splits


def _files(spec: str) -> dict[str, str] | str:
    named = re.findall(r"(?:^|,)\s*(\w+)=((?:[^,{]|\{[^}]*\})+)", spec)
    if named and not Path(spec).exists():
        wrong = [name for name, _ in named if _split_of(name) is None]
        if wrong:
            raise ConfigError(f"data.files={spec!r}: {wrong[0]!r} is no split; name them train, validation and test")
        splits = [str(_split_of(name)) for name, _ in named]
        if len(set(splits)) < len(splits) or ",".join(f"{n}={p}" for n, p in named).replace(" ", "") != spec.replace(
            " ", ""
        ):
            raise ConfigError(
                f"data.files={spec!r}: give each split once, train=FILE,validation=FILE; several files are one pattern "
                "(train=part-*.csv)"
            )
        return {split: path.strip() for split, (_, path) in zip(splits, named, strict=True)}
    if Path(spec).is_dir():
        return _of_directory(Path(spec))
    return spec


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _arrow_splits(directory: Path) -> dict[str, str]:
    """{split: pattern} of the files that `save_to_disk` writes: data-*.arrow in the directory, or in one for each
    split. (The cache-*.arrow files beside them are `datasets`' own.)"""
    splits: dict[str, str] = {}
    for folder in sorted({path.parent for path in directory.rglob("data-*.arrow")}):
        split = "train" if folder == directory else _split_of(folder.name)
        if split is None:
            continue  # unsupervised, test_matched, …: not used here
        if split in splits:
            raise ConfigError(
                f"data.files={str(directory)!r}: which is {split}, {splits[split]} or {folder}? "
                "Say train=DIRECTORY,validation=DIRECTORY"
            )
        splits[split] = str(folder / "data-*.arrow")
    return splits


def _of_directory(directory: Path) -> dict[str, str] | str:
    """{split: file} of the files in a directory that are named after a split, or the Arrow files of `save_to_disk`."""
    if arrow := _arrow_splits(directory):
        return next(iter(arrow.values())) if list(arrow) == ["train"] else arrow
    files = sorted(p for p in directory.iterdir() if p.is_file() and kind_of(p.name))
    where = f"data.files={str(directory)!r}"
    splits = {}
    for split in SPLIT_NAMES:
        paths = [p for p in files if _split_of(p.name.split(".")[0]) == split]
        paths = paths or [p for p in files if split in map(_split_of, re.split(r"[._-]", p.name))]
        if len(paths) > 1:
            names = ", ".join(p.name for p in paths)
            raise ConfigError(
                f"{where}: which is {split}, {names}? Say train={directory}/FILE,validation={directory}/FILE"
            )
        if paths:
            splits[split] = str(paths[0])
    if "train" not in splits:
        names = ", ".join(p.name for p in files[:8]) or "none of a known kind"
        example = _pair(p.name for p in directory.iterdir() if _split_of(p.name.split(".")[0]) == "train")
        raise ConfigError(f"{where}: no file is named for train ({names}); say train={directory}/{example or 'FILE'}")
    return splits


def _pair(names: Iterable[str]) -> str:
    """The pattern of the first two names that differ in one part; "" if no two do.

    >>> _pair(["train.en.gz", "train.de.gz", "train.txt"])
    'train.{de,en}.gz'
    """
    for a, b in itertools.combinations(sorted(names), 2):
        parts = list(itertools.zip_longest(a.split("."), b.split("."), fillvalue=""))
        if sum(one != other for one, other in parts) == 1 and all(map(all, parts)):
            return ".".join(one if one == other else f"{{{one},{other}}}" for one, other in parts)
    return ""


def _alike(
    files: Mapping[str, str], form: Format, fields: Sequence[str], max_bad_fraction: float
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """({split: path} of this format with these fields, (path, what is wrong) of the other files)."""
    kept, others = {}, []
    for name, path in files.items():
        own, _ = _format(*matching(path), tolerant=max_bad_fraction > 0)
        if isinstance(own, Table) and isinstance(form, Table):
            own = dataclasses.replace(own, quoting=form.quoting)  # `form` was found by looking at all files
        own_fields = tuple(Files({name: path}, own, max_bad_fraction).split(name)[0])
        if own == form and set(fields) <= set(own_fields):
            kept[name] = path
        else:
            others.append((path, f"it is not like {next(iter(files))}'s, with {', '.join(own_fields)}"))
    return kept, others


# ------------------------------------------------------------------------------------------------------------- formats


def kind_of(name: str) -> str | None:
    """What a file of that name holds, a key of SUFFIXES; None if the name does not tell."""
    return KIND_OF_SUFFIX.get(name.lower().removesuffix(".gz").rpartition(".")[2])


def _format(path: str, *more: str, tolerant: bool) -> tuple[Format, list[str]]:
    """(the format of a file and of `more` files like it, what to tell the user about it)."""
    if fields := braces(path):
        return ParallelLines(), [f"text files, a line each: {', '.join(fields)}"]
    kind = kind_of(path)
    if kind is None:
        near = suggest(Path(path).suffix.removeprefix("."), KIND_OF_SUFFIX)
        way = next((OTHER_KINDS[part] for part in path.lower().split(".")[-2:] if part in OTHER_KINDS), "")
        if way:
            raise ConfigError(f"data.files: {path!r} is of a kind that is not read; {way}")
        known = ", ".join(f".{suffix}" for suffix in KIND_OF_SUFFIX)
        raise ConfigError(
            f"data.files: {path!r} has no name of a known kind{f' (.{near[0]}?)' if near else ''}: {known}, each also "
            ".gz; or two files that belong together, as train.{en,de}"
        )
    if kind in ("csv", "tsv"):
        return _table(path, more, kind)
    if kind == "conll":
        return _conll(path)
    if kind == "text":
        blank = [not line.strip() for line in _sample(path)]
        if 100 * sum(blank[1:-1]) >= len(blank) > 2:  # fewer blank lines are stray ones
            return Paragraphs(), ["text, an example a paragraph (blank lines between them)"]
        return TextLines(), ["text, an example a line"]
    simple: dict[str, tuple[Format, str]] = {
        "json": (JsonLines(), "JSON lines"),
        "parquet": (ParquetRows(), "Parquet"),
        "arrow": (ArrowRows(), "Arrow"),
        "array_record": (ArrayRecordRows(), "ArrayRecord of JSON"),
    }
    form, words = simple[kind]
    fields = tuple(open_records(path, form, tolerant=tolerant)[0])
    return form, [f"{words} with the fields {', '.join(fields)}"]


def _table(path: str, more: Sequence[str], kind: str) -> tuple[Format, list[str]]:
    lines = _sample(path)
    delimiter = "\t" if kind == "tsv" else max(",;\t|", key=lambda d: len(next(_rows(lines, d, True), [])))
    quoting = kind == "csv" or _quotes_cells((line for p in (path, *more) for line in lines_of(p)), delimiter)
    rows = list(_rows(lines, delimiter, quoting))
    words = {",": "CSV", "\t": "TSV"}.get(delimiter, f"CSV with {delimiter!r} between columns")
    words += "" if quoting == (kind == "csv") else ", cells quoted"
    if not rows or has_header(rows):
        return Table(delimiter, (), quoting), [f"{words} with the columns {', '.join(rows[0] if rows else [])}"]
    columns = tuple(f"column_{n + 1}" for n in range(len(rows[0])))
    example = " | ".join(cell[:30] for cell in rows[0])
    return Table(delimiter, columns, quoting), [
        f"{words} without a header, {len(columns)} columns",
        f"the columns are called {', '.join(columns)}; the first row is {example}",
    ]


def _sample(path: str) -> list[str]:
    return list(itertools.islice(lines_of(path), SAMPLED_LINES))


def _rows(lines: Sequence[str], delimiter: str, quoting: bool) -> Iterator[list[str]]:
    """The rows of a sample, as far as they can be read."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    style = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    try:
        yield from (row for row in csv.reader(lines, delimiter=delimiter, quoting=style) if row)
    except csv.Error:  # reading the whole file will raise it, with its line
        return


def _quotes_cells(lines: Iterable[str], delimiter: str) -> bool:
    """Whether quotes surround cells: every cell that begins with a quote ends with one, and quotes in it are doubled.

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
    """Whether the first row names the columns: its cells are short, not numbers, and not values of their columns.

    >>> has_header([["text", "label"], ["good", "1"]]), has_header([["good", "yes"], ["bad", "no"], ["fair", "yes"]])
    (True, False)
    """
    first, rest = rows[0], rows[1:]
    if not all(0 < len(cell.strip()) <= LONGEST_COLUMN_NAME for cell in first):
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
    lines = [line for line in _sample(path) if line.strip(" \t")]
    count = len(re.split(r"\t" if lines and "\t" in lines[0] else " ", lines[0])) if lines else 2
    columns = ("tokens", *(f"column_{n + 2}" for n in range(count - 2)), "tags")[-max(count, 1) :]
    return Sentences(columns), [f"sentences in CoNLL's columns: {', '.join(columns)}"]


# ----------------------------------------------------------------------------------------------------------- templates


@dataclasses.dataclass(frozen=True)
class Filled:
    """A source whose examples are texts that templates make of another source's examples: {name: template}.

    A template is a text with fields in braces: "{title}: {body}", "{answers[0]}". A list becomes its parts with spaces
    between them; booleans become "true" and "false". A field that is missing or null is a DataError that names its
    line. labels: the allowed "targets"; others are a DataError.
    """

    source: Files
    templates: tuple[tuple[str, str], ...]
    labels: tuple[str, ...] = ()

    def split(self, name: str) -> "FilledRecords":
        return FilledRecords(self.source.split(name), dict(self.templates), self.labels)

    def tolerant(self, max_bad_fraction: float) -> "Filled":
        """The same, over records of which a share may be bad."""
        return dataclasses.replace(self, source=self.source.tolerant(max_bad_fraction))

    def fingerprint(self, split: str) -> str:
        """Changes whenever any example changes."""
        return f"{self.source.fingerprint(split)} {self.templates}"


class FilledRecords(Sequence[Example]):
    def __init__(self, rows: Records | Chained, templates: Mapping[str, str], labels: tuple[str, ...]):
        self._rows, self._labels = rows, labels
        self._pieces = {name: pieces(template) for name, template in templates.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]  (nobody slices)
        return self._filled(self._rows[place], place)

    def read_many(self, places: Sequence[int]) -> list[Example]:
        """Several examples at once, which is faster."""
        rows = self._rows.read_many(places)
        return [self._filled(row, place) for row, place in zip(rows, places, strict=True)]

    def _filled(self, row: Example, place: int) -> Example:
        example = {name: self._fill(name, row, place) for name in self._pieces}
        if self._labels and example["targets"].strip() not in self._labels:
            raise DataError(
                f"{self.where(place)}: label {example['targets']!r} is not one of {', '.join(self._labels)}; correct "
                "it, or add it to data.labels"
            )
        return example

    def text(self, name: str, place: int) -> str:
        """One field of an example."""
        return self._fill(name, self._rows[place], place)

    def where(self, place: int) -> str:
        """File and line of an example, for messages."""
        return self._rows.where(place)

    def _fill(self, name: str, row: Example, place: int) -> str:
        try:
            return "".join(literal + (written(row, field) if field else "") for literal, field in self._pieces[name])
        except ValueError as error:
            raise DataError(
                f"{self.where(place)}: {error}, which {name} needs; the record has {', '.join(map(str, row))[:200]}"
            ) from None
