"""Places arrays on devices: makes the mesh, and the layout, which combines the mesh and the rules of axes.py.

A logical axis (`embed`, `mlp`, …) is a field of `AxisRules`. So a misspelt axis is an error with a hint; without it,
the array would silently be whole on every device. The mesh is always an argument, never global. If sizes cannot be
split evenly, an error says so before anything is compiled.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.cluster.axes import DEFAULT_RULES, MESH_AXES, SIZES, AxisRules
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import unknown
from t5x_lite.models import paths
from t5x_lite.models.config import ModelConfig

if TYPE_CHECKING:
    from t5x_lite.models.layers import Axis


@dataclasses.dataclass(frozen=True)
class Layout:
    """Holds a mesh and the axis rules. With these, an array's logical axes say where to place it.

    A model on the mesh takes the layout as its `constrain`.
    """

    mesh: Mesh
    rules: AxisRules = DEFAULT_RULES

    def spec(self, axes: "Sequence[Axis]") -> PartitionSpec:
        """Returns the mesh axes of each dimension. Raises ConfigError for a logical axis that AxisRules lacks."""
        used: set[str] = set()
        entries: list[tuple[str, ...] | str | None] = []
        for axis in axes:
            free = tuple(mesh_axis for mesh_axis in self._mesh_axes(axis) if mesh_axis not in used)
            used.update(free)
            entries.append(free if len(free) > 1 else free[0] if free else None)
        return PartitionSpec(*entries)

    def _mesh_axes(self, axis: "Axis") -> tuple[str, ...]:
        names = (axis,) if isinstance(axis, str) else axis or ()
        for name in names:
            if not hasattr(self.rules, name):
                raise ConfigError(unknown("logical axis", name, [f.name for f in dataclasses.fields(self.rules)]))
        return tuple(dict.fromkeys(mesh_axis for name in names for mesh_axis in getattr(self.rules, name)))

    def parts(self, axis: "Axis") -> int:
        """Returns the number of parts that a dimension with this axis is split into."""
        return _parts(self._mesh_axes(axis), self.mesh.shape)

    def sharding(self, axes: "Sequence[Axis]") -> NamedSharding:
        """Returns the sharding of an array with these logical axes. Raises ConfigError as `spec` does."""
        return NamedSharding(self.mesh, self.spec(axes))

    def constrain(self, array: jax.Array, axes: "Sequence[Axis]") -> jax.Array:
        """Returns the array with a sharding constraint for the compiler. On a mesh of one device, adds no constraint.

        axes: one logical axis per dimension of the array. Raises ValueError if there are more or fewer.
        """
        if len(axes) != array.ndim:
            raise ValueError(f"axes {tuple(axes)} name {len(axes)} dimensions; the array has shape {array.shape}")
        parts = self.parts("length")
        if parts > 1:  # decoding reads one token at a time, a length that cannot be split
            sizes = zip(axes, array.shape, strict=True)
            axes = [None if name == "length" and size % parts else name for name, size in sizes]
        sharding = self.sharding(axes)
        return array if self.mesh.size == 1 else jax.lax.with_sharding_constraint(array, sharding)

    __call__ = constrain

    def divided(
        self, function: Callable[..., Any], inputs: "Sequence[Sequence[Axis]]", outputs: "Sequence[Sequence[Axis]]"
    ) -> Callable[..., Any]:
        """Does what `models.layers.Constrain` promises. An axis that some array cannot be split along is not split."""
        if self.mesh.size == 1:
            return function

        def on_mesh(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            uneven = {
                axis
                for axes, array in zip(inputs, arrays, strict=True)
                for axis, size in zip(axes, array.shape, strict=True)
                if size % self.parts(axis)
            }
            specs = [self.spec([None if axis in uneven else axis for axis in axes]) for axes in (*inputs, *outputs)]
            of_inputs, of_outputs = tuple(specs[: len(inputs)]), tuple(specs[len(inputs) :])
            split = set().union(*map(_mesh_axes_of, of_inputs))

            def on_device(*parts: jax.Array) -> tuple[jax.Array, ...]:
                results = zip(function(*parts), of_outputs, strict=True)
                return tuple(jax.lax.psum(x, tuple(sorted(split - _mesh_axes_of(spec)))) for x, spec in results)

            # Pallas does not say over which mesh axes the results of a kernel vary, so that jax cannot check them.
            mapped = jax.shard_map(on_device, mesh=self.mesh, in_specs=of_inputs, out_specs=of_outputs, check_vma=False)
            return mapped(*arrays)

        return on_mesh

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of all arrays [B, …] of a batch. Only the rows are split."""
        return self.sharding(("batch",))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding that keeps an array whole on every device."""
        return self.sharding(())

    @property
    def batch_shards(self) -> int:
        """The number of parts that the rows of a batch are split into."""
        return _parts(self.rules.batch, self.mesh.shape)


def parse_mesh(text: str, device_count: int) -> dict[str, int]:
    """Returns the sizes of the mesh axes from a config value.

    An axis of size -1 takes the remaining devices. If no axis has size -1, `data` takes them, unless the text sets the
    size of `data`.

    >>> parse_mesh("fsdp=2,tensor=2", 8)
    {'data': 2, 'fsdp': 2, 'sequence': 1, 'tensor': 2}
    >>> parse_mesh("", 1)
    {'data': 1, 'fsdp': 1, 'sequence': 1, 'tensor': 1}

    Raises:
      ConfigError: an axis is unknown or repeated, a size is not a positive integer, or the product of the sizes is not
        the number of devices.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (s.strip() for s in part.partition("="))
        if name not in MESH_AXES:
            raise ConfigError(unknown("mesh axis", name, MESH_AXES))
        if name in sizes:
            raise ConfigError(f"mesh={text!r} sets {name!r} twice; set each axis once")
        if not equals or not re.fullmatch(r"-1|0*[1-9]\d*", value):
            raise ConfigError(
                f"mesh={text!r}: {part!r} is not AXIS=SIZE; SIZE is a positive integer, or -1 for the remaining devices"
            )
        sizes[name] = int(value)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ConfigError(f"mesh={text!r} sets {' and '.join(open_axes)} to -1; only one axis may be -1")
    if not open_axes and "data" not in sizes:
        open_axes = ["data"]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest = device_count // fixed if open_axes else 1
    sizes = {axis: rest if axis in open_axes else sizes.get(axis, 1) for axis in MESH_AXES}
    if math.prod(sizes.values()) != device_count:
        fitting = [d for d in range(1, device_count + 1) if device_count % d == 0]
        raise ConfigError(
            f"mesh={text!r} needs a multiple of {fixed} devices; there are {device_count}. "
            f"The sizes must multiply to {device_count}: use divisors of it ({', '.join(map(str, fitting))})"
            if open_axes
            else f"mesh={text!r} needs {fixed} devices; there are {device_count}. "
            f"The sizes must multiply to {device_count}; or omit data, and it takes the remaining devices"
        )
    return sizes


def make_mesh(
    devices: Sequence[Any] | None = None, row_axes: Sequence[str] = DEFAULT_RULES.batch, **sizes: int
) -> Mesh:
    """Returns a mesh with these sizes: `make_mesh(data=4, tensor=2)`.

    devices: by default all of `jax.devices()`. Neighbours along the last axis of MESH_AXES have the fastest links.
    row_axes: the mesh axes that the rows of a batch are split over.
    sizes: {mesh axis: its size}; 1 for an axis that is not given.

    Raises ConfigError if an axis is unknown, if the product of the sizes is not the number of devices, or if the size
    of `data` is not divisible by the number of slices.
    """
    for axis in sizes:
        if axis not in MESH_AXES:
            raise ConfigError(unknown("mesh axis", axis, MESH_AXES))
    devices = list(jax.devices() if devices is None else devices)
    names, shape = tuple(MESH_AXES), tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    if math.prod(shape) != len(devices):
        text = " × ".join(f"{axis}={size}" for axis, size in zip(names, shape, strict=True))
        raise ConfigError(f"mesh {text} is {math.prod(shape)} devices; there are {len(devices)}")
    axis_types = (AxisType.Auto,) * len(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(_over_slices(shape, slices, devices), names, axis_types=axis_types)
    mesh = jax.make_mesh(shape, names, axis_types=axis_types, devices=devices)
    if rows_follow(mesh.devices, row_axes):
        return mesh
    # With the devices in the order of the fastest links, the batch rows of a process would not be contiguous.
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order).reshape(shape), names, axis_types=axis_types)


def _over_slices(shape: tuple[int, ...], slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Returns the devices of several slices as an array of this shape, so that only one axis spans the slow network.

    This axis is the first with crosses_slices. Raises ConfigError if the axis's size is not divisible by `slices`.
    """
    crossing = next(number for number, axis in enumerate(MESH_AXES.values()) if axis.crosses_slices)
    if shape[crossing] % slices:
        name, size = list(MESH_AXES)[crossing], shape[crossing]
        raise ConfigError(f"mesh {name}={size} is not divisible by {slices} slices; use {_nearest(size, slices)}")
    over = tuple(slices if number == crossing else 1 for number in range(len(shape)))
    inside = tuple(size // count for size, count in zip(shape, over, strict=True))
    return mesh_utils.create_hybrid_device_mesh(inside, over, devices)


def rows_follow(devices: np.ndarray, row_axes: Sequence[str] = DEFAULT_RULES.batch) -> bool:
    """Returns whether the batch rows of each process are contiguous.

    devices: an array of devices with one dimension per axis of MESH_AXES.
    """
    split = [number for number, axis in enumerate(MESH_AXES) if axis in row_axes]
    by_row = np.moveaxis(devices, split, range(len(split)))
    by_row = by_row.reshape(math.prod(by_row.shape[: len(split)]), -1)
    of_row = [{device.process_index for device in row} for row in by_row]
    for process in set().union(*of_row):
        rows = [number for number, processes in enumerate(of_row) if process in processes]
        if rows[-1] - rows[0] >= len(rows):
            return False
    return True


# Divisibility ---------------------------------------------------------------------------------------------------------


def check_batch(
    batch_rows: int, mesh: Mapping[str, int], rules: AxisRules = DEFAULT_RULES, microbatches: int = 1
) -> None:
    """Raises ConfigError unless the rows of every microbatch can be split evenly over the mesh axes of `batch`."""
    parts = _parts(rules.batch, mesh)
    if microbatches < 1 or batch_rows < 1:
        raise ConfigError(f"batch_rows={batch_rows}, microbatches={microbatches}: both must be 1 or more")
    if batch_rows % (parts * microbatches):
        by = _mesh_text(rules.batch, mesh) + (f" × microbatches={microbatches}" if microbatches > 1 else "")
        near = _nearest(batch_rows, parts * microbatches)
        raise ConfigError(f"batch_rows={batch_rows} is not divisible by {by}; use {near}")


def check_lengths(lengths: Mapping[str, int], mesh: Mapping[str, int], rules: AxisRules = DEFAULT_RULES) -> None:
    """Raises ConfigError unless all lengths can be split evenly. lengths: {config key: length}."""
    parts = _parts(rules.length, mesh)
    for key, length in lengths.items():
        if length % parts:
            by = _mesh_text(rules.length, mesh)
            raise ConfigError(f"{key}={length} is not divisible by {by}; use {_nearest(length, parts)}")


def check_model(config: ModelConfig, mesh: Mapping[str, int], rules: AxisRules = DEFAULT_RULES) -> None:
    """Raises ConfigError for the first size of the model that cannot be split evenly. Needs no devices."""
    for axis, field in SIZES.items():
        parts, size = _parts(getattr(rules, axis), mesh), getattr(config, field)
        if size % parts:
            by = _mesh_text(getattr(rules, axis), mesh)
            raise ConfigError(
                f"model.{field}={size} is not divisible by {by}; use {_nearest(size, parts)}, or a different mesh"
            )


def _mesh_axes_of(spec: PartitionSpec) -> set[str]:
    return {axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}


def _parts(axes: Sequence[str], mesh: Mapping[str, int]) -> int:
    return math.prod(mesh.get(axis, 1) for axis in axes)


def _mesh_text(axes: Sequence[str], mesh: Mapping[str, int]) -> str:
    shown = [axis for axis in axes if mesh.get(axis, 1) > 1] or list(axes)
    return f"mesh axis {' × '.join(f'{axis}={mesh.get(axis, 1)}' for axis in shown)}"


def _nearest(value: int, multiple_of: int) -> str:
    """Returns the two nearest multiples of `multiple_of` as a hint: `_nearest(100, 8)` is "96 or 104"."""
    below = value // multiple_of * multiple_of
    return f"{below} or {below + multiple_of}" if below else str(multiple_of)


# Parameters and batches -----------------------------------------------------------------------------------------------


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)


def param_axes(boxed: Any) -> Any:
    """Returns a tree with one tuple per parameter: the names of the parameter's logical axes.

    boxed: parameters in the boxes (`nn.Partitioned`) that `module.init` puts around them.

    Raises:
      ConfigError: a parameter has no box, or its box does not name every dimension.
    """
    return jax.tree_util.tree_map_with_path(_names, boxed, is_leaf=_is_box)


def _names(path: tuple, leaf: Any) -> tuple[str | None, ...]:
    name = paths.text(path)
    if not _is_box(leaf):
        raise ConfigError(f"parameter {name} has no logical axes; make it with nn.with_partitioning")
    if len(leaf.names) != len(leaf.value.shape):
        raise ConfigError(
            f"parameter {name} has shape {tuple(leaf.value.shape)} but axes {leaf.names}; name every dimension"
        )
    return tuple(leaf.names)


def shardings(boxed: Any, layout: Layout) -> Any:
    """Returns the tree of NamedShardings for a train state or parameters.

    boxed: the shapes of the state or parameters, in the boxes that `module.init` puts around them.

    A scalar without a box (a step counter) is replicated. Raises ConfigError for any other array without a box, an
    unknown logical axis, or a dimension that is not divisible by its mesh axes.
    """

    def place(path: tuple, leaf: Any) -> NamedSharding:
        if not _is_box(leaf) and leaf.ndim == 0:
            return layout.replicated
        axes, parameter = _names(path, leaf), paths.text(path)
        try:
            sharding = layout.sharding(axes)
        except ConfigError as error:
            raise ConfigError(f"{parameter}: {error}") from None
        for size, name, entry in zip(leaf.value.shape, axes, sharding.spec, strict=True):
            by = (entry,) if isinstance(entry, str) else entry or ()
            parts = _parts(by, layout.mesh.shape)
            if size % parts:
                raise ConfigError(
                    f"{parameter}: its dimension {name}={size} is not divisible by "
                    f"{_mesh_text(by, layout.mesh.shape)}; use {_nearest(size, parts)}, or a different mesh"
                )
        return sharding

    return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=_is_box)


def process_rows(layout: Layout, batch_rows: int) -> slice:
    """Returns which rows of the global batch this process's devices hold. Give these rows to `put_batch`.

    Raises ConfigError if these rows are not contiguous.
    """
    spans = layout.batch_sharding.addressable_devices_indices_map((batch_rows,)).values()
    held = sorted({row for (span,) in spans for row in range(*span.indices(batch_rows))})  # type: ignore[misc]
    if held != list(range(held[0], held[-1] + 1)):
        raise ConfigError("the batch rows of a process are not contiguous on this mesh; reorder its devices")
    return slice(held[0], held[-1] + 1)


def input_shard(layout: Layout, batch_rows: int) -> dict[str, int]:
    """Returns which shard of the global batch this process reads: {"shard_index": …, "shard_count": …}.

    There may be fewer shards than processes: if a mesh axis spans several hosts but does not split rows, these hosts
    read the same rows. Raises ConfigError if processes have different numbers of rows.
    """
    rows = process_rows(layout, batch_rows)
    size = rows.stop - rows.start
    if batch_rows % size or rows.start % size:
        raise ConfigError(
            f"on this mesh, processes have different numbers of the {batch_rows} batch rows; use a different mesh"
        )
    return {"shard_index": rows.start // size, "shard_count": batch_rows // size}


def put_batch(batch: Mapping[str, np.ndarray], layout: Layout) -> dict[str, jax.Array]:
    """Puts this process's rows on its devices and returns global arrays [B, …]. A single process has all rows.

    batch: numpy arrays [rows of this process, …].

    Raises:
      ConfigError: the rows cannot be split evenly over this process's devices.
    """
    shards = layout.batch_sharding.addressable_devices_indices_map((layout.batch_shards,)).values()
    shard_count = len({index[0].start for index in shards})  # type: ignore[index]
    for name, rows in batch.items():
        if len(rows) % shard_count:
            by = _mesh_text(layout.rules.batch, layout.mesh.shape)
            near = _nearest(len(rows), shard_count)
            raise ConfigError(f"{name}: its {len(rows)} rows are not divisible by {by}; use {near}")
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), layout.batch_sharding)  # a single call for all arrays has half the overhead
    return {name: jax.make_array_from_process_local_data(layout.batch_sharding, r) for name, r in batch.items()}
