"""Checks a caller's arguments."""

from typing import Any

from t5x_lite.errors import ConfigError, DataError


def require_text(given: Any) -> str:
    """Returns `given`. Raises DataError unless it is a string."""
    if not isinstance(given, str):
        raise DataError(f"{str(given)[:80]!r} is of type {type(given).__name__}, not text; pass a string")
    return given


def require_positive(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a whole number of 1 or more. name: the option that has this value."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: must be a whole number, 1 or more")
