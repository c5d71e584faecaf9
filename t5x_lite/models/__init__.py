"""The models: one configuration, three architectures, from shared parts.

What a config means is known without jax, which only the functions here import.
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
    """The module for `config`: `init(key, batch)["params"]`, `apply({"params": p}, batch, train, rngs)`.

    Parameters come boxed as `nn.Partitioned` with their logical axis names. `constrain(array, axes)` is
    called on activations with theirs, and returns the array, laid out as the mesh wants it.
    The output is a dict of float32 arrays, one per head: "lm", or those of `config.heads`. `config.module` is built in
    place of the architecture's own module.
    """
    from t5x_lite.models.cbow import ContinuousBagOfWords
    from t5x_lite.models.decoder_only import DecoderOnly
    from t5x_lite.models.elmo import Elmo
    from t5x_lite.models.encoder_only import EncoderOnly
    from t5x_lite.models.layers import unconstrained
    from t5x_lite.models.text_to_text import TextToText

    config.validate()
    if config.module is not None:
        return config.module(config, constrain or unconstrained)
    bodies = {"cbow": ContinuousBagOfWords, "elmo": Elmo}
    families = {"text_to_text": TextToText, "encoder_only": EncoderOnly, "decoder_only": DecoderOnly}
    return bodies.get(config.body, families[config.architecture])(config, constrain or unconstrained)


def init_params(module: "nn.Module", key: "jax.Array", batch: "Mapping[str, jax.Array]") -> Any:
    """Fresh boxed parameters of a module that `build` made; the same numbers whether layers are scanned or unrolled.
    Parameters of `config.module` that have no logical axes get none: they stay whole on every device.

    They are drawn for the scanned model, all layers of a stack by one program: drawn layer by layer, those of a
    T5-small took 18 s of CPU time to compile, instead of 7.
    """
    from t5x_lite.models.transformer import unstack_layers

    if own_code.is_own(type(module)):
        what = f"model.module={own_code.name_of(type(module))}"
        return boxed(own_code.called(what, module.init, key, batch)["params"])
    config = module.config  # type: ignore[attr-defined]
    scanned = build(dataclasses.replace(config, scan_layers=True), module.constrain)  # type: ignore[attr-defined]
    params: Any = scanned.init(key, batch)["params"]
    return params if config.scan_layers else unstack_layers(params)


def boxed(tree: Any) -> Any:
    """The tree with a box of axes without names around every array that has no box of as many axes."""
    import flax.linen as nn
    import jax

    def box(leaf: Any) -> Any:
        value = leaf.value if isinstance(leaf, nn.Partitioned) else leaf
        if (isinstance(leaf, nn.Partitioned) and len(leaf.names) == value.ndim) or value.ndim == 0:
            return leaf if value.ndim else value
        return nn.Partitioned(value, (None,) * value.ndim)

    return jax.tree.map(box, tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
