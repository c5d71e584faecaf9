"""Vocabularies: text to token ids and back, with the special ids known by role.

Roles are `pad_id`, `eos_id`, `unk_id`, `cls_id`, `sep_id`, `mask_id` and `sentinel(k)`; which numbers they are is
the vocabulary's affair and nobody else's. Text is text: a text that spells "[MASK]" or "</s>" gives no such id.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from t5x_lite import atomic
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.lookup import suggest

WHITE_SPACE = " \t\n\r\v\f"  # byte-level BPE writes each as the character 256 behind it
T5_MODELS = ("t5", "mt5", "umt5")  # whose sentinels stand behind, or in, a SentencePiece model
CONTROL_SYMBOLS = ("[CLS]", "[SEP]", "[MASK]")
HOW_TO_GET_ONE = (
    "`t5x-lite vocab` trains one, and `hf download google-bert/bert-base-uncased tokenizer.json --local-dir .` "
    "fetches a model's"
)
# Names that tokenizers of Hugging Face give the roles, where no tokenizer_config.json beside them says it.
ROLE_TOKENS = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]"),
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
# What stands in for a role that a tokenizer lacks: RoBERTa's [CLS] is <s>, BERT ends with [SEP], GPT-2 has only
# <|endoftext|>.
STAND_INS = {
    "pad": ("eos", "sep"),
    "eos": ("sep",),
    "bos": ("cls", "eos"),
    "unk": ("eos",),
    "cls": ("bos",),
    "sep": ("eos",),
    "mask": (),
}


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

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The int32 ids of a text, and where each stands in it: (begin, end) in characters, [ids, 2]."""
        ...

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary's file has it: "##ing", "▁the"."""
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

    @property
    def word_starts(self) -> np.ndarray:
        """bool [size]: the ids that begin a word, wherever they stand. Read off the pieces, as a decoder's text has
        had its spaces tidied up."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteVocabulary:
    """UTF-8 bytes, ByT5's layout (Xue et al. 2022, §3): pad 0, eos 1, unk 2, byte b is b + 3, then `extra_ids`.

    Sentinels count down from the last id. Without extra ids they are bytes, as ByT5's are: 0xFF, 0xFE, … down to
    0xC2, 62 of them. UTF-8 never uses the first eleven; each other begins a character, and is a sentinel where no
    byte that would go on with the character follows. [CLS] and [SEP] are 0xC0 and 0xC1, which UTF-8 never uses
    either; [MASK] is unk, as no byte is unknown.

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
        return _digest(f"bytes {self.extra_ids}".encode())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(_utf8(text), np.uint8).astype(np.int32) + 3 for text in texts]

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        (ids,) = self.encode([text])
        begins_T = np.arange(len(ids))
        return ids, _in_characters(text, np.stack([begins_T, begins_T + 1], axis=1))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.show([i]) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        kept = [i for i in _until(ids, self.eos_id) if i not in (self.cls_id, self.sep_id)]
        return _with_names(kept, {}, self._sentinel_index, self._text)

    def show(self, ids: Iterable[int]) -> str:
        names = {0: "<pad>", 1: "</s>", self.cls_id: "[CLS]", self.sep_id: "[SEP]", self.mask_id: "[MASK]"}
        return _with_names(ids, names, self._sentinel_index, self._text)

    def sentinel(self, k: int) -> int:
        count = self.extra_ids or 62
        if not 0 <= k < count:
            raise _too_few_sentinels(k, count)
        return self.size - 1 - k

    @property
    def word_starts(self) -> np.ndarray:
        """White space, which the word behind it is read with."""
        return np.isin(np.arange(self.size), np.frombuffer(WHITE_SPACE.encode(), np.uint8) + 3)

    def _sentinel_index(self, i: int) -> int | None:
        return self.size - 1 - i if i >= 259 else None

    def _text(self, ids: Sequence[int]) -> str:
        """Characters, and without extra ids the sentinels that stand between them. Parts of characters are left out."""
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


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary:
    """A SentencePiece model and `extra_ids` sentinels behind it: sentinel k is id size − 1 − k, as T5 has it.

    T5's own model has 32,000 pieces: 32,100 ids, sentinel 0 is 32,099. A model with pieces `<extra_id_0>`, … (mT5's,
    and a variant of T5's) uses those, and gets none behind it. [CLS], [SEP] and [MASK] must be pieces of the model
    (`t5x-lite vocab` puts them there). The file is read when first needed; `build`, if given, makes it then.
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
        model = _read(path)
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

    @functools.cached_property
    def _sentinels(self) -> list[int]:
        """Their ids, from sentinel 0."""
        pieces, unk = self._processor, self._processor.unk_id()
        for mark in ("<extra_id_{}>", "▁<extra_id_{}>"):
            inside = (pieces.piece_to_id(mark.format(k)) for k in itertools.count())
            if found := list(itertools.takewhile(lambda i: i != unk, inside)):
                return found
        return list(reversed(range(len(pieces), len(pieces) + self.extra_ids)))

    @functools.cached_property
    def _index_of_sentinel(self) -> dict[int, int]:
        return {i: k for k, i in enumerate(self._sentinels)}

    @functools.cached_property
    def _count(self) -> int:
        return max([len(self._processor), *(i + 1 for i in self._sentinels)])

    @property
    def size(self) -> int:
        return self._count

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
        try:  # one thread, as starting more costs more than a few texts
            return self._processor.encode(list(texts), num_threads=1, return_type="numpy")
        except (UnicodeEncodeError, TypeError, ValueError):
            for text in texts:
                _utf8(text)  # says which
            raise

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        _utf8(text)  # says what is none
        found = self._processor.encode(text, return_type="proto").pieces
        places_T2 = np.array([(piece.begin, piece.end) for piece in found], np.int64).reshape(-1, 2)
        return np.array([piece.id for piece in found], np.int32), _in_characters(text, places_T2)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(i) for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        hidden = {self.pad_id, *(self._processor.piece_to_id(s) for s in CONTROL_SYMBOLS)} - {self.unk_id}
        kept = [i for i in _until(ids, self.eos_id) if i not in hidden]
        return _with_names(kept, {}, self._index_of_sentinel.get, self._text)

    def show(self, ids: Iterable[int]) -> str:
        names = {self.pad_id: "<pad>", self.eos_id: "</s>"}
        for symbol in CONTROL_SYMBOLS:
            if self._processor.piece_to_id(symbol) != self.unk_id:
                names[self._processor.piece_to_id(symbol)] = symbol
        return _with_names(ids, names, self._index_of_sentinel.get, self._text)

    def sentinel(self, k: int) -> int:
        if not 0 <= k < len(self._sentinels):
            raise _too_few_sentinels(k, len(self._sentinels))
        return self._sentinels[k]

    @property
    def word_starts(self) -> np.ndarray:
        return self._word_starts

    @functools.cached_property
    def _word_starts(self) -> np.ndarray:
        """The pieces that begin with "▁", as fairseq has it: punctuation without one belongs to the word before it."""
        pieces = self._processor.id_to_piece(list(range(len(self._processor))))
        out = np.zeros(self.size, bool)
        out[: len(pieces)] = [piece.startswith("▁") for piece in pieces]
        return out

    def _text(self, ids: Sequence[int]) -> str:
        return self._processor.decode([i for i in ids if i < len(self._processor)])

    def _symbol(self, symbol: str) -> int:
        found = self._processor.piece_to_id(symbol)
        return self._role(symbol, -1 if found == self.unk_id else found)

    def _role(self, role: str, i: int) -> int:
        if i < 0:
            raise ConfigError(
                f"the vocabulary {self.path} has no {role}; encoder-only models need [CLS], [SEP] and [MASK], "
                "model.fairseq_marks [CLS]. "
                "`t5x-lite vocab` trains one that has them"
            )
        return i


@dataclasses.dataclass(frozen=True)
class TokenizerVocabulary:
    """A tokenizer of Hugging Face's `tokenizers`, from one of three kinds of file:

        tokenizer.json             any; truncation and padding that it may ask for are not done
        vocab.txt                  BERT's WordPiece; lower case unless it holds cased pieces, or `do_lower_case` in a
                                   tokenizer_config.json beside it says otherwise
        vocab.json (+ merges.txt)  GPT-2's and RoBERTa's byte-level BPE

    Roles are those that a tokenizer_config.json or special_tokens_map.json beside the file names, else the tokens
    that usually have them (ROLE_TOKENS), else what stands in for them (STAND_INS). Sentinels are its `<extra_id_k>`.
    The file is read when first needed.
    """

    path: Path

    def __getstate__(self) -> dict:  # each worker process reads the file
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """What the JSON files beside it say."""
        found: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            beside = Path(self.path).parent / name
            if beside.is_file():
                found |= _json_object(beside, _read(beside))
        return found

    @functools.cached_property
    def _contents(self) -> dict[Path, bytes]:
        path = Path(self.path)
        paths = [path, path.with_name("merges.txt")] if path.name == "vocab.json" else [path]
        return {p: _read(p) for p in paths}

    @functools.cached_property
    def _tokenizer(self):
        import tokenizers

        path, contents = Path(self.path), list(self._contents.values())
        try:
            if path.suffix == ".txt":
                tokenizer = self._word_piece(_text(path, contents[0]))
            elif path.name == "vocab.json":
                tokenizer = self._byte_pairs(_json_object(path, contents[0]), _text(path, contents[1]))
            else:
                tokenizer = tokenizers.Tokenizer.from_str(_text(path, contents[0]))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = True
            tokenizer.encode("a \x00 é 1", add_special_tokens=False)  # some lack what they need to encode at all
        except (ConfigError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exceptions, and panics are not even that
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{path} ({len(contents[0])} bytes, sha256 {_digest(contents[0])}) is no tokenizer that can be used: "
                f"{reason}. Get it again; {HOW_TO_GET_ONE}"
            ) from error
        return tokenizer

    def _word_piece(self, text: str):
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        pieces = text.removesuffix("\n").split("\n")
        ids = {piece.rstrip("\r"): i for i, piece in enumerate(pieces)}
        unknown = self._settings.get("unk_token", "[UNK]")
        if unknown not in ids:
            raise ConfigError(
                f"{self.path} ({len(pieces)} lines) is no vocabulary of BERT's kind: it has no line {unknown!r}; "
                "give a vocab.txt with a piece a line, or a tokenizer.json"
            )
        is_cased = any(p != p.lower() for p in ids if not re.fullmatch(r"\[.*\]|<.*>", p))
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self._settings.get("do_lower_case", not is_cased))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    def _byte_pairs(self, ids: dict[str, Any], merges: str):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        if missing := set(pre_tokenizers.ByteLevel.alphabet()) - set(ids):
            raise ConfigError(
                f"{self.path} is no byte-level BPE: it lacks {len(missing)} of the 256 bytes; give its tokenizer.json"
            )
        lines = [line for line in merges.split("\n") if line.strip() and not line.startswith("#version")]
        pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
        if wrong := [n for n, pair in enumerate(pairs) if len(pair) != 2 or pair[0] + pair[1] not in ids]:
            raise ConfigError(
                f"{Path(self.path).with_name('merges.txt')}: merge {wrong[0] + 1}, {lines[wrong[0]][:40]!r}, is "
                "not two pieces whose union is in vocab.json; are the two files of one model?"
            )
        tokenizer = Tokenizer(models.BPE(ids, pairs))  # type: ignore[arg-type]
        spaced = bool(self._settings.get("add_prefix_space", False))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def _roles(self) -> dict[str, int]:
        """The ids of the roles it has tokens for."""
        own: dict[str, int] = {}
        for role, usual in ROLE_TOKENS.items():
            named = self._settings.get(f"{role}_token")
            named = named.get("content") if isinstance(named, dict) else named
            names = (named, *usual) if isinstance(named, str) else usual
            found = next((token for token in names if token in self._ids), None)
            if found is not None:
                own[role] = self._ids[found]
        stand_ins = {role: next((o for o in others if o in own), None) for role, others in STAND_INS.items()}
        return {role: own[o] for role, o in stand_ins.items() if o is not None} | own

    @functools.cached_property
    def _sentinels(self) -> dict[int, int]:
        """{id: k} of the tokens `<extra_id_k>`."""
        tokens = (f"<extra_id_{k}>" for k in itertools.count())
        return {self._ids[token]: k for k, token in enumerate(itertools.takewhile(self._ids.__contains__, tokens))}

    @functools.cached_property
    def _specials(self) -> dict[int, str]:
        """{id: token} of all that is no text, but for sentinels."""
        added = {i: t.content for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}
        roles = {i: str(self._tokenizer.id_to_token(i)) for i in self._roles.values()}
        return {i: token for i, token in (added | roles).items() if i not in self._sentinels}

    @functools.cached_property
    def _count(self) -> int:
        return max(self._ids.values(), default=-1) + 1

    @property
    def size(self) -> int:
        return self._count

    @property
    def pad_id(self) -> int:
        return self._role("pad")

    @property
    def eos_id(self) -> int:
        return self._role("eos")

    @property
    def bos_id(self) -> int:
        return self._role("bos")

    @property
    def begins_with_bos(self) -> bool:
        """Whether its own file puts `bos_id` before a text, as Llama's does and GPT-2's does not."""
        ids = self._tokenizer.encode("a", add_special_tokens=True).ids
        return len(ids) > 1 and ids[0] == self._roles.get("bos")

    @property
    def unk_id(self) -> int:
        return self._role("unk")

    @property
    def cls_id(self) -> int:
        return self._role("cls")

    @property
    def sep_id(self) -> int:
        return self._role("sep")

    @property
    def mask_id(self) -> int:
        return self._role("mask")

    @property
    def fingerprint(self) -> str:
        keys = ("do_lower_case", "add_prefix_space", *(f"{role}_token" for role in ROLE_TOKENS))
        settings = json.dumps({key: self._settings.get(key) for key in keys}, sort_keys=True)
        return _digest(b"\0".join([*self._contents.values(), settings.encode()]))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                _utf8(text)  # says which
            raise
        return [np.asarray(encoding.ids, np.int32) for encoding in found]

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        _utf8(text)  # says what is none
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(found.ids, np.int32), np.asarray(found.offsets, np.int64).reshape(-1, 2)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._tokenizer.id_to_token(i) or "" for i in ids]  # "": there is none of this id

    def join(self, pieces: Sequence[str]) -> str:
        """The text of `pieces`; any other text among them stays as it is."""
        decoder = self._tokenizer.decoder
        return " ".join(pieces) if decoder is None else decoder.decode(list(pieces))

    def decode(self, ids: Iterable[int]) -> str:
        hidden = self._specials.keys() - {self._roles.get("unk")}
        kept = [i for i in _until(ids, self._roles.get("eos", -1)) if i not in hidden]
        return _with_names(kept, {}, self._sentinels.get, self._text)

    def show(self, ids: Iterable[int]) -> str:
        return _with_names(ids, self._specials, self._sentinels.get, self._text)

    def sentinel(self, k: int) -> int:
        if not self._sentinels:
            raise DataError(
                f"the vocabulary {self.path} has no sentinels <extra_id_0>, …, which span corruption needs; "
                'take T5\'s, "bytes", or one that `t5x-lite vocab` trains'
            )
        if not 0 <= k < len(self._sentinels):
            raise _too_few_sentinels(k, len(self._sentinels))
        return list(self._sentinels)[k]

    @property
    def word_starts(self) -> np.ndarray:
        return self._word_starts

    @functools.cached_property
    def _word_starts(self) -> np.ndarray:
        """WordPiece: the pieces without "##", punctuation too, as in BERT's own whole-word masks. Others: the pieces
        that begin with white space, "▁" or in byte-level BPE "Ġ" and its like; punctuation belongs to the word before
        it, as in fairseq's."""
        from tokenizers import models

        pieces = [self._tokenizer.id_to_token(i) or "" for i in range(self.size)]
        model = self._tokenizer.model
        if isinstance(model, models.WordPiece):
            return np.array([not piece.startswith(model.continuing_subword_prefix) for piece in pieces])
        # "Ġ" is a letter to all other models: who writes bytes says so in the tokenizer's file.
        steps = (self._tokenizer.pre_tokenizer, self._tokenizer.decoder)
        by_bytes = any(step is not None and b'"ByteLevel"' in step.__getstate__() for step in steps)
        marks = tuple(chr(256 + ord(c)) for c in WHITE_SPACE) if by_bytes else ("▁",)
        return np.array([piece.startswith(marks) for piece in pieces])

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([i for i in ids if i < self.size], skip_special_tokens=False)

    def _role(self, role: str) -> int:
        if role not in self._roles:
            raise ConfigError(
                f"the vocabulary {self.path} has no token for {role} (usually {' or '.join(ROLE_TOKENS[role][:2])}); "
                f'name it in a tokenizer_config.json beside it, {{"{role}_token": "…"}}, or take another vocabulary'
            )
        return self._roles[role]


def load(spec: str) -> Vocabulary:
    """The vocabulary that a config names: "bytes", a SentencePiece `.model`, a `tokenizer.json`, a `vocab.txt`, a
    `vocab.json` with its `merges.txt`, or a directory that holds one of these. ConfigError when it cannot be used.

    A directory of another model than T5 gets no extra ids behind its SentencePiece model; ByT5's has no file to read.
    """
    if spec == "bytes":
        return ByteVocabulary()
    path, extra_ids = Path(spec).expanduser(), 100
    if path.is_dir():
        said = _said_of_the_model(path)
        if said.tokenizer.startswith("ByT5"):
            return ByteVocabulary()
        path, extra_ids = _in_directory(path, said), 100 if said.is_t5 else 0
    if path.suffix == ".model":
        vocabulary = SentencePieceVocabulary(path, extra_ids)
    elif path.suffix in (".json", ".txt"):
        vocabulary = TokenizerVocabulary(path)
    else:
        near = suggest(spec, ["bytes"])
        what = f"there is no {spec!r}" if "/" in spec and not path.exists() else f"unknown vocabulary {spec!r}"
        raise ConfigError(
            f"{what}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + 'give "bytes", or a SentencePiece .model, a tokenizer.json, a vocab.txt, or a directory that holds one'
        )
    _ = vocabulary.size  # a missing or broken file is found here, not at the first batch
    return vocabulary


@dataclasses.dataclass(frozen=True)
class _Said:
    """What the JSON files of a directory say of its model. tokenizer: the class of transformers, "" where none is
    named. is_t5: T5's and its kin's, or nothing is said (a vocabulary of our own training)."""

    tokenizer: str
    is_t5: bool


def _said_of_the_model(directory: Path) -> _Said:
    names = ("config.json", "huggingface.json", "special_tokens_map.json", "tokenizer_config.json")
    there = [directory / name for name in names if (directory / name).is_file()]
    said = {key: value for path in there for key, value in _json_object(path, _read(path)).items()}
    tokenizer = str(said.get("tokenizer_class") or "")
    is_silent = not tokenizer and not any(path.name in names[2:] for path in there)
    if "model_type" in said:
        return _Said(tokenizer, said["model_type"] in T5_MODELS)
    marked = "<extra_id_" in json.dumps(
        [said.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    )
    return _Said(tokenizer, marked or tokenizer.startswith(("T5", "MT5")) or is_silent)


def _in_directory(directory: Path, said: _Said) -> Path:
    """The file to read of a model's directory. T5's SentencePiece is four times as fast as its tokenizer.json; other
    models' does not do all that their tokenizers do (ALBERT's are lower case)."""
    same = said.is_t5 and (not said.tokenizer or said.tokenizer.startswith(("T5", "MT5")))
    names = ("spiece.model", "tokenizer.json") if same else ("tokenizer.json", "spiece.model")
    for name in (*names, "vocab.json", "vocab.txt"):
        if (directory / name).is_file():
            return directory / name
    models = sorted(directory.glob("*.model"))
    if len(models) == 1:
        return models[0]
    found = ", ".join(p.name for p in models) or "none of them"
    raise ConfigError(
        f"the directory {directory} has {found}; a vocabulary is its spiece.model, tokenizer.json, vocab.json with "
        "merges.txt, or vocab.txt. Give the file itself"
    )


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
    atomic.write(output, model.getvalue())
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


def _in_characters(text: str, bytes_T2: np.ndarray) -> np.ndarray:
    """(begin, end) in bytes of UTF-8 as the characters they touch.

    >>> _in_characters("aé", np.array([[0, 1], [1, 2], [2, 3]])).tolist()
    [[0, 1], [1, 2], [1, 2]]
    """
    begun = np.cumsum((np.frombuffer(_utf8(text) + b"\0", np.uint8) & 0xC0) != 0x80)  # up to each byte, with it
    begins, ends = bytes_T2.T
    return np.stack([begun[begins] - 1, np.where(ends > 0, begun[ends - 1], 0)], axis=1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        near = suggest(path.name, [p.name for p in path.parent.glob(f"*{path.suffix}")]) if path.parent.is_dir() else []
        hint = f"did you mean {path.parent / near[0]}?" if near else HOW_TO_GET_ONE
        raise ConfigError(f"cannot read the vocabulary {path}: {error.strerror}; {hint}") from error


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; {HOW_TO_GET_ONE}") from None


def _json_object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(_text(path, data))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} ({len(data)} bytes) is not JSON: {error}; get the file again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is a JSON {type(found).__name__}, not an object; get the file again")
    return found


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text with half a surrogate pair ({text[error.start]!a} at character {error.start} of "
            f"{text[:60]!a}); it is no Unicode text: correct or drop it"
        ) from None


def _too_few_sentinels(k: int, count: int) -> DataError:
    return DataError(
        f"span {k + 1} of a text needs more sentinels than the vocabulary's {count}; "
        "shorten data.length or raise data.mean_noise_span_length"
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _until(ids: Iterable[int], eos_id: int) -> Iterable[int]:
    for i in ids:
        if i == eos_id:
            return
        yield int(i)


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
