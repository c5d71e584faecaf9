"""Defines `ImportReport`, which says what an import did with every tensor."""

import collections
import dataclasses
import json

STATUSES = ("loaded", "transposed", "resized", "padded", "tied", "skipped", "fresh")


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes one tensor, or one of our parameters for which there is no tensor.

    tensor: the name of the tensor; "" if there is none.
    shape: the shape of the tensor, or of the parameter if there is no tensor.
    status: one of STATUSES.
    ours: the path of our parameter that uses the tensor; "" if there is none. Commas separate several paths.
    reason: why the tensor or parameter has this status; "" if nothing needs an explanation.
    """

    tensor: str
    shape: tuple[int, ...]
    status: str
    ours: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """Holds one Row for each tensor in the files, and one for each of our parameters that the files do not have."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """Returns one line. It counts the rows of each status and then lists the first 6 rows that have a reason."""
        count = collections.Counter(row.status for row in self.rows)
        parts = [f"{count[status]} {status}" for status in STATUSES if count[status]]
        noted = [f"{row.tensor or row.ours}: {row.status}, {row.reason}" for row in self.rows if row.reason]
        more = f"; {len(noted) - 6} more" if len(noted) > 6 else ""
        return ", ".join(parts) + "".join(f"; {note}" for note in noted[:6]) + more

    def to_json(self) -> str:
        return json.dumps([dataclasses.asdict(row) for row in self.rows], indent=1) + "\n"

    def lines(self) -> list[str]:
        """Returns one line per row, in columns: status, tensor, shape, our parameter and reason."""
        wide = max((len(row.tensor) for row in self.rows), default=0)
        return [
            f"{row.status:<10} {row.tensor or '-':<{wide}} {'×'.join(map(str, row.shape)):>12}  {row.ours}"
            + (f"  ({row.reason})" if row.reason else "")
            for row in self.rows
        ]
