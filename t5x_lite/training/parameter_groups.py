"""Parameter groups: learning rates, weight decays and frozen parameters, by regular expressions over parameters' paths.

A group is a text: a regular expression that matches the whole paths of its parameters, then its settings.

    "encoder/.* rate=0.1"         a tenth of the learning rate
    ".*embedding weight_decay=0"  no weight decay
    "pooler/.* frozen"            not trained
    "encoder/.* from=1000"        not trained in the first 1,000 updates

A parameter belongs to the first group that matches it. In scanned layers, groups match the paths that the unrolled
layers would have ("encoder/layers_0/mlp/wi/kernel"), so scanned and unrolled layers train alike.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from t5x_lite.errors import ConfigError
from t5x_lite.models import paths
from t5x_lite.models.paths import LAYER

NO_DECAY = r"(.*/)?(bias|scale|log_scale)"  # biases, the scales of norms, a learned temperature
EMBEDDINGS = r".*embedding.*|.*distances/.*"  # tables, and the norms and projections of embeddings
FORM = "write 'REGEX rate=NUMBER', 'REGEX weight_decay=NUMBER', 'REGEX from=UPDATES' or 'REGEX frozen'"
NUMBERS = {"rate": r"\d+\.?\d*(e-?\d+)?|\.\d+", "weight_decay": r"\d+\.?\d*(e-?\d+)?|\.\d+", "from": r"\d{1,7}"}


class Group(NamedTuple):
    """Holds the settings of the parameters whose whole paths match `pattern`.

    rate: factor of the learning rate.  weight_decay: None: that of the run.  frozen: whether they are not trained.
    start: number of updates before they are trained.
    """

    pattern: re.Pattern[str]
    rate: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False
    start: int = 0


class Groups(NamedTuple):
    """Holds the settings of all parameters.

    groups: in the order in which they are tried.
    weight_decay: of parameters whose group does not set it; 0 for biases and norms.
    layer_decay: factor of the learning rate from a layer to the layer below.
    depths: `depths` of all parameters, frozen ones, too; (): of the trainable ones.
    """

    groups: tuple[Group, ...] = ()
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    depths: Mapping[str, int] | tuple[()] = ()

    @property
    def decays(self) -> bool:
        """Returns whether the weights of any parameter decay."""
        return self.weight_decay > 0 or any(group.weight_decay for group in self.groups)

    @property
    def scales_rates(self) -> bool:
        """Returns whether any parameter has a learning rate of its own."""
        return self.layer_decay != 1 or any(group.rate != 1 for group in self.groups)


EVERYTHING_ALIKE = Groups()


def parse(texts: Sequence[str]) -> tuple[Group, ...]:
    """Returns the groups. Raises ConfigError for a text that is not of the form above."""
    return tuple(map(_parse, texts))


def _parse(text: str) -> Group:
    pattern, *settings = text.split() or [""]
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        if setting != "frozen" and not (name in NUMBERS and re.fullmatch(NUMBERS[name], number)):
            raise ConfigError(f"optimizer.groups entry {text!r}: {setting!r} is not a setting; {FORM}")
        if name in values or "frozen" in values or (setting == "frozen" and values):
            raise ConfigError(f"optimizer.groups entry {text!r}: {setting!r} contradicts the setting before it; {FORM}")
        values[name] = True if setting == "frozen" else float(number)
    if not values:
        raise ConfigError(f"optimizer.groups entry {text!r} has no setting; {FORM}")
    start = int(values.pop("from", 0))
    try:
        return Group(re.compile(pattern), start=start, **values)
    except re.error as error:
        raise ConfigError(f"optimizer.groups entry {text!r}: not a regular expression: {error}; {FORM}") from None


def check(groups: Sequence[Group], tree: dict[str, Any]) -> None:
    """Raises ConfigError if a group has no parameter of the tree, or freezes only some layers of a scanned stack."""
    members = [(path, [group_of(p, groups) for p in paths.unrolled(path, shape)]) for path, shape in _shapes(tree)]
    for group in groups:
        if not any(group in found for _, found in members):
            matches = any(
                group.pattern.fullmatch(p) for path, shape in _shapes(tree) for p in paths.unrolled(path, shape)
            )
            why = "matches only parameters of earlier groups" if matches else "matches no parameter"
            example = paths.unrolled(*next(_shapes(tree)))[0]
            raise ConfigError(
                f"optimizer.groups: {group.pattern.pattern!r} {why}; it must match a parameter's whole path, such as "
                f"{example!r}"
            )
        part = [path for path, found in members if group.frozen and group in found and set(found) != {group}]
        if part:
            raise ConfigError(
                f"optimizer.groups: {group.pattern.pattern!r} freezes only some layers of {part[0]!r}; "
                "set model.scan_layers=false, or freeze all of its layers"
            )


def is_frozen(path: str, groups: Sequence[Group]) -> bool:
    """Returns whether a group freezes the parameter. path: of an unrolled parameter, or of a scanned one."""
    group = group_of(paths.unrolled(path, (1,))[0], groups)
    return group is not None and group.frozen


def decayed(settings: Groups) -> optax.GradientTransformation:
    """Returns the transformation update → update + weight_decay · parameter."""

    def decay(path: str) -> float:
        group = group_of(path, settings.groups)
        if group and group.weight_decay is not None:
            return group.weight_decay
        return 0.0 if re.fullmatch(NO_DECAY, path) else settings.weight_decay

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decays = of_each(updates, decay)
        return jax.tree.map(lambda d, u, p: u + d * p if np.any(d) else u, decays, updates, params), state

    def init(params: Any) -> optax.MaskedState:
        return optax.MaskedState(optax.EmptyState())  # as in the checkpoints of version 0.1

    return optax.GradientTransformation(init, update)


def scaled(settings: Groups) -> optax.GradientTransformation:
    """Returns the transformation that multiplies the update of each parameter by a factor.

    It is layer_decay^(N − n) for layer n of N (from 0), layer_decay^(N + 1) for embeddings, and 1 for all other
    parameters (Clark et al. 2020, ELECTRA, §A.2, with the exponents of Bao et al. 2021, BEiT), times the group's rate.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        depths = settings.depths or depths_of(updates)

        def factor(path: str) -> float:
            group, layer = group_of(path, settings.groups), LAYER.match(path)
            above = depths[layer[1]] - int(layer[2]) if layer else 0
            if not layer and re.fullmatch(EMBEDDINGS, path):
                above = max(depths.values(), default=0) + 1
            return settings.layer_decay**above * (group.rate if group else 1.0)

        return jax.tree.map(lambda f, u: u if np.all(f == 1) else u * f, of_each(updates, factor), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def depths_of(tree: Any) -> dict[str, int]:
    """Returns {the beginning of a stack's paths ("encoder/"): the number of its layers}."""
    depths: dict[str, int] = {}
    for path in (p for each in _shapes(tree) for p in paths.unrolled(*each)):
        if layer := LAYER.match(path):
            depths[layer[1]] = max(depths.get(layer[1], 0), int(layer[2]) + 1)
    return depths


def group_of(path: str, groups: Sequence[Group]) -> Group | None:
    """Returns the first group that matches the path of an unrolled parameter, or None."""
    return next((group for group in groups if group.pattern.fullmatch(path)), None)


def _shapes(tree: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((paths.text(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


def of_each(tree: Any, value_of: Callable[[str], float]) -> Any:
    """Returns the tree of value_of(path); of scanned layers, an array [layers, 1, …] that multiplies the parameter."""

    def value(path: tuple, leaf: Any) -> np.ndarray:
        values = np.array([value_of(p) for p in paths.unrolled(paths.text(path), leaf.shape)], np.float32)
        return values[0] if (values == values[0]).all() else values.reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(value, tree)
