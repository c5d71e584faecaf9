"""Makes a source of local files by guessing their format, columns and splits. `Found.notes` states each guess in words,
because a user can notice a wrong guess only if it is shown.
"""

import dataclasses
import glob
import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from t5x_lite.data.divide import SPLIT_NAMES, sizes_of, split_of
from t5x_lite.data.guessed_format import DETECTED, Reading, format_of, kind_of
from t5x_lite.data.records import Format
from t5x_lite.data.sources import Files, matching
from t5x_lite.data.text_formats import Table
from t5x_lite.errors import ConfigError, DataError, one_line


@dataclasses.dataclass(frozen=True)
class Found:
    """Holds a source, its splits and fields, and notes about them for the user."""

    source: Files
    splits: tuple[str, ...]
    fields: tuple[str, ...]
    notes: tuple[str, ...]


def find(spec: str, max_bad_fraction: float = 0.0, reading: Reading = DETECTED) -> Found:
    """Returns the source that `spec` names, with its splits and fields.

        reviews.csv                          one file, split by hash into 90% train, 5% validation, 5% test
        shards/part-*.jsonl.gz               several files as one, split by hash
        train=a.csv,validation=b.csv         one file per split
        data/mrpc                            a directory: train.tsv, dev.tsv and so on, or Hugging Face's save_to_disk
        train=train.{en,de},test=test.{en,de}   parallel files; each file becomes a field

    A file's suffix (before .gz, if any) decides its format (guessed_format.SUFFIXES). Bad records are left out; at most
    the fraction `max_bad_fraction` of all records may be bad. `reading.split` divides files otherwise than by hash; if
    the files are named, its sizes may take missing splits from the records of train.

    Raises ConfigError if it cannot parse `spec` or `reading`, DataError if the files have no record, if named files
    differ in format, or if `reading.split` leaves no record to train.
    """
    spec = re.sub(r"(^|=)~(?=/)", lambda begin: begin[1] + str(Path.home()), spec)  # shells do not expand "=~/"
    files = _files(spec)
    paths = [path for pattern in ([files] if isinstance(files, str) else files.values()) for path in matching(pattern)]
    _check_division(spec, files, reading.split)
    form, notes = format_of(*paths, tolerant=max_bad_fraction > 0, reading=reading)
    source = Files(files, form, max_bad_fraction, reading.split)
    splits = source.splits
    first = next((split for split in splits if len(source.split(split))), None)
    if first is None:
        raise DataError(f"data.files={spec!r} has no records; is it the right file?")
    fields = tuple(source.split(first)[0])
    if not isinstance(files, str):
        is_named = not Path(spec).is_dir()  # every file that the user names must be used; templates choose the fields
        kept, others = _alike(files, form, () if is_named else fields, max_bad_fraction, reading)
        if others and is_named:
            path, why = others[0]
            raise DataError(f"{path}: {why}; remove it from data.files, or convert it to the same format and columns")
        notes = [*notes, *(f"{path} is left out: {why}" for path, why in others)]
        source = dataclasses.replace(source, files=kept)
        splits = source.splits
    elif reading.split and not sizes_of(reading.split):
        splits = tuple(split for split in splits if len(source.split(split)))
        if "train" not in splits:
            raise DataError(f"data.split={reading.split!r} names no record's split train; is it the right field?")
    counts = ", ".join(f"{name} {len(source.split(name)):,}" for name in splits)
    how = "splits" if not isinstance(files, str) else f"split by {reading.split or 'hash'}"
    return Found(source, splits, fields, (f"{spec}: {notes[0]}; {how}: {counts}", *notes[1:]))


# -------------------------------------------------------------------------------------------------------------- splits


def _files(spec: str) -> dict[str, str] | str:
    named = re.findall(r"(?:^|,)\s*(\w+)=((?:[^,{]|\{[^}]*\})+)", spec)
    if named and not Path(spec).exists():
        wrong = [name for name, _ in named if split_of(name) is None]
        if wrong:
            raise ConfigError(f"data.files={spec!r}: {wrong[0]!r} is not a split; use train, validation or test")
        splits = [str(split_of(name)) for name, _ in named]
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


def _check_division(spec: str, files: dict[str, str] | str, division: str) -> None:
    """Raises ConfigError if `data.split` does not fit `data.files`, which may name the splits."""
    sizes = sizes_of(division)
    if isinstance(files, str) or not division:
        return
    where = f"data.split={division!r} and data.files={spec!r}"
    if twice := [split for split in sizes if split in files]:
        raise ConfigError(f"{where} both give {twice[0]}; give it once")
    if not sizes or "train" not in files:
        raise ConfigError(
            f"{where}: the files are divided already; unset data.split, or give sizes of missing splits, which are "
            "taken from the file of train (data.split=validation=5%)"
        )


def _arrow_splits(directory: Path) -> dict[str, str]:
    """Returns {split: pattern} for the files data-*.arrow that `save_to_disk` writes. They are in the directory itself,
    or in one directory per split. (Ignores the files cache-*.arrow beside them, which belong to `datasets`.)

    Raises ConfigError if two directories match one split, or if files are missing.
    """
    splits: dict[str, str] = {}
    for folder in sorted({path.parent for path in directory.rglob("data-*.arrow")}):
        split = "train" if folder == directory else split_of(folder.name)
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
        paths = [p for p in files if split_of(p.name.split(".")[0]) == split]
        paths = paths or [p for p in files if split in map(split_of, re.split(r"[._-]", p.name))]
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
        example = _pair(p.name for p in directory.iterdir() if split_of(p.name.split(".")[0]) == "train")
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
    files: Mapping[str, str], form: Format, fields: Sequence[str], max_bad_fraction: float, reading: Reading
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Returns ({split: path} for the files that have this format and these fields, [(path, reason)] for the other
    files)."""
    kept, others = {}, []
    for name, path in files.items():
        file_form, _ = format_of(*matching(path), tolerant=max_bad_fraction > 0, reading=reading)
        if isinstance(file_form, Table) and isinstance(form, Table):
            file_form = dataclasses.replace(file_form, quoting=form.quoting)  # `form` was guessed from all files
        file_fields = tuple(Files({name: path}, file_form, max_bad_fraction).split(name)[0])
        if file_form == form and set(fields) <= set(file_fields):
            kept[name] = path
        else:
            others.append((path, f"its format or columns differ from {next(iter(files))}'s ({', '.join(file_fields)})"))
    return kept, others
