"""Preprocessors: small pure functions from example to example. None drops the example."""

import ast
import functools
import hashlib
import inspect
import textwrap
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


def identity(function: Callable) -> str:
    """A preprocessor's name, its arguments, and a digest of its source without comments and layout, so that a change
    of any of them is seen. Not seen: changes in the functions it calls, and in code whose source is not at hand.

    >>> identity(template(inputs="{a}")).split("#")[0]
    "template(fields={'inputs': '{a}'})"
    """
    return _identity(function, ())


def _identity(function: Callable, above: tuple[Callable, ...]) -> str:
    if isinstance(function, functools.partial):
        bound = [_value(v, above) for v in function.args]
        bound += [f"{k}={_value(v, above)}" for k, v in sorted(function.keywords.items())]
        return f"{_identity(function.func, above)}({', '.join(bound)})"
    if not inspect.isfunction(function):  # built in, or an object that says what it is by its repr, as dataclasses do
        name = _value(function, above)
        return name if inspect.isroutine(function) else f"{name}#{_source_digest(type(function))}"
    if function in above:  # a nested function that calls itself
        return function.__qualname__
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    arguments = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    arguments |= inspect.getclosurevars(function).nonlocals
    listed = ", ".join(f"{k}={_value(v, (*above, function))}" for k, v in sorted(arguments.items()))
    # A closure is known by the function that made it: template(inputs=…), not template.<locals>.apply.
    name = function.__qualname__.split(".<locals>")[0] if listed else function.__qualname__
    return f"{name}({listed})#{_source_digest(function)}" if listed else f"{name}#{_source_digest(function)}"


def _value(value: Any, above: tuple[Callable, ...]) -> str:
    """An argument as text that is the same in every process, a long one by its digest."""
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        return _identity(value, above)
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__qualname__
    if isinstance(value, Mapping):
        shown = "{" + ", ".join(f"{k!r}: {_value(v, above)}" for k, v in value.items()) + "}"
    elif isinstance(value, set | frozenset):
        shown = "{" + ", ".join(sorted(map(repr, value))) + "}"
    else:
        shown = type(value).__qualname__ if " at 0x" in repr(value) else repr(value)
    return shown if len(shown) <= 200 else f"{shown[:40]}…#{_digest(shown)}"


def _source_digest(thing: Any) -> str:
    """ "?" without source."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return "?"
    try:
        return _digest(ast.unparse(ast.parse(source)))
    except SyntaxError:  # the line of a lambda is seldom a whole statement
        return _digest(" ".join(source.split()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:8]
