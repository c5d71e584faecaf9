"""Loads the vocabulary that a config names, and trains new ones.

vocabulary.py defines the interface and the byte vocabulary; sentencepiece_vocabulary.py, tokenizer_vocabulary.py and
translator_vocabulary.py define the other kinds. All of their classes can be imported from here.
"""

import importlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5x_lite import atomic, side_files
from t5x_lite.data.vocabulary import ByteVocabulary, Vocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

if TYPE_CHECKING:
    from t5x_lite.data.sentencepiece_vocabulary import CONTROL_SYMBOLS, SentencePieceVocabulary
    from t5x_lite.data.tokenizer_vocabulary import TokenizerVocabulary
    from t5x_lite.data.translator_vocabulary import TranslatorVocabulary

# Each kind's module is imported on first use: a run needs only one kind.
LATE = {
    "CONTROL_SYMBOLS": "sentencepiece_vocabulary",
    "SentencePieceVocabulary": "sentencepiece_vocabulary",
    "TokenizerVocabulary": "tokenizer_vocabulary",
    "TranslatorVocabulary": "translator_vocabulary",
}
__all__ = (
    "CONTROL_SYMBOLS",
    "ByteVocabulary",
    "SentencePieceVocabulary",
    "TokenizerVocabulary",
    "TranslatorVocabulary",
    "Vocabulary",
    "load",
    "train_sentencepiece",
)
TOKENIZER_FILES = (  # of directories in Hugging Face format; the first eight hold a vocabulary
    "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "tokenizer.json", "vocab.txt", "vocab.json",
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "source.spm", "target.spm",
)  # fmt: skip
MODEL_FILES = ("config.json", "huggingface.json")  # describe a directory's model, if it has one


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
        from t5x_lite.data import vocabulary_directory

        vocabulary = vocabulary_directory.load(path, special_tokens)
    elif path.suffix in (".model", ".json", ".txt"):
        vocabulary = in_file(path, 100, special_tokens)
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


def has_vocabulary(directory: Path) -> bool:
    """Returns whether a model's directory has a file of a vocabulary."""
    return any(side_files.is_there(directory / name) for name in TOKENIZER_FILES[:8])


def in_file(path: Path, extra_ids: int, special_tokens: bool) -> Vocabulary:
    """Returns the vocabulary in a file. `extra_ids` is for a SentencePiece model."""
    if path.suffix == ".model":
        from t5x_lite.data.sentencepiece_vocabulary import SentencePieceVocabulary

        return SentencePieceVocabulary(path, extra_ids, special_tokens=special_tokens)
    from t5x_lite.data.tokenizer_vocabulary import TokenizerVocabulary

    return TokenizerVocabulary(path, special_tokens)


def train_sentencepiece(
    *,
    size: int,
    output: Path,
    texts: Iterable[str] = (),
    files: Sequence[Path] = (),
    extra_ids: int = 100,
    model_type: str = "unigram",
) -> "SentencePieceVocabulary":
    """Trains a SentencePiece model of `size` pieces on `texts` and the contents of `files`, and writes it to `output`.

    Its ids are pad 0, eos 1 and unk 2, as in T5, then [CLS], [SEP] and [MASK]. Unseen characters are encoded as bytes.
    The same texts give the same model. The file is written atomically.

    extra_ids: the number of sentinels that the returned vocabulary adds to the pieces.
    model_type: the kind of SentencePiece model: "unigram", "bpe", …
    Raises DataError if there is no text, ConfigError if `size` is too small or too large for the text, and
    CheckpointError if `output` cannot be written.
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
            vocab_size=max(size, 16),  # below that, the error would not say the smallest possible size
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
        if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
            raise ConfigError(
                f"a vocabulary of size {size} is too small; the smallest possible is {smallest[1]}: 256 bytes, the "
                "special pieces, and the characters of this text. Use that or more"
            ) from None
        raise DataError(f"cannot train {size} pieces: {reason}. Give other text") from error
    output = Path(output)
    atomic.write_output(output, model.getvalue())
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
