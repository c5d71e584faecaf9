"""Builds the tokenizers of transformers 5 whose classes take only the pieces from a tokenizer's file.

Such a class makes the normalizer, the pre-tokenizer and most marks itself, from its own settings. A tokenizer.json that
says otherwise is overruled.
"""

import base64
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from t5x_lite.data import languages
from t5x_lite.data.tokenizer_settings import TokenizerSettings
from t5x_lite.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Holds what a class takes from the files of a tokenizer.

    vocab: {piece: id} of WordPiece and BPE, [(piece, score), …] of Unigram.
    merges: the pairs of BPE, best first.
    charsmap: the table of SentencePiece's normalizer; None if there is none.
    post_processor: the step that adds marks in a tokenizer.json, which some classes keep.
    is_cased: whether pieces of a vocab.txt have upper-case letters. If so, texts keep their case unless the settings
        say otherwise. (transformers would lowercase them.)
    """

    vocab: Any
    merges: Any = ()
    charsmap: bytes | None = None
    post_processor: Any = None
    is_cased: bool = False


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
    """Describes a class of tokenizers.

    model: the type of its model, as a tokenizer.json names it.
    tokens: {role: token}, for roles that the settings do not name. Tokens without an id are left out.
    build: returns the tokenizer without added tokens and marks.
    marks: returns the step that adds marks, or None if the tokenizer adds none. It takes the tokenizer with its added
        tokens, the token of a role, the settings and the pieces.
    mask: the flags of the mask, if the files give none.
    """

    model: str
    tokens: Mapping[str, str]
    build: Callable[[Pieces, TokenizerSettings], Tokenizer]
    marks: Callable[[Tokenizer, Callable[[str], str], TokenizerSettings, Pieces], Any]
    mask: Mapping[str, bool] = dataclasses.field(default_factory=dict)


def pieces_of(file: Mapping[str, Any], post_processor: Any) -> Pieces:
    """Returns the pieces in the contents of a tokenizer.json."""
    model = file["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model.get("merges", ())]
    vocab = [tuple(entry) for entry in model["vocab"]] if isinstance(model["vocab"], list) else model["vocab"]
    normalizer = file.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    maps = [part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled"]
    return Pieces(vocab, merges, base64.b64decode(maps[0]) if maps and maps[0] else None, post_processor)


def _flag(settings: TokenizerSettings, key: str, default: bool) -> bool:
    value = settings.entries.get(key)
    return default if value is None else bool(value)


def _bert(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    entries, lower = settings.entries, settings.entries.get("do_lower_case")
    tokenizer = Tokenizer(models.WordPiece(pieces.vocab, unk_token=settings.text("unk_token") or "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
        strip_accents=entries.get("strip_accents"),
        lowercase=not pieces.is_cased if lower is None else lower,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_pairs(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    model = models.BPE(pieces.vocab, pieces.merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    tokenizer = Tokenizer(model)
    spaced = _flag(settings, "add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _llama(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(pieces.vocab, pieces.merges, fuse_unk=True, byte_fallback=True))
    spaced = _flag(settings, "add_prefix_space", True)
    scheme = "never" if not spaced else "always" if _flag(settings, "legacy", False) else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", left=1)] * spaced)
    return tokenizer


def _unigram(unk_id: int, pieces: Pieces, scheme: str, steps: list) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(pieces.vocab, unk_id, False))
    steps = steps + ([normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else [])
    if steps:
        tokenizer.normalizer = steps[0] if len(steps) == 1 else normalizers.Sequence(steps)
    metaspace = pre_tokenizers.Metaspace("▁", scheme)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace("▁", scheme)
    return tokenizer


def _t5(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    return _unigram(2, pieces, "always", [])


def _xlm_roberta(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    return _unigram(3, pieces, "always" if _flag(settings, "add_prefix_space", True) else "never", [])


def _albert(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    steps: list = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not _flag(settings, "keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if _flag(settings, "do_lower_case", True):
        steps.append(normalizers.Lowercase())
    scheme = "always" if _flag(settings, "add_prefix_space", True) else "never"
    return _unigram(1, pieces, scheme, steps)


def _deberta_v2(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    """Returns a tokenizer that replaces white space by single spaces, and keeps a space at the start of a text."""
    unknown = settings.text("unk_token") or "[UNK]", 0.0
    if unknown not in pieces.vocab:
        raise ConfigError(
            f"{settings.directory}: no piece is unk_token={unknown[0][:40]!r} with the score 0, so transformers would "
            "read unknown letters as another token; set unk_token to the piece that stands for them"
        )
    tokenizer = Tokenizer(models.Unigram(pieces.vocab, pieces.vocab.index(unknown), False))
    lower, split = (_flag(settings, key, False) for key in ("do_lower_case", "split_by_punct"))
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    steps = [spaces, normalizers.NFC(), normalizers.Strip(left=False, right=True)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase()] * lower + steps)
    scheme = "always" if _flag(settings, "add_prefix_space", True) else "first"
    cuts: list = [pre_tokenizers.Punctuation("isolated")] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.Metaspace("▁", scheme)])
    tokenizer.decoder = decoders.Metaspace("▁", scheme)
    return tokenizer


def _mbart(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    return _unigram(3, dataclasses.replace(pieces, charsmap=None), "always", [])


def _camembert(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    unknown = settings.text("unk_token") or "<unk>"
    unk_id = next((i for i, (piece, _) in enumerate(pieces.vocab) if piece == unknown), 0)
    return _unigram(unk_id, pieces, "always" if _flag(settings, "add_prefix_space", True) else "never", [])


_ONE_SPACE = normalizers.Replace(Regex(" {2,}"), " ")


def _spaced(tokenizer: Tokenizer, steps: list) -> Tokenizer:
    """Returns the tokenizer with normalizers, and with "▁" before each text and in place of each space."""
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.decoder = decoders.Metaspace("▁", "always")
    return tokenizer


def _nllb(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    unknown = settings.text("unk_token") or "<unk>"
    model = models.BPE(pieces.vocab, pieces.merges, unk_token=unknown, fuse_unk=True, byte_fallback=False)
    return _spaced(Tokenizer(model), [normalizers.Precompiled(pieces.charsmap), _ONE_SPACE] if pieces.charsmap else [])


def _mbart_50(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    if not {piece for piece, _ in pieces.vocab}.intersection(languages.MBART_50):
        raise ConfigError(
            f"{settings.directory}: tokenizer_class='MBart50Tokenizer', but tokenizer.json has no piece for a language "
            'such as "en_XX"; transformers would give the pieces other ids. Get the tokenizer.json of the model'
        )
    steps = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    return _spaced(Tokenizer(models.Unigram(pieces.vocab, 3, False)), [*steps, _ONE_SPACE])


def _pegasus(pieces: Pieces, settings: TokenizerSettings) -> Tokenizer:
    unknown, entries = settings.text("unk_token") or "<unk>", settings.entries
    if entries.get("mask_token_sent", "") is None and not isinstance(settings.extra(), list):
        raise ConfigError(
            f"{settings.directory}: mask_token_sent=null is not supported; remove the key to read it as '<mask_1>'"
        )
    ids = [i for i, entry in enumerate(pieces.vocab) if i and entry == (unknown, 0.0)]
    if not ids:
        raise ConfigError(
            f"{settings.directory}: tokenizer_class='PegasusTokenizer', but tokenizer.json has no piece {unknown!r} of "
            "score 0 after the first piece; get the tokenizer.json of the model, or set unk_token"
        )
    first = normalizers.Precompiled(pieces.charsmap) if pieces.charsmap else normalizers.Replace(Regex("\\n"), " ")
    return _spaced(Tokenizer(models.Unigram(pieces.vocab, ids[0], False)), [first, _ONE_SPACE])


def _template(single: str, pair: str) -> Callable:
    """Returns marks from two templates, in which A and B stand for texts, and roles for their tokens. A suffix ":1" is
    the type of a token, which is otherwise 0."""

    def marks(tokenizer, token, settings, pieces):
        words = f"{single} {pair}".replace(":1", "").split()
        tokens = {word: "$" + word if word in "AB" else token(word) for word in words}
        ids = {text: tokenizer.token_to_id(text) for word, text in tokens.items() if word not in "AB"}
        if None in ids.values():
            return None
        single_pieces, pair_pieces = (
            [tokens[word.removesuffix(":1")] + word[word.find(":") :] * (":" in word) for word in template.split()]
            for template in (single, pair)
        )
        return processors.TemplateProcessing(single=single_pieces, pair=pair_pieces, special_tokens=list(ids.items()))

    return marks


def _roberta_marks(tokenizer, token, settings, pieces):
    sep, cls = ((token(role), tokenizer.token_to_id(token(role))) for role in ("sep", "cls"))
    if sep[1] is None or cls[1] is None:
        return None
    return processors.RobertaProcessing(sep, cls, True, _flag(settings, "add_prefix_space", False))


def _own_marks(tokenizer, token, settings, pieces):
    """Returns the step of the tokenizer.json. Otherwise, `add_bos_token` of the settings decides."""
    if pieces.post_processor is not None:
        return pieces.post_processor
    if settings.entries.get("add_eos_token"):
        raise ConfigError(
            f"{settings.directory}: add_eos_token=true is not supported without a tokenizer.json; a task's features "
            "say whether texts end with the end token. Remove the key"
        )
    begins = settings.entries.get("add_bos_token")
    return _template("bos A", "bos A bos:1 B:1")(tokenizer, token, settings, pieces) if begins else None


def _language_marks(tokenizer, token, settings, pieces):
    """Returns marks around a text, and around two texts that follow each other, in the language of inputs."""
    end, spoken = token("eos"), languages.of_class(settings.kind, settings.entries, {})
    assert spoken is not None  # the classes that have these marks have languages
    ids = {text: tokenizer.token_to_id(text) for text in (end, spoken.source)}
    if None in ids.values():
        return None
    before, after = ([], [end, spoken.source]) if spoken.mark_follows else ([spoken.source], [end])
    single, pair = [*before, "$A", *after], [*before, "$A", "$B", *after]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(ids.items()))


_FAIRSEQ = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
_BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_DEBERTA_TOKENS = _BERT_TOKENS | {"bos": "[CLS]", "eos": "[SEP]"}
_ALBERT_TOKENS = _BERT_TOKENS | {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"}
_T5_TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"} | {f"extra {k}": f"<extra_id_{k}>" for k in range(100)}
_END_OF_TEXT = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
_WITHOUT_BOS = {role: token for role, token in _FAIRSEQ.items() if role != "bos"}
_NOT_USED = {f"extra {piece}": f"{piece}NOTUSED" for piece in ("<s>", "</s>", "<unk>")}
_PEGASUS_TOKENS = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask_2>", "extra mask": "<mask_1>"}
_PEGASUS_TOKENS |= {f"extra {i}": f"<unk_{i}>" for i in range(2, 103)}
_XLM_ROBERTA_MARKS = _template("bos A eos", "bos A eos eos B eos")
_BERT_MARKS = _template("cls A sep", "cls A sep B:1 sep:1")


def _with_codes(tokens: Mapping[str, str], codes: Iterable[str]) -> dict[str, str]:
    return {**tokens, **{f"extra {code}": code for code in codes}}


_LEFT = {"lstrip": True, "normalized": True}
CLASSES = {  # {name in transformers, without Fast: class}
    "BertTokenizer": TokenizerClass("WordPiece", _BERT_TOKENS, _bert, _BERT_MARKS),
    "RobertaTokenizer": TokenizerClass("BPE", _FAIRSEQ, _byte_pairs, _roberta_marks),
    "GPT2Tokenizer": TokenizerClass("BPE", _END_OF_TEXT, _byte_pairs, _own_marks),
    "LlamaTokenizer": TokenizerClass("BPE", {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, _llama, _own_marks),
    "T5Tokenizer": TokenizerClass("Unigram", _T5_TOKENS, _t5, _template("A eos", "A eos B eos")),
    "XLMRobertaTokenizer": TokenizerClass("Unigram", _FAIRSEQ, _xlm_roberta, _XLM_ROBERTA_MARKS),
    "CamembertTokenizer": TokenizerClass(
        "Unigram", _FAIRSEQ | _NOT_USED, _camembert, _XLM_ROBERTA_MARKS, {"lstrip": True}
    ),
    "MBartTokenizer": TokenizerClass("Unigram", _with_codes(_FAIRSEQ, languages.MBART), _mbart, _language_marks, _LEFT),
    "MBart50Tokenizer": TokenizerClass(
        "Unigram", _with_codes(_WITHOUT_BOS, languages.MBART_50), _mbart_50, _language_marks, _LEFT
    ),
    "NllbTokenizer": TokenizerClass("BPE", _with_codes(_FAIRSEQ, languages.NLLB), _nllb, _language_marks, _LEFT),
    "PegasusTokenizer": TokenizerClass("Unigram", _PEGASUS_TOKENS, _pegasus, _template("A eos", "A B eos")),
    "AlbertTokenizer": TokenizerClass("Unigram", _ALBERT_TOKENS, _albert, _BERT_MARKS),
    "DebertaV2Tokenizer": TokenizerClass("Unigram", _DEBERTA_TOKENS, _deberta_v2, _BERT_MARKS),
}
