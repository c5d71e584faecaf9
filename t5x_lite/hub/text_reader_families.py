"""Defines T5, mT5, umT5 and BART as models that read texts, but write none: encoders, and classifiers.

Their files have the model_type of the models that write; `architectures` of config.json tells them apart.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from t5x_lite.hub.family import ONLY_FALSE, Family, Key, setting
from t5x_lite.hub.text_to_text_families import BART, MT5, T5, UMT5

log = logging.getLogger(__name__)
_HEAD = {  # of BART and T5: a dense layer, tanh, and a layer for the classes
    "pooler": "classification_head.dense",
    **dict.fromkeys(("classification", "multi_label", "regression"), "classification_head.out_proj"),
}
_OF_LOGITS = ("logits/dense", "logits/bias")


def _encoder(family: Family, name: str) -> Family:
    """Returns the encoder of a family of T5's. name: the first part of its class in transformers."""
    base = dataclasses.replace(family.base, architecture="encoder_only", num_decoder_layers=0, pooling="mean")
    of_decoders = ("num_decoder_layers", "decoder_start_id")
    return dataclasses.replace(
        family,
        base=base,
        settings={field: key for field, key in family.settings.items() if field not in of_decoders},
        choices={**family.choices, "is_encoder_decoder": {False: {}, True: {}}, "is_decoder": ONLY_FALSE},
        read=lambda settings: family.read(settings) | {"num_decoder_layers": 0},
        classes={f"{name}EncoderModel": ()},
        modules={k: row for k, row in family.modules.items() if not k.startswith(("decoder/", *_OF_LOGITS))},
        tied={"encoder.embed_tokens.weight": "shared.weight"},
        ignored={},
        constants={**family.constants, "is_encoder_decoder": False},
    )


def _classifier(family: Family, name: str, prefix: str = "") -> Family:
    """Returns the family of sequence classifiers. Their heads read the decoder's state at the last token.

    name: the first part of the class in transformers.  prefix: what its tensors have before the names of `family`.
    """

    def prefixed(row: str | Key) -> str | Key:
        return prefix + row if isinstance(row, str) else dataclasses.replace(row, name=prefix + row.name)

    def read(settings: Mapping[str, Any]) -> dict[str, Any]:
        published = family.constants["eos_token_id"]
        if (eos := setting(settings, "eos_token_id", published)) != published:
            log.warning("eos_token_id=%d: the head reads each text's last token; texts must end with this id", eos)
        return family.read(settings)

    new = {"architecture": "encoder_only", "body": "encoder_decoder", "pooling": "last", "logits_bias": False}
    modules = {key: prefixed(row) for key, row in family.modules.items() if key not in _OF_LOGITS}
    return dataclasses.replace(
        family,
        base=dataclasses.replace(family.base, **new, classifier_dropout_rate=0.0),
        settings=dict(family.settings) | {"classifier_dropout_rate": "classifier_dropout"},
        read=read,
        classes={f"{name}ForSequenceClassification": ("classification",)},
        heads={"classification": f"{_HEAD['classification']}.weight"},
        modules=modules | _HEAD,
        prefix=family.prefix or prefix,
        tied={prefix + copy: prefix + source for copy, source in family.tied.items()},
        ignored={prefix.replace(".", r"\.") + pattern: reason for pattern, reason in family.ignored.items()},
    )


VARIANTS = {
    "t5": (_encoder(T5, "T5"), _classifier(T5, "T5", "transformer.")),
    "mt5": (_encoder(MT5, "MT5"), _classifier(MT5, "MT5", "transformer.")),
    "umt5": (_encoder(UMT5, "UMT5"), _classifier(UMT5, "UMT5", "transformer.")),
    "bart": (_classifier(BART, "Bart"),),
}
