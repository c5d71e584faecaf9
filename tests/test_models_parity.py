"""The same parameters and tokens give the logits of the PyTorch implementations in transformers."""

import dataclasses

import numpy as np
import pytest
from tiny_models import forward

from t5x_lite.models.presets import preset

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")

SIZES = {"vocab_size": 48, "d_model": 16, "d_ff": 24, "num_heads": 2, "head_dim": 8}
NO_DROPOUT = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
LENGTHS = np.array([7, 4])


def noisy_state(model) -> dict[str, np.ndarray]:
    """The model in float32, evaluation mode, with noise on all parameters; its state as numpy arrays."""
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def sides(tokens: np.ndarray, side: str) -> dict[str, np.ndarray]:
    slots = np.arange(tokens.shape[1], dtype=np.int32)
    return {
        f"{side}_input_tokens": tokens,
        f"{side}_segment_ids": (slots < LENGTHS[:, None]).astype(np.int32),
        f"{side}_positions": np.tile(slots, (len(tokens), 1)),
    }


def random_tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 48, (2, 7)).astype(np.int32)


def torched(array: np.ndarray):
    return torch.from_numpy(np.asarray(array, np.int64))


def split_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """[D, H·K] → [D, H, K]; a bias [H·K] → [H, K]."""
    return weight.reshape(*weight.shape[:-1], heads, -1)


def norm(state, name: str) -> dict[str, np.ndarray]:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def dense(state, name: str) -> dict[str, np.ndarray]:
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def assert_real_close(got, expected):
    real = np.arange(7) < LENGTHS[:, None]
    np.testing.assert_allclose(np.asarray(got)[real], expected.detach().numpy()[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_t5(version):
    gated = version == "1.1"
    both = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    config = preset("t5_1_1_small" if gated else "t5_small", **SIZES, **both, **NO_DROPOUT)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
            dropout_rate=0.0, feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
        )
    )  # fmt: skip
    state = noisy_state(model)

    def attention(name: str) -> dict:
        kernels = {n: split_heads(state[f"{name}.{n[0]}.weight"].T, 2) for n in ("query", "key", "value")}
        kernels["out"] = state[f"{name}.o.weight"].T.reshape(2, 8, 16)
        return {n: {"kernel": kernel} for n, kernel in kernels.items()}

    def layer(side: str, i: int) -> dict:
        name, last = f"{side}.block.{i}.layer", 2 if side == "decoder" else 1
        scale = lambda j: {"scale": state[f"{name}.{j}.layer_norm.weight"]}  # noqa: E731
        out = {"self_attention": attention(f"{name}.0.SelfAttention"), "self_attention_norm": scale(0)}
        if side == "decoder":
            out |= {"cross_attention": attention(f"{name}.1.EncDecAttention"), "cross_attention_norm": scale(1)}
        widen = ("wi_0", "wi_1") if gated else ("wi",)
        mlp = {n: {"kernel": state[f"{name}.{last}.DenseReluDense.{n}.weight"].T} for n in (*widen, "wo")}
        return out | {"mlp": mlp, "mlp_norm": scale(last)}

    table = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    params: dict = {"token_embedding": {"embedding": state["shared.weight"]}}
    for side in ("encoder", "decoder"):
        params[side] = {f"layers_{i}": layer(side, i) for i in range(2)} | {
            "relative_bias": {"embedding": state[table.format(side)].T},
            "final_norm": {"scale": state[f"{side}.final_layer_norm.weight"]},
        }
    if gated:
        params["logits"] = {"dense": {"kernel": state["lm_head.weight"].T}}
    batch = sides(random_tokens(0), "encoder") | sides(random_tokens(1), "decoder")
    expected = model(
        input_ids=torched(batch["encoder_input_tokens"]),
        attention_mask=torched(batch["encoder_segment_ids"]),
        decoder_input_ids=torched(batch["decoder_input_tokens"]),
    ).logits
    assert_real_close(forward(config, params, batch)["lm"], expected)


def test_bert():
    config = preset("bert_tiny", **SIZES, **NO_DROPOUT, max_positions=12)
    model = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=12,
        )
    )  # fmt: skip
    state = noisy_state(model)

    def layer(name: str) -> dict:
        attention = {n: dense(state, f"{name}.attention.self.{n}") for n in ("query", "key", "value")}
        attention = {n: {k: split_heads(v, 2) for k, v in parts.items()} for n, parts in attention.items()}
        out = dense(state, f"{name}.attention.output.dense")
        attention["out"] = {"kernel": out["kernel"].reshape(2, 8, 16), "bias": out["bias"]}
        return {
            "self_attention": attention,
            "self_attention_norm": norm(state, f"{name}.attention.output.LayerNorm"),
            "mlp": {"wi": dense(state, f"{name}.intermediate.dense"), "wo": dense(state, f"{name}.output.dense")},
            "mlp_norm": norm(state, f"{name}.output.LayerNorm"),
        }

    embeddings = "bert.embeddings"
    params = {
        "token_embedding": {"embedding": state[f"{embeddings}.word_embeddings.weight"]},
        "type_embedding": {"embedding": state[f"{embeddings}.token_type_embeddings.weight"]},
        "encoder": {f"layers_{i}": layer(f"bert.encoder.layer.{i}") for i in range(2)}
        | {
            "position_embedding": {"embedding": state[f"{embeddings}.position_embeddings.weight"]},
            "embedding_norm": norm(state, f"{embeddings}.LayerNorm"),
        },
        "pooler": dense(state, "bert.pooler.dense"),
        "nsp": dense(state, "cls.seq_relationship"),
        "mlm": {
            "transform": dense(state, "cls.predictions.transform.dense"),
            "norm": norm(state, "cls.predictions.transform.LayerNorm"),
            "bias": state["cls.predictions.bias"],
        },
    }
    slots = np.tile(np.arange(7, dtype=np.int32), (2, 1))
    batch = sides(random_tokens(0), "encoder") | {
        "token_type_ids": (slots > 2).astype(np.int32),
        "mlm_positions": slots,
        "pooled_positions": np.zeros((2, 1), np.int32),
    }
    expected = model(
        input_ids=torched(batch["encoder_input_tokens"]),
        attention_mask=torched(batch["encoder_segment_ids"]),
        token_type_ids=torched(batch["token_type_ids"]),
    )
    got = forward(config, params, batch)
    assert_real_close(got["mlm"], expected.prediction_logits)
    nsp = expected.seq_relationship_logits.detach().numpy()
    np.testing.assert_allclose(got["nsp"][:, 0], nsp, rtol=1e-5, atol=1e-5)


def test_gpt2():
    config = dataclasses.replace(preset("gpt2_tiny", **SIZES, **NO_DROPOUT), max_positions=12)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=48, n_positions=12, n_embd=16, n_layer=2, n_head=2, n_inner=24, bos_token_id=0, eos_token_id=0
        )
    )
    state = noisy_state(model)

    def conv1d(name: str) -> dict[str, np.ndarray]:  # stored [inputs, outputs]
        return {"kernel": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def layer(name: str) -> dict:
        fused = {k: np.split(v, 3, axis=-1) for k, v in conv1d(f"{name}.attn.c_attn").items()}
        attention = {
            n: {k: split_heads(v[i], 2) for k, v in fused.items()} for i, n in enumerate(("query", "key", "value"))
        }
        out = conv1d(f"{name}.attn.c_proj")
        attention["out"] = {"kernel": out["kernel"].reshape(2, 8, 16), "bias": out["bias"]}
        return {
            "self_attention": attention,
            "self_attention_norm": norm(state, f"{name}.ln_1"),
            "mlp": {"wi": conv1d(f"{name}.mlp.c_fc"), "wo": conv1d(f"{name}.mlp.c_proj")},
            "mlp_norm": norm(state, f"{name}.ln_2"),
        }

    params = {
        "token_embedding": {"embedding": state["transformer.wte.weight"]},
        "decoder": {f"layers_{i}": layer(f"transformer.h.{i}") for i in range(2)}
        | {
            "position_embedding": {"embedding": state["transformer.wpe.weight"]},
            "final_norm": norm(state, "transformer.ln_f"),
        },
    }
    batch = sides(random_tokens(0), "decoder")
    expected = model(
        input_ids=torched(batch["decoder_input_tokens"]), attention_mask=torched(batch["decoder_segment_ids"])
    )
    assert_real_close(forward(config, params, batch)["lm"], expected.logits)
