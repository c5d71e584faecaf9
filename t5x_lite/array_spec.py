"""`ArraySpec` describes one array of a batch (batch.py, heads.py)."""

import dataclasses

INT, FLOAT = "int32", "float32"  # names, so that configs need no numpy


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Describes one array of a batch: its dimension letters, its dtype, and the meaning of its values."""

    dims: str
    dtype: str  # INT or FLOAT
    meaning: str
    vocabulary: bool = False  # the values are token ids; batch.check compares them with the vocabulary size
