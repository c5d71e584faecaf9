"""Finds meshes that an experiment fits, for the error that says that its own mesh does not fit."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

from t5x_lite.cluster.axes import MESH_AXES
from t5x_lite.errors import ConfigError


def meshes_that_fit(
    wanted: Mapping[str, int], check: Callable[[Mapping[str, int]], None], number: int = 3
) -> list[dict[str, int]]:
    """Returns up to `number` meshes that pass `check` and have as many devices as `wanted`. The most similar is first.

    check: raises ConfigError for a mesh that does not fit.
    """
    fitting = []
    for sizes in _factorings(math.prod(wanted.values()), len(MESH_AXES)):
        mesh: dict[str, int] = dict(zip(MESH_AXES, sizes, strict=True))
        with contextlib.suppress(ConfigError):
            check(mesh)
            fitting.append(mesh)
    return sorted(fitting, key=lambda mesh: sum(abs(math.log(mesh[a] / wanted[a])) for a in MESH_AXES))[:number]


def mesh_text(mesh: Mapping[str, int]) -> str:
    """Returns a mesh as the text that `--config.mesh` takes.

    >>> mesh_text({"data": 1, "fsdp": 4, "sequence": 1, "tensor": 2})
    'fsdp=4,tensor=2'
    """
    return ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "data=1"


def _factorings(product: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yields every tuple of `parts` positive integers whose product is `product`.

    >>> list(_factorings(4, 2))
    [(1, 4), (2, 2), (4, 1)]
    """
    if parts == 1:
        yield (product,)
        return
    for first in range(1, product + 1):
        if product % first == 0:
            for rest in _factorings(product // first, parts - 1):
                yield (first, *rest)
