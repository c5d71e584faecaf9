"""Reads `model.json`, the configuration of a model. `t5x-lite import` and every run write it to their directory."""

import dataclasses
from pathlib import Path
from typing import Any

from t5x_lite import side_files
from t5x_lite.errors import ConfigError
from t5x_lite.models.config import ModelConfig, upgraded

FILE = "model.json"  # holds the ModelConfig
SETTINGS = "huggingface.json"  # the config.json that a model was imported with
DIRECTORY = "model"  # in a run's workdir; an imported directory has the files in itself


def read(directory: Path) -> ModelConfig:
    """Returns the configuration in a directory's model.json. Raises ConfigError if the file is missing or invalid."""
    path = directory / FILE
    try:
        items = side_files.read_json(path).items()
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in items}
        config = ModelConfig(**upgraded(fields))
        for field in dataclasses.fields(config):
            _check_type(field, getattr(config, field.name))
        return config.validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {side_files.why(error)}; `t5x-lite import` writes this file") from None


def _check_type(field: dataclasses.Field, value: Any) -> None:
    """Raises TypeError if `value` is not of the field's type. A float may be written as an integer."""
    fits = {float: (float, int), Any: (type(None),)}.get(field.type, (field.type,))  # type: ignore[arg-type]
    if type(value) not in fits or (field.type is tuple and not all(isinstance(entry, str) for entry in value)):
        wanted = {tuple: "a list of texts", Any: "null"}.get(field.type) or fits[0].__name__  # type: ignore[arg-type]
        raise TypeError(f"{field.name}={value!r:.80} must be {wanted}")
