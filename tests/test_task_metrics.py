"""Checks scores of predictions with worked examples, and that a wrong answer always lowers the score."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.errors import DataError
from t5x_lite.tasks import metrics, text_metrics
from t5x_lite.tasks.span_metrics import spans


def test_accuracy_and_exact_match():
    assert metrics.accuracy([1, 0, 1, 1], [1, 1, -1, None]) == {"accuracy": 25.0}
    assert metrics.exact_match(["a  b", "c", "d"], [" a b", "C", None]) == {"exact_match": pytest.approx(100 / 3)}


def test_a_metric_keeps_its_direction_inside_a_partial_and_in_groups():
    @metrics.lower_is_better
    def errors(targets, predictions, scale=1):
        return {"errors": scale * (100 - metrics.accuracy(targets, predictions)["accuracy"])}

    wrapped = functools.partial(functools.partial(errors), scale=2)
    assert all(map(metrics.is_lower_better, (errors, wrapped, metrics.of_groups(wrapped))))
    plain = (metrics.accuracy, metrics.f1(), metrics.of_groups(metrics.f1()), metrics.of_groups(metrics.accuracy))
    assert not any(map(metrics.is_lower_better, plain))
    marked = metrics.lower_is_better(functools.partial(metrics.accuracy))
    assert metrics.is_lower_better(marked) and not metrics.is_lower_better(metrics.accuracy)


def test_f1_counts_an_invalid_answer_against_its_target():
    # target 1 answered -1: missed; target 0 answered -1: a false alarm. Hits 1, missed 1, false alarms 1.
    assert metrics.f1()([1, 1, 0, 0], [1, -1, -1, 0]) == {"f1": 50.0}
    assert metrics.f1("equivalent", "not_equivalent")(["equivalent"], ["nonsense"]) == {"f1": 0.0}
    with pytest.raises(DataError, match="target 2 is neither 1 nor 0"):
        metrics.f1()([2], [1])


def test_matthews_and_macro_f1():
    assert metrics.matthews([1, 1, 0, 0], [1, 1, 0, 0])["matthews"] == pytest.approx(100)
    assert metrics.matthews([1, 1, 0, 0], [0, 0, 1, 1])["matthews"] == pytest.approx(-100)
    assert metrics.matthews([1, 1, 0, 0], [1, 1, 1, 1])["matthews"] == 0
    assert metrics.macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "x"])["macro_f1"] == pytest.approx(100 * (4 / 3) / 3)
    assert metrics.macro_f1_of("a", "b", "c")(["a", "b"], ["a", "b"])["macro_f1"] == pytest.approx(100 * 2 / 3)


def test_correlations():
    assert metrics.pearson([1, 2, 3], [2, 4, 6])["pearson"] == pytest.approx(100)
    assert metrics.spearman([1, 2, 3], [1, 10, 100])["spearman"] == pytest.approx(100)
    assert metrics.pearson([1, 2, 3], [7, 7, 7]) == {"pearson": 0.0}  # undefined; NaN would break the best step


def test_an_answer_that_is_no_number_is_minus_one():
    targets = [0.0, 1.0, 4.0, 5.0]
    for metric in (metrics.pearson, metrics.spearman):
        expected = metric(targets, [0.0, 1.0, -1.0, 5.0])
        for invalid in (None, float("nan"), float("inf")):
            assert metric(targets, [0.0, 1.0, invalid, 5.0]) == expected


def test_rouge_worked_example():
    """Target "the cat sat", prediction "the cat": 1-grams P 1, R 2/3; 2-grams P 1, R 1/2."""
    out = text_metrics.rouge(["the cat sat"], ["the cat"])
    assert out["rouge1"] == pytest.approx(80.0)
    assert out["rouge2"] == pytest.approx(100 * 2 / 3)
    assert out["rougeLsum"] == pytest.approx(80.0)
    assert text_metrics.rouge(["the cat"], [None])["rouge1"] == 0.0


@pytest.mark.parametrize("text", ["今天天气很好", "Привет, как дела", "पूर्व प्रधानमन्त्री", "καλημέρα 5", "こんにちは"])
def test_rouge_of_a_text_with_itself_is_100_in_any_script(text):
    assert set(text_metrics.rouge([text], [text]).values()) <= {100.0, 0.0}  # 0: no pairs of words in one word
    assert text_metrics.rouge([text], [text])["rouge1"] == 100
    assert text_metrics.rouge([text], ["5 words"])["rouge1"] < 70


@pytest.mark.parametrize("scheme", ["BIO", "BIOES", "BILOU", "IO"])
def test_entities_are_the_same_in_every_scheme(scheme):
    entities, length = [("PER", 0, 3), ("LOC", 4, 5), ("PER", 5, 7)], 8
    tags = ["O"] * length
    for kind, begin, end in entities:
        marks = ["I"] * (end - begin) if scheme == "IO" else ["B", *"I" * (end - begin - 1)]
        if scheme in ("BIOES", "BILOU"):
            marks[-1] = "EL"[scheme == "BILOU"] if end - begin > 1 else "SU"[scheme == "BILOU"]
        tags[begin:end] = [f"{mark}-{kind}" for mark in marks]
    assert spans(tags) == entities


LABELS = st.sampled_from(["a", "b", "c"])
METRICS = (metrics.accuracy, metrics.macro_f1, metrics.matthews, metrics.exact_match)


@given(pairs=st.lists(st.tuples(LABELS, LABELS), min_size=2, max_size=12), seed=st.randoms())
def test_order_does_not_matter_and_perfect_is_best(pairs, seed):
    targets, predictions = zip(*pairs, strict=True)
    shuffled = list(pairs)
    seed.shuffle(shuffled)
    for metric in METRICS:
        ((name, value),) = metric(targets, predictions).items()
        assert metric(*zip(*shuffled, strict=True))[name] == pytest.approx(value)
        perfect = metric(targets, targets)[name]
        assert value <= perfect + 1e-9
        invalid = metric(targets, [None, *targets[1:]])[name]
        assert invalid < perfect or (metric is metrics.matthews and len(set(targets)) == 1)


@pytest.mark.parametrize("metric", [*METRICS, metrics.f1(), metrics.pearson, metrics.spearman, text_metrics.rouge])
def test_a_missing_prediction_is_an_error(metric):
    with pytest.raises(DataError, match="2 targets and 1 predictions"):
        metric(["a", "b"], ["a"])
    with pytest.raises(DataError, match="0 targets"):
        metric([], [])
