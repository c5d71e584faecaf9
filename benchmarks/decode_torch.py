"""The torch side of `decode.py`: transformers' `generate`. Saves its weights first, so that our side can read them."""

import json
import sys

import numpy as np
import torch
import transformers
from decode_prompts import checksum, prompts
from shapes import Shape
from worker import serve


def build(shape: Shape):
    if shape.family == "t5":
        config = transformers.T5Config(
            vocab_size=shape.vocab_size, d_model=shape.d_model, d_kv=shape.head_dim, d_ff=shape.d_ff,
            num_layers=shape.num_layers, num_decoder_layers=shape.num_layers, num_heads=shape.num_heads,
            feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=1024, n_embd=shape.d_model, n_layer=shape.num_layers,
        n_head=shape.num_heads, n_inner=shape.d_ff, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def main() -> None:
    shape, directory, beams = Shape(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    torch.manual_seed(0)
    model = build(shape).eval()
    model.save_pretrained(directory)
    ids = torch.from_numpy(prompts(shape).astype(np.int64))
    new = shape.target_length
    settings = {"max_new_tokens": new, "min_new_tokens": new, "num_beams": beams, "do_sample": False}
    if beams > 1:
        settings |= {"early_stopping": "never"}

    def step() -> float:
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return checksum(out.numpy()[:, -new:])

    serve(step(), sum(p.numel() for p in model.parameters()), {"step": step})


if __name__ == "__main__":
    main()
