"""Disentangled attention: buckets, products without a gather, long and packed rows, kernels, a published config."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import OTHERS, forward, random_batch, random_params

from t5x_lite.errors import ConfigError
from t5x_lite.hub import mapping, parameters
from t5x_lite.hub.families import FAMILIES
from t5x_lite.models import attention, attention_reference, build, transformer
from t5x_lite.models.attention_disentangled import DisentangledBias, distance_buckets
from t5x_lite.models.attention_scope import Scope
from t5x_lite.models.presets import PRESETS, preset

DEBERTA_V3_BASE = {  # the published config.json
    "model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 512,
    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1, "position_biased_input": False,
    "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 0, "vocab_size": 128100,
}  # fmt: skip


def test_buckets_in_closed_form():
    # distances up to 128 have a bucket each, then 128·(511/128)^(j/127); the first rows are for keys after the query
    got = distance_buckets(np.array([0, 1, 128, 129, 130, 510, 511, 10**6, -1, -128, -511, -(10**6)]), 512, 512)
    assert got.tolist() == [256, 257, 384, 385, 386, 511, 511, 511, 255, 128, 1, 0]
    assert distance_buckets(np.array([0, 4, 5, 6, -5, -6, -7]), 10, 5).tolist() == [5, 9, 9, 9, 0, 0, 0]


@pytest.mark.parametrize(("buckets", "limit"), [(256, 512), (256, 1024), (32, 64), (3, 8), (2, 9), (8, 33), (5, 6)])
def test_buckets_equal_transformers(buckets, limit):
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
    pytest.importorskip("transformers", reason="parity needs the extra `parity`")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = np.arange(-3000, 3001)
    expected = make_log_bucket_position(torch.tensor(distances), buckets, limit).long() + buckets
    np.testing.assert_array_equal(
        distance_buckets(distances, 2 * buckets, limit), expected.clamp(0, 2 * buckets - 1).numpy()
    )


@pytest.mark.parametrize(("length", "attended"), [(9, 9), (3, 7), (6, 2), (1, 4), (4, 1), (1, 1)])
def test_products_equal_their_definition_and_so_do_gradients(length, attended):
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.normal, size=None)
    arrays = [
        jnp.asarray(draw(size=shape), jnp.float32)
        for shape in ((2, length, 3, 4), (2, 3, attended, 4), (3, 6, 4), (3, 6, 4))
    ]
    cotangent_BHLM = jnp.asarray(draw(size=(2, 3, length, attended)), jnp.float32)
    buckets_LM = distance_buckets(np.arange(length)[:, None] - np.arange(attended), 6, 5)

    def defined(query_BLHK, key_BHMK, query_HNK, key_HNK):
        of_queries = jnp.einsum("BLHK,HLMK->BHLM", query_BLHK, key_HNK[:, buckets_LM])
        return of_queries + jnp.einsum("BHMK,HLMK->BHLM", key_BHMK, query_HNK[:, buckets_LM])

    def ours(query_BLHK, key_BHMK, query_HNK, key_HNK):
        return DisentangledBias(query_HNK, key_HNK, 5).between(query_BLHK, key_BHMK)

    (got, got_vjp), (expected, expected_vjp) = (jax.vjp(f, *arrays) for f in (ours, defined))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(got_vjp(cotangent_BHLM), expected_vjp(cotangent_BHLM), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("buckets", [4, -1])
def test_long_packed_rows_equal_transformers_on_each_text_alone(buckets, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
    pytest.importorskip("transformers", reason="parity needs the extra `parity`")
    from test_hub_parity import DEBERTA, MODELS, reference

    settings = DEBERTA | {"position_buckets": buckets, "max_relative_positions": 12, "max_position_embeddings": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "deberta_long", ("DebertaV2ForMaskedLM", settings))
        model = reference("deberta_long")
    model.save_pretrained(tmp_path)
    found = parameters.open_directory(tmp_path)
    config = dataclasses.replace(found.config, dropout_rate=0.0, attention_dropout_rate=0.0)
    params, _ = parameters.load(found, config, parameters.layout_for(config))
    lengths = ((31, 17, 2), (48, 0, 0))
    batch = random_batch(config, segments=lengths)
    batch["mlm_positions"] = np.tile(np.arange(51, dtype=np.int32), (2, 1))
    got = forward(config, params, batch)["mlm"]
    for row, texts in enumerate(lengths):
        start = 0
        for length in filter(None, texts):
            tokens = batch["encoder_input_tokens"][row, start : start + length]
            with torch.no_grad():
                expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
            np.testing.assert_allclose(got[row, start : start + length], expected, rtol=1e-5, atol=1e-5)
            start += length


def test_auto_takes_the_reference_kernel_and_others_refuse():
    config, ids = PRESETS["deberta_v3_base"], jnp.ones((1, 2048), jnp.int32)
    vectors = jnp.ones((1, 4, 1))
    scope = Scope(ids, ids, ids, ids, bias=DisentangledBias(vectors, vectors, 2))
    assert attention.prepare(config, scope).kernel is attention_reference.KERNEL
    for name in ("blockwise", "pallas"):
        with pytest.raises(ConfigError, match=f"model.attention='{name}': it cannot add model.positions=disentangled"):
            attention.prepare(dataclasses.replace(config, attention=name), scope)


def test_each_layer_drops_other_entries_of_the_vectors():
    """As in transformers: each layer draws its own mask of the shared vectors."""
    config = dataclasses.replace(OTHERS["deberta"], dropout_rate=0.5, heads=())
    seen = []

    class Recorded(attention.Attention):
        def of_distances(self, vectors_ND):
            seen.append(vectors_ND)
            return super().of_distances(vectors_ND)

    params, batch, key = random_params(config), random_batch(config), jax.random.key(1, impl="unsafe_rbg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "Attention", Recorded)
        build(config).apply({"params": params}, batch, True, rngs={"dropout": key})
        first, second = seen
        build(config).apply({"params": params}, batch)
    shares = [float((vectors == 0).mean()) for vectors in (first, second)]
    np.testing.assert_allclose(shares, 0.5, atol=0.25)
    assert ((first == 0) != (second == 0)).any()
    assert (seen[2] == seen[3]).all() and (seen[2] != 0).all()


def test_positions_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"relative_buckets must be even, from 4 to twice relative_max_distance"):
        preset("deberta_v3_base", relative_max_distance=255)
    with pytest.raises(ConfigError, match=r"model.positions='disentangled' is for encoder_only models"):
        preset("gpt2", positions="disentangled", relative_buckets=8, relative_max_distance=8)


def test_the_published_config_describes_the_preset_with_the_published_number_of_parameters():
    family = FAMILIES["deberta-v2"]
    config = mapping.read_config(DEBERTA_V3_BASE, family, Path("config.json"))
    assert dataclasses.replace(config, heads=("mlm",)) == PRESETS["deberta_v3_base"]
    shapes = {path: shape for path, (shape, _) in parameters.abstract(config).items()}
    assert sum(map(np.prod, shapes.values())) == 183_831_552
    names = {binding.key: binding.their_shape for binding in mapping.bindings(family, shapes)}
    assert names["deberta.encoder.rel_embeddings.weight"] == (512, 768)
    assert names["deberta.encoder.layer.11.attention.self.query_proj.weight"] == (768, 768)
    written = mapping.write_config(config, family)
    assert mapping.read_config(written, family, Path("config.json")) == config
