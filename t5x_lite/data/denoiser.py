"""Defines the settings of a denoiser, and cuts corpora into the pieces that denoisers work on (denoise.py)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5x_lite.data.ragged import Ragged


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """Holds the settings of a denoiser: its kind (one of KINDS) and what the kind needs.

    mode: a text that precedes the inputs and names the kind of denoising (UL2's mode token); "" for none.
    """

    kind: str = "span_corruption"
    noise_density: float = 0.15  # share of the tokens
    mean_noise_span_length: float = 3.0  # tokens; span_corruption only
    random_roll: bool = False  # span_corruption only
    final_sentinel: bool = False  # span_corruption only
    mode: str = ""


def chunks(tokens: np.ndarray, lengths: Sequence[int], rng: np.random.Generator) -> tuple[Ragged, np.ndarray]:
    """Cuts `tokens` into consecutive pieces. Returns (pieces, int64 [pieces]: the index in `lengths` of the length that
    was drawn for each piece).

    For each piece, one of `lengths` is drawn at random; all are equally likely. The last piece may be shorter, but has
    at least 2 tokens: if a single token is left over, it is dropped.
    tokens: int [tokens].

    >>> pieces, which = chunks(np.arange(11), [4], np.random.default_rng(0))
    >>> pieces.lengths.tolist(), which.tolist()
    ([4, 4, 3], [0, 0, 0])
    """
    most = -(-len(tokens) // min(lengths))
    which = np.zeros(most, np.int64) if len(lengths) == 1 else rng.integers(len(lengths), size=most)
    ends = np.minimum(np.cumsum(np.asarray(lengths)[which]), len(tokens))
    sizes = np.diff(ends, prepend=0)
    kept = sizes >= 2
    return Ragged(tokens[: sizes[kept].sum()], sizes[kept]), which[kept]
