"""Reports what an import did with every tensor."""

import collections
import dataclasses
import json

STATUSES = ("loaded", "transposed", "resized", "padded", "tied", "skipped", "fresh")


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes one tensor. status: one of STATUSES; ours: our parameter's path or ""; reason: of the status, or ""."""

    tensor: str
    shape: tuple[int, ...]
    status: str
    ours: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """Lists a Row for every tensor, and for every parameter that has none."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """Returns one line: how many tensors have each status, and the first 6 names that have a reason."""
        count = collections.Counter(row.status for row in self.rows)
        parts = [f"{count[status]} {status}" for status in STATUSES if count[status]]
        noted = [f"{row.tensor or row.ours}: {row.status}, {row.reason}" for row in self.rows if row.reason]
        more = f"; {len(noted) - 6} more" if len(noted) > 6 else ""
        return ", ".join(parts) + "".join(f"; {note}" for note in noted[:6]) + more

    def to_json(self) -> str:
        return json.dumps([dataclasses.asdict(row) for row in self.rows], indent=1) + "\n"

    def lines(self) -> list[str]:
        """Returns one line per tensor, in columns."""
        wide = max((len(row.tensor) for row in self.rows), default=0)
        return [
            f"{row.status:<10} {row.tensor or '-':<{wide}} {'×'.join(map(str, row.shape)):>12}  {row.ours}"
            + (f"  ({row.reason})" if row.reason else "")
            for row in self.rows
        ]
