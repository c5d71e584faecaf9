"""The axes of a mesh, and the rules from the logical axes of arrays to them. No jax here: configs hold the rules.

Four mesh axes serve every kind of parallelism:
    data      each device holds all parameters and its share of the batch rows
    fsdp      the same, but parameters and optimizer state are split too, and gathered when used
    sequence  rows are split along their length, for rows that are too long for one device; keys and values are gathered
    tensor    matrix products are split: heads, MLP width, vocabulary
"""

import dataclasses
from collections.abc import Sequence

from t5x_lite.errors import ConfigError
from t5x_lite.lookup import unknown

MESH_AXES = ("data", "fsdp", "sequence", "tensor")  # the last one's neighbours are nearest


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """For each logical axis, the mesh axes its dimension is split over; () keeps it whole on every device.

    An array uses a mesh axis once: its leftmost dimension that asks for it gets it, so activations
    ("batch", "length", "embed") are split by rows while kernels ("embed", "mlp") are split by `embed`.
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    length: tuple[str, ...] = ("sequence",)
    keys: tuple[str, ...] = ()  # the length of what attention looks at
    embed: tuple[str, ...] = ("fsdp",)
    mlp: tuple[str, ...] = ("tensor",)
    heads: tuple[str, ...] = ("tensor",)
    kv: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ("tensor",)
    layers: tuple[str, ...] = ()
    relative_buckets: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()  # scales and biases of norms: a few kilobytes

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str) or value is None:  # "tensor" is ("tensor",), as in a config file; None is ()
                value = (value,) if value else ()
            object.__setattr__(self, field.name, tuple(value))
            for axis in getattr(self, field.name):
                if axis not in MESH_AXES:
                    raise ConfigError(unknown(f"mesh axis in rule {field.name!r}", axis, MESH_AXES))


DEFAULT_RULES = AxisRules()


def axis_rules(**overrides: str | Sequence[str] | None) -> AxisRules:
    """The default rules with some replaced: `axis_rules(vocab=None)` keeps embeddings whole over `tensor`."""
    allowed = [field.name for field in dataclasses.fields(AxisRules)]
    for name in overrides:
        if name not in allowed:
            raise ConfigError(unknown("logical axis", name, allowed))
    return AxisRules(**overrides)  # type: ignore[arg-type]
