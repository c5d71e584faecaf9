"""Reads and writes tensors in safetensors files, single or sharded. Never unpickles a file."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite import side_files
from t5x_lite.errors import CheckpointError, first_line
from t5x_lite.hub.mapping import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
HOW_TO_CONVERT = (
    "if you trust it, convert it: `python -c \"from transformers import AutoModel as M; M.from_pretrained('DIR')"
    ".save_pretrained('OUT')\"` with the model's own class writes safetensors"
)
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of safetensors whose values are the parameters
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
METADATA = {"format": "pt"}  # older versions of transformers refuse a file without this metadata
SHARD_BYTES = 5_000_000_000


class Weights:
    """Opens the tensors in a directory or in one .safetensors file.

    Reads the names and shapes of all tensors immediately. The method `read` reads the values of one tensor.

    Raises CheckpointError if a file is missing, corrupted or a pickle.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file_of: dict[str, Any] = {}
        for file, names in _files(path).items():
            opened = _open(file)
            inside = set(opened.keys())
            for name in inside if names is None else names:
                if not NAME.fullmatch(name):
                    raise CheckpointError(
                        f"{file} holds a tensor named {name[:80]!r}; allowed: up to 256 letters, digits, . _ -"
                    )
                if name not in inside:
                    raise CheckpointError(
                        f"{path / INDEX} lists {name!r} in {file.name}, which does not hold it; download it again"
                    )
                self._file_of[name] = opened
        self.shapes = {name: tuple(f.get_slice(name).get_shape()) for name, f in self._file_of.items()}
        self._dtypes = {name: f.get_slice(name).get_dtype() for name, f in self._file_of.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor as float32.

        Raises CheckpointError if it cannot be read, is quantized, or has a value that is not finite.
        """
        if self._dtypes[name] not in FLOATS:
            raise CheckpointError(
                f"{self.path}: {name!r} is quantized ({self._dtypes[name]}); allowed: {', '.join(FLOATS)}. Dequantize "
                "the model with transformers and save it again"
            )
        try:
            tensor = np.asarray(self._file_of[name].get_tensor(name)).astype(np.float32)
        except Exception as error:  # safetensors and numpy raise different classes
            raise CheckpointError(f"{self.path}: cannot read {name!r}: {first_line(error)}") from error
        return finite(tensor, name, self.path)


def finite(tensor: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Returns `tensor`. Raises CheckpointError if it has a NaN or infinite value, which makes every output NaN."""
    if (wrong := tensor.size - np.count_nonzero(np.isfinite(tensor))) > 0:
        raise CheckpointError(
            f"{path}: {wrong:,} of the {tensor.size:,} values of {name} are not finite as float32 (NaN or infinite); "
            "the file is corrupted or its training diverged. Download it again, or use a different checkpoint"
        )
    return tensor


def write(directory: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes float32 tensors to files of at most SHARD_BYTES each.

    If several files are needed, they are named as in transformers, and an index says which file holds which tensor.

    shapes: {name: shape} of all tensors.
    tensors: (name, values) of all tensors, in the order of `shapes`.
    """
    from safetensors.numpy import save_file

    shards: list[list[str]] = [[]]
    used = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        if used and used + size > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    files = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    source = iter(tensors)
    for file, names in zip(files, shards, strict=True):
        held = {}
        for name in names:
            got, array = next(source)
            assert got == name, (got, name)
            held[name] = np.ascontiguousarray(array, np.float32)
        save_file(held, directory / file, metadata=METADATA)
    if len(files) > 1:
        total = sum(4 * int(np.prod(shape)) for shape in shapes.values())
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(path: Path) -> dict[Path, list[str] | None]:
    """Returns {file: names of the tensors to read from it}; None instead of the names means all tensors.

    Raises CheckpointError if there is no safetensors file, if the index is not valid, or if `path` is a pickle.
    """
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path} is refused because reading it may run code; {HOW_TO_CONVERT}")
    if not path.is_dir() and side_files.is_there(path):
        return {path: None}
    if side_files.is_there(path / SINGLE):  # preferred, as in transformers: an index may be from an older save
        if side_files.is_there(path / INDEX):
            logging.getLogger(__name__).warning("%s: %s is read; %s is not used", path, SINGLE, INDEX)
        return {path / SINGLE: None}
    if side_files.is_there(path / INDEX):
        file_of = read_json(path / INDEX).get("weight_map")
        if not isinstance(file_of, dict) or not file_of or not all(isinstance(f, str) for f in file_of.values()):
            raise CheckpointError(f"{path / INDEX} has no weight_map of tensors to files; download it again")
        names: dict[Path, list[str] | None] = {}
        for name, file in file_of.items():
            if not NAME.fullmatch(file) or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"{path / INDEX}: {file[:80]!r} is not a safetensors file beside it; download it again"
                )
            names.setdefault(path / file, []).append(name)  # type: ignore[union-attr]
        return names
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES) if path.is_dir() else []
    if pickles:
        raise CheckpointError(
            f"{path} has no {SINGLE}, only {pickles[0]}, which may run code when it is read; {HOW_TO_CONVERT}"
        )
    raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}; pass a directory in Hugging Face format")


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with side_files.opened(file) as raw:
            start = raw.read(9)
        # A safetensors file begins with 8 bytes for the length of its header; the ninth byte is "{". If the length
        # is 1,152, the first bytes look like those of a pickle. But the ninth byte of a pickle is not "{".
        if start.startswith((b"PK", b"\x80")) and not start.endswith(b"{"):
            raise CheckpointError(f"{file} is a pickle under a different name and is refused; {HOW_TO_CONVERT}")
        return safe_open(file, framework="numpy")
    except (OSError, MemoryError, SafetensorError) as error:  # MemoryError: the file cannot be mapped
        size = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
        raise CheckpointError(f"cannot read {file} ({size}): {side_files.why(error)}; download it again") from error
