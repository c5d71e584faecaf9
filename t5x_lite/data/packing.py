"""Packing: several examples in one row, by their lengths alone.

Examples are a window's features as ragged columns (`Examples`), without segment ids and positions: those a row gives
them. Features that share a dimension letter (t5x_lite/batch.py) have the same length in an example. An unpacked row
is a packed one with a single example: there is one code path.
"""

import bisect
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_lite.batch import ArraySpec, Batch
from t5x_lite.data import ragged
from t5x_lite.data.ragged import Ragged

Examples = dict[str, Ragged]  # by feature; row i of every feature is example i

# They point into the row, so they move with their example.
INDEX_FEATURES = ("mlm_positions", "pooled_positions", "span_starts", "span_ends", "choice_questions")
PARTS = "encoder_parts"  # lengths of the parts of an example that do not see each other, where it has several


def assign(lengths: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Which row each example goes to: best fit, the longest first.

    lengths: int [examples, dimensions]; capacity: int [dimensions]. Each example goes to the row that it leaves the
    least room in, else to a new one. An example is as long as its largest share of a dimension, and a row's room is
    the sum of its shares: with one dimension that is best fit decreasing; with two, judged by the fuller one alone,
    rows of T5's inputs and targets came out a tenth emptier. Rows are numbered by their first example, so that long
    examples do not come first.

    >>> assign(np.array([[5], [6], [4], [3]]), np.array([10])).tolist()
    [0, 1, 1, 0]
    """
    assert (lengths <= capacity).all(), f"an example of {lengths.max(axis=0)} in rows of {capacity}"
    size = int(np.lcm.reduce(capacity))
    shares = lengths * (size // capacity)  # whole numbers: of a row that holds `size` in every dimension
    longest, needs = shares.max(axis=1), shares.sum(axis=1)
    order = np.argsort(-longest, kind="stable")
    # The longest, beside which not even the shortest fits in any dimension, have rows of their own.
    alone = int((shares[order] + shares.min(axis=0) > size).any(axis=1).cumprod().sum()) if len(order) else 0
    row_of = np.empty(len(lengths), np.int64)
    row_of[order[:alone]] = np.arange(alone)
    rooms: list[list[int]] = [[]] * alone  # of each row, by dimension
    open_rows: list[tuple[int, int]] = []  # (sum of its room, row), sorted
    empty, whole = [size] * len(capacity), size * len(capacity)
    for index, need in zip(order[alone:].tolist(), needs[order[alone:]].tolist(), strict=True):
        share = shares[index].tolist()
        at = bisect.bisect_left(open_rows, (need,))
        while at < len(open_rows) and any(map(operator.lt, rooms[open_rows[at][1]], share)):
            at += 1
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = whole, len(rooms)
            rooms.append(empty)
        rooms[row] = list(map(operator.sub, rooms[row], share))
        bisect.insort(open_rows, (room - need, row))
        row_of[index] = row
    _, first, inverse = np.unique(row_of, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def lengths_of(examples: Examples, specs: Mapping[str, ArraySpec], letters: str) -> np.ndarray:
    """int64 [examples, letters]: each example's length in each dimension of `letters`."""
    length = {specs[name].dims[1]: column.lengths for name, column in examples.items() if name != PARTS}
    return np.stack([length.get(letter, np.zeros(count(examples), np.int64)) for letter in letters], axis=1)


def fill(
    examples: Examples, row_of: np.ndarray, rows: int, specs: Mapping[str, ArraySpec], sizes: Mapping[str, int]
) -> Batch:
    """`rows` rows of a batch: the examples side by side, in order, zeros behind them; segment ids from 1, positions
    from 0. row_of: int [examples].

    Two examples of lengths 4 and 5 in a row of 10:

        encoder_input_tokens   7 8 5 1 | 8 4 9 3 1 | 0
        encoder_segment_ids    1 1 1 1 | 2 2 2 2 2 | 0
        encoder_positions      0 1 2 3 | 0 1 2 3 4 | 0
    """
    out = {name: np.zeros((rows, sizes[spec.dims[1]]), spec.dtype) for name, spec in specs.items()}
    if not examples:
        return out  # padding alone: a host may have no example of an evaluation's last group
    examples = dict(examples)
    parts = examples.pop(PARTS, None)
    order = np.argsort(row_of, kind="stable")
    sorted_rows = row_of[order]
    first = np.searchsorted(sorted_rows, sorted_rows)  # the first example in the row of each
    begins = {}
    for letter, column in {specs[name].dims[1]: column for name, column in examples.items()}.items():
        lengths = column.lengths[order]
        before = np.cumsum(lengths) - lengths
        begins[letter] = np.empty_like(before)
        begins[letter][order] = before - before[first]
        side = {"S": "encoder", "L": "decoder"}.get(letter)
        if f"{side}_segment_ids" in out:
            used = np.arange(sizes[letter]) < np.bincount(sorted_rows, lengths, minlength=rows)[:, None]
            if parts is not None and side == "encoder":
                each = ragged.take(parts, order)
                numbers, lengths = _numbered(np.repeat(sorted_rows, each.lengths)), each.values.astype(np.int64)
            else:
                numbers = _numbered(sorted_rows)
            out[f"{side}_segment_ids"][used] = np.repeat(numbers, lengths)
            out[f"{side}_positions"][used] = ragged.spread(np.zeros_like(lengths), lengths)
    for name, column in examples.items():
        if name in INDEX_FEATURES:
            column = Ragged(column.values + np.repeat(begins["S"], column.lengths), column.lengths)
        ragged.put(column, out[name], row_of, begins[specs[name].dims[1]])
    return out


def pack_rows(
    examples: Examples,
    specs: Mapping[str, ArraySpec],
    sizes: Mapping[str, int],
    pack: bool,
    shuffle: np.random.Generator | None = None,
) -> tuple[Batch, np.ndarray]:
    """(as many rows as the examples need, the row of each example, int64 [examples]).

    pack: several examples a row, else one. shuffle: puts the rows in random order.
    """
    row_of = np.arange(count(examples))
    if pack:
        row_of = assign(lengths_of(examples, specs, "".join(sizes)), np.array(list(sizes.values())))
    rows = int(row_of.max()) + 1
    if shuffle is not None:
        row_of = shuffle.permutation(rows)[row_of]
    return fill(examples, row_of, rows, specs, sizes), row_of


def _numbered(sorted_rows: np.ndarray) -> np.ndarray:
    """1, 2, … within each row, int32."""
    return (np.arange(1, len(sorted_rows) + 1) - np.searchsorted(sorted_rows, sorted_rows)).astype(np.int32)


def count(examples: Examples) -> int:
    """How many examples there are."""
    return len(next(iter(examples.values())))


def example(examples: Examples, index: int) -> dict[str, np.ndarray]:
    """One example: its values by feature."""
    return {name: column[index] for name, column in examples.items()}


def piece(examples: Examples, begin: int, end: int) -> Examples:
    """Examples `begin` to `end`, without a copy."""
    return {name: column.slice(begin, end) for name, column in examples.items()}


def concatenate(parts: Sequence[Examples]) -> Examples:
    """All parts' examples, one after the other."""
    return {name: ragged.concatenate([part[name] for part in parts]) for name in parts[0]}


def take(examples: Examples, indices: np.ndarray) -> Examples:
    """Examples by their numbers."""
    if len(indices) == count(examples) and (np.diff(indices, prepend=-1) == 1).all():
        return examples
    return {name: ragged.take(column, indices) for name, column in examples.items()}
