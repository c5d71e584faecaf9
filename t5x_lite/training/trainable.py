"""Which parameters learn: a tree of parameters as the part that does and the part that stays.

Gradients and optimizer state exist for the first part alone.
"""

import re
from collections.abc import Callable
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.models import paths

Trained = Callable[[str], bool]  # the path of a parameter ("encoder/layers_0/mlp/wi/kernel") -> does it learn?

HEADS = r"(classification|multi_label|regression|token_classification|span|multiple_choice|pooler)/.*"
ADDED = rf".*/lora_[ab]|.*_adapter/.*|prompt|{HEADS}"  # what learns where there is such, and nothing else is said


def everything(path: str) -> bool:
    return True


def chosen(pattern: str, tree: dict[str, Any], has_added: bool) -> Trained:
    """The parameters whose whole path matches a regular expression; "": all, or those that are added and the heads.

    Raises ConfigError for a pattern that is none, or that matches none of the tree's paths.
    """
    pattern = pattern or (ADDED if has_added else "")
    if not pattern:
        return everything
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"optimizer.trained={pattern!r} is no regular expression: {error}; for example 'decoder/.*'"
        ) from None

    def matches(path: str) -> bool:
        return compiled.fullmatch(path) is not None

    if not split(tree, matches)[0]:
        raise ConfigError(
            f"optimizer.trained={pattern!r} matches no parameter; the whole path of each is compared, such as "
            f"{next(iter(paths.flatten(tree)))!r}: write for example 'encoder/.*' or '.*bias'"
        )
    return matches


def split(tree: dict[str, Any], trained: Trained) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the part that learns, the part that stays), each without the other's leaves."""
    if trained is everything:
        return tree, {}
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for path, leaf in paths.flatten(tree).items():
        parts[0 if trained(path) else 1][path] = leaf
    return paths.unflatten(parts[0]), paths.unflatten(parts[1])


def merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The tree that `split` took apart."""
    return paths.unflatten(paths.flatten(one) | paths.flatten(other)) if other else one
