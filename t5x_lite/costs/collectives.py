"""What the devices say to each other in a step, read from its compiled program; loops count as often as they turn."""

import collections
import math
import re
from collections.abc import Iterator

# Bytes a device sends over its links in a ring of n, for each byte of the operation's result.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is the n-th part of what goes around
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # of other types, the number in their name
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(SENT)})(-start)?\(")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation|branch_computations)=\{?([^}\s]+(?:, %[^}\s]+)*)"
)
_TURNS = re.compile(r"known_trip_count[^0-9]*(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


def count(hlo: str, devices: int) -> dict[str, dict[str, float]]:
    """{kind: {"count", "bytes", "sent_bytes"}} of one device in one run of a compiled program's text.

    bytes: of the results; sent_bytes: over the links, by a ring. A loop whose number of turns is not known counts once.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if begin := _COMPUTATION.match(line):
            name = begin[2]
            bodies[name] = []
            entry = name if begin[1] else entry
        elif name:
            bodies[name].append(line)
    total: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "sent_bytes": 0})

    def walk(computation: str, times: int) -> None:
        for line in bodies.get(computation, ()):
            if found := _COLLECTIVE.search(line):
                shapes = list(_sizes(found[1]))
                size = shapes[-1] if found[3] else sum(shapes)  # a start's result holds its operand, too
                kind = total[found[2]]
                kind["count"] += times
                kind["bytes"] += times * size
                kind["sent_bytes"] += times * size * SENT[found[2]](_group(line, devices))
            turns = _TURNS.search(line) if " while(" in line else None
            for called in _CALLED.findall(line):
                for one in called.split(","):
                    walk(one.strip().lstrip("%"), times * (int(turns[1]) if turns else 1))

    walk(entry, 1)
    return dict(total)


def _sizes(shapes: str) -> Iterator[int]:
    """Bytes of each array in the text of a result's type."""
    for kind, dims in _ARRAY.findall(shapes):
        bits = BITS.get(kind) or int(re.sub(r"\D", " ", kind).split()[0])
        yield math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _group(line: str, devices: int) -> int:
    """How many devices take part in one collective together."""
    if short := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(short[1])
    if long := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(long[1].split(","))
    return devices
