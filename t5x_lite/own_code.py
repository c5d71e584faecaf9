"""Functions and objects of the user's own code: checked before they are called, and known again by their source.

A config may hold one in place of a name (`cfg.optimizer.name = my_optimizer`). In config.json it stands as a text, the
file it is from, its name and a digest of its source: "my_experiment.py:my_optimizer#1f2e3d4c". Nothing is ever imported
because such a text says so: the config file has to be given again.
"""

import ast
import functools
import hashlib
import inspect
import re
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_lite.errors import ConfigError

CONFIG_MODULE = "t5x_lite_config_"  # before the name of a config file: the module it is loaded as
REFERENCE = re.compile(r"[\w./-]+:.+#([0-9a-f]{8}|\?)")


def reference(thing: Any) -> str:
    """The text that stands for an object of the user's code: where it is from, its name, and a digest of its source."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    module = getattr(thing, "__module__", None) or type(thing).__module__
    where = f"{module.removeprefix(CONFIG_MODULE)}.py" if module.startswith(CONFIG_MODULE) else module
    if isinstance(thing, type):
        return f"{where}:{thing.__qualname__}#{_source_digest(thing)}"
    name = identity(thing)
    return f"{where}:{name}" if "#" in name else f"{where}:{name}#?"


def is_reference(value: Any) -> bool:
    """Whether a config value is the text of an object, from a config.json."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def is_own(thing: Any) -> bool:
    """Whether an object is of the user's own code, not of this package's."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return module.split(".")[0] != "t5x_lite"


def check_call(what: str, function: Any, arguments: Sequence[str]) -> None:
    """ConfigError, which begins with `what` (KEY=NAME), unless a function can be called with that many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"{what} is called with ({', '.join(arguments)}): {error}; let it take these") from None
    except ValueError:  # a function of C that tells no signature
        pass


def called(what: str, function: Callable, *arguments: Any) -> Any:
    """What a function returns; what it raises becomes a ConfigError with `what` (KEY=NAME) and the line it is from."""
    try:
        return function(*arguments)
    except ConfigError:
        raise
    except Exception as error:
        *_, frame = traceback.extract_tb(error.__traceback__)
        where = f"{frame.filename}, line {frame.lineno}"
        raise ConfigError(f"{what} failed with {type(error).__name__}: {error} ({where})") from error


def name_of(thing: Any) -> str:
    """A function's or an object's name, for messages."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def identity(function: Callable) -> str:
    """A function's or an object's name, its arguments, and a digest of its source without comments and layout, so that
    a change of any of them is seen. Not seen: changes in the functions it calls, and in code without source.

    >>> identity(functools.partial(print, 1, sep=","))
    "print(1, sep=',')"
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
