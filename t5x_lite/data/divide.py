"""Divides the records of files into the splits train, validation and test, as `data.split` says: by sizes
("validation=1000,test=5%"), or by a field of the records that names the split ("fold")."""

import functools
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from t5x_lite.errors import ConfigError, DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


class Size(NamedTuple):
    """The size of a split: a number of records, or a percentage of all records."""

    number: Fraction
    is_percent: bool

    def of(self, total: int) -> int:
        """Returns the number of records, given the number of all records. Rounds up, so that it is at least 1."""
        return math.ceil(self.number * total / 100) if self.is_percent else int(self.number)


def split_of(name: str) -> str | None:
    """Returns the split that a name stands for; None if it is not a split's name.

    >>> split_of("dev"), split_of("holdout")
    ('validation', None)
    """
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


@functools.cache
def sizes_of(division: str) -> Mapping[str, Size]:
    """Returns {split: its size} of a `data.split`; {} if it is "" or names a field. The rest of the records is train.

    Raises ConfigError if a size is not a number or a percentage above 0, or if it is not that of another split.

    >>> sizes_of("dev=10%")["validation"].of(95), sizes_of("fold")
    (10, {})
    """
    where = f"data.split={division!r}"
    if re.fullmatch(r"[\d_.]+%?", division):
        raise ConfigError(f"{where}: which split has this size? Write validation={division}")
    sizes: dict[str, Size] = {}
    for part in division.split(",") if "=" in division else ():
        name, _, size = map(str.strip, part.partition("="))
        split, number = split_of(name), re.fullmatch(r"(\d[\d_]*)|(\d+(?:\.\d+)?)%", size)
        if split == "train":
            raise ConfigError(f"{where}: train gets the records of no other split; leave it out")
        if split is None or split in sizes or number is None or not Fraction(number[1] or number[2]):
            raise ConfigError(
                f"{where}: {part.strip()!r} does not size a split; write validation=1000,test=5%, each split once, or "
                "the name of a field that names each record's split"
            )
        sizes[split] = Size(Fraction(number[1] or number[2]), number[2] is not None)
    return sizes


def divided(checks: np.ndarray, division: str) -> np.ndarray:
    """Returns the split of each record, as an index into ("train", *sizes_of(division)), uint8 [N].

    checks: a hash of each record's contents, uint32 [N].

    The split depends only on the set of records, not on their order or files. Equal records have the same split:
    otherwise a model could be evaluated on examples that it has trained on. A split takes the groups of equal records
    in the order of their hashes, but leaves out a group that it has no room for.

    Raises DataError if the sizes leave no record to train, or if groups of equal records cannot give them.
    """
    sizes = sizes_of(division)
    groups, group_of, members = np.unique(checks, return_inverse=True, return_counts=True)
    if sum(size.of(len(checks)) for size in sizes.values()) >= len(checks):
        raise DataError(f"data.split={division!r} leaves none of the {len(checks):,} records to train; lower the sizes")
    codes = np.zeros(len(groups), np.uint8)
    for code, (split, size) in enumerate(sizes.items(), 1):
        missing, rest = size.of(len(checks)), np.flatnonzero(codes == 0)
        while missing and len(rest):
            totals = np.cumsum(members[rest])
            count = int(np.searchsorted(totals, missing, side="right"))
            codes[rest[:count]] = code
            missing -= int(totals[count - 1]) if count else 0
            rest = rest[count + 1 :]
        if missing:
            raise DataError(
                f"data.split={division!r}: {split} would be {missing:,} records short, because equal records must not "
                "be divided between splits; remove repeated records, or change the size"
            )
    return codes[group_of]
