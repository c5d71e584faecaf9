"""Packing: several examples in one row, by their lengths alone.

An example is a dict of 1-D arrays, the features of a batch without segment ids and positions; a row gets those
here. Features that share a dimension letter (t5x_lite/batch.py) have the same length in an example. An unpacked
row is a packed one with a single example: there is one code path.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from t5x_lite.batch import ArraySpec

Example = dict[str, np.ndarray]

INDEX_FEATURES = ("mlm_positions", "pooled_positions")  # point into the row, so they move with their example


def assign(lengths: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
    """Which examples share a row: best fit, in the order given.

    lengths: int [examples, dimensions]; capacity: int [dimensions]. Each example goes to the open row that it
    leaves the least room in (the earliest of equals), else to a new one. Rows come in the order of their first
    example.

    >>> assign(np.array([[5], [6], [4], [3]]), np.array([10]))
    [[0, 3], [1, 2]]
    """
    assert (lengths <= capacity).all(), f"an example of {lengths.max(axis=0)} in rows of {capacity}"
    room = np.empty((len(lengths), len(capacity)), np.int64)
    rows: list[list[int]] = []
    for index, need in enumerate(lengths):
        left = room[: len(rows)] - need
        fits = (left >= 0).all(axis=1)
        if fits.any():
            # Relative to the capacity: the fullest dimension decides which row is nearly full.
            slack = np.where(fits, (left / capacity).min(axis=1), np.inf)
            row = int(slack.argmin())
            rows[row].append(index)
            room[row] -= need
        else:
            room[len(rows)] = capacity - need
            rows.append([index])
    return rows


def example_lengths(example: Example, specs: Mapping[str, ArraySpec], letters: str) -> list[int]:
    """The example's length in each dimension of `letters`."""
    length = {spec.dims[1]: len(example[name]) for name, spec in specs.items() if name in example}
    return [length.get(letter, 0) for letter in letters]


def row(examples: Sequence[Example], specs: Mapping[str, ArraySpec], sizes: Mapping[str, int]) -> Example:
    """One row of a batch: the examples side by side, zeros behind them, segment ids from 1, positions from 0.

    Two examples of lengths 4 and 5 in a row of 10:

        encoder_input_tokens   7 8 5 1 | 8 4 9 3 1 | 0
        encoder_segment_ids    1 1 1 1 | 2 2 2 2 2 | 0
        encoder_positions      0 1 2 3 | 0 1 2 3 4 | 0
    """
    out = {name: np.zeros(sizes[spec.dims[1]], spec.dtype) for name, spec in specs.items()}
    filled = dict.fromkeys(sizes, 0)
    for number, example in enumerate(examples, 1):
        length = {}
        for name, values in example.items():
            letter = specs[name].dims[1]
            length[letter] = len(values)
            begin = filled[letter]
            offset = filled["S"] if name in INDEX_FEATURES else 0
            out[name][begin : begin + len(values)] = values + offset if offset else values
        for side, letter in (("encoder", "S"), ("decoder", "L")):
            if f"{side}_segment_ids" in out and letter in length:
                where = slice(filled[letter], filled[letter] + length[letter])
                out[f"{side}_segment_ids"][where] = number
                out[f"{side}_positions"][where] = np.arange(length[letter])
        for letter, n in length.items():
            filled[letter] += n
    return out


def stack(rows: Sequence[Example], batch_rows: int) -> Example:
    """Rows to a batch; missing rows at the end are all padding."""
    out = {}
    for name, first in rows[0].items():
        out[name] = np.zeros((batch_rows, *first.shape), first.dtype)
        for i, r in enumerate(rows):
            out[name][i] = r[name]
    return out
