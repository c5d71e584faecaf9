"""T5X's checkpoints, of one msgpack file or a directory of zarr arrays: their parameter names as ours, and the model
that the shapes describe."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.hub import parameters
from t5x_lite.hub.import_report import ImportReport, Row
from t5x_lite.models import paths, presets
from t5x_lite.models.config import ModelConfig

NAMES = {  # a part of a path of theirs -> ours
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
    """The model, its parameters and what became of every tensor. CheckpointError where the file is no such checkpoint.

    A checkpoint of a T5 names no activation: gated MLPs are taken for T5 1.1's, with the tanh gelu, others for 1.0's.
    """
    try:
        flat = _of_directory(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # msgpack and tensorstore raise whatever the bytes lead them into
        raise CheckpointError(
            f"{path} is no T5X checkpoint ({type(error).__name__}: {str(error)[:100]}); give its msgpack file, its "
            "directory with target.… in it, or a directory in Hugging Face format"
        ) from error
    ours = {rename(name): name for name in flat}
    try:
        config = model_of({new: flat[old].shape for new, old in ours.items()})
    except (KeyError, IndexError, ConfigError) as error:
        raise CheckpointError(f"{path} does not hold a T5: {error}") from None
    shapes, layout = parameters.abstract(config), parameters.layout_for(config)
    if wrong := sorted(ours.keys() ^ shapes.keys()):
        raise CheckpointError(f"{path} is no T5 of ours: {len(wrong)} parameters differ, the first is {wrong[0]}")
    params: dict[str, jax.Array] = {}
    for name, (shape, axes) in shapes.items():
        array = flat[ours[name]]
        if array.size != math.prod(shape):
            raise CheckpointError(f"{path}: {ours[name]} has the shape {list(array.shape)}; expected {list(shape)}")
        value = np.asarray(array, np.float32).reshape(shape)
        params[name] = jax.device_put(value, layout.sharding(axes))
    rows = (Row(ours[name], flat[ours[name]].shape, "loaded", name) for name in shapes)
    return config, paths.unflatten(params), ImportReport(tuple(rows))


def is_directory(path: Path) -> bool:
    """Whether it is one of T5X's directories, in which every parameter is a directory of zarr's."""
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
    """Only what lies in the directory is read, wherever its own index says that the arrays are."""
    import tensorstore

    def read(directory: Path) -> np.ndarray:
        store = {"driver": "file", "path": str(directory.absolute())}
        return tensorstore.open({"driver": "zarr", "kvstore": store}, open=True).result().read().result()

    found = sorted(found.parent for found in path.glob("target.*/.zarray"))
    return {d.name.removeprefix("target.").replace(".", "/"): read(d).astype(np.float32) for d in found}


def rename(path: str) -> str:
    """Our path of a T5X parameter."""
    renamed = "/".join(NAMES.get(part, part) for part in path.split("/"))
    return renamed.replace("decoder/logits_dense", "logits/dense")


def model_of(shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The T5 whose parameters have these shapes, heads and their dimension in one, by our paths."""
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
