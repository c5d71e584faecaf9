"""Meshes, rules and layouts: what goes where, and that errors come before anything compiles."""

import dataclasses
import math
import re
import types
from unittest import mock

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec
from tiny_models import FAMILIES, random_batch

from t5x_lite import config, runtime
from t5x_lite.cluster import fitting_meshes, sharding
from t5x_lite.cluster.axes import MESH_AXES, AxisRules, MeshAxis, axis_rules
from t5x_lite.cluster.sharding import Layout, check_batch, check_model, make_mesh, parse_mesh
from t5x_lite.errors import ConfigError
from t5x_lite.models import build
from t5x_lite.models.presets import preset
from t5x_lite.training import step


@pytest.fixture(scope="module")
def layout():
    return Layout(make_mesh(data=2, fsdp=2, tensor=2))


# Mesh -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "devices", "sizes"),
    [
        ("", 8, (8, 1, 1, 1)),
        ("data=-1", 8, (8, 1, 1, 1)),
        ("data=2,fsdp=2,tensor=2", 8, (2, 2, 1, 2)),
        ("tensor=4", 8, (2, 1, 1, 4)),
        ("fsdp=-1", 8, (1, 8, 1, 1)),
        ("fsdp=-1, data=2", 8, (2, 4, 1, 1)),
        ("sequence=4", 8, (2, 1, 4, 1)),
        ("data=1", 1, (1, 1, 1, 1)),
    ],
)
def test_parse_mesh(text, devices, sizes):
    assert tuple(parse_mesh(text, devices).values()) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date=8", "unknown mesh axis 'date'; did you mean 'data'"),
        ("data=3", "needs 3 devices; there are 8"),
        ("fsdp=3", r"needs a multiple of 3 devices; there are 8.*use divisors of it \(1, 2, 4, 8\)"),
        ("data=16", "needs 16 devices; there are 8"),
        ("fsdp=16", "needs a multiple of 16 devices; there are 8"),
        ("data=2,data=4", "sets 'data' twice; set each axis once"),
        ("data=-1,fsdp=-1", "sets data and fsdp to -1; only one axis may be -1"),
        ("data=0", "'data=0' is not AXIS=SIZE"),
        ("data", "'data' is not AXIS=SIZE"),
        ("data=two", "'data=two' is not AXIS=SIZE"),
    ],
)
def test_mesh_errors(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_mesh(text, 8)


SIZES = st.fixed_dictionaries({axis: st.integers(1, 4) for axis in MESH_AXES})


@given(SIZES)
def test_any_mesh_that_fits_is_taken(sizes):
    text = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    count = math.prod(sizes.values())
    assert parse_mesh(text, count) == sizes == parse_mesh(fitting_meshes.mesh_text(sizes), count)


def test_make_mesh_has_auto_axes_and_takes_exactly_its_devices():
    mesh = make_mesh(jax.devices()[:4], data=2, tensor=2)
    assert mesh.axis_names == tuple(MESH_AXES)
    assert mesh.axis_types == (AxisType.Auto,) * 4
    with pytest.raises(ConfigError, match=r"data=2 × fsdp=1 × sequence=1 × tensor=1 is 2 devices; there are 8"):
        make_mesh(data=2)


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_slices_are_joined_along_data_and_the_rows_of_a_process_follow_each_other():
    chips = [Chip(n, process_index=n // 2, slice_index=n // 4) for n in range(8)]
    devices = make_mesh(chips[::-1], data=2, fsdp=2, tensor=2).devices
    assert [{chip.slice_index for chip in part.flat} for part in devices] == [{0}, {1}]
    with pytest.raises(ConfigError, match=r"data=1 is not divisible by 2 slices; use 2"):
        make_mesh(chips, fsdp=4, tensor=2)
    assert sharding.rows_follow(np.array(chips).reshape(4, 1, 2, 1))
    scattered = np.array([chips[n] for n in (0, 2, 1, 3, 4, 6, 5, 7)]).reshape(8, 1, 1, 1)
    assert not sharding.rows_follow(scattered)
    assert sharding.rows_follow(scattered.reshape(1, 1, 8, 1))  # every process has all rows


# Rules ----------------------------------------------------------------------------------------------------------------


def test_specs(layout):
    assert layout.spec(("batch", "length", "embed")) == PartitionSpec(("data", "fsdp"), "sequence", None)
    assert layout.spec(("batch", "length", "mlp")) == PartitionSpec(("data", "fsdp"), "sequence", "tensor")
    assert layout.spec(("batch", None, ("heads", "length"))) == PartitionSpec(
        ("data", "fsdp"), None, ("tensor", "sequence")
    )
    assert layout.spec(("embed", "heads", "kv")) == PartitionSpec("fsdp", "tensor", None)
    assert layout.spec(("layers", "mlp", "embed")) == PartitionSpec(None, "tensor", "fsdp")
    assert layout.spec(("vocab", "embed")) == PartitionSpec("tensor", "fsdp")
    assert layout.spec((None, "batch")) == PartitionSpec(None, ("data", "fsdp"))


def test_a_misspelt_axis_is_an_error_with_a_hint(layout):
    with pytest.raises(ConfigError, match="unknown logical axis 'embd'; did you mean 'embed'"):
        layout.spec(("embd",))
    with pytest.raises(ConfigError, match="unknown logical axis 'vocabulary'; did you mean 'vocab'"):
        axis_rules(vocabulary=None)
    with pytest.raises(TypeError, match="vocabulary"):
        AxisRules(vocabulary=())  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="unknown mesh axis in rule 'mlp' 'tensr'; did you mean 'tensor'"):
        axis_rules(mlp="tensr")


def test_rules_can_be_replaced():
    layout = Layout(make_mesh(fsdp=4, tensor=2), axis_rules(vocab=None, embed=("fsdp", "tensor")))
    assert layout.spec(("vocab", "embed")) == PartitionSpec(None, ("fsdp", "tensor"))
    assert hash(layout) == hash(Layout(layout.mesh, axis_rules(vocab=(), embed=["fsdp", "tensor"])))


def test_a_mesh_axis_is_a_row_of_the_table():
    """Everything about a fifth axis follows from its row: mesh texts, meshes, rules, and where an array lies."""
    with mock.patch.dict(MESH_AXES, expert=MeshAxis("the experts of an MLP")):
        sizes = parse_mesh("expert=4,tensor=2", 8)
        assert sizes == {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 2, "expert": 4}
        assert parse_mesh(fitting_meshes.mesh_text(sizes), 8) == sizes
        assert sizes in fitting_meshes.meshes_that_fit(sizes, lambda mesh: None)
        layout = Layout(make_mesh(**sizes), axis_rules(embed="expert", batch=("data", "expert")))
        assert layout.batch_shards == 4
        kernel = jax.device_put(np.arange(32.0).reshape(8, 4), layout.sharding(("embed", "mlp")))
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 2)}
        np.testing.assert_array_equal(kernel, np.arange(32.0).reshape(8, 4))
        with pytest.raises(ConfigError, match=r"batch_rows=6 is not divisible by mesh axis expert=4; use 4 or 8"):
            check_batch(6, sizes, layout.rules)
    with pytest.raises(ConfigError, match="unknown mesh axis 'expert'"):
        parse_mesh("expert=4,tensor=2", 8)


def test_a_row_is_split_along_its_length_where_it_divides():
    layout = Layout(make_mesh(data=2, tensor=2, sequence=2))
    x = jax.jit(lambda x: layout.constrain(x, ("batch", "length", "embed")))(jnp.zeros((4, 6, 4)))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3, 4)}
    one = jax.jit(lambda x: layout.constrain(x, ("batch", "length", "embed")))(jnp.zeros((4, 1, 4)))
    assert {shard.data.shape for shard in one.addressable_shards} == {(2, 1, 4)}
    with pytest.raises(ConfigError, match=r"data.length=31 is not divisible by mesh axis sequence=2; use 30 or 32"):
        sharding.check_lengths({"data.length": 31}, {"sequence": 2})


def test_constrain_wants_a_name_for_every_dimension(layout):
    with pytest.raises(ValueError, match="name 2 dimensions"):
        layout.constrain(jnp.zeros((2, 2, 2)), ("batch", "length"))
    x = jax.jit(lambda x: layout.constrain(x, ("batch", "mlp")))(jnp.zeros((8, 4)))
    assert x.sharding.is_equivalent_to(layout.sharding(("batch", "mlp")), 2)


# What must divide -----------------------------------------------------------------------------------------------------


def test_batch_must_divide():
    mesh = {"data": 8, "fsdp": 1, "tensor": 1}
    with pytest.raises(ConfigError, match="batch_rows=100 is not divisible by mesh axis data=8; use 96 or 104"):
        check_batch(100, mesh)
    with pytest.raises(ConfigError, match=r"by mesh axis data=2 × fsdp=2 × microbatches=4; use 16 or 32"):
        check_batch(24, {"data": 2, "fsdp": 2, "tensor": 2}, microbatches=4)
    with pytest.raises(ConfigError, match="use 8"):
        check_batch(3, mesh)
    check_batch(104, mesh)


def test_model_must_divide():
    config = preset("gpt2_tiny", vocab_size=50257, num_heads=3)
    with pytest.raises(
        ConfigError, match=r"model.vocab_size=50257 is not divisible by mesh axis tensor=2; use 50256 or"
    ):
        check_model(config, {"data": 1, "fsdp": 1, "tensor": 2}, axis_rules(heads=None))
    with pytest.raises(ConfigError, match=r"model.num_heads=3 is not divisible by mesh axis tensor=2; use 2 or 4"):
        check_model(config, {"data": 1, "fsdp": 1, "tensor": 2})
    with pytest.raises(ConfigError, match=r"model.d_model=128 is not divisible by mesh axis fsdp=3; use 126 or 129"):
        check_model(config, {"data": 1, "fsdp": 3, "tensor": 1})
    check_model(config, {"data": 8, "fsdp": 1, "tensor": 1})
    check_model(config, {"data": 1, "fsdp": 1, "tensor": 2}, axis_rules(vocab=None, heads=None))


@hypothesis.settings(max_examples=500)
@given(SIZES, st.integers(1, 64), st.integers(1, 4), st.integers(1, 12), st.integers(1, 16), st.integers(1, 64))
def test_what_does_not_divide_is_told_with_the_nearest_meshes_that_do(sizes, rows, microbatches, heads, width, length):
    """Each of 500 random configs is accepted, or refused in a line that names accepted meshes."""
    cfg = config.base()
    cfg.data.batch_rows, cfg.eval.batch_rows, cfg.data.length = rows * microbatches, rows, length
    cfg.train.microbatches = microbatches
    model = preset("gpt2_tiny", num_heads=heads, head_dim=8, d_model=8 * width, d_ff=32 * width, vocab_size=128)
    experiment = types.SimpleNamespace(cfg=cfg, model=model)
    cfg.mesh, devices = fitting_meshes.mesh_text(sizes), [None] * math.prod(sizes.values())

    def fits(mesh) -> bool:
        divide = [(rows, "data", "fsdp"), (length, "sequence"), (heads, "tensor"), (8 * width, "fsdp")]
        divide += [(32 * width, "tensor"), (128, "tensor")]
        return all(size % math.prod(mesh[axis] for axis in axes) == 0 for size, *axes in divide)

    with mock.patch.object(sharding, "make_mesh", side_effect=StopIteration):
        try:
            runtime.start(experiment, devices)
        except StopIteration:
            assert fits(sizes)
        except ConfigError as error:
            assert not fits(sizes)
            assert "\n" not in str(error)
            named = re.findall(r"mesh=([a-z=,\d]+)", str(error).partition("This fits: ")[2])
            assert named or "No mesh of this many devices fits" in str(error)
            assert all(fits(parse_mesh(text, len(devices))) for text in named)


def test_a_parameter_that_does_not_divide_is_named(layout):
    box = nn.Partitioned(jax.ShapeDtypeStruct((4, 3), jnp.float32), ("embed", "mlp"))
    with pytest.raises(
        ConfigError,
        match=r"mlp/wi: its dimension mlp=3 is not divisible by mesh axis tensor=2; use 2 or 4, or a different",
    ):
        sharding.shardings({"mlp": {"wi": box}}, layout)


def test_a_parameter_without_axes_is_an_error(layout):
    bare = jax.ShapeDtypeStruct((4,), jnp.float32)
    with pytest.raises(ConfigError, match="parameter head/bias has no logical axes"):
        sharding.shardings({"head": {"bias": bare}}, layout)
    with pytest.raises(ConfigError, match="parameter head/bias has no logical axes"):
        sharding.param_axes({"head": {"bias": bare}})
    with pytest.raises(ConfigError, match=r"has shape \(4,\) but axes \('embed', 'mlp'\); name every dimension"):
        sharding.param_axes({"w": nn.Partitioned(bare, ("embed", "mlp"))})
    with pytest.raises(ConfigError, match="w: unknown logical axis 'embd'; did you mean 'embed'"):
        sharding.shardings({"w": nn.Partitioned(bare, ("embd",))}, layout)
    assert sharding.shardings({"step": jax.ShapeDtypeStruct((), jnp.int32)}, layout)["step"] == layout.replicated


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_every_family_has_axes_and_a_place(family, scan_layers, layout):
    config = dataclasses.replace(FAMILIES[family], scan_layers=scan_layers)
    boxed = step.abstract_params(build(config, layout), random_batch(config))
    axes = sharding.param_axes(boxed)
    known = {field.name for field in dataclasses.fields(AxisRules)}
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    assert all(name in known for leaf in names for name in leaf)
    assert any("layers" in leaf for leaf in names) == (scan_layers and not config.share_layers)
    places = jax.tree.leaves(sharding.shardings(boxed, layout))
    assert len(places) == len(jax.tree.leaves(nn.meta.unbox(boxed)))
    used = {axis for place in places for entry in place.spec if entry for axis in np.atleast_1d(entry)}
    assert used == {"fsdp", "tensor"}


# Batches --------------------------------------------------------------------------------------------------------------


def test_put_batch_splits_rows_in_order(layout):
    rows = np.arange(24, dtype=np.int32).reshape(8, 3)
    array = sharding.put_batch({"x": rows}, layout)["x"]
    assert array.sharding.is_equivalent_to(layout.batch_sharding, 2)
    np.testing.assert_array_equal(array, rows)
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
    assert layout.batch_shards == 4
    assert sharding.process_rows(layout, 8) == slice(0, 8)
    with pytest.raises(ConfigError, match=r"x: its 6 rows are not divisible by mesh axis data=2 × fsdp=2; use 4 or 8"):
        sharding.put_batch({"x": rows[:6]}, layout)
