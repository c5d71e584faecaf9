"""What the loop of `t5x-lite train` costs over its bare step: data, metrics, logging and checkpoints on.

    python benchmarks/loop.py --rounds=3 --steps=30

The bare step runs over batches that lie on the device already, its metrics fetched once per log interval. The loop is
`train.run` itself on the same config (configs/quickstart.py with the sizes of T5-small 1.1), its time read from its own
`metrics.jsonl`. Both take turns, round by round, in one process. Prints JSON lines: one per round, then the medians and
their ratio.
"""

import argparse
import contextlib
import functools
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from t5x_lite import config, experiment, losses, optim, runtime, sharding, train
from t5x_lite.data import pipeline
from t5x_lite.step import abstract_params, init_state, make_train_step

LOG_EVERY_STEPS = 5
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


def make_config(arguments: argparse.Namespace):
    cfg = config.load(str(QUICKSTART))
    cfg.model.preset = arguments.preset
    if arguments.num_layers:
        cfg.model.num_encoder_layers = cfg.model.num_decoder_layers = arguments.num_layers
    cfg.data.batch_rows, cfg.data.length, cfg.data.targets_length = arguments.rows, arguments.length, arguments.targets
    cfg.train.total_steps, cfg.train.log_every_steps = arguments.steps, LOG_EVERY_STEPS
    cfg.schedule.warmup_steps = 1
    cfg.checkpoint.every_steps = arguments.steps
    cfg.eval.every_steps, cfg.eval.untrained, cfg.eval.max_examples = 0, False, 1
    return cfg


def bare_step_s(cfg) -> float:
    """Seconds per step over batches already on the device: the median over log intervals."""
    setup = experiment.resolve(cfg)
    on_devices = runtime.start(setup)
    rate = cfg.optimizer.learning_rate
    schedule = optim.make_schedule(cfg.schedule.name, rate, cfg.schedule.warmup_steps, cfg.train.total_steps)
    axes = sharding.param_axes(abstract_params(on_devices.module, on_devices.example))
    optimizer = optim.make_optimizer(cfg.optimizer.name, schedule, axes, clip_norm=cfg.optimizer.clip_norm)
    state = init_state(on_devices.module, optimizer, on_devices.layout, on_devices.example)
    loss_fn = functools.partial(losses.loss_sums, z_loss=cfg.loss.z_loss)
    step = make_train_step(on_devices.module, optimizer, schedule, on_devices.layout, state, loss_fn=loss_fn)
    data = pipeline.train_batches(
        cfg.data.mixture,
        setup.converter,
        setup.vocabulary,
        batch_rows=cfg.data.batch_rows,
        seed=cfg.seed,
        prefetch_batches=0,
    )
    batches = [sharding.put_batch(next(data), on_devices.layout) for _ in range(LOG_EVERY_STEPS)]
    samples = []
    for _ in range(cfg.train.total_steps // LOG_EVERY_STEPS):
        begin_s = time.perf_counter()
        for batch in batches:
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        samples.append((time.perf_counter() - begin_s) / LOG_EVERY_STEPS)
    return statistics.median(samples[1:])  # the first one compiles


def loop_step_s(cfg) -> float:
    """Seconds per step of `train.run`: the median over its log intervals."""
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
        train.run(experiment.resolve(cfg), Path(workdir))
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/tokens_per_s" in row]
    positions = cfg.data.batch_rows * (cfg.data.length + cfg.data.targets_length)
    return statistics.median(
        positions * (1 - row["train/padding"]) / row["train/tokens_per_s"] for row in rows[1:]
    )  # the first interval compiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of each in a round")
    parser.add_argument("--preset", default="t5_1_1_small")
    parser.add_argument("--num-layers", type=int, help="of each stack, instead of the preset's")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--targets", type=int, default=48)
    arguments = parser.parse_args()
    cfg = make_config(arguments)
    bare, loop = [], []
    for number in range(arguments.rounds):
        bare.append(bare_step_s(cfg))
        loop.append(loop_step_s(cfg))
        row = {"round": number, "bare_step_ms": round(1e3 * bare[-1], 1), "loop_step_ms": round(1e3 * loop[-1], 1)}
        print(json.dumps(row), flush=True)
    medians = statistics.median(bare), statistics.median(loop)
    print(
        json.dumps(
            {
                "shape": {key: value for key, value in vars(arguments).items() if key not in ("rounds", "steps")},
                "bare_step_ms": round(1e3 * medians[0], 1),
                "loop_step_ms": round(1e3 * medians[1], 1),
                "loop_over_bare": round(medians[1] / medians[0], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
