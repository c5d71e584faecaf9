"""What became of every tensor of an import."""

import collections
import dataclasses
import json

STATUSES = ("loaded", "transposed", "resized", "padded", "tied", "skipped", "fresh")


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor. status: one of STATUSES; ours: the parameter's path, "" for none; reason: where status needs one."""

    tensor: str
    shape: tuple[int, ...]
    status: str
    ours: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """One line: the number of each status, and names where they are worth a look."""
        count = collections.Counter(row.status for row in self.rows)
        parts = [f"{count[status]} {status}" for status in STATUSES if count[status]]
        noted = [f"{row.tensor or row.ours}: {row.status}, {row.reason}" for row in self.rows if row.reason]
        more = f"; {len(noted) - 6} more" if len(noted) > 6 else ""
        return ", ".join(parts) + "".join(f"; {note}" for note in noted[:6]) + more

    def to_json(self) -> str:
        return json.dumps([dataclasses.asdict(row) for row in self.rows], indent=1) + "\n"

    def lines(self) -> list[str]:
        """One line per tensor, in columns."""
        wide = max((len(row.tensor) for row in self.rows), default=0)
        return [
            f"{row.status:<10} {row.tensor or '-':<{wide}} {'×'.join(map(str, row.shape)):>12}  {row.ours}"
            + (f"  ({row.reason})" if row.reason else "")
            for row in self.rows
        ]
