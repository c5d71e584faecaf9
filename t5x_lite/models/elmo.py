"""ELMo (Peters et al. 2018): one LSTM language model reads from left to right, a second one from right to left.

A text is represented by a weighted mean of the layers of both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from t5x_lite.models.cbow import mean, own_tokens
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.encoder_only import example_outputs, rows_at
from t5x_lite.models.layers import (
    Constrain,
    Dense,
    Embedding,
    LanguageModelLogits,
    named,
    residual_dropout,
    subkey,
    unconstrained,
)


class Elmo(nn.Module):
    """Reads the same arrays as `EncoderOnly` and has the same heads, except those that read every token.

    Each masked token is predicted from the left-to-right state before it and the right-to-left state after it: the
    logits of the two models are added. The heads for whole examples read a weighted mean of the layers (§3.2), averaged
    over the example's tokens. The weights of the layers are trained together with the head.
    """

    config: ModelConfig
    constrain: Constrain = unconstrained

    @nn.compact
    def __call__(self, batch, train: bool = False) -> dict[str, jax.Array]:
        """Returns {head: float32 output} as `EncoderOnly` does; without heads, {"hidden": [B, S, D]}."""
        config = self.config
        key = self.make_rng("dropout") if train and config.has_dropout else None
        table = Embedding(config, config.vocab_size, "vocab", constrain=self.constrain, name="token_embedding")
        x_BSD = residual_dropout(table(batch["encoder_input_tokens"]), config, subkey(key, 0))
        segment_ids_BS = batch["encoder_segment_ids"]
        continues_BS = segment_ids_BS[:, 1:] == segment_ids_BS[:, :-1]  # the next token is of the same example
        keep = {
            "forward": jnp.pad(continues_BS, ((0, 0), (1, 0))),
            "backward": jnp.pad(continues_BS, ((0, 0), (0, 1))),
        }
        states = dict.fromkeys(keep, x_BSD)
        layers = [x_BSD]
        for layer in range(config.num_encoder_layers):
            new = {side: self.lstm(f"{side}_{layer}", states[side], keep[side]) for side in keep}
            new = {side: residual_dropout(h, config, subkey(key, layer + 1)) for side, h in new.items()}
            states = {side: new[side] + states[side] if layer else new[side] for side in keep}
            layers.append(jnp.concatenate([states["forward"], states["backward"]], axis=-1))
        outputs = {}
        if "mlm" in config.heads:
            at = {"forward": batch["mlm_positions"] - 1, "backward": batch["mlm_positions"] + 1}
            last = segment_ids_BS.shape[1] - 1
            shape, axes = (config.d_model // 2, config.d_model), ("mlp", "embed")
            reads = {side: rows_at(states[side], jnp.clip(at[side], 0, last)) for side in keep}
            before_BPD, behind_BPD = (
                Dense(config, shape, axes, "head", name=f"{side}_out")(read) for side, read in reads.items()
            )
            hidden_BPD = self.constrain(before_BPD + behind_BPD, ("batch", "length", "embed"))
            outputs["mlm"] = LanguageModelLogits(config, self.constrain, name="logits")(hidden_BPD, table).logits()
        if config.pooled_heads or not outputs:
            shares_N: jax.Array = self.param(
                "mixture", named(nn.initializers.zeros, ("norm",)), (len(layers),), jnp.float32
            )
            mixed_BSD = jnp.einsum("N,NBSD->BSD", jax.nn.softmax(shares_N).astype(x_BSD.dtype), jnp.stack(layers))
            if not outputs and not config.pooled_heads:
                return {"hidden": mixed_BSD.astype(jnp.float32)}
            outputs |= example_outputs(config, mean(mixed_BSD, own_tokens(batch)), subkey(key, 99))
        return outputs

    def lstm(self, name: str, x_BSD: jax.Array, keep_BS: jax.Array) -> jax.Array:
        """Returns the states of an LSTM with D/2 cells, [B, S, D/2].

        The LSTM reads from right to left if `name` begins with "backward". Its state is reset where keep_BS is False:
        before the token of each example that it reads first.
        """
        config, features = self.config, self.config.d_model // 2
        matrix = ("embed", "mlp")
        cell = nn.OptimizedLSTMCell(
            features,
            kernel_init=named(nn.initializers.lecun_normal(), matrix),
            recurrent_kernel_init=named(nn.initializers.orthogonal(), matrix),
            bias_init=named(nn.initializers.zeros, ("mlp",)),
            dtype=config.dtype,
            name=name,
        )

        def step(cell: nn.OptimizedLSTMCell, carry, inputs):
            x_BD, keep_B = inputs
            return cell(jax.tree.map(lambda state: jnp.where(keep_B[:, None], state, 0), carry), x_BD)

        scanned = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1,
            reverse=name.startswith("backward"),
        )  # fmt: skip
        nothing = jnp.zeros((x_BSD.shape[0], features), config.dtype)
        return scanned(cell, (nothing, nothing), (x_BSD, keep_BS))[1]
