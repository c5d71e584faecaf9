"""Checks of what a caller gives."""

from typing import Any

from t5x_lite.errors import ConfigError, DataError


def require_text(given: Any) -> str:
    """`given`, if it is a text; else raises DataError."""
    if not isinstance(given, str):
        raise DataError(f"{str(given)[:80]!r} is no text; give one")
    return given


def require_positive(name: str, value: Any) -> None:
    """Raises ConfigError unless the option `name` is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}; it must be a whole number, at least 1")
