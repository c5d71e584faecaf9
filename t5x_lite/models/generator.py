"""Describes the generator of a model for replaced-token detection, as a ModelConfig. Does not import jax."""

import dataclasses
import math
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.models.config import ModelConfig

WIDTHS = ("d_model", "d_ff", "num_heads", "num_kv_heads")  # of which the generator has a share; head_dim is the same


def of(config: ModelConfig) -> ModelConfig:
    """Returns the generator of a model: a narrower encoder with the head mlm alone.

    Its table of tokens is as wide as the model's, unless it is separate: only then is it as wide as its hidden states.
    """
    shares: dict[str, Any] = {name: round(config.generator_width * getattr(config, name)) for name in WIDTHS}
    table = 0 if config.generator_embeddings == "separate" else config.table_dim
    shares["embedding_dim"] = 0 if table == shares["d_model"] else table
    shares |= {"num_encoder_layers": config.generator_layers, "heads": ("mlm",), "num_classes": 0}
    return dataclasses.replace(config, **shares, prediction_head=False, generator_layers=0)


def validate(config: ModelConfig) -> None:
    """Raises ConfigError if a model with generator_layers above 0 cannot have a generator, or none of this width."""
    if config.architecture != "encoder_only" or config.body != "transformer":
        raise ConfigError(
            f"model.generator_layers={config.generator_layers} is for encoder_only models with body=transformer; this "
            f"model has architecture={config.architecture}, body={config.body}. Set model.generator_layers=0"
        )
    for name in WIDTHS:
        size, share = getattr(config, name), config.generator_width * getattr(config, name)
        if abs(share - round(share)) > 1e-4 * size or round(share) < min(size, 1):  # 0.3333 is a third
            parts = math.gcd(*(getattr(config, each) for each in WIDTHS))
            raise ConfigError(
                f"model.generator_width={config.generator_width} of model.{name}={size} is {share:g}, not a whole "
                f"number from 1 on; use n/{parts} as a decimal number, with n from 1 to {parts}"
            )
    of(config).validate()
