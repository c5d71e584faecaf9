"""Turns lengths in epochs and in shares of the run into steps: train.epochs, and "5%" or "2 epochs" in schedules."""

import copy
import re
from collections.abc import Callable, Mapping

from t5x_lite import config as configs
from t5x_lite.config import KEYS, Config
from t5x_lite.data.pipeline import TrainBatches
from t5x_lite.errors import ConfigError
from t5x_lite.keys import LENGTH

SAMPLED_ROWS = 2048  # from which the length of an epoch is estimated


def in_steps(cfg: Config, epoch: Callable[[], float]) -> Config:
    """Returns the config with all lengths in steps. It is a copy if any length changes.

    epoch: returns the steps of an epoch; called only if a length is in epochs.
    Raises ConfigError if the lengths do not fit together.
    """
    texts = {name: cfg[name] for name, key in KEYS.items() if key.allowed is LENGTH and isinstance(cfg[name], str)}
    if not texts and not cfg.train.epochs:
        return cfg
    cfg = copy.deepcopy(cfg)
    needs_epochs = cfg.train.epochs or any("epoch" in text for text in texts.values())
    per_epoch = epoch() if needs_epochs else 0.0
    if cfg.train.epochs:
        cfg.train.total_steps = max(1, round(cfg.train.epochs * per_epoch))
        cfg.train.epochs = 0.0  # so that no verb has to estimate again
    for name, text in texts.items():
        number = float(re.match(r"[\d.]+", text)[0])  # type: ignore[index]
        section, _, leaf = name.rpartition(".")
        cfg[section][leaf] = round(number * per_epoch if "epoch" in text else number / 100 * cfg.train.total_steps)
    configs.validate(cfg)
    return cfg


def steps_per_epoch(batches: TrainBatches, batch_rows: int, sizes: Mapping[str, int]) -> float:
    """Returns the steps in which a run reads as many examples as its tasks have, estimated from SAMPLED_ROWS rows.

    Without packing, a step reads batch_rows examples. With packing, the number of examples in a row varies.

    batches: of the run, with task ids.  sizes: {task: the number of its examples}.
    Raises ConfigError if no example was read.
    """
    steps = -(-SAMPLED_ROWS // batch_rows)
    for _ in range(steps):
        next(batches)
    counters = batches.counters() | batches.epochs_per_example()
    epochs = {name: counters[f"examples/{name}"] * counters[f"epochs_per_example/{name}"] for name in sizes}
    read = sum(sizes[name] * epochs[name] for name in sizes)
    if not read:
        raise ConfigError("train.epochs: no example was read; set train.total_steps instead")
    return steps * sum(sizes.values()) / read
