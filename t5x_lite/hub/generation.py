"""How a model is to write, by what stands beside its parameters in Hugging Face format."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t5x_lite.errors import ConfigError
from t5x_lite.hub import mapping

DEFAULT_MAX_LENGTH = 20  # of transformers; a file that has it says nothing
NEUTRAL = (None, False, 0, 1, [])  # values of what there is not here that change nothing
NOT_HERE = (
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "diversity_penalty",
    "num_beam_groups", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "guidance_scale",
    "exponential_decay_length_penalty", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha",
)  # fmt: skip


def settings(directory: Path | None, task: str, known: Iterable[str]) -> dict[str, Any]:
    """What a directory says of the options `known`, which have transformers' names; {} where there is none.

    A later one of these counts: config.json where there is no generation_config.json, that file, what config.json has
    for the task (`task_specific_params`, as T5's: its prefix, its beams). Warns of a setting that is not known here.
    """
    config = _read(directory, "config.json") or _read(directory, "huggingface.json")  # of an imported one
    generation = _read(directory, "generation_config.json")
    tasks = config.get("task_specific_params")
    of_task = tasks.get(task) if isinstance(tasks, dict) else None
    said = {"prefix": config.get("prefix")} | (generation or config) | (of_task if isinstance(of_task, dict) else {})
    if said.get("max_length") == DEFAULT_MAX_LENGTH:
        del said["max_length"]
    if missing := {name: said[name] for name in NOT_HERE if said.get(name) not in NEUTRAL}:
        text = ", ".join(f"{name}={value!r}" for name, value in missing.items())
        warnings.warn(f"{directory}: texts are written without its {text[:200]}; that is not here", stacklevel=2)
    found = {name: said[name] for name in known if said.get(name) is not None}
    for name, value in found.items():
        if name != "prefix" and not isinstance(value, bool | int | float) and value != "never":
            raise ConfigError(
                f"{directory}: {name}={value!r} in its generation settings; it must be a number or a bool"
            )
    return found


def _read(directory: Path | None, name: str) -> dict[str, Any]:
    path = directory / name if directory else None
    return mapping.read_json(path) if path and path.is_file() else {}
