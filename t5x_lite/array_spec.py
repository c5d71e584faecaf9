"""`ArraySpec`: what one array of a batch holds (batch.py, heads.py)."""

import dataclasses

INT, FLOAT = "int32", "float32"  # names, so that configs need no numpy


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a batch: its dimension letters, dtype, and what its values mean."""

    dims: str
    dtype: str  # INT or FLOAT
    meaning: str
    vocabulary: bool = False  # values are token ids, checked against the vocabulary size
