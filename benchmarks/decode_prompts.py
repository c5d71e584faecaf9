"""Makes the prompts for both sides of decode.py, and the checksum that compares their generated texts."""

import numpy as np
from shapes import Shape


def prompts(shape: Shape) -> np.ndarray:
    """Returns random prompts without special ids, int32 [rows, source_length]."""
    ids = np.random.default_rng(0).integers(3, shape.vocab_size, (shape.rows, shape.source_length))
    return ids.astype(np.int32)


def checksum(tokens: np.ndarray) -> float:
    """Returns a number that almost surely differs between different texts. Ignores the last token, which may be cut.

    tokens: int [rows, L].
    """
    tokens = np.asarray(tokens, np.int64)[:, :-1]
    return float((tokens * (1 + np.arange(tokens.size).reshape(tokens.shape) % 9973)).sum())
