"""Describes the heads of models: the inputs and outputs of each head, its arrays in a batch, and its loss.

This module does not import jax. To add a head, write an entry of HEADS, a target that names the head (data/targets.py)
and a method of the encoder's converter (data/convert_encoder.py). If no loss of training/losses.py fits, add a loss
function.

Dimension letters are those of batch.py: B rows, S source length, P masked positions per row, E examples per row,
C classes, and Y = E · C.
"""

import dataclasses
from collections.abc import Mapping

from t5x_lite.array_spec import FLOAT, INT, ArraySpec

# What a head reads. TOKENS: the hidden states of all tokens; MASKED: those of the tokens at mlm_positions; EXAMPLES:
# the pooled state of each example, after the pooler; EMBEDDINGS: the pooled state before the pooler.
TOKENS, MASKED, EXAMPLES, EMBEDDINGS = "tokens", "masked", "examples", "embeddings"
CLASSES = "classes"  # the head has model.num_classes outputs


@dataclasses.dataclass(frozen=True)
class Head:
    """Describes one output of a model and how it is trained.

    reads: TOKENS, MASKED, EXAMPLES or EMBEDDINGS; "" for the language model's own output.
    outputs: how many numbers the head outputs for each state that it reads: an int or CLASSES. If it is 1, the output
        array has no axis for it. None: no dense layer is named after the head, because it outputs logits over the
        vocabulary or the pooled state itself.
    arrays: the arrays that a batch holds for the head.
    targets, weights: the names of the arrays that hold the targets and the targets' weights. Without weights, the head
        has no loss; with weights alone, the model makes the targets (models/projection.py: Targeted).
    loss: a key of training.losses.LOSSES.
    positions: the name of the array that holds each target's index into S; "" if every token has a target.
    dropout: whether dropout is applied to the head's inputs.
    is_supervised: whether only a task's own targets train the head. LoRA trains such heads in full.
    compares: whether the loss of an example depends on the other examples of the batch. The step then computes the loss
        of the whole batch at once, also with microbatches (training/whole_batch.py).
    problem_type: `problem_type` in Hugging Face's config.json, which distinguishes heads with the same Hugging Face
        class; "" if it is not needed.
    """

    reads: str = EXAMPLES
    outputs: int | str | None = None
    arrays: Mapping[str, ArraySpec] = dataclasses.field(default_factory=dict)
    targets: str = ""
    weights: str = ""
    loss: str = "cross_entropy"
    positions: str = ""
    dropout: bool = True
    is_supervised: bool = True
    compares: bool = False
    problem_type: str = ""

    @property
    def has_classes(self) -> bool:
        """Returns whether the head has model.num_classes outputs."""
        return self.outputs == CLASSES


def _example_weights() -> ArraySpec:
    return ArraySpec("BE", FLOAT, "1 for an example, 0 for an unused slot")


POOLED = {
    "pooled_positions": ArraySpec("BE", INT, "index into S of each example's [CLS]; 0 where unused"),
}

QUERY, MATCH, NEGATIVE = 1, 2, 3  # roles of texts in contrastive_roles; 0: an unused slot

# A model returns its outputs in this order.
HEADS: dict[str, Head] = {
    "lm": Head(
        reads="",
        is_supervised=False,
        targets="decoder_target_tokens",
        weights="decoder_loss_weights",
    ),
    "mlm": Head(
        reads=MASKED,
        is_supervised=False,
        arrays={
            "mlm_positions": ArraySpec("BP", INT, "indices into S of the selected tokens; 0 where unused"),
            "mlm_targets": ArraySpec("BP", INT, "the original ids at mlm_positions", vocabulary=True),
            "mlm_weights": ArraySpec("BP", FLOAT, "1 for a selected position, 0 for an unused slot"),
        },
        targets="mlm_targets",
        weights="mlm_weights",
        positions="mlm_positions",
    ),
    "token_classification": Head(
        reads=TOKENS,
        outputs=CLASSES,
        arrays={
            "token_targets": ArraySpec("BS", INT, "class index, in the tags' order, of the word that begins here"),
            "token_weights": ArraySpec("BS", FLOAT, "1 where a word begins, 0 elsewhere"),
        },
        targets="token_targets",
        weights="token_weights",
    ),
    "span": Head(
        reads=TOKENS,
        outputs=2,  # start and end
        arrays={
            "span_starts": ArraySpec("BE", INT, "index into S of the answer's first token; that of [CLS] if no answer"),
            "span_ends": ArraySpec("BE", INT, "index into S of the answer's last token"),
            "span_weights": _example_weights(),
        },
        targets="span_starts",
        weights="span_weights",
        loss="span",
        positions="span_starts",
        dropout=False,
    ),
    "rtd": Head(  # a logit per token: did the generator replace it? (ELECTRA)
        reads=TOKENS,
        is_supervised=False,
        arrays={"rtd_weights": ArraySpec("BS", FLOAT, "1 for a token of a corpus, 0 elsewhere")},
        weights="rtd_weights",
        loss="detection",
    ),
    "nsp": Head(
        outputs=2,
        arrays=POOLED
        | {
            "nsp_targets": ArraySpec("BE", INT, "0: the second text follows the first; 1: a random one, or swapped"),
            "nsp_weights": _example_weights(),
        },
        targets="nsp_targets",
        weights="nsp_weights",
        positions="pooled_positions",
        dropout=False,
        is_supervised=False,
    ),
    "classification": Head(
        outputs=CLASSES,
        arrays=POOLED
        | {
            "class_targets": ArraySpec("BE", INT, "class index, in the order of the task's labels"),
            "class_weights": _example_weights(),
        },
        targets="class_targets",
        weights="class_weights",
        positions="pooled_positions",
    ),
    "multi_label": Head(
        outputs=CLASSES,
        arrays=POOLED
        | {
            "label_targets": ArraySpec("BY", FLOAT, "1 for each class of the example, 0 for the other classes"),
            "label_weights": _example_weights(),
        },
        targets="label_targets",
        weights="label_weights",
        loss="binary_cross_entropy",
        positions="pooled_positions",
        problem_type="multi_label_classification",
    ),
    "regression": Head(
        outputs=1,
        arrays=POOLED
        | {
            "regression_targets": ArraySpec("BE", FLOAT, "the score to predict"),
            "regression_weights": _example_weights(),
        },
        targets="regression_targets",
        weights="regression_weights",
        loss="squared_error",
        positions="pooled_positions",
        problem_type="regression",
    ),
    "multiple_choice": Head(
        outputs=1,
        arrays=POOLED
        | {
            "choice_questions": ArraySpec("BE", INT, "1 + index into S where this choice's example begins; 0 unused"),
            "choice_weights": ArraySpec("BE", FLOAT, "1 for the correct choice of a question, 0 for the other choices"),
        },
        targets="choice_questions",
        weights="choice_weights",
        loss="choice",
        positions="pooled_positions",
    ),
    "contrastive": Head(
        reads=EMBEDDINGS,
        arrays=POOLED
        | {
            "contrastive_roles": ArraySpec("BE", INT, "1: a query, 2: the match of the query before it, 3: a negative"),
            "contrastive_weights": ArraySpec("BE", FLOAT, "1 for a query, 0 for the other texts"),
        },
        targets="contrastive_roles",
        weights="contrastive_weights",
        loss="contrastive",
        positions="pooled_positions",
        compares=True,
    ),
    "similarity": Head(
        reads=EMBEDDINGS,
        arrays=POOLED
        | {
            "similarity_targets": ArraySpec("BE", FLOAT, "the cosine of this text and the next to predict"),
            "similarity_weights": ArraySpec("BE", FLOAT, "1 for the first text of a pair, 0 for the second"),
        },
        targets="similarity_targets",
        weights="similarity_weights",
        loss="squared_error",
        positions="pooled_positions",
    ),
    "pooled": Head(arrays=POOLED, is_supervised=False),
}
SUPERVISED = tuple(name for name, head in HEADS.items() if head.is_supervised)
ENCODER_HEADS = {name: head for name, head in HEADS.items() if head.reads}
WITH_LOSS = {name: head for name, head in HEADS.items() if head.weights}
