"""Self-supervised objectives on token ids, as pure functions with the random generator passed in."""

import math
from collections.abc import Callable

import numpy as np

from t5x_lite.data import ragged
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabularies import Vocabulary


def span_corruption_lengths(
    inputs_length: int, noise_density: float = 0.15, mean_noise_span_length: float = 3.0
) -> tuple[int, int]:
    """(raw tokens, targets length) such that corrupted raw text fills `inputs_length` exactly, EOS included.

    Source: random_spans_helper of T5 (t5/data/preprocessors.py).

    >>> [span_corruption_lengths(n) for n in (128, 256, 512, 1024)]
    [(141, 29), (284, 58), (568, 114), (1137, 229)]
    """

    def lengths(raw: int) -> tuple[int, int]:
        noise, spans = noise_counts(raw, noise_density, mean_noise_span_length)
        return raw - noise + spans + 1, noise + spans + 1

    raw = inputs_length
    while raw > 2 and lengths(raw)[0] > inputs_length:  # spans of one token: their sentinels save nothing
        raw -= 1
    while lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    inputs, targets = lengths(raw)
    if noise_density == 0.5 and targets > inputs:  # equal halves; T5 rounds this one case down
        return raw - 1, targets - 1
    return raw, targets


def noise_counts(length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """(tokens, spans) to hide in `length` tokens.

    Rounded half to even, and in float32, as the original does in its graph: of 190 tokens at 0.15 it hides 29, where
    float64 has 28.5 and gives 28. Hidden and kept tokens must each suffice for one token in every span.

    >>> noise_counts(568, 0.15, 3.0), noise_counts(190, 0.15, 3.0)
    ((85, 28), (29, 10))
    """
    if noise_density == 0:
        return 0, 0
    length = max(length, 2)
    noise = min(max(int(np.round(np.float32(length) * np.float32(noise_density))), 1), length - 1)
    spans = int(np.round(np.float32(noise) / np.float32(mean_noise_span_length)))
    return noise, min(max(spans, 1), noise, length - noise)


def noise_mask(
    rows: int,
    length: int,
    rng: np.random.Generator,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
) -> np.ndarray:
    """bool [rows, length], True on the tokens to hide: non-empty spans of noise and text in turn, text first.

    Source: random_spans_noise_mask of T5. Both kinds are cut into the same number of segments, uniformly at random
    among all ways to cut them. `random_roll` turns each row by a random distance.
    """
    noise, spans = noise_counts(length, noise_density, mean_noise_span_length)
    if noise == 0:
        return np.zeros((rows, length), bool)
    full = max(length, 2)
    lengths = np.empty((rows, 2 * spans), np.int64)
    lengths[:, 0::2] = _random_segments(rows, full - noise, spans, rng)
    lengths[:, 1::2] = _random_segments(rows, noise, spans, rng)
    mask = np.repeat(np.tile([False, True], rows * spans), lengths.ravel()).reshape(rows, full)
    if random_roll:
        turned = (np.arange(full) - rng.integers(full, size=(rows, 1))) % full
        mask = np.take_along_axis(mask, turned, axis=1)
    return mask[:, :length]


def _random_segments(rows: int, total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [rows, parts]: `total` cut into `parts` positive integers, each way equally likely."""
    cuts = np.flatnonzero(_random_subsets(rows, total - 1, parts - 1, rng)).reshape(rows, parts - 1)
    cuts -= np.arange(rows)[:, None] * (total - 1) - 1
    return np.diff(cuts, axis=1, prepend=0, append=total)


def _random_subsets(rows: int, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """bool [rows, size] with `count` True in each row, each choice equally likely.

    Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance") on all rows at once: `count` steps of a few
    instructions a row, where shuffling would take one for each of the `size` places.
    """
    chosen = np.zeros(rows * size, bool)
    begins = np.arange(rows) * size
    lasts = np.arange(size - count, size)
    draws = rng.integers(0, lasts[:, None] + 1, (count, rows))
    for last, draw in zip(lasts.tolist(), draws, strict=True):
        at = begins + draw
        chosen[np.where(chosen[at], begins + last, at)] = True
    return chosen.reshape(rows, size)


def hide_spans(tokens: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> Ragged:
    """Each run of True in a row becomes one sentinel, counting up from sentinel 0 (noise_span_to_unique_sentinel of
    T5). tokens, mask: [rows, length]."""
    begins = mask.copy()
    begins[:, 1:] &= ~mask[:, :-1]
    places = np.flatnonzero(begins)
    counts = np.bincount(places // tokens.shape[1], minlength=len(tokens))
    out = tokens.copy()
    if len(places):
        vocabulary.sentinel(int(counts.max()) - 1)  # raises when there are not enough
        out.ravel()[places] = vocabulary.sentinel(0) - ragged.spread(np.zeros_like(counts), counts)
    kept = begins | ~mask
    return Ragged(out[kept], kept.sum(axis=1))


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
    final_sentinel: bool = False,
) -> tuple[Ragged, Ragged]:
    """(inputs, targets) of T5's pre-training (Raffel et al. 2020, §3.1.4) of the rows of `tokens`, EOS not yet
    appended.

    tokens `a b c d e` with `c d` hidden: inputs `a b <0> e`, targets `<0> c d`. The paper closes the targets with one
    more sentinel; the code that trained T5 does not. `final_sentinel` follows the paper.
    """
    rows, length = tokens.shape
    mask = noise_mask(rows, length, rng, noise_density, mean_noise_span_length, random_roll)
    inputs, targets = hide_spans(tokens, mask, vocabulary), hide_spans(tokens, ~mask, vocabulary)
    if final_sentinel:
        # After a roll a text may end unhidden: its sentinel closes the targets already.
        kept_spans = (~mask & np.concatenate([np.ones((rows, 1), bool), mask[:, :-1]], axis=1)).sum(axis=1)
        vocabulary.sentinel(int(kept_spans.max()))
        final = Ragged((vocabulary.sentinel(0) - kept_spans)[mask[:, -1]].astype(np.int32), mask[:, -1].astype(int))
        targets = ragged.join(targets, final)
    return inputs, targets


def mask_tokens(
    tokens: Ragged,
    maskable: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    rate: float = 0.15,
) -> tuple[np.ndarray, Ragged]:
    """BERT's masked language model (Devlin et al. 2019, §3.1): (corrupted values, selected positions in each row).

    `rate` of a row's maskable positions, at least one, are selected and all count in the loss: 80% become [MASK], 10%
    a random id, 10% stay. maskable: bool like `tokens.values`; special tokens are never selected.
    """
    rows = np.repeat(np.arange(len(tokens)), tokens.lengths)
    available = np.bincount(rows[maskable], minlength=len(tokens))
    wanted = np.where(available > 0, np.maximum(1, np.rint(rate * available).astype(np.int64)), 0)
    candidates = np.flatnonzero(maskable)
    shuffled = candidates[np.lexsort((rng.random(len(candidates)), rows[candidates]))]
    rank = ragged.spread(np.zeros_like(available), available)
    selected = np.sort(shuffled[rank < np.repeat(wanted, available)])
    draw = rng.random(len(selected))
    out = tokens.values.copy()
    out[selected[draw < 0.8]] = vocabulary.mask_id
    randomised = selected[(draw >= 0.8) & (draw < 0.9)]
    out[randomised] = rng.integers(3, vocabulary.size, len(randomised))
    return out, Ragged(selected - np.repeat(tokens.starts, wanted), wanted)


def mlm_capacity(length: int, rate: float, examples: int) -> int:
    """Slots for selected positions in a row of `length` tokens holding up to `examples` examples: rounding up
    each example's share can add half a slot to it, and an example selects at least one."""
    return min(length, math.ceil(length * rate) + -(-examples // 2))


def chunks(tokens: np.ndarray, length: int) -> Ragged:
    """Consecutive pieces of `length`; the last may be shorter, but not below 2 tokens."""
    full, rest = divmod(len(tokens), length)
    lengths = np.full(full + (rest >= 2), length)
    if rest >= 2:
        lengths[-1] = rest
    return Ragged(tokens[: lengths.sum()], lengths)


def by_length(texts: Ragged, objective: Callable[[np.ndarray], tuple[Ragged, Ragged]]) -> tuple[Ragged, Ragged]:
    """(inputs, targets) of every text, with `objective` applied to all texts of one length at once, as a block
    [texts, length]."""
    groups = [np.flatnonzero(texts.lengths == n) for n in np.unique(texts.lengths)[::-1]]
    if not groups:
        return texts, texts
    done = [objective(ragged.take(texts, g).values.reshape(len(g), -1)) for g in groups]
    back = np.argsort(np.concatenate(groups))
    inputs, targets = (ragged.take(ragged.concatenate(side), back) for side in zip(*done, strict=True))
    return inputs, targets
