"""Counts the collectives in the text of a compiled program. A loop's body counts once per iteration."""

import collections
import math
import re
from collections.abc import Iterator

# Bytes that a device in a ring of n devices sends over its links, per byte of the operation's result.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is 1/n of the bytes that go around the ring
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # other types: the number in their name
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(SENT)})(-start)?\(")
_CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation|branch_computations)=\{?([^}\s]+(?:, %[^}\s]+)*)"
)
_TURNS = re.compile(r"known_trip_count[^0-9]*(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")


def count(hlo: str, devices: int) -> dict[str, dict[str, float]]:
    """Returns {kind of collective: {"count", "bytes", "sent_bytes"}} for one device and one run of a compiled program.

    "bytes" is the total size of the collectives' results. "sent_bytes" is what the device sends over its links if the
    devices form a ring. If the number of iterations of a loop is unknown, its body counts once.

    hlo: the program's text.  devices: how many devices it runs on.
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
            if match := _COLLECTIVE.search(line):
                sizes = list(_sizes(match[1]))
                size = sizes[-1] if match[3] else sum(sizes)  # the result of a -start includes its operand
                kind = total[match[2]]
                kind["count"] += times
                kind["bytes"] += times * size
                kind["sent_bytes"] += times * size * SENT[match[2]](_group(line, devices))
            turns = _TURNS.search(line) if " while(" in line else None
            for called in _CALLED.findall(line):
                for one in called.split(","):
                    walk(one.strip().lstrip("%"), times * (int(turns[1]) if turns else 1))

    walk(entry, 1)
    return dict(total)


def _sizes(shapes: str) -> Iterator[int]:
    """Yields the bytes of each array in `shapes`, the text of a result's type."""
    for kind, dims in _ARRAY.findall(shapes):
        bits = BITS.get(kind) or int(re.sub(r"\D", " ", kind).split()[0])
        yield math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _group(line: str, devices: int) -> int:
    """Returns the number of devices in one group of a collective."""
    if short := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(short[1])
    if long := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(long[1].split(","))
    return devices
