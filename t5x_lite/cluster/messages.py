"""Encodes values as bytes, to send them between processes. Decoding restores the types."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_lite.errors import ConfigError


def encode(value: Any) -> bytes:
    """Returns a value as bytes. It may consist of texts, numbers, None, lists, tuples, sets and dicts.

    Raises ConfigError for any other type; the error names the type.

    >>> decode(encode([("a", 1), {2: {"b"}}]))
    [('a', 1), {2: {'b'}}]
    """
    return json.dumps(_tagged(value)).encode()


def decode(message: bytes) -> Any:
    """Returns the value that `encode` encoded."""
    return _untagged(json.loads(message))


def _tagged(value: Any) -> Any:
    """Returns the value in JSON's types. A dict, tuple or set becomes {name of its type: list of its parts}."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list):
        return [_tagged(part) for part in value]
    if isinstance(value, Mapping):
        return {"dict": [[_tagged(key), _tagged(part)] for key, part in value.items()]}
    for name, kind in KINDS.items():
        if isinstance(value, kind):
            return {name: [_tagged(part) for part in value]}
    raise ConfigError(
        f"a value of type {type(value).__name__} cannot be sent between processes; a task's `reference` and "
        "`postprocess` must return texts, numbers, lists, tuples, sets or dicts"
    )


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((name, parts),) = value.items()
    if name == "dict":
        return {_untagged(key): _untagged(part) for key, part in parts}
    return KINDS[name](_untagged(part) for part in parts)


KINDS = {"tuple": tuple, "frozenset": frozenset, "set": set}
