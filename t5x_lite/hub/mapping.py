"""Converts a config.json to a ModelConfig and back, and Hugging Face's tensors to our parameters and back.

The tables in families.py say what corresponds to what. This module does not import jax.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite import side_files
from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.heads import HEADS
from t5x_lite.hub import config_keys
from t5x_lite.hub.families import FAMILIES, VARIANTS
from t5x_lite.hub.family import Family, Key, setting
from t5x_lite.lookup import lookup
from t5x_lite.models.config import LOCAL, MODEL_KEYS, ModelConfig

REQUIRED = ("vocab_size", "d_model", "num_heads", "num_encoder_layers", "num_decoder_layers")
# A config.json may lack these fields, because they decide how a model is trained or run, but not what it computes.
SILENT = (
    "dtype", "scan_layers", "remat", "initializer", "initializer_stddev", "dropout_rate",
    "attention_dropout_rate", "classifier_dropout_rate", "dropout_hidden", "dropout_broadcasts_length", "heads",
    "num_classes", "decoder_start_id", "fairseq_marks", "max_positions", "lora_rank", "lora_alpha", "lora_targets",
    "lora_dropout_rate",
)  # fmt: skip
# These heads and `classification` share a class in transformers. The key problem_type of config.json tells them apart.
PROBLEMS = {name: head.problem_type for name, head in HEADS.items() if head.problem_type}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
ADAPTER = "adapter_config.json"  # peft's; none of its keys is read
LARGEST_JSON = 10_000_000  # bytes; a config.json has a few thousand


# config.json ----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in an untrusted file.

    Raises CheckpointError if the file cannot be read, is too large, or holds something other than an object.
    """
    try:
        value = side_files.read_json(path, LARGEST_JSON)
    except OSError as error:
        hint = "" if path.parent.is_dir() else " (`t5x-lite import hf://OWNER/NAME OUT` downloads one)"
        raise CheckpointError(
            f"cannot read {path}: {side_files.why(error)}; pass a directory in Hugging Face format{hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {side_files.why(error)}; download the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"cannot read {path}: it holds a {type(value).__name__}, not an object; download the file again"
        )
    return value


def refuse_adapter(directory: Path) -> None:
    """Raises CheckpointError if the directory has peft's adapter_config.json. transformers would add the adapter."""
    if side_files.is_there(directory / ADAPTER):
        raise CheckpointError(
            f"{directory} has an {ADAPTER}: adapters of peft cannot be imported. Merge it into its base model, and "
            "import the result: `model.merge_and_unload().save_pretrained(OUT)` in Python. If the weights here are "
            f"merged already, remove {ADAPTER}"
        )


def family_of(settings: Mapping[str, Any], where: Path) -> Family:
    """Returns the family that `model_type` in config.json names, or its variant that `architectures` names.

    settings: the content of config.json.
    where: the path of config.json, for error messages.

    Raises CheckpointError if model_type is missing or unknown, or if no variant has a class in `architectures`.
    """
    name = settings.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError(f"{where} has no model_type; allowed: {', '.join(FAMILIES)}")
    try:
        family = lookup("model_type", name, FAMILIES)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
    classes = {name: one for one in (family, *VARIANTS.get(name, ())) for name in one.classes}
    named = config_keys.checked_class(settings, tuple(classes), where)
    return classes.get(named, family)


def read_config(settings: Mapping[str, Any], family: Family, where: Path) -> ModelConfig:
    """Returns the ModelConfig that a config.json describes, without heads. (Only the tensors show which heads exist.)

    settings: the content of config.json.
    where: the path of config.json, for error messages.

    Raises CheckpointError if a value is missing, has the wrong type, or is not supported by our models.
    """
    try:
        stacks = [_read(one, family) for one in family.stacks(settings)]
        return stacks[0] if len(stacks) == 1 else _joined(stacks[0], stacks[1], settings, family)
    except (ValueError, ConfigError) as error:
        names = {"head_dim": f"{family.settings['d_model']}/{family.settings['num_heads']}"} | dict(family.settings)
        text = re.sub(r"model\.(\w+)", lambda field: names.get(field[1], field[0]), str(error))
        raise CheckpointError(f"{where}: {text}") from None


def _read(settings: Mapping[str, Any], family: Family) -> ModelConfig:
    """Returns the ModelConfig that a config.json without parts describes. Raises ValueError or ConfigError."""
    settings = config_keys.checked(settings, family)
    fields = _same_values(settings, family)
    for key, table in family.choices.items():
        if (value := settings.get(key)) is not None:
            if not isinstance(value, str | int | float) or value not in table:
                allowed = ", ".join(map(str, table))
                raise ValueError(f"{key}={str(value)[:80]!r} is not supported; allowed: {allowed}")
            fields |= table[value]
    field_of = {key: field for field, key in family.settings.items()}
    for key, source in family.also.items():
        value, other = (setting(settings, name, getattr(family.base, field_of[source])) for name in (key, source))
        if value != other:
            raise ValueError(f"{key}={value!r} and {source}={other!r} differ; our models have one value for both")
    fields |= family.read(settings)
    if "head_dim" not in family.settings:
        fields["head_dim"] = fields["d_model"] // fields["num_heads"]
    return dataclasses.replace(family.base, **({"heads": (), "num_classes": 0} | fields)).validate()


def _joined(encoder: ModelConfig, decoder: ModelConfig, settings: Mapping[str, Any], family: Family) -> ModelConfig:
    """Returns the model of two stacks. encoder, decoder: models in which both stacks are as the encoder or the decoder.

    Raises ValueError, which names the keys, if the stacks differ in more than the number of their layers.
    """
    longer, shorter = sorted((decoder, encoder), key=lambda config: -config.num_decoder_layers)
    joined = dataclasses.replace(
        decoder,
        num_encoder_layers=encoder.num_decoder_layers,
        layer_pattern=longer.layer_pattern,
        local_window=longer.local_window,
    )
    layers = shorter.num_decoder_layers
    same = dataclasses.replace(
        encoder,
        num_encoder_layers=joined.num_encoder_layers,
        num_decoder_layers=joined.num_decoder_layers,
        layer_pattern=joined.layer_pattern,
        local_window=longer.local_window if LOCAL not in shorter.layer_kinds(layers) else shorter.local_window,
    )
    if same == joined and longer.layer_kinds(layers) == shorter.layer_kinds(layers):
        return joined
    sides = family.stacks(settings)
    keys = [key for key in sorted(family.keys) if sides[0].get(key) != sides[1].get(key) and key != "num_hidden_layers"]
    values = ", ".join(f"{key}={str(sides[0].get(key))[:40]} and {str(sides[1].get(key))[:40]}" for key in keys)
    raise ValueError(
        f"encoder and decoder differ: {values}; in our models they may differ only in the number of their layers"
    )


def _same_values(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Returns those of our fields that have the same value as a key of config.json.

    Raises ValueError or ConfigError, which name the key, if the value is not valid, or if a necessary key is missing.
    """
    fields: dict[str, Any] = {}
    for field, key in family.settings.items():
        default = getattr(family.base, field)
        if settings.get(key) is not None:
            value = fields[field] = setting(settings, key, default)
            MODEL_KEYS[field].check(key, value)
            if value < 0:  # -1 would mean to our models that the value is not set
                raise ValueError(f"{key}={value}: must be at least 0")
        elif field == "decoder_start_id" and key in settings:  # null, so transformers has no such id
            fields[field] = -1
        elif field in REQUIRED and default and key != "num_decoder_layers":
            raise ValueError(f"{key} is missing")
    pad = settings.get("pad_token_id", family.constants.get("pad_token_id"))
    if type(pad) is int and pad >= fields["vocab_size"]:
        logging.getLogger(__name__).warning("pad_token_id=%d is ignored: vocab_size=%d", pad, fields["vocab_size"])
    start = fields.get("decoder_start_id", family.base.decoder_start_id)
    if start >= fields["vocab_size"]:  # GPT-2's id, left in the config.json of a model with a smaller vocabulary
        if settings.get(key := family.settings["decoder_start_id"]) is not None:
            logging.getLogger(__name__).warning("%s=%d is ignored: vocab_size=%d", key, start, fields["vocab_size"])
        fields["decoder_start_id"] = -1
    return fields


def write_config(
    config: ModelConfig, family: Family, labels: Sequence[str] = (), token_ids: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Returns the config.json of a model, as a dict.

    labels: names of the classes; (): LABEL_0, LABEL_1, ….
    token_ids: {key of config.json: id} of the vocabulary's special tokens; a key is eos_token_id, for example. These
        ids replace those in Family.constants, which are the ids of the published models.

    Raises ConfigError if the family cannot express the model. The message names the fields that are the cause.
    """
    ids = token_ids or {}
    out: dict[str, Any] = {"model_type": family.model_type} | {k: ids.get(k, v) for k, v in family.constants.items()}
    if config.architecture != "encoder_only":
        out |= {key: ids[key] for key in ("pad_token_id", "eos_token_id") if key in ids}
    out |= {key: getattr(config, field) for field, key in family.settings.items()}
    out |= {key: out[source] for key, source in family.also.items()}
    for key, table in family.choices.items():
        for value, fields in table.items():
            if all(getattr(config, field) == wanted for field, wanted in fields.items()):
                out[key] = value
                break
    out |= {"torch_dtype": "float32"} | family.write(config)
    if (out.get("pad_token_id") or 0) >= config.vocab_size:
        out["pad_token_id"] = 0  # transformers refuses an id past the end of the table
    head = family.settings.get("classifier_dropout_rate")
    if head and out[head] == -1:
        out[head] = None if family.base.classifier_dropout_rate == -1 else config.dropout_rate
    start = family.settings.get("decoder_start_id")
    if start and out[start] == -1:  # -1: our decoder starts with the pad token
        out[start] = family.constants.get(start, out.get("pad_token_id"))
    out = family.join(out, config)
    again = dataclasses.replace(read_config(out, family, Path("config.json")), tie_embeddings=config.tie_embeddings)
    differ = [
        f"{f.name}={getattr(config, f.name)!r} (config.json: {getattr(again, f.name)!r})"
        for f in dataclasses.fields(config)
        if f.name not in SILENT and _meaning(config, f.name) != _meaning(again, f.name)
    ]
    if differ:
        raise ConfigError(f"Hugging Face's {family.model_type} cannot express {', '.join(differ[:4])}")
    for name, heads in family.classes.items():
        if heads == tuple("classification" if h in PROBLEMS else h for h in config.heads):
            out["architectures"] = [name]
            break
    if config.num_classes or "regression" in config.heads:
        count = config.num_classes or 1
        names = tuple(labels) if len(labels) == count else tuple(f"LABEL_{i}" for i in range(count))
        out |= {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    for head in set(PROBLEMS) & set(config.heads):
        if head != "regression" or len(labels) != 1:  # a single output that has a name is a class
            out["problem_type"] = PROBLEMS[head]
    return out


def _meaning(config: ModelConfig, field: str) -> Any:
    """Returns the value of a field. Two patterns of layers mean the same if they give the same kinds."""
    layers = max(config.num_encoder_layers, config.num_decoder_layers)
    return config.layer_kinds(layers) if field == "layer_pattern" else getattr(config, field)


def family_for(config: ModelConfig, name: str = "") -> Family:
    """Returns the family called `name`, or, if `name` is "", the first family that can express the model.

    Raises ConfigError if no family has this name, or if none can express the model.
    """
    if name:
        family = lookup("family", name, FAMILIES)
        kind = config.architecture, config.body
        same = (one for one in VARIANTS.get(name, ()) if (one.base.architecture, one.base.body) == kind)
        return next(same, family)
    reasons = []
    for family in (*FAMILIES.values(), *(one for variants in VARIANTS.values() for one in variants)):
        if family.base.architecture == config.architecture:
            try:
                write_config(config, family)
                return family
            except (ConfigError, CheckpointError) as error:
                reasons.append(str(error))
    fewest = min(reasons, key=lambda reason: reason.count("(config.json:"), default="")
    raise ConfigError(f"no Hugging Face family can express this model: {fewest}. Only t5x_lite can use its checkpoint")


# Tensors --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Binding:
    """Connects one of our parameters to the Hugging Face tensor that holds it, and says how it is stored there.

    path, shape: the path and shape of our parameter.
    key: the name of their tensor.
    part, leading: as in `Key`.
    turned: if true, the tensor is stored transposed.
    """

    path: str
    shape: tuple[int, ...]
    key: str
    part: tuple[int, int] | None = None
    turned: bool = False
    leading: bool = False

    @property
    def _matrix(self) -> tuple[int, ...]:
        """Our parameter's shape as a matrix, (inputs, outputs). For a bias or scale, (size,)."""
        if not self.path.endswith(("kernel", "embedding")):
            return (math.prod(self.shape),)
        inputs = 2 if self.path.endswith("/out/kernel") else 1
        return math.prod(self.shape[:inputs]), math.prod(self.shape[inputs:])

    @property
    def their_shape(self) -> tuple[int, ...]:
        """The shape of their tensor."""
        shape = list(self._matrix[::-1] if self.turned else self._matrix)
        if self.part is not None:
            shape[self.outputs_axis] *= self.part[1]
        return (1, *shape) if self.leading else tuple(shape)

    @property
    def outputs_axis(self) -> int:
        """The axis along which a tensor of several parameters holds them side by side."""
        return 0 if self.turned else -1

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """Converts their tensor to our parameter: from `their_shape` to `shape`."""
        if self.part is not None:
            place, count = self.part
            tensor = np.split(tensor, count, axis=self.outputs_axis)[place]
        return (tensor.T if self.turned else tensor).reshape(self.shape)

    def theirs(self, parameter: np.ndarray) -> np.ndarray:
        """Converts our parameter to their tensor. If the tensor holds several parameters, returns only our part."""
        tensor = parameter.reshape(self._matrix)
        return (tensor.T if self.turned else tensor)[(None,) if self.leading else ...]


def bindings(family: Family, shapes: Mapping[str, tuple[int, ...]]) -> list[Binding]:
    """Returns one Binding per parameter, in the order of `shapes`.

    shapes: {path: shape} of our parameters. Layers must be unrolled (layers_0, layers_1, …).

    Raises ConfigError if the family has no tensor for a parameter.
    """
    out = []
    tops = {path.split("/")[0] for path in shapes}
    for path, shape in shapes.items():
        module, _, leaf = path.rpartition("/")
        side = module.split("/")[0]
        layer = re.search(r"layers_(\d+)", module)
        general = re.sub(r"layers_\d+", "layers_{i}", path)
        names = (*(f"{top}/{general}" for top in tops), general, general.replace(side + "/", "{s}/", 1))
        row = next((family.modules[n] for n in names if n in family.modules), None)
        suffix = ""
        if row is None:
            names = tuple(name.rpartition("/")[0] for name in names)
            row = next((family.modules[n] for n in names if n in family.modules), None)
            suffix = f".{LEAVES[leaf]}"
        if row is None:
            raise ConfigError(f"Hugging Face's {family.model_type} has no tensor for our parameter {path}")
        row = row if isinstance(row, Key) else Key(row)
        key = row.name.replace("{i}", layer[1] if layer else "").replace("{s}", side) + suffix
        turned = row.turned or (leaf == "kernel" and family.kernels_turned)
        out.append(Binding(path, tuple(shape), key, row.part, turned, row.leading))
    return out


def canonical_names(names: Collection[str], family: Family) -> dict[str, str]:
    """Returns {name in the family's tables: name in the file} of the tensors in a file.

    A name in the file may lack the prefix of the family, or be an old name of a norm (such as LayerNorm.gamma).

    names: the names in the file.

    Raises CheckpointError if two names in the file stand for the same tensor.
    """
    exact = map(re.escape, (*family.tied, *family.computed))
    known = re.compile("|".join([*patterns(family), *exact, *family.ignored]))
    out: dict[str, str] = {}
    for name in names:
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        if not known.fullmatch(new) and known.fullmatch(family.prefix + new):
            new = family.prefix + new
        if new in out:
            raise CheckpointError(f"{out[new]!r} and {name!r} are two names of the same tensor")
        out[new] = name
    return out


def patterns(family: Family) -> Iterator[str]:
    """Yields regular expressions. Together they match all tensor names of the family, including those of all heads."""
    for module, row in family.modules.items():
        name = re.escape(row.name if isinstance(row, Key) else row)
        name = name.replace(r"\{i\}", r"\d+").replace(r"\{s\}", "(encoder|decoder)")
        yield name if module.endswith("/bias") else rf"{name}\.(weight|bias)"
