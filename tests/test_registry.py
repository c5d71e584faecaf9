"""The table of tasks and mixtures: errors for wrong names, cycles or rates, and results for right ones."""

import dataclasses
import functools
import linecache
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.data import pipeline, preprocess, registry
from t5x_lite.data.convert import TextToText
from t5x_lite.data.registry import Mixture, Task, proportional
from t5x_lite.data.sources import Function
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import CheckpointError, ConfigError

SIZES = {"cola": 10, "sst2": 1000, "mnli": 100_000}
RATES = st.floats(1e-3, 1e3)


@pytest.fixture(autouse=True, scope="module")
def own_table():
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(registry, "REGISTRY", {})
    for name, size in SIZES.items():
        registry.add(Task(name, Function(lambda split, size=size: [{"inputs": "", "targets": ""}] * size)))
    yield
    monkeypatch.undo()


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match=r"unknown task or mixture 'colaa'; did you mean 'cola'"):
        registry.rates("colaa")
    registry.add(Mixture("both", {"cola": 1, "sst": 1}))
    with pytest.raises(ConfigError, match="'sst'; did you mean 'sst2'"):
        registry.rates("both")


TRAVERSALS = [
    step + name + end
    for step in ("../", "..\\", "/", "~/", "a/../../", "%2e%2e/", "\u2025/", "\uff0e\uff0e\uff0f", "C:\\", "a\0/")
    for name in ("passwd", "..", "x.jsonl")
    for end in ("", "/")
]


@pytest.mark.parametrize("name", ["", ".", "..", "...", "~", "a b", "a\n", "a\0", "ä", "x" * 129, *TRAVERSALS])
def test_a_name_that_is_a_path_is_no_task_s(name):
    """Shards and predictions files are named after tasks."""
    with pytest.raises(ConfigError, match="its files are named after it"):
        Task(name, Function(lambda split: []))


def test_a_mixture_that_contains_itself_shows_the_circle():
    registry.add(Mixture("a", {"b": 1, "cola": 1}))
    registry.add(Mixture("b", {"a": 1}))
    with pytest.raises(ConfigError, match="a → b → a"):
        registry.rates("a")


@pytest.mark.parametrize("rate", [False, -1, float("nan"), float("inf"), "2", None, True, lambda size: 0.0])
def test_a_rate_that_is_no_positive_number_is_named(rate):
    registry.add(Mixture("mixed", {"cola": 1, "sst2": rate}))
    with pytest.raises(ConfigError, match=r"'mixed': the rate of 'sst2' is .*positive"):
        registry.rates("mixed")


def test_what_has_the_rate_0_is_only_evaluated():
    registry.add(Mixture("inner", {"cola": 1, "mnli": 0}))
    registry.add(Mixture("outer", {"inner": proportional(), "sst2": 10.0, "mnli": 0.0}))
    assert registry.rates("outer") == pytest.approx({"cola": 0.5, "sst2": 0.5})
    assert [task.name for task in registry.tasks("outer")] == ["cola", "sst2"]
    assert [task.name for task in registry.evaluated("outer")] == ["cola", "mnli", "sst2"]


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


@pytest.mark.parametrize("wrong", [{"cap": 0}, {"scale": -1}, {"temperature": 0}, {"temperature": float("nan")}])
def test_a_proportion_that_is_none(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.*positive"):
        proportional(**wrong)


def rates(**of) -> dict[str, float]:
    registry.add(Mixture("drawn", of))
    return registry.rates("drawn")


@given(st.dictionaries(st.sampled_from(list(SIZES)), RATES, min_size=1), RATES)
def test_rates_are_shares_whatever_their_unit_and_order(of, factor):
    shares = rates(**of)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == pytest.approx({name: rate / sum(of.values()) for name, rate in of.items()})
    assert shares == pytest.approx(rates(**{name: rate * factor for name, rate in reversed(of.items())}))


@given(RATES, RATES, RATES, RATES)
def test_a_nested_mixture_takes_its_own_rate_and_divides_it_as_it_would_alone(a, b, inner, outer):
    registry.add(Mixture("within", {"cola": a, "sst2": b}))
    shares = rates(within=inner, mnli=outer)
    assert shares["cola"] + shares["sst2"] == pytest.approx(inner / (inner + outer))
    assert shares["cola"] / shares["sst2"] == pytest.approx(a / b)


@given(st.floats(1, 1e6), st.floats(1e-3, 1e3), st.floats(1, 100))
def test_cap_and_temperature_bring_the_rates_of_sizes_together_and_keep_their_order(cap, scale, temperature):
    def shares(**how):
        return rates(**dict.fromkeys(SIZES, proportional(**how)))

    plain, capped, warm = shares(), shares(cap=cap, scale=scale), shares(cap=cap, scale=scale, temperature=temperature)
    assert plain == pytest.approx({name: size / sum(SIZES.values()) for name, size in SIZES.items()})
    if cap >= max(SIZES.values()) * scale:
        assert capped == pytest.approx(plain)
    for milder, stronger in ((plain, capped), (capped, warm)):
        assert stronger["cola"] <= stronger["sst2"] * (1 + 1e-9) <= stronger["mnli"] * (1 + 2e-9)
        assert stronger["mnli"] / stronger["cola"] <= milder["mnli"] / milder["cola"] * (1 + 1e-9)
    # Clipped first: two sizes above the cap have equal rates at every temperature.
    clipped = shares(cap=1, temperature=temperature)
    assert clipped["cola"] == clipped["mnli"]
    assert warm["mnli"] / warm["cola"] == pytest.approx((capped["mnli"] / capped["cola"]) ** (1 / temperature))


def test_a_nested_mixture_has_the_size_of_its_tasks():
    registry.add(Mixture("within", {"cola": 5, "sst2": 1}))
    assert rates(within=proportional(), mnli=lambda size: math.sqrt(size)) == pytest.approx(
        {"cola": 1010 * 5 / 6 / (1010 + 100_000**0.5), "sst2": 1010 / 6 / (1010 + 100_000**0.5)}
        | {"mnli": 100_000**0.5 / (1010 + 100_000**0.5)}
    )


# -------------------------------------------------------------------------------------------------- identity


def shout(example, mark="!"):
    return {**example, "inputs": example["inputs"] + mark}


def reread(tmp_path, text: str):
    """Returns the function `f` of a file with that text."""
    path = tmp_path / "functions.py"
    path.write_text(text)
    scope: dict = {}
    linecache.checkcache(str(path))
    exec(compile(text, path, "exec"), scope)
    return scope["f"]


def test_a_preprocessor_is_known_by_name_arguments_and_code(tmp_path):
    one = preprocess.identity
    assert one(preprocess.template(a="{b}")) == one(preprocess.template(a="{b}")) != one(preprocess.template(a="{c}"))
    three = preprocess.keep(lambda e: e["a"] > 3)
    four = preprocess.keep(lambda e: e["a"] > 4)
    assert one(three) != one(four)
    assert one(functools.partial(shout, mark="?")) != one(functools.partial(shout, mark="!"))
    assert "mark='!'" in one(shout)
    assert " at 0x" not in one(preprocess.keep(dataclasses.make_dataclass("Sharp", [])))
    first = one(reread(tmp_path, "def f(e):\n    return {**e, 'a': 1}\n"))
    assert one(reread(tmp_path, "def f(e):  # why\n\n    return {**e, 'a': 1}\n")) == first
    assert one(reread(tmp_path, "def f(e):\n    return {**e, 'a': 2}\n")) != first


def test_a_function_that_holds_itself_is_no_endless_story():
    def again(example):
        return again(example)

    assert preprocess.identity(again)


def test_a_task_is_another_when_its_examples_are():
    def task(examples, *preprocessors):
        return registry.identity(Task("t", Function(lambda split: examples), preprocessors))

    rows = [{"inputs": str(i), "targets": "a"} for i in range(1000)]
    assert task(rows) == task(list(rows)) != task(rows[:-1])
    assert task(rows) != task([*rows[:-1], {"inputs": "999", "targets": "b"}])
    assert task(rows) != task(rows, shout)
    assert task([])["examples"] == 0


def test_a_source_that_knows_its_own_fingerprint_is_asked_for_it():
    class Known(Function):
        def fingerprint(self, split):
            return f"mine-{split}"

    assert registry.identity(Task("t", Known(lambda split: [{}])), "test")["source"] == "mine-test"


def test_changed_examples_or_preprocessors_of_a_run_are_refused_by_name():
    def state_of(*preprocessors, rows=50):
        examples = [{"inputs": str(i), "targets": "a"} for i in range(rows)]
        registry.add(Task("t", Function(lambda split: examples), preprocessors))
        return pipeline.train_batches(registry.mixture("t"), TextToText(16, 8), ByteVocabulary(), batch_rows=8, seed=0)

    state = state_of(shout).get_state()
    state_of(shout).set_state(state)
    with pytest.raises(CheckpointError, match=r"tasks\.t\.preprocessors.*shout"):
        state_of().set_state(state)
    with pytest.raises(CheckpointError, match=r"tasks\.t\.examples 50 → 51.*tasks\.t\.source"):
        state_of(shout, rows=51).set_state(state)


OWN_COLA = """
from t5x_lite import config
from t5x_lite.data.registry import Task, add
from t5x_lite.data.sources import Function
add(Task("glue_cola", Function(lambda split: []), labels=("bad", "good")))
def get_config():
    return config.base()
"""
LABELS = """
from t5x_lite.tasks import builtin
builtin.register()
print(*(registry.get(name).labels for name in ("glue_cola", "glue_sst2")))
"""


@pytest.mark.parametrize(
    "run_the_file", ["import experiment", "from t5x_lite import config; config.load('experiment.py')"]
)
def test_a_users_task_replaces_the_built_in_one_of_its_name(tmp_path, run_the_file):
    (tmp_path / "experiment.py").write_text(OWN_COLA)
    code = f"from t5x_lite.data import registry\n{run_the_file}\n{LABELS}"
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "('bad', 'good') ('negative', 'positive')", done.stdout + done.stderr
