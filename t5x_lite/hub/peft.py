"""Writes the LoRA matrices and heads of a model, without its other parameters, in the file format of peft.

Adapters are only written, not read. transformers reads an adapter_config.json wherever there is one, even beside the
weights of a whole model, so a directory that has one is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import ConfigError
from t5x_lite.heads import EXAMPLES, HEADS, SUPERVISED
from t5x_lite.hub import mapping, parameters
from t5x_lite.hub.family import Family
from t5x_lite.models import paths
from t5x_lite.models.config import ModelConfig

WEIGHTS, SETTINGS = "adapter_model.safetensors", mapping.ADAPTER
PREFIX = "base_model.model."  # peft wraps the model in two modules; their names are base_model and model
ONE_VECTOR = tuple(name for name in SUPERVISED if HEADS[name].reads == EXAMPLES)  # heads that read one per example
TRAINED_WHOLE = ("pooler/", *(f"{name}/" for name in SUPERVISED))


def write(directory: Path, config: ModelConfig, params: Any, family: Family) -> None:
    """Writes adapter_model.safetensors and adapter_config.json.

    The files include the supervised heads, because training changes all parameters of these heads.

    Raises ConfigError if the model has no LoRA matrices, or if a kernel with LoRA shares a Hugging Face tensor with
    other kernels. GPT-2's query, key and value share one tensor.
    """
    from safetensors.numpy import save_file

    if not config.lora_rank:
        raise ConfigError(
            "this model has no LoRA matrices; train it with model.lora_rank, or export it without --adapter"
        )
    flat = paths.flatten(params)
    whole_arrays = ((path, np.asarray(leaf)) for path, leaf in flat.items())
    arrays = {part: array for path, stack in whole_arrays for part, array in parameters.layers_of(path, stack)}
    kernels = {path: array.shape for path, array in arrays.items() if path.endswith("/kernel")}
    tensors, targets, whole = {}, set(), set()
    for binding in mapping.bindings(family, kernels):
        module = binding.key.removesuffix(".weight")
        path = binding.path.removesuffix("kernel")
        if path + "lora_a" in arrays:
            if binding.part is not None:
                raise ConfigError(
                    f"{family.model_type} has query, key and value in one tensor; export it without --adapter (merged)"
                )
            a, b = arrays[path + "lora_a"], arrays[path + "lora_b"]
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a.reshape(-1, config.lora_rank).T
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b.reshape(config.lora_rank, -1).T
            targets.add(re.sub(r".*\.\d+\.", "", module))  # the same module of every layer
        elif path.startswith(TRAINED_WHOLE):
            whole.add(module.removeprefix(family.prefix).split(".")[0])  # peft saves a head as one module
            tensors[f"{PREFIX}{binding.key}"] = binding.theirs(arrays[binding.path])
            if path + "bias" in arrays:
                tensors[f"{PREFIX}{module}.bias"] = arrays[path + "bias"]
    settings = {
        "peft_type": "LORA",
        "task_type": _task_type(config),
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout_rate,
        "target_modules": sorted(targets),
        "modules_to_save": sorted(whole) or None,
        "bias": "none",
        "fan_in_fan_out": not family.kernels_turned,
        "inference_mode": True,
    }
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, directory / WEIGHTS, {"format": "pt"})
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _task_type(config: ModelConfig) -> str | None:
    """Returns the name that decides which class of peft wraps the model; None for peft's general class."""
    if config.architecture != "encoder_only":
        return "SEQ_2_SEQ_LM" if config.architecture == "text_to_text" else "CAUSAL_LM"
    types = {"token_classification": "TOKEN_CLS", "span": "QUESTION_ANS"} | dict.fromkeys(ONE_VECTOR, "SEQ_CLS")
    return next((types[head] for head in config.heads if head in types), None)
