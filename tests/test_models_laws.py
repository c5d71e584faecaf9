"""Laws of the models: which token sees which, and what must not change the numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, OTHERS, forward, random_batch, random_params

from t5x_lite.cluster import sharding
from t5x_lite.costs import flops
from t5x_lite.errors import ConfigError
from t5x_lite.models import attention, attention_blockwise, build
from t5x_lite.models.attention_pallas import BACKENDS
from t5x_lite.models.layers import dropout, random_bits, recomputed
from t5x_lite.models.tracing import traced_for
from t5x_lite.models.transformer import stack_layers, unstack_layers


def assert_trees_close(got, expected, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


def loss(config, params, batch, key=None):
    """Returns a sum over all outputs in which every entry has a different weight."""
    rngs = None if key is None else {"dropout": key}
    outputs = build(config).apply({"params": params}, batch, key is not None, rngs=rngs)
    return sum(jnp.sum(x * jnp.sin(jnp.arange(x.size)).reshape(x.shape)) for x in outputs.values())


@pytest.mark.parametrize("family", [*FAMILIES, "deberta"])
def test_who_sees_whom(family):
    """By gradient: output l depends on token m iff both are in one segment and, in a decoder, m ≤ l."""
    # every position reads its own row of the table, and the table makes no logits
    config = dataclasses.replace((FAMILIES | OTHERS)[family], vocab_size=64, tie_embeddings=False, heads=())
    batch = random_batch(config, segments=((5, 3),))
    length = batch["encoder_segment_ids"].shape[1]
    batch["encoder_input_tokens"] = np.arange(length, dtype=np.int32)[None]
    batch["decoder_input_tokens"] = np.arange(length, dtype=np.int32)[None] + 32
    params = random_params(config)
    module = build(config)

    def outputs_L(table):
        inner = params | {"token_embedding": {"embedding": table}}
        (x_BLC,) = module.apply({"params": inner}, batch).values()
        return jnp.sum(x_BLC[0] * jnp.sin(jnp.arange(x_BLC.shape[-1]))[None, :], axis=-1)

    jacobian_LVD = jax.jit(jax.jacrev(outputs_L))(params["token_embedding"]["embedding"])
    seen_LV = np.abs(jacobian_LVD).max(axis=-1) > 1e-7
    segments = batch["encoder_segment_ids"][0]
    real = segments > 0
    same = (segments[:, None] == segments)[real]
    if config.architecture == "encoder_only":
        np.testing.assert_array_equal(seen_LV[real][:, :length][:, real], same[:, real])
        assert not seen_LV[real][:, ~np.isin(np.arange(64), np.flatnonzero(real))].any(), "padding is seen"
        return
    causal = same & (np.arange(length)[real][:, None] >= np.arange(length))
    np.testing.assert_array_equal(seen_LV[real][:, 32 : 32 + length], causal)
    if config.architecture == "text_to_text":
        np.testing.assert_array_equal(seen_LV[real][:, :length], same)


@pytest.mark.parametrize(
    "family", [*FAMILIES, "deberta", "gemma_2", "gemma_3", "m2m_100", "t5gemma", "t5gemma2", "umt5"]
)
def test_packed_equals_unpacked(family):
    config = dataclasses.replace((FAMILIES | OTHERS)[family], heads=())
    params = random_params(config)
    batch = random_batch(config, segments=((5, 3), (5,), (3,)))
    for name in ("encoder_input_tokens", "decoder_input_tokens", "token_type_ids"):
        tokens = batch[name]
        tokens[1, :5], tokens[2, :3] = tokens[0, :5], tokens[0, 5:8]
    ((packed, first, second),) = forward(config, params, batch).values()
    np.testing.assert_allclose(packed[:5], first[:5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[5:8], second[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "modernbert", "bart_mnli"])  # pools the first token, the mean, the last
def test_pooled_heads_packed_equal_unpacked(family):
    config = (FAMILIES | OTHERS)[family]
    config = dataclasses.replace(config, heads=("nsp", "classification", "regression"), num_classes=3)
    params = random_params(config)
    packed = random_batch(config, segments=((5, 3),)) | {"pooled_positions": np.array([[0, 5, 0]], np.int32)}
    alone = random_batch(config, segments=((5,), (3,)))
    for name in ("encoder_input_tokens", "token_type_ids"):
        alone[name][0, :5], alone[name][1, :3] = packed[name][0, :5], packed[name][0, 5:8]
    a, b = forward(config, params, packed), forward(config, params, alone)
    for head in config.heads:
        np.testing.assert_allclose(a[head][0, :2], b[head][:, 0], rtol=1e-5, atol=1e-5, err_msg=head)


@pytest.mark.parametrize(
    "family", [*FAMILIES, "bart_mnli", "deberta", "electra", "gemma_3", "smollm_3", "t5gemma", "t5gemma2", "umt5"]
)
def test_scanned_equals_unrolled(family):
    config = (FAMILIES | OTHERS)[family]
    scanned = dataclasses.replace(config, scan_layers=True)
    params, batch = random_params(config), random_batch(config)
    stacked = stack_layers(params)
    assert_trees_close(unstack_layers(stacked), params, rtol=0, atol=0)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, random_params(scanned))
    assert_trees_close(forward(scanned, stacked, batch), forward(config, params, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "remat", "scan_layers"),
    [
        ("t5", "full", True),
        ("t5", "attention", True),
        ("bert", "dots_no_batch", False),
        ("gpt2", "dots", True),
        ("gpt2", "none", True),
        ("deberta", "full", True),
    ],
)
def test_scan_and_remat_change_no_number_in_training(family, remat, scan_layers):
    """Values and gradients with dropout equal the plain model's."""
    config = dataclasses.replace((FAMILIES | OTHERS)[family], dropout_rate=0.3, attention_dropout_rate=0.2)
    attention = "blockwise" if remat == "attention" else "reference"
    changed = dataclasses.replace(config, remat=remat, scan_layers=scan_layers, attention=attention)
    params, batch, key = random_params(config), random_batch(config), jax.random.key(8, impl="unsafe_rbg")
    inputs = stack_layers(params) if scan_layers else params
    step = jax.value_and_grad(lambda p: loss(changed, p, batch, key))
    assert ("remat" in str(jax.make_jaxpr(step)(inputs))) == (remat != "none" or scan_layers)
    value, grads = jax.jit(step)(inputs)
    expected = jax.jit(jax.value_and_grad(lambda p: loss(config, p, batch, key)))(params)
    assert_trees_close((value, unstack_layers(grads)), expected, rtol=1e-4, atol=2e-5)


# A TPU takes the forms of a GPU, without the one of biases: one family for each kind of norm and activation.
@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, "gpu") for family in (*FAMILIES, "gemma_3", "modernbert") if family != "transformer"),
        *((family, "tpu") for family in ("t5_1_1", "bert", "gemma_3")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("transformer", "gpu"), ("bart", "gpu"))),
    ],
)
def test_the_forms_for_accelerators_change_no_number_in_training(family, kind):
    config = dataclasses.replace((FAMILIES | OTHERS)[family], dropout_rate=0.3)
    params, batch, key = random_params(config), random_batch(config), jax.random.key(8)
    expected = jax.jit(jax.value_and_grad(lambda p: loss(config, p, batch, key)))(params)
    with traced_for(kind):
        ours = jax.jit(jax.value_and_grad(lambda p: loss(config, p, batch, key)))(params)
    assert_trees_close(ours, expected, rtol=1e-4, atol=2e-5)


def test_scanned_layers_with_biases_compute_no_product_again_on_a_gpu():
    """The backward pass of a product with a bias may be a rule of ours, into which policies of remat cannot see."""
    config = dataclasses.replace(FAMILIES["gpt2"], scan_layers=True)
    params, batch = random_params(config), random_batch(config)

    def products(kind):
        with traced_for(kind):
            return flops.count(jax.make_jaxpr(jax.grad(lambda p: loss(config, p, batch)))(params))

    assert products("gpu") == products("cpu")


def test_an_accelerator_keeps_only_the_input_of_a_gelu():
    def kept(kind):
        with traced_for(kind):
            return len(jax.tree.leaves(jax.vjp(lambda x: recomputed(jax.nn.gelu, x), jnp.ones(4))[1]))

    assert kept("gpu") == 1 < kept("cpu")


ATTENTION_FAMILIES = ("t5", "bert", "llama", "gpt_neo", "t5_decoder", "gemma_3")  # one for each kind of attention


@pytest.mark.parametrize(
    ("family", "kernel", "scan_layers"),
    [
        # Whether layers are scanned does not depend on the kind of attention: each kind has one of the two.
        *((family, "blockwise", n % 2 == 0) for n, family in enumerate(ATTENTION_FAMILIES)),
        ("gemma_2", "blockwise", True),
        ("umt5", "blockwise", True),
        ("gpt2", "pallas", True),
        pytest.param("t5", "pallas", True, marks=pytest.mark.slow),
        *(
            pytest.param(family, "blockwise", n % 2 == 1, marks=pytest.mark.slow)
            for n, family in enumerate(ATTENTION_FAMILIES)
        ),
        pytest.param("t5gemma", "blockwise", True, marks=pytest.mark.slow),
        *(pytest.param(family, "pallas", False, marks=pytest.mark.slow) for family in ATTENTION_FAMILIES),
    ],
)
def test_a_kernel_of_attention_changes_no_number_in_training(monkeypatch, family, kernel, scan_layers):
    monkeypatch.setattr(attention_blockwise, "BLOCK", 4)
    monkeypatch.setitem(BACKENDS, "default", BACKENDS["default"]._replace(block=4))
    config = (FAMILIES | OTHERS)[family]
    config = dataclasses.replace(config, attention_dropout_rate=0.2, scan_layers=scan_layers, attention="reference")
    params, batch, key = random_params(config), random_batch(config), jax.random.key(8, impl="unsafe_rbg")

    def step(attention: str):
        changed = dataclasses.replace(config, attention=attention)
        return jax.jit(jax.value_and_grad(lambda p: loss(changed, p, batch, key)))(params)

    for ours, expected in zip(*map(jax.tree.leaves, (step(kernel), step("reference"))), strict=True):
        largest = max(
            1.0, np.abs(expected).max()
        )  # entries are sums of terms as large as the largest: Gemma's reach 90
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5 * largest)


@pytest.mark.parametrize("window", [4, 5])
def test_merged_attention_takes_the_reference_and_its_encoder_any_kernel(monkeypatch, window):
    config = dataclasses.replace(OTHERS["t5gemma2"], local_window=window)
    params, batch = random_params(config), random_batch(config)
    expected = forward(dataclasses.replace(config, attention="reference"), params, batch)
    monkeypatch.setattr(attention_blockwise, "BLOCK", 4)
    monkeypatch.setattr(attention, "BLOCKWISE_FROM", 1)
    seen = []
    attend = attention_blockwise.KERNEL.attend
    monkeypatch.setattr(
        attention_blockwise,
        "KERNEL",
        attention_blockwise.KERNEL._replace(attend=lambda *args: seen.append(args[0].shape) or attend(*args)),
    )
    got = jax.jit(lambda p: build(config).apply({"params": p}, batch))(params)
    assert len(seen) == config.num_encoder_layers
    assert_trees_close(got, expected, rtol=1e-4, atol=5e-5)  # logits reach 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention": "blockwise"}, r"model.attention='blockwise' with model.body='merged_attention'.*use auto"),
        ({"attention": "pallas"}, r"model.attention='pallas' with model.body='merged_attention'.*use auto"),
        ({"positions": "relative"}, r"model.positions='relative' with model.body='merged_attention'.*rotary"),
        ({"architecture": "decoder_only", "num_encoder_layers": 0}, "'merged_attention' is for text_to_text models"),
    ],
)
def test_what_merged_attention_cannot_be_with_is_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        build(dataclasses.replace(OTHERS["t5gemma2"], **changes))


def test_remat_attention_recomputes_all_but_attention(monkeypatch):
    monkeypatch.setattr(attention_blockwise, "BLOCK", 4)
    config = dataclasses.replace(FAMILIES["gpt2"], attention="blockwise", num_decoder_layers=1)
    params, batch = random_params(config), random_batch(config)

    def loops(remat: str) -> int:
        gradient = jax.jit(jax.grad(lambda p: loss(dataclasses.replace(config, remat=remat), p, batch)))
        return gradient.lower(params).compile().as_text().count(" while(")

    assert loops("attention") == loops("none") == loops("full") - 1


def test_scanned_layers_keep_products_and_attention_alone():
    config = dataclasses.replace(FAMILIES["gpt2"], attention="blockwise", scan_layers=True, num_decoder_layers=3)
    params, batch = random_params(config), random_batch(config)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(config, p, batch)))(params).jaxpr
    forward, _ = (scan for scan in equations(jaxpr, "scan") if scan.params["length"] == 3)
    stacked = sum(out.aval.size for out in forward.outvars[forward.params["num_carry"] :])
    D, F, H = config.d_model, config.d_ff, config.num_heads
    # the layer's input; queries, keys, values, heads, log Σ exp; attention's last product; the MLP's first one
    assert stacked == 3 * batch["decoder_input_tokens"].size * (D + (4 * D + H) + D + F)


def equations(jaxpr, name: str) -> list:
    """Returns the equations of a primitive, also those in calls."""
    inner = (getattr(value, "jaxpr", None) for equation in jaxpr.eqns for value in equation.params.values())
    own = [equation for equation in jaxpr.eqns if equation.primitive.name == name]
    return own + [each for jaxpr in inner if hasattr(jaxpr, "eqns") for each in equations(jaxpr, name)]


@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_dropout_is_off_without_train_and_a_function_of_the_key(family):
    config = dataclasses.replace(FAMILIES[family], dropout_rate=0.3, attention_dropout_rate=0.2)
    params, batch = random_params(config), random_batch(config)
    quiet = forward(config, params, batch)
    train = jax.jit(lambda key: build(config).apply({"params": params}, batch, True, rngs={"dropout": key}))
    keys = (jax.random.key(seed, impl="unsafe_rbg") for seed in (1, 1, 2))  # compiles faster than threefry
    once, again, other = map(train, keys)
    assert_trees_close(quiet, forward(FAMILIES[family], params, batch), rtol=0, atol=0)
    assert_trees_close(once, again, rtol=0, atol=0)
    for head in quiet:
        assert not np.allclose(once[head], quiet[head], atol=1e-3), head
        assert not np.allclose(once[head], other[head], atol=1e-3), head


@pytest.mark.parametrize("head", ["classification", "regression"])
def test_a_classifier_can_have_a_dropout_of_its_own(head):
    changes = {"heads": (head, "pooled"), "num_classes": 1 if head == "regression" else 3}
    config = dataclasses.replace(FAMILIES["bert"], **changes, classifier_dropout_rate=0.5)
    params, batch, key = random_params(config), random_batch(config), jax.random.key(1, impl="unsafe_rbg")
    quiet = forward(config, params, batch)
    noisy = jax.jit(lambda: build(config).apply({"params": params}, batch, True, rngs={"dropout": key}))()
    assert not np.allclose(noisy[head], quiet[head], atol=1e-3)
    assert_trees_close(noisy["pooled"], quiet["pooled"], rtol=1e-6, atol=1e-6)  # no layer before it has dropout


def test_dropout_keeps_the_mean_and_shares_its_mask_along_an_axis():
    x = jnp.ones((50, 40, 30))
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert y.mean() == pytest.approx(1, abs=5 * (0.25 / 0.75 / x.size) ** 0.5)
    shared = np.asarray(dropout(x, 0.25, jax.random.key(0), broadcast_axis=1))
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[:, :1], shared.shape))
    assert shared[:, 0].mean() > 0 and (shared[:, 0] == 0).any()


def test_random_bits_are_even_and_independent_of_neighbours_rows_and_keys():
    """Each bit, and each bit XOR a different entry's, is one as often as zero, by chi-square over all of them."""
    shape = (64, 64, 32)
    draw = jax.jit(lambda seed: random_bits(jax.random.key_data(jax.random.key(seed)), shape))
    bits = np.stack([draw(seed) for seed in range(2)]).view(np.uint8)
    bits = np.unpackbits(bits, axis=-1).reshape(2, *shape, 32)
    others = {"row": np.roll(bits, 1, 1), "middle": np.roll(bits, 1, 2), "next": np.roll(bits, 1, 3), "key": bits[::-1]}
    others["bit"] = np.roll(bits, 1, 4)
    counts = [(bits ^ other).mean(axis=(0, 1, 2, 3)) for other in others.values()] + [bits.mean(axis=(0, 1, 2, 3))]
    z = (np.array(counts) - 0.5) * 2 * (2 * np.prod(shape)) ** 0.5
    z[3] /= 2**0.5  # each pair of keys counts twice
    assert np.abs(z).max() < 5
    assert 0.5 < (z**2).mean() < 1.6


@pytest.mark.parametrize("family", [*FAMILIES, "deberta"])
def test_bfloat16_stays_close_and_returns_float32(family):
    config = dataclasses.replace((FAMILIES | OTHERS)[family], scan_layers=family != "t5")
    params, batch = random_params(config), random_batch(config)
    exact = forward(config, params, batch)
    rough = forward(dataclasses.replace(config, dtype="bfloat16"), params, batch)
    for head, x in exact.items():
        assert rough[head].dtype == x.dtype == jnp.float32
        error = np.abs(rough[head] - x).max() / np.std(x)
        assert 0 < error < 0.1, head


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
@pytest.mark.parametrize("family", ["t5", "bert", "gpt2"])
def test_a_mesh_changes_no_number(monkeypatch, family, attention):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    monkeypatch.setattr(attention_blockwise, "BLOCK", 4)
    config = dataclasses.replace(FAMILIES[family], attention=attention)
    layout, names = sharding.Layout(sharding.make_mesh(data=4, tensor=2)), set()

    class Recorded:
        parts, divided = staticmethod(layout.parts), staticmethod(layout.divided)

        def __call__(self, x, axes):
            names.update(axes)
            return layout(x, axes)

    batch = random_batch(config, segments=((5, 3), (8,), (4,), (2, 2)))
    params = random_params(config)
    module = build(config, Recorded())
    sharded = jax.jit(lambda p, b: module.apply({"params": p}, b))(params, batch)
    assert_trees_close(sharded, forward(config, params, batch), rtol=1e-5, atol=1e-5)
    assert names >= {"batch", "length", "embed", "heads", "kv", "mlp", "vocab"}


def test_an_id_past_the_table_reads_nan():
    config = FAMILIES["gpt2"]
    batch = random_batch(config)
    batch["decoder_input_tokens"][0, 2] = config.vocab_size
    logits_BLV = forward(config, random_params(config), batch)["lm"]
    assert np.isnan(logits_BLV[0, 2]).all() and np.isfinite(logits_BLV[1]).all()
