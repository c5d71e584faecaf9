"""Defines `Family`, the description of a Hugging Face model family, and table entries that several families share.

"Ours" means the parameters and the ModelConfig of this package, "theirs" the tensors and config.json of transformers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """Describes their tensor for one of our parameters, for cases where the tensor's name alone is not enough.

    name: the tensor's name, or for a module the name without `.weight` and `.bias`.
    third: which third of the tensor, 0 to 2, if it holds three parameters side by side (GPT-2's query, key and value).
    turned: the tensor is stored transposed although Family.kernels_turned does not say so.
    leading: the tensor has an extra dimension of size 1 in front.
    """

    name: str
    third: int | None = None
    turned: bool = False
    leading: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes one `model_type` of config.json.

    base: a model of the family. Fields that neither `settings` nor `choices` names have this model's values.
    settings: our field -> the key of config.json with the same value. If the key is missing, the base's value holds.
    also: extra key that export writes -> the key whose value it copies.
    choices: key of config.json -> its value -> our fields. Other values are not supported.
    read, write: functions for all other settings: config.json -> our fields, and back.
    heads: our head -> a tensor that the file has exactly when the model has the head.
    classes: class of transformers -> our heads.
    modules: our module or parameter -> theirs. `{i}` stands for the layer, `{s}` for encoder or decoder. The kernel,
        scale or embedding of our module is their `.weight`, our bias their `.bias`.
    prefix: the prefix of most tensor names. Files of the bare model lack it.
    kernels_turned: kernels are stored [outputs, inputs], as in torch's Linear; GPT-2's are not.
    tied: their tensor -> the tensor that it copies. Import checks that they are equal and skips the copy.
    ignored: regular expression -> the reason why a tensor with that name is not needed.
    constants: other keys of config.json that export writes.
    """

    model_type: str
    base: ModelConfig
    settings: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str | Key]
    choices: Mapping[str, Mapping[Any, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda settings: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    kernels_turned: bool = True
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ACTIVATIONS: Mapping[Any, Mapping[str, Any]] = {
    "gelu": {"activation": "gelu_erf"},
    "gelu_new": {"activation": "gelu_tanh"},
    "gelu_pytorch_tanh": {"activation": "gelu_tanh"},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "swish": {"activation": "silu"},
}
ONLY_FALSE: Mapping[Any, Mapping[str, Any]] = {False: {}}
QKV_O = {"query": "q", "key": "k", "value": "v", "out": "o"}
QKV_OUT = QKV_O | {"out": "out"}


def each(ours: str, theirs: str, **names: str) -> dict[str, str | Key]:
    """Returns rows of Family.modules: for each name, our `OURS/NAME` -> THEIRS, with `*` replaced by their name."""
    return {f"{ours}/{name}": theirs.replace("*", other) for name, other in names.items()}
