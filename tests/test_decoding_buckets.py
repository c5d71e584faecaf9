"""Batches are cut to a few lengths, and few programs are compiled and kept, without any change to the texts."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import FAMILIES, random_batch, random_params

from t5x_lite.decoding import buckets, generate
from t5x_lite.decoding.buckets import cut_to_bucket
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.models import build

WAYS = {
    "greedy": Strategy(),
    "beam": Strategy(beams=3, texts=2, length_penalty=0.6),
    "sample": Strategy(temperature=1.0, top_k=8, texts=2),
}


def test_columns_of_padding_are_cut_to_a_bucket():
    batch = {name: np.zeros((2, 64), np.int32) for name in ("encoder_input_tokens", "encoder_segment_ids")}
    batch["encoder_segment_ids"][1, :17] = 1
    assert {a.shape for a in cut_to_bucket(batch, "text_to_text").values()} == {(2, 24)}
    batch["encoder_segment_ids"][0] = 1
    assert {a.shape for a in cut_to_bucket(batch, "text_to_text").values()} == {(2, 64)}


def written(family: str, way: str, max_tokens: int) -> dict[str, np.ndarray]:
    config = dataclasses.replace(FAMILIES[family], vocab_size=12)
    if config.positions == "learned":
        config = dataclasses.replace(config, max_positions=96)
    batch = random_batch(config, segments=((7,), (3,)), seed=2)
    strategy = dataclasses.replace(WAYS[way], max_tokens=max_tokens)
    out = generate.generate(build(config), random_params(config, seed=5), batch, strategy, eos_id=1, seed=3)
    assert out["tokens"].shape == out["logprobs"].shape == (2, strategy.texts, max_tokens)
    assert all(isinstance(array, np.ndarray) for array in out.values())
    return out


def assert_the_same(found, expected):
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    np.testing.assert_array_equal(found["lengths"], expected["lengths"])
    np.testing.assert_allclose(found["logprobs"], expected["logprobs"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("gpt2", (5,)),
        pytest.param("gpt2", (1, 2, 7, 8, 9, 13, 17, 31, 49, 65, 70), marks=pytest.mark.slow),
        pytest.param("t5", (1, 2, 7, 8, 9, 13, 17, 31, 49, 65, 70), marks=pytest.mark.slow),
    ],
)
def test_a_bucket_changes_no_text(family, tokens, way, monkeypatch):
    """The program of a bucket writes what a program of exactly this many tokens writes."""
    by_bucket = {n: written(family, way, n) for n in tokens}
    monkeypatch.setattr(generate, "bucket", lambda n: max(n, 2))  # no bucket is smaller than 8
    for n in tokens:
        assert_the_same(by_bucket[n], written(family, way, n))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["greedy", "sample"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_first_tokens_do_not_depend_on_how_many_may_follow(family, way):
    longest = written(family, way, 70)
    for n in range(1, 71):
        tokens = written(family, way, n)["tokens"]
        # Texts are sorted by their score, which counts the tokens that follow.
        texts = [{tuple(text) for text in row} for row in longest["tokens"][:, :, :n]]
        assert [{tuple(text) for text in row} for row in tokens] == texts


def test_the_lengths_of_a_bucket_share_one_program(compiled):
    written("gpt2", "greedy", 9)
    before = len(compiled)
    for n in range(10, 13):
        written("gpt2", "greedy", n)
    assert len(compiled) == before  # nor is a program compiled that cuts the outputs


def test_a_function_keeps_a_bounded_number_of_programs(monkeypatch):
    monkeypatch.setattr(buckets, "MOST_PROGRAMS", 3)
    jitted = jax.jit(lambda x: x + 1)
    double = buckets.bounded(jitted)
    for size in (1, 2, 3, 4, 5, 6, 7, 5):
        assert (np.asarray(double(np.zeros(size))) == 1).all() and double(np.zeros(size)).shape == (size,)
        assert jitted._cache_size() <= 3  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(buckets, "MOST_PROGRAMS", 1)
    for n in (5, 9):  # two buckets
        written("gpt2", "greedy", n)
        assert generate._generate.__wrapped__._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]
