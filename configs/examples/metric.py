"""Your own metric: the error of predicted sums.

    t5x-lite train --config=configs/examples/metric.py --workdir=runs/own_metric

A metric gets the targets and the predictions of all examples, as the task's `postprocess` returns them, and returns
{name: value}. With the decorator `lower_is_better`, reports and checkpoint.keep_best take its lowest value as the best.
"""

import statistics

from t5x_lite import config
from t5x_lite.data.registry import Task, add
from t5x_lite.data.sources import Function
from t5x_lite.tasks.metrics import lower_is_better


@lower_is_better
def mean_absolute_error(targets, predictions):
    """Returns the mean of |target − prediction|; a prediction that is not a number counts as an error of 100."""
    errors = [abs(t - p) if p is not None else 100.0 for t, p in zip(targets, predictions, strict=True)]
    return {"mean_absolute_error": statistics.fmean(errors)}


def number(text):
    return float(text) if text.strip().isdigit() else None


def sums(split):
    pairs = [(a, b) for a in range(30) for b in range(30) if ((a + b) % 5 == 0) == (split != "train")]
    return [{"inputs": f"{a} + {b}", "targets": str(a + b)} for a, b in pairs]


add(Task("sums", Function(sums), metrics=(mean_absolute_error,), postprocess=number))


def get_config():
    cfg = config.base()
    cfg.model.preset = "t5_tiny"
    cfg.data.mixture = "sums"
    cfg.data.vocabulary = "bytes"
    cfg.data.length, cfg.data.targets_length = 32, 8
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 2e-3
    cfg.schedule.warmup_steps = 20
    cfg.train.total_steps = 200
    cfg.eval.every_steps = 0
    cfg.eval.max_decode_tokens = 8
    return cfg
