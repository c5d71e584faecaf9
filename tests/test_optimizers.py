"""Checks every optimizer: against its published update in numpy, and that scanning and sharding change no number."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from t5x_lite import recipe_keys
from t5x_lite.cluster import sharding
from t5x_lite.cluster.sharding import Layout, make_mesh
from t5x_lite.errors import ConfigError
from t5x_lite.models import paths
from t5x_lite.training import matrix_optimizers, optim, parameter_groups, schedules, sophia
from t5x_lite.training.optimizers import OPTIMIZERS
from t5x_lite.training.parameter_groups import Groups

LAYER = {
    "query/kernel": (("embed", "heads", "kv"), (8, 2, 4)),
    "out/kernel": (("heads", "kv", "embed"), (2, 4, 8)),
    "mlp/kernel": (("embed", "mlp"), (8, 16)),
    "mlp/bias": (("mlp",), (16,)),
    "norm/scale": (("norm",), (8,)),
}
AROUND = {
    "token_embedding/embedding": (("vocab", "embed"), (12, 8)),
    "decoder/final_norm/scale": (("norm",), (8,)),
    "logits/dense/kernel": (("embed", "vocab"), (8, 12)),
}
LAYERS, STEPS = 2, 4
SETTINGS = Groups(
    parameter_groups.parse(("decoder/layers_1/mlp/.* rate=0.5 weight_decay=0.3", "logits/.* rate=0.1")), 0.1, 0.9
)


def parameters(seed: int = 0, scanned: bool = False):
    """Returns ({path: axes}, {path: array}) of a decoder of two layers."""
    rng = np.random.default_rng(seed)
    axes, arrays = {}, {}
    for path, (names, shape) in AROUND.items():
        axes[path], arrays[path] = names, rng.normal(size=shape).astype(np.float32)
    for path, (names, shape) in LAYER.items():
        stack = rng.normal(size=(LAYERS, *shape)).astype(np.float32)
        if scanned:
            axes[f"decoder/layers/{path}"], arrays[f"decoder/layers/{path}"] = ("layers", *names), stack
        for i in range(0 if scanned else LAYERS):
            axes[f"decoder/layers_{i}/{path}"], arrays[f"decoder/layers_{i}/{path}"] = names, stack[i]
    return paths.unflatten(axes), paths.unflatten(arrays)


def optimizer(name: str, axes, groups: Groups = SETTINGS, **hyper_parameters):
    if name == "adam":
        groups = Groups(tuple(group._replace(weight_decay=None) for group in groups.groups), 0.0, groups.layer_decay)
    if name == "adafactor":
        hyper_parameters = {"min_dim_size_to_factor": 4} | hyper_parameters
    return optim.make_optimizer(name, lambda n: 0.01 * (n + 1), axes, groups=groups, clip_norm=3.0, **hyper_parameters)


def train(name: str, scanned: bool, layout: Layout | None = None, **hyper_parameters):
    """Returns {path: array} after some updates, and the state."""
    axes, arrays = parameters(0, scanned)
    rule = optimizer(name, axes, **hyper_parameters)
    boxed = jax.tree.map(lambda names, array: nn.Partitioned(jnp.asarray(array), names), axes, arrays, is_leaf=is_names)
    params, state = boxed, jax.jit(rule.init)(boxed)
    if layout:
        places = sharding.shardings((params, state), layout)
        params, state = jax.device_put(nn.meta.unbox((params, state)), places)
    params, state = nn.meta.unbox((params, state))

    @jax.jit
    def update(params, state, grads):
        diagonal = lambda vector: jax.tree.map(lambda x, v: (x + 2) * v, params, vector)  # noqa: E731
        updates, state = rule.update(grads, state, params, hessian_product=diagonal)
        return optax.apply_updates(params, updates), state

    for step in range(STEPS):
        params, state = update(params, state, parameters(step + 1, scanned)[1])
    return params, state


def is_names(x):
    return isinstance(x, tuple)


def unrolled(tree):
    return {
        part: value for path, leaf in paths.flatten(jax.device_get(tree)).items() for part, value in layers(path, leaf)
    }


def layers(path, leaf):
    parts = paths.unrolled(path, leaf.shape)
    return zip(parts, [leaf] if parts == [path] else leaf, strict=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scanned_layers_and_eight_devices_train_alike(name):
    layout = Layout(make_mesh(jax.devices(), data=2, fsdp=2, tensor=2))
    expected, _ = train(name, scanned=False)
    before = unrolled(parameters()[1])
    ours, state = train(name, scanned=True, layout=layout)
    assert unrolled(ours).keys() == before.keys()
    for path, value in unrolled(ours).items():
        np.testing.assert_allclose(value, unrolled(expected)[path], rtol=1e-4, atol=2e-5, err_msg=path)
        assert (value != before[path]).any()
    sizes = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= 256]
    assert all(not leaf.sharding.is_fully_replicated for leaf in sizes)


def test_the_names_and_hyper_parameters_are_those_of_the_config():
    assert tuple(OPTIMIZERS) == recipe_keys.OPTIMIZERS
    of_each = [inspect.getfullargspec(function).kwonlyargs for function in OPTIMIZERS.values()]
    assert {name for names in of_each for name in names} == recipe_keys.HYPER_PARAMETERS.keys()


# Published updates ----------------------------------------------------------------------------------------------------


def one_matrix(name: str, shape=(3, 5), steps: int = 4, known=None, schedule=lambda n: 0.1, **hyper_parameters):
    """Returns (parameter, gradients, parameter after each update) in float64."""
    rng = np.random.default_rng(3)
    start, grads = rng.normal(size=shape), [rng.normal(size=shape) for _ in range(steps)]
    rule = optim.make_optimizer(name, schedule, {"x": ("embed", "mlp")}, groups=Groups((), 0.2), **hyper_parameters)
    params, out = {"x": jnp.asarray(start, jnp.float32)}, []
    state = rule.init(params)
    for grad in grads:
        updates, state = rule.update({"x": jnp.asarray(grad, jnp.float32)}, state, params, **known or {})
        params = optax.apply_updates(params, updates)
        out.append(np.asarray(params["x"], np.float64))
    return start, grads, out


def numpy_orthogonalized(x):
    """The loop of Jordan et al. 2024."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x / np.linalg.norm(x)
    y = y.T if x.shape[0] > x.shape[1] else y
    for _ in range(5):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y.T if x.shape[0] > x.shape[1] else y


@pytest.mark.parametrize("shape", [(3, 5), (6, 2)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_the_published_one(shape, nesterov):
    x, grads, out = one_matrix("muon", shape, momentum=0.9, nesterov=nesterov)
    m = np.zeros(shape)
    for grad, ours in zip(grads, out, strict=True):
        m = 0.9 * m + grad  # Jordan's buffer; a matrix's scale does not change what it is orthogonalized to
        u = numpy_orthogonalized(grad + 0.9 * m if nesterov else m)
        x = x - 0.1 * (0.2 * np.sqrt(max(shape)) * u + 0.2 * x)
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_orthogonalized_has_singular_values_near_1():
    x = np.random.default_rng(0).normal(size=(2, 6, 9)).astype(np.float32)
    values = np.linalg.svd(np.asarray(matrix_optimizers.orthogonalized(jnp.asarray(x))), compute_uv=False)
    assert (values > 0.6).all() and (values < 1.3).all()


def test_soap_is_the_published_one():
    """Vyas et al. 2024, algorithm 3, with Adam's bias correction and a shifted power iteration."""
    x, grads, out = one_matrix("soap", steps=8, b1=0.9, b2=0.8, epsilon=1e-6, precondition_every_steps=3)
    m = v = L = R = 0.0
    P, Q = np.eye(3), np.eye(5)
    for t, (G, ours) in enumerate(zip(grads, out, strict=True), 1):
        m, v = 0.9 * m + 0.1 * G, 0.8 * v + 0.2 * (P.T @ G @ Q) ** 2
        n = (P.T @ m @ Q / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.8**t)) + 1e-6)
        x = x - 0.1 * (P @ n @ Q.T + 0.2 * x)
        L, R = 0.8 * L + 0.2 * G @ G.T, 0.8 * R + 0.2 * G.T @ G
        if t == 1 or t % 3 == 0:
            P, Q = (np.linalg.qr(S @ B + 0.01 * np.trace(S) / len(S) * B)[0] for S, B in ((L, P), (R, Q)))
        np.testing.assert_allclose(ours, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("warmup", [0, 3])
def test_ademamix_is_the_published_one(warmup):
    """Pagliardini et al. 2024, algorithm 1 and the two schedules of §3."""
    x, grads, out = one_matrix("ademamix", b1=0.8, b2=0.9, b3=0.99, alpha=4.0, mix_warmup_steps=warmup, epsilon=1e-6)
    fast = slow = v = 0.0
    for t, (grad, ours) in enumerate(zip(grads, out, strict=True), 1):
        share = min(t / warmup, 1) if warmup else 1
        first, last = np.log(0.8), np.log(0.99)
        b3 = min(np.exp(first * last / ((1 - share) * last + share * first)), 0.99)
        fast, slow, v = 0.8 * fast + 0.2 * grad, b3 * slow + (1 - b3) * grad, 0.9 * v + 0.1 * grad**2
        n = (fast / (1 - 0.8**t) + 4.0 * share * slow) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
        x = x - 0.1 * (n + 0.2 * x)
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_lamb_lion_and_sgd_are_the_published_ones():
    x, grads, out = one_matrix("lamb", b1=0.8, b2=0.9, epsilon=1e-6)
    m = v = 0.0
    for t, (grad, ours) in enumerate(zip(grads, out, strict=True), 1):
        m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
        u = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6) + 0.2 * x
        x = x - 0.1 * np.linalg.norm(x) / np.linalg.norm(u) * u
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)
    x, grads, out = one_matrix("lion", b1=0.8, b2=0.9)
    m = 0.0
    for grad, ours in zip(grads, out, strict=True):
        x, m = x - 0.1 * (np.sign(0.8 * m + 0.2 * grad) + 0.2 * x), 0.9 * m + 0.1 * grad
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)
    x, grads, out = one_matrix("sgd", momentum=0.9, nesterov=True)
    m = 0.0
    for grad, ours in zip(grads, out, strict=True):
        m = 0.9 * m + grad
        x = x - 0.1 * (grad + 0.9 * m + 0.2 * x)
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_schedule_free_average_is_that_of_the_iterates(warmup):
    """Defazio et al. 2024, algorithm 1: iterates have the squares of their rates as weights."""
    schedule = schedules.make_schedule("constant", 0.1, warmup)
    x, grads, out = one_matrix("schedule_free", schedule=schedule, steps=6, b1=0.8, b2=0.9, epsilon=1e-6)
    z, y, v, total = x, x, 0.0, 0.0
    for t, (grad, ours) in enumerate(zip(grads, out, strict=True), 1):
        rate = 0.1 * (min(1, (t - 1) / warmup) if warmup else 1)
        v, total = 0.9 * v + 0.1 * grad**2, total + rate**2
        z = z - rate * (grad / (np.sqrt(v / (1 - 0.9**t)) + 1e-6) + 0.2 * y)
        x = x + rate**2 / max(total, 1e-9) * (z - x)
        y = 0.2 * z + 0.8 * x
        np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-5)


def test_sophia_is_the_published_one():
    """Liu et al. 2023, algorithm 3, on a loss whose Hessian is diagonal: Hutchinson's estimate is then exact."""
    curvature = np.random.default_rng(1).uniform(0.5, 20, (3, 5))
    known = {"hessian_product": lambda v: {"x": jnp.asarray(curvature, jnp.float32) * v["x"]}}
    settings = {"b1": 0.8, "b2": 0.9, "gamma": 0.5, "hessian_every_steps": 2}
    x, grads, out = one_matrix("sophia", known=known, **settings)
    m, h = 0.0, np.zeros((3, 5))
    for t, (grad, ours) in enumerate(zip(grads, out, strict=True), 1):
        m = 0.8 * m + 0.2 * grad
        if t % 2 == 1:
            h = 0.9 * h + 0.1 * curvature
        x = x - 0.1 * (np.clip(m / np.maximum(0.5 * h, 1e-12), -1, 1) + 0.2 * x)
        np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-5)


def test_sophia_leaves_out_products_that_are_not_finite():
    _, _, out = one_matrix("sophia", known={"hessian_product": lambda v: {"x": v["x"].at[0].set(jnp.inf)}})
    assert np.isfinite(out).all()


def test_sophia_draws_the_same_signs_for_scanned_layers():
    def signs(scanned: bool):
        arrays = parameters(scanned=scanned)[1]
        return unrolled(jax.tree_util.tree_map_with_path(functools.partial(sophia._signs, jnp.int32(3)), arrays))

    apart, stacked = signs(False), signs(True)
    for path, value in apart.items():
        np.testing.assert_array_equal(value, stacked[path], err_msg=path)
    assert (apart["decoder/layers_0/mlp/kernel"] != apart["decoder/layers_1/mlp/kernel"]).any()


@pytest.mark.parametrize("warmup", [0, 10])
def test_prodigy_finds_a_rate(warmup):
    """On ‖x − 1‖₁, from an estimate of 1e-6: its estimate grows to the distance's order, and x comes near 1."""
    rule = optim.make_optimizer("prodigy", schedules.make_schedule("constant", 1.0, warmup), {"x": ("mlp",)})
    params = {"x": jnp.zeros(4)}
    state = rule.init(params)

    @jax.jit
    def update(params, state):
        updates, state = rule.update({"x": jnp.sign(params["x"] - 1)}, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(300):
        params, state = update(params, state)
    np.testing.assert_allclose(params["x"], 1, atol=0.3)


# Settings -------------------------------------------------------------------------------------------------------------


def test_learning_rates_and_decays_of_groups_and_layers():
    """One step of sgd with gradients of 1 shows each factor."""
    axes, arrays = parameters()
    rule = optim.make_optimizer("sgd", lambda n: 1.0, axes, groups=SETTINGS)
    ones = jax.tree.map(jnp.ones_like, arrays)
    updates, _ = rule.update(ones, rule.init(ones), ones)
    found = {path: float(update.ravel()[0]) for path, update in paths.flatten(updates).items()}
    expected = {
        "token_embedding/embedding": -(0.9**3) * 1.1,
        "decoder/final_norm/scale": -1.0,
        "logits/dense/kernel": -0.1 * 1.1,
        "decoder/layers_0/query/kernel": -(0.9**2) * 1.1,
        "decoder/layers_0/mlp/bias": -(0.9**2),
        "decoder/layers_1/mlp/kernel": -0.9 * 0.5 * 1.3,
        "decoder/layers_1/mlp/bias": -0.9 * 0.5 * 1.3,  # the group's decay counts for biases, too
        "decoder/layers_1/norm/scale": -0.9,
    }
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_and_decays_do_not_change_the_form_of_the_state(name):
    """They may change when a run resumes."""
    axes, arrays = parameters()
    states = [jax.eval_shape(optimizer(name, axes, groups).init, arrays) for groups in (Groups(), SETTINGS)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_layers_keep_their_rates_if_others_are_frozen():
    axes, arrays = parameters()
    groups = Groups(layer_decay=0.5, depths=parameter_groups.depths_of(arrays))
    lower = {"decoder": {"layers_0": arrays["decoder"]["layers_0"]}}
    rule = optim.make_optimizer(
        "sgd", lambda n: 1.0, {"decoder": {"layers_0": axes["decoder"]["layers_0"]}}, groups=groups
    )
    ones = jax.tree.map(jnp.ones_like, lower)
    updates, _ = rule.update(ones, rule.init(ones), ones)
    assert all((update == -0.25).all() for update in jax.tree.leaves(updates))


def test_first_moments_may_be_bfloat16():
    for name in ("adamw", "lion", "muon", "sgd", "lamb", "adam"):
        _, state = train(name, scanned=False, momentum_dtype="bfloat16")
        assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state)), name


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("decoder/.*",), "has no setting; write 'REGEX rate=NUMBER'"),
        (("decoder/.* lr=2",), "'lr=2' is not a setting"),
        (("decoder/.* rate=-1",), "'rate=-1' is not a setting"),
        (("decoder/.* rate=2 rate=3",), "'rate=3' contradicts the setting before it"),
        (("decoder/.* frozen rate=3",), "'rate=3' contradicts the setting before it"),
        (("decoder/.* from=0.5",), "'from=0.5' is not a setting"),
        (("decoder/(.* frozen",), "not a regular expression"),
        (("encoder/.* frozen",), "'encoder/.*' matches no parameter; .*such as 'decoder/final_norm/scale'"),
        ((".* rate=2", "logits/.* frozen"), "'logits/.*' matches only parameters of earlier groups"),
    ],
)
def test_groups_that_cannot_work(groups, message):
    with pytest.raises(ConfigError, match=message):
        parameter_groups.check(parameter_groups.parse(groups), parameters()[1])


def test_some_layers_of_a_scanned_stack_cannot_be_frozen():
    groups = parameter_groups.parse(("decoder/layers_0/.* frozen",))
    parameter_groups.check(groups, parameters(scanned=False)[1])
    with pytest.raises(ConfigError, match=r"freezes only some layers of 'decoder/layers/mlp/bias'"):
        parameter_groups.check(groups, parameters(scanned=True)[1])


def test_hyper_parameters_that_an_optimizer_lacks():
    axes = {"x": ("mlp",)}
    with pytest.raises(
        ConfigError, match=r"optimizer.b2=0.9: sgd has no b2; unset it. Its own keys: optimizer.momentum"
    ):
        optim.make_optimizer("sgd", lambda n: 1.0, axes, b2=0.9)
    with pytest.raises(ConfigError, match=r"b1=0: schedule_free needs a b1 above 0"):
        optim.make_optimizer("schedule_free", lambda n: 1.0, axes, b1=0.0)
    with pytest.raises(ConfigError, match=r"b1=0.0, optimizer.b3=0.9999: must be above 0 with optimizer.mix_warmup"):
        optim.make_optimizer("ademamix", lambda n: 1.0, axes, b1=0.0, mix_warmup_steps=3)
    with pytest.raises(ConfigError, match=r"adam does not decay weights; use optimizer.name=adamw"):
        optim.make_optimizer("adam", lambda n: 1.0, axes, groups=Groups((), 0.1))
