"""CBOW and ELMo: which tokens they see, and that neighbouring examples in a row change nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import OTHERS, forward, random_batch, random_params

from t5x_lite.errors import ConfigError
from t5x_lite.models import build
from t5x_lite.models.presets import preset

CONFIGS = {
    name: dataclasses.replace(OTHERS[name], heads=("mlm", "classification"), num_classes=3) for name in ("cbow", "elmo")
}


def batch_of(config, segments):
    batch = random_batch(config, segments=segments)
    rows = len(segments)
    batch["mlm_positions"] = np.tile(np.array([2, 6] if rows == 1 else [2, 1], np.int32), (rows, 1))
    batch["pooled_positions"] = np.array([[0, 5]] if rows == 1 else [[0, 0]] * 2, np.int32)
    return batch


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_unpacked(name):
    config = CONFIGS[name]
    params = random_params(config)
    packed, alone = batch_of(config, [(5, 3)]), batch_of(config, [(5,), (3,)])
    tokens = packed["encoder_input_tokens"][0]
    alone["encoder_input_tokens"][0, :5], alone["encoder_input_tokens"][1, :3] = tokens[:5], tokens[5:8]
    a, b = forward(config, params, packed), forward(config, params, alone)
    for head, column in (("mlm", (0, 1)), ("classification", (0, 0))):
        for example in (0, 1):
            np.testing.assert_allclose(a[head][0, example], b[head][example, column[example]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "seen"), [("cbow", [2, 3, 5, 6]), ("elmo", [0, 1, 2, 3, 5, 6, 7, 8])])
def test_a_masked_token_is_predicted_from_its_neighbours_alone(name, seen):
    """By gradient: in an example of 9 tokens, token 4 depends on 2 on each side, or on all others."""
    config = dataclasses.replace(CONFIGS[name], heads=("mlm",))
    batch = random_batch(config, segments=[(9, 3)]) | {"mlm_positions": np.array([[4]], np.int32)}
    batch["encoder_input_tokens"] = np.arange(13, dtype=np.int32)[None]  # every position reads its own row of the table
    params = random_params(config)

    def others_V(table):
        inner = params | {"token_embedding": {"embedding": table}}
        return build(config).apply({"params": inner}, batch)["mlm"][0, 0, 13:]  # whose rows no position reads

    jacobian_VRD = jax.jit(jax.jacrev(others_V))(params["token_embedding"]["embedding"])
    found = np.abs(jacobian_VRD).max(axis=(0, 2))[:13] > 1e-7
    assert np.flatnonzero(found).tolist() == seen
    turned = batch | {"encoder_input_tokens": batch["encoder_input_tokens"].copy()}
    turned["encoder_input_tokens"][0, 2:7] = turned["encoder_input_tokens"][0, 6:1:-1]
    a, b = (forward(config, params, tokens)["mlm"] for tokens in (batch, turned))
    assert np.allclose(a, b, atol=1e-6) == (name == "cbow")  # only CBOW ignores the order


def test_the_ancestors_are_encoders():
    with pytest.raises(ConfigError, match=r"model\.body='elmo' is for encoder_only models with an even d_model"):
        preset("elmo_tiny", heads=("span",))
    with pytest.raises(ConfigError, match=r"unknown model\.body 'cbov'; did you mean 'cbow'"):
        preset("elmo_tiny", body="cbov")
