"""Reads the text of a compiled XLA program: its computations, its instructions, and how often each of them runs.

`jax.stages.Compiled.as_text` returns the text. Its grammar is described in openxla.org/xla/operation_semantics.
"""

import collections
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}  # other types: the number in their name
PACKAGE = Path(__file__).parents[1]
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(body|condition|to_apply|calls|true_computation|false_computation|branch_computations)"
    r"=\{?([^}\s]+(?:, %[^}\s]+)*)"
)
_FRAME_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Array(NamedTuple):
    """Holds one array of an instruction's type. is_local: whether it lies in a TPU core's own memory."""

    dtype: str
    shape: tuple[int, ...]
    is_local: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * bits(self.dtype) // 8


class Instruction(NamedTuple):
    """Holds one line of a computation. operands: names of other instructions.  rest: the text after the operands."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the text of the operands; a parameter's number
    rest: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """Returns the arrays of the result."""
        found = _ARRAY.findall(self.type)
        return [
            Array(dtype, tuple(int(d) for d in dims.split(",") if d), "S(1)" in layout) for dtype, dims, layout in found
        ]

    def called(self, *names: str) -> list[str]:
        """Returns the computations that the instruction calls as one of `names`, such as "body"; by default, as any."""
        found = [texts for name, texts in _CALLED.findall(self.rest) if not names or name in names]
        return [one.strip().lstrip("%") for texts in found for one in texts.split(",")]

    def text(self, key: str) -> str:
        """Returns the value of an attribute in quotes, such as op_name; "" if the instruction does not have it."""
        match = re.search(rf'{key}="([^"]*)"', self.rest)
        return match[1] if match else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """Holds a compiled program. sources: number of a stack frame -> the line of code, "file.py:12 (function)"."""

    computations: dict[str, Computation]
    entry: str
    sources: dict[int, str]

    def runs(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """Yields (instruction, its computation, how often it runs) for all that runs on its own, not inside a fusion.

        Loops, branches and calls themselves are left out. If the number of iterations of a loop is unknown, its body
        runs once. Of the branches of a conditional, the one with the most instructions runs.
        """
        yield from self._runs(self.entry, 1)

    def _runs(self, name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
        computation = self.computations.get(name, {})
        for instruction in computation.values():
            match instruction.opcode:
                case "while":
                    yield from self._runs(instruction.called("body")[0], times * self._turns(instruction))
                case "conditional":
                    yield from self._runs(
                        max(instruction.called(), key=lambda one: len(self.computations.get(one, ()))), times
                    )
                case "call" | "async-start":
                    yield from self._runs(instruction.called()[0], times)
                case _:
                    yield instruction, computation, times

    def _turns(self, loop: Instruction) -> int:
        """Returns the number of iterations: from the compiler, or N if the loop runs while a counter is less than N.

        The loops of lax.scan count from 0. A TPU's compiler does not say how often they run.
        """
        if known := re.search(r"known_trip_count[^0-9]*(\d+)", loop.rest):
            return int(known[1])
        condition = self.computations.get(loop.called("condition")[0], {})
        root = next((one for one in condition.values() if one.is_root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.rest:
            return 1
        limit = condition.get(root.operands[1])
        return int(limit.arguments) if limit and limit.opcode == "constant" and limit.arguments.isdigit() else 1

    def inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """Yields (instruction, its computation) for all that a fusion fuses, also in fusions within it."""
        for name in instruction.called("calls"):
            computation = self.computations.get(name, {})
            for inner in computation.values():
                yield inner, computation
                yield from self.inside(inner)

    def source(self, instruction: Instruction) -> str:
        """Returns the line of code that an instruction comes from; "" if the program does not say."""
        match = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        return self.sources.get(int(match[1]), "") if match else ""


def bits(dtype: str) -> int:
    """Returns the bits of one number.

    >>> bits("bf16"), bits("f8e4m3fn"), bits("token")
    (16, 8, 0)
    """
    return BITS.get(dtype) or int((re.findall(r"\d+", dtype) or [0])[0])


def parse(text: str) -> Program:
    """Returns a program, from what `jax.stages.Compiled.as_text` returns."""
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
    entry = name = table = ""
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line):
            name, table = begin[2], ""
            computations[name] = {}
            entry = name if begin[1] else entry
        elif line in _FRAME_TABLES:
            table = line
        elif table and (row := re.match(r"(\d+) (.*)", line)):
            tables[table][int(row[1])] = row[2]
        elif found := _INSTRUCTION.match(line):
            arguments, rest = _split_at_closing(line[found.end() :])
            operands = tuple(re.findall(r"%([\w.-]+)", arguments))
            computations[name][found[2]] = Instruction(
                found[2], found[3], found[4], operands, arguments, rest, bool(found[1])
            )
    return Program(computations, entry, _sources(tables))


def _split_at_closing(text: str) -> tuple[str, str]:
    """Splits at the bracket that closes the one before `text`."""
    depth = 1
    for bracket in re.finditer(r"[()]", text):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return text[: bracket.start()], text[bracket.end() :]
    return text, ""


def _sources(tables: dict[str, dict[int, str]]) -> dict[int, str]:
    """Returns {number of a stack frame: its innermost line that is not in an installed library}."""
    files, functions = ({n: text.strip('"') for n, text in tables[t].items()} for t in ("FileNames", "FunctionNames"))

    def numbers(text: str) -> dict[str, int]:
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}

    locations = {number: numbers(text) for number, text in tables["FileLocations"].items()}
    frames = {number: numbers(text) for number, text in tables["StackFrames"].items()}

    def source(number: int) -> str:
        seen: list[dict[str, int]] = []
        while number in frames and frames[number]["file_location_id"] in locations:
            location, parent = locations[frames[number]["file_location_id"]], frames[number]["parent_frame_id"]
            seen.append(location)
            file = Path(files.get(location["file_name_id"], ""))
            if file.is_relative_to(PACKAGE) or "site-packages" not in file.parts:
                break
            number = parent if parent != number else 0
        if not seen:
            return ""
        location = seen[-1]
        file = Path(files.get(location["file_name_id"], ""))
        if file.is_relative_to(PACKAGE):
            file = file.relative_to(PACKAGE)
        elif "site-packages" in file.parts:
            file = Path(*file.parts[file.parts.index("site-packages") + 1 :])
        function = functions.get(location.get("function_name_id", 0), "").replace("<locals>.", "")
        return f"{file}:{location['line']} ({function})"

    return {number: source(number) for number in frames}
