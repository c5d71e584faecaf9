"""A model's parameters by path: `encoder/layers_0/mlp/wi/kernel` stands for the array that nested dicts hold there."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf}, in the order of the dicts. Whatever is no dict is a leaf; empty dicts are left out.

    >>> flatten({"mlp": {"wi": {"kernel": 1}, "wo": {}}})
    {'mlp/wi/kernel': 1}
    """
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]  (flax infers no dict of str)


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts of {path: leaf}.

    >>> unflatten({"mlp/wi/kernel": 1})
    {'mlp': {'wi': {'kernel': 1}}}
    """
    return traverse_util.unflatten_dict(leaves, sep="/")


def text(path: tuple) -> str:
    """The path that jax's tree functions give, as text; fields of a class and numbers of a list are parts of it too."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
