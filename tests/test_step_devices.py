"""The same run on 1 and on 8 devices, for every family: same initial state, dropout, losses and updates."""

import functools

import jax
import numpy as np
import optax
import pytest
from tiny_models import FAMILIES, OTHERS
from training import assert_trees_close, start, with_dropout

from t5x_lite.models import tracing
from t5x_lite.training import losses, step

STEPS = 3
ONE_LAYER = {"num_encoder_layers": 1, "num_decoder_layers": 1}
DESCENT = optax.sgd(0.1)
SHORT_STEPS = optax.sgd(0.001)  # for gradients of norm 20, with which longer steps amplify rounding from step to step
HEADS = ("classification", "token_classification", "span", "multiple_choice")
CASES = {
    # T5 only: elsewhere Adafactor divides gradients that are 0 in theory, such as keys' biases', by their own noise.
    "t5 scanned": ("t5", {"scan_layers": True}, (1, 2, 2, 2), "adafactor"),
    "bert mlm and nsp scanned": ("bert", {"heads": ("mlm", "nsp"), "scan_layers": True}, (2, 2, 2), "adamw"),
    "gpt2 unrolled": ("gpt2", {"num_decoder_layers": 1}, (4, 1, 2), "adamw"),
    # The others use plain gradient descent: what an optimizer does to a leaf does not depend on the family, and
    # optimizers take long to compile.
    "t5_1_1 unrolled": ("t5_1_1", ONE_LAYER, (1, 4, 2), DESCENT),
    "transformer unrolled": ("transformer", ONE_LAYER, (2, 2, 2), DESCENT),
    "bert mlm and nsp unrolled": ("bert", {"heads": ("mlm", "nsp"), "num_encoder_layers": 1}, (1, 4, 1, 2), DESCENT),
    "albert": ("albert", {"heads": ("mlm",)}, (2, 2, 2), DESCENT),
    "llama": ("llama", {"num_kv_heads": 2, "num_decoder_layers": 1}, (2, 2, 2), DESCENT),
    "gpt2 scanned": ("gpt2", {"scan_layers": True}, (2, 1, 2, 2), DESCENT),
    "gpt_j": ("gpt_j", {"num_decoder_layers": 1}, (1, 4, 2), DESCENT),
    "gpt_neo scanned": ("gpt_neo", {"scan_layers": True}, (2, 2, 2), DESCENT),
    "t5 decoder": ("t5_decoder", {"num_decoder_layers": 1}, (1, 4, 2), DESCENT),
    "bart": ("bart", ONE_LAYER, (2, 2, 2), DESCENT),
    "bart_mnli": ("bart_mnli", ONE_LAYER, (2, 2, 2), DESCENT),
    "t5_encoder scanned": (
        "t5_encoder",
        {"scan_layers": True, "heads": ("classification",), "num_classes": 3, "pooling": "mean"},
        (1, 2, 2, 2),
        DESCENT,
    ),
    "marian": ("marian", ONE_LAYER, (1, 4, 2), DESCENT),
    "m2m_100 scanned": ("m2m_100", {"scan_layers": True}, (2, 2, 2), DESCENT),
    "umt5 scanned": ("umt5", {"scan_layers": True}, (1, 2, 2, 2), DESCENT),
    "modernbert": ("modernbert", {"heads": ("mlm", *HEADS), "num_classes": 3}, (2, 2, 2), DESCENT),
    "electra": ("electra", {"heads": ("mlm", *HEADS), "num_classes": 3, "num_encoder_layers": 1}, (2, 2, 2), DESCENT),
    "deberta scanned": ("deberta", {"scan_layers": True}, (1, 2, 2, 2), DESCENT),
    "deberta": ("deberta", {"heads": HEADS, "num_classes": 3, "num_encoder_layers": 1}, (1, 4, 2), DESCENT),
    "gemma_2 scanned": ("gemma_2", {"scan_layers": True, "num_kv_heads": 2}, (2, 2, 2), SHORT_STEPS),
    "t5gemma scanned": ("t5gemma", {"scan_layers": True, "num_kv_heads": 2}, (2, 2, 2), SHORT_STEPS),
    "t5gemma2 scanned": ("t5gemma2", {"scan_layers": True, "num_kv_heads": 2}, (2, 2, 2), SHORT_STEPS),
    "t5gemma2": ("t5gemma2", {**ONE_LAYER, "num_kv_heads": 2}, (1, 2, 2, 2), SHORT_STEPS),
    "gemma_3 scanned": ("gemma_3", {"scan_layers": True, "num_kv_heads": 2}, (1, 4, 2), SHORT_STEPS),
    "olmo_2": ("olmo_2", {"num_decoder_layers": 1}, (2, 2, 2), DESCENT),
    "smollm_3 scanned": ("smollm_3", {"scan_layers": True, "num_kv_heads": 2}, (2, 2, 2), DESCENT),
    "cbow": ("cbow", {}, (2, 2, 2), DESCENT),
    "elmo": ("elmo", {"num_encoder_layers": 1}, (1, 4, 2), DESCENT),
    "roberta": ("roberta", {"num_encoder_layers": 1}, (1, 4, 2), DESCENT),
    "distilbert": ("distilbert", {"heads": HEADS, "num_classes": 3, "num_encoder_layers": 1}, (2, 2, 2), DESCENT),
}

# Each has the modules of another case, its value here, which are sharded in the same way.
LIKE_OTHERS = {
    "marian": "bart",
    "m2m_100 scanned": "bart",
    "umt5 scanned": "t5 scanned",
    "t5gemma2": "t5gemma2 scanned",
    "gemma_2 scanned": "t5gemma scanned",
    "smollm_3 scanned": "llama",
    "roberta": "bert mlm and nsp unrolled",
    "distilbert": "electra",
    "gpt2 scanned": "gpt2 unrolled",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in LIKE_OTHERS else ()) for case in CASES]
)
def test_eight_devices_equal_one(case):
    family, changes, mesh, optimizer = CASES[case]
    config = with_dropout(family, **changes)
    one = start(config, optimizer=optimizer, drawn=True)
    eight = start(config, mesh, optimizer=optimizer, state=one.state)
    one.advance(STEPS)
    eight.advance(STEPS)
    for ours, theirs in zip(eight.metrics, one.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert_trees_close(eight.state, one.state, atol=1e-5)
    assert one.metrics[-1]["loss"] != one.metrics[0]["loss"]
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight.state.params))


@pytest.mark.parametrize("case", ["gpt2 unrolled", "bert mlm and nsp scanned", "t5_1_1 unrolled"])
def test_eight_devices_with_the_forms_for_a_gpu_equal_one_cpu(case, monkeypatch):
    family, changes, mesh, _ = CASES[case]
    config = with_dropout(family, **changes, vocab_size=46)  # which a GPU pads in chunks of logits
    options = {"optimizer": DESCENT, "loss_fn": functools.partial(losses.loss_sums, z_loss=1e-3, chunk_tokens=16)}
    one = start(config, drawn=True, **options)
    one.advance(STEPS)
    monkeypatch.setattr(step, "traced_for", lambda _: tracing.traced_for("gpu"))
    eight = start(config, mesh, state=start(config, drawn=True, **options).state, **options)
    eight.advance(STEPS)
    assert_trees_close(eight.state, one.state, atol=1e-5)


def test_no_family_is_left_out():
    assert {family for family, *_ in CASES.values()} == {*FAMILIES, *OTHERS}
    assert {*LIKE_OTHERS.values()} <= {*CASES} - {*LIKE_OTHERS}


def test_the_initial_state_is_the_same_made_in_pieces():
    config = with_dropout("t5", scan_layers=True)
    assert_trees_close(start(config, (2, 2, 2)).state, start(config).state, rtol=1e-6)
