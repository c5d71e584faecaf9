"""Reads what the files beside a tokenizer say about it, in the order in which transformers 5 reads them.

Every key of tokenizer_config.json and special_tokens_map.json is in HONOURED, in REFUSED or in NO_EFFECT. Other keys
cause a warning with their names.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_lite import side_files
from t5x_lite.data.vocabularies import MODEL_FILES
from t5x_lite.data.vocabulary import json_object, read_file
from t5x_lite.errors import ConfigError

CONFIG, TOKENS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # the order in which transformers adds their tokens
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
# {model_type: tokenizer class}, for directories that name no class. Other models read tokenizer.json as it is.
CLASS_OF_MODEL = {
    "bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer", "mobilebert": "BertTokenizer",
    "roberta": "RobertaTokenizer", "bart": "RobertaTokenizer", "gpt2": "GPT2Tokenizer", "gpt_neo": "GPT2Tokenizer",
    "gptj": "GPT2Tokenizer", "opt": "GPT2Tokenizer", "phi": "GPT2Tokenizer", "albert": "AlbertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "t5": "T5Tokenizer", "mt5": "T5Tokenizer", "camembert": "CamembertTokenizer",
    "mbart": "MBartTokenizer", "pegasus": "PegasusTokenizer", "m2m_100": "M2M100Tokenizer", "marian": "MarianTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
}  # fmt: skip
SAME_CLASS = {  # {class: the class that it equals}
    "DistilBertTokenizer": "BertTokenizer", "ElectraTokenizer": "BertTokenizer", "LayoutLMTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer", "SqueezeBertTokenizer": "BertTokenizer",
    "BartTokenizer": "RobertaTokenizer", "LongformerTokenizer": "RobertaTokenizer", "LEDTokenizer": "RobertaTokenizer",
}  # fmt: skip

# Keys that change what is read. Some of them concern only some classes, as in transformers.
HONOURED = (
    "tokenizer_class", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens",
    "split_special_tokens", "do_lower_case", "strip_accents", "tokenize_chinese_chars",
    "keep_accents", "add_prefix_space", "add_bos_token", "add_eos_token", "legacy", "extra_ids", "split_by_punct",
    "src_lang", "tgt_lang", "legacy_behaviour", "language_codes",
)  # fmt: skip
SWITCHES = (
    "split_special_tokens", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "keep_accents",
    "add_prefix_space", "add_bos_token", "add_eos_token", "legacy", "split_by_punct", "legacy_behaviour",
)  # fmt: skip
TYPES: Mapping[str, tuple[type, ...]] = {  # {key: allowed types of its value, besides null}
    **dict.fromkeys(SWITCHES, (bool,)),
    **dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), (list, dict)),
    "extra_ids": (int,),
    **dict.fromkeys(("src_lang", "tgt_lang", "language_codes"), (str,)),
}
MOST_EXTRA_IDS = 100_000  # T5 has 100
# {key: values that change nothing}. Any other value is refused.
REFUSED: Mapping[str, tuple] = {
    "word_tokenizer_type": (None, "basic"),
    "subword_tokenizer_type": (None, "wordpiece"),
    "fix_mistral_regex": (None, False),
    "separate_vocabs": (None, False),
    "offset": (None, 103),
    "mask_token_sent": (None, "<mask_1>"),
}
_PADS = "converters and packing cut and pad, to data.length or to the model's positions"
_PATH = "only the files in the directory itself are read"
_CHAT = "texts are read as they are; a chat's template is filled before"
_SAVED = "says how the file was written"
NO_EFFECT = {  # {key: reason}
    **dict.fromkeys(("model_max_length", "max_len", "max_length", "stride", "truncation", "truncation_side"), _PADS),
    **dict.fromkeys(
        ("truncation_strategy", "padding", "padding_side", "pad_to_multiple_of", "pad_token_type_id"), _PADS
    ),
    **dict.fromkeys(("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file"), _PATH),
    **dict.fromkeys(("is_local", "local_files_only"), _PATH),
    **dict.fromkeys(("chat_template", "response_template", "response_schema", "chat_control_tokens"), _CHAT),
    **dict.fromkeys(("use_default_system_prompt", "spaces_between_special_tokens"), _CHAT),
    **dict.fromkeys(("backend", "transformers_version", "processor_class", "init_inputs", "verbose"), _SAVED),
    "clean_up_tokenization_spaces": "changes decoded text only",
    "model_input_names": "the model decides whether it reads token types",
    "errors": "changes decoded text only",
    "unk_id": "the piece of unk_token has this id",
    "trim_offsets": "the place of a token never includes the space before it",
    "use_fast": "transformers 5 ignores it",
    "from_slow": "transformers 5 ignores it",
    "do_basic_tokenize": "transformers 5 ignores it",
    "never_split": "transformers 5 ignores it",
    "sp_model_kwargs": "transformers 5 ignores it; the vocabularies of M2M-100 and Marian, where it does not, check it",
    "num_madeup_words": "a model's rows without tokens",
    **dict.fromkeys(("source_lang", "target_lang"), "chooses Marian's punctuation rules, which are not applied"),
    "target_vocab_file": _PATH,
}


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Holds what the files beside a tokenizer say.

    directory: the directory of the files.
    kind: the name of the tokenizer's class in transformers, without Fast and with one name for equal classes. "": the
        files name no class, and transformers reads tokenizer.json as it is.
    named: whether a file gives the name of the class. If not, the type of the model gives it.
    entries: {key: value} of both files of settings.
    added: {id: added token, as {"content": text, flag: bool}}; the tokens that the settings add to the vocabulary.
    from_config: whether `added` comes from tokenizer_config.json. If so, the tokens added in tokenizer.json are not
        read.
    of_0_1: the entries as version 0.1 merged them, for fingerprints.
    model_type: the type of the model in the directory; "" if there is none.
    """

    directory: Path
    kind: str
    named: bool
    entries: Mapping[str, Any]
    added: Mapping[int, dict[str, Any]]
    from_config: bool
    of_0_1: Mapping[str, Any]
    model_type: str

    def text(self, key: str) -> str:
        """Returns the text of a special token; "" if the files do not name it."""
        value = content(self.entries.get(key))
        return value if isinstance(value, str) else ""

    def extra(self) -> Any:
        """Returns the special tokens without a role: a list, {name: token}, or None."""
        return self.entries.get("extra_special_tokens") or self.entries.get("additional_special_tokens")

    def special(self) -> list[dict[str, Any]]:
        """Returns the special tokens that the files name, as {"content": text, flag: bool}, each once."""
        roles = [f"{role}_token" for role in ROLES]
        others = [key for key in self.entries if key.endswith("_token") and key not in (*roles, *HONOURED)]
        extra = self.extra() or []
        listed = list(extra.values()) if isinstance(extra, dict) else extra
        tokens = [self.entries.get(key) for key in (*roles, *others)] + listed
        return list({token["content"]: token for token in map(_token, tokens) if token["content"]}.values())


def read(directory: Path) -> TokenizerSettings:
    """Reads the settings in a directory. Raises ConfigError if a file is not JSON or a key cannot be honoured."""
    config, tokens = _object(directory / CONFIG), _object(directory / TOKENS)
    from_config = "added_tokens_decoder" in config
    entries = config if from_config else config | tokens  # as in transformers
    _check(directory, config | tokens)
    model = {key: value for name in MODEL_FILES for key, value in _object(directory / name).items()}
    named = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "")
    model_type = str(model.get("model_type") or "")
    kind = named.removesuffix("Fast") if named else CLASS_OF_MODEL.get(model_type, "")
    kind = SAME_CLASS.get(kind, kind)
    settings = TokenizerSettings(
        directory, kind, bool(named), entries, {}, from_config, of_0_1=tokens | config, model_type=model_type
    )
    return dataclasses.replace(settings, added=_added(settings))


def content(token: Any) -> Any:
    """Returns the text of a token in a JSON file, which may hold it with its flags: {"content": text, …}."""
    return token.get("content") if isinstance(token, dict) else token


def _added(settings: TokenizerSettings) -> dict[int, dict[str, Any]]:
    directory = settings.directory
    if settings.from_config:
        listed = settings.entries["added_tokens_decoder"]
        if not isinstance(listed, dict) or not all(map(_is_added, listed, listed.values())):
            raise ConfigError(
                f'{directory / CONFIG}: added_tokens_decoder: must be {{"ID": {{"content": TEXT, …}}, …}}'
            )
        by_id = {int(i): {"normalized": not token.get("special", False)} | token for i, token in listed.items()}
    else:
        special = {token["content"] for token in settings.special()}
        entries = _object(directory / ADDED)
        if not all(isinstance(i, int) for i in entries.values()):
            raise ConfigError(f"{directory / ADDED}: must be {{TOKEN: ID, …}}")
        by_id = {
            i: {"content": text, "special": text in special, "normalized": text not in special}
            for text, i in entries.items()
        }
    return {i: dict.fromkeys(FLAGS, False) | _known(token) for i, token in sorted(by_id.items())}


def _is_added(i: str, token: Any) -> bool:
    """Returns whether an entry of added_tokens_decoder has an id and a token."""
    return re.fullmatch("[0-9]{1,9}", i) is not None and isinstance(token, dict) and isinstance(content(token), str)


def _token(token: Any) -> dict[str, Any]:
    """Returns a special token as {"content": text, flag: bool}. "" is the content of what is not a token."""
    text = content(token)
    given = _known(token) if isinstance(token, dict) else {}
    flags = dict.fromkeys(FLAGS, False) | {"special": True} | given
    return flags | {"content": text if isinstance(text, str) else ""}


def _known(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key in ("content", *FLAGS)}


def _object(path: Path) -> dict[str, Any]:
    return json_object(path, read_file(path)) if side_files.is_there(path) else {}


def _check(directory: Path, entries: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting that cannot be honoured. Warns about keys that are not in the tables."""
    for key, types in TYPES.items():
        if (value := entries.get(key)) is not None and type(value) not in types:
            names = " or ".join(kind.__name__ for kind in types)
            raise ConfigError(f"{directory / CONFIG}: {key}={str(value)[:80]!r}: must be of type {names}")
    if not 0 <= (entries.get("extra_ids") or 0) <= MOST_EXTRA_IDS:
        extra_ids = str(entries["extra_ids"])[:40]
        raise ConfigError(f"{directory / CONFIG}: extra_ids={extra_ids}: must be from 0 to {MOST_EXTRA_IDS:,}")
    for key, harmless in REFUSED.items():
        if entries.get(key) not in harmless:
            raise ConfigError(
                f"{directory / CONFIG}: {key}={entries[key]!r} (tokenizer_class={entries.get('tokenizer_class')!r}) is "
                f"not supported; use a different tokenizer, or remove the key to read it as {harmless[-1]!r}"
            )
    known = {*HONOURED, *REFUSED, *NO_EFFECT}
    unknown = [key for key in entries if key not in known and not key.endswith("_token") and not key.startswith("_")]
    if unknown:
        text = ", ".join(f"{key}={str(entries[key])[:40]!r}" for key in unknown)
        warnings.warn(f"{directory}: ignoring unknown settings of the tokenizer: {text[:300]}", stacklevel=4)
