"""Scores generated texts: ROUGE, BLEU, chrF, and SQuAD's exact match and F1. Values are × 100.

Metrics have the interface of metrics.py and raise DataError as its `pairs` does. A prediction of None counts as the
empty text. rouge-score and sacrebleu are imported where used.
"""

import collections
import dataclasses
import functools
import re
import string
import unicodedata
from collections.abc import Sequence

import numpy as np

from t5x_lite.tasks.metrics import pairs

ROUGE = ("rouge1", "rouge2", "rougeLsum")
CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters


def rouge(targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """Returns the F1 of ROUGE-1, ROUGE-2 and ROUGE-Lsum (Lin 2004), averaged over the examples. Words are not stemmed,
    and sentences are split at " . ".

    Words are runs of a-z and 0-9, as in the reference code. But if a target's letters are mostly not Latin (see
    `is_latin`), `AnyScript` splits the target and its prediction. (T5 reports the median of a bootstrap, which equals
    this mean up to noise.)
    """
    scores = np.array([_rouge(target, predicted or "") for target, predicted in pairs(targets, predictions)])
    return dict(zip(ROUGE, map(float, 100 * scores.mean(axis=0)), strict=True))


@functools.lru_cache(maxsize=1 << 16)  # a bootstrap scores the same pairs many times
def _rouge(target: str, predicted: str) -> tuple[float, ...]:
    def sentences(text: str) -> str:
        return text.replace(" . ", " .\n")

    scores = _rouge_scorer(is_latin(target)).score(sentences(target), sentences(predicted))
    return tuple(scores[kind].fmeasure for kind in ROUGE)


@functools.cache
def _rouge_scorer(latin: bool):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=False, tokenizer=None if latin else AnyScript())


def is_latin(text: str) -> bool:
    """Returns whether at least half of a text's letters are Latin.

    >>> is_latin("déjà 5"), is_latin("β-carotene"), is_latin("5 из")
    (True, True, False)
    """
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) >= len(letters)


class AnyScript:
    """Splits text of any script into words, for rouge_score. Combining marks, as in Hindi, belong to their words. Each
    Chinese or Japanese character is a word, because nothing separates words in these scripts."""

    def tokenize(self, text: str) -> list[str]:
        words = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
        return re.sub(f"([{CHARACTERS}])", r" \1 ", words).split()


@dataclasses.dataclass(frozen=True)
class Bleu:
    """The metric corpus BLEU (Papineni et al. 2002), computed by sacrebleu with T5's tokenizer.

    `signature` returns all settings. Publish it with the score, so that others can compare (Post 2018).
    """

    tokenize: str = "intl"  # sacrebleu's name: intl (T5), 13a (WMT), char, …

    def __call__(self, targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
        return {"bleu": self._scored(targets, predictions)[0]}

    def signature(self, targets: Sequence[str], predictions: Sequence[str | None]) -> str:
        return self._scored(targets, predictions)[1]

    def _scored(self, targets: Sequence[str], predictions: Sequence[str | None]) -> tuple[float, str]:
        from sacrebleu.metrics.bleu import BLEU

        return _sacrebleu(BLEU(tokenize=self.tokenize), targets, predictions)


@dataclasses.dataclass(frozen=True)
class Chrf:
    """The metric chrF (Popović 2015), computed by sacrebleu; chrF++ with a word_order of 2."""

    word_order: int = 0

    def __call__(self, targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
        return {"chrf++" if self.word_order == 2 else "chrf": self._scored(targets, predictions)[0]}

    def signature(self, targets: Sequence[str], predictions: Sequence[str | None]) -> str:
        return self._scored(targets, predictions)[1]

    def _scored(self, targets: Sequence[str], predictions: Sequence[str | None]) -> tuple[float, str]:
        from sacrebleu.metrics.chrf import CHRF

        return _sacrebleu(CHRF(word_order=self.word_order), targets, predictions)


def _sacrebleu(metric, targets: Sequence[str], predictions: Sequence[str | None]) -> tuple[float, str]:
    """Returns (score, signature) of a metric of sacrebleu."""
    both = pairs(targets, predictions)
    score = metric.corpus_score([predicted or "" for _, predicted in both], [[target for target, _ in both]])
    return float(score.score), str(metric.get_signature())


bleu = Bleu()
chrf = Chrf()


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> dict[str, float]:
    """Returns SQuAD's exact match and F1 (Rajpurkar et al. 2016, §6.1). Texts are compared after `normalised`. A
    prediction's score is the best of its scores for the answers in its target. An unanswerable question (SQuAD 2) has
    the answer "".

    >>> squad([["the Normans", "Normans"]], ["Norman rulers, the Normans"])
    {'exact_match': 0.0, 'f1': 50.0}
    """
    exact, overlap = [], []
    for answers, predicted in pairs(targets, predictions):
        prediction = normalised(predicted or "")
        allowed = [normalised(answer) for answer in answers] or [""]
        exact.append(max(float(prediction == answer) for answer in allowed))
        overlap.append(max(_overlap(answer.split(), prediction.split()) for answer in allowed))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def normalised(text: str) -> str:
    """Returns the text in lower case, without punctuation, articles and extra white space. SQuAD's script compares
    answers in this form.

    >>> normalised("The  U.S.-led answer!")
    'usled answer'
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _overlap(target: Sequence[str], predicted: Sequence[str]) -> float:
    """Returns the F1 of two bags of words; 1 if both are empty."""
    if not target or not predicted:
        return float(target == predicted)
    same = sum((collections.Counter(target) & collections.Counter(predicted)).values())
    return 2 * same / (len(target) + len(predicted))
