"""Self-supervised objectives on token ids, as pure functions with the random generator passed in."""

import math

import numpy as np

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
    length: int,
    rng: np.random.Generator,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
) -> np.ndarray:
    """bool [length], True on the tokens to hide: non-empty spans of noise and text in turn, text first.

    Source: random_spans_noise_mask of T5. Both kinds are cut into the same number of segments, uniformly at random
    among all ways to cut them. `random_roll` turns the mask by a random distance.
    """
    noise, spans = noise_counts(length, noise_density, mean_noise_span_length)
    if noise == 0:
        return np.zeros(length, bool)
    full = max(length, 2)
    lengths = np.empty(2 * spans, np.int64)
    lengths[0::2] = _random_segments(full - noise, spans, rng)
    lengths[1::2] = _random_segments(noise, spans, rng)
    mask = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    if random_roll:
        mask = np.roll(mask, int(rng.integers(full)))
    return mask[:length]


def _random_segments(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`total` cut into `parts` positive integers, each way equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def hide_spans(tokens: np.ndarray, mask: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Each run of True becomes one sentinel, counting up from sentinel 0 (noise_span_to_unique_sentinel of T5)."""
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    out = tokens.copy()
    count = int(begins.sum())
    if count:
        vocabulary.sentinel(count - 1)  # raises when there are not enough
        out[begins] = vocabulary.sentinel(0) - np.arange(count)
    return out[begins | ~mask]


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
    final_sentinel: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets) of T5's pre-training (Raffel et al. 2020, §3.1.4), EOS not yet appended.

    tokens `a b c d e` with `c d` hidden: inputs `a b <0> e`, targets `<0> c d`. The paper closes the targets with one
    more sentinel; the code that trained T5 does not. `final_sentinel` follows the paper.
    """
    mask = noise_mask(len(tokens), rng, noise_density, mean_noise_span_length, random_roll)
    inputs, targets = hide_spans(tokens, mask, vocabulary), hide_spans(tokens, ~mask, vocabulary)
    if final_sentinel and mask[-1]:  # after a roll the text may end unhidden: its sentinel closes the targets already
        kept_spans = int((~mask & np.concatenate([[True], mask[:-1]])).sum())
        targets = np.append(targets, np.int32(vocabulary.sentinel(kept_spans)))
    return inputs, targets


def mask_tokens(
    tokens: np.ndarray,
    maskable: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    rate: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masked language model (Devlin et al. 2019, §3.1): (corrupted tokens, selected positions, sorted).

    `rate` of the maskable positions, at least one, are selected and all count in the loss: 80% become [MASK], 10% a
    random id, 10% stay. maskable: bool like tokens; special tokens are never selected.
    """
    candidates = np.flatnonzero(maskable)
    if not len(candidates):
        return tokens.copy(), candidates
    count = max(1, round(rate * len(candidates)))
    positions = np.sort(rng.permutation(candidates)[:count])
    draw = rng.random(count)
    out = tokens.copy()
    out[positions[draw < 0.8]] = vocabulary.mask_id
    randomised = positions[(draw >= 0.8) & (draw < 0.9)]
    out[randomised] = rng.integers(3, vocabulary.size, len(randomised))
    return out, positions


def mlm_capacity(length: int, rate: float, examples: int) -> int:
    """Slots for selected positions in a row of `length` tokens holding up to `examples` examples: rounding up
    each example's share can add half a slot to it, and an example selects at least one."""
    return min(length, math.ceil(length * rate) + -(-examples // 2))


def chunks(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """Consecutive pieces of `length`; the last may be shorter, but not below 2 tokens."""
    return [c for c in (tokens[i : i + length] for i in range(0, len(tokens), length)) if len(c) >= 2]
