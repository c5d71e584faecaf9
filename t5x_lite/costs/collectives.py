"""Counts the collectives of a compiled program. A loop's body counts once per iteration."""

import collections
import re

from t5x_lite.costs import hlo

# Bytes that a device in a ring of n devices sends over its links, per byte of the operation's result.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is 1/n of the bytes that go around the ring
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


def count(program: hlo.Program, devices: int) -> dict[str, dict[str, float]]:
    """Returns {kind of collective: {"count", "bytes", "sent_bytes"}} for one device and one run of a program.

    "bytes" is the total size of the collectives' results. "sent_bytes" is what the device sends over its links if the
    devices form a ring.

    devices: how many devices the program runs on.
    """
    total: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "sent_bytes": 0})
    for kernel, _, times in program.runs():
        for instruction in (kernel, *(inner for inner, _ in program.inside(kernel))):
            name = instruction.opcode.removesuffix("-start")
            if name in SENT:
                size = sum(array.bytes for array in _results(instruction))
                kind = total[name]
                kind["count"] += times
                kind["bytes"] += times * size
                kind["sent_bytes"] += times * size * SENT[name](_group(instruction.rest, devices))
    return dict(total)


def _results(instruction: hlo.Instruction) -> list[hlo.Array]:
    """Returns the arrays that a collective makes. The type of a -start may also list its operands, before them."""
    arrays, operands = instruction.arrays, len(instruction.operands)
    is_start = instruction.opcode.endswith("-start")
    return arrays[operands : 2 * operands] if is_start and len(arrays) > operands else arrays


def _group(text: str, devices: int) -> int:
    """Returns the number of devices in one group of a collective."""
    if short := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(short[1])
    if long := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(long[1].split(","))
    return devices
