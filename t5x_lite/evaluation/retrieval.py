"""Ranks the matches of all queries of a split by their similarity to each query."""

from collections.abc import Sequence

import numpy as np

CHUNK = 1024  # queries whose similarities to all matches are in memory at a time


def rank(rows: Sequence[dict]) -> None:
    """Replaces each row's `embeddings`, (query, match), by its prediction: the rank of its match among all matches.

    The rank is 1 plus the number of matches that are more similar to the query than its own. So a match that occurs
    several times is never outranked by a copy.
    """
    if not rows:
        return
    queries_ND, matches_ND = (np.stack([row["embeddings"][side] for row in rows]) for side in (0, 1))
    for row, number in zip(rows, ranks(queries_ND, matches_ND), strict=True):
        del row["embeddings"]
        row["prediction"] = str(number)


def ranks(queries_ND: np.ndarray, matches_ND: np.ndarray) -> list[int]:
    """Returns the rank of match n for query n, from 1. Both are float [N, D], of length 1.

    >>> ranks(np.eye(2), np.array([[0.6, 0.8], [0.8, 0.6]]))
    [2, 2]
    """
    out: list[int] = []
    for begin in range(0, len(queries_ND), CHUNK):
        cosines_QN = queries_ND[begin : begin + CHUNK] @ matches_ND.T
        own_Q = cosines_QN[np.arange(len(cosines_QN)), begin + np.arange(len(cosines_QN))]
        # Copies of the own match differ from it by rounding.
        out += (1 + (cosines_QN > own_Q[:, None] + 1e-6).sum(axis=1)).tolist()
    return out
