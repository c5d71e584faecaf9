"""The heads of models, one row each: what a head reads and puts out, its arrays in a batch, and its loss. No jax here.

A new head is a row of HEADS, a target that asks for it (data/targets.py) with a method of the encoder's converter
(data/convert_encoder.py), and, where no loss of training/losses.py fits, a loss function.

Dimension letters are those of batch.py: B rows, S source length, P masked positions per row, E examples per row, Y the
classes of all examples of a row.
"""

import dataclasses
from collections.abc import Mapping

from t5x_lite.array_spec import FLOAT, INT, ArraySpec

# The hidden states a head reads: every token's, those at mlm_positions, or one of each example, through the pooler.
TOKENS, MASKED, EXAMPLES = "tokens", "masked", "examples"
CLASSES = "classes"  # as many outputs as model.num_classes


@dataclasses.dataclass(frozen=True)
class Head:
    """One output of a model, and what it takes to train it.

    reads: TOKENS, MASKED or EXAMPLES; "" for the language model's own output.
    outputs: numbers for each state it reads: CLASSES, how many (1: without an axis of their own), or None where the
        output is not those of a dense layer of this name (logits over the vocabulary, the pooled state itself).
    arrays: what a batch holds for it.
    targets, weights: the arrays with its targets and their weights; "" where it has no loss.
    loss: a key of training.losses.LOSSES.
    positions: the array with the index into S of each target; "" where every token has one.
    dropout: whether its inputs are dropped out.
    is_supervised: whether a task's own targets train it, not a corpus's objective.
    problem_type: the value in Hugging Face's config.json, where it tells heads of one class apart.
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
    problem_type: str = ""

    @property
    def has_classes(self) -> bool:
        """Whether model.num_classes is the number of its outputs."""
        return self.outputs == CLASSES


def _example_weights() -> ArraySpec:
    return ArraySpec("BE", FLOAT, "1 for an example, 0 for an unused slot")


POOLED = {
    "pooled_positions": ArraySpec("BE", INT, "index into S of each example's [CLS]; 0 where unused"),
}

# In the order of a model's outputs.
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
            "mlm_targets": ArraySpec("BP", INT, "the original ids at those positions", vocabulary=True),
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
            "token_targets": ArraySpec("BS", INT, "class index of the word that begins here, in the tags' order"),
            "token_weights": ArraySpec("BS", FLOAT, "1 where a word begins, 0 elsewhere"),
        },
        targets="token_targets",
        weights="token_weights",
    ),
    "span": Head(
        reads=TOKENS,
        outputs=2,  # start and end
        arrays={
            "span_starts": ArraySpec("BE", INT, "index into S of the answer's first token; of [CLS]: no answer"),
            "span_ends": ArraySpec("BE", INT, "index into S of its last token"),
            "span_weights": _example_weights(),
        },
        targets="span_starts",
        weights="span_weights",
        loss="span",
        positions="span_starts",
        dropout=False,
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
            "label_targets": ArraySpec("BY", FLOAT, "1 for each class that an example has, 0 for the others"),
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
            "choice_weights": ArraySpec("BE", FLOAT, "1 for the right choice of a question, 0 for the others"),
        },
        targets="choice_questions",
        weights="choice_weights",
        loss="choice",
        positions="pooled_positions",
    ),
    "pooled": Head(arrays=POOLED, is_supervised=False),
}
SUPERVISED = tuple(name for name, head in HEADS.items() if head.is_supervised)
ENCODER_HEADS = {name: head for name, head in HEADS.items() if head.reads}
WITH_LOSS = {name: head for name, head in HEADS.items() if head.weights}
