"""Damaged side files stop no resume, and no damage or odd name ends a verb with a traceback or a silent difference."""

import gzip
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import tokenizers
from test_hub import theirs

import t5x_lite
from t5x_lite import cli
from t5x_lite.checkpoints import checkpoint, manifest
from t5x_lite.cluster import lock
from t5x_lite.data import opened_files
from t5x_lite.data.opened_files import File, plain
from t5x_lite.errors import CheckpointError, ConfigError, DataError, UserError
from t5x_lite.evaluation import infer
from t5x_lite.hub import interchange
from t5x_lite.reports import results

CONFIG = f"--config={Path(__file__).parent / 'experiments' / 'tiny.py'}:bert_tiny"
SMALL = ["--config.model.d_model=16", "--config.model.head_dim=8", "--config.model.d_ff=16", "--config.data.length=32"]
SMALL += ["--config.data.batch_rows=8", "--config.eval.batch_rows=8", "--config.eval.max_examples=8"]
SMALL += ["--config.eval.untrained=false", "--config.checkpoint.every_steps=1", "--config.data.mixture=tiny_animal"]


def test_no_damaged_side_file_stops_a_resume(tmp_path, capsys, caplog):
    workdir = tmp_path / "run"
    train = ["train", CONFIG, f"--workdir={workdir}", *SMALL]
    assert cli.run([*train, "--config.train.total_steps=1"]) == 0
    (workdir / "config.json").write_text('{"seed": ')
    (workdir / "model" / "tasks.json").unlink()
    for name in (lock.NAME, "metrics.jsonl"):
        (workdir / name).unlink()
        os.mkfifo(workdir / name)
    (workdir / "predictions" / "step_x").mkdir()
    (next((workdir / "predictions" / "step_1").glob("*.jsonl"))).write_bytes(b'\xff\n{"inputs": 5}\n')
    capsys.readouterr()
    assert cli.run([*train, "--config.train.total_steps=2", "--config.seed=1"]) == 2  # the seed is still compared
    assert "seed: 0 → 1" in capsys.readouterr().err
    assert cli.run([*train, "--config.train.total_steps=2"]) == 0
    shown = capsys.readouterr()
    assert "The config in checkpoint 1 is used" in shown.out
    assert "run.lock.corrupt" in caplog.text and "Traceback" not in shown.err
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0
    assert {row["step"] for row in results.read_metrics(workdir)} == {2}
    assert t5x_lite.load(workdir).labels == ("cat", "dog")


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, link_to_nothing])
def test_what_is_no_file_in_the_place_of_the_lock_is_set_aside(tmp_path, caplog, make):
    make(tmp_path / lock.NAME)
    with lock.held(tmp_path), pytest.raises(ConfigError, match="in use"), lock.held(tmp_path):
        pass
    assert "run.lock.corrupt" in caplog.text and os.path.lexists(tmp_path / "run.lock.corrupt")


def test_damaged_settings_of_an_output_are_set_aside_with_it(tmp_path, caplog):
    output, settings = tmp_path / "out.jsonl", tmp_path / "out.jsonl.settings.json"
    infer.set_aside_damaged(output)
    for content in (b"{", b"\xff", b'{"mode": 1, "mode": 2}'):
        output.write_text("{}\n")
        settings.write_bytes(content)
        infer.set_aside_damaged(output)
        assert not output.exists() and not settings.exists()
        assert (tmp_path / "out.jsonl.corrupt").read_text() == "{}\n"
    assert "out.jsonl.settings.json is damaged" in caplog.text
    settings.write_text("{}")
    infer.set_aside_damaged(output)
    assert settings.exists()
    os.mkfifo(output)
    for path, why in ((output, "not seekable"), (Path("/dev/null"), "not a regular file")):
        with pytest.raises(ConfigError, match=f"cannot write {path}: .*{why}"):
            infer.open_output(path)


def test_damaged_predictions_are_left_out(tmp_path, caplog):
    row = {"inputs": "a", "target": "b", "prediction": "c", "score": -0.5}
    lines = [json.dumps(row), "5", '{"inputs": "a"}', "{", json.dumps(row | {"score": None}), json.dumps(row)]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff")
    assert results.read_predictions(tmp_path / "a.jsonl") == [row, row]
    os.mkfifo(tmp_path / "b.jsonl")
    with caplog.at_level(logging.WARNING):
        assert results.read_predictions(tmp_path / "b.jsonl") == []
    assert "b.jsonl cannot be read: it is a FIFO" in caplog.text


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    directory, *_ = theirs(root, heads=("classification",), num_classes=3)
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    interchange.import_directory(directory, root / "imported")
    return root / "imported"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_encoder_layers": 1.5}, "model.json: num_encoder_layers=1.5 must be int"),
        ({"num_encoder_layers": True}, "num_encoder_layers=True must be int"),
        ({"num_encoder_layers": 1000}, "arrays, but its model has 1000 layers"),
        ({"heads": "mlm"}, "heads='mlm' must be a list of texts"),
        ({"rotary_interleaved": "/dev/zero"}, "rotary_interleaved='/dev/zero' must be bool"),
        ({"module": "os:system"}, "module='os:system' must be null"),
        ({"vocab_size": 5}, r"has 6 ids, the model 5 embedding rows"),
    ],
)
def test_a_value_of_a_wrong_kind_in_a_stored_model_is_named(imported, tmp_path, change, message):
    shutil.copytree(imported, tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        t5x_lite.load(tmp_path / "m")


def test_settings_that_name_the_classes_are_missed(imported, tmp_path):
    """They were LABEL_0, LABEL_1, … without a word."""
    shutil.copytree(imported, tmp_path / "m")
    settings = tmp_path / "m" / "huggingface.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_type": "berd"}))
    with pytest.raises(CheckpointError, match=r"huggingface.json: unknown model_type 'berd'"):
        interchange.export_model(t5x_lite.load(tmp_path / "m"), tmp_path / "out")
    settings.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*huggingface.json"):
        t5x_lite.load(tmp_path / "m")


def test_a_vocabulary_larger_than_the_model_is_refused_by_load(tmp_path):
    """Ids beyond the table would all read its last row."""
    directory, *_ = theirs(tmp_path, vocab_size=8)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n")
    with pytest.raises(ConfigError, match="has 11 ids, the model 8 embedding rows; import it with --vocab-size=128"):
        t5x_lite.load(directory)


def test_a_regex_on_which_the_library_gives_up_is_named(tmp_path):
    directory, *_ = theirs(tmp_path, "gpt2")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a|aa)+$"), "isolated")
    tokenizer.save(str(directory / "tokenizer.json"))
    model = t5x_lite.load(directory)
    with pytest.raises(UserError, match=r"tokenizer.json.*fails on a text: .*retry-limit"):
        model.vocabulary.encode(["a" * 500 + "b"])


@pytest.mark.parametrize("name", ["²", "٣", "9" * 30, "007", "-1"])
def test_only_numbers_as_the_run_writes_them_name_steps(imported, tmp_path, name):
    shutil.copytree(imported, tmp_path / "m")
    (tmp_path / "m" / "checkpoints" / "0").rename(tmp_path / "m" / "checkpoints" / name)
    assert checkpoint.saved_steps(tmp_path / "m") == []
    with pytest.raises(CheckpointError, match="Steps now there: none"):
        t5x_lite.load(tmp_path / "m")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.choose(imported, name, None)


def test_a_problem_is_one_line_whatever_a_manifest_lists(imported, tmp_path):
    step = shutil.copytree(imported / "checkpoints" / "0", tmp_path / "checkpoints" / "0")
    for listed in ("a\nb", "x" * 5000, "a\x1b[31m\nb"):
        (step / manifest.NAME).unlink()
        (step / listed[:9]).write_bytes(b"abc")
        manifest.write(step, 0)
        (step / listed[:9]).unlink()
        problem = manifest.problem(step)
        assert problem and "missing" in problem and len(problem.splitlines()) == 1 and len(problem) <= 300


@pytest.mark.parametrize("verb", ["train", "eval", "infer", "verify", "export", "import", "attention", "compare"])
def test_a_path_longer_than_the_system_allows_is_one_line(tmp_path, capsys, verb):
    path = str(tmp_path / ("x" * 300))
    flags = {
        "train": [CONFIG, f"--workdir={path}"],
        "eval": [f"--workdir={path}"],
        "infer": [f"--workdir={path}", "--input=a.txt", "--output=b.jsonl"],
        "verify": [path],
        "export": [path, str(tmp_path / "out")],
        "import": [path, str(tmp_path / "out")],
        "attention": [f"--workdir={path}", "--text=a"],
        "compare": [path, path],
    }[verb]
    assert cli.run([verb, *flags]) in (2, 74)
    shown = capsys.readouterr().err
    assert "x" * 300 in shown and "Traceback" not in shown and len(shown.strip().splitlines()) <= 3


def test_a_gzip_bomb_of_short_lines_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opened_files, "UNPACKED_BYTES", 1 << 20)
    bomb, text = tmp_path / "bomb.txt.gz", tmp_path / "text.txt.gz"
    bomb.write_bytes(gzip.compress(b"\n" * (1 << 25)))
    text.write_bytes(gzip.compress(b"".join(b"%d lines\n" % n for n in range(1 << 18))))
    with pytest.raises(DataError, match=r"bomb.txt.gz unpacks to more than 200 times its .* unpack it yourself"):
        plain(File.of(str(bomb)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert plain(File.of(str(text))).stat().st_size > 1 << 21
