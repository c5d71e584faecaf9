"""Loads the tokenizer of a tokenizer.json, a vocab.txt or a vocab.json, with the settings beside the file.

The result reads texts as transformers' AutoTokenizer reads them.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from t5x_lite.data import tokenizer_settings
from t5x_lite.data.tokenizer_classes import CLASSES, Pieces, TokenizerClass, pieces_of
from t5x_lite.data.tokenizer_settings import TokenizerSettings
from t5x_lite.data.vocabulary import decoded, json_object
from t5x_lite.errors import ConfigError

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

AS_IT_IS = ("", "PreTrainedTokenizer", "TokenizersBackend")  # classes that read a tokenizer.json as it is
IN_EVERY_FINGERPRINT = ("do_lower_case", "add_prefix_space")
OF_MODEL = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "dropout")


def load(path: Path, contents: Sequence[bytes], settings: TokenizerSettings) -> tuple[Tokenizer, dict[str, Any]]:
    """Returns the tokenizer, and {part: description} of what the settings change of what the file alone describes.

    contents: those of the file and, for a vocab.json, of merges.txt.

    Raises ConfigError if the file does not fit its class, and what the library raises for a damaged file.
    """
    if path.suffix == ".txt":
        _require_class(path, settings, "vocab.txt", WORD_PIECE_CLASSES)
        pieces = _word_pieces(path, settings, decoded(path, contents[0]))
        tokenizer, alone = _built(path, settings, "BertTokenizer", pieces)
    elif path.name == "vocab.json":
        _require_class(path, settings, "vocab.json", BYTE_PAIR_CLASSES)
        kind = "RobertaTokenizer" if settings.kind == "RobertaTokenizer" else "GPT2Tokenizer"
        pieces = _byte_pairs(path, json_object(path, contents[0]), decoded(path, contents[1]))
        tokenizer, alone = _built(path, settings, kind, pieces)
    else:
        tokenizer, alone = _of_file(path, settings, decoded(path, contents[0]))
    return tokenizer, {name: part for name, part in _parts(tokenizer).items() if part != alone[name]}


def _word_pieces(path: Path, settings: TokenizerSettings, text: str) -> Pieces:
    pieces = text.removesuffix("\n").split("\n")
    ids = {piece.rstrip("\r"): i for i, piece in enumerate(pieces)}
    unknown = settings.text("unk_token") or "[UNK]"
    if unknown not in ids:
        raise ConfigError(
            f"{path} ({len(pieces)} lines) is not a BERT vocabulary: it has no line {unknown!r}; "
            "give a vocab.txt with one piece a line, or a tokenizer.json"
        )
    is_cased = any(p != p.lower() for p in ids if not re.fullmatch(r"\[.*\]|<.*>", p))
    if is_cased and settings.kind == "BertTokenizer" and settings.entries.get("do_lower_case") is None:
        text = f"{path} has cased pieces, so texts keep their case; transformers would lowercase them"
        warnings.warn(f"{text}. Set do_lower_case in a tokenizer_config.json beside it", stacklevel=2)
    return Pieces(ids, is_cased=is_cased)


def _byte_pairs(path: Path, ids: dict[str, Any], merges: str) -> Pieces:
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - set(ids):
        raise ConfigError(
            f"{path} is not byte-level BPE: it lacks {len(missing)} of the 256 bytes; give its tokenizer.json"
        )
    lines = [line for line in merges.split("\n") if line.strip() and not line.startswith("#version")]
    pairs = [tuple(line.rstrip("\r").split(" ")) for line in lines]
    if wrong := [n for n, pair in enumerate(pairs) if len(pair) != 2 or pair[0] + pair[1] not in ids]:
        raise ConfigError(
            f"{path.with_name('merges.txt')}: merge {wrong[0] + 1}, {lines[wrong[0]][:40]!r}, is "
            "not two pieces whose concatenation is in vocab.json; do both files belong to the same model?"
        )
    return Pieces(ids, pairs)


def _require_class(path: Path, settings: TokenizerSettings, file: str, classes: Sequence[str]) -> None:
    """Raises ConfigError if the settings name a tokenizer that cuts texts differently from the one of this file."""
    if settings.named and settings.kind not in classes:
        raise ConfigError(
            f"{path.with_name('tokenizer_config.json')}: tokenizer_class={settings.kind!r} cannot "
            f"be read from a {file}; give a tokenizer.json, or a {file} of {', '.join(classes)}"
        )


def _of_file(path: Path, settings: TokenizerSettings, text: str) -> tuple[Tokenizer, dict[str, Any]]:
    """Returns the tokenizer of a tokenizer.json, and the parts that the file alone describes.

    The class in transformers may overrule parts of the file.
    """
    tokenizer = Tokenizer.from_str(text)
    alone = _parts(tokenizer)
    kind, file = settings.kind, json.loads(text)
    by_bytes = '"ByteLevel"' in json.dumps([file.get("pre_tokenizer"), file.get("decoder")])
    if kind not in (*CLASSES, *AS_IT_IS):
        text = f"{path}: tokenizer_class={kind!r} is not known; the file is read as it is"
        warnings.warn(f"{text}, without the settings of tokenizer_config.json", stacklevel=2)
    if kind not in CLASSES or (kind == "LlamaTokenizer" and by_bytes):
        return _with_added(path, settings, tokenizer, settings.added), alone
    model = type(tokenizer.model).__name__
    if model != CLASSES[kind].model and not settings.named:
        text = f"{path} is a {model} tokenizer, which is read as it is; transformers would make a {kind} of it"
        warnings.warn(f"{text}. Set tokenizer_class in tokenizer_config.json", stacklevel=2)
        return _with_added(path, settings, tokenizer, settings.added), alone
    if model != CLASSES[kind].model:
        raise ConfigError(
            f"{path} is a {model} tokenizer, but the tokenizer_class is {kind!r}, which needs "
            f'{CLASSES[kind].model}; set "tokenizer_class": "PreTrainedTokenizerFast" to read the file as it is'
        )
    listed = {} if settings.from_config else {token["id"]: token for token in file.get("added_tokens", ())}
    pieces = pieces_of(file, tokenizer.post_processor)
    return _built(path, settings, kind, pieces, {**settings.added, **listed})[0], alone


def _built(
    path: Path,
    settings: TokenizerSettings,
    kind: str,
    pieces: Pieces,
    added: Mapping[int, Mapping[str, Any]] | None = None,
) -> tuple[Tokenizer, dict[str, Any]]:
    """Returns the tokenizer that the class `kind` of transformers makes from its pieces and the settings, and the parts
    of the one that it makes without most settings."""
    of_kind = CLASSES[kind]
    entries = {key: settings.entries.get(key) for key in IN_EVERY_FINGERPRINT}
    alone = _parts(of_kind.build(pieces, dataclasses.replace(settings, entries=entries)))
    tokenizer = of_kind.build(pieces, settings)
    _with_added(path, settings, tokenizer, settings.added if added is None else added, of_kind)
    roles = {role: settings.text(f"{role}_token") or token for role, token in of_kind.tokens.items()}
    marks = of_kind.marks(tokenizer, roles.__getitem__, settings, pieces)
    if marks is not None:
        tokenizer.post_processor = marks
    return tokenizer, alone


def _with_added(
    path: Path,
    settings: TokenizerSettings,
    tokenizer: Tokenizer,
    added: Mapping[int, Mapping[str, Any]],
    of_kind: TokenizerClass | None = None,
) -> Tokenizer:
    """Adds tokens to a tokenizer, in the order of transformers, and returns it.

    added: {id: token}.
    of_kind: the class, which has special tokens that the settings need not name.

    Raises ConfigError if a token gets a different id. Warns if the settings name a special token without an id.
    """
    own = {i: repr(token) for i, token in tokenizer.get_added_tokens_decoder().items()}
    tokens = [(token["content"], AddedToken(**_flags(token))) for _, token in sorted(added.items())]
    tokens = [(text, token) for text, token in tokens if repr(token) not in own.values()]
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | {text for text, _ in tokens}
    special = {token["content"]: token for token in settings.special()}
    named = {settings.text(f"{role}_token") for role in tokenizer_settings.ROLES}
    is_listed = isinstance(settings.extra(), list)
    usual, flags = (of_kind.tokens, of_kind.mask) if of_kind is not None else ({}, {})
    if isinstance(mask := settings.entries.get("mask_token"), str) and mask in special:
        special[mask] = {**special[mask], **flags}
    for role, text in usual.items():
        if not settings.text(f"{role}_token") and not (is_listed and role.startswith("extra")):
            usual_flags = {"special": True, "normalized": False}
            special.setdefault(text, {"content": text, **usual_flags, **(flags if role == "mask" else {})})
    for token in (token for text, token in tokens if text in named):
        token.special = True
    for text, token in special.items():
        if text not in known and tokenizer.token_to_id(text) is not None:
            tokens.append((text, AddedToken(**_flags(token))))
        elif text not in known and text not in usual.values():
            warnings.warn(f"{path}: ignoring the special token {text!r}, which has no id", stacklevel=2)
    tokenizer.add_tokens([token for _, token in tokens])
    for i, token in added.items():
        if tokenizer.token_to_id(token["content"]) != i:
            key = "tokenizer_config.json: added_tokens_decoder" if settings.from_config else "added_tokens.json"
            raise ConfigError(
                f"{settings.directory}/{key} gives {token['content'][:40]!r} the id {i}; it must follow the "
                "ids before it"
            )
    return tokenizer


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns {part: description} for the parts of a tokenizer, without pieces, that change the ids of plain texts."""
    steps = {name: getattr(tokenizer, name) for name in ("normalizer", "pre_tokenizer")}
    added = tokenizer.get_added_tokens_decoder().items()
    return (
        {name: None if step is None else step.__getstate__().decode() for name, step in steps.items()}
        | {name: getattr(tokenizer.model, name, None) or None for name in OF_MODEL}
        | {"added": sorted((i, repr(token)) for i, token in added if not token.special)}
    )


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an added token."""
    return {name: token[name] for name in ("content", *tokenizer_settings.FLAGS) if name in token}
