"""Turns an encoder's outputs into predictions: a class, a number, the tags of words or a span of a text.

All of this runs on the host, in float64.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5x_lite.data.convert_encoder import Window
from t5x_lite.data.fields import words_of
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Choices, Classes, Match, Number, Similarity, Tags, Target
from t5x_lite.tasks.span_metrics import spans_as_text

OUTSIDE = "O"  # the tag of a word that was cut off


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one example.

    text: the generated text or the label.
    score: natural log-probability of the text. Exceptions: regression gives the number itself, beam search its
        length-penalised score, and a span the sum of two logits.
    tokens: number of generated tokens without the end-of-sequence token.
    probabilities: {class: probability} if the head has classes for the whole example, else None. They sum to 1, unless
        an example may have several classes.
    embeddings: of a query and its match, each float [D], if the task finds matches.
    """

    text: str
    score: float
    tokens: int = 0
    probabilities: Mapping[str, float] | None = None
    embeddings: tuple[np.ndarray, np.ndarray] | None = None


def read(
    outputs: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], examples: Sequence[Mapping], task: Task
) -> list[Prediction]:
    """Reads a prediction for each example from the output of the task's head. The batch has one example per row.

    outputs: {head: [B, E, C], [B, E] or [B, S, C]}, for E examples or choices in a row, S tokens, and C classes.
    batch: arrays [B, …].

    Spans are not read here: `span` reads them from each window.
    """
    return BY_TARGET[type(task.target)](outputs[task.head], batch, examples, task)


def _classes(logits_BEC: np.ndarray, batch, examples, task: Task) -> list[Prediction]:
    if task.target.several:
        predictions = []
        for logits_C in logits_BEC[:, 0]:
            shares_C = np.exp(-np.logaddexp(0, -logits_C.astype(np.float64)))
            shares = dict(zip(task.labels, map(float, shares_C), strict=True))
            predictions.append(Prediction(*labels(logits_C, task.labels), probabilities=shares))
        return predictions
    return _most_probable(logits_BEC[:, 0], task.labels)


def _numbers(values_BE: np.ndarray, batch, examples, task: Task) -> list[Prediction]:
    return [Prediction(str(float(x)), float(x)) for x in values_BE[:, 0]]


def _tags(logits_BSC: np.ndarray, batch, examples, task: Task) -> list[Prediction]:
    predictions = []
    for logits_SC, weights_S, example in zip(logits_BSC, batch["token_weights"], examples, strict=False):
        words = words_of(example, task)
        names, score = tags(logits_SC, weights_S, task.classes, len(words))
        predictions.append(Prediction(spans_as_text(words, names), score))
    return predictions


def _choices(logits_BE: np.ndarray, batch, examples, task: Task) -> list[Prediction]:
    return _most_probable(logits_BE[:, : len(task.labels)], task.labels)


def _matches(embeddings_BED: np.ndarray, batch, examples, task: Task) -> list[Prediction]:
    unit_BED = embeddings_BED / np.linalg.norm(embeddings_BED, axis=-1, keepdims=True).clip(1e-12)
    cosines = [float(query_D @ match_D) for query_D, match_D in unit_BED[:, :2].astype(np.float64)]
    return [Prediction(f"{x:.4f}", x, embeddings=(pair[0], pair[1])) for x, pair in zip(cosines, unit_BED, strict=True)]


# (output, batch, examples, task) -> one prediction per row.
BY_TARGET: dict[type[Target], Callable[..., list[Prediction]]] = {
    Classes: _classes,
    Number: _numbers,
    Tags: _tags,
    Choices: _choices,
    Match: _matches,
    Similarity: _numbers,
}


def _most_probable(logits_BC: np.ndarray, names: tuple[str, ...]) -> list[Prediction]:
    return [
        Prediction(
            names[row_C.argmax()],
            float(row_C.max()),
            probabilities=dict(zip(names, map(float, np.exp(row_C)), strict=True)),
        )
        for row_C in logprobs(logits_BC)
    ]


def logprobs(logits: np.ndarray) -> np.ndarray:
    """Returns the log softmax over the last axis: float64 [..., C]. logits: [..., C]."""
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def labels(logits_C: np.ndarray, names: tuple[str, ...]) -> tuple[str, float]:
    """Returns the labels whose probability is above 1/2, joined by commas, and the log-probability of exactly this set.

    logits_C: [C], one logit per name in `names`.

    >>> labels(np.array([2.0, -1.0, 0.5]), ("joy", "anger", "surprise"))[0]
    'joy, surprise'
    """
    logits_C = logits_C.astype(np.float64)
    predicted = [name for name, logit in zip(names, logits_C, strict=True) if logit > 0]
    return ", ".join(predicted), -float(np.logaddexp(0, -np.abs(logits_C)).sum())


def tags(logits_SC: np.ndarray, weights_S: np.ndarray, names: tuple[str, ...], words: int) -> tuple[list[str], float]:
    """Returns the most probable tag of each word, and the joint log-probability of these tags.

    logits_SC: [S, C]. weights_S: [S], above 0 at the first token of each word. words: the number of words in the
    example. Words that were cut off get the tag OUTSIDE.
    """
    logprobs_WC = logprobs(logits_SC[weights_S > 0])
    best = [names[i] for i in logprobs_WC.argmax(axis=-1)]
    return best + [OUTSIDE] * (words - len(best)), float(logprobs_WC.max(axis=-1).sum())


def span(logits_S2: np.ndarray, window: Window, max_tokens: int) -> tuple[float, int, int]:
    """Returns (score, first token, last token) of a window's best span that has at most `max_tokens` tokens.

    The score is the start logit of the first token plus the end logit of the last (Devlin et al. 2019, §4.2). If the
    window has no tokens, it is -inf. Tokens are numbered from the first token of the context. logits_S2: [S, 2], the
    start and end logits.

    >>> window = Window(example=0, first=2, begin=10, end=13, places=np.zeros((20, 2), np.int64))
    >>> logits_S2 = np.array([[9, 9], [9, 9], [0, 5], [2, 0], [1, 3], [9, 9]])
    >>> span(logits_S2, window, max_tokens=2)
    (5.0, 10, 10)
    """
    count = window.end - window.begin
    if not count:
        return -np.inf, 0, 0
    start_T, end_T = logits_S2[window.first : window.first + count].astype(np.float64).T
    length_TT = np.arange(count) - np.arange(count)[:, None] + 1
    score_TT = np.where((length_TT >= 1) & (length_TT <= max_tokens), start_T[:, None] + end_T, -np.inf)
    first, last = divmod(int(score_TT.argmax()), count)
    return float(score_TT[first, last]), window.begin + first, window.begin + last
