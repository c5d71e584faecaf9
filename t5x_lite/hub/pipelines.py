"""`pipeline(task, model=path)`: from texts to answers in one line, as in `transformers.pipeline`.

What goes in and what comes out is as there, for the tasks that transformers 5 dropped as it was in 4. A task is a
function from a model and a list of inputs to a list of outputs; its keyword arguments are the options a caller has.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.data import packing
from t5x_lite.data.convert import text_task
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.fields import Encoded
from t5x_lite.data.vocabularies import TokenizerVocabulary, Vocabulary
from t5x_lite.decoding import generate
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation.predict import cut_to_bucket
from t5x_lite.hub import generation
from t5x_lite.hub.model import Model, in_batches, load, padded_rows, require_text
from t5x_lite.lookup import lookup

BATCH_SIZE = 1024  # inputs taken at once, in turn sorted by length; the model reads 32 rows at a time
TRANSLATION = "translation"  # also translation_XX_to_YY


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A task with its model: call it with one input, or with any number of them."""

    task: str
    model: Model
    run: Callable[..., list]
    options: Mapping[str, Any]

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """The output of one input (a text, or what the task takes in its place), or the list of many inputs' outputs.

        options: the task's own, in place of those that `pipeline` was given. batch_size: inputs taken at once.
        question, context: of question-answering in place of inputs.
        """
        chosen = generation.over(self.options, options)
        if inputs is None and self.run is question_answering:
            inputs = _asked(chosen.pop("question", None), chosen.pop("context", None))
        if inputs is None:
            raise ConfigError(f"the pipeline {self.task!r} got no input; give it one, or a list of them")
        _require_known(self.task, self.run, chosen)
        batch_size, known = chosen.pop("batch_size", BATCH_SIZE), options_of(self.run)
        _require_positive("batch_size", batch_size)
        if not isinstance(inputs, Iterable):
            raise DataError(f"{inputs!r} is no text; give one, or a list of them")
        single = isinstance(inputs, str | Mapping)
        listed = [inputs] if single else list(inputs)
        if self.run not in READ_MORE:
            listed = list(map(require_text, listed))
        if single:
            found = self.run(self.model, listed, **chosen)[0]
            # What one text is stands in a list, as in transformers, where the call has no top_k.
            in_list = self.run is text_classification and isinstance(inputs, str) and "top_k" not in options
            return [found] if in_list else found
        outputs = []
        for first in range(0, len(listed), batch_size):
            numbered = {"first": first} if "seed" in known else {}  # what is drawn depends on the text's number
            outputs += self.run(self.model, listed[first : first + batch_size], **chosen, **numbered)
        alone = self.run in WRITE_ONE and all(len(texts) == 1 for texts in outputs)
        return [texts[0] for texts in outputs] if alone else outputs


def _require_known(task: str, run: Callable, options: Mapping[str, Any]) -> None:
    for name in options.keys() - {"batch_size"}:
        lookup(f"option of the pipeline {task!r}", name, options_of(run))


def _require_positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r}; it must be a whole number, at least 1")


def _asked(question: Any, context: Any) -> Any:
    """One of both, or a list of each; one of either goes with every one of the other."""
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if not question or not context:
        raise ConfigError('question-answering takes {"question": …, "context": …}, a list of them, or both as keywords')
    questions, contexts = ([given] if isinstance(given, str) else list(given) for given in (question, context))
    count = max(len(questions), len(contexts))
    questions, contexts = (one * count if len(one) == 1 else one for one in (questions, contexts))
    if len(questions) != len(contexts):
        raise ConfigError(f"{len(questions)} questions of {len(contexts)} contexts; give as many of both, or one")
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]


def pipeline(task: str, model: str | Path | Model, **options: Any) -> Pipeline:
    """A function from texts to the answers of a model; `t5x_lite.load` says which paths there are.

    >>> classify = pipeline("text-classification", model="runs/mrpc_0")        # doctest: +SKIP
    >>> classify({"text": "It rains.", "text_pair": "Rain falls."})            # doctest: +SKIP
    {'label': 'equivalent', 'score': 0.98}

    options: see the functions of TASKS. Those of writing that are not given are as the model's directory has them
    (hub/generation.py), or as in transformers. Raises ConfigError for a task that there is not, or that the model
    cannot do.
    """
    name = TRANSLATION if task.startswith(f"{TRANSLATION}_") else ALIASES.get(task, task)
    run = lookup("task of a pipeline", name, TASKS)
    _require_known(task, run, options)
    model = model if isinstance(model, Model) else load(Path(model))
    known = options_of(run)
    if "seed" in known:
        # text-generation is as in transformers 5, which knows no task_specific_params; the others are as in 4.
        said = generation.settings(model, task if run in WRITE_ONE else "")
        options = generation.over({name: value for name, value in said.items() if name in known}, options)
    return Pipeline(task, model, run, options)


def options_of(run: Callable) -> dict[str, Any]:
    """The options of a task by name, with those of hub/generation.py where it generates text."""
    parameters = inspect.signature(run).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
    generates = any(p.kind == p.VAR_KEYWORD for p in parameters)
    written = {name: default for name, (_, default) in generation.OPTIONS.items()} | {"seed": 0}
    return own | written if generates else own


# ------------------------------------------------------------------------------------------------------ classes


def text_classification(model: Model, inputs: list, *, top_k: Any = "best", function_to_apply: str = "") -> list:
    """{"label", "score"} of a text or of {"text", "text_pair"}: the most probable class, or with `top_k` a list of so
    many (None: all).

    function_to_apply: to an encoder's logits, softmax, sigmoid (where a text may have several labels, or there is one)
    or none. A regression's score is its number. A model that generates text is asked how probable each label is, among
    them all.
    """
    if top_k not in ("best", None):
        _require_positive("top_k", top_k)
    rows, names = _class_logits(model, inputs)
    each = "multi_label" in model.config.heads or len(names) == 1
    default = "none" if not names else "sigmoid" if each else "softmax"
    names = names or ("LABEL_0",)
    function = lookup("function_to_apply", function_to_apply or default, FUNCTIONS)
    results = []
    for logits_C in rows:
        scores_C = function(logits_C)
        order = np.argsort(-scores_C, kind="stable")
        found = [{"label": names[i], "score": float(scores_C[i])} for i in order]
        results.append(found[0] if top_k == "best" else found[:top_k])
    return results


def zero_shot_classification(
    model: Model,
    inputs: list,
    *,
    candidate_labels: str | Sequence[str] = (),
    hypothesis_template: str = "",
    multi_label: bool = False,
) -> list[dict]:
    """{"sequence", "labels", "scores"}, the most probable label first.

    An encoder that was trained on natural language inference (one of its classes begins with "entail") reads the text
    with each label in `hypothesis_template`, "This example is {}." by default. A model that generates text is asked how
    probable it is to write the label, in a template of its own: "{}". The scores sum to 1 over the labels; with
    `multi_label` each stands for itself.
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
        raise ConfigError(f"hypothesis_template={template!r} has no {{}} for the label to stand in")
    pairs = [(text, template.format(label)) for text in inputs for label in labels]
    if infers:
        entails = next((i for i, name in enumerate(model.labels) if name.lower().startswith("entail")), None)
        if entails is None or "classification" not in model.config.heads:
            raise ConfigError(
                f"zero-shot-classification with an encoder needs a class `entailment`; this one has {model.labels}"
            )
        logits_NC, _ = _class_logits(model, [{"text": text, "text_pair": hypothesis} for text, hypothesis in pairs])
        logits_TLC = np.array(logits_NC).reshape(len(inputs), len(labels), -1)
        logits_TL, against = logits_TLC[..., entails], logits_TLC[..., -1 if entails == 0 else 0]
        alone_TL = 1 / (1 + np.exp(against - logits_TL))
    else:
        logits_TL = np.array(model.score(pairs)).reshape(len(inputs), len(labels))
        alone_TL = np.exp(logits_TL)
    scores_TL = alone_TL if multi_label or (infers and len(labels) == 1) else _softmax(logits_TL)
    results = []
    for text, scores_L in zip(inputs, scores_TL, strict=True):
        order = np.argsort(scores_L)[::-1]
        results.append(
            {"sequence": text, "labels": [labels[i] for i in order], "scores": [float(scores_L[i]) for i in order]}
        )
    return results


def _class_logits(model: Model, inputs: list) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """float64 [C] for each text or pair of texts, and the names of the classes: none of a number."""
    for given in inputs:
        if not isinstance(given, str) and not (isinstance(given, Mapping) and isinstance(given.get("text"), str)):
            raise DataError(f'{str(given)[:80]!r} is no text; give one, or {{"text": …, "text_pair": …}}')
        if isinstance(given, Mapping):
            for key in given:
                lookup("field of a text", key, {"text": None, "text_pair": None})
    texts = [given if isinstance(given, str) else given["text"] for given in inputs]
    pairs = [None if isinstance(given, str) else given.get("text_pair") for given in inputs]
    if model.config.architecture != "encoder_only":
        if any(pair is not None for pair in pairs):
            raise ConfigError("a model that writes reads one text: put text_pair into text, as its task has them")
        if not model.labels:
            raise ConfigError(
                "text-classification needs labels: this model was trained on no task that has them, or on several. "
                "zero-shot-classification takes candidate_labels"
            )
        scores = model.score([(text, label) for text in texts for label in model.labels])
        return list(np.array(scores).reshape(len(texts), -1)), model.labels
    heads = ("classification", "multi_label", "regression")
    head = next((name for name in heads if name in model.config.heads), None)
    if head is None:
        raise ConfigError(f"this encoder has the heads {model.config.heads}; classifying needs `classification`")
    paired = [pair is not None for pair in pairs]
    rows: list = [None] * len(inputs)
    for kind in sorted(set(paired)):  # a batch has one text a row, or two
        mine = [i for i, is_pair in enumerate(paired) if is_pair == kind]
        examples = [{"inputs": texts[i]} | ({"pair": str(pairs[i])} if kind else {}) for i in mine]
        for i, outputs in zip(mine, _encoder_outputs(model, examples), strict=True):
            rows[i] = outputs[head].reshape(-1).astype(np.float64)
    return rows, model.labels if head != "regression" or len(model.labels) == 1 else ()


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


FUNCTIONS = {"softmax": _softmax, "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)), "none": lambda logits: logits}


# ------------------------------------------------------------------------------------------------------- tokens


def fill_mask(model: Model, inputs: list, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> list:
    """[{"score", "token", "token_str", "sequence"}, …] for the mask of a text, the most probable first; of a text with
    several masks a list for each. targets: words to choose from; of a word of several tokens, its first."""
    if "mlm" not in model.config.heads:
        raise ConfigError(f"fill-mask needs a model with the head `mlm`; this one has {model.config.heads}")
    vocabulary = model.vocabulary
    _require_positive("top_k", top_k)
    mask = vocabulary.show([vocabulary.mask_id])
    allowed = None
    if targets is not None:
        words = [targets] if isinstance(targets, str) else list(targets)
        allowed = np.unique([ids[0] for ids in vocabulary.encode(words) if len(ids)])
        if not len(allowed):
            raise ConfigError(f"targets={words} have no token in this vocabulary")
    examples = []
    for text in inputs:
        pieces = [piece.rstrip() if i < text.count(mask) else piece for i, piece in enumerate(text.split(mask))]
        if len(pieces) == 1:
            raise DataError(f"there is no {mask} in {text[:80]!r}; fill-mask fills one, or several")
        between = np.array([vocabulary.mask_id], np.int32)
        parts = [part for ids in vocabulary.encode(pieces) for part in (between, ids)]
        examples.append(Encoded(inputs=np.concatenate(parts[1:])))
    results = []
    for text, example, outputs in zip(inputs, examples, _encoder_outputs(model, examples), strict=True):
        ids = outputs["ids"]
        places = np.flatnonzero(ids == vocabulary.mask_id)
        if len(places) < (example["inputs"] == vocabulary.mask_id).sum():
            raise DataError(f"{text[:80]!r} is so long that the model does not read each {mask}; shorten it")
        results.append([
            _fillings(model, ids, place, logits_V, top_k, allowed, alone=len(places) == 1)
            for place, logits_V in zip(places, outputs["mlm"], strict=False)
        ])  # fmt: skip
    return [found[0] if len(found) == 1 else found for found in results]


def _fillings(model: Model, ids, place, logits_V, top_k: int, allowed, alone: bool) -> list[dict]:
    vocabulary = model.vocabulary
    probabilities_V = _softmax(logits_V[: vocabulary.size].astype(np.float64))
    candidates = np.arange(len(probabilities_V)) if allowed is None else allowed
    best = candidates[np.argsort(-probabilities_V[candidates], kind="stable")[:top_k]]
    found = []
    for token in best.tolist():
        filled = ids.copy()
        filled[place] = token
        sequence = vocabulary.decode(filled[1:]) if alone else vocabulary.show(filled)
        score, text = float(probabilities_V[token]), vocabulary.show([token])
        found.append({"score": score, "token": token, "token_str": text, "sequence": sequence})
    return found


def feature_extraction(model: Model, inputs: list, *, return_tensors: bool = False) -> list:
    """An encoder's hidden state for every token of a text, [1, tokens, D]: nested lists, or a float32 array."""
    results = [
        outputs["hidden"][None] for outputs in _encoder_outputs(model, [{"inputs": text} for text in inputs], True)
    ]
    return results if return_tensors else [hidden.tolist() for hidden in results]


def _encoder_outputs(model: Model, examples: list, hidden: bool = False) -> list[dict[str, np.ndarray]]:
    """Of each example the ids that the encoder reads, and the model's outputs by head; or its hidden states."""

    def work(chosen: list[int]) -> list[dict[str, np.ndarray]]:
        batch = model.prompts([examples[i] for i in chosen], padded_rows(len(chosen)))
        ids_BS, lengths_B = batch["encoder_input_tokens"], (batch["encoder_segment_ids"] > 0).sum(axis=1)
        if "mlm" in model.config.heads and not hidden:
            batch["mlm_positions"] = _masks(ids_BS, model.vocabulary.mask_id)
        outputs = {"hidden": model.hidden(batch)} if hidden else model(batch)
        arrays = {"ids": ids_BS, **{name: np.asarray(array) for name, array in outputs.items()}}
        per_token = ("ids", "hidden")
        return [
            {name: array[row, : lengths_B[row]] if name in per_token else array[row] for name, array in arrays.items()}
            for row in range(len(chosen))
        ]

    return in_batches(work, [_size(example) for example in examples])


def _masks(ids_BS: np.ndarray, mask_id: int) -> np.ndarray:
    """int32 [B, P]: where the masks of each row are, 0 behind them; few values of P, so few compilations."""
    counts_B = (ids_BS == mask_id).sum(axis=1)
    found_BP = np.zeros((len(ids_BS), generate.bucket(int(counts_B.max(initial=1)))), np.int32)
    for row, count in enumerate(counts_B):
        found_BP[row, :count] = np.flatnonzero(ids_BS[row] == mask_id)
    return found_BP


def token_classification(
    model: Model, inputs: list, *, aggregation_strategy: str = "none", ignore_labels: Sequence[str] = ("O",)
) -> list[list[dict]]:
    """The tokens of a text that have a tag, [{"entity", "score", "index", "word", "start", "end"}, …]; start and end
    count characters.

    aggregation_strategy: "simple" joins neighbours of one tag (B- begins a new one), and gives "entity_group" without
    "index". "first", "average" and "max" join the tokens of a word before: its tag is that of its first token, of their
    mean, or of the surest.
    """
    if "token_classification" not in model.config.heads:
        raise ConfigError(f"this needs a model with the head `token_classification`; its heads: {model.config.heads}")
    voters = lookup("aggregation_strategy", aggregation_strategy, VOTERS)
    by_word = aggregation_strategy not in ("none", "simple")
    found = [_tokens(model.vocabulary, text) for text in inputs]
    examples = [Encoded(inputs=np.array([token.id for token in tokens], np.int32)) for tokens in found]
    results = []
    for tokens, outputs in zip(found, _encoder_outputs(model, examples), strict=True):
        count = len(outputs["ids"]) - 2  # without [CLS] and [SEP]
        scores_TC = _softmax(outputs["token_classification"][1 : 1 + count].astype(np.float64))
        tagged: list[tuple[list[int], str, float]] = []  # the numbers of tokens that share a tag, and its probability
        for numbers in _runs([by_word and token.goes_on for token in tokens[:count]]):
            scores_WC = voters(scores_TC[numbers])
            row, tag = np.unravel_index(scores_WC.argmax(), scores_WC.shape)
            tagged.append((numbers, model.labels[tag], float(scores_WC[row, tag])))
        if aggregation_strategy == "none":
            entities = [
                {"entity": tag, "score": score, "index": n + 1, "word": tokens[n].text}
                | {"start": tokens[n].begin, "end": tokens[n].end}
                for (n,), tag, score in tagged
            ]
        else:
            tags = [tag for _, tag, _ in tagged]
            goes_on = [not b.startswith("B-") and _kind(a) == _kind(b) for a, b in itertools.pairwise(tags)]
            groups = _runs([False, *goes_on][: len(tags)])
            entities = [_entity(model.vocabulary, tokens, [tagged[n] for n in group]) for group in groups]
        results.append([e for e in entities if e.get("entity", e.get("entity_group")) not in ignore_labels])
    return results


# By name those of the scores of a word's tokens, [tokens, C], whose surest gives the word its tag.
VOTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda scores_WC: scores_WC,
    "simple": lambda scores_WC: scores_WC,
    "first": lambda scores_WC: scores_WC[:1],
    "average": lambda scores_WC: scores_WC.mean(axis=0, keepdims=True),
    "max": lambda scores_WC: scores_WC,
}


class Token(NamedTuple):
    """One token of a text, and where it stands there in characters. goes_on: with the word before it."""

    id: int
    text: str
    begin: int
    end: int
    goes_on: bool


def _tokens(vocabulary: Vocabulary, text: str) -> list[Token]:
    ids, places_T2 = vocabulary.places(text)
    unknown_T = ids == vocabulary.unk_id
    goes_on_T = ~vocabulary.word_starts[ids] & ~unknown_T & (np.arange(len(ids)) > 0)
    pieces = vocabulary.pieces(ids.tolist())
    rows = zip(ids.tolist(), pieces, places_T2.tolist(), goes_on_T.tolist(), unknown_T.tolist(), strict=True)
    return [Token(i, text[b:e] if unknown else piece, b, e, on) for i, piece, (b, e), on, unknown in rows]


def _runs(goes_on: Sequence[bool]) -> list[list[int]]:
    """The numbers of `goes_on` in runs: n is in the run of n − 1 where goes_on[n].

    >>> _runs([False, True, False])
    [[0, 1], [2]]
    """
    runs: list[list[int]] = []
    for n, joined in enumerate(goes_on):
        if runs and joined:
            runs[-1].append(n)
        else:
            runs.append([n])
    return runs


def _kind(tag: str) -> str:
    return tag[2:] if tag.startswith(("B-", "I-")) else tag


def _entity(vocabulary: Vocabulary, tokens: list[Token], group: list[tuple[list[int], str, float]]) -> dict[str, Any]:
    mine = [tokens[n] for numbers, _, _ in group for n in numbers]
    is_joined = isinstance(vocabulary, TokenizerVocabulary)  # unknown words as they stand in the text
    return {
        "entity_group": group[0][1].split("-", 1)[-1],
        "score": float(np.mean([score for _, _, score in group])),
        "word": vocabulary.join([t.text for t in mine]) if is_joined else vocabulary.show([t.id for t in mine]),
        "start": mine[0].begin,
        "end": mine[-1].end,
    }


def question_answering(
    model: Model,
    inputs: list,
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    max_seq_len: int = 384,
    doc_stride: int | None = None,
    handle_impossible_answer: bool = False,
) -> list:
    """{"score", "start", "end", "answer"} of a {"question", "context"}: the part of the context that an encoder marks,
    in whole words; with top_k above 1 a list of so many. start and end count characters.

    A context that does not fit in max_seq_len tokens is read in windows, each of which shares doc_stride tokens with
    the one before: 128, or half of them where that is less. The score is the probability of the start times that
    of the end, in the window. handle_impossible_answer: "" may be the answer, as probable as in the window where it is
    least.
    """
    if "span" not in model.config.heads:
        raise ConfigError(f"question-answering needs a model with the head `span`; its heads: {model.config.heads}")
    length = min(max_seq_len, model.config.max_positions or max_seq_len)
    marks = {"heads": model.config.heads, "fairseq_marks": model.config.fairseq_marks}
    converter = EncoderOnly(length, **marks)
    task = text_task(model.config.architecture, ("question", "context"))

    def overlap(room: int) -> int:
        return min(128, room // 2) if doc_stride is None else doc_stride

    features, windows = converter.windows(inputs, task, model.vocabulary, overlap)

    def work(chosen: list[int]) -> list[np.ndarray]:
        rows, part = padded_rows(len(chosen)), packing.take(features, np.array(chosen))
        batch = packing.fill(part, np.arange(len(chosen)), rows, converter.specs(), converter.prompt_sizes(0))
        return list(np.asarray(model(cut_to_bucket(batch, model.config.architecture))["span"], np.float64))

    answers: list[list[dict]] = [[] for _ in inputs]
    impossible = np.ones(len(inputs))
    for window, logits_S2 in zip(windows, in_batches(work, [w.end - w.begin for w in windows]), strict=True):
        count = window.end - window.begin
        columns = np.r_[0, window.first : window.first + count]  # [CLS], and the context
        start_T, end_T = _softmax(logits_S2[columns].T)
        impossible[window.example] = min(impossible[window.example], start_T[0] * end_T[0])
        score_TT = np.tril(np.triu(np.outer(start_T[1:], end_T[1:])), max_answer_len - 1)
        context = inputs[window.example]["context"]
        for flat in np.argsort(-score_TT, axis=None, kind="stable")[:top_k]:
            first, last = divmod(int(flat), count)
            if score_TT[first, last] > 0:
                start, end = int(window.places[window.begin + first, 0]), int(window.places[window.begin + last, 1])
                found = {"score": float(score_TT[first, last]), "start": start, "end": end}
                answers[window.example].append(found | {"answer": context[start:end]})
    if handle_impossible_answer:
        for found, score in zip(answers, impossible, strict=True):
            found.append({"score": float(score), "start": 0, "end": 0, "answer": ""})
    best = [sorted(found, key=lambda answer: -answer["score"])[:top_k] for found in answers]
    return [found[0] if len(found) == 1 else found for found in best]


# --------------------------------------------------------------------------------------------------- generation


def text_generation(
    model: Model,
    inputs: list,
    *,
    return_full_text: bool = True,
    do_sample: bool = True,
    temperature: float = 0.7,
    top_k: int = 50,
    **options: Any,
) -> list[list[dict]]:
    """[{"generated_text"}, …] of each text: the text and how it goes on, or with return_full_text=False that alone.
    Samples, unless do_sample=False. The other options: hub/generation.py."""
    _require(model, "text-generation", "decoder_only")
    written = generation.write(model, inputs, do_sample=do_sample, temperature=temperature, top_k=top_k, **options)
    before = inputs if return_full_text else [""] * len(inputs)
    return [[{"generated_text": text + new} for new in texts] for text, texts in zip(before, written, strict=True)]


def _text_to_text(key: str, model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    _require(model, "writing from a text", "text_to_text")
    beams = 1 if options.get("do_sample") else 4
    written = generation.write(model, [prefix + text for text in inputs], **{"num_beams": beams, **options})
    return [[{key: text} for text in texts] for texts in written]


def text2text_generation(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """[{"generated_text"}, …] of each text, by beam search; `prefix` comes before it. Options: hub/generation.py."""
    return _text_to_text("generated_text", model, inputs, prefix=prefix, **options)


def summarization(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """[{"summary_text"}] of each text, by beam search. prefix: that of the model's config.json by default, such as T5's
    "summarize: ". Options: hub/generation.py."""
    return _text_to_text("summary_text", model, inputs, prefix=prefix, **options)


def translation(model: Model, inputs: list, *, prefix: str = "", **options: Any) -> list[list[dict]]:
    """[{"translation_text"}] of each text, by beam search. prefix: of the task translation_en_to_de that of the model's
    config.json by default, such as T5's "translate English to German: ". Options: hub/generation.py."""
    return _text_to_text("translation_text", model, inputs, prefix=prefix, **options)


def _require(model: Model, task: str, architecture: str) -> None:
    if model.config.architecture != architecture:
        raise ConfigError(f"{task} needs a {architecture} model; this one is {model.config.architecture}")


def _size(example: Mapping[str, Any]) -> int:
    return sum(map(len, example.values()))


TASKS: dict[str, Callable[..., list]] = {
    "text-classification": text_classification,
    "zero-shot-classification": zero_shot_classification,
    "token-classification": token_classification,
    "question-answering": question_answering,
    "fill-mask": fill_mask,
    "feature-extraction": feature_extraction,
    "text-generation": text_generation,
    "text2text-generation": text2text_generation,
    "summarization": summarization,
    TRANSLATION: translation,
}
READ_MORE = (text_classification, question_answering)  # than single texts
WRITE_ONE = (text2text_generation, summarization, translation)  # one text each: no lists of one in a list
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
