"""Checks a caller's arguments."""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite import side_files
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.hub import mapping
from t5x_lite.hub.t5gemma2_families import image_tokens
from t5x_lite.models import stored


def require_text(given: Any) -> str:
    """Returns `given`. Raises DataError unless it is a string."""
    if not isinstance(given, str):
        raise DataError(f"{str(given)[:80]!r} is of type {type(given).__name__}, not text; pass a string")
    return given


def require_positive(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a whole number of 1 or more. name: the option that has this value."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}: must be a whole number, 1 or more")


def refuse_images(texts: Iterable[np.ndarray], origin: Path | None) -> None:
    """Raises DataError if a text of T5Gemma 2 has a token that stands for an image, or ends one.

    texts: token ids of each text.  origin: the directory whose config.json says which tokens these are; None: the model
        was not imported, and has none.
    """
    tokens = {} if origin is None else _image_tokens(origin)
    for ids in texts:
        if found := sorted(set(np.asarray(ids).tolist()) & tokens.keys()):
            raise DataError(
                f"a text has the token {found[0]} ({tokens[found[0]]} of config.json), which belongs to an image; our "
                "models have no vision tower. Remove it from the text"
            )


@functools.cache
def _image_tokens(origin: Path) -> Mapping[int, str]:
    name = stored.SETTINGS if side_files.is_there(origin / stored.SETTINGS) else "config.json"
    return image_tokens(mapping.read_json(origin / name))
