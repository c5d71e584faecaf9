"""The form of a Hugging Face model family, `Family`, and the entries that the tables of several families share.

"Ours" are the parameters and the ModelConfig of this package, "theirs" the tensors and the config.json of transformers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """The tensor of theirs that holds one parameter of ours, where its name alone is not enough.

    name: of the tensor; of a module without `.weight` and `.bias`.
    third: the number of its part, 0 to 2, where the tensor holds three side by side (GPT-2's query, key and value).
    turned: it is stored transposed, where Family.kernels_turned does not already say so.
    leading: it has one more dimension, of size 1, in front.
    """

    name: str
    third: int | None = None
    turned: bool = False
    leading: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    base: one of its models, whose fields hold where neither `settings` nor `choices` names them.
    settings: our field -> the key of config.json with the same value; where the key is missing, the base's value holds.
    also: key that export writes -> the key whose value it has.
    choices: key of config.json -> its value -> our fields; other values are not supported.
    read, write: functions for the rest: config.json -> our fields, and back.
    heads: our head -> a tensor that the file has exactly when it has the head.
    classes: class of transformers -> our heads.
    modules: our module or parameter -> theirs. `{i}` stands for the layer, `{s}` for encoder or decoder. The kernel,
        scale or embedding of a module is their weight, its bias their bias.
    prefix: of most keys; files of the bare model lack it.
    kernels_turned: kernels are stored [outputs, inputs], as by torch's Linear; GPT-2's are not.
    tied: their tensor -> the one that it is a copy of. Import checks that, and leaves the copy out.
    ignored: regular expression -> why a tensor of that name is not needed.
    constants: further keys of config.json that export writes.
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
    """Rows of Family.modules, one for each name: our `OURS/NAME` -> THEIRS, with their name in place of the star."""
    return {f"{ours}/{name}": theirs.replace("*", other) for name, other in names.items()}
