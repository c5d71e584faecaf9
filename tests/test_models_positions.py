"""Positions: T5's buckets, the bias made from them, sinusoids."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_models import t5_bucket

from t5x_lite.models.positions import bucket_boundaries, relative_buckets, sinusoids, toeplitz

GOLDEN = Path(__file__).parents[1].parent / "shared" / "data" / "golden" / "t5_relative_position_buckets.npz"


@pytest.mark.skipif(not GOLDEN.exists(), reason="T5X's golden buckets are not on this machine")
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [20, 100, 256])
def test_buckets_equal_t5x(bidirectional, length):
    golden = np.load(GOLDEN)
    name = f"bidirectional_{bidirectional}_len_{length}"
    buckets = relative_buckets(golden[f"{name}/inputs"], bidirectional=bidirectional)
    np.testing.assert_array_equal(buckets, golden[f"{name}/outputs"])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_equal_the_paper_s_formula(bidirectional, buckets, max_distance):
    offsets = np.arange(-1500, 1500)
    expected = [t5_bucket(offset, buckets, not bidirectional, max_distance) for offset in offsets.tolist()]
    ours = relative_buckets(offsets, bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(ours, expected)


def test_buckets_in_closed_form():
    # distances 0..7 have one bucket each, then 8·sqrt(2)^j up to 128; later keys are 16 higher
    assert relative_buckets(np.array([0, -1, -7, -8, -11, -12, -16, -1000]), bidirectional=True).tolist() == (
        [0, 1, 7, 8, 8, 9, 10, 15]
    )
    assert relative_buckets(np.array([1, 7, 8, 127, 10**6]), bidirectional=True).tolist() == [17, 23, 24, 31, 31]
    assert relative_buckets(np.array([5, 0, -15, -16, -(10**6)]), bidirectional=False).tolist() == [0, 0, 15, 16, 31]
    assert len(bucket_boundaries(32, 128)) == 31


@pytest.mark.parametrize(("length", "attended"), [(5, 5), (3, 7), (6, 2), (1, 4)])
def test_toeplitz_is_a_gather_and_so_is_its_gradient(length, attended):
    rng = np.random.default_rng(0)
    values_HO = jnp.asarray(rng.normal(size=(2, length + attended - 1)), jnp.float32)
    cotangent_HLM = jnp.asarray(rng.normal(size=(2, length, attended)), jnp.float32)
    index_LM = np.arange(attended) - np.arange(length)[:, None] + length - 1

    expected, expected_vjp = jax.vjp(lambda v: v[:, index_LM], values_HO)
    got, got_vjp = jax.vjp(lambda v: toeplitz(v, length), values_HO)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(got_vjp(cotangent_HLM)[0], expected_vjp(cotangent_HLM)[0], rtol=1e-6, atol=1e-6)


def test_sinusoids_as_in_the_paper():
    d_model, positions = 6, np.array([[0, 1, 5], [2, 0, 300]])
    expected = np.zeros((2, 3, d_model))
    for i in range(d_model // 2):
        angle = positions / 10000 ** (2 * i / d_model)
        expected[..., 2 * i], expected[..., 2 * i + 1] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoids(jnp.asarray(positions), d_model), expected, atol=2e-5)
    halves = np.concatenate([expected[..., 0::2], expected[..., 1::2]], axis=-1)
    np.testing.assert_allclose(sinusoids(jnp.asarray(positions), d_model, "sinusoidal_halves"), halves, atol=2e-5)


def test_fairseq_s_wavelengths_reach_from_1_to_10000_radians():
    angles = np.array([1.0, 0.01, 0.0001])  # of position 1
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(sinusoids(jnp.ones((1, 1)), 6, "sinusoidal_fairseq")[0, 0], expected, atol=1e-7)
