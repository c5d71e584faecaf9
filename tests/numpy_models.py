"""T5, BERT and GPT-2 in plain numpy, written from their papers: golden numbers that need no file and no other library.

They read one text at a time, in float64, without batches, masks, packing, caches or jax. `params` maps a parameter's
path to its array. Dimension letters are those of t5x_lite/models/config.py.
"""

import math

import numpy as np


class Params(dict):
    """Parameters by path."""

    def under(self, scope: str) -> "Params":
        """Those below a scope, by the rest of their paths."""
        return Params(
            {path.removeprefix(f"{scope}/"): value for path, value in self.items() if path.startswith(scope + "/")}
        )

    def layers(self, scope: str) -> list["Params"]:
        number = len({path.split("/")[1] for path in self if path.startswith(f"{scope}/layers_")})
        return [self.under(f"{scope}/layers_{n}") for n in range(number)]


# ------------------------------------------------------------------------------------------------------- three models
def t5(params: Params, source_S, target_L, gated: bool) -> np.ndarray:
    """Logits [L, V] of a decoder that reads `target_L` (Raffel et al. 2020, §2.1).

    gated: T5 1.1 (Shazeer 2020): a gated GELU in the MLPs, and a matrix of its own for the logits. Otherwise a ReLU,
        and logits from the embedding table after scaling by d_model ** -0.5.
    """
    table_VD = params["token_embedding/embedding"]
    hidden_SD = t5_stack(params, "encoder", table_VD[source_S], None, gated)
    hidden_LD = t5_stack(params, "decoder", table_VD[target_L], hidden_SD, gated)
    if gated:
        return hidden_LD @ params["logits/dense/kernel"]
    return hidden_LD * table_VD.shape[1] ** -0.5 @ table_VD.T


def t5_stack(params: Params, side: str, x_LD, memory_SD, gated: bool) -> np.ndarray:
    causal = side == "decoder"
    bias_HLL = t5_bias(params[f"{side}/relative_bias/embedding"], len(x_LD), causal)
    for layer in params.layers(side):
        normed_LD = rms_norm(x_LD, layer.under("self_attention_norm"))
        x_LD = x_LD + attention(layer.under("self_attention"), normed_LD, normed_LD, bias_HLL, causal, scale=1)
        if memory_SD is not None:
            normed_LD = rms_norm(x_LD, layer.under("cross_attention_norm"))
            x_LD = x_LD + attention(layer.under("cross_attention"), normed_LD, memory_SD, 0, causal=False, scale=1)
        normed_LD = rms_norm(x_LD, layer.under("mlp_norm"))
        if gated:
            inner_LF = gelu_tanh(normed_LD @ layer["mlp/wi_0/kernel"]) * (normed_LD @ layer["mlp/wi_1/kernel"])
        else:
            inner_LF = np.maximum(normed_LD @ layer["mlp/wi/kernel"], 0)
        x_LD = x_LD + inner_LF @ layer["mlp/wo/kernel"]
    return rms_norm(x_LD, params.under(f"{side}/final_norm"))


def t5_bias(table_HR, length: int, causal: bool, max_distance: int = 128) -> np.ndarray:
    """T5's bias [H, L, L] on attention scores: the table's entry for the bucket of (key's position - query's)."""
    bias = np.zeros((len(table_HR), length, length))
    for query in range(length):
        for key in range(length):
            bias[:, query, key] = table_HR[:, t5_bucket(key - query, table_HR.shape[1], causal, max_distance)]
    return bias


def t5_bucket(offset: int, buckets: int, causal: bool, max_distance: int) -> int:
    """Half of the buckets hold one distance each; the others grow logarithmically up to max_distance. Without `causal`,
    keys after the query have the second half of all buckets."""
    if causal:
        first, distance = 0, max(-offset, 0)
    else:
        buckets //= 2
        first, distance = buckets * (offset > 0), abs(offset)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact)), buckets - 1)


def bert(params: Params, tokens_S, types_S) -> np.ndarray:
    """Hidden states [S, D] of the last layer (Devlin et al. 2019, §3): a norm after every sum."""
    x_SD = params["token_embedding/embedding"][tokens_S] + params["type_embedding/embedding"][types_S]
    x_SD = x_SD + params["encoder/position_embedding/embedding"][: len(tokens_S)]
    x_SD = layer_norm(x_SD, params.under("encoder/embedding_norm"), 1e-12)
    for layer in params.layers("encoder"):
        x_SD = x_SD + attention(layer.under("self_attention"), x_SD, x_SD, 0, causal=False)
        x_SD = layer_norm(x_SD, layer.under("self_attention_norm"), 1e-12)
        x_SD = x_SD + dense(layer.under("mlp/wo"), gelu(dense(layer.under("mlp/wi"), x_SD)))
        x_SD = layer_norm(x_SD, layer.under("mlp_norm"), 1e-12)
    return x_SD


def bert_mlm(params: Params, hidden_PD) -> np.ndarray:
    """Logits [P, V] of masked tokens: a dense layer and a norm, then the embedding table (§3.1)."""
    x_PD = layer_norm(gelu(dense(params.under("mlm/transform"), hidden_PD)), params.under("mlm/norm"), 1e-12)
    return x_PD @ params["token_embedding/embedding"].T + params["mlm/bias"]


def bert_pooled(params: Params, hidden_SD) -> np.ndarray:
    """The vector [D] of a text: a dense layer and tanh on the state of its first token."""
    return np.tanh(dense(params.under("pooler"), hidden_SD[0]))


def gpt2(params: Params, tokens_L) -> np.ndarray:
    """Logits [L, V] (Radford et al. 2019, §2.3): a norm before every sublayer and one at the end."""
    table_VD = params["token_embedding/embedding"]
    x_LD = table_VD[tokens_L] + params["decoder/position_embedding/embedding"][: len(tokens_L)]
    for layer in params.layers("decoder"):
        normed_LD = layer_norm(x_LD, layer.under("self_attention_norm"), 1e-5)
        x_LD = x_LD + attention(layer.under("self_attention"), normed_LD, normed_LD, 0, causal=True)
        normed_LD = layer_norm(x_LD, layer.under("mlp_norm"), 1e-5)
        x_LD = x_LD + dense(layer.under("mlp/wo"), gelu_tanh(dense(layer.under("mlp/wi"), normed_LD)))
    return layer_norm(x_LD, params.under("decoder/final_norm"), 1e-5) @ table_VD.T


# --------------------------------------------------------------------------------------------------------- their parts
def attention(params: Params, x_LD, memory_MD, bias_HLM, causal: bool, scale: float | None = None) -> np.ndarray:
    """softmax(q·k / sqrt(K) + bias)·v for each head, then a matrix over all heads (Vaswani et al. 2017, §3.2).

    scale: in place of 1 / sqrt(K).
    """
    query_HLK, key_HMK, value_HMK = (
        np.einsum("ld,dhk->hlk", states, params[f"{name}/kernel"])
        + np.expand_dims(params.get(f"{name}/bias", np.zeros(params[f"{name}/kernel"].shape[1:])), 1)
        for name, states in (("query", x_LD), ("key", memory_MD), ("value", memory_MD))
    )
    scores_HLM = query_HLK @ key_HMK.transpose(0, 2, 1) * (scale or query_HLK.shape[-1] ** -0.5) + bias_HLM
    if causal:
        ahead = np.arange(len(memory_MD))[None, :] > np.arange(len(x_LD))[:, None]
        scores_HLM = np.where(ahead[None], -np.inf, scores_HLM)
    mixed_HLK = np.exp(log_softmax(scores_HLM)) @ value_HMK
    return np.einsum("hlk,hkd->ld", mixed_HLK, params["out/kernel"]) + params.get("out/bias", 0)


def dense(params: Params, x) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def layer_norm(x, params: Params, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * params["scale"] + params["bias"]


def rms_norm(x, params: Params) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"]


def gelu(x) -> np.ndarray:
    """x · Φ(x), Φ the normal distribution's."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x) -> np.ndarray:
    """Its approximation (Hendrycks & Gimpel 2016, §2), which GPT-2 and T5 1.1 were trained with."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def log_softmax(x) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(logits_LV, targets_L) -> float:
    """Σ -log p(target)."""
    return -float(np.take_along_axis(log_softmax(logits_LV), targets_L[:, None], -1).sum())
