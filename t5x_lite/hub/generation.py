"""Generates text with transformers' options, which come from the caller or from the model's directory.

Two things differ from transformers. The end token of the vocabulary always ends a text, even if `eos_token_id` lists
only other tokens. The returned text never contains the end token, even if the end token is not a special token.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite import side_files
from t5x_lite.data.vocabularies import TokenizerVocabulary
from t5x_lite.decoding import generate
from t5x_lite.decoding.buckets import power_of_two
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.errors import ConfigError
from t5x_lite.hub import mapping
from t5x_lite.hub.checks import require_positive
from t5x_lite.hub.family import LARGEST_INTEGER
from t5x_lite.hub.generation_keys import HONOURED, NO_EFFECT, UNSUPPORTED
from t5x_lite.hub.model import Model, in_batches
from t5x_lite.models.stored import SETTINGS

NEW_TOKENS = 256
LENGTHS = (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))  # two ways to give the same limit
DEFAULT_MAX_LENGTH = 20  # transformers 4 wrote its default into every file, even if nobody had chosen it


# ----------------------------------------------------------------------------------------------------- options


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Holds the limits on the lengths of generated texts, in tokens.

    max_new_tokens and min_new_tokens count only the new tokens. max_length and min_length also count the tokens that
    the decoder reads before it generates. The default maximum is NEW_TOKENS new tokens, or fewer if the model has too
    few positions.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0

    def limits(self, read_B: np.ndarray, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (minimum, maximum), both int [B]: the smallest and largest allowed number of new tokens of each text.

        read_B: the number of tokens that the decoder reads before each text, int [B].
        positions: the model's number of positions; 0: no limit.

        Raises ConfigError if a text has no room for new tokens, or if a maximum needs more positions than the model
        has. Warns if the minimum of a text is not below its maximum.
        """
        room_B = positions - read_B + 1 if positions else np.full(len(read_B), np.iinfo(np.int32).max)
        if self.max_new_tokens is not None:
            option, most_B = f"max_new_tokens={self.max_new_tokens}", np.full(len(read_B), self.max_new_tokens)
        elif self.max_length is not None:
            option, most_B = f"max_length={self.max_length}", np.minimum(self.max_length - read_B, room_B)
        else:
            option, most_B = "the model", np.minimum(NEW_TOKENS, room_B)
        if most_B.min() < 1:
            raise ConfigError(f"{option} leaves no room after {read_B.max()} tokens; raise it, or set max_new_tokens")
        if np.any(most_B > room_B):
            raise ConfigError(
                f"{option} after {read_B.max()} tokens needs more than the model's {positions} positions; shorten the "
                "text, or set max_length"
            )
        by_length = self.min_new_tokens is None
        least_B = np.maximum(self.min_length - read_B, 0) if by_length else np.full(len(read_B), self.min_new_tokens)
        if np.any(least_B >= most_B):
            text = f"some texts cannot end: the minimum is {least_B.max()} new tokens, the maximum {most_B.min()}"
            warnings.warn(text, stacklevel=2)
        return least_B, most_B


def strategy(
    *,
    num_beams: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    forced_bos_token_id: int | None = None,
    forced_eos_token_id: int | None = None,
    eos_token_id: int | list | None = None,
    num_return_sequences: int = 1,
) -> Strategy:
    """Returns the Strategy for these options. The Strategy does not limit lengths.

    Raises ConfigError if options conflict.
    """
    if do_sample and num_beams > 1:
        raise ConfigError(f"num_beams={num_beams} with do_sample=True: set num_beams=1 or do_sample=False")
    if do_sample and not temperature > 0:
        raise ConfigError(f"temperature={temperature} with do_sample: must be above 0, or set do_sample=False")
    for name, count in (("num_beams", num_beams), ("num_return_sequences", num_return_sequences)):
        require_positive(name, count)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if do_sample else {}
    return Strategy(
        beams=num_beams,
        length_penalty=length_penalty,
        length_offset=0,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        early_stopping=early_stopping,
        first_token=forced_bos_token_id,
        last_token=forced_eos_token_id,
        other_ends=tuple(_listed(eos_token_id)),
        texts=num_return_sequences,
        **sampling,
    )


def _listed(ids: int | list | None) -> list:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


_OF_LENGTHS = {field.name: (field.type, field.default) for field in dataclasses.fields(Lengths)}
_OF_STRATEGY = {name: (p.annotation, p.default) for name, p in inspect.signature(strategy).parameters.items()}
_OF_START = {"decoder_start_token_id": (int | None, None)}  # None: the id in config.json
OPTIONS: dict[str, tuple[Any, Any]] = _OF_LENGTHS | _OF_STRATEGY | _OF_START  # {name: (type, default)}


def over(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: value} of the defaults and options. An option overrides the default of the same name.

    An option also overrides defaults that conflict with it. The option max_length drops the default max_new_tokens, and
    vice versa. The same holds for min_length and min_new_tokens. The option do_sample=True drops the default num_beams.
    An option num_beams other than 1 changes a default do_sample to False, unless do_sample is also an option.
    """
    overridden = {name for pair in LENGTHS for name in pair if not options.keys().isdisjoint(pair)}
    if options.get("do_sample"):
        overridden.add("num_beams")
    chosen = {name: value for name, value in defaults.items() if name not in overridden} | dict(options)
    if options.get("num_beams", 1) != 1 and "do_sample" in defaults and "do_sample" not in options:
        chosen["do_sample"] = False
    return chosen


def settings(model: Model, task: str) -> dict[str, Any]:
    """Returns {name: value} of the options that the files in a model's directory set.

    The names are those in OPTIONS, and "prefix", the text to put before each input. The values come from
    generation_config.json, or from config.json if there is no generation_config.json. The key task_specific_params of
    config.json may have values for `task` (T5 has a prefix and num_beams); these override the others.

    Warns if UNSUPPORTED options are set, or if generation_config.json has keys that generation_keys.py does not list.
    Raises ConfigError if the prefix is not a string.
    """
    # A model that was imported has its config.json under another name.
    config = _read(model.origin, "config.json") or _read(model.origin, SETTINGS)
    own = _read(model.origin, "generation_config.json")
    general = {"prefix": config.get("prefix")} | (own or config)
    if general.get("max_length") == DEFAULT_MAX_LENGTH:
        del general["max_length"]
    tasks = config.get("task_specific_params")
    of_task = tasks.get(task) if isinstance(tasks, dict) else None
    stored = over(general, of_task if isinstance(of_task, dict) else {})
    ignored = {k: stored[k] for k, neutral in UNSUPPORTED.items() if stored.get(k) not in (None, *neutral)}
    if ignored:
        text = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
        warnings.warn(f"{model.origin}: ignoring unsupported generation options: {text[:200]}", stacklevel=3)
    strange = [name for name in own if name not in (*HONOURED, *UNSUPPORTED, *NO_EFFECT)]
    if strange:
        text = ", ".join(strange)[:200]
        warnings.warn(
            f"{model.origin}: generation_config.json has unknown keys, which are ignored: {text}", stacklevel=3
        )
    values = {name: stored[name] for name in ("prefix", *OPTIONS) if stored.get(name) is not None}
    values = {n: value[0] if isinstance(value, list) and len(value) == 1 else value for n, value in values.items()}
    ends, end = _listed(values.pop("eos_token_id", None)), model.vocabulary.eos_id
    if end in ends and len(ends) > 1:  # a list that lacks the vocabulary's own end is for a different vocabulary
        values["eos_token_id"] = [other for other in ends if other != end]
    start = model.config.decoder_start_id
    trained_with_another = config.get("decoder_start_token_id") not in (None, start)
    if trained_with_another or values.get("decoder_start_token_id") == start:
        values.pop("decoder_start_token_id", None)
    if values.get("num_beams", 1) != 1:
        values.setdefault("do_sample", False)
    if not isinstance(values.get("prefix", ""), str):
        raise ConfigError(f"{model.origin}/config.json: prefix={values['prefix']!r}: must be a string")
    return values


def _read(directory: Path | None, name: str) -> dict[str, Any]:
    path = directory / name if directory else None
    return mapping.read_json(path) if path and side_files.is_there(path) else {}


def _check(options: Mapping[str, Any]) -> None:
    """Raises ConfigError if an option's value does not have the type that OPTIONS gives."""
    for name, value in options.items():
        wanted, _ = OPTIONS[name]
        if not isinstance(value, (wanted, int) if wanted is float else wanted):
            kind = getattr(wanted, "__name__", wanted)
            raise ConfigError(f"{name}={value!r}, passed or from the model's generation_config.json: must be {kind}")
        if isinstance(value, list) and not all(isinstance(one, int) for one in value):
            raise ConfigError(f"{name}={value!r}, passed or from the model's generation_config.json: must be token ids")
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ConfigError(
                f"{name}={value}, passed or from the model's generation_config.json: must be at most {LARGEST_INTEGER}"
            )


# ----------------------------------------------------------------------------------------------------- writing


def write(
    model: Model, texts: list[str], *, source: str = "", seed: int = 0, first: int = 0, **options: Any
) -> list[list[str]]:
    """Returns one list of generated texts per input text.

    source: the code of the texts' language, if the vocabulary marks languages; "": as the tokenizer's files say.
    seed: the seed for sampling.
    first: the number of the first input text; the others follow. The sample for a text depends on the seed and on the
        number of the text.
    options: any of OPTIONS, by name.

    Raises ConfigError if an option is invalid, or if a text leaves no room for new tokens.
    """
    _check(options)
    config = model.config
    lengths = Lengths(**{name: options.pop(name) for name in _OF_LENGTHS if name in options})
    for name in ("forced_bos_token_id", "forced_eos_token_id", "eos_token_id", "decoder_start_token_id"):
        if not all(0 <= token < config.vocab_size for token in _listed(options.get(name))):
            raise ConfigError(f"{name}={options[name]}: must be token ids from 0 to {config.vocab_size - 1}")
    start_id = options.pop("decoder_start_token_id", None)
    chosen_strategy = strategy(**options)
    # Llama's tokenizer puts <s> before a text. GPT-2's adds nothing, so the model continues the bare text.
    begins = not isinstance(model.vocabulary, TokenizerVocabulary) or model.vocabulary.begins_with_bos
    bare = config.architecture == "decoder_only" and not begins and model.features is None
    if config.architecture == "decoder_only":
        chosen_strategy = dataclasses.replace(chosen_strategy, first_token=None)  # the prompt already has a first token
    positions = config.max_positions if config.positions == "learned" else 0

    def work(chosen: list[int]) -> list[list[str]]:
        count, rows = len(chosen), power_of_two(len(chosen))
        batch = model.prompts([{"inputs": texts[i]} for i in chosen], rows, source=source)
        if bare and texts[chosen[0]]:
            batch = {name: array[:, :-1] if "positions" in name else array[:, 1:] for name, array in batch.items()}
        read_B = np.ones(count, np.int32)
        if config.architecture == "decoder_only":
            read_B = (batch["decoder_segment_ids"] > 0).sum(axis=1)[:count]
        least_B, most_B, row_ids = np.zeros(rows, np.int32), np.ones(rows, np.int32), np.zeros(rows, np.uint32)
        least_B[:count], most_B[:count] = lengths.limits(read_B, positions)
        row_ids[:count] = first + np.array(chosen)
        out = generate.generate(
            model.module,
            model.params,
            batch,
            dataclasses.replace(chosen_strategy, max_tokens=int(most_B.max())),
            eos_id=model.vocabulary.eos_id,
            start_id=model.start_id if start_id is None else start_id,
            seed=seed,
            row_ids=row_ids,
            limits=(least_B, most_B),
        )
        tokens_BNL, lengths_BN = np.asarray(out["tokens"])[:count], np.asarray(out["lengths"])[:count]
        return [
            [model.vocabulary.decode(ids[:n]) for ids, n in zip(tokens_NL, lengths_N, strict=True)]
            for tokens_NL, lengths_N in zip(tokens_BNL, lengths_BN, strict=True)
        ]

    def together(numbers: list[int]) -> list[list[str]]:
        """Puts empty texts into a separate batch, because the prompts of empty texts may begin differently."""
        parts = [part for empty in (True, False) if (part := [i for i in numbers if (not texts[i]) == empty])]
        written = {i: of_one for part in parts for i, of_one in zip(part, work(part), strict=True)}
        return [written[i] for i in numbers]

    return in_batches(together, [len(text) for text in texts])
