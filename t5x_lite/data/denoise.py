"""Turns token ids into inputs and targets by a self-supervised objective: one of the denoising objectives that Raffel
et al. 2020 compare (§3.3), or UL2's mixture. (BERT's masked language model is in masked_lm.py.)

The functions are pure, take the random generator as an argument, and process all texts of a window at once; the texts
may differ in length. From "Thank you for inviting me last week" the objectives can make these inputs (left) and targets
(right):

    span_corruption   Thank you <0> me last <1>               <0> for inviting <1> week
    iid_denoising     Thank you <0> me <1> week               <0> for inviting <1> last <2>
    mass              Thank you <0> <0> me <0> week           Thank you for inviting me last week
    drop_tokens       Thank you me week                       for inviting last
    deshuffle         me week you for last Thank inviting     Thank you for inviting me last week
    prefix_lm         Thank you for                           inviting me last week
    sequential        Thank you for inviting                  me last week
    full_lm                                                   Thank you for inviting me last week

A sentinel <k> stands for a run of tokens that is left out. span_corruption hides a fixed number of tokens in a fixed
number of spans. The last span is at the end of the text, unless random_roll moves the spans. iid_denoising, mass and
drop_tokens decide at random for each token. prefix_lm cuts the text at a random place. sequential (UL2's S-denoiser)
cuts off a fixed share at the end of the text, which becomes the targets.
"""

import bisect
import functools
import math
from collections.abc import Sequence

import numpy as np

from t5x_lite.data import ragged
from t5x_lite.data.denoiser import Denoiser
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError, DataError

MOST_SENTINELS = 1 << 13  # the most sentinels that `_sentinels` looks for in a vocabulary


def span_corruption_lengths(
    inputs_length: int, noise_density: float = 0.15, mean_noise_span_length: float = 3.0
) -> tuple[int, int]:
    """Returns (raw, targets). `raw` is the largest number of tokens from which span corruption makes at most
    `inputs_length` inputs; `targets` is the number of targets that it makes from them. Inputs and targets are counted
    with their EOS.

    Source: random_spans_helper of T5 (t5/data/preprocessors.py).

    >>> [span_corruption_lengths(n) for n in (128, 256, 512, 1024)]
    [(141, 29), (284, 58), (568, 114), (1137, 229)]
    """

    def lengths(raw: int) -> tuple[int, int]:
        noise, spans = noise_counts(raw, noise_density, mean_noise_span_length)
        return raw - noise + spans + 1, noise + spans + 1

    raw = inputs_length
    while raw > 2 and lengths(raw)[0] > inputs_length:  # a sentinel that replaces a single token saves no room
        raw -= 1
    while lengths(raw + 1)[0] <= inputs_length:
        raw += 1
    inputs, targets = lengths(raw)
    if noise_density == 0.5 and targets > inputs:  # T5 rounds down in this case, so that both halves are equal
        return raw - 1, targets - 1
    return raw, targets


def noise_counts(length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """Returns (number of tokens to hide in `length` tokens, number of spans in which to hide them).

    Both are rounded half to even in float32, as in T5's graph. For example, T5 hides 29 of 190 tokens at density 0.15,
    whereas float64 would give 28.5, rounded to 28. There are never more spans than hidden tokens or than kept tokens,
    so no span is empty.

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
    lengths: np.ndarray,
    rng: np.random.Generator,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
) -> np.ndarray:
    """Returns a mask, bool [sum of lengths], that is True on the tokens to hide. In each text, non-empty spans of kept
    and hidden tokens alternate, beginning with kept tokens.

    Source: random_spans_noise_mask of T5. Kept and hidden tokens are cut into the same number of spans; every way to
    cut them is equally likely.
    lengths: int64 [texts].
    random_roll: rotates each text's mask by a random distance.
    """
    if noise_density == 0:
        return np.zeros(lengths.sum(), bool)
    different, kind = np.unique(lengths, return_inverse=True)
    counts = np.array([noise_counts(n, noise_density, mean_noise_span_length) for n in different.tolist()], np.int64)
    noise, spans = counts.reshape(-1, 2)[kind].T
    full = np.maximum(lengths, 2)
    text_and_noise = _random_segments(np.concatenate([full - noise, noise]), np.tile(spans, 2), rng)
    segments = text_and_noise.reshape(2, -1).T.ravel()
    mask = Ragged(np.repeat(np.tile([False, True], len(segments) // 2), segments), full)
    if random_roll:
        place = ragged.spread(np.zeros_like(full), full) - np.repeat(rng.integers(full), full)
        mask = Ragged(mask.values[np.repeat(mask.starts, full) + place % np.repeat(full, full)], full)
    return ragged.cut(mask, lengths).values


def _random_segments(totals: np.ndarray, parts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Splits each total into `parts` positive integers and returns them all, int64 [sum of parts]. Every way to split a
    total is equally likely."""
    cuts = np.flatnonzero(_random_subsets(totals - 1, parts - 1, rng)) + 1
    cuts += np.repeat(np.arange(len(parts)), parts - 1)  # a total of n units has n − 1 places to cut
    return np.diff(np.insert(cuts, np.cumsum(parts - 1), np.cumsum(totals)), prepend=0)


def _random_subsets(sizes: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From the `sizes[i]` values of each run i, chooses `counts[i]` values. Returns which values are chosen, bool [sum
    of sizes]. Every choice is equally likely.

    This is Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance") on all runs at once. It takes as many
    vectorised steps as the largest count; shuffling would take one step per value.
    """
    order = np.argsort(-counts, kind="stable")  # so that the runs that take part in a step are the first ones
    begins, sizes, counts = (np.cumsum(sizes) - sizes)[order], sizes[order], counts[order]
    chosen = np.zeros(sizes.sum(), bool)
    most = int(counts[0]) if len(counts) else 0
    lasts = sizes - counts + np.arange(most)[:, None]
    draws = rng.integers(0, np.maximum(lasts, 0) + 1) + begins
    lasts += begins
    for at, last, taking_part in zip(draws, lasts, np.searchsorted(-counts, -np.arange(most)).tolist(), strict=True):
        at, last = at[:taking_part], last[:taking_part]
        chosen[np.where(chosen[at], last, at)] = True
    return chosen


def hide_spans(tokens: Ragged, mask: np.ndarray, vocabulary: Vocabulary) -> Ragged:
    """Replaces each run of masked tokens (where `mask` is True) by one sentinel. In each row, sentinels count up from
    sentinel 0 (noise_span_to_unique_sentinel of T5).

    mask: bool, of the shape of `tokens.values`.
    Raises DataError if a row needs more sentinels than the vocabulary has.
    """
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    firsts = tokens.starts[tokens.lengths > 0]
    begins[firsts] = mask[firsts]
    places = np.flatnonzero(begins)
    counts = np.bincount(np.searchsorted(tokens.ends, places, side="right"), minlength=len(tokens))
    out = tokens.values.copy()
    if len(places):
        vocabulary.sentinel(int(counts.max()) - 1)  # raises DataError if the vocabulary has too few
        out[places] = _sentinels(vocabulary)[ragged.spread(np.zeros_like(counts), counts)]
    return ragged.select(Ragged(out, tokens.lengths), begins | ~mask)


def span_corruption(
    tokens: Ragged,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
    final_sentinel: bool = False,
) -> tuple[Ragged, Ragged]:
    """Applies T5's pre-training objective (Raffel et al. 2020, §3.1.4) to each row and returns (inputs, targets),
    without EOS.

    If it hides `c d` in the tokens `a b c d e`, the inputs are `a b <0> e` and the targets are `<0> c d`. The paper
    ends the targets with one more sentinel; the code that trained T5 does not. `final_sentinel` follows the paper.
    Raises DataError if a row needs more sentinels than the vocabulary has.
    """
    mask = noise_mask(tokens.lengths, rng, noise_density, mean_noise_span_length, random_roll)
    inputs, targets = hide_spans(tokens, mask, vocabulary), hide_spans(tokens, ~mask, vocabulary)
    if final_sentinel:
        # After a roll, the last token of a text may be one that is kept. Then the targets already end with a sentinel.
        ends_hidden = mask[tokens.ends - 1] & (tokens.lengths > 0)
        used = targets.lengths - ragged.select(Ragged(mask, tokens.lengths), mask).lengths
        vocabulary.sentinel(int(used.max(initial=0)))
        final = _sentinels(vocabulary)[used[ends_hidden]]
        targets = ragged.join(targets, Ragged(final, ends_hidden.astype(np.int64)))
    return inputs, targets


UL2 = (
    Denoiser(noise_density=0.15, mean_noise_span_length=3.0, mode="[NLU]"),  # R: regular
    Denoiser(noise_density=0.15, mean_noise_span_length=8.0, mode="[NLU]"),
    Denoiser(noise_density=0.5, mean_noise_span_length=3.0, mode="[NLG]"),  # X: extreme
    Denoiser(noise_density=0.5, mean_noise_span_length=8.0, mode="[NLG]"),
    Denoiser(noise_density=0.15, mean_noise_span_length=64.0, mode="[NLG]"),
    Denoiser(noise_density=0.5, mean_noise_span_length=64.0, mode="[NLG]"),
    Denoiser("sequential", noise_density=0.25, mode="[S2S]"),  # S: sequential
)
"""The seven denoisers of UL2 (Tay et al. 2022, table 1) with their mode tokens, all equally frequent."""


def corrupt(
    tokens: Ragged, denoiser: Denoiser, rng: np.random.Generator, vocabulary: Vocabulary
) -> tuple[Ragged, Ragged]:
    """Applies a denoiser to each row of `tokens` and returns (inputs, targets), without EOS.

    Raises DataError if a row needs more sentinels than the vocabulary has.
    """
    if denoiser.kind == "span_corruption":
        inputs, targets = span_corruption(
            tokens,
            rng,
            vocabulary,
            denoiser.noise_density,
            denoiser.mean_noise_span_length,
            denoiser.random_roll,
            denoiser.final_sentinel,
        )
    elif denoiser.kind in ("iid_denoising", "mass", "drop_tokens"):
        mask = rng.random(len(tokens.values)) < denoiser.noise_density
        if denoiser.kind == "iid_denoising":
            inputs, targets = hide_spans(tokens, mask, vocabulary), hide_spans(tokens, ~mask, vocabulary)
        elif denoiser.kind == "mass":
            hidden = np.where(mask, vocabulary.sentinel(0), tokens.values).astype(np.int32)
            inputs, targets = Ragged(hidden, tokens.lengths), tokens
        else:
            inputs, targets = ragged.select(tokens, ~mask), ragged.select(tokens, mask)
    elif denoiser.kind == "deshuffle":
        rows = np.repeat(np.arange(len(tokens)), tokens.lengths)
        shuffled = tokens.values[np.lexsort((rng.random(len(rows)), rows))]
        inputs, targets = Ragged(shuffled, tokens.lengths), tokens
    else:
        first = _first_target(tokens.lengths, denoiser, rng)
        place = ragged.spread(np.zeros_like(tokens.lengths), tokens.lengths)
        is_target = place >= np.repeat(first, tokens.lengths)
        inputs, targets = ragged.select(tokens, ~is_target), ragged.select(tokens, is_target)
    if denoiser.mode:
        mode = vocabulary.encode([denoiser.mode])[0]
        inputs = ragged.join(ragged.of([mode] * len(inputs)), inputs)
    return inputs, targets


def _first_target(lengths: np.ndarray, denoiser: Denoiser, rng: np.random.Generator) -> np.ndarray:
    """Returns the index of the first target token of each text, int64 [rows], for objectives that cut a text in two."""
    if denoiser.kind == "full_lm":
        return np.zeros_like(lengths)
    if denoiser.kind == "prefix_lm":
        return rng.integers(1, np.maximum(lengths, 2))  # neither side is empty, as in T5's random_prefix_noise_mask
    return lengths - np.array([noise_counts(n, denoiser.noise_density, n)[0] for n in lengths.tolist()], np.int64)


KINDS = (
    "span_corruption",
    "iid_denoising",
    "mass",
    "drop_tokens",
    "deshuffle",
    "prefix_lm",
    "sequential",
    "full_lm",
)


def denoisers(objective: str, **settings) -> tuple[Denoiser, ...]:
    """Returns the denoisers that a config's objective names: one denoiser with `settings` for one of KINDS; UL2's seven
    for "ul2", which ignores `settings`.

    >>> denoisers("mass", noise_density=0.3) == (Denoiser("mass", noise_density=0.3),), len(denoisers("ul2"))
    (True, 7)
    """
    return UL2 if objective == "ul2" else (Denoiser(objective, **settings),)


def most_tokens(length: int, denoiser: Denoiser) -> tuple[int, int, int, int]:
    """Returns the largest numbers of tokens that a denoiser can make from `length` tokens.

    They are (inputs, targets, inputs plus targets, sentinels in the inputs or in the targets). The mode token and EOS
    are not counted.

    For span corruption without random_roll the numbers are exact. For objectives that decide at random for each token,
    they are six standard deviations above the mean.

    >>> most_tokens(568, Denoiser())
    (511, 113, 624, 28)
    >>> most_tokens(512, Denoiser("prefix_lm"))
    (511, 511, 512, 0)
    """
    density = denoiser.noise_density
    if denoiser.kind == "span_corruption":
        noise, spans = noise_counts(length, density, denoiser.mean_noise_span_length)
        kept_spans = max(spans, 1) + denoiser.final_sentinel + denoiser.random_roll
        inputs, targets = length - noise + spans + denoiser.random_roll, noise + kept_spans
        return inputs, targets, inputs + targets, kept_spans
    if denoiser.kind in ("iid_denoising", "drop_tokens"):
        noise = min(length, _six_deviations(length, density))
        if denoiser.kind == "drop_tokens":
            return length, noise, length, 0
        spans = min(noise, length // 2 + 1, _six_deviations(length, density * (1 - density))) + 1
        return length, noise + spans, length + 2 * spans, spans
    if denoiser.kind in ("mass", "deshuffle"):
        return length, length, 2 * length, int(denoiser.kind == "mass")
    if denoiser.kind == "prefix_lm":
        return length - 1, length - 1, length, 0
    noise = noise_counts(length, density, length)[0] if denoiser.kind == "sequential" else length
    return length - noise, noise, length, 0


def _six_deviations(tosses: int, probability: float) -> int:
    """Returns the mean plus six standard deviations of the number of heads in `tosses` independent tosses of a coin.
    About one draw in a billion exceeds it."""
    return math.ceil(tosses * probability + 6 * math.sqrt(tosses * probability * (1 - probability)))


@functools.lru_cache(maxsize=256)
def plan_lengths(
    denoisers: tuple[Denoiser, ...],
    vocabulary: Vocabulary,
    inputs_length: int,
    targets_length: int,
    total_length: int | None = None,
) -> tuple[int, ...]:
    """Returns, for each denoiser, the length in tokens of the longest text whose result fits.

    The result fits if the inputs (with mode and EOS) have at most `inputs_length` tokens, the targets (with EOS) at
    most `targets_length`, and both together at most `total_length` (for a decoder, whose row holds both). The
    vocabulary must also have a sentinel for every span. Raises ConfigError if not even two tokens fit.

    >>> from t5x_lite.data.vocabularies import ByteVocabulary
    >>> plan_lengths((Denoiser(),), ByteVocabulary(100), 512, 114)
    (568,)
    >>> plan_lengths(UL2, ByteVocabulary(200), 512, 512)
    (562, 582, 759, 900, 594, 996, 675)
    """
    limits = inputs_length, targets_length, total_length or inputs_length + targets_length, len(_sentinels(vocabulary))
    longest = limits[2] * 2 + 2

    def fits(denoiser: Denoiser, length: int) -> bool:
        mode = len(vocabulary.encode([denoiser.mode])[0]) if denoiser.mode else 0
        ends = (mode + 1, 1, mode + 1 + (total_length is None), 0)
        return all(n + end <= limit for n, end, limit in zip(most_tokens(length, denoiser), ends, limits, strict=True))

    planned = []
    for denoiser in denoisers:
        too_long = bisect.bisect_left(range(2, longest), True, key=lambda n, d=denoiser: not fits(d, n)) + 2
        if too_long == 2:
            raise ConfigError(
                f"data.length={inputs_length}, data.targets_length={targets_length}: too short for {denoiser.kind} "
                f"(density {denoiser.noise_density}); both must be at least 3 and hold a corrupted text "
                "(span_corruption needs 29 target tokens for 128 inputs, 114 for 512)"
            )
        planned.append(too_long - 1)
    return tuple(planned)


@functools.lru_cache(maxsize=16)
def _sentinels(vocabulary: Vocabulary) -> np.ndarray:
    """Returns the ids of all sentinels of a vocabulary, int32, from sentinel 0."""

    def is_missing(k: int) -> bool:
        try:
            vocabulary.sentinel(k)
        except DataError:
            return True
        return False

    count = bisect.bisect_left(range(MOST_SENTINELS), True, key=is_missing)
    return np.array([vocabulary.sentinel(k) for k in range(count)], np.int32)


def corrupt_each(
    texts: Ragged, which: np.ndarray, denoisers: Sequence[Denoiser], rng: np.random.Generator, vocabulary: Vocabulary
) -> tuple[Ragged, Ragged]:
    """Applies to each text the denoiser that `which` gives. Returns (inputs, targets), without EOS, in the order of the
    texts.

    which: int [texts], for each text an index into `denoisers`.
    Raises DataError if a text needs more sentinels than the vocabulary has.
    """
    if len(denoisers) == 1:
        return corrupt(texts, denoisers[0], rng, vocabulary)
    groups = [np.flatnonzero(which == n) for n in range(len(denoisers))]
    parts = [
        corrupt(ragged.take(texts, group), denoiser, rng, vocabulary)
        for group, denoiser in zip(groups, denoisers, strict=True)
        if len(group)
    ]
    if not parts:
        return texts, texts
    back = np.argsort(np.concatenate(groups))
    inputs, targets = (ragged.take(ragged.concatenate(side), back) for side in zip(*parts, strict=True))
    return inputs, targets
