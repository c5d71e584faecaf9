"""Outputs and gradients of T5, BERT and GPT-2 equal those of numpy_models.py, which reads every packed text alone."""

import re

import jax
import numpy as np
import numpy_models as plain
import pytest
from flax.traverse_util import flatten_dict
from tiny_models import FAMILIES, forward, random_batch, random_params

from t5x_lite.training import losses

pytestmark = pytest.mark.usefixtures("full_compilation")
NAMES = ("t5", "t5_1_1", "bert", "gpt2")
SEGMENTS = ((5, 3, 1), (8, 1, 0), (23, 0, 0))  # lengths of the texts of each row


def flat(params) -> plain.Params:
    return plain.Params({path: np.float64(value) for path, value in flatten_dict(params, sep="/").items()})


def example(name: str):
    """(config, parameters, batch) with random targets for every loss of the model."""
    config, rng = FAMILIES[name], np.random.default_rng(7)
    batch = random_batch(config, SEGMENTS)
    rows, length = batch["encoder_segment_ids"].shape
    starts = np.cumsum([(0, *row[:-1]) for row in SEGMENTS], axis=1).astype(np.int32)
    batch |= {
        "decoder_target_tokens": rng.integers(0, config.vocab_size, (rows, length)),
        "decoder_loss_weights": (batch["decoder_segment_ids"] > 0).astype(np.float32),
        "mlm_targets": rng.integers(0, config.vocab_size, (rows, 4)),
        "mlm_weights": np.ones((rows, 4), np.float32),  # positions 0 to 3, all in a row's first text
        "pooled_positions": starts,
        "nsp_targets": rng.integers(0, 2, (rows, 3)),
        "nsp_weights": (np.array(SEGMENTS) > 0).astype(np.float32),
    }
    return config, random_params(config), batch


def texts(batch):
    """(row, positions in the row) of each text."""
    for row, segment_ids in enumerate(batch["encoder_segment_ids"]):
        for segment in range(1, segment_ids.max() + 1):
            yield row, np.flatnonzero(segment_ids == segment)


def outputs(name: str, params: plain.Params, batch):
    """{head: [(row, indices in the head's output, logits)]} by numpy_models.py."""
    source, target, types = (batch[key] for key in ("encoder_input_tokens", "decoder_input_tokens", "token_type_ids"))
    if name == "bert":
        heads: dict[str, list] = {"mlm": [], "nsp": []}
        for row, at in texts(batch):
            hidden_SD = plain.bert(params, source[row, at], types[row, at])
            if at[0] == 0:
                heads["mlm"].append((row, np.arange(4), plain.bert_mlm(params, hidden_SD[:4])))
            slot = np.flatnonzero(batch["pooled_positions"][row] == at[0])[:1]
            pooled_D = plain.bert_pooled(params, hidden_SD)
            heads["nsp"].append((row, slot, plain.dense(params.under("nsp"), pooled_D)[None]))
        return heads
    if name == "gpt2":
        return {"lm": [(row, at, plain.gpt2(params, target[row, at])) for row, at in texts(batch)]}
    gated = name == "t5_1_1"
    return {"lm": [(row, at, plain.t5(params, source[row, at], target[row, at], gated)) for row, at in texts(batch)]}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_packed_texts_equal_numpy_s_of_each_text_alone(name):
    config, params, batch = example(name)
    ours = forward(config, params, batch)
    expected = outputs(name, flat(params), batch)
    assert set(ours) == set(expected)
    for head, parts in expected.items():
        for row, at, logits in parts:
            np.testing.assert_allclose(ours[head][row, at], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["t5_1_1", "bert", "gpt2"])
def test_the_gradient_equals_numpy_s_slope(name):
    """grad·u = (loss(params + hu) - loss(params - hu)) / 2h along random u with the signs of our gradient.

    With these signs no terms of grad·u cancel, so its float32 error is small beside its value.
    """
    config, params, batch = example(name)

    def loss(params):
        sums = losses.loss_sums(forward(config, params, batch), batch)
        return sum(head.sum for head in sums.values())

    def loss_in_numpy(params: plain.Params) -> float:
        total = 0.0
        for head, parts in outputs(name, params, batch).items():
            targets = batch["decoder_target_tokens" if head == "lm" else f"{head}_targets"]
            total += sum(plain.cross_entropy(logits, targets[row, at]) for row, at, logits in parts)
        return total

    value, gradient = jax.value_and_grad(loss)(params)
    start, slopes = flat(params), flat(gradient)
    np.testing.assert_allclose(value, loss_in_numpy(start), rtol=1e-6)
    rng, h = np.random.default_rng(0), 1e-5
    for kind in dict.fromkeys(re.sub(r"_\d+/", "_*/", path) for path in start):  # a parameter of all layers at once
        paths = [path for path in start if re.sub(r"_\d+/", "_*/", path) == kind]
        sizes = {path: np.abs(rng.normal(size=start[path].shape)) for path in paths}
        directions = {path: np.where(slopes[path] < 0, -sizes[path], sizes[path]) for path in paths}
        moved = ({path: start[path] + s * h * directions[path] for path in paths} for s in (1, -1))
        up, down = (loss_in_numpy(plain.Params(start | values)) for values in moved)
        ours = sum((slopes[path] * directions[path]).sum() for path in paths)
        np.testing.assert_allclose(ours, (up - down) / (2 * h), rtol=1e-5, atol=1e-5, err_msg=kind)
