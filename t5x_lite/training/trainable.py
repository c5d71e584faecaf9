"""Selects the trainable parameters and splits a tree of parameters into a trainable part and a frozen part.

Only the trainable part has gradients and optimizer state.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.heads import SUPERVISED
from t5x_lite.models import paths
from t5x_lite.training.parameter_groups import Group, is_frozen

# The path of a parameter ("encoder/layers_0/mlp/wi/kernel") -> whether the parameter is trainable.
Trainable = Callable[[str], bool]

# Trainable by default in a model with added parameters (LoRA, adapters, a prompt): those parameters and the heads.
ADDED = rf".*/lora_[ab]|.*_adapter/.*|prompt|({'|'.join(SUPERVISED)}|pooler|prediction_head)/.*"


def everything(path: str) -> bool:
    """Returns True: all parameters are trainable."""
    return True


def select(pattern: str, tree: dict[str, Any], has_added: bool, groups: Sequence[Group] = ()) -> Trainable:
    """Returns a predicate that selects each parameter whose whole path matches the regular expression `pattern`.

    The pattern "" selects all parameters, or, if `has_added`, only the added parameters (LoRA, adapters, a prompt) and
    the heads. Parameters that a group freezes are not selected.
    Raises ConfigError if the pattern is invalid or matches no path of the tree, or if groups freeze all it selects.
    """
    pattern, freezes = pattern or (ADDED if has_added else ""), any(group.frozen for group in groups)
    if not pattern and not freezes:
        return everything
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"optimizer.trained={pattern!r} is not a regular expression: {error}; use for example 'decoder/.*'"
        ) from None

    def matches(path: str) -> bool:
        return not pattern or compiled.fullmatch(path) is not None

    if not split(tree, matches)[0]:
        raise ConfigError(
            f"optimizer.trained={pattern!r} matches no parameter; it must match a parameter's whole path, such as "
            f"{next(iter(paths.flatten(tree)))!r}: use for example 'encoder/.*' or '.*bias'"
        )
    if not freezes:
        return matches

    def is_trained(path: str) -> bool:
        return matches(path) and not is_frozen(path, groups)

    if not split(tree, is_trained)[0]:
        raise ConfigError("optimizer.groups freezes every parameter; leave some out")
    return is_trained


def split(tree: dict[str, Any], trainable: Trainable) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (trainable part, frozen part) of a tree. Both are nested dicts, and each leaf is in one of them."""
    if trainable is everything:
        return tree, {}
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for path, leaf in paths.flatten(tree).items():
        parts[0 if trainable(path) else 1][path] = leaf
    return paths.unflatten(parts[0]), paths.unflatten(parts[1])


def merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns the whole tree from the two parts that `split` made."""
    return paths.unflatten(paths.flatten(one) | paths.flatten(other)) if other else one
