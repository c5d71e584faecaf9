"""The models: one configuration, three architectures, from shared parts."""

import flax.linen as nn

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.decoder_only import DecoderOnly
from t5x_lite.models.encoder_only import EncoderOnly
from t5x_lite.models.layers import Constrain, unconstrained
from t5x_lite.models.text_to_text import TextToText

ARCHITECTURES = {"text_to_text": TextToText, "encoder_only": EncoderOnly, "decoder_only": DecoderOnly}


def build(config: ModelConfig, constrain: Constrain = unconstrained) -> nn.Module:
    """The module for `config`: `init(key, batch)["params"]`, `apply({"params": p}, batch, train, rngs)`.

    Parameters come boxed as `nn.Partitioned` with their logical axis names. `constrain(array, axes)` is
    called on activations with theirs, and returns the array, laid out as the mesh wants it.
    The output is a dict of float32 arrays, one per head: "lm", "mlm", "nsp", "classification", "regression".
    """
    return ARCHITECTURES[config.validate().architecture](config, constrain)
