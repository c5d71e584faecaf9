"""What an encoder's outputs say: a class, the tags of words, a part of a text. On the host, in float64."""

import numpy as np

from t5x_lite.data.convert_encoder import Window

OUTSIDE = "O"  # the tag of a word that is cut off


def logprobs(logits: np.ndarray) -> np.ndarray:
    """log softmax over the last axis."""
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def labels(logits_C: np.ndarray, names: tuple[str, ...]) -> tuple[str, float]:
    """The labels that are more probable than not, with commas between, and the log-probability of just these.

    >>> labels(np.array([2.0, -1.0, 0.5]), ("joy", "anger", "surprise"))[0]
    'joy, surprise'
    """
    logits_C = logits_C.astype(np.float64)
    found = [name for name, logit in zip(names, logits_C, strict=True) if logit > 0]
    return ", ".join(found), -float(np.logaddexp(0, -np.abs(logits_C)).sum())


def tags(logits_SC: np.ndarray, weights_S: np.ndarray, names: tuple[str, ...], words: int) -> tuple[list[str], float]:
    """The most probable tag of each word, whose first tokens weigh something, and their joint log-probability."""
    logprobs_WC = logprobs(logits_SC[weights_S > 0])
    best = [names[i] for i in logprobs_WC.argmax(axis=-1)]
    return best + [OUTSIDE] * (words - len(best)), float(logprobs_WC.max(axis=-1).sum())


def span(logits_S2: np.ndarray, window: Window, max_tokens: int) -> tuple[float, int, int]:
    """(score, first token, last token) of the best part of a window of at most `max_tokens` tokens, counted from the
    context's first: score = its start's and its end's logits together (Devlin et al. 2019, §4.2). -inf without tokens.

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
