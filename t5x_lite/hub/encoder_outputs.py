"""Computes an encoder's outputs for many texts, in batches. Also defines softmax in numpy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.decoding.buckets import bucket, power_of_two
from t5x_lite.hub.model import Model, in_batches


def encoder_outputs(
    model: Model, examples: Sequence[Mapping[str, Any]], hidden: bool = False
) -> list[dict[str, np.ndarray]]:
    """Returns one dict per example, {"ids": token ids, head: output of the head}.

    The ids are those that the encoder reads, int32 [tokens]. The output of the head `mlm` has one row for each mask in
    the text, in order, and then padding rows.

    examples: each is {field: text} or {field: token ids} (an Encoded).
    hidden: if true, each dict has "hidden", the hidden states [tokens, D], instead of the outputs of the heads.
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
    """Converts logits [..., C] to probabilities [..., C]. The probabilities sum to 1 over the last axis."""
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def _masks(ids_BS: np.ndarray, mask_id: int) -> np.ndarray:
    """Returns the positions of the masks in each row, int32 [B, P], padded with 0.

    P is the largest number of masks in a row, rounded up to a bucket, so that few shapes are compiled.

    ids_BS: int32 [B, S].
    """
    counts_B = (ids_BS == mask_id).sum(axis=1)
    positions_BP = np.zeros((len(ids_BS), bucket(int(counts_B.max(initial=1)))), np.int32)
    for row, count in enumerate(counts_B):
        positions_BP[row, :count] = np.flatnonzero(ids_BS[row] == mask_id)
    return positions_BP
