"""Reads `branch.json`, which says from which checkpoint of which run a run was branched (branch.py)."""

from pathlib import Path
from typing import Any

from t5x_lite import side_files
from t5x_lite.errors import CheckpointError

FILE = "branch.json"


def of(workdir: Path) -> list[dict[str, Any]]:
    """Returns where a run comes from, the nearest run first: [{"run": DIR, "step": N, "changed": {…}}, …].

    Returns [] if the run is no branch. Raises CheckpointError if its branch.json cannot be read.
    """
    if not side_files.is_there(workdir / FILE):
        return []
    try:
        entries = side_files.read_json(workdir / FILE)
        return [{"run": str(e["run"]), "step": int(e["step"]), "changed": dict(e["changed"])} for e in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {workdir / FILE}: {side_files.why(error)}; remove it") from error
