"""A checkpoint's classes meet the run's by their names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import initial_params

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
    for theirs in ((), ("a", "b"), OURS):  # unknown; another number of them: their shapes already differ; the same
        assert initial_params.align(loaded, fresh, theirs, OURS) == (loaded, "")
    kept = loaded | {"classification": fresh["classification"], "token_classification": fresh["token_classification"]}
    assert initial_params.align(kept, fresh, ("yes", "no", "maybe"), OURS) == (kept, "")  # nothing was loaded


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("huggingface.json", {"id2label": {"0": "NO", "1": "YES"}}, ("NO", "YES")),
        ("huggingface.json", {"id2label": {"1": "YES"}}, ()),
        ("huggingface.json", [], ()),
        (
            "model/tasks.json",
            {"tasks": [{"target": {"class": "Text"}}, {"target": {"labels": ["a", "b"]}}]},
            ("a", "b"),
        ),
        ("model/tasks.json", {"tasks": [{"target": {"classes": ["O", "B-X"]}}]}, ("O", "B-X")),
        ("other.json", {}, ()),
    ],
)
def test_names_come_from_the_directory(tmp_path, file, content, names):
    (tmp_path / "model").mkdir()
    (tmp_path / file).write_text(json.dumps(content))
    assert initial_params.names_of(tmp_path) == names
