"""Attention divided over devices equals that of one device, and no device holds whole rows for all heads."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, random_batch, random_params

from t5x_lite.cluster import sharding
from t5x_lite.cluster.sharding import Layout, make_mesh
from t5x_lite.models import attention_blockwise, attention_pallas, build
from t5x_lite.models.layers import unconstrained

SEGMENTS = [(5, 6, 4), (15,), (2, 8), (9, 3)]  # of rows of 16 tokens
DROPOUT = {"dropout_rate": 0.1, "attention_dropout_rate": 0.2}
ONE_LAYER = {"num_encoder_layers": 1, "num_decoder_layers": 1}
DECODER = {"num_decoder_layers": 1}
HEADS = {"num_heads": 8, "head_dim": 2}
# kernel, family, changes, sizes of the mesh. With 2 or 3 heads on `sequence=8`, heads are added.
CASES = {
    "t5 2": ("reference", "t5", ONE_LAYER, {"sequence": 2, "data": 4}),
    "t5 4": ("blockwise", "t5", ONE_LAYER | HEADS, {"sequence": 4, "tensor": 2}),
    "t5 8": ("blockwise", "t5", ONE_LAYER | {"num_heads": 3}, {"sequence": 8}),
    "bert 2": ("blockwise", "bert", {"num_encoder_layers": 1}, {"sequence": 2, "data": 2, "tensor": 2}),
    "bert 4": ("reference", "bert", {"num_encoder_layers": 1}, {"sequence": 4, "fsdp": 2}),
    "bert 8": ("reference", "bert", {"num_encoder_layers": 1} | HEADS, {"sequence": 8}),
    "gpt2 2": ("reference", "gpt2", DECODER, {"sequence": 2, "fsdp": 4}),
    "gpt2 4": ("blockwise", "gpt2", DECODER, {"sequence": 4, "data": 2}),
    "gpt2 8": ("blockwise", "gpt2", {"scan_layers": True} | HEADS, {"sequence": 8}),
    "grouped 2": ("blockwise", "llama", DECODER | {"num_kv_heads": 1}, {"sequence": 2, "data": 4}),
    "grouped 4": ("reference", "llama", DECODER | HEADS | {"num_kv_heads": 2}, {"sequence": 4, "tensor": 2}),
    "biases 8": ("reference", "t5_decoder", DECODER | {"num_heads": 2}, {"sequence": 8}),
    "pallas 4": ("pallas", "t5_decoder", DECODER | HEADS | {"local_window": 5}, {"sequence": 4, "data": 2}),
    "pallas 8": ("pallas", "llama", DECODER | {"num_kv_heads": 2}, {"sequence": 8}),
}


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_blockwise, "BLOCK", 4)
        interpreter = attention_pallas.BACKENDS["default"]
        patch.setitem(attention_pallas.BACKENDS, "default", interpreter._replace(block=8))
        yield


def loss_and_gradients(config, constrain):
    """Returns a jitted function of (parameters, batch): a product of the outputs with random numbers, in training."""
    module = build(config, constrain)

    def loss(params, batch):
        outputs = module.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(1)})
        draws = {name: np.random.default_rng(2).normal(size=x.shape) for name, x in outputs.items()}
        return sum(jnp.sum(x * draws[name].astype(np.float32)) / x.size for name, x in outputs.items())

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("case", CASES)
def test_eight_devices_equal_one(case):
    kernel, family, changes, mesh = CASES[case]
    config = dataclasses.replace(FAMILIES[family], **DROPOUT | changes, attention=kernel)
    layout = Layout(make_mesh(**mesh))
    params, batch = random_params(config), random_batch(config, SEGMENTS)
    ours = loss_and_gradients(config, layout)(params, sharding.put_batch(batch, layout))
    expected = loss_and_gradients(dataclasses.replace(config, attention="reference"), unconstrained)(params, batch)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("kernel", ["blockwise", "pallas"])
@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_no_device_holds_whole_rows_for_all_heads(family, kernel, monkeypatch):
    """By the sizes of the compiled program's arrays: none is half as large as the keys, or as the scores of a head."""
    monkeypatch.setattr(attention_blockwise, "BLOCK", 16)
    interpreter = attention_pallas.BACKENDS["default"]
    monkeypatch.setitem(attention_pallas.BACKENDS, "default", interpreter._replace(block=16))
    L, H, K = 512, 8, 16
    sizes = {"num_heads": H, "head_dim": K, "d_model": H * K, "d_ff": 8, "vocab_size": 16}
    layers = {name: 1 for name in ONE_LAYER if getattr(FAMILIES[family], name)}
    config = dataclasses.replace(FAMILIES[family], **DROPOUT, **sizes, **layers, attention=kernel)
    batch = random_batch(config, [(100,) * 5 + (11,)])
    layout = Layout(make_mesh(sequence=8))
    shapes = jax.eval_shape(lambda: random_params(config))
    text = str(loss_and_gradients(config, layout).lower(shapes, sharding.put_batch(batch, layout)).compile().as_text())
    arrays = {tuple(map(int, shape.split(","))) for shape in re.findall(r"(?:f32|bf16|pred|u32|s32)\[([\d,]+)\]", text)}
    assert "all-to-all" in text
    largest = max(arrays, key=math.prod)
    assert math.prod(largest) < min(L * H * K, L * L) / 2, largest


def test_layers_gather_no_rows():
    """Of several rows on one device, no layer puts the positions of all rows along one axis."""
    config = dataclasses.replace(FAMILIES["gpt2"], **DECODER, attention="blockwise")
    layout, batch = Layout(make_mesh(sequence=8)), random_batch(config, SEGMENTS)
    shapes = jax.eval_shape(lambda: random_params(config))
    text = str(loss_and_gradients(config, layout).lower(shapes, sharding.put_batch(batch, layout)).compile().as_text())
    gathers = [line for line in text.splitlines() if " all-gather(" in line]
    assert not [line for line in gathers if "layers_" in line]
