"""Preprocessors: small pure functions from example to example. None drops the example."""

import functools
import inspect
import re
import string
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import ConfigError, DataError, UserError
from t5x_lite.own_code import identity

Example = Mapping[str, Any]


def template(**fields: str) -> Callable[[Example], dict]:
    """New fields from format strings over the old ones; the old ones stay. `{answers[text][0]}` reaches into an object.

    >>> template(inputs="summarize: {body}", targets="{title}")({"body": "b", "title": "t"})["inputs"]
    'summarize: b'

    Raises ConfigError for what is no template, and (when applied) DataError for a field that is missing or null.
    """
    for text in fields.values():
        pieces(text)

    def apply(example: Example) -> dict:
        return {**example, **{name: _filled(name, text, example) for name, text in fields.items()}}

    return apply


def rename(**fields: str) -> Callable[[Example], dict]:
    """`rename(text="content")` makes a field `text` of the field `content`, whatever it holds.

    >>> rename(text="content")({"content": "c"})["text"]
    'c'
    """

    def apply(example: Example) -> dict:
        for old in fields.values():
            if old not in example:
                raise DataError(f"rename: there is no field {old!r}; the example has {', '.join(sorted(example))}")
        return {**example, **{new: example[old] for new, old in fields.items()}}

    return apply


def keep(condition: Callable[[Example], bool]) -> Callable[[Example], Example | None]:
    """Drops the examples that do not meet the condition."""
    return lambda example: example if condition(example) else None


def apply(functions, example: Example, rng: Callable[[], np.random.Generator]) -> Example | None:
    """All preprocessors in order; `rng()` makes the generator for those with a parameter of that name. What one raises
    is a DataError that names it."""
    for function in functions:
        try:
            found = function(example, rng=rng()) if takes_rng(function) else function(example)
        except UserError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"the preprocessor {identity(function).split('#')[0]} failed ({Path(frame.filename).name}:"
                f"{frame.lineno}) with {type(error).__name__}: {error}; it was given {', '.join(map(str, example))}"
            ) from error
        if found is None:
            return None
        example = found
    return example


@functools.lru_cache(maxsize=1024)  # asked for every example
def takes_rng(function: Callable) -> bool:
    return "rng" in inspect.signature(function).parameters


# ---------------------------------------------------------------------------------------------------- templates


def _filled(name: str, template: str, example: Example) -> str:
    try:
        return "".join(literal + (written(example, field) if field else "") for literal, field in pieces(template))
    except ValueError as error:
        raise DataError(
            f"the template {name}={template!r}: {error}; the example has {', '.join(sorted(map(str, example)))}"
        ) from None


@functools.lru_cache(maxsize=1024)  # asked for every example
def pieces(template: str) -> list[tuple[str, str]]:
    """(literal, field) pairs of a template.

    >>> pieces("{title}: {body}!")
    [('', 'title'), (': ', 'body'), ('!', '')]
    """
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}; write a brace that is text as {{{{ or }}}}") from None
    for _, field, form, conversion in found:
        if field == "" or form or conversion:
            raise ConfigError(f"template {template!r}: put the name of a field in the braces, and nothing else")
    return [(literal, field or "") for literal, field, _, _ in found]


def root(field: str) -> str:
    """The field of a record that a template's field begins with: "answers" of "answers[text][0]"."""
    return field.partition("[")[0]


def written(row: Example, field: str) -> str:
    """The text of a field; ValueError says why there is none."""
    value: Any = row
    for step in [field] if field in row else [root(field), *re.findall(r"\[([^\]]*)\]", field)]:
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping) and step in value:
            value = value[step]
        else:
            raise ValueError(f"it has no {step!r}" if value is row else f"in {field!r} there is no {step!r}")
    return _text(value, field)


def _text(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError(f"the field {field!r} is null")
    if isinstance(value, bytes):
        raise ValueError(f"the field {field!r} holds bytes that are not UTF-8")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(_text(part, field) for part in value)
    if isinstance(value, Mapping):
        raise ValueError(f"the field {field!r} is an object, not a text (name one of its keys, {field}[KEY])")
    return str(value)
