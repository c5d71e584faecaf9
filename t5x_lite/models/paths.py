"""Paths of parameters. The path `encoder/mlp/kernel`, for example, names the array tree["encoder"]["mlp"]["kernel"]."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

LAYER = re.compile(r"(.*/)layers_(\d+)/")  # the beginning of an unrolled parameter's path: stack, and layer number
SCANNED = re.compile(r"(.*/)layers/")  # of the parameters of all layers of a stack, stacked along the first axis


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {path: leaf}, in the order of the dicts. Everything but a dict is a leaf; empty dicts are omitted.

    >>> flatten({"mlp": {"wi": {"kernel": 1}, "wo": {}}})
    {'mlp/wi/kernel': 1}
    """
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]  (flax infers no dict of str)


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dicts of {path: leaf}.

    >>> unflatten({"mlp/wi/kernel": 1})
    {'mlp': {'wi': {'kernel': 1}}}
    """
    return traverse_util.unflatten_dict(leaves, sep="/")


def text(path: tuple) -> str:
    """Returns the text of `path`, a tuple from jax's tree functions: its keys, attribute names and list indices, joined
    by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def unrolled(path: str, shape: tuple[int, ...]) -> list[str]:
    """Returns the paths that a parameter's layers have if they are not scanned; [path] if the parameter is no stack.

    >>> unrolled("encoder/layers/mlp_norm/scale", (2, 64))
    ['encoder/layers_0/mlp_norm/scale', 'encoder/layers_1/mlp_norm/scale']
    """
    return [SCANNED.sub(rf"\1layers_{i}/", path) for i in range(shape[0])] if SCANNED.match(path) else [path]
