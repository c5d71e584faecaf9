"""Checks a run's predictions and scores against plain definitions, and `infer` through kills."""

import copy
import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from waiting import wait_until

from t5x_lite import cli, experiment, runtime
from t5x_lite import config as configs
from t5x_lite.data import guessed_format, registry
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Function
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import evaluate, infer, scores, submission
from t5x_lite.evaluation.baselines import baselines, by_words, word_baselines
from t5x_lite.tasks import glue
from t5x_lite.tasks.metrics import accuracy

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
LABELS = ("no", "yes", "yesterday")
ROWS = [{"inputs": "is " + "it " * n, "targets": LABELS[n % 3]} for n in range(11)]


@pytest.fixture(scope="module", params=["t5_tiny", "gpt2_tiny"])
def ready(request, tmp_path_factory):
    """Returns (evaluator, untrained parameters) of a generating model on a task with three labels."""
    cfg = configs.load(f"{CONFIG}:{request.param}")
    registry.add(Task("answers", Function(lambda split: ROWS), labels=LABELS, metrics=(accuracy,), baseline="majority"))
    cfg.data.mixture, cfg.eval.answers, cfg.eval.max_examples = "answers", ("greedy", "constrained", "rank"), 0
    cfg.eval.max_decode_tokens = 9  # "yesterday" in bytes
    configs.validate(cfg)
    found = experiment.resolve(cfg)
    on_devices = runtime.start(found)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.device_put(rng.normal(size=leaf.shape, scale=0.3).astype(np.float32), leaf.sharding),
        on_devices.abstract_params(),
    )
    return evaluate.Evaluator(found, on_devices, tmp_path_factory.mktemp("run")), params


def test_rank_takes_the_label_that_packed_scoring_finds_most_probable(ready):
    evaluator, params = ready
    predictor, task = evaluator.predictor, registry.get("answers")
    pairs = [row | {"targets": label} for row in ROWS for label in LABELS]
    scored = predictor.score(params, pairs, task, batch_rows=8)
    alone = [predictor.score(params, [pair], task, batch_rows=8)[0] for pair in pairs[:4]]
    packed, unpacked = ([s.logprob for s in each] for each in (scored[:4], alone))
    np.testing.assert_allclose(packed, unpacked, rtol=1e-5, atol=1e-5)
    assert [s.tokens for s in scored[:3]] == [len(label) + 1 for label in LABELS]  # bytes and the end token
    long = predictor.score(params, [{"inputs": "it", "targets": "yes" * 99}], task, batch_rows=8)
    assert [s.truncated for s in scored] == [False] * len(scored) and long[0].truncated
    rows, _ = evaluator.predictions(params, task)
    assert [row["index"] for row in rows] == list(range(11))  # every example once, even in a ragged last batch
    for number, row in enumerate(rows):
        logprobs = [s.logprob for s in scored[3 * number : 3 * number + 3]]
        assert row["rank_prediction"] == LABELS[int(np.argmax(logprobs))]
        assert row["rank_score"] == pytest.approx(max(logprobs), abs=2e-5)
        assert row["constrained_prediction"] in LABELS


def test_a_task_without_a_training_split_has_no_baseline(ready, monkeypatch):
    evaluator, _ = ready
    whole = Function.split
    assert baselines(evaluator.experiment) and word_baselines(evaluator.experiment)

    def split(self, name):
        if name == "train":
            raise ConfigError("unknown split 'train'")
        return whole(self, name)

    monkeypatch.setattr(Function, "split", split)
    assert baselines(evaluator.experiment) == word_baselines(evaluator.experiment) == {}


def test_a_label_is_known_by_its_ids_and_a_test_set_needs_no_targets(ready, monkeypatch):
    evaluator, params = ready
    predictor = evaluator.predictor
    ids = predictor.experiment.vocabulary.encode(["yes"])[0]
    monkeypatch.setattr(type(predictor.experiment.vocabulary), "decode", lambda self, ids: "y e s")  # like WordPiece
    assert predictor.text_of(ids, LABELS) == "yes" and predictor.text_of(ids[:1], LABELS) == "y e s"
    unknown = [row | {"targets": "<unk>"} for row in ROWS]
    task = dataclasses.replace(registry.get("answers"), source=Function(lambda split: unknown))
    cfg = copy.deepcopy(evaluator.experiment.cfg)
    cfg.eval.max_examples = 4  # limits evaluations, not the caller's examples
    monkeypatch.setattr(evaluator, "experiment", dataclasses.replace(evaluator.experiment, cfg=cfg))
    rows = evaluator.predict(params, task, "test")
    assert len(rows) == 11 and {row["target"] for row in rows} == {"<unk>"}


def test_a_submission_has_every_test_prediction_and_what_was_in_it(ready, tmp_path, monkeypatch):
    evaluator, params = ready
    path, experiment = tmp_path / "glue.zip", evaluator.experiment
    task = dataclasses.replace(registry.get("answers"), name="glue_sst2", labels=("negative", "positive"))
    with pytest.raises(ConfigError, match="--submission is for GLUE's tasks"):
        submission.tasks_of(experiment)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as sound:
        sound.writestr("CoLA.tsv", "index\tprediction\n" * 1000)
    damaged = bytearray(path.read_bytes())
    damaged[45:60] = b"\xff" * 15  # of the compressed data
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (tmp_path / "text.zip").write_text("text")
    for name, message in (
        ("nowhere/glue.zip", "no directory"),
        ("text.zip", "not a zip file"),
        ("damaged.zip", "not a zip file that can be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            submission.check(tmp_path / name)

    def submit():
        tasks = submission.tasks_of(evaluator.experiment)
        return submission.write(path, {task.name: evaluator.predict(params, task, "test") for task in tasks})

    cfg = copy.deepcopy(experiment.cfg)
    cfg.data.dir = "glue"
    monkeypatch.setattr(evaluator, "experiment", dataclasses.replace(experiment, cfg=cfg, eval_tasks=(task,)))
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("CoLA.tsv", "index\tprediction\n0\t1\n")
        other.writestr("SST-2.tsv", "of an earlier model")
    submit()
    with zipfile.ZipFile(path) as found:
        assert found.namelist() == ["CoLA.tsv", "SST-2.tsv"] and found.read("CoLA.tsv").endswith(b"0\t1\n")
        lines = found.read("SST-2.tsv").decode().splitlines()
    assert lines[0] == "index\tprediction" and [line.split("\t")[0] for line in lines[1:]] == list(map(str, range(11)))
    assert {line.split("\t")[1] for line in lines[1:]} == {"0"}  # other predictions become the first label
    mnli, ax = (dataclasses.replace(task, name=name) for name in ("glue_mnli", "glue_ax"))
    monkeypatch.setattr(evaluator, "experiment", dataclasses.replace(experiment, cfg=cfg, eval_tasks=(mnli,)))
    monkeypatch.setattr(registry, "tasks", lambda name: {"glue_ax": (ax,)}[name])
    missing = ("mrpc", "qqp", "stsb", "mnli_mismatched", "qnli", "rte", "wnli")
    assert submit().endswith("lacks " + ", ".join(f"{glue.SUBMISSION[name]}.tsv (glue_{name})" for name in missing))
    with zipfile.ZipFile(path) as found:  # the diagnostic set is for MNLI's model
        assert found.namelist() == ["AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "SST-2.tsv"]


def test_answers_stand_side_by_side_and_invalid_ones_are_counted(ready, monkeypatch):
    evaluator, params = ready
    values, _ = evaluator.evaluate(params, 0)
    assert values["eval/answers/rank/invalid"] == values["eval/answers/constrained/invalid"] == 0
    assert values["eval/answers/invalid"] == 100  # an untrained model writes no label
    assert values["eval/answers/accuracy"] == 0 < values["eval/answers/rank/accuracy"]
    assert 0 <= values["eval/answers/rank/ece"] <= 100
    assert evaluator.hints(values) == []  # labels only were asked for, too
    cfg = copy.deepcopy(evaluator.experiment.cfg)
    cfg.eval.answers = ("greedy",)
    with monkeypatch.context() as changed:
        changed.setattr(evaluator, "experiment", dataclasses.replace(evaluator.experiment, cfg=cfg))
        (hint,) = evaluator.hints(values)
        assert "'answers'" in hint and "3 labels" in hint and "--config.eval.answers=greedy,constrained" in hint
        assert evaluator.hints(values | {"eval/answers/invalid": 99.0}) == []
    predictions = evaluator.workdir / "predictions" / "step_0"
    intervals = scores.intervals(evaluator.experiment.eval_tasks, "validation", predictions)
    assert intervals["low/answers/accuracy"] == intervals["high/answers/accuracy"] == 0
    words = word_baselines(evaluator.experiment)
    assert words["words/answers/accuracy"] >= baselines(evaluator.experiment)["baseline/answers/accuracy"]


def test_scores_of_labels_and_numbers():
    rows = [
        {"target": "yes", "prediction": "yes", "score": math.log(0.9)},
        {"target": "no", "prediction": "maybe", "score": math.log(0.5)},
    ]
    task = registry.add(Task("t", Function(lambda split: ROWS), labels=("no", "yes"), metrics=(accuracy,)))
    found = scores.scores_of(task, rows, ["yes", "no"]).values
    assert found == {"accuracy": 50.0, "invalid": 50.0, "ece": pytest.approx(100 * (0.1 + 0.5) / 2)}
    assert by_words([("good film", "yes"), ("bad film", "no")] * 5, ["a good one", "bad"]) == ["yes", "no"]


@pytest.mark.slow
def test_infer_killed_at_any_byte_ends_with_the_lines_of_an_uninterrupted_run(tmp_path):
    workdir, source = tmp_path / "run", tmp_path / "in.csv"
    train = ["train", f"--config={CONFIG}:bert_tiny", f"--workdir={workdir}", "--config.train.total_steps=2"]
    train += ["--config.data.mixture=tiny_animal", "--config.eval.untrained=False"]
    assert cli.run(train) == 0
    source.write_text("inputs,number\n" + "".join(f"the {'red ' * (i % 9)}cat,{i}\n" for i in range(1003)))

    def command(output: Path) -> list[str]:
        return ["infer", f"--workdir={workdir}", f"--input={source}", f"--output={output}", f"--config={CONFIG}"]

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert cli.run(command(whole)) == 0
    expected, rng = whole.read_bytes(), random.Random(0)
    killed.touch()
    for size in sorted(rng.randrange(len(expected) * 9 // 10) for _ in range(5)):
        process = subprocess.Popen([sys.executable, "-m", "t5x_lite.cli", *command(killed)], env=os.environ)
        wait_until(lambda size=size: killed.stat().st_size > size, process, look_s=0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert size < killed.stat().st_size < len(expected) and expected.startswith(killed.read_bytes())
    for cut in (None, *(rng.randrange(len(expected)) for _ in range(4))):  # mid-line: a full disk may cut it there
        if cut is not None:
            killed.write_bytes(expected[:cut])
        assert cli.run(command(killed)) == 0
        assert killed.read_bytes() == expected
    numbers = [int(json.loads(line)["number"]) for line in killed.read_text().splitlines()]
    assert numbers == list(range(1003))


def test_what_infer_reads(tmp_path):
    """Reads the same field names as training, in any case; reports unusable input before it loads a model."""
    for name, content, fields, rows in (
        ("a.txt", "one\r\n\ntwo\u2028still two\n", "inputs", ["one", "", "two\u2028still two"]),
        ("A.JSONL", '\ufeff{"inputs": "one"}\n\n{"inputs": "two"}\r\n', "inputs", ["one", "two"]),
        ("b.ndjson", '{"tokens": ["a", "b"]}', "tokens", [["a", "b"]]),
        ("c.TSV", "inputs\tid\none\t1\n", "inputs", ["one"]),
    ):
        (tmp_path / name).write_text(content, newline="")
        assert [row[fields] for row in infer.read_input(tmp_path / name, (fields,), (), {})] == rows, name
    for name, content, needed, message in (
        ("b.csv", "text\nx\n", "inputs", "columns text; a column 'inputs' is needed"),
        ("c.csv", "inputs\n", "inputs", "holds no example"),
        ("empty.txt", "", "inputs", "has no lines"),
        ("d.txt", "one\n", "targets", "only texts; needed fields: targets"),
        ("e.jsonl.gz", "", "inputs", r"must be an uncompressed .*\.txt file"),
        ("f.parquet", "", "inputs", r"must be an uncompressed .*\.txt file"),
        ("g.jsonl", '{"inputs": "a"}\n{"inputs": "a", "score": 1}', "inputs", r"g\.jsonl:2: .* a field 'score'"),
        ("i.jsonl", '{"inputs": "a"}\n{"inputs": "\\ud800"}', "inputs", r"i\.jsonl:2: 'inputs' holds half"),
        ("h.csv", "inputs,step\na,1\n", "inputs", "h.csv: already has a field 'step'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises((ConfigError, DataError), match=message):
            infer.read_input(tmp_path / name, (needed,), ("step", "prediction", "score"), {})


@pytest.mark.parametrize(("group", "templates"), [("inputs", {}), ("text", {"inputs": "read: {text}"})])
def test_infer_refuses_a_line_without_the_needed_group_before_it_starts(tmp_path, group, templates):
    reading = guessed_format.Reading(header=True, line_pattern=f"(IN: (?P<{group}>.*)|OUT: (?P<other>.*))")
    (tmp_path / "a.txt").write_text("IN: one\nIN: two\n")
    assert len(infer.read_input(tmp_path / "a.txt", ("inputs",), ("step",), templates, reading)) == 2
    (tmp_path / "b.txt").write_text("IN: one\n\nOUT: two\n")
    with pytest.raises(DataError, match=r"b\.txt:3: .*null"):
        infer.read_input(tmp_path / "b.txt", ("inputs",), ("step",), templates, reading)
