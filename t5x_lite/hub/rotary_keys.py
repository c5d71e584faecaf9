"""Reads and writes the keys of config.json for rotary positions, grouped heads, and kinds of layers.

Several families share these keys.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.hub.family import setting
from t5x_lite.models.config import GLOBAL, LOCAL, MODEL_KEYS, UNPOSITIONED, ModelConfig

Settings = Mapping[str, Any]
Fields = dict[str, Any]
KINDS = {"full_attention": GLOBAL, "sliding_attention": LOCAL}  # as layer_types of config.json calls them
BIASES = {"attention_bias": {True: {"attention_bias": "all"}, False: {"attention_bias": "none"}}}


# Heads ----------------------------------------------------------------------------------------------------------------


def heads(settings: Settings, kv_heads: int = 0, head_dim: int = 0) -> Fields:
    """Returns num_kv_heads, and head_dim if config.json does not set it.

    kv_heads, head_dim: what transformers assumes without the key; 0: num_attention_heads, and hidden_size divided by
        it. null means num_attention_heads, too.
    """
    heads = settings["num_attention_heads"]
    assumed = heads if "num_key_value_heads" in settings else kv_heads or heads
    shared = setting(settings, "num_key_value_heads", assumed)
    if shared < 1 or heads % shared:
        raise ValueError(f"num_key_value_heads={shared}: must divide num_attention_heads={heads}")
    fields: Fields = {"num_kv_heads": 0 if shared == heads else shared}
    if settings.get("head_dim") is None:
        fields["head_dim"] = head_dim or settings["hidden_size"] // heads
    return fields


# Rotations ------------------------------------------------------------------------------------------------------------


def rope_of(settings: Settings, base: ModelConfig) -> Fields:
    """Returns our rotary fields.

    transformers 5 keeps the settings in rope_parameters; older versions use rope_theta and rope_scaling. If both are
    present, rope_scaling and the rope_theta inside it win.

    Raises ValueError if a setting is not supported.
    """
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = setting(settings, name, {})
    theta = _base(rope, "rope_theta", _base(settings, "rope_theta", base.rotary_base))
    for where in (rope, settings):
        if where.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(f"partial_rotary_factor={where['partial_rotary_factor']!r} is not supported; allowed: 1")
    return {"rotary_base": theta} | _scaling(settings, rope, name, base)


def _scaling(settings: Settings, rope: Settings, name: str, base: ModelConfig) -> Fields:
    """Returns the fields of the rule that stretches wavelengths. rope: the settings under the key `name`."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    if kind not in ("llama3", "linear", "yarn"):
        allowed = "default, linear, llama3, yarn"
        raise ValueError(f"{name}: rope_type={str(kind)[:80]!r} is not supported; allowed: {allowed}")
    only: Mapping[str, tuple] = {
        "llama3": {"low_freq_factor": (1,), "high_freq_factor": (4,)},
        "linear": {},
        "yarn": {
            **{"beta_fast": (None, 32), "beta_slow": (None, 1), "truncate": (None, True)},
            **dict.fromkeys(("mscale", "mscale_all_dim", "attention_factor"), (None,)),
        },
    }[kind]
    for key, values in only.items():
        if rope.get(key) not in values:
            given = str(rope.get(key))[:80]
            raise ValueError(f"{name}: {key}={given} with rope_type={kind!r} is not supported; allowed: {values[-1]}")
    if rope.get("factor") is None:
        raise ValueError(f"{name}: factor is missing; rope_type={kind!r} needs it")
    factor = setting(rope, "factor", 1.0)
    MODEL_KEYS["rotary_factor"].check(f"{name}: factor", factor)
    fields: Fields = {"rotary_scaling": kind, "rotary_factor": factor}
    if kind == "linear":
        return fields
    original = setting(settings, "max_position_embeddings", base.max_positions)
    for where in (rope, settings):  # as in transformers, a key outside of rope_parameters wins
        original = setting(where, "original_max_position_embeddings", original)
    MODEL_KEYS["rotary_original_positions"].check("original_max_position_embeddings", original)
    return fields | {"rotary_original_positions": original}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if config.rotary_factor != 1:
        scaling = {"rope_type": config.rotary_scaling, "factor": config.rotary_factor}
        if config.rotary_scaling == "llama3":
            scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if config.rotary_scaling != "linear":
            scaling["original_max_position_embeddings"] = config.rotary_original_positions
    both = {"rope_theta": config.rotary_base, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": config.rotary_base, "rope_scaling": scaling, "rope_parameters": both}


def ropes_of(settings: Settings, base: ModelConfig, global_base: str, local_base: str) -> Fields:
    """Returns our rotary fields if global and local layers have their own: rope_parameters has a part for each kind.

    global_base, local_base: the older keys of the two bases.
    """
    rope = setting(settings, "rope_parameters", {})
    if strange := rope.keys() - KINDS.keys():
        raise ValueError(f"rope_parameters has {', '.join(sorted(strange))[:80]}; its parts must be {', '.join(KINDS)}")
    inner = {kind: setting(rope, kind, {}) for kind in KINDS}
    of_global = {key: value for key, value in settings.items() if not key.startswith("rope_")}
    of_global["rope_parameters"] = inner["full_attention"] | setting(settings, "rope_scaling", {})
    theta, local = base.rotary_base, base.rotary_local_base
    theta = _base(settings, global_base, theta)
    local = _base(inner["sliding_attention"], "rope_theta", _base(settings, local_base, local))
    kind = inner["sliding_attention"].get("rope_type", "default")
    if kind != "default":
        raise ValueError(f"rope_parameters: rope_type={kind!r} of sliding_attention is not supported; allowed: default")
    return rope_of(of_global, dataclasses.replace(base, rotary_base=theta)) | {"rotary_local_base": local}


def _base(settings: Settings, key: str, assumed: float) -> float:
    """Returns the base of wavelengths under a key. Raises ConfigError, which names the key, if it is not positive."""
    base = setting(settings, key, assumed)
    MODEL_KEYS["rotary_base"].check(key, base)
    return base


def write_ropes(config: ModelConfig, global_base: str, local_base: str) -> dict[str, Any]:
    """Returns the keys that `ropes_of` reads."""
    rope = write_rope(config)
    local = {"rope_type": "default", "rope_theta": config.rotary_local_base or config.rotary_base}
    return {
        global_base: config.rotary_base,
        local_base: local["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
        "rope_parameters": {"sliding_attention": local, "full_attention": rope["rope_parameters"]},
    }


# Kinds of layers ------------------------------------------------------------------------------------------------------


def layer_types(settings: Settings, assumed: Callable[[int], str], window: int) -> Fields:
    """Returns local_window and layer_pattern.

    assumed: what transformers assumes if config.json lacks layer_types: the kinds of so many layers.
    window: the window of local layers; 0: none, so that they are global.
    """
    layers, given = settings["num_hidden_layers"], settings.get("layer_types")
    kinds = assumed(layers)
    if given is not None:
        if not isinstance(given, list) or len(given) != layers or any(kind not in KINDS for kind in given):
            raise ValueError(
                f"layer_types={str(given)[:80]}, num_hidden_layers={layers}: each layer must have a kind of "
                f"{', '.join(KINDS)}"
            )
        kinds = "".join(KINDS[kind] for kind in given)
        if LOCAL in kinds and not window:
            raise ValueError(
                "layer_types has sliding_attention, but sliding_window or use_sliding_window sets no window"
            )
    return pattern(kinds, window)


def pattern(kinds: str, window: int) -> Fields:
    """Returns local_window, and as layer_pattern the shortest text that gives `kinds` if it is repeated."""
    if LOCAL in kinds and not window:
        kinds = kinds.replace(LOCAL, GLOBAL)
    if set(kinds) == {GLOBAL}:
        return {"local_window": 0}
    length = next(n for n in range(1, len(kinds) + 1) if (kinds[:n] * len(kinds))[: len(kinds)] == kinds)
    return {"local_window": window if LOCAL in kinds else 0, "layer_pattern": kinds[:length]}


def write_layer_types(config: ModelConfig, layers: int = 0) -> dict[str, Any]:
    """Returns the keys that `layer_types` reads. layers: of the stack; 0: those of a model with one stack."""
    names = {letter: name for name, letter in KINDS.items()} | {UNPOSITIONED: "full_attention"}
    kinds = config.layer_kinds(layers or config.num_layers)
    return {"layer_types": [names[kind] for kind in kinds], "sliding_window": config.local_window or None}


def count(settings: Settings, key: str, assumed: int, least: int = 1) -> int:
    """Returns an integer of config.json. Raises ValueError, which names the key, if it is below `least`."""
    count = setting(settings, key, assumed)
    if count < least:
        raise ValueError(f"{key}={count}: must be at least {least}")
    return count


def window_of(settings: Settings) -> int:
    """Returns sliding_window; null means no window. Without the key, transformers assumes 4096."""
    if "sliding_window" in settings and settings["sliding_window"] is None:
        return 0
    return count(settings, "sliding_window", 4096)
