"""Models of three architectures, which share their layers. A `ModelConfig` describes a model of any architecture.

This module imports jax only inside its functions, so that a `ModelConfig` can be read and validated without jax.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from t5x_lite import own_code
from t5x_lite.models.config import ModelConfig

if TYPE_CHECKING:
    import flax.linen as nn
    import jax

    from t5x_lite.models.layers import Constrain


def build(config: ModelConfig, constrain: "Constrain | None" = None) -> "nn.Module":
    """Returns the Flax module for `config`.

    `module.init(key, batch)["params"]` returns the parameters. Each one is boxed as an `nn.Partitioned`, which names
    the parameter's logical axes. `module.apply({"params": params}, batch, train, rngs=rngs)` returns {head: float32
    array}. The heads are `config.heads` for encoder_only, and only "lm" for the other architectures.

    The model calls `constrain(array, axes)` for each activation, where `axes` names the activation's logical axes.
    `constrain` returns the array, sharded over the mesh.

    If `config.module` is set, it is built instead of the architecture's own module. Raises ConfigError if `config` is
    not valid.
    """
    from t5x_lite.models.cbow import ContinuousBagOfWords
    from t5x_lite.models.decoder_only import DecoderOnly
    from t5x_lite.models.elmo import Elmo
    from t5x_lite.models.encoder_decoder import EncoderDecoder
    from t5x_lite.models.encoder_only import EncoderOnly
    from t5x_lite.models.layers import unconstrained
    from t5x_lite.models.text_to_text import TextToText

    config.validate()
    if config.module is not None:
        return config.module(config, constrain or unconstrained)
    bodies = {"cbow": ContinuousBagOfWords, "elmo": Elmo, "encoder_decoder": EncoderDecoder}
    families = {"text_to_text": TextToText, "encoder_only": EncoderOnly, "decoder_only": DecoderOnly}
    return bodies.get(config.body, families[config.architecture])(config, constrain or unconstrained)


def init_params(module: "nn.Module", key: "jax.Array", batch: "Mapping[str, Any]") -> Any:
    """Returns fresh boxed parameters for a module made by `build`.

    Scanned and unrolled layers get the same numbers. Parameters of `config.module` that have no logical axes are
    replicated on every device.

    The scanned model's program draws the parameters even if the layers are unrolled. For a T5-small, it takes 7 s of
    CPU time to compile; a program that draws each layer separately took 18 s.

    Raises ConfigError if `config.module` fails.
    """
    from t5x_lite.models.transformer import unstack_layers

    if own_code.is_own(type(module)):
        what = f"model.module={own_code.name_of(type(module))}"
        return boxed(own_code.called(what, module.init, key, batch)["params"])
    config = module.config  # type: ignore[attr-defined]
    # A model whose first layer lacks a norm cannot be scanned. The stand-in has this norm, which is dropped.
    lacks_norm = config.norm_position == "pre_but_first"
    drawn = dataclasses.replace(config, scan_layers=True, **({"norm_position": "pre"} if lacks_norm else {}))
    params: Any = build(drawn, module.constrain).init(key, batch)["params"]  # type: ignore[attr-defined]
    params = params if config.scan_layers else unstack_layers(params)
    if lacks_norm:
        stacks = [params[name] for name in params.keys() & {"encoder", "decoder"}]
        stacks += [params["generator"]["encoder"]] if "generator" in params else []
        for stack in stacks:
            del stack["layers_0"]["self_attention_norm"]
    return params


def boxed(tree: Any) -> Any:
    """Returns the tree with every array boxed as an `nn.Partitioned`. Scalars are never boxed.

    If an array already has a box with one name per axis, it keeps this box. Otherwise it gets a box without axis names.
    """
    import flax.linen as nn
    import jax

    def box(leaf: Any) -> Any:
        value = leaf.value if isinstance(leaf, nn.Partitioned) else leaf
        if (isinstance(leaf, nn.Partitioned) and len(leaf.names) == value.ndim) or value.ndim == 0:
            return leaf if value.ndim else value
        return nn.Partitioned(value, (None,) * value.ndim)

    return jax.tree.map(box, tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
