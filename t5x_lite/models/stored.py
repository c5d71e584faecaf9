"""Reads `model.json`, the configuration of a model. `t5x-lite import` and every run write it to their directory."""

from pathlib import Path
from typing import Any

from t5x_lite import side_files
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import ModelConfig

FILE = "model.json"  # holds the ModelConfig
SETTINGS = "huggingface.json"  # the config.json that a model was imported with
DIRECTORY = "model"  # in a run's workdir; an imported directory has the files in itself


def read(directory: Path) -> ModelConfig:
    """Returns the configuration in a directory's model.json. Raises ConfigError if the file is missing or invalid."""
    path = directory / FILE
    try:
        items = side_files.read_json(path).items()
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in items}
        return ModelConfig(**fields).validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {side_files.why(error)}; `t5x-lite import` writes this file") from None
