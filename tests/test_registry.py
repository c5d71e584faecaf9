"""The table of tasks and mixtures: what a wrong name, circle or rate is answered with, and what right ones give."""

import pytest

from t5x_lite.data import registry
from t5x_lite.data.registry import Mixture, Task, proportional
from t5x_lite.data.sources import Function
from t5x_lite.errors import ConfigError


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", {})
    for name, size in (("cola", 10), ("sst2", 1000), ("mnli", 100_000)):
        registry.add(Task(name, Function(lambda split, size=size: [{"inputs": "", "targets": ""}] * size)))


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match=r"unknown task or mixture 'colaa'; did you mean 'cola'"):
        registry.rates("colaa")
    registry.add(Mixture("both", {"cola": 1, "sst": 1}))
    with pytest.raises(ConfigError, match="'sst'; did you mean 'sst2'"):
        registry.rates("both")


def test_a_mixture_that_contains_itself_shows_the_circle():
    registry.add(Mixture("a", {"b": 1, "cola": 1}))
    registry.add(Mixture("b", {"a": 1}))
    with pytest.raises(ConfigError, match="a → b → a"):
        registry.rates("a")


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "2", lambda size: 0.0])
def test_a_rate_that_is_no_positive_number_is_named(rate):
    registry.add(Mixture("mixed", {"cola": 1, "sst2": rate}))
    with pytest.raises(ConfigError, match=r"'mixed': the rate of 'sst2' is .*positive"):
        registry.rates("mixed")


def test_an_empty_mixture():
    registry.add(Mixture("nothing", {}))
    with pytest.raises(ConfigError, match="has no tasks"):
        registry.rates("nothing")


def test_proportional_clips_before_the_temperature():
    assert proportional(cap=100, temperature=2)(10_000) == 10
    assert proportional(scale=2)(50) == 100
    registry.add(Mixture("glue", {name: proportional(cap=1000) for name in ("cola", "sst2", "mnli")}))
    assert registry.rates("glue") == pytest.approx({"cola": 10 / 2010, "sst2": 1000 / 2010, "mnli": 1000 / 2010})
    registry.add(Mixture("warm", {name: proportional(cap=1000, temperature=3) for name in ("cola", "sst2")}))
    ratio = registry.rates("warm")["sst2"] / registry.rates("warm")["cola"]
    assert ratio == pytest.approx(100 ** (1 / 3))


def test_nested_mixtures_multiply_and_a_task_met_twice_adds_up():
    registry.add(Mixture("inner", {"cola": 1, "sst2": 3}))
    registry.add(Mixture("outer", {"inner": 2, "cola": 1, "mnli": 1}))
    assert registry.rates("outer") == pytest.approx({"cola": 0.375, "sst2": 0.375, "mnli": 0.25})
    assert [task.name for task in registry.tasks("outer")] == ["cola", "sst2", "mnli"]
