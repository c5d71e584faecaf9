"""The contract between data and models: the arrays of a batch, their shapes and their meanings.

A batch is a plain `dict[str, np.ndarray]`; on the devices it holds jax arrays. Dimension letters are those of
`t5x_lite.models.config`:
    B: the number of rows.
    S: the length of a source.
    L: the length of a target (of the decoder).
    P: the number of masked positions in a row.
    E: the number of examples in a row (1 if unpacked); for multiple choice, the number of choices of all examples in
       the row.
    Y: E · C, where C is the number of classes: one number for each pair of an example in a row and a class.

Padding is explicit. Segment ids are 0 on padding, and 1, 2, … on the examples packed in a row. Weights are 0 where the
loss ignores a target. The code never compares token ids to find padding.
"""

from collections.abc import Mapping

import numpy as np

from t5x_lite.array_spec import FLOAT, INT, ArraySpec
from t5x_lite.errors import DataError
from t5x_lite.heads import ENCODER_HEADS

Batch = dict[str, np.ndarray]


ENCODER = {
    "encoder_input_tokens": ArraySpec("BS", INT, "token ids the encoder reads", vocabulary=True),
    "encoder_segment_ids": ArraySpec("BS", INT, "0 on padding; 1, 2, …: the number of the example in its row"),
    "encoder_positions": ArraySpec("BS", INT, "position within the example, from 0"),
}
DECODER = {
    "decoder_input_tokens": ArraySpec("BL", INT, "targets shifted right by one in each example", vocabulary=True),
    "decoder_target_tokens": ArraySpec("BL", INT, "token ids to predict", vocabulary=True),
    "decoder_loss_weights": ArraySpec("BL", FLOAT, "weight of each target in the loss; 0 on padding"),
    "decoder_segment_ids": ArraySpec("BL", INT, "0 on padding; 1, 2, …: the number of the example in its row"),
    "decoder_positions": ArraySpec("BL", INT, "position within the example, from 0"),
}
TOKEN_TYPES = {
    "token_type_ids": ArraySpec("BS", INT, "BERT's sentence A (0) or B (1)"),
}


def specs(architecture: str, heads: tuple[str, ...] = ()) -> dict[str, ArraySpec]:
    """Returns {name of an array in a batch: ArraySpec} for `architecture`.

    heads: names of heads (heads.py); only encoder_only uses them.
    """
    if architecture == "text_to_text":
        return ENCODER | DECODER
    if architecture == "decoder_only":
        return dict(DECODER)
    out = ENCODER | TOKEN_TYPES
    for head in heads:
        out |= ENCODER_HEADS[head].arrays
    return out


def zeros(architecture: str, sizes: Mapping[str, int], heads: tuple[str, ...] = ()) -> Batch:
    """Returns a batch that has only padding. sizes: {dimension letter: size}, for all letters that the arrays have."""
    return {
        name: np.zeros([sizes[d] for d in spec.dims], spec.dtype) for name, spec in specs(architecture, heads).items()
    }


def check(batch: Mapping[str, np.ndarray], spec_of: Mapping[str, ArraySpec], vocab_size: int) -> None:
    """Checks the names, dtypes, ranks and values of a batch's arrays on the host.

    JAX silently clips or wraps indices that are out of range. So without this check, a run with the wrong tokenizer
    would train without an error. (data/fields.py checks labels when it reads them.)

    batch: must hold one array per name in `spec_of`, with the dimensions and dtype of its ArraySpec.
    Raises DataError for the first array that is missing or wrong.
    """
    for name, spec in spec_of.items():
        if name not in batch:
            raise DataError(f"batch lacks {name!r}; it has {', '.join(sorted(batch))}")
        array = batch[name]
        if array.ndim != len(spec.dims) or array.dtype != spec.dtype:
            raise DataError(
                f"batch {name!r} is {array.dtype}{list(array.shape)}; expected {spec.dtype} with dimensions {spec.dims}"
            )
        if spec.vocabulary and array.size and array.view(np.uint32).max() >= vocab_size:  # negative: large as uint32
            low, high = int(array.min()), int(array.max())
            raise DataError(
                f"batch {name!r} holds token id {low if low < 0 else high}; allowed 0 to {vocab_size - 1}. "
                "The data was tokenized with a different vocabulary than the model's; use the same one for both."
            )
        if spec.dtype == FLOAT and not np.isfinite(array).all():
            raise DataError(f"batch {name!r} holds a value that is not finite; correct it in the data")
