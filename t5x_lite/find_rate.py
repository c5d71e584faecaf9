"""Implements the verb `find-rate`: trains a few steps at rising learning rates, and suggests one.

Source: Smith 2017, Cyclical learning rates, §3.3. The loss is smoothed, and the search ends once it is far above its
minimum. Nothing is saved.
"""

import copy
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
from rich.table import Table

from t5x_lite import atomic, console, initial_params, runtime
from t5x_lite.cluster import sharding
from t5x_lite.errors import ConfigError
from t5x_lite.experiment import Experiment
from t5x_lite.training import step_metrics

SMOOTHING = 0.9  # decay of the moving average of losses
ENDS_AT = 3.0  # the search ends at this many times the drop of the loss above its minimum
SHOWN = 20  # rows of the table


def run(experiment: Experiment, steps: int, lowest: float, highest: float, output: Path | None) -> None:
    """Prints the smoothed loss at each learning rate, and the rate at which it falls fastest.

    steps: most steps to train.  lowest, highest: the learning rates to begin and end with.
    output: a PNG file for the curve; None: none.
    Raises ConfigError if the range is empty, or if the loss never falls.
    """
    if not 0 < lowest < highest or steps < 10:
        raise ConfigError(
            f"--lowest={lowest}, --highest={highest}, --steps={steps}: lowest must be above 0 and below highest, and "
            "steps 10 or more"
        )
    rates = [lowest * (highest / lowest) ** (n / (steps - 1)) for n in range(steps)]
    losses = smoothed(train(experiment, rates))
    rates = rates[: len(losses)]
    table = Table(title="smoothed loss by learning rate", title_justify="left")
    for column in ("learning rate", "loss"):
        table.add_column(column, justify="right")
    for n in sorted({round(i * (len(losses) - 1) / (SHOWN - 1)) for i in range(SHOWN)}):
        table.add_row(f"{rates[n]:.3g}", f"{losses[n]:.4f}")
    terminal = console.plain()
    terminal.print(table)
    if output:
        atomic.write_output(output, _figure(rates, losses))
        terminal.print(f"see {output}")
    terminal.print(
        f"the loss falls fastest at {steepest(rates, losses):.2g}; try --config.optimizer.learning_rate of about this, "
        "and a third and three times as much",
        soft_wrap=True,
    )


def train(experiment: Experiment, rates: list[float]) -> list[float]:
    """Returns the loss of each step, which updates with its own learning rate. Ends early if the loss explodes."""
    cfg = copy.deepcopy(experiment.cfg)
    peak, lowest, steps = rates[-1], rates[0], len(rates)

    def rising(n):
        return (lowest / peak) ** (1 - n / (steps - 1))

    cfg.schedule.name, cfg.optimizer.learning_rate, cfg.train.total_steps = rising, peak, steps
    experiment = dataclasses.replace(experiment, cfg=cfg)
    on_devices = runtime.start(experiment)
    training = runtime.make_training(experiment, on_devices)
    state = initial_params.state(experiment, training)[0] if cfg.init.checkpoint else training.new_state()
    taught = dict
    if cfg.distill.teacher:
        from t5x_lite import teacher

        taught = teacher.load(experiment, on_devices)
    losses: list[float] = []
    data = experiment.train_batches(**sharding.input_shard(on_devices.layout, cfg.data.batch_rows))
    for batch in itertools.islice(data, steps):
        state, metrics = training.step(state, taught(sharding.put_batch(batch, on_devices.layout)))
        loss = step_metrics.fetch(metrics)["loss"]
        losses.append(loss)
        means = smoothed(losses)
        if not math.isfinite(loss) or means[-1] > min(means) + ENDS_AT * (means[0] - min(means)) + 0.1 * abs(means[0]):
            break
    return [loss for loss in losses if math.isfinite(loss)]


def smoothed(losses: list[float]) -> list[float]:
    """Returns the moving averages of losses, without bias towards the first one.

    >>> smoothed([2.0, 2.0, 2.0])
    [2.0, 2.0, 2.0]
    """
    out, mean = [], 0.0
    for n, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        out.append(round(mean / (1 - SMOOTHING**n), 12))
    return out


def steepest(rates: list[float], losses: list[float]) -> float:
    """Returns the learning rate at which the loss falls fastest per factor of the rate, before its minimum.

    Raises ConfigError if the loss never falls.
    """
    end = int(np.argmin(losses)) + 1
    if end < 5:
        raise ConfigError("the loss never falls in this range; lower --lowest, or train more --steps")
    slopes = np.gradient(losses[:end], np.log(rates[:end]))
    return rates[int(np.argmin(slopes))]


def _figure(rates: list[float], losses: list[float]) -> bytes:
    from t5x_lite.reports import figures

    figure, axes = figures.new_figure(7, 4)
    axes.plot(rates, losses)
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
    axes.grid(alpha=0.3)
    return figures.png_of(figure)
