"""Computes a lower bound for the time of a compiled program, kernel by kernel: its roofline.

A kernel is an instruction that runs on its own: a fusion, a product, a copy. It takes at least as long as its products
at the peak rate, and as its reads and writes at the bandwidth of memory. The bound of a program is the sum over its
kernels (Williams et al. 2009, Roofline: an insightful visual performance model). Every operand is read from memory,
also one that could still be in a cache. Left out are the time to launch a kernel, and everything that a kernel computes
but products.
"""

import collections
import functools
import math
import re
from typing import Any

import numpy as np

from t5x_lite.costs import collectives, hlo
from t5x_lite.costs.accelerators import Accelerator

SINKS = 10
# Products inside an attention kernel wait for softmax. On an A100, FlashAttention-2 reaches half to three quarters of
# the peak (Dao 2023, §4.1). We take the lower end, as head_dim is 64 in most of our models.
FUSED_ATTENTION = 0.5
FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "partition-id", "replica-id",
    "opt-barrier", "copy-done", "slice-done", "async-done", "async-update", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "send-done", "recv-done",
}  # fmt: skip
NAMES_ONLY = ("AllocateBuffer", "ConcatBitcast", "Sharding")  # custom calls that give memory a name
NO_PRODUCTS = ("__cub$", "TopK", "SliceToDynamic", "PadToStatic")
# The kind of a kernel is the first of these that it contains.
KINDS = {
    "product": ("dot", "convolution"),
    "scatter": ("scatter",),
    "sort": ("sort",),
    "reduction": ("reduce", "reduce-window"),
    "gather": ("gather",),
    "random bits": ("rng", "rng-bit-generator"),
}
SAID = re.compile(r"_flops_(\d+)")
ELEMENT_BY_ELEMENT = ("bitcast", "reshape", "copy", "convert", "select", "add", "subtract", "multiply", "divide")
COPIES = ("copy", "copy-start", "slice-start", "transpose", "reshape", "concatenate", "pad", "slice", "broadcast")


def measure(program: hlo.Program, accelerator: Accelerator) -> dict[str, Any]:
    """Returns the roofline of one run of a program on one device.

    {"kernels", "bytes", "flops", "seconds"} of the whole; "compute_s" and "memory_s", of the products alone and of the
    traffic alone; "by_kind" {kind: the same four}; "sinks", the lines of code with the most seconds [{"source", the
    same four}]; "uncounted", the custom calls whose FLOPs are unknown {name: number}.
    """
    kinds: dict[str, dict[str, float]] = collections.defaultdict(_zeros)
    lines: dict[str, dict[str, float]] = collections.defaultdict(_zeros)
    whole, uncounted = _zeros(), collections.Counter()
    compute_s = memory_s = 0.0
    for instruction, computation, times in program.runs():
        if instruction.opcode in FREE or instruction.text("custom_call_target") in NAMES_ONLY:
            continue
        flops, flops_s = _products(program, instruction, computation, accelerator)
        size = traffic(program, instruction, computation)
        bytes_s = size / accelerator.memory_bytes_per_s
        kind = _kind(program, instruction)
        source = program.source(instruction) or f"{kind}, made by the compiler"
        if flops is None:
            uncounted[kind] += times
        cost = {"kernels": 1, "bytes": size, "flops": flops or 0, "seconds": max(flops_s, bytes_s)}
        for total in (whole, kinds[kind], lines[source]):
            for name, value in cost.items():
                total[name] += times * value
        compute_s, memory_s = compute_s + times * flops_s, memory_s + times * bytes_s
    slowest = sorted(lines.items(), key=lambda line: -line[1]["seconds"])[:SINKS]
    return whole | {
        "compute_s": compute_s,
        "memory_s": memory_s,
        "by_kind": dict(sorted(kinds.items(), key=lambda kind: -kind[1]["seconds"])),
        "sinks": [{"source": source, **costs} for source, costs in slowest],
        "uncounted": dict(uncounted),
    }


def _kind(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """Returns what a kernel does, in a word. A custom call's kind is its target, a collective's its opcode."""
    name = instruction.opcode
    if name == "custom-call":
        return instruction.text("custom_call_target")
    if name.removesuffix("-start") in collectives.SENT:
        return name.removesuffix("-start")
    opcodes = {name, *(inner.opcode for inner, _ in program.inside(instruction))}
    found = next((kind for kind, names in KINDS.items() if opcodes & set(names)), None)
    return found or ("copy" if name in COPIES else "elementwise")


def _zeros() -> dict[str, float]:
    return {"kernels": 0, "bytes": 0, "flops": 0, "seconds": 0.0}


# Products -------------------------------------------------------------------------------------------------------------


def _products(
    program: hlo.Program, instruction: hlo.Instruction, computation: hlo.Computation, accelerator: Accelerator
) -> tuple[int | None, float]:
    """Returns (FLOPs of the products in a kernel, seconds at their peak rate); (None, 0) if nobody knows the FLOPs."""
    if instruction.opcode == "custom-call":
        flops = _custom_call(instruction, computation)
        fused = FUSED_ATTENTION if SAID.search(instruction.rest) else 1.0
        return flops, (flops or 0) / (accelerator.rate(_dtype(instruction, computation)) * fused)
    total, seconds = 0, 0.0
    for inner, around in ((instruction, computation), *program.inside(instruction)):
        count = {"dot": _dot, "convolution": _convolution}.get(inner.opcode)
        if count:
            flops = count(inner, around)
            total, seconds = total + flops, seconds + flops / accelerator.rate(_dtype(inner, around))
    return total, seconds


def _dtype(instruction: hlo.Instruction, computation: hlo.Computation) -> str:
    """Returns the dtype of the narrowest floating-point operand. (A kernel may also read float32 sums and biases.)"""
    arrays = [array for name in instruction.operands for array in computation[name].arrays]
    return min((array.dtype for array in arrays if re.match("b?f", array.dtype)), key=hlo.bits, default="bf16")


def _dot(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    lhs = computation[instruction.operands[0]].arrays[0].shape
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2 * math.prod(instruction.arrays[0].shape) * math.prod(lhs[axis] for axis in axes)


def _convolution(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    """Returns the FLOPs of a convolution, as which a TPU's compiler writes a product. Padding is not multiplied.

    An axis of heads or rows becomes a window with padding or gaps, most of which meets no number.
    """
    lhs, rhs = (computation[name].arrays[0].shape for name in instruction.operands[:2])
    out = instruction.arrays[0].shape
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if labels is None:
        return 0
    of_lhs, of_rhs, of_out = (dict(zip(names, sizes, strict=True)) for names, sizes in
                              zip(labels.groups(), (lhs, rhs, out), strict=True))  # fmt: skip
    pairs = 2 * of_out["b"] * of_out["f"] * of_rhs["i"]
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}

    def field(name: str, axis: int, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    for axis, label in enumerate(name for name in sorted(of_out) if name.isdigit()):
        stride, gap, spread = (int(field(key, axis, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        before = int(field("pad", axis, "0_0").split("_")[0])
        at = np.arange(of_out[label])[:, None] * stride + np.arange(of_rhs[label]) * spread - before
        pairs *= int(((at >= 0) & (at % gap == 0) & (at // gap < of_lhs[label])).sum())
    return pairs


def _custom_call(instruction: hlo.Instruction, computation: hlo.Computation) -> int | None:
    """Returns the FLOPs of a custom call; None if they are unknown.

    A Pallas kernel says its FLOPs in its name, NAME_flops_N (models/pallas_kernels.py).
    """
    target = instruction.text("custom_call_target")
    if said := SAID.search(instruction.rest):
        return int(said[1])
    if contracted := re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest):  # cuBLAS
        lhs = computation[instruction.operands[0]].arrays[0].shape
        axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
        return 2 * math.prod(instruction.arrays[0].shape) * math.prod(lhs[axis] for axis in axes)
    return 0 if target.startswith(NO_PRODUCTS) else None


# Memory ---------------------------------------------------------------------------------------------------------------


def traffic(program: hlo.Program, instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    """Returns the bytes that a kernel reads from memory and writes to it.

    Where it reads or writes a slice of an array, only the slice counts.
    """
    called = instruction.called("calls")
    if instruction.opcode == "fusion" and called and called[0] in program.computations:
        inner = program.computations[called[0]]
        return _fusion_reads(inner, instruction, computation) + _fusion_writes(inner, instruction)
    if instruction.opcode in ("copy-start", "slice-start"):  # between memory and a TPU core's own memory
        ends = instruction.arrays[:2]
        return min(array.bytes for array in ends) * sum(not array.is_local for array in ends)
    operands = [computation[name] for name in instruction.operands if name in computation]
    read = sum(_read(instruction, index, operand) for index, operand in enumerate(operands))
    return read + _written(instruction, computation)


def _size(instruction: hlo.Instruction) -> int:
    return sum(0 if array.is_local else array.bytes for array in instruction.arrays)


def _read(user: hlo.Instruction, index: int, operand: hlo.Instruction) -> int:
    """Returns the bytes of an operand that an instruction reads."""
    if index == 0 and user.opcode in ("dynamic-slice", "slice", "gather"):
        return min(_size(user), _size(operand))
    if index == 0 and user.opcode in ("dynamic-update-slice", "scatter"):
        return 0
    return _size(operand)


def _written(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    """Returns the bytes that an instruction writes; of an update in place, also those that it reads there."""
    place = {"dynamic-update-slice": 1, "scatter": 2}.get(instruction.opcode)
    if place is None or len(instruction.operands) <= place:
        return _size(instruction)
    update = _size(computation[instruction.operands[place]])
    return update if instruction.opcode == "dynamic-update-slice" else 2 * update


def _fusion_reads(inner: hlo.Computation, fusion: hlo.Instruction, computation: hlo.Computation) -> int:
    users: dict[str, list[tuple[hlo.Instruction, int]]] = collections.defaultdict(list)
    for instruction in inner.values():
        for index, name in enumerate(instruction.operands):
            users[name].append((instruction, index))

    @functools.cache
    def read(instruction: hlo.Instruction) -> int:
        """Returns the bytes that the fusion reads of one of its instructions."""
        size, total = _size(instruction), 0
        for user, index in users[instruction.name]:
            if user.is_root or user.opcode not in ELEMENT_BY_ELEMENT or not _size(user):
                total += _read(user, index, instruction)
            else:  # as large a part as of the user
                total += size * read(user) // _size(user)
        return min(total, size)

    total = 0
    for instruction in inner.values():
        if instruction.opcode == "parameter":
            operand = computation.get(fusion.operands[int(instruction.arguments)])
            is_local = operand is not None and not _size(operand)
            total += 0 if is_local else read(instruction)
    return total


def _fusion_writes(inner: hlo.Computation, fusion: hlo.Instruction) -> int:
    root = next(instruction for instruction in inner.values() if instruction.is_root)
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    places = fusion.arrays  # a TPU's compiler says only here which of them are local
    total = 0
    for index, result in enumerate(results):
        while result.opcode == "bitcast" and result.operands[0] in inner:
            result = inner[result.operands[0]]
        is_local = len(places) == len(results) and places[index].is_local
        total += 0 if is_local else _written(result, inner)
    return total
