"""`Key`: one config key with everything there is to know about it: default, meaning, allowed values, changes on resume.

config.py lists the keys of a run, models/config.py and cluster/axes.py those of their dataclasses, one line a key.
Validation, the help text and the check of a resumed run all read these lines.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from t5x_lite import own_code
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import unknown

# What another value means to a run that has a checkpoint.
REFUSE = "refuse"  # it decides what the run's steps are: the run does not resume
WARN = "warn"  # it resumes, but no longer as an uninterrupted run would
FREE = "free"  # it changes no step


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers a key allows.

    >>> Range(at_least=0, below=1).text, Range(at_least=1).text, Range(above=0, below=1).text
    ('at least 0 and below 1', 'at least 1', 'between 0 and 1')
    """

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    @property
    def text(self) -> str:
        if math.isfinite(self.above) and math.isfinite(self.below):
            return f"between {self.above} and {self.below}"
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if math.isfinite(bound))


NOT_NEGATIVE = Range(at_least=0)
POSITIVE = Range(above=0)
AT_LEAST_ONE = Range(at_least=1)
SHARE = Range(at_least=0, below=1)
INNER_SHARE = Range(above=0, below=1)


@dataclasses.dataclass(frozen=True)
class Key:
    """One config key.

    default: its value when nobody sets it; None: unset, and the meaning says what happens then.
    meaning: what it is, with its unit.
    resume: REFUSE, WARN or FREE.
    allowed: the range of a number, or the choices of a text or of a tuple's entries; None: any value of its type.
    kind: the type of its values; None: its default's.
    takes: where a function or class of the user's own may stand in place of a name: what it is called with. () where
        none may.
    """

    default: Any
    meaning: str
    resume: str = REFUSE
    allowed: "Range | Sequence[str] | None" = None
    kind: type | None = None
    takes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind is None:
            kind = object if self.takes and not isinstance(self.default, tuple) else type(self.default)
            object.__setattr__(self, "kind", kind)

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError unless `value` is allowed."""
        if value is None:
            return
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value}; it must be a finite number")
        if isinstance(self.allowed, Range):
            if value not in self.allowed:
                raise ConfigError(f"{name}={value}; it must be {self.allowed.text}")
        elif self.allowed is not None:
            several = isinstance(value, tuple | list)
            what = f"{name} entry" if several else name
            for entry in value if several else (value,):
                if self.takes and callable(entry):
                    own_code.check_call(f"{what}={own_code.name_of(entry)}", entry, self.takes)
                elif entry not in self.allowed and not (self.takes and own_code.is_reference(entry)):
                    raise ConfigError(unknown(what, str(entry), self.allowed))


def field(default: Any, meaning: str, allowed: Any = None, resume: str = REFUSE, takes: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is a config key, too. default: dataclasses.MISSING where the field must be given."""
    metadata = {"meaning": meaning, "allowed": allowed, "resume": resume, "takes": takes}
    return dataclasses.field(default=default, metadata=metadata)


def keys_of(dataclass: type) -> dict[str, Key]:
    """The keys of a dataclass made of `field`s, by name; in a config they are unset, for the dataclass's own value."""
    return {
        f.name: Key(None, kind=object if f.metadata["takes"] else f.type, **f.metadata)  # type: ignore[arg-type]
        for f in dataclasses.fields(dataclass)
        if "meaning" in f.metadata
    }
