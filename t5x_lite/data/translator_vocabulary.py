"""Vocabularies of M2M-100 and Marian. A SentencePiece model cuts texts, and a vocab.json gives its pieces ids."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data import tokenizer_settings
from t5x_lite.data.languages import M2M_100, Languages, of_class
from t5x_lite.data.sentencepiece_vocabulary import SentencePieceVocabulary
from t5x_lite.data.vocabulary import (
    ReadOnUse,
    before_eos,
    character_places,
    digest,
    id_of_role,
    json_object,
    places_with_names,
    read_file,
    text_with_names,
    utf8,
)
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import lookup

# {class of transformers: the SentencePiece models of inputs and of targets}
MODELS = {
    "M2M100Tokenizer": ("sentencepiece.bpe.model", "sentencepiece.bpe.model"),
    "MarianTokenizer": ("source.spm", "target.spm"),
}
# {class: {role: token}}, for roles that the settings do not name.
TOKENS = {
    "M2M100Tokenizer": {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "sep": "</s>"},
    "MarianTokenizer": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
}


@dataclasses.dataclass(frozen=True)
class TranslatorVocabulary(ReadOnUse):
    """The tokenizer of a translator, from a vocab.json and the SentencePiece models beside it.

    Reads texts as transformers' M2M100Tokenizer and MarianTokenizer do; the settings beside the file say which one.

    M2M-100: the marks of languages, `__en__` and so on, have the ids after the pieces of vocab.json.
    Marian: source.spm cuts inputs and target.spm cuts targets (`for_targets`); source.spm joins the pieces of decoded
        texts. A text may begin with the code of its target language, such as ">>fra<<". This is one token, whether or
        not special tokens are read, because it is a part of every input. Punctuation is not normalised. transformers
        normalises it only where the package sacremoses is installed, and otherwise warns.

    Pieces that vocab.json lacks are unknown. `decode` drops unknown tokens, as transformers does, and all languages.
    (transformers drops those that the settings list as special tokens.) The files are read on first use.

    special_tokens: whether the name of a special token in a text becomes the token's id. It does not if
        tokenizer_config.json sets `split_special_tokens`.
    of_targets: whether `encode` reads targets.
    """

    path: Path
    special_tokens: bool = False
    of_targets: bool = False

    @functools.cached_property
    def for_targets(self) -> "TranslatorVocabulary":
        """Returns the vocabulary that encodes targets."""
        files = MODELS[self._kind]
        return self if files[0] == files[1] else dataclasses.replace(self, of_targets=True)

    @functools.cached_property
    def settings(self) -> tokenizer_settings.TokenizerSettings:
        """Returns what the files beside vocab.json say. Raises ConfigError for what is not supported."""
        settings = tokenizer_settings.read(Path(self.path).parent)
        lookup("tokenizer_class of a vocab.json with a SentencePiece model", settings.kind, MODELS)
        if options := settings.entries.get("sp_model_kwargs"):
            raise ConfigError(
                f"{settings.directory}: sp_model_kwargs={options!r} is not supported with {settings.kind}; remove the "
                "key, so that texts are cut in the most probable way"
            )
        return settings

    @property
    def _kind(self) -> str:
        return self.settings.kind

    @functools.cached_property
    def _contents(self) -> tuple[bytes, ...]:
        path = Path(self.path)
        return tuple(
            read_file(p) for p in (path, *(path.with_name(name) for name in dict.fromkeys(MODELS[self._kind])))
        )

    def _model(self, number: int) -> Any:
        """Returns the SentencePiece processor of inputs (0) or targets (1)."""
        return SentencePieceVocabulary(Path(self.path).with_name(MODELS[self._kind][number]), 0).processor

    @functools.cached_property
    def processor(self) -> Any:
        """Returns the `sentencepiece.SentencePieceProcessor` that cuts texts."""
        return self._model(int(self.of_targets))

    @functools.cached_property
    def _joiner(self) -> Any:
        return self._model(0) if self.of_targets else self.processor

    @functools.cached_property
    def _pieces(self) -> dict[str, int]:
        """Returns {piece: id} of vocab.json. Raises ConfigError if it is something else, or lacks a special token."""
        path = Path(self.path)
        pieces = json_object(path, self._contents[0])
        if sorted(pieces.values(), key=str) != sorted(range(len(pieces)), key=str):
            raise ConfigError(f"{path}: must give {len(pieces)} pieces the ids 0 to {len(pieces) - 1}; get it again")
        if missing := [token for token in self._roles.values() if token not in pieces]:
            raise ConfigError(
                f"{path}: lacks the special token {missing[0]!r}; get it again, or name it in tokenizer_config.json"
            )
        return pieces

    @functools.cached_property
    def _roles(self) -> dict[str, str]:
        return {role: self.settings.text(f"{role}_token") or token for role, token in TOKENS[self._kind].items()}

    @functools.cached_property
    def _marks(self) -> dict[str, int]:
        """Returns {code: id} of the languages of M2M-100."""
        codes: tuple[str, ...] = ()
        if self._kind == "M2M100Tokenizer":
            codes = lookup("language_codes", self.settings.entries.get("language_codes") or "m2m100", M2M_100)
        return {code: len(self._pieces) + i for i, code in enumerate(codes)}

    @functools.cached_property
    def languages(self) -> Languages | None:
        """Returns the languages of M2M-100; None for Marian."""
        return of_class(self._kind, self.settings.entries, self._marks, self._marks)

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Returns {name: id} of the special tokens that a text can spell.

        Raises ConfigError if the settings name a token that is neither a piece nor a language, or give it another id.
        """
        known = self._pieces | {f"__{code}__": i for code, i in self._marks.items()}
        names = dict.fromkeys((*self._roles.values(), *(token["content"] for token in self.settings.special())))
        given = {token["content"]: i for i, token in self.settings.added.items()}
        new = (name for name in names if name not in self._pieces and name not in given)
        after = itertools.count(len(self._pieces.keys() | given.keys()))
        given |= {name: next(after) for name in new}  # the ids that transformers would give them
        for name, i in given.items():
            if known.get(name) != i:
                what = (
                    "a piece of vocab.json or a language" if name not in known else f"the token with id {known[name]}"
                )
                raise ConfigError(
                    f"{self.settings.directory}: the settings give the added or special token {name[:40]!r} the id "
                    f"{i}, but it must be {what}; remove it"
                )
        for token in self.settings.added.values():
            if not token["special"] or token["lstrip"] or token["rstrip"] or token["single_word"]:
                raise ConfigError(
                    f"{self.settings.directory}: the added token {token['content'][:40]!r} must be special, without "
                    "lstrip, rstrip and single_word; correct added_tokens_decoder or added_tokens.json"
                )
        return {name: known[name] for name in (*names, *given)}

    @functools.cached_property
    def _ids_of_text(self) -> dict[str, int]:
        """Returns {piece: id} without special tokens, which no text can spell."""
        return {piece: i for piece, i in self._pieces.items() if piece not in self.special_ids}

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        """Returns {id: token} of special tokens and languages."""
        return {i: f"__{code}__" for code, i in self._marks.items()} | {i: name for name, i in self.special_ids.items()}

    @functools.cached_property
    def _spelled(self) -> dict[int, str]:
        return {i: piece for piece, i in self._pieces.items()} | self._names

    @property
    def size(self) -> int:
        return len(self._spelled)

    pad_id, eos_id, unk_id, sep_id, mask_id = map(id_of_role, ("pad", "eos", "unk", "sep", "mask"))
    cls_id = id_of_role("bos")

    @property
    def fingerprint(self) -> str:
        described: Mapping[str, Any] = {"kind": self._kind, "special": self.special_ids, "targets": self.of_targets}
        more = b" special tokens" * self._reads_special
        return digest(b"\0".join([*self._contents, json.dumps(described, sort_keys=True).encode() + more]))

    @property
    def _reads_special(self) -> bool:
        return self.special_tokens and not self.settings.entries.get("split_special_tokens")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._reads_special:
            return [self.places(text)[0] for text in texts]
        return [self._places(text)[0] for text in texts]

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return places_with_names(text, self.special_ids, self._places) if self._reads_special else self._places(text)

    def _places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        utf8(text)  # raises DataError for half of a surrogate pair
        begin = text.find("<<") + 2 if self._kind == "MarianTokenizer" and text.startswith(">>") else 0
        begin = begin if begin > 1 else 0  # the end of a target language's code
        rest, get, unknown = text[begin:], self._ids_of_text.get, self.unk_id
        pieces = self.processor.encode(rest, return_type="proto").pieces
        places_T2 = np.array([(piece.begin, piece.end) for piece in pieces], np.int64).reshape(-1, 2)
        places_T2 = character_places(rest, places_T2) + begin
        ids = [get(piece.piece, unknown) for piece in pieces]
        if begin:
            ids, places_T2 = [get(text[:begin], unknown), *ids], np.concatenate([[[0, begin]], places_T2])
        return np.array(ids, np.int32), places_T2

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._spelled.get(int(i), "") for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return self._text(i for i in before_eos(ids, self.eos_id) if i not in self._names)

    def show(self, ids: Iterable[int]) -> str:
        return text_with_names(ids, self._names, lambda i: None, self._text)

    def sentinel(self, k: int) -> int:
        raise DataError(
            f"the vocabulary {self.path} has no sentinels <extra_id_0>, …, which span corruption needs; use T5's, "
            '"bytes", or one that `t5x-lite vocab` trains'
        )

    @property
    def word_starts(self) -> np.ndarray:
        """Marks the pieces that begin with "▁"."""
        return self._word_starts

    @functools.cached_property
    def _word_starts(self) -> np.ndarray:
        return np.array([self._spelled[i].startswith("▁") for i in range(self.size)])

    def _text(self, ids: Iterable[int]) -> str:
        pieces = [self._spelled[i] for i in ids if i in self._spelled]
        return self._joiner.decode(pieces).replace("▁", " ").strip() if pieces else ""

    def _role(self, role: str) -> int:
        if role not in self._roles:
            raise ConfigError(f"the vocabulary {self.path} has no token for {role}; use a different vocabulary")
        return self._pieces[self._roles[role]]
