"""The torch side of `train_step.py`: transformers, fused AdamW, torch.compile unless --eager.

--attention is transformers' attn_implementation (default: sdpa). With --dtype=bfloat16, products run under autocast;
parameters and AdamW stay in float32. A GPU is used if there is one.

train_step.py runs this file; worker.py lists the commands.
"""

import numpy as np
import torch
import transformers
from shapes import Shape, batch
from worker import ACCELERATOR_PEAK_SIZE, PEAK_SIZE, arguments, serve


def build(shape: Shape, arrays: dict[str, np.ndarray], attention: str):
    """Returns (model, the keyword arguments with which a step calls it)."""
    tensors = {name: torch.from_numpy(a.astype(np.int64)) for name, a in arrays.items() if a.dtype == np.int32}
    if shape.family == "t5":
        config = transformers.T5Config(
            vocab_size=shape.vocab_size, d_model=shape.d_model, d_kv=shape.head_dim, d_ff=shape.d_ff,
            num_layers=shape.num_layers, num_decoder_layers=shape.num_layers, num_heads=shape.num_heads,
            dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=True, use_cache=False,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, attn_implementation=attention,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config), {
            "input_ids": tensors["encoder_input_tokens"],
            "attention_mask": tensors["encoder_segment_ids"],
            "labels": tensors["decoder_target_tokens"],
        }
    if shape.family == "bert":
        config = transformers.BertConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.d_model, num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads, intermediate_size=shape.d_ff, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, attn_implementation=attention,
        )  # fmt: skip
        labels = torch.full_like(tensors["encoder_input_tokens"], -100)
        labels.scatter_(1, tensors["mlm_positions"], tensors["mlm_targets"])
        return transformers.BertForMaskedLM(config), {
            "input_ids": tensors["encoder_input_tokens"],
            "attention_mask": tensors["encoder_segment_ids"],
            "labels": labels,
        }
    config = transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=1024, n_embd=shape.d_model, n_layer=shape.num_layers,
        n_head=shape.num_heads, n_inner=shape.d_ff, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        attn_implementation=attention,
    )  # fmt: skip
    ids = tensors["decoder_input_tokens"]
    return transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def translate(shape: Shape, ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the torch model's state, {name: array}, from our parameters, {path: array}."""
    D, HK = shape.d_model, shape.num_heads * shape.head_dim
    flat = lambda name: ours[name].reshape(-1, D) if name.endswith("out/kernel") else ours[name].reshape(D, HK)  # noqa: E731
    state: dict[str, np.ndarray] = {}

    def put(theirs: str, name: str) -> None:
        """Copies our dense layer or norm `name` to `theirs` in `state`, with its bias if it has one."""
        kernel, bias = f"{name}/kernel", f"{name}/bias"
        if kernel in ours:
            attention = ours[kernel].ndim == 3
            state[f"{theirs}.weight"] = (flat(kernel) if attention else ours[kernel]).T
        else:
            state[f"{theirs}.weight"] = ours[f"{name}/scale"]
        if bias in ours:
            state[f"{theirs}.bias"] = ours[bias].reshape(-1)

    if shape.family == "t5":
        state["shared.weight"] = ours["token_embedding/embedding"]
        for side in ("encoder", "decoder"):
            table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            state[table] = ours[f"{side}/relative_bias/embedding"].T
            put(f"{side}.final_layer_norm", f"{side}/final_norm")
            for i in range(shape.num_layers):
                name = f"{side}/layers_{i}"
                parts = [("SelfAttention", "self_attention")]
                parts += [("EncDecAttention", "cross_attention")] if side == "decoder" else []
                for j, (theirs, part) in enumerate(parts):
                    block = f"{side}.block.{i}.layer.{j}"
                    put(f"{block}.layer_norm", f"{name}/{part}_norm")
                    for letter, kernel in zip("qkvo", ("query", "key", "value", "out"), strict=True):
                        put(f"{block}.{theirs}.{letter}", f"{name}/{part}/{kernel}")
                block = f"{side}.block.{i}.layer.{len(parts)}"
                put(f"{block}.layer_norm", f"{name}/mlp_norm")
                for kernel in ("wi_0", "wi_1", "wo"):
                    put(f"{block}.DenseReluDense.{kernel}", f"{name}/mlp/{kernel}")
    elif shape.family == "bert":
        embeddings = "bert.embeddings"
        state[f"{embeddings}.word_embeddings.weight"] = ours["token_embedding/embedding"]
        state[f"{embeddings}.token_type_embeddings.weight"] = ours["type_embedding/embedding"]
        state[f"{embeddings}.position_embeddings.weight"] = ours["encoder/position_embedding/embedding"]
        put(f"{embeddings}.LayerNorm", "encoder/embedding_norm")
        put("cls.predictions.transform.dense", "mlm/transform")
        put("cls.predictions.transform.LayerNorm", "mlm/norm")
        state["cls.predictions.bias"] = ours["mlm/bias"]
        for i in range(shape.num_layers):
            name, layer = f"encoder/layers_{i}", f"bert.encoder.layer.{i}"
            for part in ("query", "key", "value"):
                put(f"{layer}.attention.self.{part}", f"{name}/self_attention/{part}")
            put(f"{layer}.attention.output.dense", f"{name}/self_attention/out")
            put(f"{layer}.attention.output.LayerNorm", f"{name}/self_attention_norm")
            put(f"{layer}.intermediate.dense", f"{name}/mlp/wi")
            put(f"{layer}.output.dense", f"{name}/mlp/wo")
            put(f"{layer}.output.LayerNorm", f"{name}/mlp_norm")
    else:
        state["transformer.wte.weight"] = ours["token_embedding/embedding"]
        state["transformer.wpe.weight"] = ours["decoder/position_embedding/embedding"]
        put("transformer.ln_f", "decoder/final_norm")
        for i in range(shape.num_layers):
            name, layer = f"decoder/layers_{i}", f"transformer.h.{i}"
            put(f"{layer}.ln_1", f"{name}/self_attention_norm")
            put(f"{layer}.ln_2", f"{name}/mlp_norm")
            qkv = [f"{name}/self_attention/{part}" for part in ("query", "key", "value")]
            state[f"{layer}.attn.c_attn.weight"] = np.concatenate([flat(f"{n}/kernel") for n in qkv], axis=1)
            state[f"{layer}.attn.c_attn.bias"] = np.concatenate([ours[f"{n}/bias"].reshape(-1) for n in qkv])
            for theirs, part in (
                ("attn.c_proj", "self_attention/out"),
                ("mlp.c_fc", "mlp/wi"),
                ("mlp.c_proj", "mlp/wo"),
            ):
                put(f"{layer}.{theirs}", f"{name}/{part}")
                state[f"{layer}.{theirs}.weight"] = state[f"{layer}.{theirs}.weight"].T  # Conv1D: [inputs, outputs]
    return state


def main() -> None:
    asked = arguments()
    shape, device, dtype = asked.shape, "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, asked.dtype)
    torch.backends.cuda.matmul.allow_tf32 = True  # as in JAX's default on a GPU
    model, inputs = build(shape, batch(shape), asked.attention or "sdpa")
    model, inputs = model.train().to(device), {name: tensor.to(device) for name, tensor in inputs.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    forward = model if asked.eager else torch.compile(model)

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = forward(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def load(path: str) -> None:
        with np.load(path) as ours:
            state = translate(shape, dict(ours))
        own = dict(model.named_parameters())  # lists tied parameters once
        if set(own) != set(state):
            raise SystemExit(f"the two models have different parameters: {sorted(set(own) ^ set(state))}")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))

    size = PEAK_SIZE if device == "cpu" else ACCELERATOR_PEAK_SIZE
    matrix = torch.randn(size, size, dtype=dtype, device=device)

    def product() -> torch.Tensor:
        return torch.mm(matrix, matrix)[0, 0]

    first_loss = step().item()
    commands = {"step": step, "product": product, "load": load}
    serve(first_loss, sum(p.numel() for p in model.parameters()), commands, size)


if __name__ == "__main__":
    main()
