"""Ranks the matches of all queries of a split by their similarity to each query."""

from collections.abc import Sequence

import numpy as np

CHUNK = 1024  # queries whose similarities to all matches are in memory at a time


def rank(rows: Sequence[dict]) -> None:
    """Replaces each row's `embeddings`, (query, match), by its prediction: the rank of its match among all matches.

    Rows with the same target have the same match.
    """
    if not rows:
        return
    queries_ND, matches_ND = (np.array([row["embeddings"][side] for row in rows], np.float32) for side in (0, 1))
    _, texts_N = np.unique([row["target"] for row in rows], return_inverse=True)
    for row, number in zip(rows, ranks(queries_ND, matches_ND, texts_N), strict=True):
        del row["embeddings"]
        row["prediction"] = str(number)


def ranks(queries_ND: np.ndarray, matches_ND: np.ndarray, texts_N: np.ndarray) -> list[int]:
    """Returns the rank of match n for query n: 1 plus the number of other matches that are at least as similar to it.

    So embeddings that are all equal, or not finite, find nothing.
    queries_ND, matches_ND: float [N, D], of length 1.  texts_N: int [N], equal for matches with the same text.

    >>> ranks(np.eye(2), np.array([[0.6, 0.8], [0.8, 0.6]]), np.arange(2))
    [2, 2]
    """
    out: list[int] = []
    for begin in range(0, len(queries_ND), CHUNK):
        cosines_QN = queries_ND[begin : begin + CHUNK] @ matches_ND.T
        places_Q = begin + np.arange(len(cosines_QN))
        own_Q1 = cosines_QN[np.arange(len(cosines_QN)), places_Q][:, None]
        is_other_QN = texts_N[places_Q][:, None] != texts_N[None, :]
        is_worse_QN = cosines_QN < own_Q1 - 1e-6  # equal cosines differ by rounding
        out += (1 + (is_other_QN & ~is_worse_QN).sum(axis=1)).tolist()
    return out
