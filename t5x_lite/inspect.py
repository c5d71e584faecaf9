"""What there is to train on, and what the model will see of it: the verbs `tasks` and `inspect`. No jax."""

import itertools

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5x_lite.data import pipeline, registry
from t5x_lite.experiment import Experiment

SEGMENT_STYLES = ("cyan", "green", "magenta", "yellow", "blue")


def print_tasks() -> None:
    """Every registered task and mixture, a line each."""
    import t5x_lite.tasks  # noqa: F401  (registers the built-in tasks)

    table = Table()
    for column in ("name", "kind", "features", "metrics or rates"):
        table.add_column(column)
    for name, entry in sorted(registry.REGISTRY.items()):
        if isinstance(entry, registry.Mixture):
            rates = ", ".join(f"{k} {'by size' if callable(v) else v}" for k, v in entry.rates.items())
            table.add_row(name, "mixture", "", rates)
        else:
            kind = "corpus" if entry.is_corpus else "classification" if entry.labels else "text to text"
            metrics = ", ".join(getattr(m, "__name__", str(m)) for m in entry.metrics)
            table.add_row(name, kind, ", ".join(entry.features), metrics)
    Console().print(table)


def print_examples(experiment: Experiment, rows: int, split: str) -> None:
    """`rows` rows as the model gets them: decoded, segments coloured, targets that weigh underlined."""
    cfg, console = experiment.cfg, Console()
    if split == "train":
        stream = pipeline.train_batches(
            cfg.data.mixture,
            experiment.converter,
            experiment.vocabulary,
            batch_rows=cfg.data.batch_rows,
            seed=cfg.seed,
            pack=cfg.data.pack,
            prefetch_batches=0,
            cache_dir=cfg.data.cache_dir,
        )
    else:
        stream = itertools.chain.from_iterable(
            pipeline.eval_batches(
                task,
                experiment.converter,
                experiment.vocabulary,
                batch_rows=cfg.data.batch_rows,
                split=split,
                pack=cfg.data.pack,
            )
            for task in experiment.tasks
        )
    shown = 0
    for batch in stream:
        if shown == 0:
            _print_shapes(batch, console)
        for row in range(min(len(next(iter(batch.values()))), rows - shown)):
            console.rule(f"row {shown}", align="left")
            for side in ("encoder", "decoder"):
                if f"{side}_input_tokens" in batch:
                    _print_side({k: v[row] for k, v in batch.items()}, side, experiment, console)
            shown += 1
        if shown >= rows:
            break


def _print_shapes(batch, console: Console) -> None:
    for name, array in batch.items():
        note = ""
        if name.endswith("segment_ids"):
            note = f"  padding {100 * np.mean(array == 0):.1f}%, {array.max(axis=1).mean():.1f} examples per row"
        console.print(f"{name}  {array.dtype}{list(array.shape)}{note}", highlight=False)


def _print_side(row, side: str, experiment: Experiment, console: Console) -> None:
    vocabulary = experiment.vocabulary
    segments = row[f"{side}_segment_ids"]
    for segment in range(1, int(segments.max()) + 1):
        where = segments == segment
        style = SEGMENT_STYLES[(segment - 1) % len(SEGMENT_STYLES)]
        text = Text(f"{side} {segment}  ", style="bold").append(
            vocabulary.show(row[f"{side}_input_tokens"][where]), style=style
        )
        console.print(text)
        if side == "decoder":
            targets = row["decoder_target_tokens"][where]
            weighs = row["decoder_loss_weights"][where] > 0
            console.print(
                Text("  targets  ", style="bold").append(vocabulary.show(targets[weighs]), style=f"underline {style}")
            )
    for head in ("mlm", "nsp", "class", "regression"):
        if side == "encoder" and f"{head}_targets" in row:
            weighs = row[f"{head}_weights"] > 0
            values = row[f"{head}_targets"][weighs]
            shown = vocabulary.show(values) if head == "mlm" else ", ".join(map(str, values))
            console.print(Text(f"  {head} targets  ", style="bold").append(shown, style="underline"))
