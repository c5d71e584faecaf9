"""The small parts of models: dense layers, norms, the MLP, embeddings, dropout, and their initialisers.

Parameters are float32 and carry the names of their axes; computation is in `config.dtype`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from t5x_lite.models import lora
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.projection import Projection
from t5x_lite.models.tracing import platform

Axis = str | tuple[str, ...] | None  # logical axes that split a dimension of an array; None: it is never split


class Constrain(Protocol):
    """Places a model's arrays on devices, given the logical axes of each dimension. A `Layout` does so on a mesh."""

    def __call__(self, array: jax.Array, axes: Sequence[Axis], /) -> jax.Array:
        """Returns the array with a sharding constraint for the compiler."""
        ...

    def parts(self, axis: Axis) -> int:
        """Returns the number of parts that a dimension is split into."""
        ...

    def divided(
        self, function: Callable[..., Any], inputs: Sequence[Sequence[Axis]], outputs: Sequence[Sequence[Axis]]
    ) -> Callable[..., Any]:
        """Returns the function of arrays, which each device computes for its own parts of them.

        inputs, outputs: the axes of the arrays that the function takes and of those in the tuple that it returns. An
            output that is whole on devices with different inputs is the sum of their outputs.
        """
        ...


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class _OneDevice:
    def __call__(self, array: jax.Array, axes: Sequence[Axis], /) -> jax.Array:
        return array

    def parts(self, axis: Axis) -> int:
        return 1

    def divided(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        return function


unconstrained = _OneDevice()  # the `constrain` of models on one device


def recomputed(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns function(*arrays). On an accelerator, the backward pass computes everything again from the arrays."""
    if platform() == "cpu":
        return function(*arrays)
    from t5x_lite.models import fusion

    return fusion.recomputed(function, *arrays)


def dropout(x: jax.Array, rate: float, key: jax.Array | None, broadcast_axis: int | None = None) -> jax.Array:
    """Zeroes entries with probability `rate` and divides the rest by 1 − rate. `key=None` turns dropout off.

    x: any shape.
    broadcast_axis: entries that differ only in their index along this axis are zeroed or kept together. T5 uses the
        axis of the length, and in attention the axis of the queries. None: each entry is drawn separately.
    """
    if key is None or rate == 0.0:
        return x
    shape = list(x.shape)
    if broadcast_axis is not None:
        shape[broadcast_axis] = 1

    def dropped(x: jax.Array, words: jax.Array) -> jax.Array:
        return jnp.where(is_kept(words, rate, tuple(shape)), x / (1.0 - rate), jnp.zeros((), x.dtype))

    return recomputed(dropped, x, jax.random.key_data(key))


def is_kept(words: jax.Array, rate: float, shape: tuple[int, ...], index: Sequence[Any] | None = None) -> jax.Array:
    """Returns which entries of an array of `shape` dropout keeps; only at `index`, if given, as in `random_bits`."""
    return random_bits(words, shape, index) >= np.uint32(round(rate * 2**32))


def random_bits(words: jax.Array, shape: tuple[int, ...], index: Sequence[Any] | None = None) -> jax.Array:
    """Returns random bits, uint32 of `shape`: each entry is a hash of the key and of the entry's index.

    words: `jax.random.key_data` of the key.
    index: an array of indices for each axis. If given, the result holds only the bits at these indices, and has the
        shape to which the arrays broadcast. So a kernel that visits an array in blocks gets the same bits.

    The bits are the same on any number of devices, and random enough for dropout. XLA fuses the hash into dropout, so
    the bits are never written to memory; the backward pass recomputes them. On XLA's CPU
    backend, jax.random's Threefry takes twenty times as long as this hash: a third of the time of a step.
    """
    axes = range(len(shape))
    if index is None:
        rows = lax.iota(jnp.uint32, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        index = [rows, *(lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in axes[1:])]
    strides = [math.prod(shape[axis + 1 :]) for axis in axes]
    places = (jnp.asarray(index[i], jnp.uint32) * np.uint32(strides[i] % 2**32) for i in axes[1:])
    row = _mixed(jnp.asarray(index[0], jnp.uint32) + words[0])
    return _mixed(_mixed(sum(places, row)) ^ words[-1])


def _mixed(x: jax.Array) -> jax.Array:
    """Returns a hash of each uint32 in x. The hash is bijective, and every output bit depends on every input bit.

    Source: lowbias32 of Wellons, Hash Prospector, 2018.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def subkey(key: jax.Array | None, purpose: int) -> Any:
    """Returns a key for `purpose`, independent of the keys for other purposes; None if `key` is None (dropout is
    off)."""
    return None if key is None else jax.random.fold_in(key, purpose)


def named(init: Callable[..., Any], axes: tuple[str, ...]) -> Callable[..., Any]:
    """Returns an initialiser that boxes the value of `init` together with the names of its axes."""
    return nn.with_partitioning(init, axes)


def kernel_init(config: ModelConfig, role: str, inputs: int, ndim: int) -> Callable[..., Any]:
    """Returns the initialiser for a kernel of `ndim` axes, of which the first `inputs` are contracted.

    `role`: query, attention (keys and values), attention_out, mlp, mlp_out or head. The distribution depends on
    `config.initializer`:
        - t5 (t5x/examples/t5/layers.py): normal with variance 1/fan_in; truncated in the MLP and the logits layer. The
          query's variance is also divided by head_dim, which replaces the factor 1/sqrt(head_dim) in attention.
        - glorot: uniform with variance 2/(fan_in + fan_out).
        - normal: normal with stddev `initializer_stddev`.
        - normal_residual: the same, but the stddev of layers that write to the residual stream is divided by
          sqrt(2·layers) (GPT-2 paper, §2.3).
    """
    if config.initializer.startswith("normal"):
        residual = config.initializer == "normal_residual" and role in ("attention_out", "mlp_out")
        return nn.initializers.normal(config.initializer_stddev / (math.sqrt(2 * config.num_layers) if residual else 1))
    fans = {"in_axis": tuple(range(inputs)), "out_axis": tuple(range(inputs, ndim))}
    if config.initializer == "glorot":
        return nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", **fans)
    scale = 1.0 / config.head_dim if role == "query" else 1.0
    distribution = "normal" if role in ("query", "attention", "attention_out") else "truncated_normal"
    return nn.initializers.variance_scaling(scale, "fan_in", distribution, **fans)


def embedding_init(config: ModelConfig) -> Callable[..., Any]:
    """Returns the initialiser of an embedding table: a normal distribution.

    The stddev depends on `config.initializer`: 1 for t5, 1/sqrt(d_model) for glorot, else `initializer_stddev`. (With
    glorot, `scale_embeddings` multiplies the embeddings that are read by sqrt(d_model), so their stddev is 1.)
    """
    stddev = {"t5": 1.0, "glorot": config.d_model**-0.5}
    return nn.initializers.normal(stddev.get(config.initializer, config.initializer_stddev))


class Dense(nn.Module):
    """Computes x·kernel (+ bias): contracts the last `inputs` axes of x with the first `inputs` axes of the kernel.

    shape, axes: the kernel's shape and the names of its axes.  role: see `kernel_init`.
    """

    config: ModelConfig
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    role: str
    inputs: int = 1
    use_bias: bool = False
    dtype: str | None = None  # of the computation; None: config.dtype
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[…, *shape[:inputs]] → […, *shape[inputs:]]."""
        dtype = self.dtype or self.config.dtype
        init = kernel_init(self.config, self.role, self.inputs, len(self.shape))
        kernel = self.param("kernel", named(init, self.axes), self.shape, jnp.float32)
        # One product of two matrices: XLA's CPU and GPU libraries then get plain operands, and the gradient of a
        # kernel [D, H, K] has the kernel's layout. With dot_general the gradient is transposed, and every pass of the
        # optimizer transposes it back: a T5-small step on a CPU took 1.2 times as long.
        leading, inputs = x.shape[: x.ndim - self.inputs], math.prod(self.shape[: self.inputs])
        # But if devices split rows by length, XLA cannot split B · L, and would gather whole rows.
        x_NI = x.astype(dtype).reshape(*((-1,) if self.constrain.parts("length") == 1 else leading), inputs)
        kernel_IO = kernel.astype(dtype).reshape(inputs, -1)
        bias = None
        if self.use_bias:
            init = named(nn.initializers.zeros, self.axes[self.inputs :])
            bias = self.param("bias", init, self.shape[self.inputs :], jnp.float32)
        # A scan slices the bias first, which XLA does not fuse, and a policy of remat could not see the product.
        is_whole = not self.config.scan_layers and self.config.remat == "none"
        if bias is not None and is_whole and platform() == "gpu":
            from t5x_lite.models import fusion

            y, bias = fusion.biased(x_NI, kernel_IO, bias.reshape(-1)), None
        else:
            y = x_NI @ kernel_IO
        if self.config.lora_rank and self.name in self.config.lora_targets:
            y += lora.added(self, self.config, x_NI, self.shape, self.axes, self.inputs)
        y = y.reshape(*leading, *self.shape[self.inputs :])
        return y if bias is None else y + lax.broadcast_to_rank(bias.astype(dtype), y.ndim)


class Norm(nn.Module):
    """Normalises the last axis of x. Statistics are float32. `config.norm` is

    rms: x / rms(x) · scale
    rms_zero_centered: x / rms(x) · (1 + scale), so that decaying the scale to 0 keeps the norm (Gemma)
    layer: (x − mean) / std · scale + bias
    layer_no_bias: (x − mean) / std · scale
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, shape = self.config, x.shape[-1:]
        is_centered, is_layer = config.norm == "rms_zero_centered", config.norm.startswith("layer")
        init = nn.initializers.zeros if is_centered else nn.initializers.ones
        scale, bias = self.param("scale", named(init, ("norm",)), shape, jnp.float32), None
        scale = 1 + scale if is_centered else scale
        if config.norm == "layer":
            bias = self.param("bias", named(nn.initializers.zeros, ("norm",)), shape, jnp.float32)
        if platform() != "cpu":
            from t5x_lite.models import fusion

            return fusion.normalised((is_layer, config.norm_epsilon, config.dtype), x, scale, bias)
        y = x.astype(jnp.float32)
        if is_layer:
            y -= jnp.mean(y, axis=-1, keepdims=True)
        y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_epsilon)
        y *= lax.broadcast_to_rank(scale, y.ndim)
        return (y if bias is None else y + lax.broadcast_to_rank(bias, y.ndim)).astype(config.dtype)


class Mlp(nn.Module):
    """Computes activation(x·wi)·wo or, if gated, (activation(x·wi_0) * x·wi_1)·wo (Shazeer 2020, GLU variants)."""

    config: ModelConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x_BLD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[B, L, D] → [B, L, D]. key: for dropout; None: no dropout."""
        config = self.config
        activation = ACTIVATIONS[config.activation]
        dense = functools.partial(Dense, config, use_bias=config.mlp_bias, constrain=self.constrain)

        def widen(name: str) -> jax.Array:
            return dense((config.d_model, config.d_ff), ("embed", "mlp"), "mlp", name=name)(x_BLD)

        if config.gated_mlp:
            hidden_BLF = recomputed(lambda gate, x: activation(gate) * x, widen("wi_0"), widen("wi_1"))
        else:
            hidden_BLF = recomputed(activation, widen("wi"))
        hidden_BLF = self.constrain(hidden_BLF, ("batch", "length", "mlp"))
        if config.dropout_hidden:
            hidden_BLF = residual_dropout(hidden_BLF, config, key)
        return dense((config.d_ff, config.d_model), ("mlp", "embed"), "mlp_out", name="wo")(hidden_BLF)


def residual_dropout(x_BLD: jax.Array, config: ModelConfig, key: jax.Array | None) -> jax.Array:
    """Applies dropout to x_BLD, [B, L, D], with `dropout_rate`.

    All positions of a row share one mask if `dropout_broadcasts_length`.
    """
    return dropout(x_BLD, config.dropout_rate, key, broadcast_axis=1 if config.dropout_broadcasts_length else None)


class Embedding(nn.Module):
    """Reads rows of a table [rows, D] with a gather. A product with one-hot vectors would waste 2·B·L·V·D FLOPs."""

    config: ModelConfig
    rows: int
    axis: str  # logical axis of the rows
    scaled: bool = False  # multiplies by sqrt(D) when read (Vaswani et al. 2017, §3.4)
    constrain: Constrain = unconstrained
    is_difference: bool = False  # begins as zeros, and is added to another table

    def setup(self):
        init = nn.initializers.zeros if self.is_difference else embedding_init(self.config)
        init = named(init, (self.axis, "embed"))
        table = self.param("embedding", init, (self.rows, self.config.table_dim), jnp.float32)
        # Before use, the table is all-gathered along D, like every parameter that is split over `fsdp`. Its rows stay
        # split over `tensor`. Without this constraint, XLA reads rows that are split along D and then copies the whole
        # activation to every device to split it by B.
        self.embedding = self.constrain(table, (self.axis, None))

    def __call__(self, ids: jax.Array, base: jax.Array | None = None) -> jax.Array:
        """int […] → […, D]. An id past the end of the table reads NaN, never a different token's row.

        base: another table [rows, D], whose rows are added; None: none.
        """
        x = jnp.take(self.embedding, ids, axis=0, mode="fill").astype(self.config.dtype)
        if base is not None:
            x += jnp.take(base, ids, axis=0, mode="fill").astype(self.config.dtype)
        return x * math.sqrt(self.config.d_model) if self.scaled else x

    def projection(self, x: jax.Array, bias: jax.Array | None = None) -> Projection:
        """Returns the product x·tableᵀ (+ bias), which gives logits over the rows, before it is computed."""
        return Projection(x, self.embedding, bias, True, self.config.dtype, self.constrain)


def vocabulary_bias(module: nn.Module, config: ModelConfig) -> jax.Array:
    """Returns the parameter `bias` of `module`, [V]. It has one number per token id, which is added to its logit."""
    return module.param("bias", named(nn.initializers.zeros, ("vocab",)), (config.vocab_size,), jnp.float32)


class PredictionHead(nn.Module):
    """Applies a dense layer without a bias, the activation and a norm before the heads' own layers.

    Source: ModernBERT (Warner et al. 2024), whose checkpoints share these layers between heads.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[…, D] → […, D]."""
        config = self.config
        dense = Dense(config, (config.d_model, config.d_model), ("embed", "mlp"), "head", name="dense")
        return Norm(config, name="norm")(ACTIVATIONS[config.activation](dense(x)))


class OutputKernel(nn.Module):
    """Owns the kernel [D, V] of logits that do not share the token table."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        init = named(kernel_init(self.config, "head", 1, 2), ("embed", "vocab"))
        return self.param("kernel", init, (self.config.d_model, self.config.vocab_size), jnp.float32)


class LanguageModelLogits(nn.Module):
    """Maps hidden states to logits over the vocabulary.

    It multiplies with the token table if `tie_embeddings`, else with a separate kernel. The product with the separate
    kernel is computed in float32 (t5x/examples/t5/network.py: logits_dense). But TPUs round the operands of such a
    product to bfloat16, and GPUs to TF32, at half the speed: when they train, its operands are of `config.dtype`.
    """

    config: ModelConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, x: jax.Array, token_embedding: Embedding) -> Projection:
        """[B, L, D] → the logits [B, L, V] before they are computed, or [B, D] → [B, V]."""
        config = self.config
        if config.prediction_head:
            x = PredictionHead(config, name="prediction_head")(x)
        if config.logits_scale == "rsqrt_d_model":
            x *= config.d_model**-0.5
        bias = vocabulary_bias(self, config) if config.logits_bias else None
        if config.tie_embeddings:
            projection = token_embedding.projection(x, bias)
        else:
            kernel = OutputKernel(config, name="dense")()
            dtype = "float32" if platform() == "cpu" else config.dtype
            projection = Projection(x, kernel, bias, False, dtype, self.constrain)
        return dataclasses.replace(projection, softcap=config.logits_softcap)
