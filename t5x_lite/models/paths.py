"""Paths of parameters. The path `encoder/mlp/kernel`, for example, names the array tree["encoder"]["mlp"]["kernel"]."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


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
