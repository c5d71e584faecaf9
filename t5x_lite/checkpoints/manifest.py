"""Writes and checks MANIFEST.json. It has the size and hash of every file of a checkpoint.

So a run never trains on a corrupted byte. (Orbax notices if a file is missing, but it restores most flipped bits
silently.) The hash is xxh3_128, which is faster than a disk. It protects against bad disks, not against attackers.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path

import jax
import orbax.checkpoint
import xxhash

import t5x_lite
from t5x_lite import atomic, side_files
from t5x_lite.errors import CheckpointError

NAME = "MANIFEST.json"
READ_BYTES = 1 << 22
OF_STEPS = ("checkpoints", "saving")  # in these directories, a step's directory is named after the step


def write(directory: Path, step: int | None = None) -> None:
    """Writes the manifest of `directory`. Waits until all files are on disk. step: of the checkpoint that it holds."""
    for path in directory.rglob("*"):
        atomic.sync(path)
    files = {
        file.relative_to(directory).as_posix(): {"bytes": file.stat().st_size, "xxh3_128": _hash(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    versions = {"t5x_lite": t5x_lite.__version__, "jax": jax.__version__, "orbax": orbax.checkpoint.__version__}
    body = ({} if step is None else {"step": step}) | {"files": files, "versions": versions}
    atomic.write(directory / NAME, json.dumps(body | {"xxh3_128": _hash_of(body)}, separators=(",", ":")))


def identity(directory: Path) -> str:
    """Returns a hash of the manifest's content. Copies of a checkpoint in different places have the same hash.

    Raises CheckpointError if the manifest cannot be read.
    """
    try:
        return side_files.read_json(directory / NAME)["xxh3_128"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = side_files.why(error)
        raise CheckpointError(f"{directory / NAME} cannot be read ({reason}); use a different checkpoint") from error


def problem(directory: Path, part: int = 0, parts: int = 1) -> str | None:
    """Compares the files of `directory` with its manifest. Returns the first difference as a line of text, or None.

    Several processes can share the work: each reads only every `parts`-th file, beginning with file number `part`.
    """
    difference = _difference(directory, part, parts)
    return difference and " ".join(difference.split())[:300]  # a hostile manifest may list any names


def _difference(directory: Path, part: int, parts: int) -> str | None:
    try:
        body = side_files.read_json(directory / NAME)
        own_hash = body.pop("xxh3_128")
        if own_hash != _hash_of(body):
            return f"{NAME} does not match its own hash"
        if part == 0 and (reason := _misplaced(directory, body["files"].keys())):
            return reason
        for name in sorted(body["files"])[part::parts]:
            expected = body["files"][name]
            size = (directory / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes; {expected['bytes']:,} were written"
            if _hash(directory / name) != expected["xxh3_128"]:
                return f"{name} does not match its hash"
        step = body["step"] if "step" in body else _step_inside(directory)
        is_named = directory.parent.name in OF_STEPS and directory.name.isdigit()
        if is_named and step is not None and int(directory.name) != step:
            return f"it is the checkpoint of step {step} under another step's name; rename the directory to {step}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(directory)} is missing"
    except OSError as error:
        return f"{error.filename}: {side_files.why(error)}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{NAME} is not a valid manifest"
    return None


def _step_inside(directory: Path) -> int | None:
    """Returns the step in progress/metadata, because manifests of version 0.1 lack it; None for imported weights."""
    file = directory / "progress" / "metadata"
    return int(side_files.read_json(file)["step"]) if side_files.is_there(file) else None


def _misplaced(directory: Path, names: Collection[str]) -> str | None:
    """Returns the first difference between the names in a manifest and the files below `directory`, or None.

    Orbax would wait for a FIFO, and read files that no hash protects. Ignores hidden files, which systems leave behind
    (.DS_Store, .nfs…).
    """
    root = _target(directory)
    for name in sorted(names):
        if not _target(directory / name).is_relative_to(root):
            return f"{NAME} names {name[:80]!r}, which is outside of the checkpoint"
    for parent, directories, files in os.walk(directory):
        for file in (Path(parent) / name for name in files if not name.startswith(".")):
            if file.relative_to(directory).as_posix() not in {*names, NAME}:
                return f"{file.relative_to(directory)} is not in {NAME}"
        for link in (Path(parent) / name for name in directories):
            if not _target(link).is_relative_to(root):
                return f"{link.relative_to(directory)} is a link to outside of the checkpoint"
    return None


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for a loop of links


def _hash(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with side_files.opened(file) as data:
        while block := data.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _hash_of(body: dict) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
