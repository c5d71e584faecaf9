"""The contract between data and models: which arrays a batch holds, their shapes and meanings.

A batch is a plain `dict[str, np.ndarray]` (jax arrays once on the devices). Dimension letters are
those of `t5x_lite.models.config`: B rows, S source length, L target (or decoder) length, P masked
positions per row, E examples per row (1 unpacked), or the choices of all examples in it, Y the classes
of all examples in it (C of each).

Padding is explicit: segment ids are 0 on padding and 1, 2, … on the examples packed in a row, weights
are 0 where nothing is to be learned. No code tests a token id to find padding.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from t5x_lite.errors import DataError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a batch: its dimension letters, dtype, and what its values mean."""

    dims: str
    dtype: type
    meaning: str
    vocabulary: bool = False  # values are token ids, checked against the vocabulary size


ENCODER = {
    "encoder_input_tokens": ArraySpec("BS", np.int32, "token ids the encoder reads", vocabulary=True),
    "encoder_segment_ids": ArraySpec("BS", np.int32, "0 padding; 1, 2, … the example in this row"),
    "encoder_positions": ArraySpec("BS", np.int32, "position within the example, from 0"),
}
DECODER = {
    "decoder_input_tokens": ArraySpec("BL", np.int32, "targets shifted right by one in each example", vocabulary=True),
    "decoder_target_tokens": ArraySpec("BL", np.int32, "token ids to predict", vocabulary=True),
    "decoder_loss_weights": ArraySpec("BL", np.float32, "weight of each target in the loss; 0 on padding"),
    "decoder_segment_ids": ArraySpec("BL", np.int32, "0 padding; 1, 2, … the example in this row"),
    "decoder_positions": ArraySpec("BL", np.int32, "position within the example, from 0"),
}
TOKEN_TYPES = {
    "token_type_ids": ArraySpec("BS", np.int32, "BERT's sentence A (0) or B (1)"),
}
MLM = {
    "mlm_positions": ArraySpec("BP", np.int32, "indices into S of the selected tokens; 0 where unused"),
    "mlm_targets": ArraySpec("BP", np.int32, "the original ids at those positions", vocabulary=True),
    "mlm_weights": ArraySpec("BP", np.float32, "1 for a selected position, 0 for an unused slot"),
}
POOLED = {
    "pooled_positions": ArraySpec("BE", np.int32, "index into S of each example's [CLS]; 0 where unused"),
}
NSP = {
    "nsp_targets": ArraySpec("BE", np.int32, "0: the second text follows the first; 1: a random one, or exchanged"),
    "nsp_weights": ArraySpec("BE", np.float32, "1 for an example, 0 for an unused slot"),
}
CLASSIFICATION = {
    "class_targets": ArraySpec("BE", np.int32, "class index, in the order of the task's labels"),
    "class_weights": ArraySpec("BE", np.float32, "1 for an example, 0 for an unused slot"),
}
MULTI_LABEL = {
    "label_targets": ArraySpec("BY", np.float32, "1 for each class that an example has, 0 for the others"),
    "label_weights": ArraySpec("BE", np.float32, "1 for an example, 0 for an unused slot"),
}
REGRESSION = {
    "regression_targets": ArraySpec("BE", np.float32, "the score to predict"),
    "regression_weights": ArraySpec("BE", np.float32, "1 for an example, 0 for an unused slot"),
}
TOKEN_CLASSIFICATION = {
    "token_targets": ArraySpec("BS", np.int32, "class index of the word that begins here, in the order of the tags"),
    "token_weights": ArraySpec("BS", np.float32, "1 where a word begins, 0 elsewhere"),
}
SPAN = {
    "span_starts": ArraySpec("BE", np.int32, "index into S of the answer's first token; of [CLS] where there is none"),
    "span_ends": ArraySpec("BE", np.int32, "index into S of its last token"),
    "span_weights": ArraySpec("BE", np.float32, "1 for an example, 0 for an unused slot"),
}
MULTIPLE_CHOICE = {
    "choice_questions": ArraySpec("BE", np.int32, "1 + index into S where the example of this choice begins; 0 unused"),
    "choice_weights": ArraySpec("BE", np.float32, "1 for the right choice of a question, 0 for the others"),
}
HEADS = {
    "mlm": MLM,
    "nsp": POOLED | NSP,
    "classification": POOLED | CLASSIFICATION,
    "multi_label": POOLED | MULTI_LABEL,
    "regression": POOLED | REGRESSION,
    "token_classification": TOKEN_CLASSIFICATION,
    "span": SPAN,
    "multiple_choice": POOLED | MULTIPLE_CHOICE,
    "pooled": POOLED,
}


def specs(architecture: str, heads: tuple[str, ...] = ()) -> dict[str, ArraySpec]:
    """The arrays of a batch for `architecture`; `heads` (keys of HEADS) matter to encoder_only."""
    if architecture == "text_to_text":
        return ENCODER | DECODER
    if architecture == "decoder_only":
        return dict(DECODER)
    out = ENCODER | TOKEN_TYPES
    for head in heads:
        out |= HEADS[head]
    return out


def zeros(architecture: str, sizes: Mapping[str, int], heads: tuple[str, ...] = ()) -> Batch:
    """An all-padding batch; `sizes` maps the dimension letters used (B, S, L, P, E, Y) to ints."""
    return {
        name: np.zeros([sizes[d] for d in spec.dims], spec.dtype) for name, spec in specs(architecture, heads).items()
    }


def check(batch: Mapping[str, np.ndarray], spec_of: Mapping[str, ArraySpec], vocab_size: int) -> None:
    """Checks names, dtypes, ranks and value ranges on the host; raises DataError.

    JAX clips or wraps indices out of range without a word, so a wrong tokenizer would train on silently. (Labels are
    checked where they are read: data/fields.py.)
    """
    for name, spec in spec_of.items():
        if name not in batch:
            raise DataError(f"batch lacks {name!r}; it has {', '.join(sorted(batch))}")
        array = batch[name]
        if array.ndim != len(spec.dims) or array.dtype != spec.dtype:
            raise DataError(
                f"batch {name!r} is {array.dtype}{list(array.shape)}; "
                f"expected {np.dtype(spec.dtype)} of dimensions {spec.dims}"
            )
        if spec.vocabulary and array.size and array.view(np.uint32).max() >= vocab_size:  # negative ones are large too
            low, high = int(array.min()), int(array.max())
            raise DataError(
                f"batch {name!r} holds token id {low if low < 0 else high}; allowed 0 to {vocab_size - 1}. "
                "The data was made with another vocabulary than the model's."
            )
        if spec.dtype == np.float32 and not np.isfinite(array).all():
            raise DataError(f"batch {name!r} holds a value that is not finite")
