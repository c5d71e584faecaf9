"""Holds rows of unequal length in one flat array. Texts have this form before they are packed.

Every function works on all rows at once and runs no Python code per row. So a million tokens per second are possible
even with short texts.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

VALUES_WORTH_A_SLICE = 64  # a slice takes about as long as gathering this many values one by one


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of unequal length. values: 1-D, the concatenated rows. lengths: int64 [rows]; they sum to len(values).

    >>> texts = of([np.array([7, 8, 5]), np.array([4])])
    >>> texts.values.tolist(), texts.lengths.tolist(), texts[1].tolist(), len(texts)
    ([7, 8, 5, 4], [3, 1], [4], 2)
    """

    values: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.ends[row] - self.lengths[row] : self.ends[row]]

    @functools.cached_property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        return self.ends - self.lengths

    def slice(self, begin: int, end: int) -> "Ragged":
        """Returns rows `begin` to `end` − 1, without a copy."""
        first = self.ends[begin - 1] if begin else 0
        last = self.ends[end - 1] if end else 0
        return Ragged(self.values[first:last], self.lengths[begin:end])


def of(rows: Sequence[np.ndarray], dtype: type = np.int32) -> Ragged:
    """Returns a Ragged whose rows are the given 1-D arrays."""
    values = np.concatenate([*rows, np.zeros(0, dtype)]).astype(dtype, copy=False)
    return Ragged(values, np.fromiter(map(len, rows), np.int64, len(rows)))


def block(array: np.ndarray) -> Ragged:
    """Returns a Ragged whose rows are those of a 2-D array [rows, width]."""
    return Ragged(array.ravel(), np.full(len(array), array.shape[1]))


def constant(value: int, rows: int) -> Ragged:
    """Returns `rows` rows of length 1, which hold `value`."""
    return Ragged(np.full(rows, value, np.int32), np.ones(rows, np.int64))


def singles(values: np.ndarray) -> Ragged:
    """Returns rows that hold one value each: row i holds `values[i]`. values: [rows]."""
    return Ragged(values, np.ones(len(values), np.int64))


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """Stacks the rows of all parts, one part below the other."""
    if len(parts) == 1:
        return parts[0]
    return Ragged(np.concatenate([p.values for p in parts]), np.concatenate([p.lengths for p in parts]))


def join(*parts: Ragged) -> Ragged:
    """Joins parts side by side: row i concatenates row i of every part.

    >>> join(of([np.array([7, 8]), np.array([5])]), constant(1, 2)).values.tolist()
    [7, 8, 1, 5, 1]
    """
    lengths = np.sum([part.lengths for part in parts], axis=0)
    begins = np.cumsum(lengths) - lengths
    out = np.empty(lengths.sum(), np.result_type(*(part.values for part in parts)))
    for part in parts:
        out[spread(begins, part.lengths)] = part.values
        begins = begins + part.lengths
    return Ragged(out, lengths)


def append(rows: Ragged, value: int) -> Ragged:
    """Appends `value` to every row."""
    return Ragged(np.insert(rows.values, rows.ends, value), rows.lengths + 1)


def take(rows: Ragged, indices: np.ndarray) -> Ragged:
    """Returns the rows at `indices` (int [rows of the result])."""
    lengths, starts = rows.lengths[indices], rows.starts[indices]
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1  # between two breaks rows are adjacent: one slice copies them
    if len(indices) == 0 or lengths.sum() < VALUES_WORTH_A_SLICE * (len(breaks) + 1):
        return Ragged(rows.values[spread(starts, lengths)], lengths)
    begins = starts[[0, *breaks]].tolist()
    ends = (starts + lengths)[[*(breaks - 1), -1]].tolist()
    return Ragged(np.concatenate([rows.values[a:b] for a, b in zip(begins, ends, strict=True)]), lengths)


def put(rows: Ragged, out: np.ndarray, row_of: np.ndarray, begins: np.ndarray) -> None:
    """Writes row i into row `row_of[i]` of `out`, from column `begins[i]` on.

    out: [out rows, width]; row_of, begins: int [rows].
    """
    if rows.lengths.sum() < VALUES_WORTH_A_SLICE * len(rows):
        out.reshape(-1)[spread(row_of * out.shape[1] + begins, rows.lengths)] = rows.values
        return
    places = zip(row_of.tolist(), begins.tolist(), rows.starts.tolist(), rows.lengths.tolist(), strict=True)
    for row, begin, first, length in places:
        out[row, begin : begin + length] = rows.values[first : first + length]


def select(rows: Ragged, kept: np.ndarray) -> Ragged:
    """Returns each row's values where `kept` (bool, shaped like `rows.values`) is True."""
    lengths, some = np.zeros(len(rows), np.int64), rows.lengths > 0
    if len(kept):
        lengths[some] = np.add.reduceat(kept.view(np.uint8), rows.starts[some], dtype=np.int32)
    return Ragged(rows.values[kept], lengths)


def cut(rows: Ragged, limits: np.ndarray | int) -> Ragged:
    """Returns at most the first `limits` values of each row. limits: int, or int [rows]."""
    lengths = np.minimum(rows.lengths, limits)
    if (lengths == rows.lengths).all():
        return rows
    return Ragged(rows.values[spread(rows.starts, lengths)], lengths)


def tail(rows: Ragged, limit: int) -> Ragged:
    """Returns at most the last `limit` values of each row."""
    lengths = np.minimum(rows.lengths, limit)
    return Ragged(rows.values[spread(rows.ends - lengths, lengths)], lengths)


def shift(rows: Ragged, first: int) -> Ragged:
    """Shifts each row right by one: it begins with `first` and loses its last value.

    >>> shift(of([np.array([3, 9, 1]), np.array([4, 1])]), 0).values.tolist()
    [0, 3, 9, 0, 4]
    """
    out = np.empty_like(rows.values)
    out[1:] = rows.values[:-1]
    out[rows.starts[rows.lengths > 0]] = first
    return Ragged(out, rows.lengths)


def spread(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the positions of all values: begin, begin + 1, …, begin + length − 1 for each row.

    begins, lengths: int [rows]; the result: int [sum of lengths].

    >>> spread(np.array([10, 5]), np.array([3, 2])).tolist()
    [10, 11, 12, 5, 6]
    """
    ends = np.cumsum(lengths)
    where = np.repeat(begins - ends + lengths, lengths)
    where += np.arange(len(where))
    return where
