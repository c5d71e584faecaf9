"""Pipelines that generate text. hub/generation.py lists the generation options."""

from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.hub import generation
from t5x_lite.hub.model import Model


def text_generation(
    model: Model,
    inputs: list,
    *,
    return_full_text: bool = True,
    do_sample: bool = True,
    temperature: float = 0.7,
    top_k: int = 50,
    **options: Any,
) -> list[list[dict]]:
    """Returns a list of {"generated_text"} for each input. A generated text is the input followed by a continuation.

    return_full_text: if false, a generated text is only the continuation.
    do_sample: if true, samples; if false, decodes greedily or by beam search.
    temperature, top_k: options for sampling; without sampling, they have no effect.
    options: further generation options (hub/generation.py).

    Raises ConfigError if the model is not decoder_only.
    """
    _require(model, "text-generation", "decoder_only")
    written = generation.write(model, inputs, do_sample=do_sample, temperature=temperature, top_k=top_k, **options)
    before = inputs if return_full_text else [""] * len(inputs)
    return [[{"generated_text": text + new} for new in texts] for text, texts in zip(before, written, strict=True)]


def text2text_generation(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """Returns a list of {"generated_text"} for each input. The default is beam search with 4 beams.

    prefix: text to put before each input.

    Raises ConfigError if the model is not text_to_text.
    """
    return _text_to_text("generated_text", model, inputs, prefix=prefix, **options)


def summarization(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """Returns a list of {"summary_text"} for each input. The default is beam search with 4 beams.

    prefix: text to put before each input. In a pipeline, the default is the prefix in the model's config.json, such as
        "summarize: " for T5.

    Raises ConfigError if the model is not text_to_text.
    """
    return _text_to_text("summary_text", model, inputs, prefix=prefix, **options)


def translation(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """Returns a list with one {"translation_text"} per input. The default is beam search with 4 beams.

    prefix: text to put before each input. In a pipeline such as translation_en_to_de, the default is the prefix in the
        model's config.json, such as "translate English to German: " for T5.

    Raises ConfigError if the model is not text_to_text.
    """
    return _text_to_text("translation_text", model, inputs, prefix=prefix, **options)


def _text_to_text(key: str, model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    _require(model, "text2text generation", "text_to_text")
    beams = 1 if options.get("do_sample") else 4
    written = generation.write(model, [prefix + text for text in inputs], **{"num_beams": beams, **options})
    return [[{key: text} for text in texts] for texts in written]


def _require(model: Model, task: str, architecture: str) -> None:
    if model.config.architecture != architecture:
        raise ConfigError(f"{task} needs a {architecture} model; this one is {model.config.architecture}")
