"""Vocabularies from SentencePiece models: T5's, mT5's, and those that `t5x-lite vocab` trains."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data.vocabulary import (
    ReadOnUse,
    before_eos,
    character_places,
    digest,
    places_with_names,
    read_file,
    text_with_names,
    too_few_sentinels,
    utf8,
)
from t5x_lite.errors import ConfigError

CONTROL_SYMBOLS = ("[CLS]", "[SEP]", "[MASK]")  # pieces of a model that no text is encoded to


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(ReadOnUse):
    """A SentencePiece model followed by `extra_ids` sentinels: sentinel k is id size − 1 − k, as in T5.

    T5's model has 32,000 pieces, so its vocabulary has 32,100 ids, and sentinel 0 is id 32,099. If a model has the
    pieces `<extra_id_0>`, … (as mT5's and a variant of T5's have), these are its sentinels, and `extra_ids` is ignored.
    [CLS], [SEP] and [MASK] must be pieces of the model (`t5x-lite vocab` adds them). The file is read on first use. If
    it does not exist by then and `build` is given, `build(path)` makes it.

    special_tokens: whether the name of a special token in a text becomes the token's id. The text between two names is
        encoded like a text of its own, as T5's tokenizer does.
    """

    path: Path
    extra_ids: int = 100
    build: Callable[[Path], Any] | None = dataclasses.field(default=None, compare=False)
    special_tokens: bool = False

    @functools.cached_property
    def processor(self):
        """Returns the `sentencepiece.SentencePieceProcessor`. Raises ConfigError if the file is not a model."""
        import sentencepiece

        path = Path(self.path)
        if not path.exists() and self.build is not None:
            self.build(path)
        model = read_file(path)
        try:
            if not model:  # the library would treat it as "no model given" and answer every call with 0
                raise RuntimeError("the file is empty")
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            if len(processor) == 0:
                raise RuntimeError("it holds no pieces")
            return processor
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"{path} ({len(model)} bytes, sha256 {digest(model)}) is not a SentencePiece model: {error}; "
                "give the .model file, not the .vocab"
            ) from error

    @functools.cached_property
    def _sentinels(self) -> list[int]:
        """Returns the id of each sentinel, from sentinel 0."""
        processor, unk = self.processor, self.processor.unk_id()
        for piece in ("<extra_id_{}>", "▁<extra_id_{}>"):
            ids = (processor.piece_to_id(piece.format(k)) for k in itertools.count())
            if sentinels := list(itertools.takewhile(lambda i: i != unk, ids)):
                return sentinels
        return list(reversed(range(len(processor), len(processor) + self.extra_ids)))

    @functools.cached_property
    def _index_of_sentinel(self) -> dict[int, int]:
        return {i: k for k, i in enumerate(self._sentinels)}

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Returns {name: id} of the model's control pieces, its unknown piece, and the sentinels."""
        processor = self.processor
        pieces = [i for i in range(len(processor)) if processor.is_control(i) or processor.is_unknown(i)]
        sentinels = {f"<extra_id_{k}>": i for k, i in enumerate(self._sentinels)}
        return {processor.id_to_piece(i): i for i in pieces} | sentinels

    @functools.cached_property
    def _count(self) -> int:
        return max([len(self.processor), *(i + 1 for i in self._sentinels)])

    @property
    def size(self) -> int:
        return self._count

    @property
    def pad_id(self) -> int:
        return max(self.processor.pad_id(), 0)

    @property
    def eos_id(self) -> int:
        return self._role("eos", self.processor.eos_id())

    @property
    def unk_id(self) -> int:
        return self.processor.unk_id()

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
        more = b" special tokens" * self.special_tokens
        return digest(self.processor.serialized_model_proto() + str(self.extra_ids).encode() + more)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.special_tokens:
            return [self.places(text)[0] for text in texts]
        try:  # one thread: starting more would cost more than encoding a few texts
            return self.processor.encode(list(texts), num_threads=1, return_type="numpy")
        except (UnicodeEncodeError, TypeError, ValueError):
            for text in texts:
                utf8(text)  # the error names the text
            raise

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return places_with_names(text, self.special_ids, self._places) if self.special_tokens else self._places(text)

    def _places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        utf8(text)  # raises DataError for half of a surrogate pair
        pieces = self.processor.encode(text, return_type="proto").pieces
        places_T2 = np.array([(piece.begin, piece.end) for piece in pieces], np.int64).reshape(-1, 2)
        return np.array([piece.id for piece in pieces], np.int32), character_places(text, places_T2)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        names = self._index_of_sentinel
        return [f"<extra_id_{names[i]}>" if i in names else self.processor.id_to_piece(i) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        hidden = {self.pad_id, *(self.processor.piece_to_id(s) for s in CONTROL_SYMBOLS)} - {self.unk_id}
        kept = [i for i in before_eos(ids, self.eos_id) if i not in hidden]
        return text_with_names(kept, {}, self._index_of_sentinel.get, self._text)

    def show(self, ids: Iterable[int]) -> str:
        names = {self.pad_id: "<pad>", self.eos_id: "</s>"}
        for symbol in CONTROL_SYMBOLS:
            if self.processor.piece_to_id(symbol) != self.unk_id:
                names[self.processor.piece_to_id(symbol)] = symbol
        return text_with_names(ids, names, self._index_of_sentinel.get, self._text)

    def sentinel(self, k: int) -> int:
        if not 0 <= k < len(self._sentinels):
            raise too_few_sentinels(k, len(self._sentinels))
        return self._sentinels[k]

    @property
    def word_starts(self) -> np.ndarray:
        return self._word_starts

    @functools.cached_property
    def _word_starts(self) -> np.ndarray:
        """Marks the pieces that begin with "▁", as fairseq does. So punctuation without "▁" belongs to the word before
        it."""
        pieces = self.processor.id_to_piece(list(range(len(self.processor))))
        out = np.zeros(self.size, bool)
        out[: len(pieces)] = [piece.startswith("▁") for piece in pieces]
        return out

    def _text(self, ids: Sequence[int]) -> str:
        return self.processor.decode([i for i in ids if i < len(self.processor)])

    def _symbol(self, symbol: str) -> int:
        i = self.processor.piece_to_id(symbol)
        return self._role(symbol, -1 if i == self.unk_id else i)

    def _role(self, role: str, i: int) -> int:
        if i < 0:
            raise ConfigError(
                f"the vocabulary {self.path} has no {role}; encoder-only models need [CLS], [SEP] and [MASK], "
                "model.fairseq_marks needs [CLS]. `t5x-lite vocab` trains a vocabulary with them"
            )
        return i
