"""Vocabularies: text to token ids and back, with the special ids known by role.

Roles are `pad_id`, `eos_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id` and `sentinel(k)`; which numbers they are is
the vocabulary's affair and nobody else's.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

CONTROL_SYMBOLS = ("[CLS]", "[SEP]", "[MASK]")


class Vocabulary(Protocol):
    """What the data engine asks of a vocabulary. Instances compare and hash by what they are made from."""

    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...

    @property
    def size(self) -> int:
        """Number of ids, 0 to size − 1."""
        ...

    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal for vocabularies that give equal ids."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first `eos_id`; padding and control ids print nothing, sentinels `<extra_id_k>`."""
        ...

    def show(self, ids: Iterable[int]) -> str:
        """The text for people to look at: special ids are named, nothing is left out."""
        ...

    def sentinel(self, k: int) -> int:
        """The id that marks the k-th hidden span, from 0."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes, ByT5's layout (Xue et al. 2022, §3): pad 0, eos 1, unk 2, byte b is b + 3, then `extra_ids`.

    Sentinels count down from the last id. Without extra ids they reuse bytes 0xFF, 0xFE, …, as ByT5's do: UTF-8
    never uses the first eight, later ones are also the first bytes of rarer scripts, down to 0x80, the end of ASCII.
    [CLS], [SEP] and [MASK] are 0xC0, 0xC1 and 0xF5, which UTF-8 never uses either.

    >>> vocabulary = ByteVocabulary()
    >>> vocabulary.encode(["hi"])[0].tolist(), vocabulary.size, vocabulary.sentinel(0)
    ([107, 108], 259, 258)
    """

    extra_ids: int = 0
    pad_id = 0
    eos_id = 1
    unk_id = 2
    cls_id = 0xC0 + 3
    sep_id = 0xC1 + 3
    mask_id = 0xF5 + 3

    @property
    def size(self) -> int:
        return 259 + self.extra_ids

    @property
    def fingerprint(self) -> str:
        return _digest(f"bytes {self.extra_ids}".encode())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(_utf8(text), np.uint8).astype(np.int32) + 3 for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        kept = list(_until(ids, self.eos_id))
        return _with_sentinels(kept, self._sentinel_index, self._bytes)

    def show(self, ids: Iterable[int]) -> str:
        names = {0: "<pad>", 1: "</s>", 2: "<unk>", self.cls_id: "[CLS]", self.sep_id: "[SEP]", self.mask_id: "[MASK]"}
        return _with_names(ids, names, self._sentinel_index, self._bytes)

    def sentinel(self, k: int) -> int:
        count = self.extra_ids or 128
        if not 0 <= k < count:
            raise DataError(
                f"span {k + 1} of a text needs more sentinels than the vocabulary's {count}; "
                "shorten data.length or raise data.mean_noise_span_length"
            )
        return self.size - 1 - k

    def _sentinel_index(self, i: int) -> int | None:
        k = self.size - 1 - i
        return k if 0 <= k < (self.extra_ids or 8) else None

    def _bytes(self, ids: Sequence[int]) -> str:
        return bytes(i - 3 for i in ids if 3 <= i < 259).decode("utf-8", errors="ignore")


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary:
    """A SentencePiece model and `extra_ids` sentinels behind it: sentinel k is id size − 1 − k, as T5 has it.

    T5's own model has 32,000 pieces: 32,100 ids, sentinel 0 is 32,099. [CLS], [SEP] and [MASK] must be pieces of the
    model (`t5x-lite vocab` puts them there). The file is read when first needed; `build`, if given, makes it then.
    """

    path: Path
    extra_ids: int = 100
    build: Callable[[Path], Any] | None = dataclasses.field(default=None, compare=False)

    def __getstate__(self) -> dict:  # the processor does not travel to worker processes: each reads the file
        return {"path": self.path, "extra_ids": self.extra_ids, "build": self.build}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    @functools.cached_property
    def _processor(self):
        import sentencepiece

        path = Path(self.path)
        if not path.exists() and self.build is not None:
            self.build(path)
        try:
            model = path.read_bytes()
        except OSError as error:
            near = suggest(path.name, [p.name for p in path.parent.glob("*.model")]) if path.parent.is_dir() else []
            hint = f"did you mean {path.parent / near[0]}?" if near else "`t5x-lite vocab` trains one"
            raise ConfigError(f"cannot read the vocabulary {path}: {error.strerror}; {hint}") from error
        try:
            if not model:  # the library takes it for "no model given" and answers every call with 0
                raise RuntimeError("the file is empty")
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            if len(processor) == 0:
                raise RuntimeError("it holds no pieces")
            return processor
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"{path} ({len(model)} bytes, sha256 {_digest(model)}) is not a SentencePiece model: {error}; "
                "give the .model file, not the .vocab"
            ) from error

    @property
    def size(self) -> int:
        return len(self._processor) + self.extra_ids

    @property
    def pad_id(self) -> int:
        return max(self._processor.pad_id(), 0)

    @property
    def eos_id(self) -> int:
        return self._role("eos", self._processor.eos_id())

    @property
    def unk_id(self) -> int:
        return self._processor.unk_id()

    @property
    def cls_id(self) -> int:
        return self._symbol("[CLS]")

    @property
    def sep_id(self) -> int:
        return self._symbol("[SEP]")

    @property
    def mask_id(self) -> int:
        return self._symbol("[MASK]")

    @property
    def fingerprint(self) -> str:
        return _digest(self._processor.serialized_model_proto() + str(self.extra_ids).encode())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            found = self._processor.encode(list(texts), num_threads=1)  # starting threads costs more than a few texts
        except (UnicodeEncodeError, TypeError):
            for text in texts:
                _utf8(text)  # says which
            raise
        ends = list(itertools.accumulate(map(len, found), initial=0))
        together = np.fromiter(itertools.chain.from_iterable(found), np.int32, ends[-1])  # a third of asarray's time
        return [together[begin:end] for begin, end in itertools.pairwise(ends)]

    def decode(self, ids: Iterable[int]) -> str:
        hidden = {self.pad_id, *(self._processor.piece_to_id(s) for s in CONTROL_SYMBOLS)} - {self.unk_id}
        kept = [i for i in _until(ids, self.eos_id) if i not in hidden]
        return _with_sentinels(kept, self._sentinel_index, self._text)

    def show(self, ids: Iterable[int]) -> str:
        names = {self.pad_id: "<pad>", self.eos_id: "</s>"}
        for symbol in CONTROL_SYMBOLS:
            if self._processor.piece_to_id(symbol) != self.unk_id:
                names[self._processor.piece_to_id(symbol)] = symbol
        return _with_names(ids, names, self._sentinel_index, self._text)

    def sentinel(self, k: int) -> int:
        if not 0 <= k < self.extra_ids:
            raise DataError(
                f"span {k + 1} of a text needs more sentinels than the vocabulary's {self.extra_ids}; "
                "shorten data.length or raise data.mean_noise_span_length"
            )
        return self.size - 1 - k

    def _sentinel_index(self, i: int) -> int | None:
        return self.size - 1 - i if len(self._processor) <= i < self.size else None

    def _text(self, ids: Sequence[int]) -> str:
        return self._processor.decode([i for i in ids if i < len(self._processor)])

    def _symbol(self, symbol: str) -> int:
        found = self._processor.piece_to_id(symbol)
        return self._role(symbol, -1 if found == self.unk_id else found)

    def _role(self, role: str, i: int) -> int:
        if i < 0:
            raise ConfigError(
                f"the vocabulary {self.path} has no {role}; encoder-only models need [CLS], [SEP] and [MASK]. "
                "`t5x-lite vocab` trains one that has them"
            )
        return i


def load(spec: str) -> Vocabulary:
    """The vocabulary that a config names: "bytes", or the path of a SentencePiece `.model`."""
    if spec == "bytes":
        return ByteVocabulary()
    if not spec.endswith(".model"):
        near = suggest(spec, ["bytes"])
        raise ConfigError(
            f"unknown vocabulary {spec!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + 'it is "bytes" or the path of a SentencePiece .model'
        )
    vocabulary = SentencePieceVocabulary(Path(spec))
    _ = vocabulary.size  # a missing or broken file is found here, not at the first batch
    return vocabulary


def train_sentencepiece(
    *,
    size: int,
    output: Path,
    texts: Iterable[str] = (),
    files: Sequence[Path] = (),
    extra_ids: int = 100,
    model_type: str = "unigram",
) -> SentencePieceVocabulary:
    """Trains a SentencePiece model of `size` pieces on texts, or on the lines of files, and writes it to `output`.

    pad 0, eos 1, unk 2 as T5 has them, then [CLS], [SEP] and [MASK]; bytes stand in for unseen characters. The same
    texts give the same model. The file appears at once and whole. Raises DataError for missing or too little text.
    """
    import sentencepiece

    # The trainer silently skips lines above 4192 bytes: long ones are cut, between words where there are any.
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
            num_threads=1,  # more change the order of summation, and with it the model
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
            f"cannot train {size} pieces: {reason}. Give more text, or a --size from 300 (256 bytes and the "
            "special pieces) to what the message above allows"
        ) from error
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=output.parent, delete=False) as file:
        file.write(model.getvalue())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(output)
    return SentencePieceVocabulary(output, extra_ids)


def _texts(texts: Iterable[str], files: Sequence[Path]) -> Iterable[str]:
    yield from texts
    for path in files:
        try:
            yield Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text with half a surrogate pair ({text[error.start]!a} at character {error.start} of "
            f"{text[:60]!a}); it is no Unicode text: correct or drop it"
        ) from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _until(ids: Iterable[int], eos_id: int) -> Iterable[int]:
    for i in ids:
        if i == eos_id:
            return
        yield int(i)


def _with_sentinels(ids: Sequence[int], index_of: Callable[[int], int | None], text_of: Callable) -> str:
    """Text between sentinels decoded by runs, sentinels as `<extra_id_k>`."""
    return _with_names(ids, {}, index_of, text_of)


def _with_names(
    ids: Iterable[int], names: dict[int, str], index_of: Callable[[int], int | None], text_of: Callable
) -> str:
    parts: list[str] = []
    run: list[int] = []
    for i in map(int, ids):
        k = index_of(i)
        name = names.get(i) or (f"<extra_id_{k}>" if k is not None else None)
        if name is None:
            run.append(i)
            continue
        if run:
            parts.append(text_of(run))
            run = []
        parts.append(name)
    if run:
        parts.append(text_of(run))
    return " ".join(parts)
