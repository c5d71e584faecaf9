"""A checkpoint's classes meet the run's by their names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import initial_params
from t5x_lite.checkpoints.loading import LoadReport
from t5x_lite.errors import CheckpointError
from t5x_lite.models import paths, presets

OURS = ("entailment", "neutral", "contradiction")


def params(value: float) -> dict:
    head = {"kernel": jnp.arange(12.0).reshape(4, 3) + value, "bias": jnp.arange(3.0) + value}
    return {
        "classification": head,
        "token_classification": dict(head),
        "nsp": dict(head),
        "encoder": {"kernel": head["kernel"]},
    }


@given(st.permutations(OURS), st.booleans())
def test_the_logit_of_every_class_keeps_its_name(theirs, upper):
    loaded, hidden_D = params(1.0), np.array([1.0, -2.0, 0.5, 3.0])
    names = tuple(name.upper() if upper else name for name in theirs)
    aligned, note = initial_params.align(loaded, params(0.0), names, OURS)

    def logits(tree, head, order):
        values = hidden_D @ tree[head]["kernel"] + tree[head]["bias"]
        return {name.lower(): float(value) for name, value in zip(order, values, strict=True)}

    for head in ("classification", "token_classification"):
        assert logits(aligned, head, OURS) == logits(loaded, head, names)
    assert bool(note) == (names != OURS)
    for same in ("nsp", "encoder"):
        jax.tree.map(np.testing.assert_array_equal, aligned[same], loaded[same])


def test_other_names_start_fresh_and_missing_names_go_by_number():
    loaded, fresh = params(1.0), params(0.0)
    aligned, note = initial_params.align(loaded, fresh, ("yes", "no", "maybe"), OURS)
    jax.tree.map(np.testing.assert_array_equal, aligned["classification"], fresh["classification"])
    assert "yes, no, maybe are not the run's entailment" in note and "classification/bias" in note
    aligned, note = initial_params.align(loaded, fresh, ("LABEL_0", "LABEL_1", "LABEL_2"), OURS)
    assert aligned is loaded and "no names for its classes" in note
    aligned, note = initial_params.align(loaded, fresh, (), OURS)  # a run of 0.1
    assert aligned is loaded and "no names for its classes" in note
    assert initial_params.align(loaded, fresh, OURS, OURS) == (loaded, "")
    kept = loaded | {"classification": fresh["classification"], "token_classification": fresh["token_classification"]}
    assert initial_params.align(kept, fresh, ("yes", "no", "maybe"), OURS) == (kept, "")  # nothing was loaded


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (OURS, "loaded"),
        (OURS[::-1], "adapted: classes matched by name"),
        (("yes", "no", "maybe"), "fresh, because the classes differ"),
    ],
)
def test_the_report_of_each_parameter_says_what_became_of_its_classes(tmp_path, monkeypatch, names, expected):
    fresh, loaded = params(0.0), params(1.0)
    report = LoadReport(list(paths.flatten(loaded)), {}, [], [], [])
    monkeypatch.setattr(initial_params.checkpoint, "find", lambda _: tmp_path / "checkpoints" / "1")
    monkeypatch.setattr(initial_params, "load_params", lambda *_: (loaded, report))
    monkeypatch.setattr(initial_params, "classes_of", lambda _: names)
    model = presets.preset("bert_tiny")
    of_each = initial_params.load("", fresh, model, OURS, adapt=False)[2]
    assert of_each["classification/kernel"] == of_each["token_classification/bias"] == expected
    assert of_each["encoder/kernel"] == of_each["nsp/kernel"] == "loaded"
    with pytest.raises(CheckpointError, match=r"does not describe its model.*set init.adapt=False"):
        initial_params.load("", fresh, model, OURS, adapt=True)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"id2label": {"0": "NO", "1": "YES"}}, ("NO", "YES")),
        ({"id2label": {"1": "YES", "2": "NO"}}, ("LABEL_0", "YES")),
        ({}, ()),
        (None, ()),
    ],
)
def test_the_names_of_an_imported_model_are_those_of_its_config(tmp_path, settings, names):
    if settings is not None:
        (tmp_path / "huggingface.json").write_text(json.dumps(settings))
    assert initial_params.classes_of(tmp_path) == names


def test_a_corrupted_file_of_names_is_an_error(tmp_path):
    (tmp_path / "huggingface.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"huggingface.json is corrupted"):
        initial_params.classes_of(tmp_path)
