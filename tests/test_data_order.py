"""The shuffle is a different permutation in every epoch, and all permutations are equally likely."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data.order import generator, key, shuffled


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    places = np.arange(epoch * size, (epoch + 1) * size)
    assert np.sort(shuffled(places, size, seed)).tolist() == list(range(size))


@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**15), min_size=1, max_size=20), st.integers(0, 2**32))
def test_each_place_stands_alone(size, places, seed):
    together = shuffled(np.array(places), size, seed)
    assert together.tolist() == [int(shuffled(np.array([p]), size, seed)[0]) for p in places]
    assert together.min() >= 0 and together.max() < size


def test_all_permutations_are_equally_likely():
    for size, bound in ((3, 20.5), (4, 49.7)):  # chi-square, p = 0.001, of 5 and 23 degrees of freedom
        orders = shuffled(np.arange(4800 * size), size, seed=7).reshape(4800, size)
        counts = dict.fromkeys(itertools.permutations(range(size)), 0)
        for order in orders.tolist():
            counts[tuple(order)] += 1
        expected = 4800 / len(counts)
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < bound


def test_neighbours_and_epochs_are_unrelated():
    size = 2000
    one, two = shuffled(np.arange(2 * size), size, seed=3).reshape(2, size)
    pairs = [(np.arange(size), one), (one[:-1], one[1:]), (one, two)]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 4 / size**0.5 for a, b in pairs)


def test_the_order_is_pinned():
    """A change here reorders every run's data and breaks resuming: say so in the release notes."""
    assert shuffled(np.arange(10), 10, seed=1).tolist() == [6, 7, 9, 0, 3, 4, 8, 2, 1, 5]
    assert key("a", 1) == int.from_bytes(bytes.fromhex("391d545b6971354e"), "big")
    assert generator("a").integers(1000, size=3).tolist() == [786, 252, 120]
