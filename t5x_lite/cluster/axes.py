"""Defines the axes of a mesh, the logical axes of arrays, and the rules that split logical axes over mesh axes.

Does not import jax, because config files use these rules and must load without it. To add a mesh axis, add a row to
MESH_AXES. To add a logical axis, add a field to AxisRules. Nothing else describes an axis.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.lookup import unknown


@dataclasses.dataclass(frozen=True)
class MeshAxis:
    """One axis of the mesh.

    meaning: what is split over the axis.
    crosses_slices: whether the axis may span the slow network between slices of a pod.
    """

    meaning: str
    crosses_slices: bool = False


# In the order of a mesh's dimensions. Devices that are neighbours along the last axis have the fastest links.
MESH_AXES: dict[str, MeshAxis] = {
    "data": MeshAxis("rows of the batch; every device holds all parameters", crosses_slices=True),
    "fsdp": MeshAxis("rows of the batch; parameters and optimizer state are split too, and gathered when used"),
    "sequence": MeshAxis("the length of rows that are too long for one device; inside attention, the heads"),
    "tensor": MeshAxis("matrix products: heads, MLP width, vocabulary"),
}

# What a dimension can be in Adafactor's factored second moment (t5x: standard_logical_factor_rules).
ROW, COLUMN, STACK, WHOLE = "row", "column", "stack", "whole"


def _axis(*mesh_axes: str, factor: str = WHOLE, size: str = "", hidden: bool = False) -> Any:
    """Returns the dataclass field of a logical axis.

    mesh_axes: the mesh axes that the logical axis is split over by default.
    factor: the logical axis's role in Adafactor's second moments. ROW and COLUMN: the moments are factored along it.
        STACK: layers, never averaged over. WHOLE: parameters with this axis are not factored.
    size: the field of ModelConfig that holds the logical axis's size, if the mesh axes must divide that size; else "".
    hidden: whether the axis numbers hidden units, as the axes of layers' matrices do, and not words or classes.
    """
    return dataclasses.field(default=mesh_axes, metadata={"factor": factor, "size": size, "hidden": hidden})


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """Holds the mesh axes that each logical axis is split over. () keeps a logical axis whole on every device.

    An array uses each mesh axis only once, for its leftmost dimension whose rule has that mesh axis. By default, both
    `batch` and `embed` have fsdp. So fsdp splits activations ("batch", "length", "embed") by batch, and kernels
    ("embed", "mlp") by embed. Raises ConfigError for an unknown mesh axis.
    """

    batch: tuple[str, ...] = _axis("data", "fsdp")
    length: tuple[str, ...] = _axis("sequence")
    embed: tuple[str, ...] = _axis("fsdp", factor=ROW, size="d_model", hidden=True)
    mlp: tuple[str, ...] = _axis("tensor", factor=COLUMN, size="d_ff", hidden=True)
    heads: tuple[str, ...] = _axis("tensor", factor=COLUMN, size="num_heads", hidden=True)
    kv: tuple[str, ...] = _axis(factor=COLUMN, size="head_dim", hidden=True)
    vocab: tuple[str, ...] = _axis("tensor", factor=COLUMN, size="vocab_size")
    layers: tuple[str, ...] = _axis(factor=STACK)
    relative_buckets: tuple[str, ...] = _axis(size="relative_buckets")
    positions: tuple[str, ...] = _axis(factor=COLUMN, size="max_positions")
    types: tuple[str, ...] = _axis(factor=COLUMN, size="type_vocab_size")
    classes: tuple[str, ...] = _axis(factor=COLUMN, size="num_classes")
    lora: tuple[str, ...] = _axis()
    norm: tuple[str, ...] = _axis()  # scales and biases of norms: a few kilobytes

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or value is None:  # config files may say "tensor" for ("tensor",) and None for ()
                value = (value,) if value else ()
            object.__setattr__(self, field.name, tuple(value))
            for axis in getattr(self, field.name):
                if axis not in MESH_AXES:
                    raise ConfigError(unknown(f"mesh axis in rule {field.name!r}", axis, MESH_AXES))


DEFAULT_RULES = AxisRules()
SIZES = {f.name: f.metadata["size"] for f in dataclasses.fields(AxisRules) if f.metadata["size"]}
HIDDEN = {f.name for f in dataclasses.fields(AxisRules) if f.metadata["hidden"]}


def factor_of(logical_axis: str | None) -> str:
    """Returns the axis's role in Adafactor's moments. Returns WHOLE if the axis is None or no field of AxisRules."""
    fields = {field.name: field.metadata["factor"] for field in dataclasses.fields(AxisRules)}
    return fields.get(logical_axis or "", WHOLE)


def is_hidden(logical_axis: str | None) -> bool:
    """Returns whether the axis numbers hidden units. Returns False if the axis is None or no field of AxisRules."""
    return logical_axis in HIDDEN


def axis_rules(**overrides: str | Sequence[str] | None) -> AxisRules:
    """Returns the default rules with the overrides. Raises ConfigError for an unknown logical or mesh axis.

    For example, with `axis_rules(vocab=None)` the vocabulary of embeddings is not split over `tensor`.
    """
    allowed = [field.name for field in dataclasses.fields(AxisRules)]
    for name in overrides:
        if name not in allowed:
            raise ConfigError(unknown("logical axis", name, allowed))
    return AxisRules(**overrides)  # type: ignore[arg-type]


def is_axes(x: Any) -> bool:
    """Returns whether x holds the logical axes of one array, such as ("embed", None): a leaf of a tree of axes."""
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)
