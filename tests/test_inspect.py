"""A run takes from each task what `inspect` predicts."""

import json

import pytest

from t5x_lite import cli, config, experiment, inspect
from t5x_lite.data import pipeline, registry, sources
from t5x_lite.data.registry import Feature, Mixture, Task


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    texts = [{"text": f"document {i} " + "word " * (i % 40)} for i in range(300)]
    pairs = [{"inputs": "x" * (1 + i % 30), "targets": "ab"[i % 4 == 0]} for i in range(100)]
    registry.add(Task("texts", sources.Function(lambda split: texts), features={"text": Feature()}))
    registry.add(Task("pairs", sources.Function(lambda split: pairs), labels=("a", "b")))
    registry.add(Mixture("mixed", {"texts": 1, "pairs": 3}))


def settings(pack=True, steps=1024):
    cfg = config.base()
    cfg.data.mixture, cfg.data.vocabulary = "mixed", "bytes"
    cfg.data.length, cfg.data.targets_length, cfg.data.batch_rows = 64, 32, 16
    cfg.data.pack, cfg.train.total_steps = pack, steps
    return experiment.resolve(cfg)


@pytest.mark.parametrize("pack", [True, False])
def test_the_plan_comes_true(pack):
    resolved = settings(pack)
    told = inspect.describe(resolved, rows=3, split="train")
    batches = pipeline.train_batches(
        registry.mixture("mixed"),
        resolved.converter,
        resolved.vocabulary,
        batch_rows=16,
        seed=0,
        pack=pack,
        prefetch_batches=0,
    )
    filled = size = 0
    for _ in range(1024):
        batch = next(batches)
        for side in ("encoder", "decoder"):
            filled += int((batch[f"{side}_segment_ids"] > 0).sum())
            size += batch[f"{side}_segment_ids"].size
    seen = batches.counters()
    assert [task["task"] for task in told["tasks"]] == ["pairs", "texts"]
    for task in told["tasks"]:
        for what in ("examples", "tokens", "epochs"):
            # The shares are random, and epochs include read-ahead, up to a window in four of a thousand rows.
            assert task["run"][what] == pytest.approx(seen[f"{what}/{task['task']}"], rel=0.08), (task["task"], what)
    assert told["padding"] == pytest.approx(1 - filled / size, abs=0.02)
    assert sum(task["rate"] for task in told["tasks"]) == pytest.approx(1)
    if not pack:  # every row is one example with its own padding
        of_pairs = told["tasks"][0]
        mean = sum(1 + i % 30 + 2 + 1 for i in range(100)) / 100  # inputs, target, one EOS each
        assert of_pairs["padding"] == pytest.approx(1 - mean / 96, abs=0.02)
    assert told["tasks"][0]["length"]["encoder"]["max"] == 31
    assert told["tasks"][0]["labels"] == {"a": 75, "b": 25}


def test_rows_say_whose_they_are_and_what_is_to_be_answered():
    rows = inspect.describe(settings(), rows=5, split="train")["rows"]
    assert len(rows) == 5
    for example in (example for row in rows for example in row):
        if example["task"] == "pairs":
            assert set(example["encoder"].removesuffix(" </s>")) == {"x"} and example["targets"][0] in "ab"
        else:
            assert "<extra_id_0>" in example["targets"] or "word" in example["encoder"]


@pytest.mark.parametrize("preset", ["t5_tiny", "gpt2_tiny"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_json_object_and_nothing_else(capsys, preset, split):
    flags = ["--config.data.vocabulary=bytes", f"--config.model.preset={preset}", "--config.data.length=64"]
    flags += ["--config.data.targets_length=32"]
    assert cli.run(["inspect", "mixed", "--json", "-n", "2", "--split", split, *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["split"], len(told["rows"])) == (split, 2)
    assert ("run" in told["tasks"][0]) == (split == "train")


def test_an_encoders_targets_stand_with_their_examples():
    registry.add(Mixture("mixed", {"pairs": 1}))
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.vocabulary = "bert_tiny", "mixed", "bytes"
    cfg.data.length = 64
    shown = [e for row in inspect.describe(experiment.resolve(cfg), rows=2, split="train")["rows"] for e in row]
    assert all(e["encoder"].startswith("[CLS] x") for e in shown) and {e["class target"] for e in shown} == {"a", "b"}


def test_labels_are_counted_all_over_a_file_that_is_sorted_by_them():
    rows = [{"inputs": str(i), "targets": "a" if i < 3000 else "b"} for i in range(4000)]
    registry.add(Task("sorted", sources.Function(lambda split: rows), labels=("a", "b", "never")))
    counts = inspect.label_counts(registry.REGISTRY["sorted"], "train")  # type: ignore[arg-type]
    assert sum(counts.values()) == inspect.SAMPLED_LABELS and counts["never"] == 0
    assert counts["a"] == pytest.approx(1500, abs=4 * (2000 * 0.75 * 0.25) ** 0.5)


def test_a_name_that_looks_like_markup_is_listed_as_it_is(capsys):
    registry.add(Mixture("[/red]", {"texts": 1}))
    assert cli.run(["tasks"]) == 0
    assert "[/red]" in capsys.readouterr().out
