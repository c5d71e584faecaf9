"""Defines `Family`, which describes a Hugging Face model family, and table entries that several families share.

"Ours" means this package's parameters and ModelConfig; "theirs" means transformers' tensors and config.json.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Key:
    """Names their tensor that holds one of our parameters, and says how it is stored if that is unusual.

    name: the tensor's name; for a module, its name without `.weight` and `.bias`.
    third: 0, 1 or 2 if the tensor holds three parameters side by side, as GPT-2's query, key and value do. Else None.
    turned: if true, the tensor is stored transposed, even where Family.kernels_turned does not apply.
    leading: if true, the tensor has an extra first dimension of size 1.
    """

    name: str
    third: int | None = None
    turned: bool = False
    leading: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes one `model_type` of config.json.

    base: a published model of the family. It gives the values of the fields that config.json does not set.
    settings: our field -> the key of config.json that has the same value.
    also: additional key that export writes -> the key from which it copies the value.
    choices: key of config.json -> allowed value -> our fields for that value. Import refuses other values.
    read: a function from config.json to all our fields that `settings` and `choices` do not cover.
    write: a function from our ModelConfig to the keys of config.json that `read` reads.
    heads: our head -> one of its tensors. The model has the head if and only if the file has this tensor.
    classes: name of a class in transformers -> our heads that it has.
    modules: our module or parameter -> their name for it. `{i}` stands for the layer, `{s}` for encoder or decoder. A
        module's kernel, scale or embedding is their tensor `.weight`, its bias their tensor `.bias`.
    prefix: the prefix of most tensor names. Files of a model without heads, such as BertModel, lack it.
    kernels_turned: if true, kernels are stored as [outputs, inputs], as in torch's Linear. False for GPT-2.
    tied: their tensor -> the tensor that it must equal. Import checks this and skips the copy.
    ignored: regular expression -> the reason why import skips tensors with matching names.
    constants: other key of config.json -> the value that export writes.
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

    def ties(self, with_logits: bool = True) -> dict[str, str]:
        """Returns {copy: the tensor that it equals}; without logits, only the copies of the embedding table that both
        stacks of T5 and BART read."""
        table = self.modules["token_embedding"]
        ties = {**self.tied, "lm_head.weight": f"{table}.weight"}
        return ties if with_logits else {copy: source for copy, source in ties.items() if "embed_tokens" in copy}


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
    """Returns rows of Family.modules, one for each keyword argument. Its value replaces the `*` in `theirs`.

    >>> each("encoder/mlp", "encoder.fc_*", wi="in", wo="out")
    {'encoder/mlp/wi': 'encoder.fc_in', 'encoder/mlp/wo': 'encoder.fc_out'}
    """
    return {f"{ours}/{name}": theirs.replace("*", other) for name, other in names.items()}
