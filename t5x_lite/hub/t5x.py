"""Reads T5X checkpoints. A checkpoint is one msgpack file or a directory of zarr arrays.

Translates T5X's parameter names to ours, and infers the ModelConfig from the shapes of the parameters.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.hub import parameters, weights
from t5x_lite.hub.import_report import ImportReport, Row
from t5x_lite.models import paths, presets
from t5x_lite.models.config import ModelConfig

NAMES = {  # component of their path -> component of our path
    "token_embedder": "token_embedding",
    "relpos_bias": "relative_bias",
    "rel_embedding": "embedding",
    "encoder_norm": "final_norm",
    "decoder_norm": "final_norm",
    "attention": "self_attention",
    "encoder_decoder_attention": "cross_attention",
    "pre_attention_layer_norm": "self_attention_norm",
    "pre_self_attention_layer_norm": "self_attention_norm",
    "pre_cross_attention_layer_norm": "cross_attention_norm",
    "pre_mlp_layer_norm": "mlp_norm",
}


def load(path: Path) -> tuple[ModelConfig, dict[str, Any], ImportReport]:
    """Returns (model, parameters, report) of a T5X checkpoint.

    T5X checkpoints do not name the activation. If a model has gated MLPs, it is read as T5 1.1, with gelu (tanh
    approximation). Otherwise it is read as T5 1.0, with relu.

    Raises CheckpointError if the path is not a T5X checkpoint, or if the checkpoint does not hold a T5 model.
    """
    try:
        flat = _of_directory(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # bad bytes make msgpack and tensorstore raise any class
        raise CheckpointError(
            f"{path} is not a T5X checkpoint ({type(error).__name__}: {str(error)[:100]}); pass its msgpack file, its "
            "directory of target.… arrays, or a directory in Hugging Face format"
        ) from error
    ours = {rename(name): name for name in flat}
    try:
        config = model_of({new: flat[old].shape for new, old in ours.items()})
    except (KeyError, IndexError, ConfigError) as error:
        raise CheckpointError(f"{path} does not hold a T5: {error}") from None
    shapes, layout = parameters.abstract(config), parameters.layout_for(config)
    if wrong := sorted(ours.keys() ^ shapes.keys()):
        raise CheckpointError(f"{path} is not a T5 that we support: {len(wrong)} parameters differ, first {wrong[0]}")
    params: dict[str, jax.Array] = {}
    for name, (shape, axes) in shapes.items():
        array = flat[ours[name]]
        if array.size != math.prod(shape):
            raise CheckpointError(f"{path}: {ours[name]} has the shape {list(array.shape)}; expected {list(shape)}")
        value = weights.finite(np.asarray(array, np.float32), ours[name], path).reshape(shape)
        params[name] = jax.device_put(value, layout.sharding(axes))
    rows = (Row(ours[name], flat[ours[name]].shape, "loaded", name) for name in shapes)
    return config, paths.unflatten(params), ImportReport(tuple(rows))


def is_directory(path: Path) -> bool:
    """Returns whether `path` is a T5X directory, in which every parameter is a zarr directory."""
    return any(path.glob("target.*/.zarray"))


def _of_file(path: Path) -> dict[str, np.ndarray]:
    from flax import serialization

    stored = serialization.msgpack_restore(path.read_bytes())
    target: Any = stored["optimizer"]["target"] if "optimizer" in stored else stored["target"]
    flat = paths.flatten(target)
    if not all(isinstance(x, np.ndarray) for x in flat.values()):
        raise ValueError("not all of its parameters are arrays")
    return flat


def _of_directory(path: Path) -> dict[str, np.ndarray]:
    """Returns {parameter path: float32 array} of the arrays in a directory. Does not follow paths to other places."""
    import tensorstore

    def read(directory: Path) -> np.ndarray:
        store = {"driver": "file", "path": str(directory.absolute())}
        return tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result().read().result()

    arrays = sorted(metadata.parent for metadata in path.glob("target.*/.zarray"))
    return {d.name.removeprefix("target.").replace(".", "/"): read(d).astype(np.float32) for d in arrays}


def rename(path: str) -> str:
    """Returns our path for the parameter that T5X calls `path`."""
    renamed = "/".join(NAMES.get(part, part) for part in path.split("/"))
    return renamed.replace("decoder/logits_dense", "logits/dense")


def model_of(shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """Returns the ModelConfig of the T5 whose parameters have these shapes.

    shapes: {our path: shape in the T5X checkpoint}. T5X has one axis where we have two, heads and head dimension.

    Raises KeyError, IndexError or ConfigError if the shapes are not a T5's.
    """
    vocab_size, d_model = shapes["token_embedding/embedding"]
    num_heads, buckets = shapes["encoder/relative_bias/embedding"]
    mlp = "encoder/layers_0/mlp"
    gated = f"{mlp}/wi_0/kernel" in shapes
    layers = {
        side: len({p.split("/")[1] for p in shapes if p.startswith(f"{side}/layers_")})
        for side in ("encoder", "decoder")
    }
    tied = "logits/dense/kernel" not in shapes
    return dataclasses.replace(
        presets.PRESETS["t5_1_1_small" if gated else "t5_small"],
        vocab_size=vocab_size,
        d_model=d_model,
        d_ff=shapes[f"{mlp}/wo/kernel"][0],
        num_heads=num_heads,
        head_dim=shapes["encoder/layers_0/self_attention/query/kernel"][-1] // num_heads,
        num_encoder_layers=layers["encoder"],
        num_decoder_layers=layers["decoder"],
        relative_buckets=buckets,
        tie_embeddings=tied,
        logits_scale="rsqrt_d_model" if tied else "none",
    ).validate()
