"""An encoder's outputs for texts of any lengths, batch by batch, and the probabilities they stand for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.decoding.buckets import bucket, power_of_two
from t5x_lite.hub.model import Model, in_batches


def encoder_outputs(
    model: Model, examples: Sequence[Mapping[str, Any]], hidden: bool = False
) -> list[dict[str, np.ndarray]]:
    """For each example "ids", the int32 [tokens] that the encoder reads, and its outputs by head.

    examples: texts, or ids (Encoded), by field.  hidden: instead of the heads' outputs, "hidden", the states
    [tokens, D].  With the head `mlm`, its outputs are those of the masks in the text, in their order.
    """

    def work(chosen: list[int]) -> list[dict[str, np.ndarray]]:
        batch = model.prompts([examples[i] for i in chosen], power_of_two(len(chosen)))
        ids_BS, lengths_B = batch["encoder_input_tokens"], (batch["encoder_segment_ids"] > 0).sum(axis=1)
        if "mlm" in model.config.heads and not hidden:
            batch["mlm_positions"] = _masks(ids_BS, model.vocabulary.mask_id)
        outputs = {"hidden": model.hidden(batch)} if hidden else model(batch)
        arrays = {"ids": ids_BS, **{name: np.asarray(array) for name, array in outputs.items()}}
        per_token = ("ids", "hidden")
        return [
            {name: array[row, : lengths_B[row]] if name in per_token else array[row] for name, array in arrays.items()}
            for row in range(len(chosen))
        ]

    return in_batches(work, [sum(map(len, example.values())) for example in examples])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def _masks(ids_BS: np.ndarray, mask_id: int) -> np.ndarray:
    """The positions of each row's masks, int32 [B, P], 0 behind them. P is a bucket: it has few values."""
    counts_B = (ids_BS == mask_id).sum(axis=1)
    positions_BP = np.zeros((len(ids_BS), bucket(int(counts_B.max(initial=1)))), np.int32)
    for row, count in enumerate(counts_B):
        positions_BP[row, :count] = np.flatnonzero(ids_BS[row] == mask_id)
    return positions_BP
