"""Vocabularies from Hugging Face's `tokenizers`: WordPiece, byte-level BPE, and any other tokenizer.json."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data.vocabulary import (
    HOW_TO_GET_ONE,
    WHITE_SPACE,
    before_eos,
    decoded,
    digest,
    json_object,
    read_file,
    text_with_names,
    too_few_sentinels,
    utf8,
)
from t5x_lite.errors import ConfigError, DataError

ADDED = "added_tokens.json"
# Tokenizers of transformers that cut texts as BERT's does, given a vocab.txt, or as GPT-2's, given a vocab.json.
WORD_PIECE_CLASSES = (
    "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer",
    "MPNetTokenizer", "LayoutLMTokenizer", "RetriBertTokenizer", "DPRQuestionEncoderTokenizer",
    "DPRContextEncoderTokenizer", "DPRReaderTokenizer", "PreTrainedTokenizer",
)  # fmt: skip
BYTE_PAIR_CLASSES = (
    "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "CodeGenTokenizer", "LEDTokenizer",
    "DebertaTokenizer", "PreTrainedTokenizer",
)  # fmt: skip

# The usual tokens of each role, for tokenizers without a tokenizer_config.json that names them.
ROLE_TOKENS = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]"),
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
# {role: other roles}. If the tokenizer has no token for the role, the token of one of the other roles stands in. For
# example, RoBERTa's [CLS] is <s>, BERT ends texts with [SEP], and GPT-2 has only <|endoftext|>.
STAND_INS = {
    "pad": ("eos", "sep"),
    "eos": ("sep",),
    "bos": ("cls", "eos"),
    "unk": ("eos",),
    "cls": ("bos",),
    "sep": ("eos",),
    "mask": (),
}


@dataclasses.dataclass(frozen=True)
class TokenizerVocabulary:
    """A tokenizer of Hugging Face's `tokenizers`, from one of three kinds of file:

        tokenizer.json             any tokenizer; its settings for truncation and padding are ignored
        vocab.txt                  BERT's WordPiece; lowercases texts if `do_lower_case` is true in a
                                   tokenizer_config.json beside it; if that entry is missing, lowercases texts
                                   unless the file holds cased pieces
        vocab.json (+ merges.txt)  GPT-2's and RoBERTa's byte-level BPE

    The token of a role is the one given in a tokenizer_config.json or special_tokens_map.json beside the file; else the
    usual one (ROLE_TOKENS); else the token of a different role (STAND_INS). Sentinels are the tokens `<extra_id_k>`.
    The file is read on first use.

    special_tokens: whether the name of a special token in a text becomes the token's id. It does not if
        tokenizer_config.json sets `split_special_tokens`.
    """

    path: Path
    special_tokens: bool = False

    def __getstate__(self) -> dict:  # without the tokenizer: each worker process reads the file itself
        return {"path": self.path, "special_tokens": self.special_tokens}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        """Returns the entries of special_tokens_map.json and tokenizer_config.json beside the tokenizer's file."""
        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            beside = Path(self.path).parent / name
            if beside.is_file():
                settings |= json_object(beside, read_file(beside))
        return settings

    @functools.cached_property
    def _contents(self) -> dict[Path, bytes]:
        path = Path(self.path)
        paths = [path, path.with_name("merges.txt")] if path.name == "vocab.json" else [path]
        return {p: read_file(p) for p in paths}

    @functools.cached_property
    def tokenizer(self):
        """Returns the `tokenizers.Tokenizer`. Raises ConfigError if the file holds no usable tokenizer."""
        import tokenizers

        path, contents = Path(self.path), list(self._contents.values())
        try:
            if path.suffix == ".txt":
                self._require_class("vocab.txt", WORD_PIECE_CLASSES)
                tokenizer = self._word_piece(decoded(path, contents[0]))
            elif path.name == "vocab.json":
                self._require_class("vocab.json", BYTE_PAIR_CLASSES)
                tokenizer = self._byte_pairs(json_object(path, contents[0]), decoded(path, contents[1]))
            else:
                tokenizer = tokenizers.Tokenizer.from_str(decoded(path, contents[0]))
                if overruled := self._overruled:
                    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(**overruled)
            for token, i in self._added.items():
                special = token in self._special_names
                tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=not special, special=special)])
                if tokenizer.token_to_id(token) != i:
                    raise ConfigError(
                        f"{path.with_name(ADDED)} gives {token[:40]!r} the id {i}; it must follow the ids before it"
                    )
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = not self.special_tokens or bool(
                self._settings.get("split_special_tokens")
            )
            # Some files load, but lack parts that encoding needs.
            tokenizer.encode("a \x00 é 1", add_special_tokens=False)
        except (ConfigError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exceptions; its panics are BaseExceptions
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{path} ({len(contents[0])} bytes, sha256 {digest(contents[0])}) is not a usable tokenizer: "
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
                f"{self.path} ({len(pieces)} lines) is not a BERT vocabulary: it has no line {unknown!r}; "
                "give a vocab.txt with one piece a line, or a tokenizer.json"
            )
        is_cased = any(p != p.lower() for p in ids if not re.fullmatch(r"\[.*\]|<.*>", p))
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unknown))
        options = {"lowercase": self._settings.get("do_lower_case", not is_cased)} | self._normalization
        tokenizer.normalizer = normalizers.BertNormalizer(**options)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    def _byte_pairs(self, ids: dict[str, Any], merges: str):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

        if missing := set(pre_tokenizers.ByteLevel.alphabet()) - set(ids):
            raise ConfigError(
                f"{self.path} is not byte-level BPE: it lacks {len(missing)} of the 256 bytes; give its tokenizer.json"
            )
        lines = [line for line in merges.split("\n") if line.strip() and not line.startswith("#version")]
        pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
        if wrong := [n for n, pair in enumerate(pairs) if len(pair) != 2 or pair[0] + pair[1] not in ids]:
            raise ConfigError(
                f"{Path(self.path).with_name('merges.txt')}: merge {wrong[0] + 1}, {lines[wrong[0]][:40]!r}, is "
                "not two pieces whose concatenation is in vocab.json; do both files belong to the same model?"
            )
        tokenizer = Tokenizer(models.BPE(ids, pairs))  # type: ignore[arg-type]
        spaced = bool(self._settings.get("add_prefix_space", False))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # a word's place begins after its space
        return tokenizer

    def _require_class(self, file: str, classes: Sequence[str]) -> None:
        """Raises ConfigError if the settings name a tokenizer that cuts texts differently from the one of this file."""
        cuts = self._settings.get("word_tokenizer_type", "basic")
        if (self._class and self._class not in classes) or cuts != "basic":
            raise ConfigError(
                f"{Path(self.path).with_name('tokenizer_config.json')}: tokenizer_class={self._class!r} (words: "
                f"{cuts}) cannot be read from a {file}; give a tokenizer.json, or a {file} of {', '.join(classes)}"
            )

    @property
    def _class(self) -> str:
        """Returns the name of the tokenizer's class in transformers, without Fast; "" if no file names it."""
        return str(self._settings.get("tokenizer_class") or "").removesuffix("Fast")

    @functools.cached_property
    def _normalization(self) -> dict[str, Any]:
        """Returns the settings of BERT's normalizer, besides lowercasing, that the files beside the tokenizer set."""
        names = {"strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}
        return {ours: self._settings[name] for name, ours in names.items() if self._settings.get(name) is not None}

    @functools.cached_property
    def _overruled(self) -> dict[str, Any]:
        """Returns the settings of BERT's normalizer that the files beside a tokenizer.json change, as in transformers.

        Returns {} if they change none, or if the tokenizer is not BERT's.
        """
        path = Path(self.path)
        if path.suffix != ".json" or path.name == "vocab.json":
            return {}
        inside = json_object(path, self._contents[path]).get("normalizer") or {}
        if inside.get("type") != "BertNormalizer":
            return {}
        own = {key: inside[key] for key in ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")}
        is_named = self._class in WORD_PIECE_CLASSES and self._class != "PreTrainedTokenizer"  # lowercase by default
        lower = self._settings.get("do_lower_case", True if is_named else None)
        wanted = own | self._normalization | ({} if lower is None else {"lowercase": lower})
        return wanted if wanted != own else {}

    @functools.cached_property
    def _added(self) -> dict[str, int]:
        """Returns {token: id} of the added_tokens.json beside a vocab.txt or vocab.json, in the order of the ids."""
        beside = Path(self.path).with_name(ADDED)
        if Path(self.path).name not in ("vocab.txt", "vocab.json") or not beside.is_file():
            return {}
        return dict(sorted(json_object(beside, read_file(beside)).items(), key=lambda item: item[1]))

    @functools.cached_property
    def _special_names(self) -> set[str]:
        """Returns the tokens that the settings name as special."""
        named = [value for key, value in self._settings.items() if key.endswith("_token")]
        named += self._settings.get("additional_special_tokens") or []
        return {str(_content(value)) for value in named}

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return self.tokenizer.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def _roles(self) -> dict[str, int]:
        """Returns {role: id} for the roles for which the tokenizer has a token (its own or a stand-in)."""
        own: dict[str, int] = {}
        for role, usual in ROLE_TOKENS.items():
            named = _content(self._settings.get(f"{role}_token"))
            candidates = (named, *usual) if isinstance(named, str) else usual
            token = next((token for token in candidates if token in self._ids), None)
            if token is not None:
                own[role] = self._ids[token]
        stand_ins = {role: next((o for o in others if o in own), None) for role, others in STAND_INS.items()}
        return {role: own[o] for role, o in stand_ins.items() if o is not None} | own

    @functools.cached_property
    def _sentinels(self) -> dict[int, int]:
        """Returns {id: k} for the tokens `<extra_id_k>`."""
        tokens = (f"<extra_id_{k}>" for k in itertools.count())
        return {self._ids[token]: k for k, token in enumerate(itertools.takewhile(self._ids.__contains__, tokens))}

    @functools.cached_property
    def _specials(self) -> dict[int, str]:
        """Returns {id: token} for all tokens that are not text, without the sentinels."""
        added = {i: t.content for i, t in self.tokenizer.get_added_tokens_decoder().items() if t.special}
        roles = {i: str(self.tokenizer.id_to_token(i)) for i in self._roles.values()}
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
        """Returns whether the tokenizer puts `bos_id` before a text. (Llama's does, GPT-2's does not.)"""
        ids = self.tokenizer.encode("a", add_special_tokens=True).ids
        return len(ids) > 1 and ids[0] == self._roles.get("bos")

    @functools.cached_property
    def doubles_sep(self) -> bool | None:
        """Returns whether the tokenizer puts two [SEP] between two texts, as RoBERTa's does.

        Returns None if the tokenizer puts none there, so that it does not say.
        """
        encoding = self.tokenizer.encode("a", "a", add_special_tokens=True)
        between = [i for i in encoding.ids[1:-1] if i == self._roles.get("sep", self._roles.get("eos"))]
        return len(between) > 1 if between else None

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
        # Only where they apply: a fingerprint of 0.1, which did not read them, stays valid everywhere else.
        more = [json.dumps(extra, sort_keys=True).encode() for extra in (self._added, self._overruled) if extra]
        if Path(self.path).suffix == ".txt" and self._normalization:
            more.append(json.dumps(self._normalization, sort_keys=True).encode())
        if self.special_tokens:
            more.append(b"special tokens")
        return digest(b"\0".join([*self._contents.values(), settings.encode(), *more]))

    @functools.cached_property
    def lowercases(self) -> bool:
        """Returns whether the normalizer is BERT's and lowercases texts."""
        normalizer = json.loads(self.tokenizer.to_str())["normalizer"] or {}
        return normalizer.get("type") == "BertNormalizer" and bool(normalizer["lowercase"])

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                utf8(text)  # the error names the text
            raise
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        utf8(text)  # raises DataError for half of a surrogate pair
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(encoding.ids, np.int32), np.asarray(encoding.offsets, np.int64).reshape(-1, 2)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.tokenizer.id_to_token(i) or "" for i in ids]  # "" for an id without a token

    def join(self, pieces: Sequence[str]) -> str:
        """Returns the text of `pieces`. Strings that are not pieces stay unchanged."""
        decoder = self.tokenizer.decoder
        return " ".join(pieces) if decoder is None else decoder.decode(list(pieces))

    def decode(self, ids: Iterable[int]) -> str:
        hidden = self._specials.keys() - {self._roles.get("unk")}
        kept = [i for i in before_eos(ids, self._roles.get("eos", -1)) if i not in hidden]
        return text_with_names(kept, {}, self._sentinels.get, self._text)

    def show(self, ids: Iterable[int]) -> str:
        return text_with_names(ids, self._specials, self._sentinels.get, self._text)

    def sentinel(self, k: int) -> int:
        if not self._sentinels:
            raise DataError(
                f"the vocabulary {self.path} has no sentinels <extra_id_0>, …, which span corruption needs; "
                'use T5\'s, "bytes", or one that `t5x-lite vocab` trains'
            )
        if not 0 <= k < len(self._sentinels):
            raise too_few_sentinels(k, len(self._sentinels))
        return list(self._sentinels)[k]

    @property
    def word_starts(self) -> np.ndarray:
        return self._word_starts

    @functools.cached_property
    def _word_starts(self) -> np.ndarray:
        """Marks the ids that begin a word.

        In WordPiece, these are the pieces without "##", including punctuation, as in BERT's whole-word masks. In other
        models, they are the pieces that begin with white space ("▁", or "Ġ" and the like in byte-level BPE).
        Punctuation then belongs to the word before it, as in fairseq.
        """
        from tokenizers import models

        pieces = [self.tokenizer.id_to_token(i) or "" for i in range(self.size)]
        model = self.tokenizer.model
        if isinstance(model, models.WordPiece):
            return np.array([not piece.startswith(model.continuing_subword_prefix) for piece in pieces])
        # Byte-level BPE writes a byte of white space as the character 256 above it: " " as "Ġ". In other models "Ġ" is
        # a letter. The tokenizer's file says whether it is byte-level.
        steps = (self.tokenizer.pre_tokenizer, self.tokenizer.decoder)
        by_bytes = any(step is not None and b'"ByteLevel"' in step.__getstate__() for step in steps)
        marks = tuple(chr(256 + ord(c)) for c in WHITE_SPACE) if by_bytes else ("▁",)
        return np.array([piece.startswith(marks) for piece in pieces])

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.size], skip_special_tokens=False)

    def _role(self, role: str) -> int:
        if role not in self._roles:
            raise ConfigError(
                f"the vocabulary {self.path} has no token for {role} (usually {' or '.join(ROLE_TOKENS[role][:2])}); "
                f'name it in a tokenizer_config.json beside it, {{"{role}_token": "…"}}, or use a different vocabulary'
            )
        return self._roles[role]


def _content(token: Any) -> Any:
    """Returns the text of a token in a JSON file, which may hold it with its settings: {"content": text, …}."""
    return token.get("content") if isinstance(token, dict) else token
