"""Copies parameters one by one from a Hugging Face directory to a mesh of devices, and back.

Even for a large model, the host's memory holds only one of our parameters at a time. If layers are scanned, one of our
parameters has the values of all layers.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from t5x_lite import batch as batches
from t5x_lite import models
from t5x_lite.cluster import sharding
from t5x_lite.cluster.sharding import Layout
from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.heads import ENCODER_HEADS, EXAMPLES, HEADS
from t5x_lite.hub import config_keys, mapping
from t5x_lite.hub.family import Family, setting
from t5x_lite.hub.import_report import ImportReport, Row
from t5x_lite.hub.mapping import Binding
from t5x_lite.hub.weights import Weights
from t5x_lite.models import paths
from t5x_lite.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Found:
    """Holds an opened Hugging Face directory: config.json (`settings`), the tensors, and the model that both describe.

    config: the model. config.json gives its sizes; the tensors show which heads it has and whether embeddings are tied.
    """

    path: Path
    settings: Mapping[str, Any]
    family: Family
    config: ModelConfig
    weights: Weights
    names: Mapping[str, str]  # name in the family's tables -> name in the file


def open_directory(path: Path) -> Found:
    """Opens a Hugging Face directory. Reads config.json and the names and shapes of the tensors.

    Raises CheckpointError if config.json or the tensors cannot be used.
    """
    mapping.refuse_adapter(path)
    where = path / "config.json"
    settings = mapping.read_json(where)
    family = mapping.family_of(settings, where)
    config = mapping.read_config(settings, family, where)
    weights = Weights(path)
    if config.num_layers > len(weights.shapes) and not config.share_layers:
        keys = config_keys.that_give(("num_encoder_layers", "num_decoder_layers"), settings, family)
        raise CheckpointError(
            f"{where} has {config.num_layers} layers ({keys}), but the files hold only {len(weights.shapes)} tensors"
        )
    names = mapping.canonical_names(weights.shapes, family)
    says_untied = not setting(settings, "tie_word_embeddings", family.base.tie_embeddings)
    must_differ = says_untied and family.model_type not in ("t5", "mt5", "umt5")  # transformers ties T5's tables anyway
    is_tied = config.tie_embeddings and not says_untied
    for copy, source in family.ties(is_tied).items():
        if source not in names and copy in names:  # a file may have any of the tied names
            names[source] = names.pop(copy)
    head_table = names.get(family.logits_tensor)
    tied = head_table is None or (config.tie_embeddings and _tied(weights, names, family))
    if config.architecture != "encoder_only":
        if head_table is None and must_differ:
            lacks = f"but the tensor {family.logits_tensor} is missing"
            raise CheckpointError(f"{where} has tie_word_embeddings=false, {lacks}")
        config = dataclasses.replace(config, tie_embeddings=tied)
    config = _with_heads(config, family, weights, names, settings)
    if ("mlm" in config.heads and says_untied) or (config.body == "encoder_decoder" and must_differ):
        table = f"{family.modules['token_embedding']}.weight"
        if lacking := [copy for copy, source in family.tied.items() if source == table and copy not in names]:
            raise CheckpointError(f"{where} has tie_word_embeddings=false, but the tensor {lacking[0]} is missing")
    return Found(path, settings, family, config, weights, names)


def with_marks_of(config: ModelConfig, vocabulary: Any) -> ModelConfig:
    """Returns an encoder's config with the marks between two texts that its tokenizer puts there itself.

    A tokenizer may belong to a different family than the model: multilingual MiniLM is a BERT with XLM-R's tokenizer.
    Raises ConfigError if the tokenizer's marks are neither BERT's nor RoBERTa's.
    """
    doubled = getattr(vocabulary, "doubles_sep", None)
    if config.architecture != "encoder_only" or doubled is None:
        return config
    if vocabulary.unusual_marks:
        raise ConfigError(
            f"{vocabulary.path}: the post_processor makes {vocabulary.unusual_marks!r} of two texts (token:type); an "
            "encoder needs [CLS] A [SEP] B [SEP] with B of type 1, or <s> A </s> </s> B </s> with one type"
        )
    return dataclasses.replace(config, fairseq_marks=doubled)


def require_rows(config: ModelConfig, vocabulary: Any, source: Path) -> None:
    """Raises ConfigError if the vocabulary in the directory `source` has more ids than the model has embedding rows."""
    size = vocabulary.size
    if size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer of {source} has {size} ids, the model {config.vocab_size} embedding rows; import it with "
            f"--vocab-size={-(-size // 128) * 128} to add rows, or use the model's own tokenizer"
        )


def abstract(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]:
    """Returns {path: (shape, logical axes)} of the parameters. Layers are scanned or unrolled as in `config`."""
    sizes = dict.fromkeys("BSLPEY", 1)
    example = batches.zeros(config.architecture, sizes, config.heads)
    module = models.build(config)
    boxed = jax.eval_shape(lambda key: models.init_params(module, key, example), jax.random.key(0))
    return {path: (tuple(box.value.shape), tuple(box.names)) for path, box in paths.flatten(boxed).items()}


def targets(config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """Returns the target into which a checkpoint is restored: nested dicts of ShapeDtypeStructs with shardings."""
    shapes = abstract(config).items()
    flat = {p: jax.ShapeDtypeStruct(s, np.float32, sharding=layout.sharding(axes)) for p, (s, axes) in shapes}
    return paths.unflatten(flat)


def load(
    found: Found, config: ModelConfig, layout: Layout, *, allow: Sequence[str] = ()
) -> tuple[dict[str, Any], ImportReport]:
    """Reads a model's parameters from an opened directory. Returns (parameters, report).

    config: the model. Its heads, vocabulary size and scanning may differ from those of the model in the directory.
    allow: names of tensors that may be unused or missing, and paths of our parameters whose tensors may be missing. A
        parameter whose tensor is missing starts fresh. In a name or path, `*` matches anything.

    Raises CheckpointError if a tensor has the wrong shape. Also raises it if a tensor is missing or is unknown to the
    family, unless `allow` has its name. These errors come before the function reads the values of our parameters.
    """
    shapes = abstract(config)
    parts = {path: paths.unrolled(path, shape) for path, (shape, _) in shapes.items()}
    disk_vocab = found.config.vocab_size
    theirs = {}
    for path, (shape, axes) in shapes.items():
        on_disk = tuple(disk_vocab if axis == "vocab" else size for size, axis in zip(shape, axes, strict=True))
        for part in parts[path]:
            theirs[part] = on_disk if part == path else on_disk[1:]
    bound = {binding.path: binding for binding in mapping.bindings(found.family, theirs)}
    names = found.names
    part_axes = {part: axes for path, (_, axes) in shapes.items() for part in parts[path]}
    rows = _account(found, config, bound, names, allow, part_axes)
    fresh = [path for path in shapes if any(bound[part].key not in names for part in parts[path])]
    values = _fresh(config, fresh)
    flat: dict[str, Any] = {}
    for path, (shape, axes) in shapes.items():
        if path in values:
            value = values[path]
        else:
            arrays = [_resized(_read(found, bound[part], names), theirs[part], axes, config) for part in parts[path]]
            value = np.stack(arrays) if parts[path] != [path] else arrays[0]
        assert value.shape == shape, (path, value.shape, shape)
        flat[path] = jax.device_put(value, layout.sharding(axes))
    return paths.unflatten(flat), ImportReport(tuple(rows))


def tensors(
    config: ModelConfig, family: Family, params: Any, without_prefix: bool = False
) -> tuple[dict[str, tuple[int, ...]], Iterator[tuple[str, np.ndarray]]]:
    """Converts our parameters to Hugging Face's tensors.

    Returns ({name: shape}, an iterator over (name, values)). Both have all tensors in the same order.

    params: our parameters. The iterator reads them from the devices one by one.
    without_prefix: if true, the names lack the family's prefix.
    """
    shapes = abstract(config)
    unrolled = {path: shape for path, (shape, _) in _unrolled(shapes).items()}
    grouped: dict[str, list[Binding]] = {}
    for binding in mapping.bindings(family, unrolled):
        name = binding.key.removeprefix(family.prefix) if without_prefix else binding.key
        grouped.setdefault(name, []).append(binding)
    flat = paths.flatten(params)

    def value(binding: Binding) -> np.ndarray:
        if binding.path in flat:
            return np.asarray(flat[binding.path])
        scanned, layer = re.sub(r"layers_(\d+)", "layers", binding.path), re.search(r"layers_(\d+)", binding.path)
        return np.asarray(flat[scanned][int(layer[1])])  # type: ignore[index]

    computed = {key: values(config) for key, values in family.computed.items()}

    def each() -> Iterator[tuple[str, np.ndarray]]:
        for key, group in grouped.items():
            group = sorted(group, key=lambda binding: binding.part or (0, 1))
            parts = [binding.theirs(value(binding)) for binding in group]
            yield key, np.concatenate(parts, axis=group[0].outputs_axis)
        yield from computed.items()

    stored = {key: group[0].their_shape for key, group in grouped.items()}
    return stored | {key: values.shape for key, values in computed.items()}, each()


def layers_of(path: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields one (path, array) per layer if `array` is a stack of scanned layers. Otherwise yields the given pair."""
    parts = paths.unrolled(path, array.shape)
    yield from zip(parts, [array] if parts == [path] else array, strict=True)


def _unrolled(shapes: dict) -> dict:
    out = {}
    for path, (shape, axes) in shapes.items():
        for part in paths.unrolled(path, shape):
            out[part] = (shape, axes) if part == path else (shape[1:], axes[1:])
    return out


def _tied(weights: Weights, names: Mapping[str, str], family: Family) -> bool:
    table = names.get(family.logits_table)
    head = names[family.logits_tensor]
    if table is None or weights.shapes[table] != weights.shapes[head]:
        return False
    return bool(np.array_equal(weights.read(table), weights.read(head)))


def _with_heads(
    config: ModelConfig, family: Family, weights: Weights, names: Mapping[str, str], settings: Mapping[str, Any]
) -> ModelConfig:
    """Returns `config` with the heads whose tensors the file has.

    If several heads share a tensor, the class named in config.json's `architectures` shows which of these heads the
    model has. If the class is missing or unknown, the model gets the first of these heads in Family.heads. A
    classification head becomes `regression` if it has a single output. It becomes `multi_label` if it has several
    outputs and config.json's problem_type says that a text may have several labels.
    """
    architectures = settings.get("architectures")
    classes = [family.classes.get(str(name), ()) for name in architectures] if isinstance(architectures, list) else []
    head_of: dict[str, str] = {}
    for head, tensor in family.heads.items():
        if tensor in names and (tensor not in head_of or any(head in heads for heads in classes)):
            head_of[tensor] = head
    heads, num_classes = list(head_of.values()), 0
    for head in [name for name in heads if HEADS[name].has_classes]:
        num_classes = weights.shapes[names[family.heads[head]]][0]
        if head == "classification" and num_classes == 1:
            heads[heads.index(head)], num_classes = "regression", 0
        elif head == "classification" and settings.get("problem_type") == "multi_label_classification":
            heads[heads.index(head)] = "multi_label"
    for tensor in (t for t, head in head_of.items() if t in config_keys.SIZED_BY_LABELS and head != "multiple_choice"):
        config_keys.check_classes(settings, weights.shapes[names[tensor]][0], weights.path)
    if "pooled" in heads and any(HEADS[name].reads == EXAMPLES for name in heads if name != "pooled"):
        heads.remove("pooled")
    return dataclasses.replace(config, heads=tuple(heads), num_classes=num_classes)


def _account(
    found: Found,
    config: ModelConfig,
    bound: Mapping[str, Binding],
    names: Mapping[str, str],
    allow: Sequence[str],
    axes: Mapping[str, Sequence[str | None]],
) -> list[Row]:
    """Returns one Row per tensor, and one per parameter that has no tensor.

    axes: {path: logical axes} of our parameters, without the axis of scanned layers.

    Raises CheckpointError if a tensor has the wrong shape, or if a tied copy differs from its original. Also raises it
    if a parameter or tensor has no counterpart, unless the family explains this or `allow` permits it.
    """
    family, shapes = found.family, found.weights.shapes
    rows, used, missing = [], {}, []
    for binding in bound.values():
        if binding.key in names:
            got = shapes[names[binding.key]]
            if got != binding.their_shape:
                keys = config_keys.that_give(config_keys.fields_of(axes[binding.path]), found.settings, family)
                raise CheckpointError(
                    f"{found.path}: {names[binding.key]} has the shape {list(got)}; config.json makes it "
                    f"{list(binding.their_shape)} ({keys}). The files belong to different models, or are corrupted"
                )
            used.setdefault(binding.key, []).append(binding)
            continue
        group = _head_of(binding.path, config)
        if group and not any(names.get(t) for h, t in family.heads.items() if h in group):
            rows.append(Row("", binding.shape, "fresh", binding.path, f"the file has no head {' or '.join(group)}"))
        elif _allowed(binding.path, allow) or _allowed(binding.key, allow):
            rows.append(Row("", binding.shape, "fresh", binding.path, "allowed by name"))
        elif binding.key == "final_logits_bias":
            rows.append(Row("", binding.shape, "fresh", binding.path, "zeros, as in transformers"))
        else:
            missing.append(binding)
    parts = config_keys.that_give(config_keys.FIELDS_OF_PARTS, found.settings, family)
    if missing:
        b = missing[0]
        raise CheckpointError(
            f"{found.path} lacks {len(missing)} tensors, first {b.key} (our {b.path}): files are missing, or "
            f"config.json belongs to a different model ({parts}). --allow={b.path} initializes that parameter fresh"
        )
    any_head = re.compile("|".join(mapping.patterns(family)))
    unexplained = []
    for name, original in names.items():
        shape = shapes[original]
        if name in used:
            rows.append(_used(original, shape, used[name], config, found.config))
        elif reason := next((r for pattern, r in family.ignored.items() if re.fullmatch(pattern, name)), ""):
            rows.append(Row(original, shape, "skipped", reason=reason))
        elif name in family.computed:
            _check_computed(found, name, family.computed[name](found.config))
            rows.append(Row(original, shape, "skipped", reason="our models compute it"))
        elif source := family.ties().get(name):
            if source not in names or not np.array_equal(
                found.weights.read(original), found.weights.read(names[source])
            ):
                raise CheckpointError(
                    f"{found.path}: {original} differs from {source}; in our {family.model_type} models the two are "
                    "tied (tie_word_embeddings)"
                )
            rows.append(Row(original, shape, "tied", reason=f"the same as {source}"))
        elif _allowed(original, allow):
            rows.append(Row(original, shape, "skipped", reason="allowed by name"))
        elif any_head.fullmatch(name) and _of_another_head(name, family):
            rows.append(Row(original, shape, "skipped", reason=f"its head is not in the model; heads={config.heads}"))
        else:
            unexplained.append(original)
    if unexplained:
        raise CheckpointError(
            f"{found.path} has {len(unexplained)} tensors that {family.model_type} does not have, first "
            f"{unexplained[0]} ({parts}). --allow={unexplained[0]} skips it"
        )
    return rows


def _check_computed(found: Found, name: str, expected: np.ndarray) -> None:
    """Raises CheckpointError if a tensor differs from what our models compute, by more than rounding to bfloat16."""
    original = found.names[name]
    if (got := found.weights.shapes[original]) != expected.shape:
        keys = config_keys.that_give(("d_model", "max_positions"), found.settings, found.family)
        raise CheckpointError(
            f"{found.path}: {original} has the shape {list(got)}; config.json makes it {list(expected.shape)} ({keys})"
        )
    if not np.allclose(found.weights.read(original), expected, rtol=0, atol=4e-3):
        raise CheckpointError(
            f"{found.path}: {original} is not {found.config.positions}; our {found.family.model_type} models compute "
            "these positions, and cannot read others"
        )


def _used(name: str, shape: tuple[int, ...], bound: list[Binding], config: ModelConfig, disk: ModelConfig) -> Row:
    ours = ", ".join(binding.path for binding in bound)
    by_vocab = _of_vocabulary(bound[0].path)
    if by_vocab and config.vocab_size != disk.vocab_size:
        new = config.vocab_size - disk.vocab_size
        how = f"{new} rows added, each the mean of the others" if new > 0 else f"last {-new} rows dropped"
        return Row(name, shape, "resized", ours, how)
    return Row(name, shape, "transposed" if bound[0].turned else "loaded", ours)


def _of_vocabulary(path: str) -> bool:
    return path.startswith(("token_embedding/", "decoder_token_embedding/", "logits/")) or path == "mlm/bias"


# HEAD_PARTS is {top-level group of an encoder's parameters: heads to which the group may belong}. The heads in
# ONE_CLASS share one class of transformers. The key problem_type of config.json tells these heads apart.
ONE_CLASS = ("classification", *(name for name, head in ENCODER_HEADS.items() if head.problem_type))
HEAD_PARTS = {
    **{name: ONE_CLASS if name in ONE_CLASS else (name,) for name in ENCODER_HEADS if name != "pooled"},
    "pooler": tuple(name for name, head in ENCODER_HEADS.items() if head.reads == EXAMPLES),
}


def _head_of(path: str, config: ModelConfig) -> tuple[str, ...]:
    """Returns the heads to which the parameter at `path` may belong, or () if it does not belong to a head."""
    return HEAD_PARTS.get(path.split("/")[0], ()) if config.architecture == "encoder_only" else ()


def _of_another_head(name: str, family: Family) -> bool:
    for module, row in family.modules.items():
        if module.split("/")[0] in HEAD_PARTS:
            base = row if isinstance(row, str) else row.name
            if name.startswith(base + ".") or name == base:
                return True
    return False


def _allowed(name: str, allow: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in allow)


def _read(found: Found, binding: Binding, names: Mapping[str, str]) -> np.ndarray:
    return binding.ours(found.weights.read(names[binding.key]))


def _resized(array: np.ndarray, shape: tuple[int, ...], axes: Sequence[str | None], config: ModelConfig) -> np.ndarray:
    """Resizes the axis `vocab` of an array to the model's vocabulary. New rows are copies of the mean of the old rows.

    Returns the array unchanged if it has no axis `vocab`.

    shape, axes: the shape and the logical axes of `array`.
    """
    if "vocab" not in axes:
        return array
    axis = list(axes).index("vocab")
    rows = config.vocab_size - shape[axis]
    if rows <= 0:
        return np.take(array, range(config.vocab_size), axis) if rows else array
    mean = np.mean(array, axis=axis, keepdims=True, dtype=np.float64).astype(np.float32)
    return np.concatenate([array, np.repeat(mean, rows, axis)], axis)


def _fresh(config: ModelConfig, fresh: list[str]) -> dict[str, Any]:
    """Returns {path: initial value} for the paths in `fresh`. Does not compute the values of other parameters."""
    if not fresh:
        return {}
    example = batches.zeros(config.architecture, dict.fromkeys("BSLPEY", 1), config.heads)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = nn.meta.unbox(models.init_params(models.build(config), key, example))  # type: ignore[arg-type]
        flat = paths.flatten(params)
        return {path: flat[path] for path in fresh}

    return jax.jit(init)(jax.random.key(0))


def layout_for(config: ModelConfig) -> Layout:
    """Returns a layout over all devices.

    The layout shards parameters if the number of devices divides d_model and table_dim. Otherwise it replicates them.
    """
    devices = jax.device_count()
    split = config.d_model % devices == 0 and config.table_dim % devices == 0
    return Layout(sharding.make_mesh(fsdp=devices) if split else sharding.make_mesh(data=devices))
