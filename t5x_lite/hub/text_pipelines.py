"""Pipelines whose answer is a text that the model generates. Their options of generation: hub/generation.py."""

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
    """[{"generated_text"}, …] of each text: the text and its continuation, or the continuation alone with
    return_full_text=False. Samples by default; do_sample=False is greedy."""
    _require(model, "text-generation", "decoder_only")
    written = generation.write(model, inputs, do_sample=do_sample, temperature=temperature, top_k=top_k, **options)
    before = inputs if return_full_text else [""] * len(inputs)
    return [[{"generated_text": text + new} for new in texts] for text, texts in zip(before, written, strict=True)]


def text2text_generation(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """[{"generated_text"}, …] of each text, by beam search. prefix: is put before the text."""
    return _text_to_text("generated_text", model, inputs, prefix=prefix, **options)


def summarization(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """[{"summary_text"}] of each text, by beam search. prefix: by default that of the model's config.json, such as T5's
    "summarize: "."""
    return _text_to_text("summary_text", model, inputs, prefix=prefix, **options)


def translation(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """[{"translation_text"}] of each text, by beam search. prefix: for the task translation_en_to_de, by default that
    of the model's config.json, such as T5's "translate English to German: "."""
    return _text_to_text("translation_text", model, inputs, prefix=prefix, **options)


def _text_to_text(key: str, model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    _require(model, "writing from a text", "text_to_text")
    beams = 1 if options.get("do_sample") else 4
    written = generation.write(model, [prefix + text for text in inputs], **{"num_beams": beams, **options})
    return [[{key: text} for text in texts] for texts in written]


def _require(model: Model, task: str, architecture: str) -> None:
    if model.config.architecture != architecture:
        raise ConfigError(f"{task} needs a {architecture} model; this one is {model.config.architecture}")
