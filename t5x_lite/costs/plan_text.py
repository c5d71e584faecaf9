"""Prints a plan (plan.py) for people."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from t5x_lite.costs.accelerators import ACCELERATORS
from t5x_lite.costs.topology import GPUS
from t5x_lite.experiment import Experiment

ARRAYS_SHOWN = 12
CURVE_WIDTH = 40  # characters
GPU_SHARE = 0.75  # of a GPU's memory; JAX takes no more unless XLA_PYTHON_CLIENT_MEM_FRACTION says so


def show(plan: dict[str, Any], experiment: Experiment, device: str, everything: bool, console: Console) -> None:
    cfg = experiment.cfg
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    per_token = plan["flops"] / plan["tokens_per_step"]
    lines = [
        f"{plan['model']}: {plan['parameters']:,} parameters on {plan['devices']} devices ({mesh})",
        f"each step: {cfg.data.batch_rows} rows, {plan['tokens_per_step']:,} positions, {plan['flops']:.4g} FLOPs in "
        f"matrix products ({per_token / plan['parameters']:.2f} per parameter and position; a causal mask does not "
        "halve attention)",
        f"each checkpoint: {size_text(plan['checkpoint_bytes'])}; disk space of the workdir: "
        f"{size_text(plan['disk_bytes'])} (checkpoint.keep_last={cfg.checkpoint.keep_last}, and one being written)",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    table = _table("bytes per device", "kind", "bytes")
    for kind, size in plan["bytes"].items():
        table.add_row(kind, size_text(size))
    console.print(table)
    table = _table("collectives per device and step", "kind", "number", "bytes", "sent in a ring")
    for kind, counts in plan["collectives"].items():
        table.add_row(kind, f"{counts['count']:,}", size_text(counts["bytes"]), size_text(counts["sent_bytes"]))
    console.print(table)
    shown = sorted(plan["arrays"], key=lambda array: -array["bytes"])
    shown = shown if everything else shown[:ARRAYS_SHOWN]
    table = _table(f"largest arrays, {len(shown)} of {len(plan['arrays'])}", "array", "shape", "split over", "bytes")
    for array in shown:
        split = ", ".join(axis or "–" for axis in array["split"])
        table.add_row(array["array"], str(array["shape"]), split or "replicated", size_text(array["bytes"]))
    console.print(table)
    table = _table(f"data of {cfg.train.total_steps:,} steps", "task", "examples", "epochs", "padding")
    for task in plan["tasks"]:
        epochs, padding = task["run"]["epochs"], task["padding"]
        table.add_row(
            task["task"],
            f"{task['run']['examples']:,}",
            "–" if epochs is None else f"{epochs:.2f}",
            "–" if padding is None else f"{padding:.1%}",
        )
    console.print(table)
    console.print(_curve(plan["learning_rates"]))
    if "seconds" in plan:
        _show_time(plan, device, console)
    if not device:
        console.print(f"--device=NAME says whether the step fits on {', '.join(ACCELERATORS)}", highlight=False)
        return
    peak, available = plan["bytes"]["peak"], plan["memory_bytes"]
    verdict = "fits" if plan["fits"] else "does not fit"
    if plan["fits"] and device in GPUS and peak > GPU_SHARE * available:
        verdict = f"fits with XLA_PYTHON_CLIENT_MEM_FRACTION={min(0.99, peak / available + 0.03):.2f} (default: 0.75)"
    console.print(f"peak memory {size_text(peak)} {verdict} in {size_text(available)}", highlight=False, soft_wrap=True)
    for lever in plan["levers"]:
        console.print(f"  {lever_text(lever)}", highlight=False, soft_wrap=True)


def _show_time(plan: dict[str, Any], device: str, console: Console) -> None:
    seconds, out = plan["seconds"], plan.get("roofline")
    if out is None:
        console.print(
            f"on {device}, the products alone take at least {seconds['compute']:.4g} s per step, and the collectives "
            f"{seconds['links']:.4g}; --topology={device}:… also counts what the kernels read and write",
            highlight=False,
            soft_wrap=True,
        )
        return
    table = _table("kernels per device and step", "kind", "number", "bytes", "TFLOP", "ms at least")
    for kind, costs in out["by_kind"].items():
        table.add_row(kind, *_costs(costs))
    table.add_row("all", *_costs(out))
    console.print(table)
    table = _table(f"the {len(out['sinks'])} slowest lines of code", "line", "kernels", "bytes", "TFLOP", "ms at least")
    for sink in out["sinks"]:
        table.add_row(escape(sink["source"]), *_costs(sink))
    console.print(table)
    if out["uncounted"]:
        names = ", ".join(f"{count} × {name}" for name, count in out["uncounted"].items())
        console.print(f"nobody knows the FLOPs of these kernels: {names}", highlight=False, markup=False)
    console.print(
        f"on {device}, a step takes at least {seconds['step']:.4g} s: its kernels {seconds['kernels']:.4g} (their "
        f"products alone {out['compute_s']:.4g}, reading and writing memory alone {seconds['memory']:.4g}), "
        f"collectives {seconds['links']:.4g}; at most {plan['tokens_per_step'] / seconds['step']:,.0f} positions/s and "
        f"an MFU of {plan['mfu']:.1%} of {plan['peak_flops'] / 1e12:.0f} TFLOP/s",
        highlight=False,
        soft_wrap=True,
    )


def _curve(rates: dict[int, float]) -> Table:
    table, peak = _table("learning rate", "updates", "rate", "curve"), max(rates.values()) or 1.0
    for n, rate in rates.items():
        table.add_row(f"{n:,}", f"{rate:.3g}", "━" * round(CURVE_WIDTH * rate / peak))
    return table


def _costs(costs: dict[str, float]) -> list[str]:
    return [
        f"{costs['kernels']:,}",
        size_text(costs["bytes"]),
        f"{costs['flops'] / 1e12:.2f}",
        f"{1e3 * costs['seconds']:.2f}",
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in ("kind", "array", "shape", "split over", "task", "line", "curve") else "right",
        )
    return table


def size_text(size: float) -> str:
    """Returns a number of bytes as text with a binary unit.

    >>> size_text(1536), size_text(12)
    ('1.50 KiB', '12 B')
    """
    unit = 0
    while size >= 1024 and unit < 5:
        size, unit = size / 1024, unit + 1
    return f"{size:.2f} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[unit]}" if unit else f"{size:.0f} B"


def lever_text(lever: dict[str, Any]) -> str:
    size = "" if lever["peak"] is None else f" {size_text(lever['peak'])},"
    return f"{lever['change']}:{size} {'fits' if lever['fits'] else 'does not fit'}"
