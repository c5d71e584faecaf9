"""Looks up names in tables. The error for an unknown name suggests the nearest names."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from t5x_lite.errors import ConfigError

T = TypeVar("T")


def suggest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` names of `allowed` that are similar to `name`, the nearest first.

    >>> suggest("glue_col", ["glue_cola", "glue_sst2", "wmt"])
    ['glue_cola', 'glue_sst2']
    """
    names = [str(a) for a in allowed]
    by_lower = {a.lower(): a for a in reversed(names)}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=count, cutoff=0.5)
    return [by_lower[n] for n in near]


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Returns the error message for a `name` that is not allowed. The message lists at most 20 allowed names.

    >>> unknown("task", "glue_col", ["glue_cola"])
    "unknown task 'glue_col'; did you mean 'glue_cola'? (allowed: glue_cola)"
    """
    names = sorted(str(a) for a in allowed)
    near = suggest(name, names)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    shown = ", ".join(names[:20]) + (f", … {len(names)} in all" if len(names) > 20 else "")
    return f"unknown {kind} {name!r}{hint} (allowed: {shown or 'none'})"


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Returns `table[name]`. If the table lacks `name`, raises ConfigError, which suggests similar names."""
    try:
        return table[name]
    except KeyError:
        raise ConfigError(unknown(kind, name, table)) from None


def own_parameters(section: str, name: str, function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of `given` that are not None, which must be keyword-only arguments of `function`.

    section: of the config keys that hold them.  name: of the function in the config.
    Raises ConfigError for an entry that the function does not take.
    """
    allowed = inspect.getfullargspec(function).kwonlyargs
    for key, value in given.items():
        if value is not None and key not in allowed:
            takes = ", ".join(f"{section}.{each}" for each in allowed) or "none"
            raise ConfigError(f"{section}.{key}={value}: {name} has no {key}; unset it. Its own keys: {takes}")
    return {key: value for key, value in given.items() if value is not None}
