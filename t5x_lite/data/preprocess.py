"""Preprocessors: small pure functions from example to example. None drops the example."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5x_lite.errors import DataError

Example = Mapping[str, Any]


def template(**fields: str) -> Callable[[Example], dict]:
    """New fields from format strings over the old ones; the old ones stay.

    >>> template(inputs="summarize: {body}", targets="{title}")({"body": "b", "title": "t"})["inputs"]
    'summarize: b'
    """

    def apply(example: Example) -> dict:
        try:
            return {**example, **{name: text.format_map(example) for name, text in fields.items()}}
        except KeyError as error:
            raise DataError(
                f"a template names the field {error}; the example has {', '.join(sorted(example))}"
            ) from None

    return apply


def rename(**fields: str) -> Callable[[Example], dict]:
    """`rename(text="content")` makes a field `text` of the field `content`.

    >>> rename(text="content")({"content": "c"})["text"]
    'c'
    """
    return template(**{new: "{" + old + "}" for new, old in fields.items()})


def keep(condition: Callable[[Example], bool]) -> Callable[[Example], Example | None]:
    """Drops the examples that do not meet the condition."""
    return lambda example: example if condition(example) else None


def apply(functions, example: Example, rng: Callable[[], np.random.Generator]) -> Example | None:
    """All preprocessors in order; `rng()` makes the generator for those with a parameter of that name."""
    for function in functions:
        found = function(example, rng=rng()) if takes_rng(function) else function(example)
        if found is None:
            return None
        example = found
    return example


@functools.lru_cache(maxsize=1024)  # asked for every example
def takes_rng(function: Callable) -> bool:
    return "rng" in inspect.signature(function).parameters
