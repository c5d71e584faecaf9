"""Implements the verbs `tasks` (what can be trained on) and `inspect` (what the model sees). Does not import jax."""

import collections
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5x_lite import console
from t5x_lite.batch import Batch
from t5x_lite.data import order, pipeline, registry
from t5x_lite.data.eval_batches import eval_batches
from t5x_lite.data.reader import Reader
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Choices, Classes, Corpus, Number, Span, Tags, Target
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.experiment import Experiment

SEGMENT_STYLES = ("cyan", "green", "magenta", "yellow", "blue")
SAMPLED_ROWS, SAMPLED_S = 2048, 1.5  # the plan is estimated from this many rows; reading stops after this time
SAMPLED_LABELS = 2000  # count the labels of at most this many examples, drawn from all of a split
SHOWN_LABELS = 40
PERCENTILES = (50, 90, 99, 100)
COUNTED = {"truncated": "truncated", "skipped_long": "skipped as too long"}


def print_tasks() -> None:
    """Prints every registered task and mixture, one per line."""
    from t5x_lite.tasks import builtin

    builtin.register()
    table = Table()
    for column in ("name", "kind", "features", "metrics or rates"):
        table.add_column(column, overflow="fold")
    for name, entry in sorted(registry.REGISTRY.items()):
        if isinstance(entry, registry.Mixture):
            rates = ", ".join(f"{k} {'by size' if callable(v) else v}" for k, v in entry.rates.items())
            table.add_row(name, "mixture", "", rates)
        else:
            kind = "corpus" if entry.is_corpus else entry.head.replace("_", " ") or "text to text"
            metrics = ", ".join(_name(metric) for metric in entry.metrics)
            table.add_row(name, kind, ", ".join(entry.features), metrics)
    console.plain().print(table)


def _name(metric: Any) -> str:
    """Returns the name of a metric. A metric is a function, a functools.partial or an object."""
    function = getattr(metric, "func", metric)
    return getattr(function, "__name__", type(function).__name__).strip("_").lower()


def run(experiment: Experiment, rows: int, split: str, as_json: bool) -> None:
    """Prints the result of `describe` as text, or as JSON."""
    description = describe(experiment, rows, split)
    if as_json:
        print(json.dumps(description, ensure_ascii=False, indent=1))
    else:
        _print(description, console.plain())


def describe(experiment: Experiment, rows: int, split: str) -> dict[str, Any]:
    """Returns JSON-able data: the arrays of a batch, the plan for the run, and the first `rows` rows as text.

    arrays: {name: "dtype[shape]"} of a batch.
    padding: share of positions without a token. examples_per_row: the mean. Both are estimated from a sample.
    truncated (or skipped_long): share of the examples that do not fit in a row.
    tasks: one dict per task (see `_tasks`). It has the key "run" only if `split` is "train".
    rows: one list of examples per row. An example is a dict with its inputs and targets as text.
    """
    batches = list(_sample(experiment, split, rows))
    first, counts = batches[0][0], batches[-1][1]
    sides = [name for name in first if name.endswith("segment_ids")]
    stacked = {name: np.concatenate([batch[name] for batch, _ in batches]) for name in sides}
    filled = stacked[sides[0]].any(axis=1) | (split == "train")  # the last batch of an evaluation has empty rows
    segments = [array[filled] for array in stacked.values()]
    per_row = float(segments[0].max(axis=1).mean())
    shown = itertools.islice(((batch, row) for batch, _ in batches for row in range(len(batch[sides[0]]))), rows)
    return {
        "mixture": experiment.cfg.data.mixture,
        "split": split,
        "steps": experiment.cfg.train.total_steps,
        "arrays": {
            name: f"{array.dtype}{[experiment.cfg.data.batch_rows, *array.shape[1:]]}"
            for name, array in first.items()
            if not name.endswith("task_ids")
        },
        "padding": 1 - sum(int((s > 0).sum()) for s in segments) / sum(s.size for s in segments),
        "examples_per_row": per_row,
        **{name: counts[name] for name in COUNTED if name in counts},
        "tasks": _tasks([batch for batch, _ in batches], counts, per_row, experiment, split),
        "rows": [list(_examples(batch, row, experiment)) for batch, row in shown],
    }


def _sample(experiment: Experiment, split: str, rows: int) -> Iterator[tuple[Batch, dict[str, float]]]:
    """Yields (batch with task ids, the stream's running counters) until the sample is large enough.

    For training, reads only the rows that one of many hosts would read. It assumes as many hosts as possible, but each
    must have at least `rows` rows. With fewer hosts, this process would have to fill the first windows of more streams,
    which takes longer.
    """
    cfg, end = experiment.cfg, time.monotonic() + SAMPLED_S
    common = {"batch_rows": cfg.data.batch_rows, "pack": cfg.data.pack}
    how = (experiment.converter, experiment.vocabulary)
    if split != "train":
        tasks = sorted({task.name: task for task in experiment.tasks}.items())
        for number, (_, task) in enumerate(tasks, 1):
            for batch in itertools.islice(eval_batches(task, *how, split=split, **common), 8):
                side = "decoder" if "decoder_segment_ids" in batch else "encoder"
                yield batch | {f"{side}_task_ids": number * (batch[f"{side}_segment_ids"] > 0).astype(np.int32)}, {}
        return
    hosts = 1 if cfg.data.documents_per_step else pipeline.stream_count(cfg.data.batch_rows)
    while hosts > 1 and cfg.data.batch_rows // hosts < rows:
        hosts //= 2
    stream = experiment.train_batches(shard_count=hosts, task_ids=True)
    of_batch = cfg.data.batch_rows // hosts
    for number in range(1, -(-max(SAMPLED_ROWS, rows) // of_batch) + 1):
        yield next(stream), stream.counters() | stream.epochs_per_example()
        if number * of_batch >= rows and time.monotonic() > end:
            return


def _tasks(batches: list[Batch], counts: dict, per_row: float, experiment: Experiment, split: str) -> list[dict]:
    """Returns one dict per task: statistics of its examples, and how many of them the run will train on.

    rate: the task's share of the examples.
    length: {side (encoder, decoder): percentiles of the tokens per example}.
    padding: share of padding. A row's padding is divided among its examples in proportion to their tokens. The padding
        of empty rows (data.documents_per_step) is divided among the tasks by their rates.
    run: the examples, the epochs and the tokens (encoder plus decoder) of this task in all steps of the run.
    """
    cfg, mixture = experiment.cfg, sorted(experiment.mixture, key=lambda rated: rated.task.name)
    lengths: dict[str, dict[str, list]] = collections.defaultdict(lambda: collections.defaultdict(list))
    tokens: dict[str, int] = collections.defaultdict(int)
    padding: dict[str, float] = collections.defaultdict(float)
    for batch in batches:
        task_of, sides = _task_table(batch), [s for s in ("encoder", "decoder") if f"{s}_segment_ids" in batch]
        length_of = {side: _segment_lengths(batch[f"{side}_segment_ids"], task_of.shape[1]) for side in sides}
        both = np.sum(list(length_of.values()), axis=0)
        room = sum(batch[f"{side}_segment_ids"].shape[1] for side in sides)
        part = (room - both.sum(axis=1, keepdims=True)) * both / np.maximum(both.sum(axis=1, keepdims=True), 1)
        empty = room * int((both.sum(axis=1) == 0).sum())
        for number, (task, rate) in enumerate(mixture, 1):
            is_of = task_of == number
            tokens[task.name] += int(both[is_of].sum())
            padding[task.name] += float(part[is_of].sum()) + rate * empty
            for side in sides:
                lengths[task.name][side] += length_of[side][is_of].tolist()
    total_examples = cfg.train.total_steps * cfg.data.batch_rows * per_row
    out = []
    for task, rate in mixture:
        name = task.name
        drawn = len(next(iter(lengths[name].values()), []))
        entry: dict[str, Any] = {"task": name, "rate": rate, "source_examples": len(task.source.split(split))}
        if split == "train":
            examples = rate * total_examples
            entry["run"] = {
                "examples": round(examples),
                "epochs": examples * counts[f"epochs_per_example/{name}"] if drawn else None,
                "tokens": round(examples * tokens[name] / drawn) if drawn else None,
            }
        entry["padding"] = padding[name] / (padding[name] + tokens[name]) if drawn else None
        entry["length"] = {
            side: {f"p{p}" if p < 100 else "max": int(np.percentile(values, p)) for p in PERCENTILES}
            for side, values in lengths[name].items()
            if values
        }
        if task.labels:
            entry["labels"] = label_counts(task, split)
        out.append(entry)
    return out


def label_counts(task: Task, split: str) -> dict[str, int]:
    """Returns {label: number of its examples in a split}, the most frequent label first.

    Of a long split, counts only SAMPLED_LABELS random examples: the first ones may all have the same label, because
    files are often sorted by it.
    """
    reader = Reader(task, split)
    places = order.shuffled(np.arange(min(len(reader), SAMPLED_LABELS)), len(reader), order.key(task.name, "labels"))
    examples = (reader.read(n, lambda n=n: order.generator(0, task.name, split, n)) for n in places.tolist())
    targets = (str(example["targets"]).strip() for example in examples if example is not None)
    if task.target.several:
        targets = itertools.chain.from_iterable(map(registry.label_names, targets))
    counts = collections.Counter(targets)
    return dict(counts.most_common()) | {label: 0 for label in task.labels if label not in counts}


def _segment_lengths(segments: np.ndarray, count: int) -> np.ndarray:
    """Returns int [rows, count]: the number of tokens in each segment; 0 for the padding. segments: int [rows, L]."""
    out = np.stack([(segments == number).sum(axis=1) for number in range(count)], axis=1)
    out[:, 0] = 0
    return out


def _task_table(batch: Batch) -> np.ndarray:
    """Returns int [rows, segments + 1]: the task number of each segment; 0 where there is no segment."""
    side = "decoder" if "decoder_task_ids" in batch else "encoder"
    segments, task_ids = batch[f"{side}_segment_ids"], batch[f"{side}_task_ids"]
    out = np.zeros((len(segments), int(segments.max()) + 1), np.int32)
    out[np.arange(len(segments))[:, None], segments] = task_ids
    return out


def _examples(batch: Batch, row: int, experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Yields each example of a row: its task, the text of each side, and the targets whose weight is above 0."""
    vocabulary, arrays = experiment.vocabulary, {name: array[row] for name, array in batch.items()}
    tasks, task_of = sorted(experiment.tasks, key=lambda task: task.name), _task_table(batch)[row]
    for number in range(1, int(np.flatnonzero(task_of).max(initial=0)) + 1):
        task = tasks[task_of[number] - 1]
        out: dict[str, Any] = {"task": task.name}
        for side in ("encoder", "decoder"):
            if f"{side}_input_tokens" in arrays:
                where = arrays[f"{side}_segment_ids"] == number
                out[side] = vocabulary.show(arrays[f"{side}_input_tokens"][where])
                if side == "decoder":
                    where &= arrays["decoder_loss_weights"] > 0
                    out["targets"] = vocabulary.show(arrays["decoder_target_tokens"][where])
        if "decoder_input_tokens" not in arrays and type(task.target) in SHOWN:
            out |= SHOWN[type(task.target)](arrays, number, task, vocabulary)
        yield out


def _masked(arrays: Batch, number: int, task: Task, vocabulary: Vocabulary) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "mlm_targets" in arrays:
        where = (arrays["mlm_weights"] > 0) & (arrays["encoder_segment_ids"][arrays["mlm_positions"]] == number)
        out["mlm targets"] = " | ".join(vocabulary.show([i]) for i in arrays["mlm_targets"][where].tolist())
    if "nsp_targets" in arrays and arrays["nsp_weights"][number - 1] > 0:
        out["nsp target"] = arrays["nsp_targets"][number - 1].item()
    return out


def _classes(arrays: Batch, number: int, task: Task, vocabulary: Vocabulary) -> dict[str, Any]:
    if task.target.several:
        has = arrays["label_targets"][(number - 1) * len(task.labels) : number * len(task.labels)] > 0
        return {"class targets": ", ".join(label for label, given in zip(task.labels, has, strict=True) if given)}
    return {"class target": task.labels[arrays["class_targets"][number - 1]]}


def _score(arrays: Batch, number: int, task: Task, vocabulary: Vocabulary) -> dict[str, Any]:
    return {"regression target": float(f"{arrays['regression_targets'][number - 1]:.6g}")}  # rounded: a float32


def _tags(arrays: Batch, number: int, task: Task, vocabulary: Vocabulary) -> dict[str, Any]:
    where = (arrays["token_weights"] > 0) & (arrays["encoder_segment_ids"] == number)
    return {"tags": " ".join(task.classes[i] for i in arrays["token_targets"][where])}


def _span(arrays: Batch, number: int, task: Task, vocabulary: Vocabulary) -> dict[str, Any]:
    span = slice(arrays["span_starts"][number - 1], arrays["span_ends"][number - 1] + 1)
    return {"answer": vocabulary.show(arrays["encoder_input_tokens"][span])}


def _choice(arrays: Batch, number: int, task: Task, vocabulary: Vocabulary) -> dict[str, Any]:
    return {"choice": "right" if arrays["choice_weights"][number - 1] > 0 else "wrong"}


# For encoders: {type of target: (arrays of a row, segment, task, vocabulary) -> the segment's targets as text}.
SHOWN: dict[type[Target], Callable[..., dict[str, Any]]] = {
    Corpus: _masked,
    Classes: _classes,
    Number: _score,
    Tags: _tags,
    Span: _span,
    Choices: _choice,
}


def _print(description: dict[str, Any], terminal: Console) -> None:
    for name, shape in description["arrays"].items():
        terminal.print(f"{name}  {shape}")
    note = f"padding {100 * description['padding']:.1f}%, {description['examples_per_row']:.1f} examples per row"
    for name, words in COUNTED.items():
        if name in description:
            note += f", {_share(description[name])} {words}"
    terminal.print(note)
    terminal.print(_plan_table(description))
    terminal.print(_length_table(description))
    for task in description["tasks"]:
        if "labels" in task:
            counts = [f"{label or '(empty)'} {count:,}" for label, count in task["labels"].items()]
            more = [f"… {len(counts)} in all"] * (len(counts) > SHOWN_LABELS)
            shown = ", ".join(counts[:SHOWN_LABELS] + more)
            label = f"labels of {task['task']}"
            if task["source_examples"] > SAMPLED_LABELS:
                label += f" in {SAMPLED_LABELS:,} of its examples"
            terminal.print(f"{label}: {shown}")
    for number, row in enumerate(description["rows"]):
        terminal.rule(f"row {number}", align="left")
        for segment, example in enumerate(row, 1):
            style = SEGMENT_STYLES[(segment - 1) % len(SEGMENT_STYLES)]
            for name, text in example.items():
                if name != "task":
                    shown = f"underline {style}" if "target" in name else style
                    head = f"{example['task']} {segment}  {name}  " if name in ("encoder", "decoder") else f"  {name}  "
                    terminal.print(Text(console.safe(head), style="bold").append(console.safe(text), style=shown))


def _plan_table(description: dict[str, Any]) -> Table:
    train = description["split"] == "train"
    title = f"data of {description['steps']:,} steps" if train else f"the {description['split']} split"
    table = Table(title=title, title_justify="left")
    run = ("examples", "epochs", "tokens") if train else ()
    for column in ("task", "rate", "in source", *run, "padding"):
        table.add_column(column, justify="left" if column == "task" else "right", overflow="fold")
    for task in description["tasks"]:
        cells = [task["task"], f"{task['rate']:.4f}", f"{task['source_examples']:,}"]
        if train:
            cells += [_shown(task["run"][name], style) for name, style in (("examples", ","), ("epochs", ".2f"))]
            cells.append(_shown(task["run"]["tokens"], ","))
        table.add_row(*cells, _shown(task["padding"], ".1%"))
    return table


def _length_table(description: dict[str, Any]) -> Table:
    table = Table(title="tokens per example, after truncation", title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("read by")
    for percent in PERCENTILES:
        table.add_column(f"{percent}% ≤" if percent < 100 else "longest", justify="right")
    for task in description["tasks"]:
        for side, percentiles in task["length"].items():
            table.add_row(task["task"], side, *map(str, percentiles.values()))
    return table


def _share(share: float) -> str:
    """Returns a share as text. Only a share of exactly 0 is shown as "none".

    >>> _share(0), _share(0.0002), _share(0.0137)
    ('none', 'under 0.1%', '1.4%')
    """
    return "none" if not share else "under 0.1%" if share < 0.0005 else f"{share:.1%}"


def _shown(value: float | None, style: str) -> str:
    return "–" if value is None else f"{value:{style}}"
