"""BERT's masked language model on token ids: selects the tokens to predict and replaces them.

The functions are pure, take the random generator as an argument, and process all rows of a window at once.
"""

import functools
import math

import numpy as np

from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabulary import Vocabulary


def mask_tokens(
    tokens: Ragged,
    maskable: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    rate: float = 0.15,
    whole_words: bool = False,
    longest_ngram: int = 1,
) -> tuple[np.ndarray, Ragged]:
    """Masks tokens as BERT does (Devlin et al. 2019, §3.1) and returns (corrupted values, selected positions of each
    row).

    It selects the share `rate` of each row's maskable positions, but at least one. Of the selected positions, 80%
    become [MASK], 10% become a random id, and 10% keep their id. All of them count in the loss.
    maskable: bool, of the shape of `tokens.values`; False on special tokens, which are never selected.
    whole_words: selects all tokens of a word or none. If no remaining word fits in the rest of the share, the row has
        fewer selected positions.
    longest_ngram: selects up to this many consecutive words (or tokens) together; the probability of n is proportional
        to 1/n (Lan et al. 2020, §3.1, uses 3).
    """
    rows = np.repeat(np.arange(len(tokens)), tokens.lengths)
    available = np.bincount(rows[maskable], minlength=len(tokens))
    wanted = np.where(available > 0, np.maximum(1, np.rint(rate * available).astype(np.int64)), 0)
    candidates = np.flatnonzero(maskable)
    unit = _units(tokens, rows, candidates, rng, vocabulary, whole_words, longest_ngram)
    sizes = np.bincount(unit)
    unit_rows = rows[candidates[np.cumsum(sizes) - sizes]] if len(sizes) else np.zeros(0, np.int64)
    chosen = _choose(sizes, unit_rows, wanted, rng)
    selected = candidates[chosen[unit]]
    draw = rng.random(len(selected))
    out = tokens.values.copy()
    out[selected[draw < 0.8]] = vocabulary.mask_id
    randomised = selected[(draw >= 0.8) & (draw < 0.9)]
    ordinary = ordinary_ids(vocabulary)
    out[randomised] = ordinary[rng.integers(len(ordinary), size=len(randomised))]
    counts = np.bincount(rows[selected], minlength=len(tokens))
    return out, Ragged(selected - np.repeat(tokens.starts, counts), counts)


def _units(
    tokens: Ragged,
    rows: np.ndarray,
    candidates: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    whole_words: bool,
    longest_ngram: int,
) -> np.ndarray:
    """Groups candidates into units (tokens, words or n-grams); the candidates of a unit are selected together. Returns
    the number of each candidate's unit, from 0, int64 [candidates]."""
    apart = np.diff(candidates, prepend=-2) > 1  # a special token lies between, or a new row begins
    apart |= np.diff(rows[candidates], prepend=-1) > 0
    begins = apart | vocabulary.word_starts[tokens.values[candidates]] if whole_words else np.ones_like(apart)
    if longest_ngram > 1:
        lengths = np.arange(1, longest_ngram + 1)
        words = np.cumsum(begins) - 1
        firsts = np.zeros(begins.sum(), bool)
        drawn = rng.choice(lengths, size=len(firsts), p=1 / lengths / (1 / lengths).sum())
        ends = np.cumsum(drawn)
        firsts[np.concatenate([[0], ends[ends < len(firsts)]])[: len(firsts)]] = True
        begins &= firsts[words] | apart
    return np.cumsum(begins) - 1


def _choose(sizes: np.ndarray, rows: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns which units are selected, bool [units]. Each row takes its units in random order and skips those that are
    larger than its remaining room.

    sizes: int64 [units], the number of candidates in each unit.
    rows: int64 [units], the row of each unit.
    room: int64 [rows], the number of candidates to select in each row.
    """
    order = np.lexsort((rng.random(len(sizes)), rows))
    chosen = np.zeros(len(sizes), bool)
    left = room.copy()
    while len(order := order[sizes[order] <= left[rows[order]]]):
        total = np.cumsum(sizes[order])
        in_row = np.searchsorted(rows[order], rows[order])  # for each unit, the first unit of its row
        fits = total - total[in_row] + sizes[order[in_row]] <= left[rows[order]]
        chosen[order[fits]] = True
        left -= np.bincount(rows[order[fits]], sizes[order[fits]], minlength=len(room)).astype(np.int64)
        order = order[~fits]
    return chosen


@functools.lru_cache(maxsize=4)
def ordinary_ids(vocabulary: Vocabulary) -> np.ndarray:
    """Returns the ids that a text may hold, int32: all ids except [CLS], [SEP], [MASK], pad, eos and unk."""
    roles = [getattr(vocabulary, f"{role}_id") for role in ("pad", "eos", "unk", "cls", "sep", "mask")]
    return np.setdiff1d(np.arange(vocabulary.size, dtype=np.int32), roles)


def mlm_capacity(length: int, rate: float, examples: int) -> int:
    """Returns the number of slots for selected positions in a row of `length` tokens that holds up to `examples`
    examples.

    Rounding an example's share can add half a slot to it, and every example selects at least one position.
    """
    return min(length, math.ceil(length * rate) + -(-examples // 2))
