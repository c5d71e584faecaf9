"""Measures the time that the loop of `t5x-lite train` adds to its bare step, for data, metrics and logging.

    python benchmarks/loop.py --turns=20

The loop is `train.run` itself, with configs/quickstart.py and the model sizes of T5-small 1.1. The bare step is the
same step on batches that are already on the device. Both run in one process and take turns of one log interval. When
the loop asks for the first batch of its next interval, it has to wait until the bare step has run for an interval. A
turn of the loop ends when its last step is done. So once per turn the loop pays for work that otherwise overlaps with a
step, which makes the measured overhead slightly too high.

Prints JSON lines: one per turn; then the medians with the median ratio of the two times; and at last the time of
`t5x-lite --help` in a process of its own.
"""

import argparse
import contextlib
import functools
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax

from t5x_lite import config, experiment, runtime, train
from t5x_lite.cluster import sharding
from t5x_lite.evaluation.during_training import EvaluationDuringTraining
from t5x_lite.training import losses, optim, schedules
from t5x_lite.training.step import abstract_params, init_state, make_train_step

STEPS_PER_TURN = 5
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


def make_config(arguments: argparse.Namespace):
    cfg = config.load(str(QUICKSTART))
    cfg.model.preset = arguments.preset
    if arguments.num_layers:
        cfg.model.num_encoder_layers = cfg.model.num_decoder_layers = arguments.num_layers
    cfg.data.batch_rows, cfg.data.length, cfg.data.targets_length = arguments.rows, arguments.length, arguments.targets
    cfg.train.total_steps, cfg.train.log_every_steps = (arguments.turns + 2) * STEPS_PER_TURN, STEPS_PER_TURN
    cfg.schedule.warmup_steps = 1
    cfg.checkpoint.every_steps = cfg.train.total_steps
    cfg.eval.every_steps, cfg.eval.untrained, cfg.eval.max_examples = 0, False, 1
    return cfg


def bare_turn(cfg) -> Callable[[], float]:
    """Returns a function that runs a turn of bare steps and returns its duration in seconds."""
    setup = experiment.resolve(cfg)
    on_devices = runtime.start(setup)
    rate = cfg.optimizer.learning_rate
    schedule = schedules.make_schedule(cfg.schedule.name, rate, cfg.schedule.warmup_steps, cfg.train.total_steps)
    axes = sharding.param_axes(abstract_params(on_devices.module, on_devices.example))
    optimizer = optim.make_optimizer(cfg.optimizer.name, schedule, axes, clip_norm=cfg.optimizer.clip_norm)
    state = init_state(on_devices.module, optimizer, on_devices.layout, on_devices.example)
    loss_fn = functools.partial(losses.loss_sums, z_loss=cfg.loss.z_loss)
    step = make_train_step(on_devices.module, optimizer, schedule, on_devices.layout, state, loss_fn=loss_fn)
    data = setup.train_batches()
    batches = [sharding.put_batch(next(data), on_devices.layout) for _ in range(STEPS_PER_TURN)]

    def turn() -> float:
        nonlocal state
        begin_s = time.perf_counter()
        for batch in batches:
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - begin_s

    return turn


class Turns:
    """Wraps the loop's data and step, so that the bare step takes its turn before each interval's first batch."""

    def __init__(self, bare: Callable[[], float]):
        self._bare, self._asked, self._last_metrics, self._begin_s = bare, 0, None, 0.0
        self.seconds: list[tuple[float, float]] = []  # (loop, bare step) of each turn

    def train_batches(self, make: Callable, *args, **kwargs):
        self._data = make(*args, **kwargs)
        return self

    def make_train_step(self, make: Callable, *args, **kwargs) -> Callable:
        step = make(*args, **kwargs)

        def watched(state, batch):
            state, self._last_metrics = step(state, batch)
            return state, self._last_metrics

        return watched

    def __next__(self):
        if self._asked % STEPS_PER_TURN == 0:
            jax.block_until_ready(self._last_metrics)
            loop_s = time.perf_counter() - self._begin_s
            bare_s = self._bare()
            if self._asked > STEPS_PER_TURN:  # by then both have compiled
                self.seconds.append((loop_s, bare_s))
                row = {"loop_step_ms": milliseconds(loop_s), "bare_step_ms": milliseconds(bare_s)}
                print(json.dumps(row), flush=True, file=sys.__stdout__)
            self._begin_s = time.perf_counter()
        self._asked += 1
        return next(self._data)

    def __getattr__(self, name: str):
        return getattr(self._data, name)


def milliseconds(turn_s: float) -> float:
    return round(1e3 * turn_s / STEPS_PER_TURN, 1)


def help_s() -> float:
    """Returns the seconds that `t5x-lite --help` takes in a fresh process: the minimum of five runs."""
    seconds = []
    for _ in range(5):
        begin_s = time.perf_counter()
        subprocess.run([sys.executable, "-m", "t5x_lite.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin_s)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help=f"turns of each, {STEPS_PER_TURN} steps long")
    parser.add_argument("--preset", default="t5_1_1_small")
    parser.add_argument("--num-layers", type=int, help="layers of each stack, instead of the preset's")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--targets", type=int, default=48)
    arguments = parser.parse_args()
    cfg = make_config(arguments)
    turns = Turns(bare_turn(cfg))
    make_batches, make_step = train.pipeline.train_batches, make_train_step
    with (
        tempfile.TemporaryDirectory() as workdir,
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(train.pipeline, "train_batches", functools.partial(turns.train_batches, make_batches)),
        mock.patch.object(runtime.step, "make_train_step", functools.partial(turns.make_train_step, make_step)),
    ):
        train.run(experiment.resolve(cfg), Path(workdir), EvaluationDuringTraining)
    loop, bare = zip(*turns.seconds, strict=True)
    shape = {key: value for key, value in vars(arguments).items() if key != "turns"}
    medians = {
        "loop_step_ms": milliseconds(statistics.median(loop)),
        "bare_step_ms": milliseconds(statistics.median(bare)),
    }
    ratio = statistics.median(a / b for a, b in turns.seconds)
    print(json.dumps({"shape": shape, "turns": len(loop), **medians, "loop_over_bare": round(ratio, 3)}))
    print(json.dumps({"help_s": round(help_s(), 3)}))


if __name__ == "__main__":
    main()
