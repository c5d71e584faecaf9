"""The laws of the self-supervised objectives, over random lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import ragged
from t5x_lite.data.denoise import chunks, hide_spans, mask_tokens, noise_mask, span_corruption, span_corruption_lengths
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import DataError

VOCABULARY = ByteVocabulary(extra_ids=600)
lengths = st.integers(1, 1500)
densities = st.sampled_from([0.1, 0.15, 0.3, 0.5, 0.8])
means = st.sampled_from([1.0, 2.0, 3.0, 8.0, 20.0])
seeds = st.integers(0, 2**32)


def runs(mask: np.ndarray) -> list[tuple[bool, int]]:
    """The values of a mask and how long each lasts."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    return [(bool(part[0]), len(part)) for part in np.split(mask, edges)]


def expected_counts(length: int, density: float, mean: float) -> tuple[int, int]:
    """t5/data/preprocessors.py, random_spans_noise_mask, in its float32."""
    noise = int(np.clip(np.rint(np.float32(length) * np.float32(density)), 1, length - 1))
    return noise, int(max(np.rint(np.float32(noise) / np.float32(mean)), 1))


@given(st.integers(2, 1500), densities, means, seeds)
def test_noise_mask_law(length, density, mean, seed):
    lengths_of_three = np.array([length, 7, length])
    whole = Ragged(noise_mask(lengths_of_three, np.random.default_rng(seed), density, mean), lengths_of_three)
    masks = np.stack([whole[0], whole[2]])
    noise, spans = expected_counts(length, density, mean)
    spans = min(spans, length - noise)
    assert masks.dtype == bool and masks.shape == (2, length) and (masks.sum(axis=1) == noise).all()
    for mask in masks:
        kinds = [kind for kind, _ in runs(mask)]
        assert kinds == [False, True] * spans  # text first, noise last, as many of one as of the other


def test_noise_mask_edges():
    rng = np.random.default_rng(0)
    assert noise_mask(np.array([1]), rng).tolist() == [False]  # two tokens' mask, cut to one
    assert noise_mask(np.array([2, 1, 2]), rng).tolist() == [False, True, False, False, True]
    assert not noise_mask(np.array([50, 3]), rng, noise_density=0).any()
    assert not len(noise_mask(np.zeros(0, int), rng))
    assert noise_mask(np.array([190]), rng).sum() == 29  # half to even in float32, as the original rounds


def test_every_way_to_cut_is_equally_likely():
    """10 tokens, 4 hidden in 2 spans: 5 ways to cut the text, 3 to cut the noise."""
    rng = np.random.default_rng(1)
    counts: dict[tuple, int] = {}
    for mask in noise_mask(np.full(6000, 10), rng, 0.4, 2.0).reshape(6000, 10):
        counts[tuple(mask)] = counts.get(tuple(mask), 0) + 1
    assert len(counts) == 15
    chi_square = sum((n - 400) ** 2 / 400 for n in counts.values())
    assert chi_square < 36.1  # 14 degrees of freedom, p = 0.001


@given(st.integers(2, 400), seeds)
def test_random_roll_turns_the_same_mask(length, seed):
    four = np.full(4, length)
    plain = noise_mask(four, np.random.default_rng(seed))
    rolled = noise_mask(four, np.random.default_rng(seed), random_roll=True)
    for a, b in zip(plain.reshape(4, length), rolled.reshape(4, length), strict=True):
        assert any((np.roll(a, k) == b).all() for k in range(length))


@settings(max_examples=60)
@given(st.integers(2, 600), densities, means, seeds, st.booleans(), st.booleans())
def test_inputs_and_targets_put_the_text_together_again(length, density, mean, seed, roll, final):
    rng = np.random.default_rng(seed)
    texts = ragged.of([rng.integers(3, 259, n) for n in (length, 5, length + 1)])
    corrupted = span_corruption(texts, rng, VOCABULARY, density, mean, roll, final)
    first = VOCABULARY.sentinel(0)
    is_sentinel = lambda ids: ids > 258  # noqa: E731
    for row in range(3):
        tokens, inputs, targets = texts[row], corrupted[0][row], corrupted[1][row]
        for side in (inputs, targets):
            marks = side[is_sentinel(side)]
            assert marks.tolist() == [first - k for k in range(len(marks))]  # counting from the left
        # Unrolled, the text starts the inputs and targets start with sentinel 0: put each hidden span back.
        if not roll:
            hidden = np.split(targets, np.flatnonzero(is_sentinel(targets)))[1:]
            spans = {int(span[0]): span[1:] for span in hidden}
            whole = np.concatenate([spans[int(i)] if i > 258 else np.array([i]) for i in inputs])
            assert whole.tolist() == tokens.tolist()
            assert len(targets[is_sentinel(targets)]) - len(inputs[is_sentinel(inputs)]) == int(final)
        assert sorted([*inputs[~is_sentinel(inputs)], *targets[~is_sentinel(targets)]]) == sorted(tokens)
        if final:
            assert is_sentinel(targets[-1:])[0] and not is_sentinel(targets[-2:-1])[0]


def test_sentinels_stand_in_both_sides():
    tokens = ragged.of([np.array([10, 11, 12, 13, 14]), np.array([20, 21])])
    mask = np.array([0, 0, 1, 1, 1, 1, 0], bool)
    vocabulary = ByteVocabulary()
    hidden, kept = hide_spans(tokens, mask, vocabulary), hide_spans(tokens, ~mask, vocabulary)
    assert hidden[0].tolist() == [10, 11, 258] and hidden[1].tolist() == [258, 21]  # a run ends with its text
    assert kept[0].tolist() == [258, 12, 13, 14] and kept[1].tolist() == [20, 258]


def test_too_many_spans_for_the_sentinels():
    with pytest.raises(DataError, match=r"span 20 .* more sentinels than the vocabulary's 10; shorten"):
        span_corruption(ragged.of([np.arange(3, 403)]), np.random.default_rng(0), ByteVocabulary(extra_ids=10))


@pytest.mark.parametrize(
    ("inputs_length", "mean", "raw", "targets_length"),
    [(128, 3.0, 141, 29), (256, 3.0, 284, 58), (512, 3.0, 568, 114), (1024, 3.0, 1137, 229), (1024, 20.0, 1193, 189)],
)
def test_span_corruption_lengths_are_t5s(inputs_length, mean, raw, targets_length):
    assert span_corruption_lengths(inputs_length, 0.15, mean) == (raw, targets_length)
    tokens = ragged.of([np.full(raw, 5)])
    inputs, targets = span_corruption(tokens, np.random.default_rng(0), VOCABULARY, 0.15, mean)
    assert (len(inputs[0]) + 1, len(targets[0]) + 1) == (inputs_length, targets_length)  # with EOS


@given(st.integers(16, 1200), densities, means)
def test_planned_lengths_hold_what_comes(inputs_length, density, mean):
    raw, targets_length = span_corruption_lengths(inputs_length, density, mean)
    tokens = ragged.of([np.full(raw, 5)])
    inputs, targets = span_corruption(tokens, np.random.default_rng(0), ByteVocabulary(1200), density, mean)
    assert len(inputs[0]) + 1 <= inputs_length and len(targets[0]) + 1 <= targets_length


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6), seeds)
def test_mask_tokens_selects_its_share_of_each_row_and_no_special_token(row_lengths, seed):
    rng = np.random.default_rng(seed)
    total = sum(row_lengths)
    tokens = Ragged(rng.integers(3, 180, total).astype(np.int32), np.array(row_lengths))
    maskable = rng.random(total) < 0.8
    out, positions = mask_tokens(tokens, maskable, rng, VOCABULARY)
    begin = 0
    for row, length in enumerate(row_lengths):
        part = slice(begin, begin + length)
        begin += length
        available = int(maskable[part].sum())
        assert len(positions[row]) == (max(1, round(0.15 * available)) if available else 0)
        assert maskable[part][positions[row]].all() and (np.diff(positions[row]) > 0).all()
        others = np.setdiff1d(np.arange(length), positions[row])
        assert (out[part][others] == tokens.values[part][others]).all()


def test_mask_tokens_is_80_10_10():
    rng = np.random.default_rng(3)
    tokens = ragged.of([np.full(40_000, 100)])
    out, positions = mask_tokens(tokens, np.ones(40_000, bool), rng, VOCABULARY)
    chosen = out[positions[0]]
    assert len(chosen) == 6000  # all of them are returned, so all bear loss, also those that stay
    masked, kept = (chosen == VOCABULARY.mask_id).mean(), (chosen == 100).mean()
    # Four standard deviations; a random id is now and then the old one or the mask.
    assert abs(masked - 0.8) < 4 * (0.16 / 6000) ** 0.5 + 1e-3
    assert abs(kept - 0.1) < 4 * (0.09 / 6000) ** 0.5 + 1e-3
    assert chosen.min() >= 3 and chosen.max() < VOCABULARY.size and len(np.unique(chosen)) > 200


@given(st.integers(0, 100), st.integers(2, 30))
def test_chunks_lose_at_most_a_lone_token(total, length):
    tokens = np.arange(total)
    found, which = chunks(tokens, [length], np.random.default_rng(0))
    assert not which.any()
    joined = found.values
    assert ((found.lengths >= 2) & (found.lengths <= length)).all() and found.lengths.sum() == len(joined)
    assert (
        (found.lengths[:-1] == length).all()
        and joined.tolist() == tokens[: len(joined)].tolist()
        and total - len(joined) <= 1
    )
