"""Defines `Key`: the default, meaning and allowed values of one config key, and whether a resumed run may change it.

config.py lists the keys of a run, one line per key. models/config.py and cluster/axes.py list the keys that are fields
of their dataclasses. Configs are validated with these lists, and a resumed run is checked with them.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from t5x_lite import own_code
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import unknown
from t5x_lite.redaction import has_secret, redact

# What happens if a run resumes with a different value.
REFUSE = "refuse"  # the run does not resume, because the steps already made depend on the value
WARN = "warn"  # the run resumes with a warning, because its next steps differ from those of an uninterrupted run
FREE = "free"  # the run resumes, because no step depends on the value


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of numbers that a key allows.

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


@dataclasses.dataclass(frozen=True)
class Length:
    """Allows a number of steps, a share of the run ("5%"), or a number of epochs ("2 epochs").

    >>> ["5%" in LENGTH, "0.5 epochs" in LENGTH, 100 in LENGTH, 0.1 in LENGTH, "5" in LENGTH]
    [True, True, True, False, False]
    """

    text: str = "a number of steps (100), a share of the run ('5%') or epochs ('2 epochs')"

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, str):
            return re.fullmatch(r"(\d+\.?\d*|\.\d+)(%| epochs?)", value) is not None
        return type(value) is int and value >= 0


LENGTH = Length()
NOT_NEGATIVE = Range(at_least=0)
POSITIVE = Range(above=0)
AT_LEAST_ONE = Range(at_least=1)
SHARE = Range(at_least=0, below=1)
INNER_SHARE = Range(above=0, below=1)
FRACTION = Range(at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class Key:
    """Describes one config key.

    default: the value if the user sets none. None: the key stays unset, and `meaning` says what that does.
    meaning: what the value is, with its unit.
    resume: what happens if a run resumes with a different value: REFUSE, WARN or FREE.
    allowed: a Range of numbers, LENGTH, or the allowed texts (of a tuple: for each of its entries); None: any value.
    kind: the type of the key's values; None: the type of the default.
    takes: if the value may be a user's own function or class, the names of the arguments it is called with; else ().
    """

    default: Any
    meaning: str
    resume: str = REFUSE
    allowed: "Range | Length | Sequence[str] | None" = None
    kind: type | None = None
    takes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind is None:
            is_open = self.allowed is LENGTH or (self.takes and not isinstance(self.default, tuple))
            kind = object if is_open else type(self.default)
            object.__setattr__(self, "kind", kind)

    def check(self, name: str, value: Any) -> None:
        """Raises ConfigError if `value` is not allowed. name: the key's name, for the error message.

        No value may hold a secret, because config.json, reports and loggers show the values of all keys.
        """
        if value is None:
            return
        if has_secret(str(value)):
            raise ConfigError(
                f"{name} holds a password or token, which the run's files would show: {redact(str(value))!r:.200}; "
                "remove it, and give it as an environment variable (HF_TOKEN, WANDB_API_KEY, …) or in ~/.netrc"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value}: must be a finite number")
        if isinstance(self.allowed, Range | Length):
            if value not in self.allowed:
                raise ConfigError(f"{name}={value}: must be {self.allowed.text}")
        elif self.allowed is not None:
            several = isinstance(value, tuple | list)
            what = f"{name} entry" if several else name
            for entry in value if several else (value,):
                if self.takes and callable(entry):
                    own_code.check_call(f"{what}={own_code.name_of(entry)}", entry, self.takes)
                elif entry not in self.allowed and not (self.takes and own_code.is_reference(entry)):
                    raise ConfigError(unknown(what, str(entry), self.allowed))


def field(default: Any, meaning: str, allowed: Any = None, resume: str = REFUSE, takes: tuple[str, ...] = ()) -> Any:
    """Returns a dataclass field that is also a config key. default: dataclasses.MISSING if the field is required."""
    metadata = {"meaning": meaning, "allowed": allowed, "resume": resume, "takes": takes}
    return dataclasses.field(default=default, metadata=metadata)


def keys_of(dataclass: type) -> dict[str, Key]:
    """Returns {name: Key} for those fields of a dataclass that `field` made.

    Each Key's default is None, which means that the dataclass's default applies.
    """
    return {
        f.name: Key(None, kind=object if f.metadata["takes"] else f.type, **f.metadata)  # type: ignore[arg-type]
        for f in dataclasses.fields(dataclass)
        if "meaning" in f.metadata
    }
