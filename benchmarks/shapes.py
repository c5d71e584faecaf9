"""Defines what both sides of a comparison share: sizes, one batch, and the floating-point operations of a step."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    """Holds the sizes of one model and its batch. Lengths are in tokens; those that a family does not use are 0."""

    family: str  # t5, bert or gpt2
    d_model: int
    d_ff: int
    num_heads: int
    num_layers: int  # layers in each stack
    vocab_size: int
    rows: int = 8
    source_length: int = 0
    target_length: int = 0
    masked: int = 0  # positions per row with a masked-language-model target
    head_dim: int = 64

    @property
    def tokens(self) -> int:
        """Returns the number of tokens that a step reads, encoder and decoder together."""
        return self.rows * (self.source_length + self.target_length)


SHAPES = {
    "t5": Shape("t5", 512, 1024, 8, 6, 32128, source_length=128, target_length=32),
    "bert": Shape("bert", 512, 2048, 8, 4, 30522, source_length=128, masked=20),
    "gpt2": Shape("gpt2", 512, 2048, 8, 6, 50257, target_length=128),
    # published sizes, T5 1.1 with one table for inputs and logits; rows fill a GPU of 80 GB
    "t5-small-512": Shape("t5", 512, 1024, 6, 8, 32128, rows=128, source_length=512, target_length=114),
    "t5-base-512": Shape("t5", 768, 2048, 12, 12, 32128, rows=64, source_length=512, target_length=114),
    "t5-large-512": Shape("t5", 1024, 2816, 16, 24, 32128, rows=32, source_length=512, target_length=114),
    "gpt2-124m": Shape("gpt2", 768, 3072, 12, 12, 50257, rows=32, target_length=1024),
    "gpt2-355m": Shape("gpt2", 1024, 4096, 16, 24, 50257, rows=16, target_length=1024),
    "bert-base": Shape("bert", 768, 3072, 12, 12, 30522, rows=64, source_length=512, masked=80),
    "bert-large": Shape("bert", 1024, 4096, 16, 24, 30522, rows=32, source_length=512, masked=80),
    "t5-tiny": Shape("t5", 64, 128, 2, 2, 512, source_length=32, target_length=8, head_dim=32),
    "bert-tiny": Shape("bert", 64, 128, 2, 2, 512, source_length=32, masked=5, head_dim=32),
    "gpt2-tiny": Shape("gpt2", 64, 128, 2, 2, 512, target_length=32, head_dim=32),
}


def step_flops(shape: Shape) -> float:
    """Returns the matrix-product FLOPs of one training step, counting the backward pass as two forward passes.

    Attention counts as full squares, even if it is causal. Logits count only at positions with a target. So a side that
    computes BERT's logits at every position gets no credit for the others.
    """
    D, F, N, V = shape.d_model, shape.d_ff, shape.num_layers, shape.vocab_size
    HK = shape.num_heads * shape.head_dim
    S, L = shape.source_length, shape.target_length
    mlp = 2 * D * F * (3 if shape.family == "t5" else 2)
    projection = 2 * D * HK
    flops = N * S * (4 * projection + 4 * S * HK + mlp) + N * L * (4 * projection + 4 * L * HK + mlp)
    if shape.family == "t5":
        flops += N * (L * (2 * projection + 4 * S * HK) + S * 2 * projection)
    if shape.family == "bert":
        flops += shape.masked * 2 * D * (D + V)
    else:
        flops += L * 2 * D * V
    return 3.0 * shape.rows * flops


def batch(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens without padding; names and shapes are those in `t5x_lite.batch`."""
    rng = np.random.default_rng(seed)
    B, S, L, P, V = shape.rows, shape.source_length, shape.target_length, shape.masked, shape.vocab_size

    def side(name: str, tokens: np.ndarray) -> dict[str, np.ndarray]:
        positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (B, 1))
        return {
            f"{name}_input_tokens": tokens,
            f"{name}_segment_ids": np.ones_like(tokens),
            f"{name}_positions": positions,
        }

    tokens = rng.integers(3, V, (B, S), dtype=np.int32)
    targets = rng.integers(3, V, (B, L), dtype=np.int32)
    weights = np.ones((B, L), np.float32)
    if shape.family == "bert":
        masked = np.sort(rng.permuted(np.tile(np.arange(S, dtype=np.int32), (B, 1)), axis=1)[:, :P], axis=1)
        return side("encoder", tokens) | {
            "token_type_ids": np.zeros((B, S), np.int32),
            "mlm_positions": masked,
            "mlm_targets": rng.integers(3, V, (B, P), dtype=np.int32),
            "mlm_weights": np.ones((B, P), np.float32),
        }
    decoder = {"decoder_target_tokens": targets, "decoder_loss_weights": weights}
    if shape.family == "t5":
        inputs = np.concatenate([np.zeros((B, 1), np.int32), targets[:, :-1]], axis=1)
        return side("encoder", tokens) | side("decoder", inputs) | decoder
    # transformers shifts GPT-2's labels itself, so the last token has no target there; give it none here either.
    weights[:, -1] = 0
    decoder["decoder_target_tokens"] = np.roll(targets, -1, axis=1)
    return side("decoder", targets) | decoder
