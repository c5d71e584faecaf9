"""Loads the vocabulary in the directory of a model: chooses the file, and checks that it suffices."""

import dataclasses
from pathlib import Path

from t5x_lite import side_files
from t5x_lite.data import tokenizer_settings
from t5x_lite.data.sentencepiece_vocabulary import CONTROL_SYMBOLS, SentencePieceVocabulary
from t5x_lite.data.tokenizer_settings import TokenizerSettings
from t5x_lite.data.translator_vocabulary import MODELS, TranslatorVocabulary
from t5x_lite.data.vocabularies import TOKENIZER_FILES, in_file
from t5x_lite.data.vocabulary import ByteVocabulary, Vocabulary
from t5x_lite.errors import ConfigError

T5_CLASSES = ("T5Tokenizer", "MT5Tokenizer")
# Other classes of transformers that read a SentencePiece model as the library itself does.
SENTENCEPIECE_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
T5_MODELS = ("t5", "mt5", "umt5")  # their sentinels follow the pieces of a SentencePiece model, or are pieces of it


def load(directory: Path, special_tokens: bool) -> Vocabulary:
    """Returns the vocabulary in a model's directory. Raises ConfigError if it has none, or one that cannot be read.

    T5's SentencePiece model encodes four times as fast as its tokenizer.json. For other models, the SentencePiece file
    does only part of the tokenizer's work: ALBERT's tokenizer also lowercases.
    """
    settings = tokenizer_settings.read(directory)
    if not settings.named and settings.kind not in ("", *T5_CLASSES) and _is_trained_here(directory):
        settings = dataclasses.replace(settings, kind="")
    if settings.kind.startswith("ByT5"):
        return ByteVocabulary(special_tokens=special_tokens)
    if settings.kind in MODELS:
        if missing := [
            name for name in ("vocab.json", *MODELS[settings.kind]) if not side_files.is_there(directory / name)
        ]:
            raise ConfigError(
                f"the directory {directory} has no {missing[0]}, which a {settings.kind} needs beside its other files; "
                "get the model's files again"
            )
        return TranslatorVocabulary(directory / "vocab.json", special_tokens)
    is_t5 = _is_t5(settings)
    is_equivalent = is_t5 and (settings.kind in T5_CLASSES or not settings.named)
    preferred = ("spiece.model", "tokenizer.json") if is_equivalent else ("tokenizer.json", "spiece.model")
    files = [
        directory / name for name in (*preferred, "vocab.json", "vocab.txt") if side_files.is_there(directory / name)
    ]
    models = sorted(directory.glob("*.model"))
    if not files and len(models) != 1:
        names = ", ".join(path.name for path in models) or "no vocabulary file"
        raise ConfigError(
            f"the directory {directory} has {names}; it must have a spiece.model, tokenizer.json, vocab.json with "
            "merges.txt, or vocab.txt. Give the file itself"
        )
    path = files[0] if files else models[0]
    if path.suffix != ".model":
        return in_file(path, 0, special_tokens)
    named = settings.entries.get("extra_ids")
    extra_ids = 0 if not is_t5 else 100 if named is None else named
    are_read = special_tokens and not settings.entries.get("split_special_tokens")
    vocabulary = SentencePieceVocabulary(path, extra_ids, special_tokens=are_read)
    reason = _needs_tokenizer_json(settings, vocabulary)
    if reason and side_files.is_there(directory / "tokenizer.json"):
        return in_file(directory / "tokenizer.json", 0, special_tokens)
    if reason:
        raise ConfigError(
            f"{directory}: {reason} cannot be read from a SentencePiece model; give its tokenizer.json, which "
            "`transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes"
        )
    return vocabulary


def _is_t5(settings: TokenizerSettings) -> bool:
    """Returns whether a directory's model is of T5's family.

    Also returns True if no file describes the model, as for models that `t5x-lite vocab` trains.
    """
    if settings.model_type:
        return settings.model_type in T5_MODELS
    names = [token["content"] for token in settings.special()]
    is_described = settings.named or any(
        side_files.is_there(settings.directory / name) for name in TOKENIZER_FILES[7:9]
    )
    return settings.kind in T5_CLASSES or any("<extra_id_" in name for name in names) or not is_described


def _is_trained_here(directory: Path) -> bool:
    """Returns whether the only vocabulary in a directory is a SentencePiece model that `t5x-lite vocab` trained.

    Exports before 0.2 do not name its class, and their model_type would imply a class for files that they lack.
    """
    models = sorted(directory.glob("*.model"))
    if len(models) != 1 or any(
        side_files.is_there(directory / name) for name in ("tokenizer.json", "vocab.json", "vocab.txt")
    ):
        return False
    pieces, first = SentencePieceVocabulary(models[0], 0).processor, ["<pad>", "</s>", "<unk>", *CONTROL_SYMBOLS]
    return len(pieces) >= len(first) and [pieces.id_to_piece(i) for i in range(len(first))] == first


def _needs_tokenizer_json(settings: TokenizerSettings, vocabulary: SentencePieceVocabulary) -> str:
    """Returns the setting that a SentencePiece model alone does not follow; "" if there is none."""
    if settings.kind not in ("", *T5_CLASSES, *SENTENCEPIECE_CLASSES):
        return f"tokenizer_class={settings.kind!r}"
    if settings.kind not in T5_CLASSES and settings.entries.get("legacy") is False:
        return "legacy=false"
    special = [token["content"] for token in settings.special()] if vocabulary.special_tokens else []
    if others := [name for name in special if name not in vocabulary.special_ids]:
        return f"the special token {others[0][:40]!r}"
    for i, token in settings.added.items():
        own = vocabulary.special_ids.get(token["content"], vocabulary.processor.piece_to_id(token["content"]))
        if own != i or token["single_word"]:
            return f"the added token {token['content'][:40]!r} (added_tokens_decoder or added_tokens.json)"
    return ""
