"""What a vocabulary is: text to token ids and back, with the special ids known by role; and the simplest one, bytes.

Roles are `pad_id`, `eos_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id` and `sentinel(k)`. Only the vocabulary knows which
numbers they are. Text is text: a text that spells "[MASK]" or "</s>" never becomes the special id.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

WHITE_SPACE = " \t\n\r\v\f"  # between words
HOW_TO_GET_ONE = (
    "`t5x-lite vocab` trains one, and `hf download google-bert/bert-base-uncased tokenizer.json --local-dir .` "
    "fetches a model's"
)


class Vocabulary(Protocol):
    """What the data pipeline asks of a vocabulary. Instances compare and hash by what they are made from."""

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

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The int32 ids of a text, and the place of each in the text: (begin, end) in characters, int64 [ids, 2]."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary's file spells it: "##ing", "▁the"."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first `eos_id`. Padding and control ids print nothing; sentinels print `<extra_id_k>`."""
        ...

    def show(self, ids: Iterable[int]) -> str:
        """The text for people to look at: special ids print their names, and nothing is left out."""
        ...

    def sentinel(self, k: int) -> int:
        """The id that marks the k-th hidden span, from 0; DataError when there are not so many."""
        ...

    @property
    def word_starts(self) -> np.ndarray:
        """bool [size]: the ids that begin a word, wherever they occur. It comes from the pieces, because decoding
        tidies up spaces."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes in ByT5's layout (Xue et al. 2022, §3): pad 0, eos 1, unk 2, byte b is b + 3, then `extra_ids`.

    Sentinels count down from the last id. Without extra ids they are bytes, as in ByT5: the 62 bytes 0xFF, 0xFE, …
    down to 0xC2. UTF-8 never uses the first eleven. Each of the others begins a character; it is a sentinel where no
    continuation byte follows. [CLS] and [SEP] are 0xC0 and 0xC1, which UTF-8 never uses either. [MASK] is unk,
    because no byte is unknown.

    >>> vocabulary = ByteVocabulary()
    >>> vocabulary.encode(["hi"])[0].tolist(), vocabulary.size, vocabulary.sentinel(0)
    ([107, 108], 259, 258)
    >>> vocabulary.decode([*vocabulary.encode(["é"])[0], vocabulary.sentinel(60), *vocabulary.encode(["e"])[0]])
    'é <extra_id_60> e'
    """

    extra_ids: int = 0
    pad_id = 0
    eos_id = 1
    unk_id = 2
    mask_id = 2
    cls_id = 0xC0 + 3
    sep_id = 0xC1 + 3

    @property
    def size(self) -> int:
        return 259 + self.extra_ids

    @property
    def fingerprint(self) -> str:
        return digest(f"bytes {self.extra_ids}".encode())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8).astype(np.int32) + 3 for text in texts]

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        (ids,) = self.encode([text])
        begins_T = np.arange(len(ids))
        return ids, character_places(text, np.stack([begins_T, begins_T + 1], axis=1))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.show([i]) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        kept = [i for i in before_eos(ids, self.eos_id) if i not in (self.cls_id, self.sep_id)]
        return text_with_names(kept, {}, self._sentinel_index, self._text)

    def show(self, ids: Iterable[int]) -> str:
        names = {0: "<pad>", 1: "</s>", self.cls_id: "[CLS]", self.sep_id: "[SEP]", self.mask_id: "[MASK]"}
        return text_with_names(ids, names, self._sentinel_index, self._text)

    def sentinel(self, k: int) -> int:
        count = self.extra_ids or 62
        if not 0 <= k < count:
            raise too_few_sentinels(k, count)
        return self.size - 1 - k

    @property
    def word_starts(self) -> np.ndarray:
        """White space: a word begins with the space before it."""
        return np.isin(np.arange(self.size), np.frombuffer(WHITE_SPACE.encode(), np.uint8) + 3)

    def _sentinel_index(self, i: int) -> int | None:
        return self.size - 1 - i if i >= 259 else None

    def _text(self, ids: Sequence[int]) -> str:
        """Characters and, without extra ids, the sentinels between them. Incomplete characters are left out."""
        rest, parts = bytes(i - 3 for i in ids if 3 <= i < 259), []
        while rest:
            try:
                parts.append(rest.decode("utf-8"))
                break
            except UnicodeDecodeError as error:
                parts.append(rest[: error.start].decode("utf-8"))
                if not self.extra_ids and error.end - error.start == 1 and rest[error.start] >= 0xC2:
                    parts.append(f"<extra_id_{0xFF - rest[error.start]}>")
                rest = rest[error.end :]
        return (" " if "<extra_id_" in "".join(parts) else "").join(part for part in parts if part)


# ------------------------------------------------------------------------------------------ what vocabularies share


def character_places(text: str, bytes_T2: np.ndarray) -> np.ndarray:
    """Places in UTF-8 bytes as places in characters: the characters that each byte range touches, (begin, end).
    bytes_T2 and the result: int64 [T, 2].

    >>> character_places("aé", np.array([[0, 1], [1, 2], [2, 3]])).tolist()
    [[0, 1], [1, 2], [1, 2]]
    """
    # Characters begun up to and including each byte.
    begun = np.cumsum((np.frombuffer(utf8(text) + b"\0", np.uint8) & 0xC0) != 0x80)
    begins, ends = bytes_T2.T
    return np.stack([begun[begins] - 1, np.where(ends > 0, begun[ends - 1], 0)], axis=1)


def utf8(text: str) -> bytes:
    """The text as UTF-8 bytes; DataError for half of a surrogate pair, which has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text with half a surrogate pair ({text[error.start]!a} at character {error.start} of "
            f"{text[:60]!a}); it is no Unicode text: correct or drop it"
        ) from None


def too_few_sentinels(k: int, count: int) -> DataError:
    """The error for a text that needs sentinel `k` of a vocabulary with `count` sentinels."""
    return DataError(
        f"span {k + 1} of a text needs more sentinels than the vocabulary's {count}; "
        "shorten data.length or raise data.mean_noise_span_length"
    )


def digest(data: bytes) -> str:
    """The first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def before_eos(ids: Iterable[int], eos_id: int) -> Iterable[int]:
    """The ids up to the first `eos_id`, without it."""
    for i in ids:
        if i == eos_id:
            return
        yield int(i)


def text_with_names(
    ids: Iterable[int], names: dict[int, str], index_of: Callable[[int], int | None], text_of: Callable
) -> str:
    """The text of ids among which some print a name: those in `names`, and sentinels as `<extra_id_k>`.

    names: {id: name}. index_of: from an id to its sentinel's number k, or None. text_of: decodes a run of other ids.
    """
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


# ------------------------------------------------------------------------------------------------ reading their files


def read_file(path: Path) -> bytes:
    """The contents of a vocabulary's file; ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        near = suggest(path.name, [p.name for p in path.parent.glob(f"*{path.suffix}")]) if path.parent.is_dir() else []
        hint = f"did you mean {path.parent / near[0]}?" if near else HOW_TO_GET_ONE
        raise ConfigError(f"cannot read the vocabulary {path}: {error.strerror}; {hint}") from error


def decoded(path: Path, data: bytes) -> str:
    """The contents of a file as text; ConfigError when they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; {HOW_TO_GET_ONE}") from None


def json_object(path: Path, data: bytes) -> dict[str, Any]:
    """The contents of a file as a JSON object; ConfigError when they are none."""
    try:
        value = json.loads(decoded(path, data))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} ({len(data)} bytes) is not JSON: {error}; get the file again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is a JSON {type(value).__name__}, not an object; get the file again")
    return value
