"""Pipelines that generate text. hub/generation.py lists the generation options."""

from typing import Any

from t5x_lite.data.languages import languages_of
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


def translation(
    model: Model,
    inputs: list,
    *,
    prefix: str = "",
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    **options: Any,
) -> list[list[dict]]:
    """Returns a list with one {"translation_text"} per input. The default is beam search with 4 beams.

    prefix: text to put before each input. In a pipeline such as translation_en_to_de, the default is the prefix in the
        model's config.json, such as "translate English to German: " for T5.
    src_lang, tgt_lang: codes of languages, such as "eng_Latn", for a model whose tokenizer marks languages (NLLB,
        mBART, M2M-100). Such a model needs both. A pipeline such as translation_en_to_de has them in its name.

    The mark of `tgt_lang` is the first token of the translation. If an mBART's files do not say with which token the
    decoder starts, it starts with that mark instead.

    Raises ConfigError if the model is not text_to_text, or if a language is missing or unknown.
    """
    languages = languages_of(model.vocabulary)
    if languages is None:
        if src_lang is not None or tgt_lang is not None:
            raise ConfigError(
                f"src_lang={src_lang!r}, tgt_lang={tgt_lang!r}: this model's tokenizer marks no languages. Name the "
                'language in the text, as the model expects: "translate English to German: …" for T5, ">>fra<< …" for '
                "a Marian model with several target languages"
            )
        return _text_to_text("translation_text", model, inputs, prefix=prefix, **options)
    if src_lang is None or tgt_lang is None:
        raise ConfigError(
            f"src_lang={src_lang!r}, tgt_lang={tgt_lang!r}: this model needs both, for example src_lang="
            f"{languages.source!r}; its languages: {', '.join(languages.ids)}"
        )
    languages.id(src_lang)  # an unknown one fails here, even if there is no text
    begins = languages.mark_follows and model.config.decoder_start_id < 0 and "decoder_start_token_id" not in options
    option = "decoder_start_token_id" if begins else "forced_bos_token_id"
    options = {option: languages.id(tgt_lang), **options}
    return _text_to_text("translation_text", model, inputs, prefix=prefix, source=src_lang, **options)


def _text_to_text(key: str, model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    _require(model, "text2text generation", "text_to_text")
    beams = 1 if options.get("do_sample") else 4
    written = generation.write(model, [prefix + text for text in inputs], **{"num_beams": beams, **options})
    return [[{key: text} for text in texts] for texts in written]


def _require(model: Model, task: str, architecture: str) -> None:
    if model.config.architecture != architecture:
        raise ConfigError(f"{task} needs a {architecture} model; this one is {model.config.architecture}")
