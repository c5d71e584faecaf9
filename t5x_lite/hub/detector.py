"""Splits a model that was trained to detect replaced tokens into two ordinary encoders."""

import dataclasses
from typing import Any

from t5x_lite.hub.model import Model
from t5x_lite.models import generator
from t5x_lite.models.config import ModelConfig

TABLE = "token_embedding"
TABLES = (TABLE, "type_embedding")


@dataclasses.dataclass(frozen=True, eq=False)
class Detector(Model):
    """A discriminator: the model with all heads but mlm. Its generator, a model with the head mlm, is beside it."""

    generator: Model | None = None


def split(model: Model) -> Detector:
    """Returns the discriminator of a model with a generator; both get the tables that they share."""
    params, kind = dict(model.params), model.config.generator_embeddings
    of_generator = dict(params.pop("generator"))
    if kind == "shared":
        of_generator |= {name: params[name] for name in TABLES if name in params}
    if kind == "disentangled":
        params[TABLE] = {"embedding": params[TABLE]["embedding"] + of_generator[TABLE]["embedding"]}
    heads = tuple(head for head in model.config.heads if head != "mlm")
    narrow = Model(_alone(generator.of(model.config)), of_generator, model.vocabulary, (), None, model.features)
    fields: dict[str, Any] = {f.name: getattr(model, f.name) for f in dataclasses.fields(Model)}
    config = _alone(dataclasses.replace(model.config, heads=heads))
    return Detector(**fields | {"config": config, "params": params}, generator=narrow)


def _alone(config: ModelConfig) -> ModelConfig:
    """Returns the config without the fields of a generator."""
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig) if f.name.startswith("generator_")}
    return dataclasses.replace(config, **defaults)  # type: ignore[arg-type]
