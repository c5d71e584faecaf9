"""Checks the laws of the self-supervised objectives over random lengths."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import denoise, ragged
from t5x_lite.data.denoise import (
    KINDS,
    UL2,
    corrupt,
    corrupt_each,
    hide_spans,
    most_tokens,
    noise_mask,
    plan_lengths,
    span_corruption,
    span_corruption_lengths,
)
from t5x_lite.data.denoiser import Denoiser, chunks
from t5x_lite.data.masked_lm import mask_tokens
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import DataError

VOCABULARY = ByteVocabulary(extra_ids=600)
lengths = st.integers(1, 1500)
densities = st.sampled_from([0.1, 0.15, 0.3, 0.5, 0.8])
means = st.sampled_from([1.0, 2.0, 3.0, 8.0, 20.0])
seeds = st.integers(0, 2**32)


def runs(mask: np.ndarray) -> list[tuple[bool, int]]:
    """Returns the runs of a mask: their values and lengths."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    return [(bool(part[0]), len(part)) for part in np.split(mask, edges)]


def expected_counts(length: int, density: float, mean: float) -> tuple[int, int]:
    """Counts as random_spans_noise_mask in t5/data/preprocessors.py does, in its float32."""
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
        assert kinds == [False, True] * spans  # text first, noise last, equally many of each


def test_noise_mask_edges():
    rng = np.random.default_rng(0)
    assert noise_mask(np.array([1]), rng).tolist() == [False]  # a mask of two tokens, cut to one
    assert noise_mask(np.array([2, 1, 2]), rng).tolist() == [False, True, False, False, True]
    assert not noise_mask(np.array([50, 3]), rng, noise_density=0).any()
    assert not len(noise_mask(np.zeros(0, int), rng))
    assert noise_mask(np.array([190]), rng).sum() == 29  # the original rounds half to even in float32


def test_every_way_to_cut_is_equally_likely():
    """10 tokens, 4 masked in 2 spans: 5 ways to cut the text, 3 to cut the noise."""
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
            assert marks.tolist() == [first - k for k in range(len(marks))]  # counted from the left
        # Unrolled, the text starts the inputs and targets start with sentinel 0: put each masked span back.
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
    assert len(chosen) == 6000  # all are returned, so all count in the loss, even unchanged ones
    masked, kept = (chosen == VOCABULARY.mask_id).mean(), (chosen == 100).mean()
    # Four standard deviations; a random id may be the old id or the mask.
    assert abs(masked - 0.8) < 4 * (0.16 / 6000) ** 0.5 + 1e-3
    assert abs(kept - 0.1) < 4 * (0.09 / 6000) ** 0.5 + 1e-3
    assert chosen.min() >= VOCABULARY.mask_id and chosen.max() < VOCABULARY.size and len(np.unique(chosen)) > 200


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


# ------------------------------------------------------------------------------------------- the other objectives

SENTINELS = np.array([VOCABULARY.sentinel(k) for k in range(600)])
texts_of = st.lists(st.integers(2, 300), min_size=1, max_size=5)


def some_texts(row_lengths: list[int], seed: int) -> tuple[Ragged, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return ragged.of([rng.integers(3, 259, n) for n in row_lengths]), rng


class Words(ByteVocabulary):
    """A vocabulary of the words in the module's example; <0> is sentinel 0."""

    words = ("Thank", "you", "for", "inviting", "me", "last", "week")

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.words.index(w) + 3 if w in self.words else self.sentinel(int(w[1:-1])) for w in text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_the_worked_examples_come_true(kind):
    """The objective produces each line of the module's table from the sentence."""
    (line,) = re.findall(rf"^    {kind} +.*$", denoise.__doc__, re.M)
    words = Words()
    documented = words.ids(line[22:62]), words.ids(line[62:])
    texts = ragged.of([np.array(words.ids(" ".join(words.words)), np.int32)] * 40_000)
    inputs, targets = corrupt(texts, Denoiser(kind, 0.4, 2.0), np.random.default_rng(0), words)
    found = {(tuple(inputs[n].tolist()), tuple(targets[n].tolist())) for n in range(len(texts))}
    assert documented in found


@given(texts_of, st.sampled_from([0.1, 0.15, 0.5, 0.8]), seeds)
def test_iid_denoising_hides_runs_behind_sentinels_and_loses_nothing(row_lengths, density, seed):
    texts, rng = some_texts(row_lengths, seed)
    inputs, targets = corrupt(texts, Denoiser("iid_denoising", density), rng, VOCABULARY)
    for row in range(len(texts)):
        kept, hidden = inputs[row], targets[row]
        # Each side has a run where the other has the sentinel between its runs.
        runs_of = [np.split(side, np.flatnonzero(side > 258)) for side in (kept, hidden)]
        for side in (kept, hidden):
            assert side[side > 258].tolist() == SENTINELS[: (side > 258).sum()].tolist()
        begins_kept = kept[0] <= 258
        pieces = [[run[run <= 258] for run in runs if (run <= 258).any()] for runs in runs_of]
        first, second = pieces if begins_kept else pieces[::-1]
        whole = [p for pair in itertools.zip_longest(first, second, fillvalue=np.zeros(0, int)) for p in pair]
        assert np.concatenate(whole).tolist() == texts[row].tolist()


@given(texts_of, seeds)
def test_mass_masks_in_place_and_asks_for_the_whole_text(row_lengths, seed):
    texts, rng = some_texts(row_lengths, seed)
    inputs, targets = corrupt(texts, Denoiser("mass", 0.5), rng, VOCABULARY)
    assert targets.values.tolist() == texts.values.tolist() and inputs.lengths.tolist() == row_lengths
    differing = inputs.values != texts.values
    assert (inputs.values[differing] == VOCABULARY.sentinel(0)).all()


@given(texts_of, seeds)
def test_drop_tokens_parts_a_text_in_two_that_keep_its_order(row_lengths, seed):
    texts = ragged.of([np.arange(3, n + 3) for n in row_lengths])
    inputs, targets = corrupt(texts, Denoiser("drop_tokens", 0.3), np.random.default_rng(seed), VOCABULARY)
    for row in range(len(texts)):
        assert (np.diff(inputs[row]) > 0).all() and (np.diff(targets[row]) > 0).all()
        assert sorted([*inputs[row], *targets[row]]) == texts[row].tolist()


@given(texts_of, seeds)
def test_deshuffle_asks_for_the_order(row_lengths, seed):
    texts, rng = some_texts(row_lengths, seed)
    inputs, targets = corrupt(texts, Denoiser("deshuffle"), rng, VOCABULARY)
    for row in range(len(texts)):
        assert targets[row].tolist() == texts[row].tolist() and sorted(inputs[row]) == sorted(texts[row])
    if max(row_lengths) > 50:
        assert inputs.values.tolist() != texts.values.tolist()


@given(texts_of, seeds, st.sampled_from(["prefix_lm", "sequential", "full_lm"]))
def test_language_models_continue_their_inputs(row_lengths, seed, kind):
    texts, rng = some_texts(row_lengths, seed)
    inputs, targets = corrupt(texts, Denoiser(kind, 0.25), rng, VOCABULARY)
    for row, length in enumerate(row_lengths):
        assert [*inputs[row], *targets[row]] == texts[row].tolist()
        if kind == "prefix_lm":
            assert len(inputs[row]) and len(targets[row])
        elif kind == "sequential":
            assert len(targets[row]) == min(max(round(0.25 * length), 1), length - 1)
        else:
            assert not len(inputs[row])


def test_every_prefix_is_equally_likely():
    texts = ragged.of([np.arange(3, 13)] * 9000)
    inputs, _ = corrupt(texts, Denoiser("prefix_lm"), np.random.default_rng(2), VOCABULARY)
    counts = np.bincount(inputs.lengths, minlength=10)[1:]
    assert len(counts) == 9 and ((counts - 1000) ** 2 / 1000).sum() < 26.1  # 8 degrees of freedom, p = 0.001


@pytest.mark.parametrize("kind", ["iid_denoising", "mass", "drop_tokens"])
def test_tokens_are_hidden_at_the_density(kind):
    texts = ragged.of([np.full(100, 5)] * 400)
    inputs, _ = corrupt(texts, Denoiser(kind, 0.15), np.random.default_rng(4), VOCABULARY)
    hidden = 1 - (inputs.values == 5).sum() / 40_000
    assert abs(hidden - 0.15) < 4 * (0.15 * 0.85 / 40_000) ** 0.5


@settings(max_examples=40)
@given(
    st.sampled_from([*[Denoiser(kind) for kind in KINDS], Denoiser("iid_denoising", 0.5), *UL2]),
    st.integers(40, 600),
    st.integers(40, 600),
    st.booleans(),
    seeds,
)
def test_what_was_planned_fits(denoiser, inputs_length, targets_length, shared, seed):
    total = max(inputs_length, targets_length) if shared else None
    both = (total, total) if total else (inputs_length, targets_length)
    (length,) = plan_lengths((denoiser,), VOCABULARY, *both, total)
    texts, rng = some_texts([length, length, 2], seed)
    inputs, targets = corrupt(texts, denoiser, rng, VOCABULARY)
    assert (inputs.lengths + 1 <= both[0]).all() and (targets.lengths + 1 <= both[1]).all()
    if total:
        assert (inputs.lengths + targets.lengths + 1 <= total).all()
    if denoiser.kind in ("span_corruption", "sequential", "full_lm") and not total:  # no longer text fits
        more, targets_of_more, _, _ = most_tokens(length + 1, denoiser)
        mode = len(VOCABULARY.encode([denoiser.mode])[0])
        assert more + mode + 1 > inputs_length or targets_of_more + 1 > targets_length


@given(st.integers(32, 1200))
def test_the_plan_of_span_corruption_is_t5s(inputs_length):
    raw, targets_length = span_corruption_lengths(inputs_length)
    assert plan_lengths((Denoiser(),), ByteVocabulary(2000), inputs_length, targets_length) == (raw,)


def test_few_sentinels_shorten_the_text_instead_of_failing():
    (length,) = plan_lengths((Denoiser(),), ByteVocabulary(extra_ids=10), 512, 114)
    texts = ragged.of([np.full(length, 5)] * 20)
    inputs, _ = corrupt(texts, Denoiser(), np.random.default_rng(0), ByteVocabulary(extra_ids=10))
    assert 180 < length < 568 and len(inputs) == 20


@settings(max_examples=30)
@given(texts_of, st.data(), seeds)
def test_ul2_asks_by_its_modes_for_what_it_hides(row_lengths, data, seed):
    texts, rng = some_texts(row_lengths, seed)
    which = np.array([data.draw(st.integers(0, len(UL2) - 1)) for _ in row_lengths])
    inputs, targets = corrupt_each(texts, which, UL2, rng, VOCABULARY)
    for row, number in enumerate(which):
        mode = VOCABULARY.encode([UL2[number].mode])[0]
        assert inputs[row][: len(mode)].tolist() == mode.tolist()
        read, asked = inputs[row][len(mode) :], targets[row]
        if UL2[number].kind == "sequential":
            assert [*read, *asked] == texts[row].tolist()
        else:
            hidden = np.split(asked, np.flatnonzero(asked > 258))[1:]
            spans = {int(span[0]): span[1:] for span in hidden}
            assert np.concatenate([spans.get(int(i), [i]) for i in read]).tolist() == texts[row].tolist()


def test_ul2_draws_its_denoisers_equally_often_each_with_its_mode():
    rng = np.random.default_rng(0)
    plan = plan_lengths(UL2, VOCABULARY, 256, 256)
    texts, which = chunks(rng.integers(3, 200, 700_000).astype(np.int32), plan, rng)
    counts = np.bincount(which, minlength=7)
    expected = len(which) / 7
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # 6 degrees of freedom, p = 0.001
    assert texts.lengths[:-1].tolist() == np.array(plan)[which[:-1]].tolist()
    inputs, targets = corrupt_each(texts, which, UL2, rng, VOCABULARY)
    for row in range(0, len(texts), 37):
        mode = UL2[which[row]].mode
        assert VOCABULARY.decode(inputs[row][:5]) == mode and mode in ("[NLU]", "[NLG]", "[S2S]")
        plain = sorted(i for side in (inputs[row][5:], targets[row]) for i in side if i <= 258)
        assert plain == sorted(texts[row])
    full = texts.lengths == np.array(plan)[which]
    assert (inputs.lengths[full] + 1 <= 256).all() and (inputs.lengths[full & (which != 0)].mean()) > 200


# --------------------------------------------------------------------------------------- units of masked tokens

words = st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=60)


@given(st.lists(words, min_size=1, max_size=4), seeds, st.integers(1, 3))
def test_whole_words_are_masked_whole(texts, seed, longest_ngram):
    rng = np.random.default_rng(seed)
    tokens = ragged.of(VOCABULARY.encode([" ".join(text) for text in texts]))
    everything = np.ones(len(tokens.values), bool)
    _, positions = mask_tokens(tokens, everything, rng, VOCABULARY, 0.3, True, longest_ngram)
    for row, text in enumerate(texts):
        ends = np.cumsum([len(word) + (n > 0) for n, word in enumerate(text)])  # a word begins with its space
        word_of = np.searchsorted(ends, np.arange(ends[-1]), side="right")
        selected = np.isin(np.arange(ends[-1]), positions[row])
        for n in range(len(text)):
            assert len(set(selected[word_of == n].tolist())) == 1
        budget = max(1, round(0.3 * len(tokens[row])))
        assert len(positions[row]) <= budget
        if longest_ngram == 1:  # no word fits in the rest
            others = [(word_of == n).sum() for n in range(len(text)) if not selected[word_of == n].any()]
            assert min(others, default=budget) > budget - len(positions[row])


def test_ngrams_of_length_n_come_with_a_chance_of_1_over_n():
    tokens = ragged.of([np.full(60_000, 5)])
    _, positions = mask_tokens(tokens, np.ones(60_000, bool), np.random.default_rng(0), VOCABULARY, 0.02, False, 3)
    lengths_of_runs = np.diff(np.flatnonzero(np.diff(positions[0], prepend=-9, append=10**6) > 1))
    assert len(positions[0]) == 1200
    # Drawn 6 : 3 : 2; at 2% few runs touch each other.
    shares = np.bincount(lengths_of_runs, minlength=4)[1:4] / len(lengths_of_runs)
    expected = np.array([6, 3, 2]) / 11
    assert (abs(shares - expected) < 4 * (expected / len(lengths_of_runs)) ** 0.5 + 0.02).all()


def test_units_never_span_rows_or_special_tokens():
    tokens = ragged.of([np.full(7, 5), np.full(9, 5)])
    maskable = np.ones(16, bool)
    maskable[[3, 10]] = False
    for seed in range(50):
        _, positions = mask_tokens(tokens, maskable, np.random.default_rng(seed), VOCABULARY, 0.5, True, 3)
        assert 3 not in positions[0] and 3 not in positions[1]  # place 10 is the fourth of the second row
        assert len(positions[0]) in (0, 3) and len(positions[1]) in (0, 3)  # only words between the special tokens
