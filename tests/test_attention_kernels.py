"""Every kernel of attention equals the reference, and the texts packed in a row never read each other."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from t5x_lite.cluster.sharding import Layout, make_mesh
from t5x_lite.costs import flops
from t5x_lite.errors import ConfigError
from t5x_lite.models import attention, attention_blockwise, attention_pallas
from t5x_lite.models.attention_scope import Dropout, Scope
from t5x_lite.models.config import KERNELS
from t5x_lite.models.layers import unconstrained
from t5x_lite.models.positions import BiasTable
from t5x_lite.models.presets import preset

OTHERS = [name for name in KERNELS if name != "reference"]
REFERENCE = attention.kernel("reference")
B, H, K = 2, 4, 8
# (queries, keys, causal, window, heads of keys, has biases, dropout rate, whether queries share a dropout mask, dtype)
PROGRAMS = {
    "bert": (13, 13, False, 0, 4, False, 0.0, False, "float32"),
    "bert_dropout": (13, 13, False, 0, 4, False, 0.3, False, "float32"),
    "two_sided_window": (17, 17, False, 3, 4, False, 0.2, False, "float32"),
    "gpt2_dropout": (16, 16, True, 0, 4, False, 0.3, False, "float32"),
    "gpt_neo": (17, 17, True, 5, 4, False, 0.0, False, "float32"),
    "llama": (11, 11, True, 0, 2, False, 0.0, False, "float32"),
    "t5_encoder": (13, 13, False, 0, 4, True, 0.3, True, "float32"),
    "t5_decoder": (9, 9, True, 0, 4, True, 0.0, True, "float32"),
    "t5_cross": (7, 18, False, 0, 4, False, 0.2, True, "float32"),
    "grouped_biases": (12, 12, True, 6, 2, True, 0.2, False, "float32"),
    "one_query": (1, 5, False, 0, 4, False, 0.0, False, "float32"),
    "t5_bfloat16": (13, 13, False, 0, 4, True, 0.3, True, "bfloat16"),
    "llama_bfloat16": (11, 11, True, 0, 1, False, 0.1, False, "bfloat16"),
    "gemma_2": (14, 14, True, 5, 2, False, 0.2, False, "float32"),
    "t5gemma2_encoder": (17, 17, False, 4, 2, False, 0.2, False, "float32"),
}
SOFTCAPS, SKEWS = {"gemma_2": 1.5}, {"t5gemma2_encoder": 1}


# Pallas' interpreter takes seconds to compile a program, so the fast tests have few of its programs.
QUICK = ("two_sided_window", "grouped_biases", "t5_cross", "t5_bfloat16")
CASES = [(kernel, QUICK if kernel == "pallas" else tuple(PROGRAMS)) for kernel in OTHERS]
CASES.append(pytest.param("pallas", tuple(PROGRAMS.keys() - SOFTCAPS.keys() - SKEWS.keys()), marks=pytest.mark.slow))  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_blockwise, "BLOCK", 4)
        interpreter = attention_pallas.BACKENDS["default"]
        patch.setitem(attention_pallas.BACKENDS, "default", interpreter._replace(block=4))
        yield


def program(kernel, name: str, constrain=unconstrained):
    """Returns a jitted function of (arrays, query ids, key ids, dropout key, cotangent) -> (heads, gradients)."""
    L, M, causal, window, _, has_bias, rate, broadcasts, _ = PROGRAMS[name]

    def attend(arrays, query_ids, key_ids, key):
        bias = BiasTable(arrays["bias"], not causal, 16) if has_bias else None
        positions = (jnp.broadcast_to(jnp.arange(n), (B, n)) for n in (L, M))
        scope = Scope(query_ids, key_ids, *positions, bias=bias, causal=causal, window=window, constrain=constrain)
        scope = dataclasses.replace(scope, softcap=SOFTCAPS.get(name, 0.0), skew=SKEWS.get(name, 0))
        read = arrays["query"], arrays["key"], arrays["value"], kernel.prepare(scope)
        return kernel.attend(*read, bool(window), Dropout(rate, key, broadcasts))

    @jax.jit
    def run(arrays, query_ids, key_ids, key, cotangent):
        heads, backward = jax.vjp(lambda arrays: attend(arrays, query_ids, key_ids, key), arrays)
        return heads, backward(cotangent)[0]

    return run


COMPILED = {}


def result(kernel: str, name: str, *arguments):
    if (kernel, name) not in COMPILED:
        COMPILED[kernel, name] = program(attention.kernel(kernel), name)
    return jax.device_get(COMPILED[kernel, name](*arguments))


def example(name: str, rng: np.random.Generator):
    """Returns (arrays, query ids, key ids, dropout key, cotangent) of random packed rows; padding gets no cotangent."""
    L, M, _, _, G, _, _, _, dtype = PROGRAMS[name]
    shapes = {"query": (B, L, H, K), "key": (B, G, M, K), "value": (B, G, M, K)}
    arrays = {array: jnp.asarray(rng.normal(size=shape), dtype) for array, shape in shapes.items()}
    arrays["bias"] = jnp.asarray(rng.normal(size=(H, 8)), jnp.float32)

    def packed(length: int, texts: int) -> np.ndarray:
        """Returns the ids of a row of texts of random lengths, some of them 0, and of padding."""
        ends = np.sort(rng.integers(0, length + 1, texts))
        ids = np.searchsorted(ends, np.arange(length), side="right") + 1
        return np.where(ids > texts, 0, ids)

    texts = rng.integers(1, 5, B)
    key_ids = np.stack([packed(M, n) for n in texts])
    query_ids = key_ids if L == M else np.stack([packed(L, n) for n in texts])
    is_read = (query_ids[:, :, None] == key_ids[:, None, :]).any(-1) & (query_ids > 0)
    cotangent = rng.normal(size=(B, L, H, K)) * is_read[..., None, None]
    key = jax.random.key(int(rng.integers(2**31)))
    return arrays, query_ids, key_ids, key, jnp.asarray(cotangent, dtype), is_read


@pytest.mark.parametrize(("kernel", "programs"), CASES)
@settings(max_examples=500, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_kernel_s_heads_and_gradients_equal_the_reference_s(kernel, programs, data, seed):
    """float32: within 1e-5 of the largest entry. bfloat16: within 2 % of float32's, by norm."""
    name = data.draw(st.sampled_from(programs))
    arrays, *others, cotangent, is_read = example(name, np.random.default_rng(seed))
    heads, gradients = result(kernel, name, arrays, *others, cotangent)
    wide = {array: values.astype(jnp.float32) for array, values in arrays.items()}
    expected, expected_gradients = result("reference", name, wide, *others, cotangent.astype(jnp.float32))
    assert np.isfinite(np.float32(heads)).all()
    pairs = [(heads[is_read], expected[is_read])] + [(gradients[name], expected_gradients[name]) for name in gradients]
    for ours, reference in pairs:
        if PROGRAMS[name][-1] == "float32":
            np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * max(1.0, np.abs(reference).max(initial=0)))
        else:
            scale = np.linalg.norm(reference) + np.linalg.norm(np.float32(cotangent))
            assert np.linalg.norm(np.float32(ours) - reference) <= 0.02 * scale


@pytest.mark.parametrize(("kernel", "programs"), CASES)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_text_s_gradient_into_others_is_exactly_0(kernel, programs, data, seed):
    name = data.draw(st.sampled_from(programs))
    arrays, query_ids, key_ids, key, cotangent, _ = example(name, np.random.default_rng(seed))
    only = jnp.where((query_ids == 1)[..., None, None], cotangent, 0)
    _, gradients = result(kernel, name, arrays, query_ids, key_ids, key, only)
    assert not gradients["query"][query_ids != 1].any()
    for array in ("key", "value"):
        assert not gradients[array].swapaxes(1, 2)[key_ids != 1].any()


def test_pallas_reads_no_block_of_another_text():
    """NaN in one text reaches no other text, though a weight of 0 times NaN is NaN. So packed rows cost less."""
    arrays, _, _, key, cotangent, _ = example("two_sided_window", np.random.default_rng(0))
    ids = np.array([[1] * 8 + [2] * 8 + [0]] * B)  # blocks of 4
    for array, axis in (("query", 1), ("key", 2), ("value", 2)):
        arrays[array] = jnp.where(np.expand_dims(ids == 2, [a for a in (1, 2, 3) if a != axis]), np.nan, arrays[array])
    cotangent = jnp.where(ids[..., None, None] == 2, np.nan, cotangent)
    heads, gradients = result("pallas", "two_sided_window", arrays, ids, ids, key, cotangent)
    assert np.isnan(heads[ids == 2]).all()
    for x_BLHK in (heads, gradients["query"], gradients["key"].swapaxes(1, 2), gradients["value"].swapaxes(1, 2)):
        assert np.isfinite(x_BLHK[ids == 1]).all()


def test_devices_compute_their_own_rows_and_heads():
    """By the results, and because no device gathers an array."""
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices")
    layout = Layout(make_mesh(jax.devices()[:4], data=2, tensor=2))
    arrays, query_ids, key_ids, key, cotangent, _ = example("grouped_biases", np.random.default_rng(0))
    rows, keys = layout.sharding(("batch", None, "heads")), layout.sharding(("batch", "heads"))
    places = {"query": rows, "key": keys, "value": keys, "bias": layout.sharding(("heads",))}
    ids = layout.sharding(("batch",))
    divided = jax.device_put((arrays, query_ids, key_ids, key, cotangent), (places, ids, ids, layout.replicated, rows))
    compiled = program(attention_pallas.KERNEL, "grouped_biases", layout).lower(*divided).compile()
    assert "all-gather" not in str(compiled.as_text())
    ours, expected = compiled(*divided), result("pallas", "grouped_biases", arrays, query_ids, key_ids, key, cotangent)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_a_tpu_s_kernels_equal_the_reference(monkeypatch):
    """They read arrays in another layout, and sum the biases' gradients in another order."""
    interpreter = attention_pallas.BACKENDS["default"]
    monkeypatch.setitem(attention_pallas.BACKENDS, "default", interpreter._replace(is_mosaic=True))
    *arguments, _ = example("grouped_biases", np.random.default_rng(1))
    ours = program(attention_pallas.KERNEL, "grouped_biases")(*arguments)
    expected = result("reference", "grouped_biases", *arguments)
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    ("platform", "target", "device"),
    [("cuda", "__gpu$xla.gpu.triton", ("NVIDIA H200", None, "gpu")), ("tpu", "tpu_custom_call", ("TPU v5e", 1, "tpu"))],
)
@pytest.mark.parametrize("name", QUICK)
def test_pallas_lowers_for_gpus_and_tpus(name, platform, target, device):
    """Needs no such device. The kernels are heads, d_query, d_key_value and, with biases, d_bias."""
    *arguments, _ = example(name, np.random.default_rng(0))
    mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=AbstractDevice(*device))
    with jax.sharding.use_abstract_mesh(mesh):
        text = program(attention_pallas.KERNEL, name).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    kernels = 3 + PROGRAMS[name][5]
    assert text.count(f"custom_call @{target}") == kernels
    assert len(set(re.findall(r"(heads|d_query|d_key_value|d_bias)_flops_[1-9]", text))) == kernels  # for the roofline


def test_the_flops_of_pallas_kernels_count():
    """Two kernels of the backward pass compute the logits and the gradients of the weights: 9 products, not 7."""
    *arguments, _ = example("bert", np.random.default_rng(0))
    kernels = (attention.kernel(name) for name in ("pallas", "reference"))
    ours, reference = (flops.count(program(kernel, "bert").trace(*arguments).jaxpr) for kernel in kernels)
    assert ours == reference * 9 / 6


@pytest.mark.parametrize(
    ("platform", "length", "head_dim", "automatic", "accepted"),
    [
        ("cpu", 512, 64, "reference", True),
        ("cpu", 1024, 64, "blockwise", True),
        ("gpu", 128, 64, "reference", True),
        ("gpu", 128, 256, "reference", False),
        ("tpu", 1024, 64, "blockwise", True),
        ("tpu", 16384, 64, "blockwise", False),
    ],
)
def test_auto_goes_by_length_and_a_named_kernel_may_refuse(
    monkeypatch, platform, length, head_dim, automatic, accepted
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    config = preset("t5_1_1_small", head_dim=head_dim)
    ids = jnp.ones((1, length), jnp.int32)
    scope = Scope(ids, ids, ids, ids)
    kernel = attention.kernel(automatic)
    assert attention.prepare(config, scope).kernel is kernel
    named = dataclasses.replace(config, attention="pallas")
    if accepted:
        assert attention.prepare(named, scope).kernel is attention_pallas.KERNEL
    else:
        with pytest.raises(ConfigError, match=r"model.attention='pallas'.*(256|16384).*use auto"):
            attention.prepare(named, scope)
