"""Makes a source of local files by guessing their format, columns and splits. `Found.notes` states each guess in words,
because a user can notice a wrong guess only if it is shown.
"""

import csv
import dataclasses
import glob
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from t5x_lite.data.binary_formats import ArrayRecordRows, ArrowRows, ParquetRows
from t5x_lite.data.opened_files import braces
from t5x_lite.data.records import PERCENT, Format, open_records
from t5x_lite.data.sources import Files, matching
from t5x_lite.data.text_formats import (
    JsonLines,
    Paragraphs,
    ParallelLines,
    Sentences,
    Table,
    TextLines,
    cells_of,
    is_comment,
)
from t5x_lite.data.text_lines import MAX_RECORD_BYTES, lines_of
from t5x_lite.errors import ConfigError, DataError, one_line
from t5x_lite.lookup import suggest

SAMPLED_LINES = 1000  # the first lines of a file, from which its header and kind are guessed
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
    **dict.fromkeys(("zip", "tar", "tgz", "7z", "bz2", "xz", "zst"), "unpack it (only gzip needs no unpacking)"),
    **dict.fromkeys(("pdf", "docx", "doc", "epub", "html"), "extract its text into a .txt with one example a line"),
}


@dataclasses.dataclass(frozen=True)
class TableHints:
    """Holds the user's settings for CSV and TSV files. Whatever is not set is detected.

    header: whether the first row names the columns; None: detected.
    delimiter: the character between cells; "": detected.
    """

    header: bool | None = None
    delimiter: str = ""


DETECTED = TableHints()


@dataclasses.dataclass(frozen=True)
class Found:
    """Holds a source, its splits and fields, and notes about them for the user."""

    source: Files
    splits: tuple[str, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...]


def find(spec: str, max_bad_fraction: float = 0.0, tables: TableHints = DETECTED) -> Found:
    """Returns the source that `spec` names, with its splits and fields.

        reviews.csv                          one file, split by hash into 90% train, 5% validation, 5% test
        shards/part-*.jsonl.gz               several files as one, split by hash
        train=a.csv,validation=b.csv         one file per split
        data/mrpc                            a directory: train.tsv, dev.tsv and so on, or Hugging Face's save_to_disk
        train=train.{en,de},test=test.{en,de}   parallel files; each file becomes a field

    A file's suffix (before .gz, if any) decides its format (SUFFIXES). Bad records are left out; at most the fraction
    `max_bad_fraction` of all records may be bad. Raises ConfigError if it cannot parse `spec`, DataError if the files
    have no record or if named files differ in format.
    """
    spec = re.sub(r"(^|=)~(?=/)", lambda begin: begin[1] + str(Path.home()), spec)  # shells do not expand "=~/"
    files = _files(spec)
    paths = [path for pattern in ([files] if isinstance(files, str) else files.values()) for path in matching(pattern)]
    form, notes = _format(*paths, tolerant=max_bad_fraction > 0, tables=tables)
    source = Files(files, form, max_bad_fraction)
    splits = tuple(PERCENT) if isinstance(files, str) else tuple(files)
    first = next((split for split in splits if len(source.split(split))), None)
    if first is None:
        raise DataError(f"data.files={spec!r} has no records; is it the right file?")
    fields = tuple(source.split(first)[0])
    if not isinstance(files, str):
        is_named = not Path(spec).is_dir()  # every file that the user names must be used; templates choose the fields
        kept, others = _alike(files, form, () if is_named else fields, max_bad_fraction, tables)
        if others and is_named:
            path, why = others[0]
            raise DataError(f"{path}: {why}; remove it from data.files, or convert it to the same format and columns")
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
            raise ConfigError(f"data.files={spec!r}: {wrong[0]!r} is not a split; use train, validation or test")
        splits = [str(_split_of(name)) for name, _ in named]
        if len(set(splits)) < len(splits) or ",".join(f"{n}={p}" for n, p in named).replace(" ", "") != spec.replace(
            " ", ""
        ):
            raise ConfigError(
                f"data.files={spec!r}: give each split once, train=FILE,validation=FILE; for several files use a "
                "pattern (train=part-*.csv)"
            )
        return {split: path.strip() for split, (_, path) in zip(splits, named, strict=True)}
    if Path(spec).is_dir():
        return _of_directory(Path(spec))
    return spec


def _split_of(name: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def _arrow_splits(directory: Path) -> dict[str, str]:
    """Returns {split: pattern} for the files data-*.arrow that `save_to_disk` writes. They are in the directory itself,
    or in one directory per split. (Ignores the files cache-*.arrow beside them, which belong to `datasets`.)

    Raises ConfigError if two directories match one split, or if files are missing.
    """
    splits: dict[str, str] = {}
    for folder in sorted({path.parent for path in directory.rglob("data-*.arrow")}):
        split = "train" if folder == directory else _split_of(folder.name)
        if split is None:
            logging.getLogger(__name__).warning("%s is left out: %r is not a split", folder, folder.name)
            continue
        if split in splits:
            raise ConfigError(
                f"data.files={str(directory)!r}: which is {split}, {splits[split]} or {folder}? "
                "Use train=DIRECTORY,validation=DIRECTORY"
            )
        splits[split] = f"{glob.escape(str(folder))}/{_saved_shards(folder)}"
    return splits


def _saved_shards(folder: Path) -> str:
    """Returns a pattern for a data set's files in the directory to which `save_to_disk` wrote them.

    If the directory already held a data set, `save_to_disk` leaves the shards of the old one there. Only state.json
    says which files belong to the new one.

    Raises ConfigError if state.json names a file that is missing or no shard, or says that the rows are chosen by an
    index.
    """
    state = folder / "state.json"
    try:
        content = json.loads(state.read_bytes()) if state.exists() else {}
        names = sorted(file["filename"] for file in content.get("_data_files") or ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"data.files: {state} cannot be read ({one_line(error)}); save the data set again") from None
    if content.get("_indices_data_files"):
        raise ConfigError(
            f"data.files: {state} has rows chosen by an index, which is not read; save it again after "
            "dataset.flatten_indices()"
        )
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ConfigError(f"data.files: {folder / missing[0]} is missing, which {state.name} names; save it again")
    pattern = shards_pattern(names) if names else "data-*.arrow"
    if not pattern:
        raise ConfigError(f"data.files: {state} names files that are not the shards of one data set; save it again")
    return pattern


def shards_pattern(names: Sequence[str]) -> str:
    """Returns the pattern that matches `names` if these are the names of all shards of one file; else "".

    >>> shards_pattern(["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"])
    'train-*-of-00002.parquet'
    """
    parts = [re.fullmatch(r"(.*-)\d+(-of-(\d+)\..*)", name) for name in names]
    patterns = {f"{part[1]}*{part[2]}" for part in parts if part}
    is_whole = all(parts) and len(patterns) == 1 and len(names) == int(parts[0][3])  # type: ignore[index]
    return patterns.pop() if is_whole else ""


def _of_directory(directory: Path) -> dict[str, str] | str:
    """Returns {split: file} for a directory. Uses the Arrow files of `save_to_disk` if the directory holds any, else
    the files that are named after a split. If the Arrow files have only the split "train", returns just their pattern.

    Raises ConfigError if two files match one split, or none matches "train".
    """
    if arrow := _arrow_splits(directory):
        return next(iter(arrow.values())) if list(arrow) == ["train"] else arrow
    files = sorted(p for p in directory.iterdir() if p.is_file() and kind_of(p.name))
    where = f"data.files={str(directory)!r}"
    splits = {}
    for split in SPLIT_NAMES:
        paths = [p for p in files if _split_of(p.name.split(".")[0]) == split]
        paths = paths or [p for p in files if split in map(_split_of, re.split(r"[._-]", p.name))]
        if len(paths) > 1 and (shards := shards_pattern([p.name for p in paths])):
            splits[split] = f"{glob.escape(str(directory))}/{shards}"
        elif len(paths) > 1:
            names = ", ".join(p.name for p in paths)
            raise ConfigError(
                f"{where}: which is {split}, {names}? Use train={directory}/FILE,validation={directory}/FILE"
            )
        elif paths:
            splits[split] = str(paths[0])
    if "train" not in splits:
        names = ", ".join(p.name for p in files[:8]) or "none has a known suffix"
        example = _pair(p.name for p in directory.iterdir() if _split_of(p.name.split(".")[0]) == "train")
        raise ConfigError(
            f"{where}: no file is named after the split train ({names}); use train={directory}/{example or 'FILE'}"
        )
    return splits


def _pair(names: Iterable[str]) -> str:
    """Returns a pattern with braces for the first two names that differ in exactly one of their parts between dots.
    Returns "" if there are no two such names.

    >>> _pair(["train.en.gz", "train.de.gz", "train.txt"])
    'train.{de,en}.gz'
    """
    for a, b in itertools.combinations(sorted(names), 2):
        parts = list(itertools.zip_longest(a.split("."), b.split("."), fillvalue=""))
        if sum(one != other for one, other in parts) == 1 and all(map(all, parts)):
            return ".".join(one if one == other else f"{{{one},{other}}}" for one, other in parts)
    return ""


def _alike(
    files: Mapping[str, str], form: Format, fields: Sequence[str], max_bad_fraction: float, tables: TableHints
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Returns ({split: path} for the files that have this format and these fields, [(path, reason)] for the other
    files)."""
    kept, others = {}, []
    for name, path in files.items():
        file_form, _ = _format(*matching(path), tolerant=max_bad_fraction > 0, tables=tables)
        if isinstance(file_form, Table) and isinstance(form, Table):
            file_form = dataclasses.replace(file_form, quoting=form.quoting)  # `form` was guessed from all files
        file_fields = tuple(Files({name: path}, file_form, max_bad_fraction).split(name)[0])
        if file_form == form and set(fields) <= set(file_fields):
            kept[name] = path
        else:
            others.append((path, f"its format or columns differ from {next(iter(files))}'s ({', '.join(file_fields)})"))
    return kept, others


# ------------------------------------------------------------------------------------------------------------- formats


def kind_of(name: str) -> str | None:
    """Returns the kind of a file (a key of SUFFIXES) by its suffix; None for an unknown suffix."""
    return KIND_OF_SUFFIX.get(name.lower().removesuffix(".gz").rpartition(".")[2])


def _format(path: str, *more: str, tolerant: bool, tables: TableHints) -> tuple[Format, list[str]]:
    """Returns (format, notes for the user) of the file `path`. more: further files, which must fit the same format.

    Raises ConfigError if the suffix is unknown.
    """
    if fields := braces(path):
        return ParallelLines(), [f"text files, a line each: {', '.join(fields)}"]
    kind = kind_of(path)
    if kind is None:
        near = suggest(Path(path).suffix.removeprefix("."), KIND_OF_SUFFIX)
        way = next((OTHER_KINDS[part] for part in path.lower().split(".")[-2:] if part in OTHER_KINDS), "")
        if way:
            raise ConfigError(f"data.files: {path!r} is in an unsupported format; {way}")
        known = ", ".join(f".{suffix}" for suffix in KIND_OF_SUFFIX)
        raise ConfigError(
            f"data.files: {path!r} has no known suffix{f' (.{near[0]}?)' if near else ''}; allowed: {known}, each also "
            "with .gz; or two parallel files such as train.{en,de}"
        )
    if kind in ("csv", "tsv"):
        return _table(path, more, kind, tables)
    if kind == "conll":
        return _conll(path)
    if kind == "text":
        blank = [not line.strip() for line in _sample(path)]
        if 100 * sum(blank[1:-1]) >= len(blank) > 2:  # fewer than 1% blank lines are stray
            return Paragraphs(), ["text, one example a paragraph (separated by blank lines)"]
        return TextLines(), ["text, one example a line"]
    simple: dict[str, tuple[Format, str]] = {
        "json": (JsonLines(), "JSON lines"),
        "parquet": (ParquetRows(), "Parquet"),
        "arrow": (ArrowRows(), "Arrow"),
        "array_record": (ArrayRecordRows(), "ArrayRecord of JSON"),
    }
    form, words = simple[kind]
    fields = tuple(open_records(path, form, tolerant=tolerant)[0])
    return form, [f"{words} with the fields {', '.join(fields)}"]


def _table(path: str, more: Sequence[str], kind: str, tables: TableHints) -> tuple[Format, list[str]]:
    lines = _sample(path)
    guess = "\t" if kind == "tsv" else max(",;\t|", key=lambda d: len(next(_rows(lines, d, True), [])))
    delimiter = tables.delimiter.replace("\\t", "\t") or guess
    if len(delimiter) > 1:
        raise ConfigError(f"data.delimiter={tables.delimiter!r}: must be one character")
    quoting = kind == "csv" or _quotes_cells((line for p in (path, *more) for line in lines_of(p)), delimiter)
    rows = list(_rows(lines, delimiter, quoting))
    words = {",": "CSV", "\t": "TSV"}.get(delimiter, f"CSV with the delimiter {delimiter!r}")
    words += "" if quoting == (kind == "csv") else ", cells quoted"
    if not rows or (has_header(rows) if tables.header is None else tables.header):
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
