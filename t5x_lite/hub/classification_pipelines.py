"""Pipelines that classify whole texts: text-classification and zero-shot-classification."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.errors import ConfigError, DataError
from t5x_lite.hub.checks import require_positive
from t5x_lite.hub.encoder_outputs import encoder_outputs, softmax
from t5x_lite.hub.model import Model
from t5x_lite.lookup import lookup

FUNCTIONS = {"softmax": softmax, "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)), "none": lambda logits: logits}


def text_classification(model: Model, inputs: list, *, top_k: Any = "best", function_to_apply: str = "") -> list:
    """Returns the most probable class of each input, as {"label", "score"}.

    inputs: each is a text or {"text", "text_pair"}.
    top_k: if a number, each input gets a list of its `top_k` most probable classes; if None, a list of all classes.
    function_to_apply: the function that turns logits into scores: softmax, sigmoid or none. The default is none for a
        regression. It is sigmoid if a text may have several labels or there is only one class, and otherwise softmax.

    If the model generates text, the logit of a label is the log-probability that the model writes the label.

    Raises DataError if an input is not text; ConfigError if the model cannot classify.
    """
    if top_k not in ("best", None):
        require_positive("top_k", top_k)
    rows, names = _class_logits(model, inputs)
    independent = "multi_label" in model.config.heads or len(names) == 1
    default = "none" if not names else "sigmoid" if independent else "softmax"
    names = names or ("LABEL_0",)
    function = lookup("function_to_apply", function_to_apply or default, FUNCTIONS)
    results = []
    for logits_C in rows:
        scores_C = function(logits_C)
        order = np.argsort(-scores_C, kind="stable")
        classes = [{"label": names[i], "score": float(scores_C[i])} for i in order]
        results.append(classes[0] if top_k == "best" else classes[:top_k])
    return results


def zero_shot_classification(
    model: Model,
    inputs: list,
    *,
    candidate_labels: str | Sequence[str] = (),
    hypothesis_template: str = "",
    multi_label: bool = False,
) -> list[dict]:
    """Returns {"sequence", "labels", "scores"} for each input, with the most probable label first.

    `hypothesis_template` turns each label into a hypothesis. An encoder scores a label by the probability that the text
    entails the hypothesis. The encoder must be trained on natural language inference, with a class whose name begins
    with "entail". A model that generates text scores a label by the probability that it writes the hypothesis.

    candidate_labels: a list of labels, or one string in which commas separate the labels.
    hypothesis_template: a text in which "{}" stands for the label. The default is "This example is {}." for an encoder,
        otherwise "{}".
    multi_label: if true, each label is scored independently of the others; if false, the scores of all labels sum to 1.

    Raises ConfigError if there are no labels, if the template has no {}, or if the model cannot do this task.
    """
    labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else list(candidate_labels)
    labels = [label.strip() for label in labels if label.strip()]
    if not labels:
        raise ConfigError('zero-shot-classification needs candidate_labels, such as ["sports", "politics"]')
    infers = model.config.architecture == "encoder_only"
    template = hypothesis_template or ("This example is {}." if infers else "{}")
    try:
        fits = template.format(labels[0]) != template
    except (LookupError, ValueError):  # "{name}", "{1}", "{"
        fits = False
    if not fits:
        raise ConfigError(f"hypothesis_template={template!r} has no {{}} for the label; add one")
    pairs = [(text, template.format(label)) for text in inputs for label in labels]
    if infers:
        logits_TL, contradiction_TL = _entailment_logits(model, pairs, len(labels))
        alone_TL = 1 / (1 + np.exp(contradiction_TL - logits_TL))
    else:
        logits_TL = np.array(model.score(pairs)).reshape(len(inputs), len(labels))
        alone_TL = np.exp(logits_TL)
    scores_TL = alone_TL if multi_label or (infers and len(labels) == 1) else softmax(logits_TL)
    results = []
    for text, scores_L in zip(inputs, scores_TL, strict=True):
        order = np.argsort(scores_L)[::-1]
        results.append(
            {"sequence": text, "labels": [labels[i] for i in order], "scores": [float(scores_L[i]) for i in order]}
        )
    return results


def _entailment_logits(
    model: Model, pairs: Sequence[tuple[str, str]], num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (entailment logits, contradiction logits), each float64 [texts, labels].

    As in transformers, contradiction is the first class, or the last class if the first is entailment.

    Raises ConfigError if the encoder has no entailment class.
    """
    entails = next((i for i, name in enumerate(model.labels) if name.lower().startswith("entail")), None)
    if entails is None or "classification" not in model.config.heads:
        raise ConfigError(
            f"zero-shot-classification with an encoder needs a class `entailment`; this model's classes: {model.labels}"
        )
    logits_NC, _ = _class_logits(model, [{"text": text, "text_pair": hypothesis} for text, hypothesis in pairs])
    logits_TLC = np.array(logits_NC).reshape(len(pairs) // num_labels, num_labels, -1)
    return logits_TLC[..., entails], logits_TLC[..., -1 if entails == 0 else 0]


def _class_logits(model: Model, inputs: list) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Returns (logits, class names). Each input has logits float64 [C]. The names are () for a regression.

    inputs: each is a text or {"text", "text_pair"}.
    """
    for given in inputs:
        if not isinstance(given, str) and not (isinstance(given, Mapping) and isinstance(given.get("text"), str)):
            raise DataError(f'{str(given)[:80]!r} is not text; pass a string, or {{"text": …, "text_pair": …}}')
        if isinstance(given, Mapping):
            for key in given:
                lookup("field of a text", key, {"text": None, "text_pair": None})
    texts = [given if isinstance(given, str) else given["text"] for given in inputs]
    pairs = [None if isinstance(given, str) else given.get("text_pair") for given in inputs]
    if model.config.architecture != "encoder_only":
        if any(pair is not None for pair in pairs):
            raise ConfigError(
                "a model that generates text reads one text: put text_pair into text, in the form that its task uses"
            )
        if not model.labels:
            raise ConfigError(
                "text-classification needs labels; this model was trained on no task with labels, or on several such "
                "tasks. Use zero-shot-classification with candidate_labels"
            )
        scores = model.score([(text, label) for text in texts for label in model.labels])
        return list(np.array(scores).reshape(len(texts), -1)), model.labels
    heads = ("classification", "multi_label", "regression")
    head = next((name for name in heads if name in model.config.heads), None)
    if head is None:
        raise ConfigError(f"classifying needs the head `classification`; this encoder's heads: {model.config.heads}")
    paired = [pair is not None for pair in pairs]
    rows: list = [None] * len(inputs)
    for kind in sorted(set(paired)):  # in a batch, either every row has one text or every row has two
        numbers = [i for i, is_pair in enumerate(paired) if is_pair == kind]
        examples = [{"inputs": texts[i]} | ({"pair": str(pairs[i])} if kind else {}) for i in numbers]
        for i, outputs in zip(numbers, encoder_outputs(model, examples), strict=True):
            rows[i] = outputs[head].reshape(-1).astype(np.float64)
    return rows, model.labels if head != "regression" or len(model.labels) == 1 else ()
