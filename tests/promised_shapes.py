"""The dtypes and shapes that public functions of models, losses and decoding promise, as jaxtyping has them.

A letter is one size in all arrays of a call: those of t5x_lite/models/config.py, and T for the tokens of a text.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float32, Int, Int32, jaxtyped

Array = Any  # of numpy or jax, or only its dtype and shape

OUTPUTS = {  # of models, by head, and the arrays of a batch that give their sizes
    "encoder_segment_ids": Int[Array, "B S"],
    "decoder_segment_ids": Int[Array, "B L"],
    "mlm_positions": Int[Array, "B P"],
    "pooled_positions": Int[Array, "B E"],
    "lm": Float32[Array, "B L V"],
    "mlm": Float32[Array, "B P V"],
    "token_classification": Float32[Array, "B S C"],
    "rtd": Float32[Array, "B S"],
    "span": Float32[Array, "B S 2"],
    "nsp": Float32[Array, "B E 2"],
    "classification": Float32[Array, "B E C"],
    "multi_label": Float32[Array, "B E C"],
    "regression": Float32[Array, "B E"],
    "multiple_choice": Float32[Array, "B E"],
    "contrastive": Float32[Array, "B E D"],
    "similarity": Float32[Array, "B E"],
    "pooled": Float32[Array, "B E D"],
    "hidden": Float32[Array, "B _ D"],  # S of an encoder, L of a decoder
}
TEXTS = {  # of decoding
    "prompts": Int[Array, "B _"],
    "tokens": Int32[Array, "B N T"],
    "lengths": Int32[Array, "B N"],
    "logprobs": Float32[Array, "B N T"],
    "score": Float32[Array, "B N"],
}


def assert_shapes(expected: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    with jaxtyped("context"):
        for name, array in arrays.items():
            assert isinstance(array, expected[name]), f"{name} is {array.dtype}{array.shape}, not {expected[name]}"
