"""Scores of generated texts: ROUGE, BLEU, chrF, and SQuAD's exact match and F1, values × 100.

Metrics as in metrics.py: a prediction of None is the empty text. rouge-score and sacrebleu are imported where used.
"""

import collections
import dataclasses
import functools
import re
import string
from collections.abc import Sequence

import numpy as np

from t5x_lite.tasks.metrics import pairs

ROUGE = ("rouge1", "rouge2", "rougeLsum")


def rouge(targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
    """ROUGE-1, -2 and -Lsum F1 (Lin 2004), means over the examples, without stemming; sentences are split at " . ".

    (T5 reports the middle of a bootstrap, which is this mean but for noise.)
    """
    scores = np.array([_rouge(target, predicted or "") for target, predicted in pairs(targets, predictions)])
    return dict(zip(ROUGE, map(float, 100 * scores.mean(axis=0)), strict=True))


@functools.lru_cache(maxsize=1 << 16)  # a bootstrap asks for the same pairs again and again
def _rouge(target: str, predicted: str) -> tuple[float, ...]:
    def sentences(text: str) -> str:
        return text.replace(" . ", " .\n")

    scores = _rouge_scorer().score(sentences(target), sentences(predicted))
    return tuple(scores[kind].fmeasure for kind in ROUGE)


@functools.cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=False)


@dataclasses.dataclass(frozen=True)
class Bleu:
    """The metric BLEU of a corpus (Papineni et al. 2002) by sacrebleu, with T5's tokenizer; `signature` says the rest.

    Give the signature with a score that others should be able to compare (Post 2018).
    """

    tokenize: str = "intl"  # of sacrebleu: intl (T5), 13a (WMT's), char, …

    def __call__(self, targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
        return {"bleu": self._scored(targets, predictions)[0]}

    def signature(self, targets: Sequence[str], predictions: Sequence[str | None]) -> str:
        return self._scored(targets, predictions)[1]

    def _scored(self, targets: Sequence[str], predictions: Sequence[str | None]) -> tuple[float, str]:
        from sacrebleu.metrics.bleu import BLEU

        return _sacrebleu(BLEU(tokenize=self.tokenize), targets, predictions)


@dataclasses.dataclass(frozen=True)
class Chrf:
    """The metric chrF (Popović 2015) by sacrebleu; chrF++ with a word_order of 2."""

    word_order: int = 0

    def __call__(self, targets: Sequence[str], predictions: Sequence[str | None]) -> dict[str, float]:
        return {"chrf++" if self.word_order == 2 else "chrf": self._scored(targets, predictions)[0]}

    def signature(self, targets: Sequence[str], predictions: Sequence[str | None]) -> str:
        return self._scored(targets, predictions)[1]

    def _scored(self, targets: Sequence[str], predictions: Sequence[str | None]) -> tuple[float, str]:
        from sacrebleu.metrics.chrf import CHRF

        return _sacrebleu(CHRF(word_order=self.word_order), targets, predictions)


def _sacrebleu(metric, targets: Sequence[str], predictions: Sequence[str | None]) -> tuple[float, str]:
    """(score, signature)."""
    both = pairs(targets, predictions)
    score = metric.corpus_score([predicted or "" for _, predicted in both], [[target for target, _ in both]])
    return float(score.score), str(metric.get_signature())


bleu = Bleu()
chrf = Chrf()


def squad(targets: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> dict[str, float]:
    """SQuAD's exact match and F1 (Rajpurkar et al. 2016, §6.1): the best over the target's answers, after
    `normalised`. A question that has no answer (SQuAD 2) has the answer "".

    >>> squad([["the Normans", "Normans"]], ["Norman rulers, the Normans"])
    {'exact_match': 0.0, 'f1': 50.0}
    """
    exact, overlap = [], []
    for answers, predicted in pairs(targets, predictions):
        got = normalised(predicted or "")
        wanted = [normalised(answer) for answer in answers] or [""]
        exact.append(max(float(got == answer) for answer in wanted))
        overlap.append(max(_overlap(answer.split(), got.split()) for answer in wanted))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and surplus white space, as SQuAD's script compares answers.

    >>> normalised("The  U.S.-led answer!")
    'usled answer'
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _overlap(target: Sequence[str], predicted: Sequence[str]) -> float:
    """F1 of two bags of words; of two empty ones 1."""
    if not target or not predicted:
        return float(target == predicted)
    same = sum((collections.Counter(target) & collections.Counter(predicted)).values())
    return 2 * same / (len(target) + len(predicted))
