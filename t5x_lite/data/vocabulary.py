"""Defines the interface of vocabularies, which map text to token ids and back. Also defines the simplest vocabulary:
bytes.

Code asks for special ids by role: `pad_id`, `eos_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id` and `sentinel(k)`. Only
the vocabulary knows their numbers.

A text that spells "[MASK]" or "</s>" does not become the special id, because training data may come from strangers.
Each class of vocabulary has the field `special_tokens`. If it is true, the name of a special token in a text becomes
the token's id, as in transformers. Then whoever writes the text can end it, hide parts of it, or write the marks of a
chat.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t5x_lite import side_files
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

WHITE_SPACE = " \t\n\r\v\f"  # separates words
HOW_TO_GET_ONE = (
    "train one with `t5x-lite vocab`, or download a model's with "
    "`hf download google-bert/bert-base-uncased tokenizer.json --local-dir .`"
)


class Vocabulary(Protocol):
    """Defines the methods of a vocabulary that the data pipeline needs. Instances with equal arguments compare
    equal."""

    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def unk_id(self) -> int: ...

    @property
    def size(self) -> int:
        """Returns the number of ids, which are 0 to size − 1."""
        ...

    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Returns 16 hex digits. They are equal for vocabularies that give equal ids."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text (int32 [ids]), without special tokens.

        Raises DataError if a text holds half of a surrogate pair.
        """
        ...

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of a text (int32 [ids]), and the place of each id in the text: (begin, end) in characters
        (int64 [ids, 2])."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns each id as the vocabulary's file spells it: "##ing", "▁the"."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first `eos_id`, without padding and control ids. Sentinels become
        `<extra_id_k>`."""
        ...

    def show(self, ids: Iterable[int]) -> str:
        """Returns the text of all ids, for people to read. Special ids become their names."""
        ...

    def sentinel(self, k: int) -> int:
        """Returns the id that marks the k-th hidden span, from 0. Raises DataError if there is no k-th sentinel."""
        ...

    @property
    def word_starts(self) -> np.ndarray:
        """Returns a mask, bool [size], that is True for the ids that begin a word wherever they occur. The mask depends
        on how the pieces are spelled, not on decoded text, because decoding normalises spaces."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes in ByT5's layout (Xue et al. 2022, §3): pad 0, eos 1, unk 2, byte b is b + 3, then `extra_ids`.

    Sentinels count down from the last id. Without extra ids, the sentinels are bytes, as in ByT5: the 62 bytes 0xFF,
    0xFE, … down to 0xC2. UTF-8 never uses the first eleven of these. Each of the others begins a character, so it is a
    sentinel only where no continuation byte follows. [CLS] and [SEP] are 0xC0 and 0xC1, which UTF-8 never uses either.
    [MASK] has the id of unk, which has no other use, because no byte is unknown.

    >>> vocabulary = ByteVocabulary()
    >>> vocabulary.encode(["hi"])[0].tolist(), vocabulary.size, vocabulary.sentinel(0)
    ([107, 108], 259, 258)
    >>> vocabulary.decode([*vocabulary.encode(["é"])[0], vocabulary.sentinel(60), *vocabulary.encode(["e"])[0]])
    'é <extra_id_60> e'
    """

    extra_ids: int = 0
    special_tokens: bool = False
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
        return digest(f"bytes {self.extra_ids}".encode() + b" special tokens" * self.special_tokens)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.places(text)[0] for text in texts] if self.special_tokens else list(map(self._bytes, texts))

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if not self.special_tokens:
            return self._places(text)
        sentinels = {f"<extra_id_{k}>": self.sentinel(k) for k in range(self.extra_ids or 62)}
        names = {"<pad>": self.pad_id, "</s>": self.eos_id, "<unk>": self.unk_id} | sentinels
        return places_with_names(text, names, self._places)

    def _bytes(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32) + 3

    def _places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._bytes(text)
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
        """Marks white space, because a word begins with the space before it."""
        return np.isin(np.arange(self.size), np.frombuffer(WHITE_SPACE.encode(), np.uint8) + 3)

    def _sentinel_index(self, i: int) -> int | None:
        return self.size - 1 - i if i >= 259 else None

    def _text(self, ids: Sequence[int]) -> str:
        """Returns the characters that the ids spell. If there are no extra ids, includes the sentinels between the
        characters. Omits incomplete characters."""
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


class ReadOnUse:
    """A dataclass that reads files on first use. A worker process gets only its fields, and reads the files itself."""

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


def id_of_role(role: str) -> Any:
    """Returns a property that is the id that the vocabulary's method `_role` gives for a role."""
    return property(lambda self: self._role(role))


def character_places(text: str, bytes_T2: np.ndarray) -> np.ndarray:
    """Converts byte ranges of the UTF-8 text to character ranges (begin, end). A result covers all characters that the
    byte range touches.

    bytes_T2 and the result: int64 [T, 2].

    >>> character_places("aé", np.array([[0, 1], [1, 2], [2, 3]])).tolist()
    [[0, 1], [1, 2], [1, 2]]
    """
    # The number of characters that begin at or before each byte.
    begun = np.cumsum((np.frombuffer(utf8(text) + b"\0", np.uint8) & 0xC0) != 0x80)
    begins, ends = bytes_T2.T
    return np.stack([begun[begins] - 1, np.where(ends > 0, begun[ends - 1], 0)], axis=1)


def places_with_names(
    text: str, ids: Mapping[str, int], places: Callable[[str], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a text (int32 [T]) and their places (int64 [T, 2]). Each name in `ids` becomes its id.

    places: returns the same two arrays for the text between two names.
    """
    longest_first = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    parts = re.split(f"({longest_first})", text) if ids else [text]
    all_ids, all_places, begin = [], [], 0
    for number, part in enumerate(parts):
        if number % 2:  # re.split puts the names between the other parts
            part_ids, places_T2 = np.array([ids[part]], np.int32), np.array([[0, len(part)]])
        else:
            part_ids, places_T2 = places(part)
        all_ids.append(part_ids)
        all_places.append(places_T2 + begin)
        begin += len(part)
    return np.concatenate(all_ids), np.concatenate(all_places)


def utf8(text: str) -> bytes:
    """Returns the text as UTF-8 bytes. Raises DataError for half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text with half a surrogate pair ({text[error.start]!a} at character {error.start} of "
            f"{text[:60]!a}); this is not valid Unicode: correct or drop the text"
        ) from None


def too_few_sentinels(k: int, count: int) -> DataError:
    """Returns the error for a text that needs sentinel `k` of a vocabulary with `count` sentinels."""
    return DataError(
        f"span {k + 1} of a text needs more sentinels than the vocabulary's {count}; "
        "shorten data.length or raise data.mean_noise_span_length"
    )


def digest(data: bytes) -> str:
    """Returns the first 16 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def before_eos(ids: Iterable[int], eos_id: int) -> Iterable[int]:
    """Yields the ids before the first `eos_id`."""
    for i in ids:
        if i == eos_id:
            return
        yield int(i)


def text_with_names(
    ids: Iterable[int], names: dict[int, str], index_of: Callable[[int], int | None], text_of: Callable
) -> str:
    """Returns the text of ids. Ids in `names` become their names, and sentinels become `<extra_id_k>`.

    names: {id: name}.
    index_of: maps an id to its sentinel's number k, or to None.
    text_of: decodes a run of other ids.
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
    """Returns the contents of a vocabulary's file. Raises ConfigError if it cannot be read."""
    try:
        return side_files.read(path)
    except OSError as error:
        near = suggest(path.name, [p.name for p in path.parent.glob(f"*{path.suffix}")]) if path.parent.is_dir() else []
        hint = f"did you mean {path.parent / near[0]}?" if near else HOW_TO_GET_ONE
        raise ConfigError(f"cannot read the vocabulary {path}: {side_files.why(error)}; {hint}") from error


def decoded(path: Path, data: bytes) -> str:
    """Returns the contents of a file as text. Raises ConfigError if they are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; {HOW_TO_GET_ONE}") from None


def json_object(path: Path, data: bytes) -> dict[str, Any]:
    """Returns the contents of a file as a JSON object. Raises ConfigError if they are not one."""
    try:
        value = json.loads(decoded(path, data))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} ({len(data)} bytes) is not JSON: {error}; get the file again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is a JSON {type(value).__name__}, not an object; get the file again")
    return value
