"""Scores of simple baselines: always the most common target, the inputs' first sentence, or a bag of words."""

import collections
import itertools
import re
from collections.abc import Mapping, Sequence

from t5x_lite.data.reader import text_examples
from t5x_lite.data.registry import Task
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import scores
from t5x_lite.experiment import Experiment

WORD_EXAMPLES = 20_000  # the bag of words is fitted on at most this many examples, in seconds


def baselines(experiment: Experiment) -> dict[str, float]:
    """Returns {"baseline/TASK/METRIC": value}: the scores of guesses that need no model."""
    values: dict[str, float] = {}
    for task in experiment.eval_tasks:
        if not task.baseline or (task.baseline == "majority" and not _has_training(task)):
            continue
        examples = _examples(task, experiment)
        if task.baseline == "majority":
            counts = collections.Counter(example["targets"] for _, example in text_examples(task, "train"))
            guesses = [counts.most_common(1)[0][0]] * len(examples)
        else:
            guesses = [first_sentence(example["inputs"]) for example in examples]
        values |= _named("baseline", task, scores.of_guesses(task, examples, guesses))
    return values


def word_baselines(experiment: Experiment) -> dict[str, float]:
    """Returns {"words/TASK/METRIC": value}: the scores of logistic regression on bags of words.

    Leaves out a task if it has no training split, or if its examples do not have exactly one label each.
    """
    values: dict[str, float] = {}
    for task in experiment.eval_tasks:
        if task.labels and not task.target.several and _has_training(task):
            examples = _examples(task, experiment)
            train = itertools.islice(text_examples(task, "train"), WORD_EXAMPLES)
            pairs = [(example["inputs"], example["targets"]) for _, example in train]
            guesses = by_words(pairs, [example["inputs"] for example in examples])
            values |= _named("words", task, scores.of_guesses(task, examples, guesses))
    return values


def by_words(train: Sequence[tuple[str, str]], inputs: Sequence[str]) -> list[str]:
    """Returns the labels that logistic regression predicts for the texts `inputs`.

    The features are words and pairs of adjacent words, weighted by TF-IDF. train: pairs (text, label).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, labels = zip(*train, strict=True)
    if len(set(labels)) == 1:
        return [labels[0]] * len(inputs)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]"), LogisticRegression(max_iter=1000)
    )
    return [str(label) for label in model.fit(texts, labels).predict(inputs)]


def first_sentence(inputs: str) -> str:
    """Returns what the baseline "copy" guesses: the first sentence of the inputs, without the task's prefix."""
    text = inputs.partition(": ")[2] or inputs
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def _examples(task: Task, experiment: Experiment) -> list[Mapping]:
    cfg = experiment.cfg.eval
    return [example for _, example in itertools.islice(text_examples(task, cfg.split), cfg.max_examples or None)]


def _has_training(task: Task) -> bool:
    """Returns whether a task has a training split with examples; a diagnostic set, such as glue_ax, has none."""
    try:
        return len(task.source.split("train")) > 0
    except (ConfigError, DataError):  # the task has no such split, or the split's file was not published
        return False


def _named(kind: str, task: Task, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{task.name}/{metric}": value for metric, value in values.items()}
