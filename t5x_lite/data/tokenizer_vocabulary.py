"""Vocabularies from Hugging Face's `tokenizers`: WordPiece, byte-level BPE, and any other tokenizer.json."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data import tokenizer_files, tokenizer_settings
from t5x_lite.data.languages import Languages, of_class
from t5x_lite.data.vocabulary import (
    HOW_TO_GET_ONE,
    WHITE_SPACE,
    ReadOnUse,
    before_eos,
    digest,
    id_of_role,
    read_file,
    text_with_names,
    too_few_sentinels,
    utf8,
)
from t5x_lite.errors import ConfigError, DataError, one_line

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


def _with_our_errors(method: Callable) -> Callable:
    """Returns a method of TokenizerVocabulary that raises ConfigError where the library fails on a text.

    A tokenizer.json that loads can still make the library panic, for example by a regular expression that takes
    exponential time (the library gives up after 0.3 s). The class of a panic is a BaseException and cannot be imported.
    """

    @functools.wraps(method)
    def wrapped(self: "TokenizerVocabulary", *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            raise ConfigError(f"{self.path}: the tokenizer fails on a text: {one_line(error)}; get it again") from None

    return wrapped


@dataclasses.dataclass(frozen=True)
class TokenizerVocabulary(ReadOnUse):
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

    @functools.cached_property
    def settings(self) -> tokenizer_settings.TokenizerSettings:
        """Returns what the files beside the tokenizer's file say."""
        settings = tokenizer_settings.read(Path(self.path).parent)
        if Path(self.path).suffix == ".txt" or Path(self.path).name == "vocab.json":
            return settings
        # As in transformers: the marks in a tokenizer.json overrule these keys.
        entries = {k: v for k, v in settings.entries.items() if k not in ("add_bos_token", "add_eos_token")}
        return dataclasses.replace(settings, entries=entries)

    @functools.cached_property
    def _contents(self) -> dict[Path, bytes]:
        path = Path(self.path)
        paths = [path, path.with_name("merges.txt")] if path.name == "vocab.json" else [path]
        return {p: read_file(p) for p in paths}

    @property
    def tokenizer(self):
        """Returns the `tokenizers.Tokenizer`. Raises ConfigError if the file holds no usable tokenizer."""
        return self._loaded[0]

    @functools.cached_property
    def _loaded(self) -> tuple[Any, dict[str, Any]]:
        """Returns the tokenizer, and what the settings change of the tokenizer that the file alone describes."""
        path, contents = Path(self.path), list(self._contents.values())
        try:
            tokenizer, changes = tokenizer_files.load(path, contents, self.settings)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            splits = bool(self.settings.entries.get("split_special_tokens"))
            tokenizer.encode_special_tokens = splits or not self.special_tokens
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
        return tokenizer, changes

    @functools.cached_property
    @_with_our_errors
    def _reader(self):
        """Returns the tokenizer that encodes texts.

        The pieces of a Unigram model include the special tokens, which a text could spell. If texts are read without
        special tokens, these pieces of the reader begin with a space, because no word does. Their score is 0; the score
        of a piece of text is the logarithm of a probability.
        """
        from tokenizers import Tokenizer

        tokenizer = self.tokenizer
        if not tokenizer.encode_special_tokens or type(tokenizer.model).__name__ != "Unigram":
            return tokenizer
        described, special = json.loads(tokenizer.to_str()), self._specials.keys() | self._sentinels.keys()
        vocab = described["model"]["vocab"]
        described["model"]["vocab"] = [
            [" " * (i in special and score == 0) + piece, score] for i, (piece, score) in enumerate(vocab)
        ]
        described["added_tokens"] = [t for t in described["added_tokens"] if t["id"] >= len(vocab) or not t["special"]]
        reader = Tokenizer.from_str(json.dumps(described))
        reader.encode_special_tokens = True
        return reader

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return self.tokenizer.get_vocab(with_added_tokens=True)

    @functools.cached_property
    def _roles(self) -> dict[str, int]:
        """Returns {role: id} for the roles for which the tokenizer has a token (its own or a stand-in)."""
        own: dict[str, int] = {}
        for role, usual in ROLE_TOKENS.items():
            named = self.settings.text(f"{role}_token")
            candidates = (named, *usual) if named else usual
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

    pad_id, eos_id, bos_id, unk_id = map(id_of_role, ("pad", "eos", "bos", "unk"))
    cls_id, sep_id, mask_id = map(id_of_role, ("cls", "sep", "mask"))

    @property
    @_with_our_errors
    def begins_with_bos(self) -> bool:
        """Returns whether the tokenizer puts `bos_id` before a text. (Llama's does, GPT-2's does not.)"""
        ids = self.tokenizer.encode("a", add_special_tokens=True).ids
        return len(ids) > 1 and ids[0] == self._roles.get("bos")

    @functools.cached_property
    @_with_our_errors
    def doubles_sep(self) -> bool | None:
        """Returns whether the tokenizer puts two [SEP] between two texts, as RoBERTa's does.

        Returns None if the tokenizer puts none there, so that it does not say.
        """
        encoding = self.tokenizer.encode("a", "a", add_special_tokens=True)
        between = [i for i in encoding.ids[1:-1] if i == self._roles.get("sep", self._roles.get("eos"))]
        return len(between) > 1 if between else None

    @functools.cached_property
    @_with_our_errors
    def unusual_marks(self) -> str:
        """Returns the tokens that the tokenizer makes of two texts, as "token:type token:type …".

        Returns "" if they are [CLS] A [SEP] B [SEP], with B and the last [SEP] of type 1, or [CLS] A [SEP] [SEP] B
        [SEP], or if the tokenizer adds no marks.
        """
        single, pair = self.tokenizer.encode("a"), self.tokenizer.encode("a", "a")
        text = self.tokenizer.encode("a", add_special_tokens=False).ids
        if single.ids == text or not {"cls", "sep"} <= self._roles.keys():
            return ""
        first, last = [self.cls_id, *text, self.sep_id], [*text, self.sep_id]
        usual = (first + last, [0] * len(first) + [1] * len(last)), (first + last[-1:] + last, [0] * len(pair.ids))
        if single.ids == first and (pair.ids, pair.type_ids) in usual:
            return ""
        return " ".join(f"{token}:{kind}" for token, kind in zip(pair.tokens, pair.type_ids, strict=True))

    @functools.cached_property
    def languages(self) -> Languages | None:
        """Returns the languages; None if the class marks none. A special token without a role may mark one, too."""
        roles = set(self._roles.values())
        more = [token for i, token in self._specials.items() if i not in roles]
        return of_class(self.settings.kind, self.settings.entries, self._ids, more)

    @property
    def decoder_start_id(self) -> int:
        """Returns the first id that a decoder reads, if the model does not say it: the mark of the target language, if
        marks follow the end token (Liu et al. 2020, §2.1). Returns -1 for other tokenizers."""
        languages = self.languages
        return -1 if languages is None or not languages.mark_follows else languages.id(languages.target)

    @property
    def fingerprint(self) -> str:
        entries = self.settings.of_0_1
        keys = (*tokenizer_files.IN_EVERY_FINGERPRINT, *(f"{role}_token" for role in ROLE_TOKENS))
        settings = json.dumps({key: entries.get(key) for key in keys}, sort_keys=True)
        # Only where they apply: a fingerprint of 0.1, which did not read them, stays valid everywhere else.
        changes = self._loaded[1]
        more = [json.dumps(changes, sort_keys=True).encode()] if changes else []
        if self.special_tokens:
            more.append(b"special tokens")
        return digest(b"\0".join([*self._contents.values(), settings.encode(), *more]))

    @functools.cached_property
    def lowercases(self) -> bool:
        """Returns whether the normalizer is BERT's and lowercases texts."""
        normalizer = json.loads(self.tokenizer.to_str())["normalizer"] or {}
        return normalizer.get("type") == "BertNormalizer" and bool(normalizer["lowercase"])

    @_with_our_errors
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self._reader.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                utf8(text)  # the error names the text
            raise
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    @_with_our_errors
    def places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        utf8(text)  # raises DataError for half of a surrogate pair
        encoding = self._reader.encode(text, add_special_tokens=False)
        # The place of a word begins after the space, which may belong to the word's piece.
        spaces = [len(text[b:e]) - len(text[b:e].lstrip()) if text[b:e].strip() else 0 for b, e in encoding.offsets]
        places = [(begin + space, end) for (begin, end), space in zip(encoding.offsets, spaces, strict=True)]
        return np.asarray(encoding.ids, np.int32), np.asarray(places, np.int64).reshape(-1, 2)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.tokenizer.id_to_token(i) or "" for i in ids]  # "" for an id without a token

    @_with_our_errors
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

    @_with_our_errors
    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.size], skip_special_tokens=False)

    def _role(self, role: str) -> int:
        if role not in self._roles:
            raise ConfigError(
                f"the vocabulary {self.path} has no token for {role} (usually {' or '.join(ROLE_TOKENS[role][:2])}); "
                f'name it in a tokenizer_config.json beside it, {{"{role}_token": "…"}}, or use a different vocabulary'
            )
        return self._roles[role]
