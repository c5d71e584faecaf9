"""The verb `plan` predicts the parameters, FLOPs, bytes, collectives and step time of a run before anything runs.

The training step is compiled for as many virtual devices as the mesh has. No array is created. All figures come from
the compiled program or from its shapes. By default, the CPU's compiler stands in for the accelerator's, so temporary
memory is only an estimate, and nothing is known about the kernels; the bytes of arguments are exact. With `--topology`,
the accelerator's own compiler is used.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from t5x_lite import config as configs
from t5x_lite import console, inspect, runtime
from t5x_lite.cluster import fitting_meshes, sharding
from t5x_lite.costs import collectives, flops, hlo, model_flops, plan_text, roofline, topology
from t5x_lite.costs.accelerators import ACCELERATORS
from t5x_lite.errors import ConfigError, OutOfMemoryError, first_line
from t5x_lite.experiment import Experiment
from t5x_lite.lookup import lookup
from t5x_lite.models import paths
from t5x_lite.training import trainable


def run(experiment: Experiment, device: str, name: str, everything: bool, as_json: bool) -> None:
    """Prints the plan of `make`.

    device: the accelerator (a key of ACCELERATORS) whose memory and rates count; "": the topology's accelerator, if
        ACCELERATORS has it.
    name: devices to compile for, such as "v5e:4x8" or "h200:8" (topology.py); "": the devices of this process.
    everything: whether to list all arrays, not only the largest.  as_json: whether to print JSON.
    Raises OutOfMemoryError if the compiler finds that the step does not fit in memory. Raises ConfigError if the device
    or the topology is unknown.
    """
    devices = topology.devices(name) if name else None
    kind = name.partition(":")[0]
    device = device or (kind if kind in ACCELERATORS else "")
    try:
        plan = make(experiment, device, devices)
    except OutOfMemoryError as error:
        tried = [plan_text.lever_text(lever) for lever in _levers(experiment, device, devices)]
        raise OutOfMemoryError("\n  ".join([f"{error}; peak memory per device with these changes:", *tried])) from None
    plan["tasks"] = inspect.describe(experiment, 0, "train")["tasks"]
    if device:
        plan["levers"] = _levers(experiment, device, devices) if not plan["fits"] else []
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        plan_text.show(plan, experiment, device, everything, console.plain())


def make(experiment: Experiment, device: str = "", devices: Any = None) -> dict[str, Any]:
    """Returns the plan as data for JSON. All bytes are per device, except `checkpoint_bytes` and `disk_bytes`.

    devices: devices of a topology, for which the step is compiled; None: all devices of this process.
    Raises OutOfMemoryError with the compiler's message if the program does not fit. Raises ConfigError if `device` is
    unknown, or if the mesh does not divide the model.
    """
    cfg = experiment.cfg
    if cfg.distill.teacher:
        raise ConfigError(
            "distill.teacher: a plan does not count what the teacher needs; plan the run with "
            "--config.distill.teacher='', and add the teacher's parameters and forward pass"
        )
    accelerator = lookup("device", device, ACCELERATORS) if device else None
    on_devices = runtime.start(experiment, devices)
    layout = on_devices.layout
    training = runtime.make_training(experiment, on_devices)
    state = training.state
    batch = abstract_batch(experiment, layout)
    traced = training.step.trace(state, batch)  # type: ignore[attr-defined]
    began_s = time.monotonic()
    compiled = _compiled(traced)
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    if devices is not None and devices[0].platform == "tpu":  # it does not allocate all temporary arrays at once
        temporary = memory.peak_memory_in_bytes - held
    program = hlo.parse(compiled.as_text())
    leaves = jax.tree_util.tree_leaves_with_path((state, batch))
    read = flops.inputs_read(traced.jaxpr)
    arrays = [_array(paths.text(path), leaf) for (path, leaf), is_read in zip(leaves, read, strict=True) if is_read]
    params, opt = _bytes(state.params), _bytes(state.opt_state)
    # Gradients are float32 and sharded like the parameters.
    gradients = _bytes(trainable.split(state.params, training.trainable)[0])
    saved = jax.tree.leaves((state.params, state.opt_state, state.average))
    checkpoint_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in saved)
    kept = cfg.checkpoint.keep_last + bool(cfg.checkpoint.keep_best)
    count = layout.mesh.size
    out = {
        "model": cfg.model.preset,
        "mesh": dict(layout.mesh.shape),
        "devices": count,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops": flops.count(traced.jaxpr),
        "model_flops": model_flops.of_step(experiment, batch),
        "tokens_per_step": sum(a.size for name, a in batch.items() if name.endswith("segment_ids")),
        "bytes": {
            "parameters": params,
            "optimizer": opt,
            **({} if state.average is None else {"average": _bytes(state.average)}),
            "batch": sum(array["bytes"] for array in arrays if array["array"] in batch),
            "gradients": gradients,
            "activations": max(0, temporary - gradients),  # and all other temporary arrays
            "arguments": memory.argument_size_in_bytes,
            "peak": held + temporary,
        },
        "arrays": arrays,  # those that the step reads
        "collectives": collectives.count(program, count),
        "checkpoint_bytes": checkpoint_bytes,  # of the whole checkpoint
        "disk_bytes": (kept + 1) * checkpoint_bytes,  # + 1: the one being written
        "learning_rates": _learning_rates(training.schedule, cfg.train.total_steps),
        "compile_s": time.monotonic() - began_s,
    }
    if accelerator:
        sent = sum(kind["sent_bytes"] for kind in out["collectives"].values())
        seconds = {
            "compute": out["flops"] / count / accelerator.rate(experiment.model.dtype),
            "links": sent / accelerator.link_bytes_per_s,
        }
        out |= {"memory_bytes": accelerator.memory_bytes, "fits": out["bytes"]["peak"] <= accelerator.memory_bytes}
        if devices is not None:
            of_kernels = roofline.measure(program, accelerator)
            step_s = max(of_kernels["seconds"], seconds["links"])
            seconds = {**seconds, "memory": of_kernels["memory_s"], "kernels": of_kernels["seconds"], "step": step_s}
            peak = accelerator.rate("bfloat16")
            out |= {"roofline": of_kernels, "mfu": out["model_flops"] / count / peak / step_s, "peak_flops": peak}
        out["seconds"] = seconds  # at least; the parts may overlap
    return out


def _compiled(traced: Any) -> Any:
    """Returns the compiled program. Raises OutOfMemoryError if it does not fit."""
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(f"the step does not fit in a device's memory: {first_line(error)}") from error


def _learning_rates(schedule: Callable[[int], Any], total_steps: int) -> dict[int, float]:
    """Returns {updates made: learning rate of the next one} at the beginning, the end, and some places between them."""
    places = {round(share / 20 * (total_steps - 1)) for share in range(21)}
    return {n: float(schedule(n)) for n in sorted(places)}


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


def abstract_batch(experiment: Experiment, layout: sharding.Layout) -> dict[str, jax.ShapeDtypeStruct]:
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
