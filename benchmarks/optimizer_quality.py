"""Counts the steps that each optimizer takes to the same evaluation loss, for three architectures.

    python benchmarks/optimizer_quality.py --output=runs/optimizer_quality.jsonl

The tasks and the architectures are those of the quickstarts, smaller, so that the table takes an hour on one core:
width 64 in place of 128, batches of 8 × 64 tokens, no dropout, no weight decay (adam is then adamw), gradients clipped
at 1. A learning rate rises over 20 steps and then stays: with a decay, the loss at a step would depend on how many
steps follow. Of a schedule-free run, the average is evaluated.

The rates are an optimizer's published default, times 0.3, 1, 3 and 10. A pilot seed chooses between them; the runs that
the table shows have five other seeds, which set the first parameters and the order of the data. The evaluation loss is
that of 32 rows of each task's validation split, every 20 steps; between two evaluations, steps are interpolated.

The target of an architecture is the loss that AdamW's best rate reaches at 80% of its steps: the median over seeds.
AdamW's best rate is the one with the lowest loss there. Another optimizer's best rate takes the fewest steps to the
pilot's target; if none reaches it, it has the lowest last loss. A run ends at the target, or after as many steps as
AdamW's: "not reached".

A program is compiled once per architecture and optimizer: the rate and the seed are arguments of it. Each run is a line
of OUTPUT: {"architecture", "optimizer", "rate", "seed", "losses": [after 20 steps, after 40, …], "seconds"}. So the
same command continues after a kill. At the end, prints a Markdown table.
"""

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from t5x_lite import config, experiment, models, runtime
from t5x_lite.cluster import sharding
from t5x_lite.data.eval_batches import eval_batches
from t5x_lite.reports import metric_sums
from t5x_lite.training import optim, step, step_metrics
from t5x_lite.training.averages import of_schedule_free
from t5x_lite.training.parameter_groups import Groups
from t5x_lite.training.step import TrainState

CONFIGS = Path(__file__).parents[1] / "configs"
ARCHITECTURES = {
    "encoder": "quickstart_encoder.py",
    "decoder": "quickstart_decoder.py",
    "encoder-decoder": "quickstart.py",
}
# {optimizer: the default rate of its paper or of its authors' code}
DEFAULTS = {
    "adamw": 1e-3,
    "adafactor": 1e-2,  # of T5
    "sgd": 0.1,
    "lion": 1e-4,
    "muon": 1e-3,  # AdamW's: its updates have the size of AdamW's
    "soap": 3e-3,
    "ademamix": 1e-3,
    "schedule_free": 2.5e-3,
    "prodigy": 1.0,
    "lamb": 1e-3,
    "sophia": 6e-4,
}
HYPER_PARAMETERS = {"sgd": {"momentum": 0.9}}
FACTORS = (0.3, 1.0, 3.0, 10.0)
EVERY, WARMUP_STEPS, SHARE = 20, 20, 0.8
PILOT = 100  # the seed with which the rates are chosen
EVAL_ROWS = 32


class Architecture:
    """A model, and its batches by seed. Batches are read once per seed."""

    def __init__(self, name: str, steps: int):
        cfg = config.load(str(CONFIGS / ARCHITECTURES[name]))
        cfg.model.update({"d_model": 64, "head_dim": 16, "d_ff": 128, "dropout_rate": 0.0})
        cfg.model.attention_dropout_rate = 0.0
        cfg.data.batch_rows, cfg.data.length, cfg.data.targets_length = 8, 64, 32
        cfg.eval.batch_rows, cfg.eval.max_examples, cfg.eval.max_decode_tokens = 16, 400, 8
        self.name, self._steps, self._cfg = name, steps, cfg
        self.experiment = experiment.resolve(cfg)
        self.on_devices = runtime.start(self.experiment, jax.devices()[:1])
        self.loss_fn = runtime.make_loss(self.experiment, 1)
        module, example = self.on_devices.module, self.on_devices.example
        self.init = jax.jit(
            lambda seed: nn.meta.unbox(models.init_params(module, step.step_key(seed, 0, "init"), example))
        )
        self.held_out = stacked(self._eval_batches())

    def _eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        resolved, cfg = self.experiment, self._cfg
        for task in resolved.eval_tasks:
            found = eval_batches(
                task,
                resolved.converter,
                resolved.vocabulary,
                batch_rows=cfg.eval.batch_rows,
                split=cfg.eval.split,
                pack=cfg.data.pack,
                limit=cfg.eval.max_examples,
            )
            for _, batch in zip(range(EVAL_ROWS // cfg.eval.batch_rows), found, strict=False):
                yield batch

    @functools.cache  # noqa: B019  (it lives as long as the program)
    def batches(self, seed: int) -> list[dict[str, np.ndarray]]:
        """Returns the batches of a seed's steps, in groups of EVERY: arrays [EVERY, B, …]."""
        self._cfg.seed = seed
        data = iter(self.experiment.train_batches())
        return [stacked(next(data) for _ in range(EVERY)) for _ in range(self._steps // EVERY)]


def stacked(batches: Any) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


class Trial:
    """An architecture that one optimizer trains. Its program is compiled once, for all rates and seeds."""

    def __init__(self, architecture: Architecture, name: str):
        self._of, self._name = architecture, name
        module, example = architecture.on_devices.module, architecture.on_devices.example
        self._axes = sharding.param_axes(step.abstract_params(module, example))
        self._like = step.abstract_state(module, self._optimizer(1.0), architecture.on_devices.layout, example)
        self._begin = jax.jit(self._first_state)
        evaluate = step.make_eval_step(module, architecture.on_devices.layout, self._like.params)

        def sums_of(params: Any, batches: Any) -> Any:
            return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(functools.partial(evaluate, params), batches))

        self._evaluate = jax.jit(sums_of)
        self._advance = jax.jit(self._steps, donate_argnums=0)
        self._weights = jax.jit(of_schedule_free)

    def _first_state(self, params: Any) -> TrainState:
        copies = jax.tree.map(jnp.copy, params)  # a state is donated: no array may be in two places
        return TrainState(jnp.zeros([], jnp.int32), params, nn.meta.unbox(self._optimizer(1.0).init(copies)))

    def _schedule(self, rate: Any):
        return lambda n: rate * jnp.minimum(1.0, (n + 1) / WARMUP_STEPS)

    def _optimizer(self, rate: Any):
        options = {"groups": Groups(), "clip_norm": 1.0} | HYPER_PARAMETERS.get(self._name, {})
        return optim.make_optimizer(self._name, self._schedule(rate), self._axes, **options)

    def _steps(self, state: TrainState, rate: jax.Array, batches: Any) -> TrainState:
        train_step = step.make_train_step(
            self._of.on_devices.module,
            self._optimizer(rate),
            self._schedule(rate),
            self._of.on_devices.layout,
            self._like,
            loss_fn=self._of.loss_fn,
        )
        return jax.lax.scan(lambda state, batch: (train_step(state, batch)[0], None), state, batches)[0]

    def losses(self, rate: float, seed: int) -> Iterator[float]:
        """Yields the evaluation loss every EVERY steps."""
        state = self._begin(self._of.init(np.uint32(seed)))
        for batches in self._of.batches(seed):
            state = self._advance(state, np.float32(rate), batches)
            params = self._weights(state.params, state.opt_state) if self._name == "schedule_free" else state.params
            sums = step_metrics.fetch(self._evaluate(params, self._of.held_out))
            yield float(metric_sums.finalise(sums)["loss"])


class Results:
    """Keeps one line per run in a file."""

    def __init__(self, file: Path):
        self._file = file
        self.rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def find(self, **wanted: Any) -> list[dict]:
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]

    def add(self, row: dict) -> None:
        self.rows.append(row)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")


def steps_to(target: float, losses: list[float]) -> float:
    """Returns the number of steps to a loss, interpolated between evaluations; infinite if it is not reached.

    >>> steps_to(2.0, [4.0, 3.0, 1.0])
    50.0
    >>> steps_to(0.5, [4.0, 3.0, 1.0])
    inf
    """
    for n, loss in enumerate(losses):
        if loss <= target:
            share = (losses[n - 1] - target) / (losses[n - 1] - loss) if n else 1.0
            return EVERY * (n + share)
    return math.inf


def target_of(rows: list[dict], steps: int) -> float:
    """Returns the median loss of AdamW's runs at SHARE of the steps."""
    number = round(SHARE * steps) // EVERY
    return statistics.median(
        finite(row["losses"][number - 1]) if row["losses"][number - 1 :] else math.inf for row in rows
    )


def rates_of(name: str) -> list[float]:
    return [float(f"{DEFAULTS[name] * factor:.3g}") for factor in FACTORS]


def best_rate(results: Results, architecture: str, name: str, steps: int) -> float:
    """Returns the best of an optimizer's rates, by the runs with the pilot seed."""
    of_pilot = functools.partial(results.find, architecture=architecture, seed=PILOT)
    if name == "adamw":
        return min(of_pilot(optimizer=name), key=lambda row: target_of([row], steps))["rate"]
    target = target_of(of_pilot(optimizer="adamw", rate=best_rate(results, architecture, "adamw", steps)), steps)
    return min(of_pilot(optimizer=name), key=lambda row: (steps_to(target, row["losses"]), finite(row["losses"][-1])))[
        "rate"
    ]


def finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def run(trial: Trial, results: Results, target: float, **which: Any) -> None:
    """Trains to the target, unless that was done, and adds the run to the results. which: the keys of its row."""
    if results.find(**which):
        return
    begin_s, losses = time.monotonic(), []
    for loss in trial.losses(which["rate"], which["seed"]):
        losses.append(round(loss, 5))
        if loss <= target or not math.isfinite(loss):
            break
    results.add(which | {"losses": losses, "seconds": round(time.monotonic() - begin_s, 1)})
    last = f"loss {losses[-1]:.4f} after {EVERY * len(losses)} steps"
    print(*which.values(), last, f"{results.rows[-1]['seconds']} s", flush=True)


def measure(architecture: Architecture, names: list[str], results: Results, seeds: int, steps: int) -> None:
    """Runs all that an architecture lacks: for each optimizer the pilot's runs, then those of its best rate."""
    target_of_pilot = target = -math.inf
    for name in names:
        which, trial = {"architecture": architecture.name, "optimizer": name}, Trial(architecture, name)
        for rate in rates_of(name):
            run(trial, results, target_of_pilot, **which, rate=rate, seed=PILOT)
        rate = best_rate(results, architecture.name, name, steps)
        for seed in range(seeds):
            run(trial, results, target, **which, rate=rate, seed=seed)
        if name == "adamw":
            of_best = results.find(**which, rate=rate)
            target_of_pilot = target_of([row for row in of_best if row["seed"] == PILOT], steps)
            target = target_of([row for row in of_best if row["seed"] != PILOT], steps)


def table(results: Results, steps: int) -> list[str]:
    """Returns the lines of a Markdown table: the median of an optimizer's steps (lowest to highest), and its rate."""
    names = [name for name in ARCHITECTURES if results.find(architecture=name)]
    targets, lines = {}, [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for optimizer in DEFAULTS:
        cells = []
        for name in names:
            if not results.find(architecture=name, optimizer=optimizer):
                cells.append("–")
                continue
            rate = best_rate(results, name, optimizer, steps)
            rows = results.find(architecture=name, optimizer=optimizer, rate=rate)
            rows = [row for row in rows if row["seed"] != PILOT]
            targets.setdefault(name, target_of(rows, steps))  # AdamW is first
            counts = [steps_to(targets[name], row["losses"]) for row in rows]
            edge = "†" if rate in (rates_of(optimizer)[0], rates_of(optimizer)[-1]) else ""
            cells.append(f"{spread(counts)}; {rate:g}{edge}")
        lines.append(f"| {optimizer} | {' | '.join(cells)} |")
    losses = " | ".join(f"loss {targets[name]:.3f}" for name in names)
    return [*lines, f"| target | {losses} |", "", "† the lowest or highest of the rates tried"]


def spread(counts: list[float]) -> str:
    """Returns a text such as "120 (98 to 131)"; "not reached" if fewer than half of the seeds reach the target.

    >>> spread([98.2, 120.0, 131.4]), spread([98.0, 120.0, math.inf]), spread([98.0, math.inf, math.inf])
    ('120 (98 to 131)', '120 (98 to –)', 'not reached (by 2 of 3)')
    """
    middle = statistics.median_high(counts)
    if math.isinf(middle):
        return f"not reached (by {sum(map(math.isinf, counts))} of {len(counts)})"
    highest = "–" if math.isinf(max(counts)) else f"{max(counts):.0f}"
    return f"{middle:.0f} ({min(counts):.0f} to {highest})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl", help="one line per run")
    parser.add_argument("--steps", type=int, default=200, help="of AdamW, a multiple of 100 (default 200)")
    parser.add_argument("--seeds", type=int, default=5, help="that the table shows (default 5)")
    parser.add_argument("--optimizers", default=",".join(DEFAULTS), help="adamw and others; default: all")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="default: all")
    arguments = parser.parse_args()
    names = [name for name in DEFAULTS if name in arguments.optimizers.split(",")]
    if names[:1] != ["adamw"] or arguments.steps % (5 * EVERY):
        parser.error(f"--optimizers must name adamw, which sets the target; --steps be a multiple of {5 * EVERY}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.output)
    for name in arguments.architectures.split(","):
        measure(Architecture(name, arguments.steps), names, results, arguments.seeds, arguments.steps)
    print("\n".join(table(results, arguments.steps)))


if __name__ == "__main__":
    main()
