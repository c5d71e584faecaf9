"""The verb `plan` predicts the parameters, FLOPs, bytes, collectives and step time of a run before anything runs.

The training step is compiled for as many virtual devices as the mesh has. No array is created. All figures come from
the compiled program or from its shapes. By default, the CPU's compiler stands in for the accelerator's, so temporary
memory is only an estimate; the bytes of arguments are exact. With `--topology`, the TPU's own compiler is used.
"""

import dataclasses
import json
import math
import time
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from t5x_lite import config as configs
from t5x_lite import console, inspect, runtime
from t5x_lite.cluster import fitting_meshes, sharding
from t5x_lite.costs import collectives, flops
from t5x_lite.costs.accelerators import ACCELERATORS, Accelerator
from t5x_lite.errors import ConfigError, OutOfMemoryError, first_line
from t5x_lite.experiment import Experiment
from t5x_lite.lookup import lookup
from t5x_lite.models import paths
from t5x_lite.training import trainable

ARRAYS_SHOWN = 12


def run(experiment: Experiment, device: str, topology: str, everything: bool, as_json: bool) -> None:
    """Prints the plan of `make`.

    device: the accelerator (a key of ACCELERATORS) on which the step time is predicted; "": the topology's accelerator,
        if ACCELERATORS has it.
    topology: a TPU slice to compile for, such as "v5e:4x8"; "": compile for the devices of this process.
    everything: whether to list all arrays, not only the ARRAYS_SHOWN largest.  as_json: whether to print JSON.
    Raises OutOfMemoryError if the compiler finds that the step does not fit in memory. Raises ConfigError if the device
    or the topology is unknown.
    """
    devices = _topology_devices(topology) if topology else None
    kind = topology.partition(":")[0]
    device = device or (kind if kind in ACCELERATORS else "")
    try:
        plan = make(experiment, device, devices)
    except OutOfMemoryError as error:
        tried = [_lever_text(lever) for lever in _levers(experiment, device, devices)]
        raise OutOfMemoryError("\n  ".join([f"{error}; peak memory per device with these changes:", *tried])) from None
    plan["tasks"] = inspect.describe(experiment, 0, "train")["tasks"]
    if device:
        plan["levers"] = _levers(experiment, device, devices) if not plan["fits"] else []
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        _print(plan, experiment, device, everything, console.plain())


def make(experiment: Experiment, device: str = "", devices: Any = None) -> dict[str, Any]:
    """Returns the plan as data for JSON. All bytes are per device, except `checkpoint_bytes` and `disk_bytes`.

    devices: the devices of a TPU topology, for which the step is compiled; None: all devices of this process.
    Raises OutOfMemoryError with the compiler's message if the program does not fit. Raises ConfigError if `device` is
    unknown, or if the mesh does not divide the model.
    """
    cfg = experiment.cfg
    accelerator = lookup("device", device, ACCELERATORS) if device else None
    on_devices = runtime.start(experiment, devices)
    layout = on_devices.layout
    training = runtime.make_training(experiment, on_devices)
    state = training.state
    batch = _abstract_batch(experiment, layout)
    traced = training.step.trace(state, batch)  # type: ignore[attr-defined]
    began_s = time.monotonic()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(f"the step does not fit in a device's memory: {first_line(error)}") from error
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    if devices is not None:  # the TPU's compiler knows which temporary arrays exist at the same time
        temporary = memory.peak_memory_in_bytes - held
    leaves = jax.tree_util.tree_leaves_with_path((state, batch))
    read = flops.inputs_read(traced.jaxpr)
    arrays = [_array(paths.text(path), leaf) for (path, leaf), is_read in zip(leaves, read, strict=True) if is_read]
    params, opt = _bytes(state.params), _bytes(state.opt_state)
    # Gradients are float32 and sharded like the parameters.
    gradients = _bytes(trainable.split(state.params, training.trainable)[0])
    checkpoint_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))
    kept = cfg.checkpoint.keep_last + bool(cfg.checkpoint.keep_best)
    count = layout.mesh.size
    out = {
        "model": cfg.model.preset,
        "mesh": dict(layout.mesh.shape),
        "devices": count,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops": flops.count(traced.jaxpr),
        "tokens_per_step": sum(a.size for name, a in batch.items() if name.endswith("segment_ids")),
        "bytes": {
            "parameters": params,
            "optimizer": opt,
            "batch": sum(array["bytes"] for array in arrays if array["array"] in batch),
            "gradients": gradients,
            "activations": max(0, temporary - gradients),  # and all other temporary arrays
            "arguments": memory.argument_size_in_bytes,
            "peak": held + temporary,
        },
        "arrays": arrays,  # those that the step reads
        "collectives": collectives.count(compiled.as_text(), count),
        "checkpoint_bytes": checkpoint_bytes,  # of the whole checkpoint
        "disk_bytes": (kept + 1) * checkpoint_bytes,  # + 1: the one being written
        "compile_s": time.monotonic() - began_s,
    }
    if accelerator:
        out |= _roofline(out, accelerator, experiment)
    return out


def _roofline(plan: dict[str, Any], accelerator: Accelerator, experiment: Experiment) -> dict[str, Any]:
    """Returns the plan's entries that depend on the accelerator: step time, MFU, memory, and whether the step fits.

    The step time is a lower bound. It is the time of the slowest of three parts, as if the parts ran in parallel:

    compute: the matrix products, at the peak rate for the model's dtype.
    memory: all reads and writes of memory. Parameters, gathered over `fsdp`, are read for the forward and the backward
        pass of every microbatch. Parameters, gradients, optimizer state and activations are also read and written once.
    links: the bytes that collectives send.
    """
    sizes = plan["bytes"]
    rate = accelerator.float32_flops if experiment.model.dtype == "float32" else accelerator.flops
    moved = sizes["parameters"] * plan["mesh"]["fsdp"] * 2 * experiment.cfg.train.microbatches
    moved += 2 * (sizes["parameters"] + sizes["optimizer"] + sizes["gradients"] + sizes["activations"])
    sent = sum(kind["sent_bytes"] for kind in plan["collectives"].values())
    seconds = {
        "compute": plan["flops"] / plan["devices"] / rate,
        "memory": moved / accelerator.memory_bytes_per_s,
        "links": sent / accelerator.link_bytes_per_s,
    }
    slowest_s = max(seconds.values())
    return {
        "seconds": seconds | {"step": slowest_s},
        "mfu": plan["flops"] / plan["devices"] / accelerator.flops / slowest_s,
        "memory_bytes": accelerator.memory_bytes,
        "fits": sizes["peak"] <= accelerator.memory_bytes,
    }


def _levers(experiment: Experiment, device: str, devices: Any) -> list[dict[str, Any]]:
    """Tries changes of the config that lower memory. Returns one {"change", "peak", "fits"} per change.

    "peak" is in bytes; it is None if the compiler found that the step does not fit. A change to a mesh that does not
    divide the model is left out.
    """
    cfg, count = experiment.cfg, jax.device_count() if devices is None else len(devices)
    changes: list[dict[str, Any]] = []
    if experiment.model.remat != "full":
        changes.append({"model.remat": "full"})
    sizes = sharding.parse_mesh(cfg.mesh, count)
    more = cfg.train.microbatches * 2
    if cfg.data.batch_rows % (more * sizes["data"] * sizes["fsdp"]) == 0:
        changes.append({"train.microbatches": more})
    if sizes["data"] > 1:
        changes.append({"mesh": fitting_meshes.mesh_text(sizes | {"data": 1, "fsdp": sizes["data"] * sizes["fsdp"]})})
    if len(changes) > 1:
        changes.append({key: value for change in changes for key, value in change.items()})
    out = []
    for change in changes:
        changed = cfg.copy_and_resolve_references()
        for key in change.keys() - {"model.remat"}:
            configs.override(changed, key, str(change[key]))
        model = dataclasses.replace(experiment.model, remat=change.get("model.remat", experiment.model.remat))
        text = ", ".join(f"{key}={value}" for key, value in change.items())
        try:
            plan = make(dataclasses.replace(experiment, cfg=changed, model=model), device, devices)
        except ConfigError:  # the mesh does not divide this model
            continue
        except OutOfMemoryError:
            out.append({"change": text, "peak": None, "fits": False})
            continue
        fits = plan["fits"] if device else True  # without a known accelerator: the compiler accepted it
        out.append({"change": text, "peak": plan["bytes"]["peak"], "fits": fits})
    return out


def _lever_text(lever: dict[str, Any]) -> str:
    size = "" if lever["peak"] is None else f" {size_text(lever['peak'])},"
    return f"{lever['change']}:{size} {'fits' if lever['fits'] else 'does not fit'}"


def _abstract_batch(experiment: Experiment, layout: sharding.Layout) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a training batch."""
    cfg = experiment.cfg
    sizes = {"B": cfg.data.batch_rows, **experiment.converter.sizes(cfg.data.pack)}
    shapes = {
        name: ([sizes[letter] for letter in spec.dims], spec.dtype)
        for name, spec in experiment.converter.specs().items()
    }
    if len(experiment.tasks) > 1:
        side = "decoder" if "decoder_segment_ids" in shapes else "encoder"
        shapes[f"{side}_task_ids"] = shapes[f"{side}_segment_ids"]
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.batch_sharding)
        for name, (shape, dtype) in shapes.items()
    }


def _topology_devices(text: str) -> Any:
    """Returns the devices of a TPU slice, such as "v5e:4x8". This needs the TPU's compiler, but no TPU."""
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(text, "tpu").devices
    except Exception as error:
        raise ConfigError(
            f"--topology={text}: {first_line(error)}; write for example v5e:4x8, v4:2x2x4, v5p:2x2x2 or v6e:4x4, and "
            "install the TPU's compiler: pip install 't5x-lite[tpu]'"
        ) from error


def _bytes(tree: Any) -> int:
    """Returns how many bytes of the tree's arrays each device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _array(name: str, leaf: Any) -> dict[str, Any]:
    return {
        "array": name.removeprefix("0/").removeprefix("1/"),
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "split": [
            entry if isinstance(entry, str) or entry is None else "+".join(entry) for entry in leaf.sharding.spec
        ],
        "bytes": _bytes(leaf),
    }


# Printing -------------------------------------------------------------------------------------------------------------


def _print(plan: dict[str, Any], experiment: Experiment, device: str, everything: bool, console: Console) -> None:
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
    if not device:
        console.print(f"--device=NAME predicts the time of a step on {', '.join(ACCELERATORS)}", highlight=False)
        return
    seconds = plan["seconds"]
    console.print(
        f"at best on {device}: {seconds['step']:.4g} s per step (compute {seconds['compute']:.4g}, memory "
        f"{seconds['memory']:.4g}, links {seconds['links']:.4g}), MFU {plan['mfu']:.1%}, "
        f"{plan['tokens_per_step'] / seconds['step']:,.0f} positions/s",
        highlight=False,
        soft_wrap=True,
    )
    verdict = "fits" if plan["fits"] else "does not fit"
    available = size_text(plan["memory_bytes"])
    console.print(f"peak memory {size_text(plan['bytes']['peak'])} {verdict} in {available}", highlight=False)
    for lever in plan["levers"]:
        console.print(f"  {_lever_text(lever)}", highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(
            column, justify="left" if column in ("kind", "array", "shape", "split over", "task") else "right"
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
