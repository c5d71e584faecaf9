"""Scores equal the reference libraries' on random and edge inputs; checks confidence intervals and calibration too."""

import collections
import random

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from scipy import stats
from sklearn import metrics as sklearn_metrics

from t5x_lite.errors import DataError
from t5x_lite.reports import confidence
from t5x_lite.tasks import metrics, span_metrics, text_metrics

WORDS = st.lists(st.sampled_from(["a", "the", "cat", "sat", "on", "mat", ".", "dog", "über", "1,000"]), max_size=9).map(
    " ".join
)
TEXTS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30))
def test_classes_as_scikit_learn_scores_them(pairs):
    targets, predictions = zip(*pairs, strict=True)
    assert metrics.accuracy(targets, predictions)["accuracy"] == pytest.approx(
        100 * sklearn_metrics.accuracy_score(targets, predictions)
    )
    assert metrics.f1()(targets, predictions)["f1"] == pytest.approx(
        100 * sklearn_metrics.f1_score(targets, predictions, zero_division=0)
    )
    assert metrics.matthews(targets, predictions)["matthews"] == pytest.approx(
        100 * sklearn_metrics.matthews_corrcoef(targets, predictions)
    )


@given(st.lists(st.tuples(st.floats(0, 5, width=16), st.floats(0, 5, width=16)), min_size=3, max_size=30))
def test_numbers_as_scipy_scores_them(pairs):
    targets, predictions = map(np.array, zip(*pairs, strict=True))
    if np.ptp(targets) < 1e-3 or np.ptp(predictions) < 1e-3:
        return
    pearson, spearman = stats.pearsonr(targets, predictions)[0], stats.spearmanr(targets, predictions)[0]
    assert metrics.pearson(targets, predictions)["pearson"] == pytest.approx(100 * pearson)
    assert metrics.spearman(targets, predictions)["spearman"] == pytest.approx(100 * spearman)


@given(TEXTS)
def test_rouge_is_the_mean_of_the_reference_s_scores(pairs):
    targets, predictions = zip(*pairs, strict=True)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"])
    scores = [scorer.score(t.replace(" . ", " .\n"), p.replace(" . ", " .\n")) for t, p in pairs]
    for name, value in text_metrics.rouge(targets, predictions).items():
        assert value == pytest.approx(100 * np.mean([score[name].fmeasure for score in scores]))


@pytest.mark.parametrize(
    ("target", "predicted", "expected"),
    [
        # Lin 2004, §3.1: only ROUGE-L sees which of the two keeps the word order.
        ("police killed the gunman", "police kill the gunman", {"rouge2": 100 / 3, "rougeLsum": 75}),
        ("police killed the gunman", "the gunman kill police", {"rouge2": 100 / 3, "rougeLsum": 50}),
        # §3.2: the union of the matches with both sentences is 4 of the target's 5 words.
        ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8 . w1 w3 w8 w9 w5", {"rougeLsum": 100 * 2 * (4 / 5) * (4 / 10) / (12 / 10)}),
    ],
)
def test_rouge_gives_the_values_of_its_paper(target, predicted, expected):
    found = text_metrics.rouge([target], [predicted])
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@given(TEXTS)
def test_bleu_and_chrf_as_sacrebleu_scores_them(pairs):
    targets, predictions = map(list, zip(*pairs, strict=True))
    t5 = sacrebleu.corpus_bleu(
        predictions, [targets], smooth_method="exp", smooth_value=0.0, force=False, lowercase=False, tokenize="intl",
        use_effective_order=False,
    )  # fmt: skip
    assert text_metrics.bleu(targets, predictions)["bleu"] == pytest.approx(t5.score)
    chrf = sacrebleu.corpus_chrf(predictions, [targets])
    assert text_metrics.chrf(targets, predictions)["chrf"] == pytest.approx(chrf.score)


def test_signatures_are_the_published_ones():
    texts = ["The cat sat."], ["A cat sat."]
    version = sacrebleu.__version__
    assert text_metrics.bleu.signature(*texts) == f"nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:{version}"
    wmt = text_metrics.Bleu(tokenize="13a").signature(*texts)
    assert wmt == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert text_metrics.chrf.signature(*texts) == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"


@pytest.mark.parametrize(
    ("answers", "predicted", "exact", "f1"),
    [
        (["Denver Broncos", "Broncos"], "the broncos!", 100, 100),
        (["golden anniversary"], "gold anniversary", 0, 50),
        ([""], "", 100, 100),  # unanswerable, and the prediction agrees
        ([], "", 100, 100),
        ([""], "something", 0, 0),
        (["the"], "a", 100, 100),  # only articles
        (["yes"], None, 0, 0),
    ],
)
def test_squad(answers, predicted, exact, f1):
    assert text_metrics.squad([answers], [predicted]) == {"exact_match": exact, "f1": pytest.approx(f1)}


TAGS = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), max_size=8)


@given(st.lists(TAGS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_span_f1_counts_each_span_once(sentences, rng):
    targets = [span_metrics.spans(tags) for tags in sentences]
    assert span_metrics.span_f1(targets, targets)["span_f1"] == 100
    wrong = [[span for span in spans if rng.random() < 0.5] + [("ORG", 90, 91)] for spans in targets]
    out = span_metrics.span_f1(targets, wrong)
    hits = sum(len(spans) - 1 for spans in wrong)
    said, wanted = sum(map(len, wrong)), sum(map(len, targets))
    assert out["span_f1"] == pytest.approx(100 * 2 * hits / (said + wanted))
    # A tag starts, continues or belongs to no span: all tokens that are not O are in exactly one.
    for tags, spans in zip(sentences, targets, strict=True):
        inside = collections.Counter(i for _, begin, end in spans for i in range(begin, end))
        assert inside == collections.Counter(i for i, tag in enumerate(tags) if tag != "O")


def test_spans_survive_being_written_down():
    tokens, tags = ["Ada", "Lovelace", "met", "Babbage"], ["B-person", "I-person", "O", "B-person"]
    text = span_metrics.spans_as_text(tokens, tags)
    assert span_metrics.spans_of_text(text) == [("person", "Ada Lovelace"), ("person", "Babbage")]
    assert span_metrics.spans_of_text(span_metrics.spans_as_text(["no"], ["O"])) == []
    tags = ["B-group", "I-group", "I-group", "B-person", "O", "B-creative-work"]
    said = span_metrics.spans_as_text(["M&amp;amp;M", "&", "amp ; Co", "a:b", "x", "y"], tags)
    assert span_metrics.spans_of_text(said) == [
        ("group", "M&amp;amp;M & amp ; Co"), ("person", "a:b"), ("creative-work", "y")
    ]  # fmt: skip
    assert span_metrics.spans_of_text("nonsense") is None
    assert span_metrics.span_f1([[("person", "Ada")]], [None])["span_f1"] == 0


def test_groups_are_right_as_a_whole():
    targets = [("q1", "True"), ("q1", "False"), ("q2", "True")]
    assert metrics.grouped(targets, ["True", "True", "True"]) == {"exact_match": 50.0}
    assert metrics.of_groups(metrics.f1("True", "False"))(targets, ["True", "True", "True"])["f1"] == pytest.approx(80)


def test_intervals_hold_the_score_and_narrow_with_more_examples():
    rng = random.Random(0)
    targets = [rng.choice("ab") for _ in range(2000)]
    predictions = [t if rng.random() < 0.8 else "x" for t in targets]
    widths = []
    for count in (100, 2000):
        found = confidence.bootstrap(metrics.accuracy, targets[:count], predictions[:count])
        score = metrics.accuracy(targets[:count], predictions[:count])["accuracy"]
        low, high = found["accuracy"]
        assert low <= score <= high
        # The binomial's interval: 1.96 standard deviations on either side.
        assert (high - low) / 2 == pytest.approx(196 * np.sqrt(score / 100 * (1 - score / 100) / count), rel=0.25)
        widths.append(high - low)
        assert found == confidence.bootstrap(metrics.accuracy, targets[:count], predictions[:count])
    assert widths[1] < widths[0] / 3


def test_calibration():
    rng = np.random.default_rng(0)
    sure = rng.uniform(size=50_000)
    right = rng.uniform(size=50_000) < sure
    assert confidence.expected_calibration_error(sure, right) < 1.5  # percent; only noise
    assert confidence.expected_calibration_error(sure, right & (sure < 0)) == pytest.approx(50, abs=0.5)
    assert sum(row["examples"] for row in confidence.calibration([0.0, 1.0, 0.5], [False, True, True])) == 3
    with pytest.raises(DataError, match="one probability"):
        confidence.expected_calibration_error([1.2], [True])
