"""Checks schedules at chosen steps, and AdamW and Adafactor against the formulas in float64 numpy."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import recipe_keys
from t5x_lite.errors import ConfigError
from t5x_lite.training import adafactor, optim, schedules
from t5x_lite.training.parameter_groups import Groups


def test_the_names_and_parameters_are_those_of_the_config():
    assert tuple(schedules.SCHEDULES) == recipe_keys.SCHEDULES
    of_each = [inspect.getfullargspec(function).kwonlyargs for function in schedules.SCHEDULES.values()]
    assert {name for names in of_each for name in names} == recipe_keys.SHAPE_PARAMETERS.keys()


def at(schedule, *steps):
    return [float(schedule(jnp.int32(n))) for n in steps]


# Schedules ------------------------------------------------------------------------------------------------------------


def test_t5_pretraining_schedule():
    """1/√max(n, 10⁴)."""
    schedule = schedules.make_schedule("rsqrt", 0.01, warmup_steps=10_000)
    expected = [0.01, 0.01, 0.01, 1 / np.sqrt(40_000), 1 / np.sqrt(524_288)]
    np.testing.assert_allclose(at(schedule, 0, 5_000, 10_000, 40_000, 524_288), expected, rtol=1e-6)


def test_constant_linear_and_cosine():
    np.testing.assert_allclose(at(schedules.make_schedule("constant", 2.0), 0, 7), [2, 2])
    np.testing.assert_allclose(at(schedules.make_schedule("constant", 2.0, warmup_steps=4), 0, 1, 4, 9), [0, 0.5, 2, 2])
    linear = schedules.make_schedule("linear", 1.0, warmup_steps=10, total_steps=110, final_fraction=0.1)
    np.testing.assert_allclose(at(linear, 0, 5, 10, 60, 110, 500), [0, 0.5, 1, 0.55, 0.1, 0.1], rtol=1e-6)
    cosine = schedules.make_schedule("cosine", 1.0, warmup_steps=10, total_steps=110)
    np.testing.assert_allclose(at(cosine, 5, 10, 60, 85, 110), [0.5, 1, 0.5, 0.5 - np.sqrt(0.125), 0], atol=1e-6)


def test_other_shapes():
    make = functools.partial(schedules.make_schedule, learning_rate=1.0)
    vaswani = make("inverse_sqrt", warmup_steps=100)
    np.testing.assert_allclose(at(vaswani, 0, 50, 100, 400), [0, 0.5, 1, 0.5], rtol=1e-6)
    polynomial = make("polynomial", warmup_steps=10, total_steps=110, power=3.0)
    np.testing.assert_allclose(at(polynomial, 5, 60, 110), [0.5, 0.125, 0], atol=1e-6)
    for decay, half in (("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - np.sqrt(0.5))):
        wsd = make("wsd", warmup_steps=10, total_steps=100, decay_steps=20, decay=decay, final_fraction=0.2)
        np.testing.assert_allclose(at(wsd, 5, 10, 80, 90, 100), [0.5, 1, 1, 0.2 + 0.8 * half, 0.2], rtol=1e-5)
    step = make("step", total_steps=90, drop_every_steps=30, drop_factor=0.5)
    np.testing.assert_allclose(at(step, 0, 29, 30, 60, 90), [1, 1, 0.5, 0.25, 0.125], rtol=1e-6)
    cycle = make("one_cycle", warmup_steps=30, total_steps=100, initial_fraction=0.04)
    np.testing.assert_allclose(at(cycle, 0, 15, 30, 65, 100), [0.04, 0.52, 1, 0.5, 0], atol=1e-6)
    restarts = make("restarts", warmup_steps=10, total_steps=110, cycles=2)
    np.testing.assert_allclose(at(restarts, 5, 10, 35, 60, 85, 110, 200), [0.5, 1, 0.5, 1, 0.5, 0, 0], atol=1e-6)
    piecewise = make("piecewise", total_steps=100, points=("0:0", "10:1", "50:1", "50:0.5", "100:0"))
    np.testing.assert_allclose(
        at(piecewise, 0, 5, 10, 49, 50, 75, 100, 150), [0, 0.5, 1, 1, 0.5, 0.25, 0, 0], atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["constant", "linear", "cosine", "rsqrt", "inverse_sqrt", "polynomial", "wsd", "one_cycle"]),
    warmup=st.integers(0, 50),
    decay=st.integers(12, 200),  # more than a tenth of the run, which is wsd's decay
    final=st.floats(0, 1),
    n=st.integers(0, 300),
)
def test_never_above_the_peak_and_never_up_after_warmup(name, warmup, decay, final, n):
    schedule = schedules.make_schedule(name, 3.0, warmup, warmup + decay, final)
    now, later = at(schedule, n, n + 1)
    assert 0 <= now <= 3.0 * (1 + 1e-6)
    if n >= warmup:
        assert later <= now + 1e-6


def test_schedule_errors():
    with pytest.raises(ConfigError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        schedules.make_schedule("cosin", 1.0)
    with pytest.raises(ConfigError, match="warmup_steps=10 to total_steps=10"):
        schedules.make_schedule("linear", 1.0, 10, 10)
    with pytest.raises(ConfigError, match=r"schedule.power=2.0: cosine has no power; unset it. Its own keys: none"):
        schedules.make_schedule("cosine", 1.0, 1, 10, power=2.0)
    with pytest.raises(ConfigError, match=r"decay_steps=95 and schedule.warmup_steps=10 are longer than the run"):
        schedules.make_schedule("wsd", 1.0, 10, 100, decay_steps=95)
    for points in ((), ("0:1",), ("5:1", "0:0"), ("0:1", "5:x"), ("0:1", "5:-1"), ("0:1", "5:nan"), ("0:inf", "5:1")):
        with pytest.raises(ConfigError, match="must be two or more 'UPDATES:FACTOR'"):
            schedules.make_schedule("piecewise", 1.0, 0, 10, points=points)
    with pytest.raises(ConfigError, match=r"schedule.points end at update 20, after the run"):
        schedules.make_schedule("piecewise", 1.0, 0, 10, points=("0:1", "20:0"))
    with pytest.raises(
        ConfigError, match=r"schedule.power must be unset with schedule.name=.*: set it in that function"
    ):
        schedules.make_schedule(lambda n: 1.0, 1.0, power=2.0)
    with pytest.raises(ConfigError, match="learning_rate=-1"):
        schedules.make_schedule("constant", -1.0)
    with pytest.raises(ConfigError, match="unknown optimizer 'adamax'; did you mean 'adam"):
        optim.make_optimizer("adamax", lambda n: 1.0, {})
    with pytest.raises(ConfigError, match="clip_norm=-1"):
        optim.make_optimizer("adamw", lambda n: 1.0, {}, clip_norm=-1)


# Optimizers -----------------------------------------------------------------------------------------------------------


def run(optimizer, params, grads):
    """Returns the parameters after each update."""

    @jax.jit
    def update(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state, out = optimizer.init(params), []
    for grad in grads:
        params, state = update(params, state, jax.tree.map(jnp.asarray, grad))
        out.append(params)
    return out, state


def random_trees(shapes, steps, seed=0):
    rng = np.random.default_rng(seed)
    make = lambda scale: {name: (scale * rng.normal(size=s)).astype(np.float32) for name, s in shapes.items()}  # noqa: E731
    return make(0.5), [make(10.0 ** rng.integers(-3, 3)) for _ in range(steps)]


def numpy_adafactor(param, grads, learning_rate, rows=(), columns=(), batch=()):
    """Computes Shazeer and Stern 2018, algorithms 4 to 6, for one parameter, one layer of a stack at a time."""
    if batch:
        (axis,) = batch
        drop = lambda dims: tuple(d - (d > axis) for d in dims)  # noqa: E731
        layers = [
            numpy_adafactor(p, [g.take(i, axis) for g in grads], learning_rate, drop(rows), drop(columns))
            for i, p in enumerate(np.moveaxis(param, axis, 0))
        ]
        return [np.stack(step, axis) for step in zip(*layers, strict=True)]
    x, v, out = param.astype(np.float64), 0.0, []
    for t, g in enumerate(grads):
        g = g.astype(np.float64)
        b2 = 1 - (t + 1) ** -0.8
        v = b2 * v + (1 - b2) * (
            g**2 + 1e-30
        )  # the mean is linear: averaging the whole moment equals averaging its parts
        if rows:
            R, C = v.mean(columns, keepdims=True), v.mean(rows, keepdims=True)
            u = g / np.sqrt(R * C / R.mean(rows, keepdims=True))
        else:
            u = g / np.sqrt(v)
        u /= max(1, np.sqrt(np.mean(u**2)))
        x = x - learning_rate * max(1e-3, np.sqrt(np.mean(x**2))) * u
        out.append(x)
    return out


ADAFACTOR_CASES = {
    # name: (axes, shape, rows, columns, batch)
    "mlp": (("embed", "mlp"), (5, 6), (0,), (1,), ()),
    "out": (("heads", "kv", "embed"), (2, 3, 5), (2,), (0, 1), ()),
    "query": (("embed", "heads", "kv"), (5, 2, 3), (0,), (1, 2), ()),
    "tokens": (("vocab", "embed"), (7, 4), (1,), (0,), ()),
    "scanned": (("layers", "embed", "heads", "kv"), (3, 5, 2, 3), (1,), (2, 3), (0,)),
    "scanned_scale": (("layers", "norm"), (3, 5), (), (), (0,)),
    "scale": (("norm",), (5,), (), (), ()),
    "bias": (("embed",), (6,), (), (), ()),
    "relative": (("heads", "relative_buckets"), (4, 8), (), (), ()),
}


def test_adafactor_is_the_paper_s_with_t5x_s_factor_rules():
    axes = {name: case[0] for name, case in ADAFACTOR_CASES.items()}
    params, grads = random_trees({name: case[1] for name, case in ADAFACTOR_CASES.items()}, steps=4)
    params["scale"] *= 1e-5  # below the floor of the parameter scale
    params["scanned"][1] *= 100  # layers of very different scale
    for grad in grads:
        grad["scanned_scale"][2] *= 1e-3
    optimizer = optim.make_optimizer("adafactor", lambda n: 0.1, axes, min_dim_size_to_factor=1)
    out, _ = run(optimizer, params, grads)
    for name, (_, _, rows, columns, batch) in ADAFACTOR_CASES.items():
        expected = numpy_adafactor(params[name], [g[name] for g in grads], 0.1, rows, columns, batch)
        for step, (ours, theirs) in enumerate(zip(out, expected, strict=True)):
            np.testing.assert_allclose(ours[name], theirs, rtol=2e-5, atol=1e-7, err_msg=f"{name} at update {step}")


def test_a_stack_of_layers_trains_as_its_layers_do():
    params, grads = random_trees({"a": (4, 6), "b": (4, 6)}, steps=3)
    stack = lambda tree: {"layers": np.stack([tree["a"], tree["b"]])}  # noqa: E731
    make = lambda axes: optim.make_optimizer("adafactor", lambda n: 0.1, axes, min_dim_size_to_factor=2)  # noqa: E731
    apart, _ = run(make({"a": ("embed", "mlp"), "b": ("embed", "mlp")}), params, grads)
    stacked, _ = run(make({"layers": ("layers", "embed", "mlp")}), stack(params), [stack(g) for g in grads])
    np.testing.assert_allclose(stacked[-1]["layers"], stack(apart[-1])["layers"], rtol=1e-6)


def test_what_is_factored():
    dims = lambda axes, shape: adafactor.factor_dims(axes, shape)[:2]  # noqa: E731
    assert dims(("embed", "mlp"), (512, 2048)) == ((0,), (1,))
    assert dims(("embed", "heads", "kv"), (512, 8, 64)) == ((0,), (1, 2))
    assert dims(("vocab", "embed"), (32128, 512)) == ((1,), (0,))
    assert dims(("layers", "mlp", "embed"), (6, 2048, 512)) == ((2,), (1,))
    assert dims(("heads", "relative_buckets"), (8, 32)) == ((), ())
    assert dims(("embed", "classes"), (768, 3)) == ((), ())  # fewer than 128 columns
    assert dims(("layers", "norm"), (6, 512)) == ((), ())
    assert dims(("embed", "mlp"), (128, 127)) == ((), ())
    for unknown in ("experts", None):  # no row in cluster/axes.py, no name: the whole parameter keeps its moment
        assert adafactor.factor_dims((unknown, "embed", "mlp"), (8, 512, 2048)) == ((), (), (0, 1, 2))
    assert adafactor.factor_dims(("layers", "embed"), (6, 512)).within == (1,)


def test_adafactor_keeps_a_row_and_a_column():
    axes = {"wi": ("layers", "embed", "mlp"), "scale": ("norm",)}
    optimizer = adafactor.scale_by_adafactor(axes)
    state = jax.eval_shape(optimizer.init, {"wi": jnp.zeros((2, 256, 512)), "scale": jnp.zeros(256)})
    assert state.moments["wi"].row.shape == (2, 256)
    assert state.moments["wi"].column.shape == (2, 512)
    assert state.moments["scale"].shape == (256,)


def test_adamw_is_the_paper_s_and_decays_only_what_it_should():
    """Loshchilov and Hutter 2019, algorithm 2, with the decay scaled by the learning rate."""
    axes = {"dense": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}, "norm": {"scale": ("norm",)}}
    flat, grads = random_trees({"kernel": (3, 4), "bias": (4,), "scale": (3,)}, steps=3)
    nest = lambda t: {"dense": {"kernel": t["kernel"], "bias": t["bias"]}, "norm": {"scale": t["scale"]}}  # noqa: E731
    schedule = lambda n: 0.1 / (n + 1)  # noqa: E731
    optimizer = optim.make_optimizer("adamw", schedule, axes, groups=Groups((), 0.5), b1=0.8, b2=0.9, epsilon=1e-6)
    out, _ = run(optimizer, nest(flat), [nest(g) for g in grads])
    for name in flat:
        x, m, v = flat[name].astype(np.float64), 0.0, 0.0
        for t, grad in enumerate(g[name].astype(np.float64) for g in grads):
            m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
            m_hat, v_hat = m / (1 - 0.8 ** (t + 1)), v / (1 - 0.9 ** (t + 1))
            decay = 0.5 * x if name == "kernel" else 0
            x = x - 0.1 / (t + 1) * (m_hat / (np.sqrt(v_hat) + 1e-6) + decay)
            np.testing.assert_allclose(nest_get(out[t], name), x, rtol=2e-5, atol=1e-6)


def nest_get(tree, name):
    return tree["norm" if name == "scale" else "dense"][name]


def test_gradients_are_clipped_by_their_global_norm():
    axes = {"a": ("embed",), "b": ("embed",)}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}  # norm 5
    zeros = jax.tree.map(jnp.zeros_like, grads)
    for clip_norm, factor in ((0.0, 1.0), (1.0, 0.2), (10.0, 1.0)):
        optimizer = optim.make_optimizer("adamw", lambda n: 1.0, axes, clip_norm=clip_norm, b1=0.5)
        _, state = run(optimizer, zeros, [grads])
        (moments,) = (s.mu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
        np.testing.assert_allclose(
            jnp.concatenate([moments["a"], moments["b"]]), factor * np.array([1.5, 2.0]), rtol=1e-6
        )
