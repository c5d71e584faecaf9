"""The laws of the self-supervised objectives, over random lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data.denoise import chunks, hide_spans, mask_tokens, noise_mask, span_corruption, span_corruption_lengths
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
    mask = noise_mask(length, np.random.default_rng(seed), density, mean)
    noise, spans = expected_counts(length, density, mean)
    spans = min(spans, length - noise)
    assert mask.dtype == bool and len(mask) == length and mask.sum() == noise
    kinds = [kind for kind, _ in runs(mask)]
    assert kinds == [False, True] * spans  # text first, noise last, as many of one as of the other


def test_noise_mask_edges():
    rng = np.random.default_rng(0)
    assert noise_mask(1, rng).tolist() == [False]  # two tokens' mask, cut to one
    assert noise_mask(2, rng).tolist() == [False, True]
    assert not noise_mask(50, rng, noise_density=0).any()
    assert noise_mask(190, rng).sum() == 29  # half to even in float32, as the original rounds


def test_every_way_to_cut_is_equally_likely():
    """10 tokens, 4 hidden in 2 spans: 5 ways to cut the text, 3 to cut the noise."""
    rng = np.random.default_rng(1)
    counts: dict[tuple, int] = {}
    for _ in range(6000):
        mask = noise_mask(10, rng, 0.4, 2.0)
        counts[tuple(mask)] = counts.get(tuple(mask), 0) + 1
    assert len(counts) == 15
    chi_square = sum((n - 400) ** 2 / 400 for n in counts.values())
    assert chi_square < 36.1  # 14 degrees of freedom, p = 0.001


@given(st.integers(2, 400), seeds)
def test_random_roll_turns_the_same_mask(length, seed):
    plain = noise_mask(length, np.random.default_rng(seed))
    rolled = noise_mask(length, np.random.default_rng(seed), random_roll=True)
    assert any((np.roll(plain, k) == rolled).all() for k in range(length))


@settings(max_examples=60)
@given(st.integers(2, 600), densities, means, seeds, st.booleans(), st.booleans())
def test_inputs_and_targets_put_the_text_together_again(length, density, mean, seed, roll, final):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 259, length).astype(np.int32)
    inputs, targets = span_corruption(tokens, rng, VOCABULARY, density, mean, roll, final)
    first = VOCABULARY.sentinel(0)
    is_sentinel = lambda ids: ids > 258  # noqa: E731
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
    tokens = np.array([10, 11, 12, 13, 14], np.int32)
    mask = np.array([0, 0, 1, 1, 0], bool)
    vocabulary = ByteVocabulary()
    assert hide_spans(tokens, mask, vocabulary).tolist() == [10, 11, 258, 14]
    assert hide_spans(tokens, ~mask, vocabulary).tolist() == [258, 12, 13, 257]


def test_too_many_spans_for_the_sentinels():
    with pytest.raises(DataError, match=r"span 20 .* more sentinels than the vocabulary's 10; shorten"):
        span_corruption(np.arange(3, 403), np.random.default_rng(0), ByteVocabulary(extra_ids=10))


@pytest.mark.parametrize(
    ("inputs_length", "mean", "raw", "targets_length"),
    [(128, 3.0, 141, 29), (256, 3.0, 284, 58), (512, 3.0, 568, 114), (1024, 3.0, 1137, 229), (1024, 20.0, 1193, 189)],
)
def test_span_corruption_lengths_are_t5s(inputs_length, mean, raw, targets_length):
    assert span_corruption_lengths(inputs_length, 0.15, mean) == (raw, targets_length)
    tokens = np.full(raw, 5, np.int32)
    inputs, targets = span_corruption(tokens, np.random.default_rng(0), VOCABULARY, 0.15, mean)
    assert (len(inputs) + 1, len(targets) + 1) == (inputs_length, targets_length)  # with EOS


@given(st.integers(16, 1200), densities, means)
def test_planned_lengths_hold_what_comes(inputs_length, density, mean):
    raw, targets_length = span_corruption_lengths(inputs_length, density, mean)
    tokens = np.full(raw, 5, np.int32)
    inputs, targets = span_corruption(tokens, np.random.default_rng(0), ByteVocabulary(1200), density, mean)
    assert len(inputs) + 1 <= inputs_length and len(targets) + 1 <= targets_length


@given(st.integers(1, 400), seeds)
def test_mask_tokens_selects_its_share_and_no_special_token(length, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 180, length).astype(np.int32)
    maskable = rng.random(length) < 0.8
    out, positions = mask_tokens(tokens, maskable, rng, VOCABULARY)
    available = int(maskable.sum())
    assert len(positions) == (max(1, round(0.15 * available)) if available else 0)
    assert maskable[positions].all() and (np.diff(positions) > 0).all()
    others = np.setdiff1d(np.arange(length), positions)
    assert (out[others] == tokens[others]).all()


def test_mask_tokens_is_80_10_10():
    rng = np.random.default_rng(3)
    tokens = np.full(40_000, 100, np.int32)
    out, positions = mask_tokens(tokens, np.ones(40_000, bool), rng, VOCABULARY)
    chosen = out[positions]
    assert len(positions) == 6000  # all of them are returned, so all bear loss, also those that stay
    masked, kept = (chosen == VOCABULARY.mask_id).mean(), (chosen == 100).mean()
    # Four standard deviations; a random id is now and then the old one or the mask.
    assert abs(masked - 0.8) < 4 * (0.16 / 6000) ** 0.5 + 1e-3
    assert abs(kept - 0.1) < 4 * (0.09 / 6000) ** 0.5 + 1e-3
    assert chosen.min() >= VOCABULARY.mask_id and chosen.max() < VOCABULARY.size and len(np.unique(chosen)) > 200


@given(st.integers(0, 100), st.integers(2, 30))
def test_chunks_lose_at_most_a_lone_token(total, length):
    tokens = np.arange(total)
    found = chunks(tokens, length)
    joined = np.concatenate([*found, np.zeros(0, int)])
    assert all(2 <= len(c) <= length for c in found)
    assert joined.tolist() == tokens[: len(joined)].tolist() and total - len(joined) <= 1
