"""Self-supervised objectives on token ids, as pure functions with the random generator passed in.

They act on all texts of a window at once, whatever their lengths. The objectives with inputs and targets are those
that Raffel et al. 2020 (§3.3) compare; of "Thank you for inviting me last week" they may make:

    span_corruption   Thank you <0> me last <1>               <0> for inviting <1> week
    iid_denoising     Thank you <0> me <1> week               <0> for inviting <1> last <2>
    mass              Thank you <0> <0> me <0> week           Thank you for inviting me last week
    drop_tokens       Thank you me week                       for inviting last
    deshuffle         me week you for last Thank inviting     Thank you for inviting me last week
    prefix_lm         Thank you for                           inviting me last week
    sequential        Thank you for inviting                  me last week
    full_lm                                                   Thank you for inviting me last week

Where a side leaves a run of tokens out, a sentinel stands in it. span_corruption hides so many tokens in so many spans,
the end of the text among them (random_roll moves them about); iid_denoising, mass and drop_tokens toss a coin for each
token. prefix_lm cuts anywhere, sequential (UL2's S-denoiser) where a fixed share of the text is left.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from t5x_lite.data import ragged
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import ConfigError, DataError

MOST_SENTINELS = 1 << 13  # looked for in a vocabulary


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
    lengths: np.ndarray,
    rng: np.random.Generator,
    noise_density: float = 0.15,
    mean_noise_span_length: float = 3.0,
    random_roll: bool = False,
) -> np.ndarray:
    """bool [sum of lengths], True on the tokens to hide in texts of these lengths: in each, non-empty spans of text
    and noise in turn, text first.

    Source: random_spans_noise_mask of T5. Both kinds are cut into the same number of segments, uniformly at random
    among all ways to cut them. `random_roll` turns each text's mask by a random distance.
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
    """int64 [sum of parts]: each total cut into so many positive integers, each way equally likely."""
    cuts = np.flatnonzero(_random_subsets(totals - 1, parts - 1, rng)) + 1
    cuts += np.repeat(np.arange(len(parts)), parts - 1)  # a total has one place to cut less than it has units
    return np.diff(np.insert(cuts, np.cumsum(parts - 1), np.cumsum(totals)), prepend=0)


def _random_subsets(sizes: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """bool [sum of sizes] with `counts` True among each `sizes`, each choice equally likely.

    Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance") on all of them at once: as many steps of a few
    instructions as the largest count, where shuffling would take one for each place.
    """
    order = np.argsort(-counts, kind="stable")  # those that take part in a step come first
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
    """Each run of True in a row becomes one sentinel, counting up from sentinel 0 (noise_span_to_unique_sentinel of
    T5). mask: bool like `tokens.values`."""
    begins = mask.copy()
    begins[1:] &= ~mask[:-1]
    firsts = tokens.starts[tokens.lengths > 0]
    begins[firsts] = mask[firsts]
    places = np.flatnonzero(begins)
    counts = np.bincount(np.searchsorted(tokens.ends, places, side="right"), minlength=len(tokens))
    out = tokens.values.copy()
    if len(places):
        vocabulary.sentinel(int(counts.max()) - 1)  # raises when there are not enough
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
    """(inputs, targets) of T5's pre-training (Raffel et al. 2020, §3.1.4) of each row of `tokens`, EOS not yet
    appended.

    tokens `a b c d e` with `c d` hidden: inputs `a b <0> e`, targets `<0> c d`. The paper closes the targets with one
    more sentinel; the code that trained T5 does not. `final_sentinel` follows the paper.
    """
    mask = noise_mask(tokens.lengths, rng, noise_density, mean_noise_span_length, random_roll)
    inputs, targets = hide_spans(tokens, mask, vocabulary), hide_spans(tokens, ~mask, vocabulary)
    if final_sentinel:
        # After a roll a text may end unhidden: its sentinel closes the targets already.
        ends_hidden = mask[tokens.ends - 1] & (tokens.lengths > 0)
        used = targets.lengths - ragged.select(Ragged(mask, tokens.lengths), mask).lengths
        vocabulary.sentinel(int(used.max(initial=0)))
        final = _sentinels(vocabulary)[used[ends_hidden]]
        targets = ragged.join(targets, Ragged(final, ends_hidden.astype(np.int64)))
    return inputs, targets


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One of the objectives above with its settings.

    mode: text that stands before the inputs and says what is asked for, UL2's mode token; "" for none.
    """

    kind: str = "span_corruption"
    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0  # span_corruption
    random_roll: bool = False  # span_corruption
    final_sentinel: bool = False  # span_corruption
    mode: str = ""


UL2 = (
    Denoiser(noise_density=0.15, mean_noise_span_length=3.0, mode="[NLU]"),  # R: regular
    Denoiser(noise_density=0.15, mean_noise_span_length=8.0, mode="[NLU]"),
    Denoiser(noise_density=0.5, mean_noise_span_length=3.0, mode="[NLG]"),  # X: extreme
    Denoiser(noise_density=0.5, mean_noise_span_length=8.0, mode="[NLG]"),
    Denoiser(noise_density=0.15, mean_noise_span_length=64.0, mode="[NLG]"),
    Denoiser(noise_density=0.5, mean_noise_span_length=64.0, mode="[NLG]"),
    Denoiser("sequential", noise_density=0.25, mode="[S2S]"),  # S: sequential
)
"""The seven denoisers of UL2 (Tay et al. 2022, table 1), each as frequent as the others, with its mode tokens."""


def corrupt(
    tokens: Ragged, denoiser: Denoiser, rng: np.random.Generator, vocabulary: Vocabulary
) -> tuple[Ragged, Ragged]:
    """(inputs, targets) of each row of `tokens`, EOS not yet appended."""
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
    """Where the targets begin in texts that are cut in two."""
    if denoiser.kind == "full_lm":
        return np.zeros_like(lengths)
    if denoiser.kind == "prefix_lm":
        return rng.integers(1, np.maximum(lengths, 2))  # neither side is empty: T5's random_prefix_noise_mask
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
    """What a config's objective means: one of `KINDS` with these settings, or "ul2", which has its own.

    >>> denoisers("mass", noise_density=0.3) == (Denoiser("mass", noise_density=0.3),), len(denoisers("ul2"))
    (True, 7)
    """
    return UL2 if objective == "ul2" else (Denoiser(objective, **settings),)


def most_tokens(length: int, denoiser: Denoiser) -> tuple[int, int, int, int]:
    """The most (inputs, targets, both together, sentinels on a side) that `length` tokens become, without mode and
    EOS. Exact for span corruption that is not rolled; for objectives that toss a coin for each token, six standard
    deviations above the mean.

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
    """So many of independent tosses that more come up once in a billion times."""
    return math.ceil(tosses * probability + 6 * math.sqrt(tosses * probability * (1 - probability)))


@functools.lru_cache(maxsize=256)
def plan_lengths(
    denoisers: tuple[Denoiser, ...],
    vocabulary: Vocabulary,
    inputs_length: int,
    targets_length: int,
    total_length: int | None = None,
) -> tuple[int, ...]:
    """How many tokens of text each denoiser gets, so that what they become fits: inputs with mode token and EOS in
    `inputs_length`, targets with EOS in `targets_length`, both in `total_length` (where they share a row), and every
    span has a sentinel. ConfigError where not even two tokens fit.

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

    found = []
    for denoiser in denoisers:
        too_long = bisect.bisect_left(range(2, longest), True, key=lambda n, d=denoiser: not fits(d, n)) + 2
        if too_long == 2:
            raise ConfigError(
                f"data.length={inputs_length}, data.targets_length={targets_length}: no room for {denoiser.kind} "
                f"(density {denoiser.noise_density}); both must be at least 3 and hold what it makes of a text (with "
                "span_corruption 29 targets go with 128 inputs, 114 with 512)"
            )
        found.append(too_long - 1)
    return tuple(found)


@functools.lru_cache(maxsize=16)
def _sentinels(vocabulary: Vocabulary) -> np.ndarray:
    """int32: all sentinels of a vocabulary, the one of the first span first."""

    def is_missing(k: int) -> bool:
        try:
            vocabulary.sentinel(k)
        except DataError:
            return True
        return False

    count = bisect.bisect_left(range(MOST_SENTINELS), True, key=is_missing)
    return np.array([vocabulary.sentinel(k) for k in range(count)], np.int32)


def mask_tokens(
    tokens: Ragged,
    maskable: np.ndarray,
    rng: np.random.Generator,
    vocabulary: Vocabulary,
    rate: float = 0.15,
    whole_words: bool = False,
    longest_ngram: int = 1,
) -> tuple[np.ndarray, Ragged]:
    """BERT's masked language model (Devlin et al. 2019, §3.1): (corrupted values, selected positions in each row).

    `rate` of a row's maskable positions, at least one, are selected and all count in the loss: 80% become [MASK], 10%
    a random id, 10% stay. maskable: bool like `tokens.values`; special tokens are never selected.
    whole_words: a word is selected with all its tokens or not at all, so fewer where none fits in what is left.
    longest_ngram: so many words (or tokens) in a row are selected together, n of them with a chance of 1/n (Lan et
    al. 2020, §3.1, has 3).
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
    """The number of the unit that each candidate belongs to: what is selected together, counted from 0."""
    apart = np.diff(candidates, prepend=-2) > 1  # another row, or a special token between
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
    """bool: which units fill up the room of their rows, taken in random order, and passed over where they are larger
    than what is left."""
    order = np.lexsort((rng.random(len(sizes)), rows))
    chosen = np.zeros(len(sizes), bool)
    left = room.copy()
    while len(order := order[sizes[order] <= left[rows[order]]]):
        total = np.cumsum(sizes[order])
        in_row = np.searchsorted(rows[order], rows[order])  # the first unit of each one's row
        fits = total - total[in_row] + sizes[order[in_row]] <= left[rows[order]]
        chosen[order[fits]] = True
        left -= np.bincount(rows[order[fits]], sizes[order[fits]], minlength=len(room)).astype(np.int64)
        order = order[~fits]
    return chosen


@functools.lru_cache(maxsize=4)
def ordinary_ids(vocabulary: Vocabulary) -> np.ndarray:
    """All ids but those with a role ([CLS], [SEP], [MASK], padding, the end, the unknown): what a text may hold."""
    roles = [getattr(vocabulary, f"{role}_id") for role in ("pad", "eos", "unk", "cls", "sep", "mask")]
    return np.setdiff1d(np.arange(vocabulary.size, dtype=np.int32), roles)


def mlm_capacity(length: int, rate: float, examples: int) -> int:
    """Slots for selected positions in a row of `length` tokens holding up to `examples` examples: rounding up
    each example's share can add half a slot to it, and an example selects at least one."""
    return min(length, math.ceil(length * rate) + -(-examples // 2))


def chunks(tokens: np.ndarray, lengths: Sequence[int], rng: np.random.Generator) -> tuple[Ragged, np.ndarray]:
    """Consecutive pieces of the `lengths`, and which of them each has: all equally often, in random order. The last
    may be shorter, but not below 2 tokens; and at most a lone token is lost.

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


def corrupt_each(
    texts: Ragged, which: np.ndarray, denoisers: Sequence[Denoiser], rng: np.random.Generator, vocabulary: Vocabulary
) -> tuple[Ragged, Ragged]:
    """(inputs, targets) of every text, by the denoiser of its number. which: int [texts]."""
    if len(denoisers) == 1:
        return corrupt(texts, denoisers[0], rng, vocabulary)
    groups = [np.flatnonzero(which == n) for n in range(len(denoisers))]
    done = [
        corrupt(ragged.take(texts, group), denoiser, rng, vocabulary)
        for group, denoiser in zip(groups, denoisers, strict=True)
        if len(group)
    ]
    if not done:
        return texts, texts
    back = np.argsort(np.concatenate(groups))
    inputs, targets = (ragged.take(ragged.concatenate(side), back) for side in zip(*done, strict=True))
    return inputs, targets
