"""Tokenizer directories: what we read is what transformers' AutoTokenizer reads, or we refuse by the key's name.

Each case is a directory: one kind of tokenizer, the files that a directory may have, and settings. The fast suite tests
a fixed sample of the cases.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from t5x_lite.data import tokenizer_settings, vocabularies
from t5x_lite.data.convert import TextToText, text_task
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.convert_translation import marked
from t5x_lite.errors import ConfigError

WORDS = ["the", "fox", "ran", "Paris", "paris", "cafe", "café", "東", "京", "x", ".", ",", "[", "]", "<", ">", "/", "s"]
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    *("the fox", "Paris café", " the  fox ", "", " ", "東京 x", "the\tfox\nran.", "🙂 ﬁ İ", "Covid19 covid19"),
    *("<user>fox", "the <user> ran", "xcovid19 x", "a [MASK] b", "the<mask>fox", "ran  <mask>  fox", "[SEP][CLS]fox"),
    *("fox </s> the", "<s>the", "the <unk>", "the <extra_id_0> ran<extra_id_1>", "<|endoftext|>the"),
    *("en_XX the", "the deu_Latn fox", "the\n\nfox  \n ran", "<mask_1> fox <unk_2>", "<s>NOTUSED  the"),
]  # fmt: skip
PAIRS = [("the fox", "paris"), ("the", "[SEP] fox </s>"), ("", "ran"), ("café x", "<mask> 東")]


# ------------------------------------------------------------------------------------------------- tiny tokenizers


def word_piece(**normalizer: Any) -> Tokenizer:
    pieces = [*BERT, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return with_template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def with_template(tokenizer: Tokenizer, single: str, pair: str) -> Tokenizer:
    marks = {word.removesuffix(":1") for word in pair.split() if not word.startswith("$")}
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in sorted(marks)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tokenizer


def byte_pairs(specials: list[str], marks: bool) -> Tokenizer:
    merges = [("t", "h"), ("Ġ", "th"), ("th", "e"), ("Ġth", "e"), ("f", "o"), ("Ġ", "fo"), ("r", "a")]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if marks:
        sep, cls = (("</s>", 2), ("<s>", 0))
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, False)
    return tokenizer


def unigram(first: list[str], unk_id: int, last: list[str]) -> Tokenizer:
    letters = [(c, -8.0) for c in "▁abcdefghijklmnopqrstuvwxyzABCPé0123456789.,[]<>/_|"]
    words = [(f"▁{word}", -3.0) for word in WORDS[:6]] + [("京", -4.0)]
    pieces = [*((p, 0.0) for p in first), *words, *letters, *((p, 0.0) for p in last)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id, False))
    steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.Metaspace("▁", "always")
    return tokenizer


def t5() -> Tokenizer:
    tokenizer = unigram(["<pad>", "</s>", "<unk>"], 2, [f"<extra_id_{k}>" for k in reversed(range(100))])
    return with_template(tokenizer, "$A </s>", "$A </s> $B </s>")


def albert() -> Tokenizer:
    tokenizer = unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], 1, [])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    return with_template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def xlm_roberta() -> Tokenizer:
    tokenizer = unigram(["<s>", "<pad>", "</s>", "<unk>"], 3, ["<mask>"])
    return with_template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>")


def deberta_v2() -> Tokenizer:
    tokenizer = unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], 3, ["[MASK]"])
    tokenizer.normalizer = normalizers.NFKD()  # the class has its own
    return with_template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def in_languages(codes: list[str], **options: Any) -> Tokenizer:
    """A Unigram tokenizer whose last pieces are language codes, as mBART's and mBART-50's."""
    return with_charsmap(unigram(["<s>", "<pad>", "</s>", "<unk>"], 3, [*codes, "<mask>"]), **options)


def camembert(charsmap: bool = True) -> Tokenizer:
    tokenizer = unigram(["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"], 3, ["<mask>"])
    return with_template(with_charsmap(tokenizer, charsmap), "<s> $A </s>", "<s> $A </s> </s> $B </s>")


def pegasus(charsmap: bool = True) -> Tokenizer:
    first = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103)), "<unk>"]
    return with_template(with_charsmap(unigram(first, len(first) - 1, []), charsmap), "$A </s>", "$A $B </s>")


def with_charsmap(tokenizer: Tokenizer, charsmap: bool = True) -> Tokenizer:
    """The tokenizer with the table of SentencePiece's normalizer, which maps "ﬁ" to "fi", for example."""
    if charsmap:
        import sentencepiece.sentencepiece_model_pb2 as proto

        model = proto.ModelProto.FromString(sentencepiece_model(vocab_size=60))  # type: ignore[attr-defined]
        tokenizer.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    return tokenizer


def nllb(charsmap: bool = True) -> Tokenizer:
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("f", "o"), ("▁", "fo"), ("▁fo", "x"), ("r", "a")]
    letters = list("▁abcdefghijklmnopqrstuvwxyzABCPé0123456789.,[]<>/_|京")
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*specials, *letters, *(a + b for a, b in merges), "eng_Latn", "deu_Latn", "zho_Hans", "<mask>"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace("▁"), decoders.Metaspace("▁")
    return with_charsmap(tokenizer, charsmap)


def llama(normalizer: bool) -> Tokenizer:
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("f", "o"), ("▁", "fo"), ("▁fo", "x"), ("r", "a")]
    letters = list("▁abcdefghijklmnopqrstuvwxyz0123456789.,")
    pieces = dict.fromkeys(["<unk>", "<s>", "</s>", *bytes_, *letters, *(a + b for a, b in merges)])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    tokenizer.decoder = decoders.Sequence(steps)
    return with_template(tokenizer, "<s> $A", "<s> $A <s>:1 $B:1")


def sentencepiece_model(**options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    texts = [f"{a} {b} {c} the fox ran to paris x7 cafe" for a, b, c in itertools.product(WORDS[:6], repeat=3)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, minloglevel=2, hard_vocab_limit=False, **options
    )
    return model.getvalue()


# ------------------------------------------------------------------------------------------------------- the cases


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: its class and model in transformers, the files that hold it, and the settings it heeds."""

    classes: tuple[str, ...]
    model_type: str
    files: dict[str, Any]  # {layout: a function that returns {name: content}}
    keys: dict[str, tuple]  # {key: values}


def tokenizer_json(make, *arguments, **options):
    def files() -> dict[str, Any]:
        tokenizer = make(*arguments, **options)
        return {"tokenizer.json": tokenizer.to_str()}

    return files


def with_special(make, tokens: list[str]):
    """A tokenizer.json that lists its special tokens, as those of transformers do."""

    def files() -> dict[str, Any]:
        tokenizer = make()
        tokenizer.add_special_tokens(tokens)
        return {"tokenizer.json": tokenizer.to_str()}

    return files


def vocab_txt() -> dict[str, Any]:
    vocab = word_piece().get_vocab()
    pieces = [piece for piece in sorted(vocab, key=vocab.__getitem__) if piece != "Paris"]  # a cased one keeps the case
    return {"vocab.txt": "\n".join(pieces) + "\n"}


def vocab_json(specials: list[str]):
    def files() -> dict[str, Any]:
        model = json.loads(byte_pairs(specials, False).to_str())["model"]
        return {
            "vocab.json": json.dumps(model["vocab"]),
            "merges.txt": "#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n",
        }

    return files


def spiece(name: str, **options: Any):
    return lambda: {name: sentencepiece_model(**options)}


T5_SPIECE = {"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
LLAMA_SPIECE = {"vocab_size": 330, "model_type": "bpe", "byte_fallback": True, **IDENTITY}
LANGUAGES = {"tgt_lang": ("de_DE",), "src_lang": ("de_DE",), "language_codes": ("m2m100",), "mask_token": ("<mask>",)}
BERT_KEYS = {
    "do_lower_case": (False, True),
    "strip_accents": (True, False),
    "tokenize_chinese_chars": (False,),
    "cls_token": ("[MASK]",),
    "unk_token": ("[PAD]",),
}
KINDS = {
    "bert": Kind(
        ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer", ""),
        "bert",
        {
            "vocab.txt": vocab_txt,
            "json": tokenizer_json(word_piece),
            "json cased": tokenizer_json(word_piece, lowercase=False),
            "json special": with_special(word_piece, BERT),
        },
        BERT_KEYS,
    ),
    "roberta": Kind(
        ("RobertaTokenizer", "RobertaTokenizerFast", "BartTokenizer", ""),
        "roberta",
        {
            "vocab.json": vocab_json(FAIRSEQ),
            "json": tokenizer_json(byte_pairs, FAIRSEQ, True),
            "json special": with_special(lambda: byte_pairs(FAIRSEQ, True), FAIRSEQ),
        },
        {"add_prefix_space": (True, False), "mask_token": ("<unk>",)},
    ),
    "gpt2": Kind(
        ("GPT2Tokenizer", "GPT2TokenizerFast", ""),
        "gpt2",
        {
            "vocab.json": vocab_json(["<|endoftext|>"]),
            "json": tokenizer_json(byte_pairs, ["<|endoftext|>"], False),
            "json special": with_special(lambda: byte_pairs(["<|endoftext|>"], False), ["<|endoftext|>"]),
        },
        {"add_prefix_space": (True,), "add_bos_token": (True, False), "add_eos_token": (True,), "pad_token": (None,)},
    ),
    "t5": Kind(
        ("T5Tokenizer", "T5TokenizerFast", ""),
        "t5",
        {
            "spiece": spiece("spiece.model", **T5_SPIECE),
            "json": tokenizer_json(t5),
            "json special": with_special(t5, ["<pad>", "</s>", "<unk>", *(f"<extra_id_{k}>" for k in range(100))]),
        },
        {"extra_ids": (100,), "legacy": (True, False)},
    ),
    "albert": Kind(
        ("AlbertTokenizer", "AlbertTokenizerFast", ""),
        "albert",
        {"json": tokenizer_json(albert), "spiece": spiece("spiece.model", **T5_SPIECE)},
        {"do_lower_case": (False,), "keep_accents": (True,), "add_prefix_space": (False,)},
    ),
    "xlm-roberta": Kind(
        ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast", ""),
        "xlm-roberta",
        {"json": tokenizer_json(xlm_roberta), "spiece": spiece("sentencepiece.bpe.model", vocab_size=60)},
        {"add_prefix_space": (False,)},
    ),
    "deberta-v2": Kind(
        ("DebertaV2Tokenizer", "DebertaV2TokenizerFast", ""),
        "deberta-v2",
        {"json": tokenizer_json(deberta_v2), "spiece": spiece("spm.model", vocab_size=60)},
        {
            "do_lower_case": (True,),
            "split_by_punct": (True, False),
            "add_prefix_space": (False,),
            "unk_token": ("[PAD]", "x"),  # x has a score
        },
    ),
    "llama": Kind(
        ("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", ""),
        "llama",
        {
            "json": tokenizer_json(llama, True),
            "json metaspace": tokenizer_json(llama, False),
            "json bytes": tokenizer_json(byte_pairs, ["<s>", "</s>", "<unk>"], False),
            "spiece": spiece("tokenizer.model", **LLAMA_SPIECE),
        },
        {"add_prefix_space": (False,), "legacy": (True, False), "add_bos_token": (False,), "add_eos_token": (True,)},
    ),
    "camembert": Kind(
        ("CamembertTokenizer", "CamembertTokenizerFast", ""),
        "camembert",
        {
            "json": tokenizer_json(camembert),
            "json plain": tokenizer_json(camembert, charsmap=False),
            "json special": with_special(camembert, ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "<s>NOTUSED"]),
            "spiece": spiece("sentencepiece.bpe.model", vocab_size=60),
        },
        {"add_prefix_space": (False,), "mask_token": ("<mask>", "x")},
    ),
    "pegasus": Kind(
        ("PegasusTokenizer", "PegasusTokenizerFast", ""),
        "pegasus",
        {
            "json": tokenizer_json(pegasus),
            "json plain": tokenizer_json(pegasus, charsmap=False),
            "json special": with_special(pegasus, ["<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk>"]),
            "spiece": spiece("spiece.model", **T5_SPIECE),
        },
        {"offset": (103, 5), "mask_token_sent": ("<mask_1>", "<mask_2>", None)},
    ),
    "mbart": Kind(
        ("MBartTokenizer", "MBartTokenizerFast", ""),
        "mbart",
        {
            "json": tokenizer_json(in_languages, ["en_XX", "de_DE", "ro_RO"]),
            "json special": with_special(lambda: in_languages(["en_XX", "de_DE"]), ["<s>", "</s>", "en_XX", "de_DE"]),
            "spiece": spiece("sentencepiece.bpe.model", vocab_size=60),
        },
        LANGUAGES | {"separate_vocabs": (True,)},
    ),
    "mbart50": Kind(
        ("MBart50Tokenizer", "MBart50TokenizerFast"),
        "mbart",
        {
            "json": tokenizer_json(in_languages, ["en_XX", "de_DE", "gl_ES"]),
            "json plain": tokenizer_json(in_languages, ["en_XX", "de_DE"], charsmap=False),
            "json special": with_special(lambda: in_languages(["en_XX", "de_DE"]), ["<s>", "</s>", "en_XX", "de_DE"]),
            "json without": tokenizer_json(in_languages, []),
        },
        LANGUAGES | {"separate_vocabs": (True,)},
    ),
    "nllb": Kind(
        ("NllbTokenizer", "NllbTokenizerFast"),
        "m2m_100",
        {
            "json": tokenizer_json(nllb),
            "json plain": tokenizer_json(nllb, charsmap=False),
            "json special": with_special(nllb, ["<s>", "</s>", "<pad>", "<unk>", "<mask>", "eng_Latn", "deu_Latn"]),
            "spiece": spiece("sentencepiece.bpe.model", vocab_size=60),
        },
        LANGUAGES
        | {
            "legacy_behaviour": (True, False),
            "src_lang": ("deu_Latn", "zho_Hans"),
            "tgt_lang": ("deu_Latn",),
            "extra_special_tokens": (["eng_Latn", "x"],),
            "additional_special_tokens": (["eng_Latn", "deu_Latn"],),
        },
    ),
    "fast": Kind(
        ("PreTrainedTokenizerFast", "TokenizersBackend"),
        "bert",
        {
            "word piece": tokenizer_json(word_piece, strip_accents=False),
            "xlm": tokenizer_json(xlm_roberta),
            "bytes": tokenizer_json(byte_pairs, FAIRSEQ, True),
        },
        {"do_lower_case": (False, True), "add_prefix_space": (True,)},
    ),
}
# Keys of every tokenizer. "<user>" and "covid19" are not in any vocabulary; "x" is.
COMMON = {
    "split_special_tokens": (True,),
    "additional_special_tokens": (["x"],),
    "extra_special_tokens": (["x"], {"image_token": "x"}),
    "image_token": ("x",),
    "word_tokenizer_type": ("mecab",),
    "something_else": (1,),
}
# Settings without an effect, each with a value that is not the default.
VALUES = {
    "padding_side": "left",
    "truncation_side": "left",
    "chat_template": "{{ messages }}",
    "chat_control_tokens": ["x"],
    "init_inputs": [],
    "never_split": ["fox"],
    "sp_model_kwargs": {"nbest_size": 2},
    "model_input_names": ["input_ids"],
} | dict.fromkeys(
    ("model_max_length", "max_len", "max_length", "stride", "pad_to_multiple_of", "pad_token_type_id", "unk_id"), 2
)
COMMON |= {key: (VALUES.get(key, True),) for key in tokenizer_settings.NO_EFFECT}
FLAGS = ({}, {"special": True}, {"lstrip": True}, {"rstrip": True, "special": True}, {"single_word": True})
FLAGS += ({"normalized": True}, {"normalized": False}, {"lstrip": True, "rstrip": True, "special": True})


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    layout: str
    name: str  # of the class
    config: str = "{}"  # JSON of tokenizer_config.json's other keys
    tokens: str = ""  # of special_tokens_map.json
    added: str = ""  # "decoder" or "file" adds two tokens
    flags: str = "{}"
    described: bool = True  # whether there is a config.json


def cases() -> list[Case]:
    out = []
    for name, kind in KINDS.items():
        for layout, of_class in itertools.product(kind.files, kind.classes):
            base = Case(name, layout, of_class)
            out.append(base)
            if of_class:
                out.append(dataclasses.replace(base, described=False))
            keys = kind.keys | COMMON
            out += [
                dataclasses.replace(base, config=json.dumps({key: value}))
                for key, values in keys.items()
                for value in values
            ]
            for flags in FLAGS:
                out.append(dataclasses.replace(base, added="decoder", flags=json.dumps(flags)))
            out.append(dataclasses.replace(base, added="file"))
            for token in ("x", {"content": "x", "lstrip": True, "rstrip": False, "normalized": False}):
                out.append(dataclasses.replace(base, tokens=json.dumps({"mask_token": token})))
                out.append(dataclasses.replace(base, tokens=json.dumps({"mask_token": token}), added="file"))
            rng = random.Random(f"{name} {layout} {of_class}")
            for _ in range(4):
                chosen = rng.sample(sorted(set(keys) - {"word_tokenizer_type"}), 3)
                config = {key: rng.choice(keys[key]) for key in chosen}
                added = rng.choice(("", "decoder", "file"))
                out.append(dataclasses.replace(base, config=json.dumps(config), added=added))
    return out


_FILES: dict[tuple[str, str], dict] = {}


def write(case: Case, directory: Path) -> None:
    kind = KINDS[case.kind]
    files = _FILES.setdefault((case.kind, case.layout), {}) or kind.files[case.layout]()
    _FILES[case.kind, case.layout] = files
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = json.loads(case.config) | ({"tokenizer_class": case.name} if case.name else {})
    if case.added:
        size = _size(directory)
        new = {size: "<user>", size + 1: "covid19"}
        if case.added == "file":
            (directory / "added_tokens.json").write_text(json.dumps({text: i for i, text in new.items()}))
        else:
            flags = json.loads(case.flags)
            config["added_tokens_decoder"] = {str(i): {"content": text, **flags} for i, text in new.items()}
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if case.tokens:
        (directory / "special_tokens_map.json").write_text(case.tokens)
    if case.described:
        (directory / "config.json").write_text(json.dumps({"model_type": kind.model_type}))


def _size(directory: Path) -> int:
    """Returns the number of ids, without those that a setting adds."""
    if (directory / "vocab.txt").exists():
        return len((directory / "vocab.txt").read_text().splitlines())
    if (directory / "vocab.json").exists():
        return len(json.loads((directory / "vocab.json").read_text()))
    if (directory / "tokenizer.json").exists():
        return Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()
    import sentencepiece

    (model,) = directory.glob("*.model")
    return len(sentencepiece.SentencePieceProcessor(model_file=str(model))) + 100 * (model.name == "spiece.model")


def same_places(text: str, ours, theirs) -> bool:
    """Compares places without the white space at their ends. The place of a token of white space may be anywhere."""
    for (begin, end), (first, last) in zip(ours, theirs, strict=True):
        piece, other = text[begin:end], text[first:last]
        left = len(piece) - len(piece.lstrip()), len(other) - len(other.lstrip())
        if piece.strip() and (piece.strip() != other.strip() or begin + left[0] != first + left[1]):
            return False
    return True


def differences(case: Case, directory: Path, theirs: Any) -> list[str]:
    """Returns what differs between our reading of a directory and that of transformers."""
    out = []
    marks = {i for i, token in theirs.added_tokens_decoder.items() if token.special and token.content != "x"}
    names = {theirs.added_tokens_decoder[i].content: i for i in marks} | {
        name: i for name, i in theirs.get_vocab().items() if name.startswith("<extra_id_") or name in (*FAIRSEQ, *BERT)
    }
    marks -= {theirs.unk_token_id}
    for special in (False, True):
        ours = vocabularies.load(str(directory), special)
        split = not special or theirs.split_special_tokens
        for text in TEXTS:
            wanted = theirs(text, add_special_tokens=False, split_special_tokens=split, return_offsets_mapping=True)
            ids, places = ours.places(text)
            if ids.tolist() != ours.encode([text])[0].tolist():
                out.append(f"{special=} {text!r}: encode and places differ")
            elif split and set(ids.tolist()) & marks:
                out.append(f"{text!r}: the text forges a special token")
            elif split and any(name in text for name in names) and set(wanted.input_ids) & {*names.values()}:
                continue  # the pieces of Unigram include special tokens, which theirs finds even if it splits them
            elif ids.tolist() != wanted.input_ids:
                out.append(f"{special=} {text!r}: {ours.pieces(ids.tolist())} != {theirs.tokenize(text)}")
            elif text.isascii() and not same_places(text, places.tolist(), wanted["offset_mapping"]):
                out.append(f"{special=} {text!r}: places {places.tolist()} != {wanted['offset_mapping']}")
    for first, second in (*PAIRS, *((text, None) for text in TEXTS[:4])):
        out += _of_marks(case, ours, theirs, first, second)
    return out


def _of_marks(case: Case, ours: Any, theirs: Any, first: str, second: str | None) -> list[str]:
    split = theirs.split_special_tokens
    if split and ("[" in f"{first}{second}" or "<" in f"{first}{second}"):
        return []  # they may find special tokens all the same; see `differences`
    more = {"return_special_tokens_mask": True, "split_special_tokens": split, "return_token_type_ids": True}
    wanted = theirs(first, **more) if second is None else theirs([first], [second], **more)
    wanted = {name: value if second is None else value[0] for name, value in wanted.items()}
    example = {"inputs": first} | ({} if second is None else {"pair": second})
    if case.kind in ("gpt2", "llama"):
        begins = bool(wanted["special_tokens_mask"][:1] == [1] and sum(wanted["special_tokens_mask"]))
        own = getattr(ours, "begins_with_bos", begins)
        return (
            [] if second or not first.strip() or own == begins else [f"{first!r}: begins with bos: {own} != {begins}"]
        )
    if case.kind in ("mbart", "mbart50", "nllb", "pegasus", "t5"):
        if second is not None:
            return []
        converter = marked(TextToText(64, 8, start_id=0), ours)
        prompts, _ = converter.prompts([example], text_task("text_to_text"), ours, 1)
        found = prompts["encoder_input_tokens"].values.tolist()
        return [] if found == wanted["input_ids"] else [f"{first!r}: {found} != {wanted['input_ids']}"]
    doubled = ours.doubles_sep
    prompts, _ = EncoderOnly(64, ("classification",), fairseq_marks=bool(doubled)).prompts(
        [example], text_task("encoder_only", tuple(example)), ours, 1
    )
    found = {name: prompts[name].values.tolist() for name in ("encoder_input_tokens", "token_type_ids")}
    a, b = (len(ours.encode([text])[0]) for text in (first, second or ""))
    mask = [1, *[0] * a, 1] + ([] if second is None else [*[1] * bool(doubled), *[0] * b, 1])
    names = {"encoder_input_tokens": "input_ids", "token_type_ids": "token_type_ids"}
    out = [f"{first!r} {second!r}: {found[n]} != {wanted[m]}" for n, m in names.items() if found[n] != wanted[m]]
    return out if mask == wanted["special_tokens_mask"] else [*out, f"{first!r} {second!r}: marks {mask}"]


def verdict(case: Case, directory: Path) -> tuple[str, list[str]]:
    """Returns ("equal", "refused", "differs" or "theirs fails", details)."""
    import transformers

    transformers.logging.set_verbosity_error()
    write(case, directory)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            theirs = transformers.AutoTokenizer.from_pretrained(directory)
    except Exception as error:
        return "theirs fails", [str(error)[:100]]
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = differences(case, directory, theirs)
    except ConfigError as error:
        return "refused", [str(error)]
    if "something_else" in case.config:
        found += [] if any("something_else" in str(w.message) for w in said) else ["an unknown key without a warning"]
    return "differs" if found else "equal", found


def explained(case: Case, message: str) -> bool:
    """Whether the message of a refusal names a setting of the case."""
    names = [*json.loads(case.config), "tokenizer_class", "added_tokens_decoder", "added_tokens.json"]
    return any(name in message for name in names) or (
        "special token" in message and "token" in case.config + case.tokens
    )


def check(chosen: list[Case], tmp_path: Path) -> dict[str, int]:
    counts: dict[str, int] = collections.Counter()
    for number, case in enumerate(chosen):
        directory = tmp_path / str(number)
        directory.mkdir()
        kind, details = verdict(case, directory)
        assert kind != "differs", (case, details[:3])
        assert kind != "refused" or explained(case, details[0]), (case, details)
        counts[kind] += 1
    return counts


def test_a_sample_of_directories_is_read_as_auto_tokenizer_reads_it(tmp_path):
    pytest.importorskip("transformers", reason="the parity extra is not installed")
    every = cases()
    plain = {(case.kind, case.layout): case for case in reversed(every)}  # the first of each layout: without settings
    assert check([*plain.values(), *random.Random(0).sample(every, 75)], tmp_path)["equal"] > 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_directory_is_read_as_auto_tokenizer_reads_it_or_refused(kind, tmp_path):
    pytest.importorskip("transformers", reason="the parity extra is not installed")
    chosen = [case for case in cases() if case.kind == kind]
    assert check(chosen, tmp_path)["equal"] > len(chosen) / 4


def test_every_key_is_in_one_table_and_those_without_effect_have_a_reason():
    honoured, refused, none = (
        set(table) for table in (tokenizer_settings.HONOURED, tokenizer_settings.REFUSED, tokenizer_settings.NO_EFFECT)
    )
    assert not honoured & refused and not honoured & none and not refused & none
    assert all(tokenizer_settings.NO_EFFECT.values())
    tried = set(COMMON).union(*(kind.keys for kind in KINDS.values())) | {"tokenizer_class", "added_tokens_decoder"}
    assert honoured <= tried and none <= tried
