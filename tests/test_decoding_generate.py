"""Greedy decoding with a cache equals choosing the best token of a full forward pass at every step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, OTHERS, forward, random_batch, random_params

from t5x_lite.cluster import sharding
from t5x_lite.decoding import generate
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.errors import ConfigError
from t5x_lite.models import build
from t5x_lite.models.transformer import stack_layers

pytestmark = pytest.mark.usefixtures("checked_texts")

MAX_TOKENS = 6
CACHED = FAMILIES | OTHERS
PROMPTS = ((7,), (3,), (0,), (5,))  # the third row is padding


def prompts(config):
    return random_batch(config, segments=PROMPTS)


def greedy_by_forward(config, params, batch, eos_id: int):
    """Decodes without a cache: every token needs a new forward pass over all previous tokens."""
    module = build(config)
    apply = jax.jit(lambda p, b: module.apply({"params": p}, b)["lm"])
    rows = len(PROMPTS)
    lengths = np.array([row[0] for row in PROMPTS])
    batch = dict(batch)
    if config.architecture == "text_to_text":
        read, width = (lengths > 0).astype(int), MAX_TOKENS + 1
        tokens = np.zeros((rows, width), np.int32)
    else:
        read, width = lengths.copy(), max(lengths) + MAX_TOKENS
        tokens = np.zeros((rows, width), np.int32)
        tokens[:, : max(lengths)] = batch["decoder_input_tokens"][:, : max(lengths)]
    out = np.full((rows, MAX_TOKENS), eos_id)
    count, logprob = np.zeros(rows, int), np.zeros(rows)
    done = lengths == 0
    for step in range(MAX_TOKENS):
        batch |= {
            "decoder_input_tokens": tokens,
            "decoder_segment_ids": (np.arange(width) < read[:, None]).astype(np.int32),
            "decoder_positions": np.tile(np.arange(width, dtype=np.int32), (rows, 1)),
        }
        logits_BLV = np.asarray(apply(params, batch), np.float64)
        for b in np.flatnonzero(~done):
            logits_V = logits_BLV[b, read[b] - 1]
            token = logits_V.argmax()
            logprob[b] += logits_V[token] - np.log(np.exp(logits_V).sum())
            if token == eos_id:
                done[b] = True
                continue
            out[b, step], count[b] = token, step + 1
            tokens[b, read[b]] = token
            read[b] += 1
    return {"tokens": out, "lengths": count, "logprob": logprob}


@pytest.mark.parametrize(
    ("family", "scan_layers"),
    [
        *(("t5", True), ("gpt2", True), ("t5_1_1", False), ("transformer", False), ("gpt2", False)),
        *(("t5_decoder", False), ("bart", True), ("gpt_neo", True), ("gpt_j", False), ("llama", False)),
        *(("gemma_2", False), ("t5gemma", True), ("gemma_3", True), ("smollm_3", True), ("olmo_2", False)),
        ("umt5", True),
        ("t5gemma2", False),
        ("t5gemma2", True),
    ],
)
def test_greedy_equals_the_forward_pass_run_again(family, scan_layers):
    config = CACHED[family]
    seed = {"bart": 6, "t5gemma2": 10}.get(family, 3)  # with 3 these two generate only one token
    params, batch = random_params(config, seed=seed), prompts(config)
    free = greedy_by_forward(config, params, batch, eos_id=-1)
    eos_id = int(free["tokens"][0, 2])  # so that one row ends early and others later or never
    expected = greedy_by_forward(config, params, batch, eos_id)
    assert expected["lengths"][0] <= 2 and expected["lengths"][2] == 0 and expected["lengths"].max() > 2

    if scan_layers:
        config, params = dataclasses.replace(config, scan_layers=True), stack_layers(params)
    got = generate.greedy(build(config), params, batch, max_tokens=MAX_TOKENS, eos_id=eos_id)
    np.testing.assert_array_equal(got["tokens"], expected["tokens"])
    np.testing.assert_array_equal(got["lengths"], expected["lengths"])
    np.testing.assert_allclose(got["logprob"], expected["logprob"], rtol=1e-5, atol=1e-5)
    assert got["tokens"].dtype == got["lengths"].dtype == jnp.int32


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_prefill_logits_are_those_of_the_forward_pass(family):
    config = FAMILIES[family]
    params, batch, module = random_params(config), prompts(config), build(FAMILIES[family])
    lengths = np.array([row[0] for row in PROMPTS])
    decoding = jax.jit(lambda p, b: generate.prefill(module, p, b, new_slots=3))(params, batch)
    if family == "t5":
        start = np.zeros((len(PROMPTS), 1), np.int32)
        batch |= {"decoder_input_tokens": start, "decoder_segment_ids": start + 1, "decoder_positions": start}
        lengths[:] = 1
    logits_BLV = forward(config, params, batch)["lm"]
    np.testing.assert_array_equal(decoding.positions_R, lengths)
    for b in np.flatnonzero([row[0] for row in PROMPTS]):
        np.testing.assert_allclose(decoding.logits_RV[b], logits_BLV[b, lengths[b] - 1], rtol=1e-5, atol=1e-5)


def test_one_compilation_serves_every_batch_of_a_shape(compiled):
    config = FAMILIES["gpt2"]
    params, module = random_params(config), build(config)
    generate.greedy(module, params, prompts(config), max_tokens=5, eos_id=1)
    compiled.clear()
    other = random_batch(config, segments=((2,), (7,), (4,), (1,)), seed=1)
    generate.greedy(build(config), params, other, max_tokens=5, eos_id=1)
    assert compiled == []


@pytest.mark.parametrize(
    ("family", "strategies"),
    [
        ("t5", (Strategy(4), Strategy(4, beams=3, texts=2))),
        ("gpt_j", (Strategy(4, temperature=1.0, top_k=9, texts=2, repetition_penalty=1.2), Strategy(4, beams=2))),
    ],
)
def test_a_mesh_changes_no_text(family, strategies):
    """Greedy, beams and samples, with batch and parameters sharded over data, fsdp and tensor."""
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    config = FAMILIES[family]
    layout = sharding.Layout(sharding.make_mesh(data=2, fsdp=2, tensor=2))
    params, batch = random_params(config), prompts(config)
    module = build(config, layout)
    boxed = jax.eval_shape(module.init, jax.random.key(0), batch)["params"]
    split = jax.device_put(params, sharding.shardings(boxed, layout))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split))
    read = {name: batch[name] for name in generate.PROMPT[config.architecture]}
    rows = jax.device_put(read, layout.batch_sharding)
    for strategy in strategies:
        expected = generate.generate(build(config), params, read, strategy, eos_id=1)
        got = generate.generate(module, split, rows, strategy, eos_id=1)
        for name in ("tokens", "lengths"):
            np.testing.assert_array_equal(got[name], expected[name])
        for name in ("logprobs", "score"):
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "max_tokens", "message"),
    [("bert", 4, "does not generate text"), ("gpt2", 0, "at least 1"), ("gpt2", 60, "max_positions=64")],
)
def test_errors_before_anything_runs(family, max_tokens, message):
    config = FAMILIES[family]
    with pytest.raises(ConfigError, match=message):
        generate.greedy(build(config), {}, prompts(config), max_tokens=max_tokens, eos_id=1)
