"""Makes a task of any local file, in one line.

    registry.add(task_from_files("reviews.csv", inputs="{title}: {body}", targets="{label}"))
    registry.add(task_from_files("articles/*.txt.gz"))

or without code, on the command line: --config.data.files=reviews.csv --config.data.inputs="{title}: {body}"
--config.data.targets="{label}".
"""

import collections
import dataclasses
import hashlib
import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_lite.data import registry
from t5x_lite.data.filled import Filled
from t5x_lite.data.local_files import DETECTED, SPLIT_NAMES, Found, TableHints, find
from t5x_lite.data.preprocess import pieces, root
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Files
from t5x_lite.data.targets import Classes, Number, Text
from t5x_lite.data.user_cache import cache_dir, remembered
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest
from t5x_lite.tasks.metrics import accuracy, exact_match, macro_f1, pearson, spearman
from t5x_lite.tasks.text_metrics import rouge

VERSION = 3  # of the cached statistics of targets; raise it when `_looked_at` changes
# Targets are labels if they are few, short and repeated; else numbers; else free text.
MOST_LABELS = 256
MOST_NUMBERED = 64  # the most labels if all are numbers; with more, the targets are numbers to predict
LONGEST_LABEL = 48  # characters
FEWEST_PER_LABEL = 4  # examples, on average


@dataclasses.dataclass(frozen=True)
class FileTask:
    """Holds a task, and notes for the user. The notes say what was guessed from the task's files."""

    task: Task
    notes: tuple[str, ...]


def task_from_files(
    files: str,
    *,
    inputs: str = "",
    targets: str = "",
    text: str = "",
    labels: Sequence[str] | None = None,
    name: str = "",
    vocabulary: Vocabulary | None = None,
    max_bad_fraction: float = 0.0,
    tables: TableHints = DETECTED,
) -> Task:
    """Returns a task of local files, and logs what was guessed about them. See `discover`."""
    made = discover(
        files,
        inputs=inputs,
        targets=targets,
        text=text,
        labels=labels,
        name=name,
        vocabulary=vocabulary,
        max_bad_fraction=max_bad_fraction,
        tables=tables,
    )
    for note in made.notes:
        logging.getLogger(__name__).info("%s", note)
    return made.task


def discover(
    files: str,
    *,
    inputs: str = "",
    targets: str = "",
    text: str = "",
    labels: Sequence[str] | None = None,
    name: str = "",
    vocabulary: Vocabulary | None = None,
    max_bad_fraction: float = 0.0,
    tables: TableHints = DETECTED,
) -> FileTask:
    """Returns a task of local files, and notes on what was guessed about them.

    files: a path, wildcards, a directory, or "train=…,validation=…"; see `local_files.find`.
    inputs, targets: templates with a record's fields, for a supervised task; by default, the fields with these names.
    text: a template with a record's fields, for a corpus; by default, the field with this name.
    labels: the classes; (): the targets are free text; None: guesses whether the targets are labels, numbers or free
        text.
    name: the task's name; by default made from the file's name.
    max_bad_fraction: the fraction of the records that may be bad, as in a Task.
    tables: the user's settings for CSV and TSV files: whether they have a header, and their delimiter.
    Raises ConfigError if a template names no field, DataError if a file cannot be read.
    """
    guess = find(files, max_bad_fraction, tables)
    templates = _templates(guess, files, {"inputs": inputs, "targets": targets, "text": text})
    source = Filled(guess.source, tuple(templates.items()))
    if isinstance(guess.source.files, Mapping) and "test" in guess.splits and source.split("test").is_unlabelled():
        labelled = {split: path for split, path in guess.source.files.items() if split != "test"}
        notes = (*guess.notes, "test is left out: it has no labels (all are empty or -1)")
        guess = Found(dataclasses.replace(guess.source, files=labelled), tuple(labelled), guess.fields, notes)
        source = dataclasses.replace(source, source=guess.source)
    for split in guess.splits:
        if not max_bad_fraction and (rows := source.split(split)):
            _ = rows[0]  # if a whole split lacks a field, fail now and not at its evaluation
    name = name or _name(files, guess.source)
    features = {field: Feature(vocabulary) for field in templates}
    if "text" in templates:
        notes = (*guess.notes, f"a corpus of the texts {templates['text']!r}")
        return FileTask(Task(name, source, features=features, max_bad_fraction=max_bad_fraction), notes)
    kind, shown = _kind_of_targets(files, source, guess.splits, labels, max_bad_fraction)
    source = dataclasses.replace(source, labels=kind.get("target", Text()).labels)
    task = Task(name, source, features=features, max_bad_fraction=max_bad_fraction, **kind)
    return FileTask(task, (*guess.notes, f"targets {templates['targets']!r}: {shown}"))


def _templates(guess: Found, files: str, given: dict[str, str]) -> dict[str, str]:
    """Returns the given templates. If none is given, returns templates that copy the fields `inputs` and `targets`, or
    `text`.

    Raises ConfigError, which lists the fields, if a template is missing, or if it names no field or an unknown one.
    """
    given = {name: template for name, template in given.items() if template}
    usual: dict[str, str] = {}
    for names in (("inputs", "targets"), ("text",)):
        if not given and not usual and set(names) <= set(guess.fields):
            usual = {name: "{" + name + "}" for name in names}
    templates = given or usual
    if set(templates) not in ({"inputs", "targets"}, {"text"}):
        are_set = f"only {', '.join(templates)} set" if templates else "no template is set"
        raise ConfigError(
            f"data.files={files!r}: {are_set}; set data.inputs and data.targets, or data.text, to templates over its "
            f"fields {', '.join(guess.fields)}: --config.data.inputs='{{{guess.fields[0]}}}'"
        )
    for name, template in templates.items():
        fields = [field for _, field in pieces(template) if field]
        missing = [f for f in fields if f not in guess.fields and root(f) not in guess.fields]
        if missing or not fields:
            near = suggest(missing[0], guess.fields) if missing else []
            if missing and "." in missing[0] and (outer := missing[0].split("."))[0] in guess.fields:
                near = ["".join([outer[0], *(f"[{inner}]" for inner in outer[1:])])]
            if missing and (bare := re.split("[:!]", missing[0])[0]) in guess.fields:  # a format, as in Python
                near = [bare]
            what = f"there is no field {missing[0]!r}" if missing else "it names no field"
            hint = f"; did you mean {{{near[0]}}}?" if near else ""
            raise ConfigError(
                f"data.{name}={template!r}: {what}{hint} (fields: {', '.join(guess.fields)}). Read as {guess.notes[0]}"
            )
    return templates


def _kind_of_targets(
    files: str, source: Filled, splits: Sequence[str], labels: Sequence[str] | None, max_bad_fraction: float
) -> tuple[dict, str]:
    """Returns the arguments of Task that depend on the targets, and a note that describes the targets to the user.
    Reads every target.

    Raises DataError if all targets are equal.
    """
    if labels:
        return _classes(labels), f"the {len(labels)} labels {', '.join(labels)}; scored by accuracy and macro F1"
    free = {"metrics": (exact_match, rouge), "baseline": "copy"}, "free text; scored by exact match and ROUGE"
    if labels is not None:
        return free
    key = repr((VERSION, [source.fingerprint(split) for split in splits], max_bad_fraction))
    path = cache_dir() / "targets" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    counts, total, kind = remembered(path, lambda: _looked_at(source, splits, max_bad_fraction))
    if kind == "text":
        return free
    if kind == "fractions" or (kind == "numbers" and len(counts) > MOST_NUMBERED):
        fields = {"target": Number(), "metrics": (pearson, spearman), "postprocess": _number}
        return fields, "numbers; scored by Pearson's and Spearman's correlation"
    if len(counts) == 1 and total > 1:
        raise DataError(
            f"{files}: all {total} targets are {next(iter(counts))!r}; there is nothing to learn. Check the template "
            "data.targets"
        )
    if len(counts) > MOST_LABELS or total < FEWEST_PER_LABEL * len(counts):
        return free
    names = sorted(counts)
    shown = ", ".join(f"{label or '(empty)'} {100 * counts[label] / total:.1f}%" for label in names[:10])
    more = f", … {len(names)} in all" if len(names) > 10 else ""
    return _classes(names), f"{len(names)} labels found, {shown}{more}; scored by accuracy and macro F1"


def _looked_at(source: Filled, splits: Sequence[str], max_bad_fraction: float) -> tuple[dict[str, int], int, str]:
    """Returns ({target: count} for at most MOST_LABELS + 1 different targets, the number of all targets, their kind).

    The kind is "numbers"; "fractions" (numbers, some with a point); "text"; or "" if the targets may be labels. Raises
    DataError if more than `max_bad_fraction` of the targets cannot be read.
    """
    counts: collections.Counter[str] = collections.Counter()
    all_numbers, some_fraction, total, bad, first = True, False, 0, 0, None
    for split in splits:
        rows = source.split(split)
        for place in range(len(rows)):
            try:
                target = rows.text("targets", place).strip()
            except DataError as error:
                bad, first = bad + 1, first or error
                if not max_bad_fraction:
                    raise
                continue
            total += 1
            if len(counts) <= MOST_LABELS:
                counts[target] += 1
            if all_numbers:
                number = _number(target)
                all_numbers, some_fraction = number is not None, some_fraction or "." in target
            if not all_numbers and (len(counts) > MOST_LABELS or len(target) > LONGEST_LABEL):
                return {}, total, "text"
    if first and bad > max_bad_fraction * (total + bad):
        raise DataError(
            f"{bad:,} of {total + bad:,} targets cannot be read, more than {max_bad_fraction=}; the first: {first}"
        )
    return dict(counts), total, "fractions" if all_numbers and some_fraction else "numbers" if all_numbers else ""


def _classes(labels: Sequence[str]) -> dict:
    return {"target": Classes(tuple(labels)), "metrics": (accuracy, macro_f1), "baseline": "majority"}


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _name(spec: str, source: Files) -> str:
    """Returns a task name made from the name of the first file, or of its directory if the file is named after a split.
    The same files get the same name again; different files get a different name."""
    path = re.sub(r"^\w+=", "", spec)
    first = Path(path.split(",")[0].rstrip("/"))
    stem = first.name.split(".")[0]
    if any(stem.lower() in names for names in SPLIT_NAMES.values()) and first.absolute().parent.name:
        stem = first.absolute().parent.name  # reviews/train.csv
    name = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")[:64] or "files"
    for candidate in itertools.chain([name, f"{name}_file"], (f"{name}_file_{n}" for n in itertools.count(2))):
        entry = registry.REGISTRY.get(candidate)
        if entry is None:
            return candidate
        if isinstance(entry, Task) and isinstance(entry.source, Filled) and entry.source.source.files == source.files:
            return candidate
    raise AssertionError  # count() has no end
