"""Makes a task of any local file, in one line.

    registry.add(task_from_files("reviews.csv", inputs="{title}: {body}", targets="{label}"))
    registry.add(task_from_files("articles/*.txt.gz"))

or without code, on the command line: --config.data.files=reviews.csv --config.data.inputs="{title}: {body}"
--config.data.targets="{label}".
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_lite.data import registry
from t5x_lite.data.binary_formats import ArrowRows
from t5x_lite.data.divide import SPLIT_NAMES
from t5x_lite.data.filled import Filled
from t5x_lite.data.guessed_format import DETECTED, Reading
from t5x_lite.data.local_files import Found, find
from t5x_lite.data.preprocess import pieces, root, value_of
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Files
from t5x_lite.data.targets import Classes, Number, Target, Text, number_in
from t5x_lite.data.user_cache import cache_dir, remembered
from t5x_lite.data.vocabularies import Vocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import lookup, suggest
from t5x_lite.tasks.metrics import Metric, accuracy, exact_match, macro_f1, matthews, pearson, spearman
from t5x_lite.tasks.text_metrics import bleu, chrf, rouge

VERSION = 3  # of the cached statistics of targets; raise it when `_looked_at` changes
# Targets are labels if they are few, short and repeated; else numbers; else free text.
MOST_LABELS = 256
MOST_NUMBERED = 64  # the most labels if all are numbers; with more, the targets are numbers to predict
LONGEST_LABEL = 48  # characters
FEWEST_PER_LABEL = 4  # examples, on average
# {kind of targets: {name: metric}}, the choices for data.metrics.
METRICS: dict[type[Target], dict[str, Metric]] = {
    Classes: {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews},
    Number: {"pearson": pearson, "spearman": spearman},
    Text: {"exact_match": exact_match, "rouge": rouge, "bleu": bleu, "chrf": chrf},
}


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
    reading: Reading = DETECTED,
    metrics: Sequence[str] = (),
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
        reading=reading,
        metrics=metrics,
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
    reading: Reading = DETECTED,
    metrics: Sequence[str] = (),
) -> FileTask:
    """Returns a task of local files, and notes on what was guessed about them.

    files: a path, wildcards, a directory, or "train=…,validation=…"; see `local_files.find`.
    inputs, targets: templates with a record's fields, for a supervised task; by default, the fields with these names.
    text: a template with a record's fields, for a corpus; by default, the field with this name.
    labels: the classes; (): the targets are free text; None: the names of the targets' ClassLabel feature, or guesses
        whether the targets are labels, numbers or free text. If they are numbers of a ClassLabel, its names are not
        used.
    name: the task's name; by default made from the file's name.
    max_bad_fraction: the fraction of the records that may be bad, as in a Task.
    reading: the user's settings for reading the files: what a record is, and what divides them into splits.
    metrics: names in METRICS; (): those usual for the kind of targets.
    Raises ConfigError if a template names no field or a metric does not fit the targets, DataError if a file cannot be
    read.
    """
    given = {"inputs": inputs, "targets": targets, "text": text}
    used = [field for name in given for _, field in pieces(given[name] or f"{{{name}}}") if field]
    reading = dataclasses.replace(reading, names=tuple(dict.fromkeys(map(root, used))))
    guess = find(files, max_bad_fraction, reading)
    templates = _templates(guess, files, given)
    names = _names(guess, templates.get("targets", ""))
    if labels and set(labels) <= set(map(str, range(len(names)))) - set(names):  # as in runs of earlier versions
        guess = find(files, max_bad_fraction, dataclasses.replace(reading, names=()))
    source = Filled(guess.source, tuple(templates.items()))
    if "test" in guess.splits and source.split("test").is_unlabelled():
        guess = _without_test(guess)
        source = dataclasses.replace(source, source=guess.source)
    for split in guess.splits:
        if not max_bad_fraction and (rows := source.split(split)):
            _ = rows[0]  # if a whole split lacks a field, fail now and not at its evaluation
    name = name or _name(files, guess.source)
    features = {field: Feature(vocabulary) for field in templates}
    notes = (*guess.notes, *_joined(guess, templates))
    if "text" in templates:
        if metrics:
            raise ConfigError(f"data.metrics={', '.join(metrics)}: a corpus is scored by its loss; unset data.metrics")
        notes = (*notes, f"a corpus of the texts {templates['text']!r}")
        return FileTask(Task(name, source, features=features, max_bad_fraction=max_bad_fraction), notes)
    if labels is None and names:
        labels = names
    kind, shown = _kind_of_targets(files, source, guess.splits, labels, max_bad_fraction)
    target, scored = kind.get("target", Text()), tuple(metrics) or kind["metrics"]
    what = f"metric in data.metrics for {type(target).__name__.lower()} targets"
    kind["metrics"] = tuple(lookup(what, metric, METRICS[type(target)]) for metric in scored)
    source = dataclasses.replace(source, labels=target.labels)
    task = Task(name, source, features=features, max_bad_fraction=max_bad_fraction, **kind)
    return FileTask(task, (*notes, f"targets {templates['targets']!r}: {shown}; scored by {', '.join(scored)}"))


def _without_test(guess: Found) -> Found:
    """Returns what was found without the split test, which has no labels."""
    splits = tuple(split for split in guess.splits if split != "test")
    source, files = guess.source, guess.source.files
    if isinstance(files, Mapping):
        source = dataclasses.replace(source, files={split: files[split] for split in files if split != "test"})
    notes = (*guess.notes, "test is left out: it has no labels (all are empty or -1)")
    return Found(source, splits, guess.fields, notes)


def _joined(guess: Found, templates: Mapping[str, str]) -> list[str]:
    """Returns a note for each list in the first record that a template joins to one text."""
    record = next((rows[0] for rows in map(guess.source.split, guess.splits) if len(rows)), {})
    fields = dict.fromkeys(field for template in templates.values() for _, field in pieces(template) if field)
    lists = []
    for field in fields:
        with contextlib.suppress(ValueError):  # this record lacks the field
            lists += [field] * isinstance(value_of(record, field), list)
    return [f"{{{field}}} is a list, joined by spaces; {{{field}[0]}} is its first item" for field in lists]


def _names(guess: Found, template: str) -> tuple[str, ...]:
    """Returns the names of the ClassLabel feature that the template copies; () if it does anything else."""
    named = dict(guess.source.form.labels) if isinstance(guess.source.form, ArrowRows) else {}
    copied = {f"{{{path[0]}{''.join(f'[{key}]' for key in path[1:])}}}": path for path in named}
    return named[copied[template]] if template in copied else ()


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
    """Returns the arguments of Task that depend on the targets (metrics by name), and a note that describes the targets
    to the user. Reads every target, unless `labels` says what they are.

    Raises DataError if there is no target, or if all targets are equal.
    """
    if labels:
        return _classes(labels), f"the {len(labels)} labels {', '.join(labels)}"
    free = {"metrics": ("exact_match", "rouge"), "baseline": "copy"}, "free text"
    if labels is not None:
        return free
    key = repr((VERSION, [source.fingerprint(split) for split in splits], max_bad_fraction))
    path = cache_dir() / "targets" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    counts, total, kind = remembered(path, lambda: _looked_at(source, splits, max_bad_fraction))
    if not total:
        raise DataError(f"{files}: no record has a target; check the template data.targets, or add labelled records")
    if kind == "text":
        return free
    if kind == "fractions" or (kind == "numbers" and len(counts) > MOST_NUMBERED):
        return {"target": Number(), "metrics": ("pearson", "spearman"), "postprocess": number_in}, "numbers"
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
    return _classes(names), f"{len(names)} labels found, {shown}{more}"


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
                number = number_in(target)
                all_numbers, some_fraction = number is not None, some_fraction or "." in target
            if not all_numbers and (len(counts) > MOST_LABELS or len(target) > LONGEST_LABEL):
                return {}, total, "text"
    if first and bad > max_bad_fraction * (total + bad):
        raise DataError(
            f"{bad:,} of {total + bad:,} targets cannot be read, more than {max_bad_fraction=}; the first: {first}"
        )
    return dict(counts), total, "fractions" if all_numbers and some_fraction else "numbers" if all_numbers else ""


def _classes(labels: Sequence[str]) -> dict:
    return {"target": Classes(tuple(labels)), "metrics": ("accuracy", "macro_f1"), "baseline": "majority"}


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
