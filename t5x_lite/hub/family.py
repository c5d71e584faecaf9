"""Defines `Family`, which describes a Hugging Face model family. Also holds table entries that families share.

"Ours" means this package's parameters and ModelConfig; "theirs" means transformers' tensors and config.json.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from t5x_lite.models.config import ModelConfig

T = TypeVar("T")
LARGEST_INTEGER = 2**31 - 1  # larger sizes and ids overflow the integers of jax
LARGEST_FLOAT = 3.4e38  # larger numbers are infinite in float32


@dataclasses.dataclass(frozen=True)
class Key:
    """Names the Hugging Face tensor or module for one of our parameters or modules, and says how it is stored.

    name: the name of the tensor or module. A module's name does not end with `.weight` or `.bias`.
    part: None if the tensor holds only our parameter. The tensor may also hold several parameters side by side, such as
        GPT-2's query, key and value. Then `part` is (the place of our parameter among them, from 0; their number).
    turned: if true, the tensor is stored transposed, whatever Family.kernels_turned says.
    leading: if true, the tensor has an extra first dimension of size 1.
    """

    name: str
    part: tuple[int, int] | None = None
    turned: bool = False
    leading: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes one `model_type` of config.json.

    In this list, `a -> b` describes a mapping: a is its key, b its value.

    base: the model that transformers assumes. A field has its value from `base` if config.json does not set it.
    settings: our field -> the key of config.json that has the same value.
    also: further key of config.json that export writes -> the key whose value export copies there.
    aliases: another name that transformers accepts for a key of config.json -> the key.
    choices: key of config.json -> allowed value -> our fields for that value. Import refuses other values.
    read: a function that takes config.json. It returns those of our fields that need more than `settings` and
        `choices`.
    write: the inverse of `read`. It takes our ModelConfig and returns a dict with the keys of config.json that `read`
        reads.
    heads: our head -> one of the head's tensors. The model has the head if and only if the file has this tensor.
    classes: name of a class in transformers -> the heads of this class, by our names.
    modules: our module or parameter -> their name for it. `{i}` stands for the layer, `{s}` for encoder or decoder. Our
        kernel, scale or embedding of a module is their tensor `.weight`; our bias is their tensor `.bias`. If
        files with a certain head have another name for the pooler, the entry `HEAD/pooler` is that name.
    prefix: the prefix of most tensor names. Files of a model without heads, such as BertModel, lack the prefix.
    kernels_turned: if true, kernels are stored as [outputs, inputs], as in torch's Linear. False for GPT-2.
    tied: a copy among their tensors -> the tensor that it must equal. Import checks the copy, then skips it.
    computed: a tensor that our models compute -> a function that takes our ModelConfig and returns its values. Import
        checks the tensor if the file has it; export writes it.
    ignored: regular expression -> the reason why import skips tensors with matching names.
    constants: further key of config.json -> the value that export writes.
    stacks: a function that takes config.json. If config.json has parts for the encoder and the decoder, it returns one
        config.json for each, encoder first; the fields above describe each of them. Otherwise it returns config.json.
    join: a function that takes the config.json of a decoder and our ModelConfig. It returns one that `stacks` divides.
    """

    model_type: str
    base: ModelConfig
    settings: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    modules: Mapping[str, str | Key]
    choices: Mapping[str, Mapping[Any, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda settings: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    kernels_turned: bool = True
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    computed: Mapping[str, Callable[[ModelConfig], np.ndarray]] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stacks: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], ...]] = lambda settings: (settings,)
    join: Callable[[dict[str, Any], ModelConfig], dict[str, Any]] = lambda settings, config: settings

    @functools.cached_property
    def keys(self) -> frozenset[str]:
        """The keys of config.json that import reads, without `aliases`."""
        return frozenset((*self.settings.values(), *self.also, *self.choices, *self.write(self.base)))

    @property
    def logits_tensor(self) -> str:
        """The tensor that holds the kernel of untied logits. If logits are tied, it is a copy of `logits_table`."""
        row = self.modules.get("logits/dense", "lm_head")
        return f"{row if isinstance(row, str) else row.name}.weight"

    @property
    def logits_table(self) -> str:
        """The tensor that holds the table with which tied logits are computed."""
        return f"{self.modules.get('decoder_token_embedding', self.modules['token_embedding'])}.weight"

    def ties(self, with_logits: bool = True) -> dict[str, str]:
        """Returns {name of a tied tensor: name of the tensor that it equals}.

        with_logits: if false, leaves out the tensors of the output layer. Then only text_to_text models have tied
            tensors: the copies of the embedding table in the encoder and in the decoder.
        """
        ties = {**self.tied, self.logits_tensor: self.logits_table}
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


def setting(settings: Mapping[str, Any], key: str, default: T) -> T:
    """Returns the value of a key of config.json, or `default` if the key is missing or null.

    Raises ValueError, which names the key, if the value does not have the type of `default`, or is a number that is not
    finite or too large for our arrays.
    """
    value = settings.get(key)
    if value is None:
        return default
    largest = LARGEST_INTEGER if type(value) is int else LARGEST_FLOAT
    if type(value) in (int, float) and not -largest <= value <= largest:
        raise ValueError(f"{key}={str(value)[:40]}: must be a finite number of at most {largest:,}")
    if type(value) is int and type(default) is float:
        return float(value)  # type: ignore[return-value]
    if type(value) is not type(default):
        raise ValueError(f"{key}={str(value)[:80]!r}: must be of type {type(default).__name__}")
    return value


def each(ours: str, theirs: str, **names: str) -> dict[str, str | Key]:
    """Returns rows of Family.modules, one for each keyword argument. The argument's value replaces `*` in `theirs`.

    >>> each("encoder/mlp", "encoder.fc_*", wi="in", wo="out")
    {'encoder/mlp/wi': 'encoder.fc_in', 'encoder/mlp/wo': 'encoder.fc_out'}
    """
    return {f"{ours}/{name}": theirs.replace("*", other) for name, other in names.items()}
