"""A user's mistake ends with a message that says what, got, allowed and fix, and with the right exit status."""

import json
import os
from pathlib import Path

import pytest

from t5x_lite import cli, config, inspect
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation import infer

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")

FILE_TASK = """
import sys
sys.path.insert(0, {tests!r})
from experiments import tiny
from t5x_lite.data.registry import Task, Feature, add
from t5x_lite.data.preprocess import template
from t5x_lite.data.sources import Csv, Jsonl, Text
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.tasks.metrics import accuracy

class TooSmall(ByteVocabulary):
    size = 50

add(Task("rows", {source}, preprocessors=(template(inputs="{{text}}", targets="{{label}}"),), labels=("a", "b"),
    features={{name: Feature({vocabulary}) for name in ("inputs", "targets")}}, metrics=(accuracy,)))

def get_config(preset="t5_tiny"):
    cfg = tiny.get_config(preset)
    cfg.data.mixture = "rows"
    cfg.data.vocabulary = "" if {vocabulary} else "bytes"
    return cfg
"""


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--config.data.mixture=tinny"], 2, "unknown task or mixture 'tinny'; did you mean 'tiny'"),
        (["--config.train.total_step=1"], 2, "did you mean config.train.total_steps"),
        (["--config.train.total_steps=many"], 2, "is not of type int"),
        (["--config.model.preset=t5_tny"], 2, "unknown model preset 't5_tny'; did you mean 't5_tiny'"),
        (["--config.optimizer.name=adamv"], 2, "did you mean 'adam' or 'adamw'"),
        (["--config.mesh=date=8"], 2, "unknown mesh axis 'date'; did you mean 'data'"),
        (["--config.mesh=data=3"], 2, "needs 3 devices; there are 8"),
        (["--config.data.batch_rows=12"], 2, "batch_rows=12 is not divisible by mesh axis data=8; use 8 or 16"),
        (["--config.mesh=tensor=8"], 2, "model.num_heads=2 is not divisible by mesh axis tensor=8"),
        (["--config.train.microbatches=3"], 2, "not divisible by train.microbatches=3"),
        (["--config.model.vocab_size=100"], 2, "model.vocab_size=100 is below the vocabulary's"),
        (["--config.data.vocabulary=missing.model"], 2, "cannot read the vocabulary missing.model"),
        (["--config.eval.tasks=tiny_animals"], 2, "did you mean 'tiny_animal'"),
        (["--config.init.checkpoint=nowhere"], 74, "no checkpoint in 'nowhere'"),
        (["--config.mesh=data=--1"], 2, "is not AXIS=SIZE"),
        (["--config.seed=5e9"], 2, "seed=5000000000: must be at least 0 and below 4294967296"),
        (["--config.optimizer.b2=1"], 2, "optimizer.b2=1.0: must be at least 0 and below 1"),
        (["--config.optimizer.epsilon=0"], 2, "optimizer.epsilon=0.0: must be above 0"),
        (["--config.optimizer.name=sophia", "--config.model.attention=pallas"], 2, "sophia differentiates twice"),
        (
            [
                f"--config.{text}"
                for text in (
                    "optimizer.name=schedule_free",
                    "schedule.name=constant",
                    "optimizer.unfreeze_every_steps=2",
                )
            ],
            2,
            "unfreeze_every_steps=2: must be 0 with schedule_free",
        ),
        (["--config.loss.z_loss=nan"], 2, "loss.z_loss=nan: must be a finite number"),
        (["--config.checkpoint.keep_best=tiny_animals/accuracy"], 2, "did you mean 'tiny_animal'"),
        (["--verbose"], 2, "unknown argument '--verbose'; `t5x-lite train --help` lists the flags of train"),
        (["--learning-rate=1"], 2, "did you mean --config.optimizer.learning_rate=VALUE?"),
        (["--num_train_epochs", "3"], 2, "did you mean --config.train.epochs=VALUE?"),
        (["--config.train.total_steps"], 2, "has no value"),
        (["--config.train.total_steps", "10"], 2, "config.train.total_steps has no value; write --config.train.total_"),
    ],
)
def test_a_wrong_flag(tmp_path, capsys, flags, status, message):
    assert cli.run(["train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", *flags]) == status
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown and len(shown.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    ("source", "content", "status", "message"),
    [
        ("Csv('FILE')", None, 65, "cannot read"),
        ("Csv('FILE')", b"", 65, "is empty (0 bytes)"),
        ("Csv('FILE')", b"text,label\nfine,a\nbad \xff byte,b\n", 65, "FILE:3: byte 0xff"),
        ("Csv('FILE')", b"text,label\nfine,a\nonly one\n", 65, "FILE:3: 1 column"),
        (
            "Csv({'train': 'FILE', 'validation': 'FILE'})",
            b"text,label\nfine,a\nfine,c\n",
            65,
            "label 'c' is not one of a, b",
        ),
        ("Jsonl('FILE')", b'{"text": "x", "label": "a"}\n{"text": \n', 65, "FILE:2: not JSON"),
        ("Text({'train': 'FILE', 'validation': 'FILE'})", b"a line\n", 65, "'label'"),
    ],
)
@pytest.mark.parametrize("preset", ["t5_tiny", "bert_tiny"])
def test_a_broken_file(tmp_path, capsys, preset, source, content, status, message):
    file = tmp_path / "rows.csv"
    if content is not None:
        file.write_bytes(content)
    experiment = tmp_path / "experiment.py"
    tests = str(Path(__file__).parent)
    experiment.write_text(FILE_TASK.format(tests=tests, source=source.replace("FILE", str(file)), vocabulary=None))
    code = cli.run(["train", f"--config={experiment}:{preset}", f"--workdir={tmp_path / 'run'}"])
    shown = capsys.readouterr().err
    assert code == status, shown
    assert message.replace("FILE", str(file)) in shown
    assert "Traceback" not in shown


def test_a_token_id_outside_the_vocabulary(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "some text,a\nmore text,b\n" * 5)
    experiment = tmp_path / "experiment.py"
    splits = "Csv({'train': 'FILE', 'validation': 'FILE'})".replace("FILE", str(file))
    tests = str(Path(__file__).parent)
    experiment.write_text(FILE_TASK.format(tests=tests, source=splits, vocabulary="TooSmall()"))
    assert cli.run(["train", f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]) == 65
    shown = capsys.readouterr().err
    assert "holds token id" in shown and "allowed 0 to 49" in shown


def test_verbs_on_what_is_not_a_run(tmp_path, capsys):
    assert cli.run(["eval", f"--workdir={tmp_path / 'nowhere'}"]) == 2
    assert "no workdir" in capsys.readouterr().err
    assert cli.run(["eval", f"--workdir={tmp_path}"]) == 2
    assert "is this the workdir of a run?" in capsys.readouterr().err
    assert cli.run(["inspect", "python_doc"]) == 2
    assert "did you mean 'python_docs'" in capsys.readouterr().err
    text = tmp_path / "text.txt"
    text.write_text("Too little.\n")
    assert cli.run(["vocab", "--input", str(text), "--size=5000", f"--output={tmp_path / 'v.model'}"]) == 2
    assert "too large for this text; the largest possible is" in capsys.readouterr().err
    assert not (tmp_path / "v.model").exists()


def test_an_output_of_infer_that_is_something_else_is_left_alone(tmp_path, capsys):
    examples = [{"inputs": "a"}, {"inputs": "b"}]
    added = {"step": 7, "prediction": None, "score": None}
    done = json.dumps(examples[0] | {"prediction": "x", "score": -1.0, "step": 7}) + "\n"
    output = tmp_path / "out.jsonl"
    for content in (
        '{"one": "object, and no newline"}',
        '{"inputs": "a"}\n{"inputs": "b"}\n',  # the input itself
        done.replace('"step": 7', '"step": 6'),  # from a different checkpoint
        done.replace('"a"', '"c"'),  # from a different input
        done.replace('"prediction"', '"logprob"'),  # from a different mode
        done * 3,
    ):
        output.write_text(content)
        with pytest.raises(ConfigError, match=r"out\.jsonl .*--output"):
            infer.resume(output, examples, added)
        assert output.read_text() == content
    output.write_text(done + '{"inputs": "b", "pred')  # as after a kill
    assert infer.resume(output, examples, added) == 1
    assert output.read_text() == done
    with pytest.raises(ConfigError, match="directory"):
        infer.open_output(tmp_path)
    with infer.open_output(output), pytest.raises(ConfigError, match=r"another process is writing .*out\.jsonl"):
        infer.open_output(output)
    assert json.loads(infer.dumps({"id": "\ud800"}).encode()) == {"id": "\ud800"}  # half of a surrogate pair, in UTF-8


def test_a_run_whose_tasks_are_of_a_config_file_asks_for_it(tmp_path, capsys):
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture = "t5_tiny", "defined_elsewhere"
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_dict()))
    for verb in (["eval"], ["infer", "--input=a.txt", "--output=b.jsonl"]):
        assert cli.run([*verb, f"--workdir={tmp_path}"]) == 2
        assert "'defined_elsewhere', which its config file defines: give --config=FILE.py" in capsys.readouterr().err


def test_a_config_that_is_none(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    pass\n")
    assert cli.run(["train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "get_config() of" in capsys.readouterr().err
    for content in ("[]", '{"train": {"total_steps": "many"}}'):
        (tmp_path / "config.json").write_text(content)
        assert cli.run(["eval", f"--workdir={tmp_path}"]) == 2
        assert "config.json" in capsys.readouterr().err


def test_a_start_that_failed_does_not_lock_its_workdir(tmp_path, capsys):
    workdir = tmp_path / "run"
    train = ["train", f"--config={CONFIG}:bert_tiny", f"--workdir={workdir}"]
    assert cli.run([*train, "--config.data.batch_rows=12"]) == 2
    assert "12" in capsys.readouterr().err
    assert not (workdir / "config.json").exists()


def test_inspect_and_tasks_show_what_there_is(capsys, monkeypatch):
    monkeypatch.setattr(inspect, "SAMPLED_S", 0.0)  # even a slow machine samples all requested rows
    assert cli.run(["tasks", f"--config={CONFIG}"]) == 0
    assert "tiny_animal" in capsys.readouterr().out
    for preset in ("t5_tiny", "bert_tiny", "gpt2_tiny"):
        assert cli.run(["inspect", "tiny", f"--config={CONFIG}:{preset}", "-n", "24"]) == 0
        shown = capsys.readouterr().out
        assert "row 23" in shown and "animal: the" in shown and "padding" in shown
    assert cli.run(["inspect", "tiny", f"--config={CONFIG}", "-n", "-3"]) == 2
    assert "-n=-3: must be 0 or more" in capsys.readouterr().err
    for file in (str(CONFIG), "data/*.csv", "train.{en,de}"):
        assert cli.run(["inspect", file]) == 2
        assert f"for a file use --config.data.files={file}" in capsys.readouterr().err


def test_a_broken_line_for_infer(tmp_path, capsys):
    workdir = tmp_path / "run"
    (workdir).mkdir()
    from t5x_lite import config
    from t5x_lite.config import to_json

    (workdir / "config.json").write_text(to_json(config.load(CONFIG)))
    source = tmp_path / "in.jsonl"
    for content, message in (
        ('{"inputs": 3}\n', "in.jsonl:1: no text field 'inputs'"),
        ("{\n", "in.jsonl:1: not a JSON"),
    ):
        source.write_text(content)
        code = cli.run(
            ["infer", f"--workdir={workdir}", f"--input={source}", f"--output={tmp_path / 'o'}", f"--config={CONFIG}"]
        )
        assert code == 65
        assert message in capsys.readouterr().err
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0


def test_a_task_without_data_is_told_of_the_data_first(tmp_path, capsys):
    """Without its data, a vocabulary would not help."""
    for vocabulary in ("", str(tmp_path / "missing")):
        flags = [f"--config.data.dir={tmp_path}", f"--config.data.vocabulary={vocabulary}"]
        flags += ["--config.data.mixture=glue_mrpc", f"--workdir={tmp_path / 'run'}"]
        assert cli.run(["train", f"--config={CONFIG}", *flags]) == 65
        assert "no file for split 'train' of MRPC" in capsys.readouterr().err
    assert cli.run(["train", f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.data.vocabulary=/missing"]) == 2
    assert "data.vocabulary: '/missing' does not exist" in capsys.readouterr().err


def test_a_directory_without_a_model_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["export", ".", "out"]) == 74
    assert f"{tmp_path} holds no model, because it has no config.json; give the workdir" in capsys.readouterr().err


def test_config_files_that_exist_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("small", "large"):
        (tmp_path / "configs" / f"{name}.py").write_text("def get_config(): ...")
    (tmp_path / "other.py").write_text("")
    os.mkfifo(tmp_path / "pipe.py")
    for given, hint in (("smal", "did you mean configs/small.py?"), ("x", "there are configs/large.py, configs/small")):
        assert cli.run(["train", f"--config={given}", "--workdir=run"]) == 2
        assert f"no config file '{given}'; {hint}" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "configs" / "..")
    assert cli.run(["train", "--config=nowhere/x.py", "--workdir=run"]) == 2
    assert "give the path of a Python file with get_config()" in capsys.readouterr().err
