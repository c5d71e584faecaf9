"""Loads the vocabulary that a config names, and trains new ones.

vocabulary.py defines the interface and the byte vocabulary; sentencepiece_vocabulary.py and tokenizer_vocabulary.py
define the other kinds. All of their classes can be imported from here.
"""

import importlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5x_lite import atomic
from t5x_lite.data.vocabulary import ByteVocabulary, Vocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

if TYPE_CHECKING:
    from t5x_lite.data.sentencepiece_vocabulary import CONTROL_SYMBOLS, SentencePieceVocabulary
    from t5x_lite.data.tokenizer_settings import TokenizerSettings
    from t5x_lite.data.tokenizer_vocabulary import TokenizerVocabulary

# Each kind's module is imported on first use: a run needs only one kind.
LATE = {
    "CONTROL_SYMBOLS": "sentencepiece_vocabulary",
    "SentencePieceVocabulary": "sentencepiece_vocabulary",
    "TokenizerVocabulary": "tokenizer_vocabulary",
}
__all__ = (
    "CONTROL_SYMBOLS",
    "ByteVocabulary",
    "SentencePieceVocabulary",
    "TokenizerVocabulary",
    "Vocabulary",
    "load",
    "train_sentencepiece",
)
TOKENIZER_FILES = (  # of directories in Hugging Face format; the first eight hold a vocabulary
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "tokenizer.json", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
)  # fmt: skip
T5_CLASSES = ("T5Tokenizer", "MT5Tokenizer")
# Other classes of transformers that read a SentencePiece model as the library itself does.
SENTENCEPIECE_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
T5_MODELS = ("t5", "mt5", "umt5")  # their sentinels follow the pieces of a SentencePiece model, or are pieces of it


def __getattr__(name: str) -> Any:
    if name not in LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"t5x_lite.data.{LATE[name]}"), name)


def load(spec: str, special_tokens: bool = False) -> Vocabulary:
    """Loads the vocabulary that a config names: "bytes", a SentencePiece `.model`, a `tokenizer.json`, a `vocab.txt`, a
    `vocab.json` with its `merges.txt`, or a directory that holds one of these.

    A SentencePiece model gets 100 extra ids. In a directory, it gets them only if the directory's model is of T5's
    family. The directory of a ByT5 model needs no vocabulary file, because ByT5's vocabulary is bytes.

    special_tokens: whether the name of a special token in a text becomes the token's id, as in transformers. Leave it
        off for training data from strangers.

    Raises ConfigError if the vocabulary cannot be loaded.
    """
    if spec == "bytes":
        return ByteVocabulary(special_tokens=special_tokens)
    path = Path(spec).expanduser()
    if path.is_dir():
        vocabulary = _in_directory(path, special_tokens)
    elif path.suffix in (".model", ".json", ".txt"):
        vocabulary = _in_file(path, 100, special_tokens)
    else:
        near = suggest(spec, ["bytes"])
        what = f"{spec!r} does not exist" if "/" in spec and not path.exists() else f"unknown vocabulary {spec!r}"
        raise ConfigError(
            f"{what}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + 'give "bytes", a SentencePiece .model, a tokenizer.json, a vocab.txt, or a directory that holds one'
        )
    _ = vocabulary.size  # reads the file, so that a missing or corrupted one fails here, not at the first batch
    return vocabulary


def _in_file(path: Path, extra_ids: int, special_tokens: bool) -> Vocabulary:
    if path.suffix == ".model":
        from t5x_lite.data.sentencepiece_vocabulary import SentencePieceVocabulary

        return SentencePieceVocabulary(path, extra_ids, special_tokens=special_tokens)
    from t5x_lite.data.tokenizer_vocabulary import TokenizerVocabulary

    return TokenizerVocabulary(path, special_tokens)


def _in_directory(directory: Path, special_tokens: bool) -> Vocabulary:
    """Returns the vocabulary in a model's directory. Raises ConfigError if it has none, or one that cannot be read.

    T5's SentencePiece model encodes four times as fast as its tokenizer.json. For other models, the SentencePiece file
    does only part of the tokenizer's work: ALBERT's tokenizer also lowercases.
    """
    from t5x_lite.data import tokenizer_settings

    settings = tokenizer_settings.read(directory)
    if settings.kind.startswith("ByT5"):
        return ByteVocabulary(special_tokens=special_tokens)
    is_t5 = _is_t5(settings)
    is_equivalent = is_t5 and (settings.kind in T5_CLASSES or not settings.named)
    preferred = ("spiece.model", "tokenizer.json") if is_equivalent else ("tokenizer.json", "spiece.model")
    files = [directory / name for name in (*preferred, "vocab.json", "vocab.txt") if (directory / name).is_file()]
    models = sorted(directory.glob("*.model"))
    if not files and len(models) != 1:
        names = ", ".join(path.name for path in models) or "no vocabulary file"
        raise ConfigError(
            f"the directory {directory} has {names}; it must have a spiece.model, tokenizer.json, vocab.json with "
            "merges.txt, or vocab.txt. Give the file itself"
        )
    path = files[0] if files else models[0]
    if path.suffix != ".model":
        return _in_file(path, 0, special_tokens)
    from t5x_lite.data.sentencepiece_vocabulary import SentencePieceVocabulary

    extra_ids = int(settings.entries.get("extra_ids", 100)) if is_t5 else 0
    are_read = special_tokens and not settings.entries.get("split_special_tokens")
    vocabulary = SentencePieceVocabulary(path, extra_ids, special_tokens=are_read)
    reason = _needs_tokenizer_json(settings, vocabulary)
    if reason and (directory / "tokenizer.json").is_file():
        return _in_file(directory / "tokenizer.json", 0, special_tokens)
    if reason:
        raise ConfigError(
            f"{directory}: {reason} cannot be read from a SentencePiece model; give its tokenizer.json, which "
            "`transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes"
        )
    return vocabulary


def _is_t5(settings: "TokenizerSettings") -> bool:
    """Returns whether a directory's model is of T5's family.

    Also returns True if no file describes the model, as for models that `t5x-lite vocab` trains.
    """
    if settings.model_type:
        return settings.model_type in T5_MODELS
    names = [token["content"] for token in settings.special()]
    is_described = settings.named or any((settings.directory / name).is_file() for name in TOKENIZER_FILES[7:9])
    return settings.kind in T5_CLASSES or any("<extra_id_" in name for name in names) or not is_described


def _needs_tokenizer_json(settings: "TokenizerSettings", vocabulary: "SentencePieceVocabulary") -> str:
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


def train_sentencepiece(
    *,
    size: int,
    output: Path,
    texts: Iterable[str] = (),
    files: Sequence[Path] = (),
    extra_ids: int = 100,
    model_type: str = "unigram",
) -> "SentencePieceVocabulary":
    """Trains a SentencePiece model of `size` pieces on `texts` and on the contents of `files`, and writes it to
    `output`.

    Its ids are pad 0, eos 1 and unk 2, as in T5, then [CLS], [SEP] and [MASK]. Unseen characters are encoded as bytes.
    The same texts give the same model. The file is written atomically.

    extra_ids: the number of sentinels that the returned vocabulary adds to the pieces.
    model_type: the kind of SentencePiece model: "unigram", "bpe", …
    Raises DataError if there is no text or too little, ConfigError if `size` is too large for the text.
    """
    import sentencepiece

    from t5x_lite.data.sentencepiece_vocabulary import CONTROL_SYMBOLS, SentencePieceVocabulary

    # The trainer silently skips lines above 4192 bytes. So long lines are cut, between words where possible.
    lines = (
        piece
        for text in _texts(texts, files)
        for line in text.splitlines()
        for piece in re.findall(r"\S.{0,999}(?=\s|$)|\S{1,1000}", line)
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type=model_type,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            control_symbols=list(CONTROL_SYMBOLS),
            byte_fallback=True,
            character_coverage=0.9995,
            num_threads=1,  # more threads would change the order of summation, and so the model
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[-200:]
        if largest := re.search(r"too high.*?<= (\d+)", reason):
            raise ConfigError(
                f"a vocabulary of size {size} is too large for this text; the largest possible is {largest[1]}. "
                "Use that, or give more text"
            ) from None
        raise DataError(
            f"cannot train {size} pieces: {reason}. Give more text, or a --size between 300 (256 bytes and the "
            "special pieces) and the limit in this message"
        ) from error
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(output, model.getvalue())
    return SentencePieceVocabulary(output, extra_ids)


def _texts(texts: Iterable[str], files: Sequence[Path]) -> Iterable[str]:
    """Yields the texts and the contents of the files. Raises DataError if a file cannot be read or is not UTF-8."""
    yield from texts
    for path in files:
        try:
            yield Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
