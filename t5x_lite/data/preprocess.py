"""Preprocessors are small pure functions from example to example. A preprocessor drops an example by returning None.

The source of the nested functions, docstrings included, is part of tasks' fingerprints. Editing it makes earlier runs
and caches unusable.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from t5x_lite import own_code
from t5x_lite.errors import ConfigError, DataError, UserError
from t5x_lite.own_code import identity

Example = Mapping[str, Any]


def template(**fields: str) -> Callable[[Example], dict]:
    """Returns a preprocessor that adds fields to an example. Each argument is a format string, which is filled with the
    existing fields and gives one new field. The existing fields stay.

    `{answers[text][0]}` reaches into objects and lists.

    >>> template(inputs="summarize: {body}", targets="{title}")({"body": "b", "title": "t"})["inputs"]
    'summarize: b'

    Raises ConfigError if a template is invalid. The preprocessor raises DataError if a field is missing or null.
    """
    for text in fields.values():
        pieces(text)

    def apply(example: Example) -> dict:
        return {**example, **{name: _filled(name, text, example) for name, text in fields.items()}}

    return apply


def rename(**fields: str) -> Callable[[Example], dict]:
    """Returns a preprocessor that copies fields to new names: `text="content"` copies `content` to `text`, unchanged.

    The preprocessor raises DataError if a source field is missing.

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
    """Returns a preprocessor that drops the examples that do not meet the condition."""
    return lambda example: example if condition(example) else None


def apply(functions, example: Example, rng: Callable[[], np.random.Generator]) -> Example | None:
    """Applies all preprocessors in order and returns the example, or None if one drops it.

    rng: makes a generator for each preprocessor with a parameter named `rng`.
    Raises DataError, which names the preprocessor, if a preprocessor raises any exception other than a UserError.
    """
    for function in functions:
        try:
            result = function(example, rng=rng()) if takes_rng(function) else function(example)
        except UserError:
            raise
        except Exception as error:
            raise DataError(
                f"the preprocessor {identity(function).split('#')[0]} failed with {type(error).__name__}: {error} "
                f"({own_code.where(error)}); it was given the fields {', '.join(map(str, example))}"
            ) from error
        if result is None:
            return None
        example = result
    return example


@functools.lru_cache(maxsize=1024)  # called for every example
def takes_rng(function: Callable) -> bool:
    """Returns whether a preprocessor has a parameter named `rng`."""
    return "rng" in inspect.signature(function).parameters


# ---------------------------------------------------------------------------------------------------- templates


def fill(template: str, record: Example) -> str:
    """Returns the template with every field in braces replaced by the record's value.

    Raises ValueError if the record lacks a field.

    >>> fill("{title}: {body}!", {"title": "t", "body": 1})
    't: 1!'
    """
    return "".join(literal + (written(record, field) if field else "") for literal, field in pieces(template))


def _filled(name: str, template: str, example: Example) -> str:
    try:
        return fill(template, example)
    except ValueError as error:
        raise DataError(
            f"the template {name}={template!r}: {error}; the example has {', '.join(sorted(map(str, example)))}"
        ) from None


@functools.lru_cache(maxsize=1024)  # called for every example
def pieces(template: str) -> list[tuple[str, str]]:
    """Splits a template into (literal, field) pairs. A field's name may have any character but braces: unlike Python's
    format strings, a template has no format after ":" or "!". Raises ConfigError if the template is invalid.

    >>> pieces("{title}: {og:body}!")
    [('', 'title'), (': ', 'og:body'), ('!', '')]
    """
    out, literal, end = [], "", 0
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[{}]", template):
        literal, end = literal + template[end : match.start()], match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
        elif match[1] is None:
            raise ConfigError(f"template {template!r}: a single {match[0]!r}; write literal braces as {{{{ and }}}}")
        elif not match[1]:
            raise ConfigError(f"template {template!r}: put the name of a field in the braces, and nothing else")
        else:
            out.append((literal, match[1]))
            literal = ""
    literal += template[end:]
    return [*out, (literal, "")] if literal else out


def root(field: str) -> str:
    """Returns the part of a template's field that names the record's field: "answers" for "answers[text][0]"."""
    return field.partition("[")[0]


def written(row: Example, field: str) -> str:
    """Returns a field's value as text. The items of a list are joined by spaces.

    Raises ValueError if the field is missing, null, an object or bytes, or if it holds a list of lists.

    >>> written({"tokens": ["a", "b"]}, "tokens"), written({"tokens": ["a", "b"]}, "tokens[1]")
    ('a b', 'b')
    """
    return _text(value_of(row, field), field)


def value_of(row: Example, field: str) -> Any:
    """Returns the value of a field, such as "title" or "answers[text][0]". Raises ValueError if there is none."""
    value: Any = row
    for step in [field] if field in row else [root(field), *re.findall(r"\[([^\]]*)\]", field)]:
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, Mapping) and step in value:
            value = value[step]
        else:
            missing = f"the record has no {step!r}" if value is row else f"the field {field!r} has no {step!r}"
            raise ValueError(missing)
    return value


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
        if any(isinstance(part, list) for part in value):
            raise ValueError(f"the field {field!r} is a list of lists, which cannot be joined (name one: {field}[0])")
        return " ".join(_text(part, field) for part in value)
    if isinstance(value, Mapping):
        raise ValueError(f"the field {field!r} is an object, not a text (name one of its keys: {field}[KEY])")
    return str(value)
