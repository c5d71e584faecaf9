"""Batches are cut to a few lengths."""

import numpy as np

from t5x_lite.decoding.buckets import cut_to_bucket


def test_columns_of_padding_are_cut_to_a_bucket():
    batch = {name: np.zeros((2, 64), np.int32) for name in ("encoder_input_tokens", "encoder_segment_ids")}
    batch["encoder_segment_ids"][1, :17] = 1
    assert {a.shape for a in cut_to_bucket(batch, "text_to_text").values()} == {(2, 24)}
    batch["encoder_segment_ids"][0] = 1
    assert {a.shape for a in cut_to_bucket(batch, "text_to_text").values()} == {(2, 64)}
