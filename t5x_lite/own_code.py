"""Checks functions and objects of the user's own code before they are called, and identifies them by their source.

A config may hold such an object in place of a name (`cfg.optimizer.name = my_optimizer`). config.json then stores a
reference to the object: its file, its name and a digest of its source ("my_experiment.py:my_optimizer#1f2e3d4c").
t5x_lite never imports code because of a reference: to resume the run, the user has to give the config file again.
"""

import ast
import functools
import hashlib
import inspect
import re
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.errors import ConfigError, UserError

PACKAGES = ("site-packages", "dist-packages")  # directories of installed libraries
CONFIG_MODULE = "t5x_lite_config_"  # + the file's stem: the name of the module that a config file becomes
REFERENCE = re.compile(r"[\w./-]+:.+#([0-9a-f]{8}|\?)")


def reference(thing: Any) -> str:
    """Returns the reference to an object of the user's code: its file, its name, and a digest of its source."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    module = getattr(thing, "__module__", None) or type(thing).__module__
    where = f"{module.removeprefix(CONFIG_MODULE)}.py" if module.startswith(CONFIG_MODULE) else module
    if isinstance(thing, type):
        return f"{where}:{thing.__qualname__}#{_source_digest(thing)}"
    name = identity(thing)
    return f"{where}:{name}" if "#" in name else f"{where}:{name}#?"


def is_reference(value: Any) -> bool:
    """Returns whether a config value is a reference. Only a config that was read from a config.json has references."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def is_own(thing: Any) -> bool:
    """Returns whether an object is the user's own code: defined outside this package."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return module.split(".")[0] != "t5x_lite"


def check_call(what: str, function: Any, arguments: Sequence[str]) -> None:
    """Raises ConfigError unless `function` accepts as many arguments as the list `arguments` has.

    arguments: their names, for the error. what: KEY=NAME, with which the error begins.
    """
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"{what} is called with ({', '.join(arguments)}): {error}; make it accept these") from None
    except ValueError:  # a C function without a signature
        pass


def called(what: str, function: Callable, *arguments: Any) -> Any:
    """Returns function(*arguments). If it fails, raises ConfigError, which names `what` (KEY=NAME) and the lines."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} failed with {type(error).__name__}: {error} ({where(error)})") from error


def where(error: BaseException) -> str:
    """Returns the lines of the user's own code that an error passed through, outermost first; at most the last five.

    If it passed through none, returns the line that raised it.
    """
    lines = own_lines(error)
    if not lines:
        *_, frame = traceback.extract_tb(error.__traceback__)
        return f"{frame.filename}, line {frame.lineno}"
    return f"in your {' → '.join(lines[-5:])}"


def own_lines(error: BaseException) -> list[str]:
    """Returns "FILE, line NUMBER" for each frame of an error's traceback that is neither this package nor a library."""
    libraries = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(libraries)]
    return [f"{f.filename}, line {f.lineno}" for f in frames if not {*PACKAGES} & {*Path(f.filename).parts}]


def name_of(thing: Any) -> str:
    """Returns the name of a function, or of an object's class, for use in messages."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def identity(function: Callable) -> str:
    """Returns a text that identifies a function or object: its name, its bound arguments and a digest of its source.

    If any of these changes, the text changes. The text stays the same if only comments or layout change, if another
    function that this one calls changes, or if the code that changes has no Python source.

    >>> identity(functools.partial(print, 1, sep=","))
    "print(1, sep=',')"
    """
    return _identity(function, ())


def _identity(function: Callable, above: tuple[Callable, ...]) -> str:
    if isinstance(function, functools.partial):
        bound = [_value(v, above) for v in function.args]
        bound += [f"{k}={_value(v, above)}" for k, v in sorted(function.keywords.items())]
        return f"{_identity(function.func, above)}({', '.join(bound)})"
    if not inspect.isfunction(function):  # a builtin, or an object that its repr describes, such as a dataclass
        name = _value(function, above)
        return name if inspect.isroutine(function) else f"{name}#{_source_digest(type(function))}"
    if function in above:  # a nested function that calls itself
        return function.__qualname__
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    arguments = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}
    arguments |= inspect.getclosurevars(function).nonlocals
    listed = ", ".join(f"{k}={_value(v, (*above, function))}" for k, v in sorted(arguments.items()))
    # A closure is named after the function that made it: template(inputs=…), not template.<locals>.apply.
    name = function.__qualname__.split(".<locals>")[0] if listed else function.__qualname__
    return f"{name}({listed})#{_source_digest(function)}" if listed else f"{name}#{_source_digest(function)}"


def _value(value: Any, above: tuple[Callable, ...]) -> str:
    """Returns an argument as text, the same in every process. A long text becomes its beginning and a digest."""
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
    """Returns a digest of the source without comments and layout, or "?" if there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return "?"
    try:
        return _digest(ast.unparse(ast.parse(source)))
    except SyntaxError:  # the source line of a lambda is often not a whole statement
        return _digest(" ".join(source.split()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:8]
