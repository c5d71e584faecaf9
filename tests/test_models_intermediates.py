"""Hidden states and attention maps: equal however layers are run, and absent unless requested."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import FAMILIES, forward, random_batch, random_params

from t5x_lite.models import build, intermediates
from t5x_lite.models.transformer import stack_layers


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("family", ["t5", "albert"])
def test_scanned_layers_give_the_intermediates_of_unrolled_ones(family):
    config = FAMILIES[family]
    params, batch = random_params(config), random_batch(config)
    scanned = dataclasses.replace(config, scan_layers=True)
    run = jax.jit(lambda config, p: intermediates.apply(build(config), p, batch), static_argnums=0)
    outputs, found = run(config, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        (outputs, found),
        run(scanned, stack_layers(params)),
    )
    jax.tree.map(np.testing.assert_array_equal, outputs, forward(config, params, batch))
    B, S = batch["encoder_segment_ids"].shape
    assert found.hidden["encoder"].shape == (3, B, S, config.d_model)
    assert set(found.attention) == ({"decoder", "encoder", "cross"} if family == "t5" else {"encoder"})
    same = batch["encoder_segment_ids"][:, :, None] == batch["encoder_segment_ids"][:, None, :]
    for name, map_NBHLM in found.attention.items():
        assert map_NBHLM.shape == (2, B, config.num_heads, S, S)
        np.testing.assert_allclose(map_NBHLM.sum(-1), 1, atol=1e-5)
        assert not map_NBHLM.swapaxes(1, 2)[:, :, ~same].any(), name


@pytest.mark.parametrize("scan_layers", [False, True])
def test_nothing_is_computed_for_them_unless_asked_for(scan_layers):
    """The program without maps has one softmax per attention; the program with maps has one more."""
    config = dataclasses.replace(FAMILIES["t5"], scan_layers=scan_layers)
    params, batch = random_params(config), random_batch(config)
    module = build(config)
    quiet = str(jax.make_jaxpr(lambda p: module.apply({"params": p}, batch))(params))
    asked = str(jax.make_jaxpr(lambda p: intermediates.apply(module, p, batch))(params))
    attentions = 3 if scan_layers else 6  # two layers of self-attention, two that also have cross-attention
    assert quiet.count(" exp ") == attentions and asked.count(" exp ") == 2 * attentions
