"""Decides whether a run ends before its last step: by train.patience or train.max_hours.

A run that ended so has done all it should: it is saved and evaluated, and the same command does not train it further.
"""

import math
from pathlib import Path

from t5x_lite.config import Config
from t5x_lite.reports import goodput, results


def seconds_left(cfg: Config, workdir: Path) -> float:
    """Returns how long the run may still take, in seconds; infinite without train.max_hours.

    All restarts count, from the start of each process to its last logged step.
    """
    if not cfg.train.max_hours:
        return math.inf
    rows = results.read_metrics(workdir)
    used_s = sum(row.get(f"time/{span}", 0.0) for row in rows for span in goodput.SPANS)
    return 3600 * cfg.train.max_hours - used_s


def reason(cfg: Config, workdir: Path, left_s: float) -> str:
    """Returns why the run ends before its last step; "" if it does not.

    left_s: how long it may still take.
    """
    if left_s <= 0:
        return f"train.max_hours={cfg.train.max_hours:g} are over"
    if not cfg.train.patience:
        return ""
    rows, metric = results.read_metrics(workdir), cfg.checkpoint.keep_best
    best = results.best(rows, metric, results.lower_is_better(rows)(metric))
    later = {row["step"] for row in rows if f"eval/{metric}" in row and best and row["step"] > best[0]}
    if best is None or len(later) < cfg.train.patience:
        return ""
    return (
        f"{metric} was best at step {best[0]} ({best[1]:.4g}) and has not improved for {len(later)} evaluations "
        f"(train.patience={cfg.train.patience})"
    )
