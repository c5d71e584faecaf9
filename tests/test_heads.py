"""Heads that read an answer from an encoder: word tags, a span of a text, one of several choices, several labels."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import FAMILIES, random_params

import t5x_lite
from t5x_lite import config, experiment, inspect, train
from t5x_lite.data import packing, preprocess, registry
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.reader import Reader
from t5x_lite.data.registry import Mixture, Task, label_names
from t5x_lite.data.sources import Function
from t5x_lite.data.targets import Choices, Span, Tags
from t5x_lite.data.vocabularies import ByteVocabulary, TokenizerVocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import read_heads
from t5x_lite.evaluation.during_training import EvaluationDuringTraining
from t5x_lite.hub import interchange
from t5x_lite.models import build
from t5x_lite.tasks.metrics import accuracy, label_f1
from t5x_lite.tasks.question_answering import spaced
from t5x_lite.tasks.span_metrics import span_f1, spans_as_text, spans_of_text
from t5x_lite.tasks.text_metrics import squad
from t5x_lite.training import losses

SHARED = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY = ByteVocabulary()
CONTEXT = "the cat sat on a mat, and the dog did not."
HEADS = ("token_classification", "span", "multiple_choice")


def tagged(split):
    return [
        {"tokens": ["Ada", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"]},
        {"tokens": ["in", "New", "York", "!"], "tags": ["O", "B-LOC", "I-LOC", "O"]},
    ] * 4


def asked(split):
    return [
        {"question": f"{name} what?", "context": CONTEXT, "answer_span": (begin, begin + len(name)), "answers": [name]}
        for name in ("mat", "dog", "a mat", "the cat", ".")
        for begin in [CONTEXT.index(name)]
    ]


def chosen(split):
    return [{"premise": "who", "one": a, "two": "you", "targets": b} for a, b in (("I", "two"), ("we", "one"))] * 3


def named(split):
    return [{"inputs": "a cat", "targets": "cat"}, {"inputs": "a cat, a dog", "targets": "dog, cat"},
        {"inputs": "none", "targets": ""}] * 4  # fmt: skip


def as_text(example):
    text = spans_as_text(example["tokens"], example["tags"])
    return {**example, "inputs": " ".join(example["tokens"]), "targets": text}


def question_as_text(example):
    return {**example, "inputs": f"{example['question']} {example['context']}", "targets": example["answers"][0]}


def choice_as_text(example):
    return {**example, "inputs": f"{example['premise']} one: {example['one']} two: {example['two']}"}


TAGS = Task(
    "tiny_tags", Function(tagged), (as_text,), target=Tags(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    metrics=(span_f1,), postprocess=spans_of_text,
)  # fmt: skip
SPANS = Task(
    "tiny_spans", Function(asked), (question_as_text,), segments=("question", "context"), target=Span(always=False),
    metrics=(squad,), reference=lambda example: example["answers"],
)  # fmt: skip
CHOICES = Task(
    "tiny_choices", Function(chosen), (choice_as_text,), segments=("premise",),
    target=Choices(labels=("one", "two"), fields=("one", "two")), metrics=(accuracy,),
)  # fmt: skip
LABELS = Task(
    "tiny_labels", Function(named), labels=("cat", "dog", "emu", "fox", "gnu"), multi_label=True,
    metrics=(label_f1, accuracy), postprocess=label_names, baseline="majority",
)  # fmt: skip


def converter(**options):
    options = {"length": 40, "heads": HEADS, "window_stride": 9, "choices": 2, "num_classes": 5} | options
    return EncoderOnly(**options)


def examples_of(task):
    return [preprocess.apply(task.preprocessors, e, lambda: None) for e in task.source.split("train")]


def test_packed_equals_unpacked():
    """The sums of losses and of correct answers are equal, for four tasks in the same rows."""
    heads = (*HEADS, "multi_label")
    parts = [
        converter(heads=heads).supervised(examples_of(t), t, VOCABULARY)[0] for t in (TAGS, SPANS, CHOICES, LABELS)
    ]
    examples = packing.concatenate(parts)
    model = dataclasses.replace(FAMILIES["bert"], vocab_size=260, max_positions=64, heads=heads, num_classes=5)
    params, module = random_params(model), build(model)
    run = jax.jit(lambda batch: losses.loss_sums(module.apply({"params": params}, batch), batch, z_loss=0.01))
    found = []
    for pack in (True, False):
        packed = converter(heads=heads, length=80 if pack else 40)
        specs, sizes = packed.specs(), packed.sizes(pack)
        row_of = np.arange(packing.count(examples))
        if pack:
            row_of = packing.assign(packing.lengths_of(examples, specs, "".join(sizes)), np.array(list(sizes.values())))
            assert row_of.max() + 1 < 0.7 * len(row_of)
        found.append(jax.device_get(run(packing.fill(examples, row_of, int(row_of.max()) + 1, specs, sizes))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)
    windows = packing.count(parts[1])
    assert {head: sums.weight for head, sums in found[0].items()} == dict(zip(heads, (28, windows, 6, 12), strict=True))


@pytest.mark.parametrize("task", [TAGS, SPANS, CHOICES, LABELS], ids=lambda task: task.name)
def test_no_examples_are_no_rows(task):
    """A preprocessor may drop all examples of a window."""
    encoder = converter(heads=(*HEADS, "multi_label"))
    nothing, truncated = encoder.supervised([], task, VOCABULARY)
    some, _ = encoder.supervised(examples_of(task), task, VOCABULARY)
    assert packing.count(nothing) == len(truncated) == 0
    both = packing.concatenate([nothing, some])
    assert both.keys() == some.keys() and packing.count(both) == packing.count(some)


@pytest.mark.parametrize("marks", [False, True])
def test_windows_cover_the_context_and_mark_every_answer(marks):
    encoder = converter(length=30, fairseq_marks=marks)
    questions = examples_of(SPANS)
    features, windows = encoder.windows(questions, SPANS, VOCABULARY)
    labelled, truncated = encoder.supervised(questions, SPANS, VOCABULARY)
    assert len(truncated) == len(windows) == packing.count(labelled) and not truncated.any()
    for number, question in enumerate(questions):
        mine = [(i, w) for i, w in enumerate(windows) if w.example == number]
        covered = [t for _, w in mine for t in range(w.begin, w.end)]
        assert set(covered) == set(range(len(CONTEXT))) and mine[0][1].begin == 0
        assert all(b.begin - a.begin == 9 for (_, a), (_, b) in itertools.pairwise(mine))
        marked = 0
        for i, window in mine:
            row = packing.example(labelled, i)
            np.testing.assert_array_equal(row["encoder_input_tokens"], features["encoder_input_tokens"][i])
            start, end = int(row["span_starts"][0]), int(row["span_ends"][0])
            if start:
                text = VOCABULARY.decode(row["encoder_input_tokens"][start : end + 1])
                assert text.strip() == question["answers"][0]
                marked += 1
            logits_S2 = np.zeros((30, 2))
            logits_S2[[start, end], [0, 1]] = 5  # a perfect model's logits return the answer
            score, first, last = read_heads.span(logits_S2, window, max_tokens=10)
            found = CONTEXT[window.places[first, 0] : window.places[last, 1]]
            assert (score, found) == (10, question["answers"][0]) if start else score == 0
        assert marked >= 1
    first, _ = encoder.prompts(questions, SPANS, VOCABULARY, 0)
    assert packing.count(first) == len(questions)


def test_tags_that_are_wrong_are_named():
    with pytest.raises(DataError, match="2 tags for 3 words, in 'Ada met Bob'"):
        converter().supervised([{"tokens": ["Ada", "met", "Bob"], "tags": ["O", "O"]}], TAGS, VOCABULARY)
    with pytest.raises(DataError, match="tag 'B-ORG' is not one of O, B-PER"):
        converter().supervised([{"tokens": ["Ada"], "tags": ["B-ORG"]}], TAGS, VOCABULARY)
    with pytest.raises(ConfigError, match="needs the head 'span'; the encoder has mlm"):
        converter(heads=("mlm",)).supervised(examples_of(SPANS), SPANS, VOCABULARY)


def test_labels_that_are_wrong_are_named():
    wrong = dataclasses.replace(LABELS, source=Function(lambda split: [{"inputs": "a", "targets": "cat, ox"}]))
    with pytest.raises(DataError, match="label 'ox' is not one of cat, dog, emu, fox, gnu"):
        Reader(wrong, "train").read(0, lambda: None)
    with pytest.raises(ConfigError, match="Classes needs labels"):
        Task("none", LABELS.source, multi_label=True)
    for labels in (("a", "b, c"), ("a", " ")):
        with pytest.raises(ConfigError, match="a label may not be empty or contain a comma"):
            dataclasses.replace(LABELS, labels=labels, multi_label=True)


def two_steps(mixture, workdir):
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.vocabulary = "bert_tiny", mixture, "bytes"
    cfg.model.update({"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "num_encoder_layers": 1})
    cfg.data.length, cfg.data.window_stride, cfg.data.batch_rows, cfg.eval.batch_rows = 40, 9, 8, 8
    cfg.train.total_steps, cfg.eval.untrained = 2, False
    assert train.run(experiment.resolve(cfg), workdir, EvaluationDuringTraining) == 0
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains one encoder with all three heads for two steps."""
    for task in (TAGS, SPANS, CHOICES):
        registry.add(task)
    registry.add(Mixture("tiny_heads", {task.name: 1.0 for task in (TAGS, SPANS, CHOICES)}))
    return two_steps("tiny_heads", tmp_path_factory.mktemp("heads"))


def test_several_labels_from_the_data_to_hugging_face_and_back(tmp_path):
    registry.add(LABELS)
    workdir = two_steps("tiny_labels", tmp_path / "run")
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = {k: v for line in rows for k, v in json.loads(line).items()}
    assert abs(metrics["train/loss"] - np.log(2)) < 0.2 and metrics["eval/tiny_labels/invalid"] == 0
    assert metrics["baseline/tiny_labels/accuracy"] == pytest.approx(100 / 3)
    model = t5x_lite.load(workdir)
    texts = ["a cat", "a cat, a dog"]
    found = model.classify(texts)
    lines = (workdir / "predictions" / "step_2" / "tiny_labels.jsonl").read_text().splitlines()[:2]
    for line, alone in zip(map(json.loads, lines), found, strict=True):
        assert line["prediction"] == ", ".join(name for name, p in alone.items() if p > 0.5)
        sure = [max(p, 1 - p) for p in alone.values()]
        assert line["score"] == pytest.approx(np.log(sure).sum(), abs=1e-4)
    shown = inspect.describe(experiment.resolve(config.from_json(workdir / "config.json")), 8, "train")
    assert {e["class targets"] for row in shown["rows"] for e in row} == {"cat", "cat, dog", ""}
    assert shown["tasks"][0]["labels"] == {"cat": 8, "dog": 4, "emu": 0, "fox": 0, "gnu": 0}
    interchange.export_model(model, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["problem_type"] == "multi_label_classification"
    assert said["architectures"] == ["BertForSequenceClassification"]
    classify = t5x_lite.pipeline("text-classification", model=tmp_path / "out", top_k=None)
    for scores, alone in zip(classify(texts), found, strict=True):
        assert {s["label"]: s["score"] for s in scores} == pytest.approx(alone, abs=1e-6)


def test_one_definition_trains_and_is_judged_as_its_texts_are(run):
    metrics = {k: v for line in (run / "metrics.jsonl").read_text().splitlines() for k, v in json.loads(line).items()}
    assert metrics["train/loss"] > 0 and {f"train/loss/{head}" for head in HEADS} <= set(metrics)
    assert {"eval/tiny_tags/span_f1", "eval/tiny_spans/f1", "eval/tiny_choices/accuracy"} <= set(metrics)

    def rows(task):
        lines = (run / "predictions" / "step_2" / f"{task.name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    assert all(spans_of_text(row["prediction"]) is not None for row in rows(TAGS)) and len(rows(TAGS)) == 8
    assert [row["target"] for row in rows(SPANS)] == [row["answers"][0] for row in asked("")]
    assert all(row["prediction"] in CONTEXT for row in rows(SPANS))
    cfg = config.from_json(run / "config.json")
    shown = [e for row in inspect.describe(experiment.resolve(cfg), 8, "train")["rows"] for e in row]
    assert {e["task"] for e in shown} == {"tiny_tags", "tiny_spans", "tiny_choices"}
    told = {task.name: {e.get(key) for e in shown if e["task"] == task.name}
        for task, key in ((TAGS, "tags"), (SPANS, "answer"), (CHOICES, "choice"))}  # fmt: skip
    assert told["tiny_tags"] <= {"B-PER O B-PER", "O B-LOC I-LOC O"} and told["tiny_choices"] == {"right", "wrong"}
    assert {answer.strip() for answer in told["tiny_spans"]} <= {"mat", "dog", "a mat", "the cat", ".", "[CLS]"}
    assert {row["prediction"] for row in rows(CHOICES)} <= {"one", "two"}


@pytest.mark.skipif(not SHARED.exists(), reason="the real data is not on this machine")
def test_real_answers_are_words_of_their_contexts():
    """SQuAD's answers, tokenised by BERT's vocabulary, are marked in a window and read back letter by letter."""
    rows = json.loads((SHARED / "hf_fixtures" / "SQUAD" / "sample.json").read_text(encoding="utf-8"))["data"]
    task = registry.REGISTRY["squad"]
    assert isinstance(task, Task)
    examples = [task.preprocessors[0](row) for row in rows if row["answers"]["text"]]
    vocabulary = TokenizerVocabulary(str(SHARED / "vocab" / "bert-base-uncased" / "vocab.txt"))
    encoder = converter(length=128, heads=("span",), window_stride=32)
    features, windows = encoder.windows(examples, task, vocabulary)
    labelled, _ = encoder.supervised(examples, task, vocabulary)
    starts, ends = labelled["span_starts"].values, labelled["span_ends"].values
    read = {}
    for window, start, end in zip(windows, starts.tolist(), ends.tolist(), strict=True):
        if start:
            begin, last = (window.places[window.begin + t - window.first, k] for k, t in enumerate((start, end)))
            read[window.example] = examples[window.example]["context"][begin:last]
    for number, example in enumerate(examples):
        assert spaced(read[number]) == example["targets"]
    assert features["encoder_input_tokens"].lengths.max() <= 128
