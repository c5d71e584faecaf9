"""Defines the tasks SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) as text, in T5's format. An encoder marks the
answer in the context.

Reads from TFDS, or from a directory with the published files: --config.data.dir=DIR, where DIR holds
squad/train-v1.1.json and so on.
"""

import re
import string
from collections.abc import Sequence

from t5x_lite.data import registry
from t5x_lite.data.records import Example
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Tfds
from t5x_lite.data.targets import Span
from t5x_lite.tasks.published import Published, as_data_error, read_json
from t5x_lite.tasks.text_metrics import squad

PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


def spaced(text: str) -> str:
    """Puts single spaces around punctuation (t5/data/preprocessors.py: squad).

    >>> spaced("the U.S., then")
    'the U . S . , then'
    """
    return " ".join(PUNCTUATION.sub(r" \1 ", text).split())


def questions(path: str) -> Sequence[Example]:
    """The questions of one of SQuAD's files, each with its context and answers."""
    with as_data_error(path):
        return [
            {
                "context": paragraph["context"],
                "question": question["question"],
                "answers": {
                    name: [answer[name] for answer in question.get("answers", ())] for name in ("text", "answer_start")
                },
                "id": question["id"],
            }
            for article in read_json(path)["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]


def of_tfds(example: Example) -> Example:
    answers = example["answers"]
    return {
        "context": example["context"],
        "question": example["question"],
        "answers": {"text": list(map(str, answers["text"])), "answer_start": list(map(int, answers["answer_start"]))},
        "id": example["id"],
    }


def question_and_context(example: Example) -> Example:
    """T5's format; the first answer is the target, the empty text where there is none."""
    answers = [spaced(text) for text in example["answers"]["text"]]
    inputs = f"question: {spaced(example['question'])} context: {spaced(example['context'])}"
    span = None
    if answers:
        begin = example["answers"]["answer_start"][0]
        span = begin, begin + len(example["answers"]["text"][0])
    return {
        **example,
        "inputs": inputs,
        "targets": answers[0] if answers else "",
        "all_answers": answers or [""],
        "answer_span": span,
    }


def all_answers(example: Example) -> list[str]:
    return list(example["all_answers"])


def _task(name: str, version: str, tfds: str, always: bool) -> Task:
    files = {"train": (f"train-{version}.json",), "validation": (f"dev-{version}.json",)}
    splits = {"train": "train", "validation": "validation"}
    source = Published("squad", files, questions, Tfds(tfds, splits), of_tfds=of_tfds)
    return Task(
        name, source, (question_and_context,), segments=("question", "context"), target=Span(always),
        metrics=(squad,), postprocess=spaced, reference=all_answers,
    )  # fmt: skip


TASKS = (
    registry.add(_task("squad", "v1.1", "squad/v1.1", always=True)),
    registry.add(_task("squad_v2", "v2.0", "squad/v2.0", always=False)),
)
