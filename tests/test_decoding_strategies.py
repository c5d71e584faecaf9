"""Checks sampling, beam search and constraints against their plain definitions."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats
from tiny_models import FAMILIES, OTHERS, random_batch, random_params

from t5x_lite.decoding import generate
from t5x_lite.decoding.constraint import prefix_tree
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.errors import ConfigError
from t5x_lite.models import build
from t5x_lite.models.transformer import stack_layers

pytestmark = pytest.mark.usefixtures("checked_texts")

EOS = 1
FEW = 4  # ids of a vocabulary small enough to try every text
TRIED = 3  # tokens of those texts
ROWS = ((7,), (3,), (0,), (5,))  # the third row is padding


def tiny(family: str, vocab_size: int = FEW):
    """(module, parameters, prompts); a model confident enough that its texts differ from row to row."""
    config = dataclasses.replace((FAMILIES | OTHERS)[family], vocab_size=vocab_size)
    params = random_params(config, seed=5)
    return build(config), params, random_batch(config, segments=ROWS, seed=2)


def texts(out) -> list[list[tuple[int, ...]]]:
    """Returns each example's generated text without its end."""
    return [
        [tuple(map(int, tokens[:n])) for tokens, n in zip(*row, strict=True)]
        for row in zip(np.asarray(out["tokens"]), np.asarray(out["lengths"]), strict=True)
    ]


def logprobs_of(module, params, batch, row: int, text, max_tokens: int) -> float:
    """Returns a text's log-probability by a full forward pass, including its end if there is room for it."""
    config, tokens = module.config, [*text, EOS][:max_tokens]
    if config.architecture == "text_to_text":
        prompt, read = {n: batch[n][row : row + 1] for n in generate.PROMPT["text_to_text"]}, [0, *tokens[:-1]]
    else:
        prompt, begin = {}, int((batch["decoder_segment_ids"][row] > 0).sum())
        read = [*batch["decoder_input_tokens"][row, :begin], *tokens[:-1]]
    width = 8 + max_tokens  # one shape for all
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(read)] = read
    prompt |= {
        "decoder_input_tokens": padded,
        "decoder_segment_ids": (np.arange(width) < len(read)).astype(np.int32)[None],
        "decoder_positions": np.arange(width, dtype=np.int32)[None],
    }
    logits_LV = np.asarray(_forward(module)(params, prompt), np.float64)[0][len(read) - len(tokens) : len(read)]
    return float((logits_LV - np.logaddexp.reduce(logits_LV, axis=1, keepdims=True))[range(len(tokens)), tokens].sum())


_COMPILED: dict = {}


def _forward(module):
    if module not in _COMPILED:
        _COMPILED[module] = jax.jit(lambda p, b: module.apply({"params": p}, b)["lm"])
    return _COMPILED[module]


def all_texts() -> list[tuple[int, ...]]:
    """Returns every text of at most TRIED tokens, including its end."""
    others = [i for i in range(FEW) if i != EOS]
    return [t for n in range(TRIED + 1) for t in itertools.product(others, repeat=n)]


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_beam_search_with_room_for_all_texts_finds_the_best_ones(family):
    module, params, batch = tiny(family)
    strategy = Strategy(max_tokens=TRIED, beams=FEW**TRIED, texts=3, length_penalty=0.6)
    out = generate.generate(module, params, batch, strategy, eos_id=EOS)
    found = texts(out)
    for row in (0, 1, 3):
        # A text of TRIED tokens is cut before its end, so only its tokens count in its score.
        scored = {}
        for text in all_texts():
            length = min(len(text) + 1, TRIED)
            scored[text] = logprobs_of(module, params, batch, row, text, TRIED) / ((5 + length) / 6) ** 0.6
        best = sorted(scored, key=scored.get, reverse=True)[:3]
        assert found[row] == best
        np.testing.assert_allclose(out["score"][row], [scored[t] for t in best], rtol=1e-5, atol=1e-5)
        for text, logprobs in zip(best, np.asarray(out["logprobs"][row]), strict=True):
            raw = logprobs_of(module, params, batch, row, text, TRIED)
            np.testing.assert_allclose(logprobs.sum(), raw, rtol=1e-5, atol=1e-5)
    assert found[2] == [(), (), ()]


@pytest.mark.parametrize(
    ("family", "scan_layers"), [("t5", True), ("gpt2", False), ("t5_decoder", True), ("t5gemma2", True)]
)
def test_beams_score_what_the_forward_pass_does_and_never_less_than_greedy(family, scan_layers):
    """Few beams reorder the cache at every step; each text's log-probability must equal the model's."""
    module, params, batch = tiny(family, vocab_size=12)
    run, run_params = module, params
    if scan_layers:
        run, run_params = build(dataclasses.replace(module.config, scan_layers=True)), stack_layers(params)
    strategy = Strategy(max_tokens=6, beams=3, texts=3, length_penalty=0.0)
    out = generate.generate(run, run_params, batch, strategy, eos_id=EOS)
    greedy = generate.greedy(run, run_params, batch, max_tokens=6, eos_id=EOS)
    for row in (0, 1, 3):
        expected = [logprobs_of(module, params, batch, row, text, 6) for text in texts(out)[row]]
        np.testing.assert_allclose(out["score"][row], expected, rtol=1e-5, atol=1e-5)
        assert len(set(texts(out)[row])) == 3
    assert np.all(np.asarray(out["score"][:, 0]) >= np.asarray(greedy["logprob"]) - 1e-5)
    sampled = generate.generate(run, run_params, batch, Strategy(6, temperature=1.0, texts=3), eos_id=EOS)
    for row in (0, 1, 3):
        expected = [logprobs_of(module, params, batch, row, text, 6) for text in texts(sampled)[row]]
        np.testing.assert_allclose(np.sum(sampled["logprobs"], axis=-1)[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_constrained_texts_are_of_the_set_and_with_enough_beams_the_most_probable(family):
    module, params, batch = tiny(family, vocab_size=12)
    choices = [(4, 5, 6), (4, 5), (7,), (8, 2, 9, 3, 4), (4, 2)]
    tree = prefix_tree(choices, EOS)
    for strategy in (Strategy(), Strategy(temperature=2.0, texts=20), Strategy(beams=2, texts=2)):
        out = generate.generate(module, params, batch, strategy, eos_id=EOS, choices=tree)
        assert {text for row in (0, 1, 3) for text in texts(out)[row]} <= set(choices)
        for row in (0, 1, 3):  # best first, even if sampled
            expected = [logprobs_of(module, params, batch, row, text, 6) for text in texts(out)[row]]
            logprobs = np.asarray(out["logprobs"][row]).sum(axis=1)
            np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)
            assert np.all(np.diff(out["score"][row]) <= 0)
    beams = Strategy(beams=8, texts=5, length_penalty=0.0)
    out = generate.generate(module, params, batch, beams, eos_id=EOS, choices=tree)
    for row in (0, 1, 3):
        ranked = {text: logprobs_of(module, params, batch, row, text, 6) for text in choices}
        assert texts(out)[row] == sorted(choices, key=ranked.get, reverse=True)
        np.testing.assert_allclose(out["score"][row], sorted(ranked.values(), reverse=True), rtol=1e-5, atol=1e-5)


def test_samples_follow_the_distribution():
    """Chi-square of 4,000 first tokens against the softmax, cut by top-k or top-p."""
    module, params, batch = tiny("t5", vocab_size=12)
    one = {name: array[:1] for name, array in batch.items()}
    logits_V = np.asarray(
        jax.jit(lambda p, b: generate.prefill(module, p, b, new_slots=7).logits_RV)(params, one), np.float64
    )[0]
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (2.0, 5, 1.0), (1.5, 0, 0.8)):
        expected = np.exp(logits_V / temperature)
        order = np.argsort(-expected)
        if top_k:
            expected[order[top_k:]] = 0
        sorted_p = expected[order] / expected.sum()
        expected[order[np.cumsum(sorted_p) - sorted_p >= top_p]] = 0
        expected *= 4000 / expected.sum()
        strategy = Strategy(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, texts=4000)
        out = generate.generate(module, params, one, strategy, eos_id=EOS, seed=3)
        counts = np.bincount(np.asarray(out["tokens"]).ravel(), minlength=12)
        likely = expected >= 5  # the test's rule of thumb; all others form one class
        assert counts[expected == 0].sum() == 0
        observed = [*counts[likely], counts[~likely].sum()]
        wanted = [*expected[likely], max(expected[~likely].sum(), 1e-9)]
        if wanted[-1] < 1e-6:
            observed, wanted = observed[:-1], wanted[:-1]
        assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        ("t5", Strategy(max_tokens=6, beams=2)),
        ("gpt2", Strategy(max_tokens=6, beams=2)),
        ("gpt2", Strategy(max_tokens=6, temperature=1.0)),
    ],
)
def test_an_example_s_texts_do_not_depend_on_its_batch(family, strategy):
    """The texts are the same among other rows or among empty rows with more padding, even if sampled."""
    module, params, batch = tiny(family, vocab_size=12)
    alone = {name: np.pad(array[3:], [(0, 2), (0, 5)]) for name, array in batch.items() if array.ndim == 2}
    whole = generate.generate(module, params, batch, strategy, eos_id=EOS, row_ids=np.arange(4) + 10)
    one = generate.generate(module, params, alone, strategy, eos_id=EOS, row_ids=np.arange(3) + 13)
    assert texts(whole)[3] == texts(one)[0]
    np.testing.assert_allclose(whole["score"][3], one["score"][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", [Strategy(), Strategy(beams=3), Strategy(temperature=1.0, texts=2)])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_each_row_has_its_own_limits(family, strategy):
    """A row with its own limits generates the same as in a batch in which all rows have those limits."""
    module, params, batch = tiny(family, vocab_size=12)
    limits = np.array([0, 3, 0, 5]), np.array([2, 7, 1, 6])
    run = functools.partial(generate.generate, module, params, batch, eos_id=EOS, row_ids=np.arange(4))
    out = run(dataclasses.replace(strategy, max_tokens=7), limits=limits)
    for row in (0, 1, 3):
        least, most = (int(limit[row]) for limit in limits)
        alone = run(dataclasses.replace(strategy, min_tokens=least, max_tokens=most))
        assert texts(out)[row] == texts(alone)[row]
        np.testing.assert_allclose(out["score"][row], alone["score"][row], rtol=1e-5, atol=1e-5)


def test_first_and_last_tokens_that_are_certain():
    module, params, batch = tiny("gpt2", vocab_size=12)
    for strategy in (Strategy(), Strategy(beams=3, texts=3), Strategy(temperature=1.0, texts=9)):
        chosen = dataclasses.replace(strategy, max_tokens=4, min_tokens=3, first_token=7, last_token=9)
        found = generate.generate(module, params, batch, chosen, eos_id=EOS)
        assert {(text[0], text[3], len(text)) for row in (0, 1, 3) for text in texts(found)[row]} == {(7, 9, 4)}


def test_least_and_most_tokens_and_repetition():
    module, params, batch = tiny("gpt2")
    free = generate.generate(module, params, batch, Strategy(max_tokens=7), eos_id=EOS)
    assert np.asarray(free["lengths"])[[0, 1, 3]].min() < 5
    for beams in (1, 3):
        strategy = Strategy(max_tokens=7, min_tokens=5, beams=beams)
        out = generate.generate(module, params, batch, strategy, eos_id=EOS)
        assert np.asarray(out["lengths"])[[0, 1, 3]].min() >= 5
        strict = Strategy(max_tokens=4, min_tokens=3, repetition_penalty=1e6, beams=beams)
        module_12, params_12, batch_12 = tiny("t5", vocab_size=12)
        for row in (0, 1, 3):
            (text,) = texts(generate.generate(module_12, params_12, batch_12, strict, eos_id=EOS))[row]
            assert len(set(text)) == len(text) and len(text) >= 3


def test_a_second_size_of_a_bucket_compiles_nothing(compiled):
    def programs() -> int:
        """Leaves out the programs that cut the outputs to max_tokens."""
        return sum("generate" in name for name in compiled)

    module, params, batch = tiny("t5")
    generate.generate(module, params, batch, Strategy(max_tokens=17), eos_id=EOS)
    before = programs()
    out = generate.generate(module, params, batch, Strategy(max_tokens=20, min_tokens=3), eos_id=EOS)
    assert programs() == before and out["tokens"].shape == (4, 1, 20)
    for choices in ([(3,), (2,)], [(3,), (2, 4)]):
        generate.generate(module, params, batch, Strategy(), eos_id=EOS, choices=prefix_tree(choices, EOS))
    assert programs() == before + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 0}, "beams=0; it must be at least 1"),
        ({"texts": 3}, "texts=3, but beams=1 and temperature=0"),
        ({"beams": 2, "temperature": 1.0}, "beams=2 with temperature=1.0; use beam search"),
        ({"top_p": 0.9}, "set a temperature above 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p=0.0; it must be above 0"),
        ({"min_tokens": 64}, "not below max_tokens=64"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"repetition_penalty": 0.0}, "above 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1; it must be at least 0"),
        ({"early_stopping": "always"}, "early_stopping='always'; it must be one of"),
    ],
)
def test_strategies_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        Strategy(**changes).validate()


def test_constraints_that_cannot_work():
    with pytest.raises(ConfigError, match="at least one text"):
        prefix_tree([], EOS)
    with pytest.raises(ConfigError, match="end-of-sequence id 1"):
        prefix_tree([(3, 1)], EOS)
