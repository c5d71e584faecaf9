"""Pipelines that return tokens of the text, parts of it, or vectors for it.

These are fill-mask, token-classification, question-answering and feature-extraction.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.data import packing
from t5x_lite.data.convert import text_task
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.fields import Encoded
from t5x_lite.data.vocabularies import TokenizerVocabulary, Vocabulary
from t5x_lite.decoding.buckets import cut_to_bucket, power_of_two
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.hub.checks import require_positive
from t5x_lite.hub.encoder_outputs import encoder_outputs, softmax
from t5x_lite.hub.model import Model, in_batches
from t5x_lite.lookup import lookup


def feature_extraction(model: Model, inputs: list, *, return_tensors: bool = False) -> list:
    """Returns the encoder's hidden states for each text, as nested lists [1, tokens, D].

    return_tensors: if true, returns float32 arrays instead of lists.
    """
    examples = [{"inputs": text} for text in inputs]
    results = [outputs["hidden"][None] for outputs in encoder_outputs(model, examples, hidden=True)]
    return results if return_tensors else [hidden.tolist() for hidden in results]


# Masks ----------------------------------------------------------------------------------------------------------------


def fill_mask(model: Model, inputs: list, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> list:
    """Returns the `top_k` most probable tokens for the mask in each text, best first.

    A returned token is {"score", "token", "token_str", "sequence"}. If a text has several masks, its result is a list
    with one list of tokens per mask.

    targets: words. If given, returns only tokens from these words. If a word has several tokens, only its first counts.

    Raises DataError if a text has no mask, or if the text is so long that a mask is cut off; ConfigError if the model
    has no head `mlm`, or if no target has a token.
    """
    if "mlm" not in model.config.heads:
        raise ConfigError(f"fill-mask needs a model with the head `mlm`; its heads: {model.config.heads}")
    vocabulary = model.vocabulary
    require_positive("top_k", top_k)
    mask = vocabulary.show([vocabulary.mask_id])
    allowed = None
    if targets is not None:
        words = [targets] if isinstance(targets, str) else list(targets)
        allowed = np.unique([ids[0] for ids in vocabulary.encode(words) if len(ids)])
        if not len(allowed):
            raise ConfigError(f"targets={words}: none has a token in the vocabulary")
    examples = [_with_masks(vocabulary, text, mask) for text in inputs]
    results = []
    for text, example, outputs in zip(inputs, examples, encoder_outputs(model, examples), strict=True):
        ids = outputs["ids"]
        places = np.flatnonzero(ids == vocabulary.mask_id).tolist()
        if len(places) < (example["inputs"] == vocabulary.mask_id).sum():
            raise DataError(f"{text[:80]!r} is too long: the model does not read every {mask}; shorten it")
        results.append([
            _fillings(model, ids, place, logits_V, top_k, allowed, alone=len(places) == 1)
            for place, logits_V in zip(places, outputs["mlm"], strict=False)
        ])  # fmt: skip
    return [fillings[0] if len(fillings) == 1 else fillings for fillings in results]


def _with_masks(vocabulary: Vocabulary, text: str, mask: str) -> Encoded:
    """Returns the token ids of a text, with the mask id wherever the text has the string `mask`.

    Raises DataError if the text does not have this string.
    """
    pieces = [piece.rstrip() if i < text.count(mask) else piece for i, piece in enumerate(text.split(mask))]
    if len(pieces) == 1:
        raise DataError(f"{text[:80]!r} has no {mask}; fill-mask needs one or more")
    between = np.array([vocabulary.mask_id], np.int32)
    parts = [part for ids in vocabulary.encode(pieces) for part in (between, ids)]
    return Encoded(inputs=np.concatenate(parts[1:]))


def _fillings(
    model: Model, ids: np.ndarray, place: int, logits_V: np.ndarray, top_k: int, allowed: np.ndarray | None, alone: bool
) -> list[dict]:
    """Returns the `top_k` most probable tokens for the mask at position `place`.

    ids: the token ids of the text, int32 [tokens].
    logits_V: the logits of all tokens of the vocabulary, for this mask.
    allowed: the token ids to choose from; None: all.
    alone: true if the text has no other mask.
    """
    vocabulary = model.vocabulary
    probabilities_V = softmax(logits_V[: vocabulary.size].astype(np.float64))
    candidates = np.arange(len(probabilities_V)) if allowed is None else allowed
    best = candidates[np.argsort(-probabilities_V[candidates], kind="stable")[:top_k]]
    fillings = []
    for token in best.tolist():
        filled = ids.copy()
        filled[place] = token
        sequence = vocabulary.decode(filled[1:]) if alone else vocabulary.show(filled)
        score, text = float(probabilities_V[token]), vocabulary.show([token])
        fillings.append({"score": score, "token": token, "token_str": text, "sequence": sequence})
    return fillings


# Tags -----------------------------------------------------------------------------------------------------------------

# {aggregation_strategy: function}. The function takes the scores of a word's tokens, [tokens, C]. It returns all rows,
# some rows, or the mean row. The highest score in the returned rows decides the word's tag.
VOTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda scores_WC: scores_WC,
    "simple": lambda scores_WC: scores_WC,
    "first": lambda scores_WC: scores_WC[:1],
    "average": lambda scores_WC: scores_WC.mean(axis=0, keepdims=True),
    "max": lambda scores_WC: scores_WC,
}


class Token(NamedTuple):
    """Describes one token of a text.

    begin: the position in the text of the token's first character.
    end: the position after the token's last character.
    goes_on: true if the token belongs to the same word as the previous token.
    """

    id: int
    text: str
    begin: int
    end: int
    goes_on: bool


class Tagged(NamedTuple):
    """Holds the tag of one token, or of a word with one or more tokens.

    numbers: the indices of the token or tokens among all tokens of the text.
    score: the probability of the tag.
    """

    numbers: list[int]
    tag: str
    score: float


def token_classification(
    model: Model, inputs: list, *, aggregation_strategy: str = "none", ignore_labels: Sequence[str] = ("O",)
) -> list[list[dict]]:
    """Returns the tagged tokens of each text, [{"entity", "score", "index", "word", "start", "end"}, …].

    "start" and "end" count characters.

    aggregation_strategy: how tokens become entities. "none" returns single tokens. "simple" joins neighbouring tokens
        with the same tag into one entity; a tag with B- begins a new entity. The other strategies give each word one
        tag, and then join neighbouring words in the same way. With "first", a word has the tag of its first token; with
        "average", the tag with the highest mean probability over the word's tokens; with "max", the tag with the
        highest probability at any of these tokens. Except for "none", results have "entity_group" in place of "entity"
        and "index".
    ignore_labels: tags to leave out.

    Raises ConfigError if the model has no head `token_classification`.
    """
    if "token_classification" not in model.config.heads:
        raise ConfigError(
            f"this task needs a model with the head `token_classification`; its heads: {model.config.heads}"
        )
    voters = lookup("aggregation_strategy", aggregation_strategy, VOTERS)
    by_word = aggregation_strategy not in ("none", "simple")
    texts = [_tokens(model.vocabulary, text) for text in inputs]
    examples = [Encoded(inputs=np.array([token.id for token in tokens], np.int32)) for tokens in texts]
    results = []
    for tokens, outputs in zip(texts, encoder_outputs(model, examples), strict=True):
        count = len(outputs["ids"]) - 2  # without [CLS] and [SEP]
        scores_TC = softmax(outputs["token_classification"][1 : 1 + count].astype(np.float64))
        tagged: list[Tagged] = []
        for numbers in _runs([by_word and token.goes_on for token in tokens[:count]]):
            scores_WC = voters(scores_TC[numbers])
            row, tag = np.unravel_index(scores_WC.argmax(), scores_WC.shape)
            tagged.append(Tagged(numbers, model.labels[tag], float(scores_WC[row, tag])))
        if aggregation_strategy == "none":
            entities = [
                {"entity": tag, "score": score, "index": n + 1, "word": tokens[n].text}
                | {"start": tokens[n].begin, "end": tokens[n].end}
                for (n,), tag, score in tagged
            ]
        else:
            tags = [word.tag for word in tagged]
            goes_on = [not b.startswith("B-") and _kind(a) == _kind(b) for a, b in itertools.pairwise(tags)]
            groups = _runs([False, *goes_on][: len(tags)])
            entities = [_entity(model.vocabulary, tokens, [tagged[n] for n in group]) for group in groups]
        results.append([e for e in entities if e.get("entity", e.get("entity_group")) not in ignore_labels])
    return results


def _tokens(vocabulary: Vocabulary, text: str) -> list[Token]:
    ids, places_T2 = vocabulary.places(text)
    unknown_T = ids == vocabulary.unk_id
    goes_on_T = ~vocabulary.word_starts[ids] & ~unknown_T & (np.arange(len(ids)) > 0)
    pieces = vocabulary.pieces(ids.tolist())
    rows = zip(ids.tolist(), pieces, places_T2.tolist(), goes_on_T.tolist(), unknown_T.tolist(), strict=True)
    return [Token(i, text[b:e] if unknown else piece, b, e, on) for i, piece, (b, e), on, unknown in rows]


def _runs(goes_on: Sequence[bool]) -> list[list[int]]:
    """Groups the indices of `goes_on` into runs. Index n is in the same run as index n − 1 if goes_on[n] is true.

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


def _entity(vocabulary: Vocabulary, tokens: list[Token], group: list[Tagged]) -> dict[str, Any]:
    """Returns one entity, which joins the neighbouring words or tokens in `group`."""
    members = [tokens[n] for tagged in group for n in tagged.numbers]
    is_joined = isinstance(vocabulary, TokenizerVocabulary)  # if so, unknown words stay as in the text
    return {
        "entity_group": group[0].tag.split("-", 1)[-1],
        "score": float(np.mean([tagged.score for tagged in group])),
        "word": vocabulary.join([t.text for t in members]) if is_joined else vocabulary.show([t.id for t in members]),
        "start": members[0].begin,
        "end": members[-1].end,
    }


# Answers --------------------------------------------------------------------------------------------------------------


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
    """Returns the best answer to each input, {"score", "start", "end", "answer"}.

    The answer is a part of the context, in whole words. "start" and "end" count characters. The model reads a long
    context in several windows, which overlap. The score of an answer is the probability of its start times the
    probability of its end; both are probabilities among the tokens of one window.

    inputs: each is {"question", "context"}.
    top_k: if above 1, returns a list of the `top_k` best answers to each question.
    max_answer_len: the maximum number of tokens in an answer.
    max_seq_len: the maximum number of tokens in a window, with the question and special tokens.
    doc_stride: the number of tokens that neighbouring windows share. The default is the smaller of 128 and half the
        number of context tokens in a window.
    handle_impossible_answer: if true, "" may be an answer. The score of "" is the lowest of its scores in the windows.

    Raises ConfigError if the model has no head `span`, or if windows are too short to share `doc_stride` tokens.
    """
    if "span" not in model.config.heads:
        raise ConfigError(f"question-answering needs a model with the head `span`; its heads: {model.config.heads}")
    length = min(max_seq_len, model.config.max_positions or max_seq_len)
    converter = EncoderOnly(length, heads=model.config.heads, fairseq_marks=model.config.fairseq_marks)
    task = text_task(model.config.architecture, ("question", "context"))

    def overlap(room: int) -> int:
        return min(128, room // 2) if doc_stride is None else doc_stride

    features, windows = converter.windows(inputs, task, model.vocabulary, overlap)

    def work(chosen: list[int]) -> list[np.ndarray]:
        rows, part = power_of_two(len(chosen)), packing.take(features, np.array(chosen))
        batch = packing.fill(part, np.arange(len(chosen)), rows, converter.specs(), converter.prompt_sizes(0))
        return list(np.asarray(model(cut_to_bucket(batch, model.config.architecture))["span"], np.float64))

    answers: list[list[dict]] = [[] for _ in inputs]
    impossible = np.ones(len(inputs))
    for window, logits_S2 in zip(windows, in_batches(work, [w.end - w.begin for w in windows]), strict=True):
        count = window.end - window.begin
        columns = np.r_[0, window.first : window.first + count]  # [CLS], and the context
        start_T, end_T = softmax(logits_S2[columns].T)
        impossible[window.example] = min(impossible[window.example], start_T[0] * end_T[0])
        score_TT = np.tril(np.triu(np.outer(start_T[1:], end_T[1:])), max_answer_len - 1)
        context = inputs[window.example]["context"]
        for flat in np.argsort(-score_TT, axis=None, kind="stable")[:top_k]:
            first, last = divmod(int(flat), count)
            if score_TT[first, last] > 0:
                start, end = int(window.places[window.begin + first, 0]), int(window.places[window.begin + last, 1])
                answer = {"score": float(score_TT[first, last]), "start": start, "end": end}
                answers[window.example].append(answer | {"answer": context[start:end]})
    if handle_impossible_answer:
        for of_example, score in zip(answers, impossible, strict=True):
            of_example.append({"score": float(score), "start": 0, "end": 0, "answer": ""})
    best = [sorted(of_example, key=lambda answer: -answer["score"])[:top_k] for of_example in answers]
    return [of_example[0] if len(of_example) == 1 else of_example for of_example in best]


def questions_with_contexts(question: Any, context: Any) -> dict[str, str] | list[dict[str, str]]:
    """Returns the inputs of question_answering: a dict for one question with one context, otherwise a list of dicts.

    A single question is paired with every context; a single context is paired with every question.

    Raises ConfigError if question or context is missing, or if both are lists and the lists have different lengths.
    """
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if not question or not context:
        raise ConfigError(
            'question-answering takes {"question": …, "context": …}, a list of these, or both as keywords'
        )
    questions, contexts = ([given] if isinstance(given, str) else list(given) for given in (question, context))
    count = max(len(questions), len(contexts))
    questions, contexts = (texts * count if len(texts) == 1 else texts for texts in (questions, contexts))
    if len(questions) != len(contexts):
        raise ConfigError(
            f"{len(questions)} questions and {len(contexts)} contexts: pass equally many, or one of either"
        )
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
