"""A workdir is enough to use its model: moved elsewhere, without the data, the vocabulary or the imported directory."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from tiny_models import FAMILIES, random_params

import t5x_lite
from t5x_lite import cli, config, experiment, initial_params, saved_run, train
from t5x_lite.data import registry, vocabularies
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import CheckpointError, ConfigError, DataError
from t5x_lite.evaluation.during_training import EvaluationDuringTraining
from t5x_lite.hub import interchange
from t5x_lite.saved_run import NotHere

ROWS = [{"title": f"No {i}", "kind": ("good", "bad", "fine")[i % 3]} for i in range(60)]


def write_data(directory):
    directory.mkdir()
    (directory / "reviews.csv").write_text("title,kind\n" + "".join(f"{r['title']},{r['kind']}\n" for r in ROWS))
    texts = [f"a text of the number {i} " * 3 for i in range(200)]
    vocabularies.train_sentencepiece(texts=texts, output=directory / "v.model", size=300)


def trained(data, workdir, preset="bert_tiny"):
    cfg = config.base()
    cfg.model.preset, cfg.data.files, cfg.data.vocabulary = preset, str(data / "reviews.csv"), str(data / "v.model")
    cfg.data.inputs, cfg.data.targets = "title: {title}", "{kind}"
    cfg.model.update({"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "num_encoder_layers": 1})
    cfg.model.num_decoder_layers = 0 if preset == "bert_tiny" else 1
    cfg.data.length, cfg.data.batch_rows, cfg.eval.batch_rows, cfg.data.targets_length = 32, 8, 8, 16
    cfg.eval.max_decode_tokens, cfg.train.total_steps, cfg.eval.untrained = 8, 2, False
    assert train.run(experiment.resolve(cfg), workdir, EvaluationDuringTraining) == 0


@pytest.fixture
def no_tables(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


@pytest.mark.parametrize("preset", ["bert_tiny", "t5_tiny"])
def test_a_moved_run_works_without_its_data_and_vocabulary(tmp_path, monkeypatch, capsys, no_tables, preset):
    data, workdir = tmp_path / "data", tmp_path / "run"
    write_data(data)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    trained(data, workdir, preset)
    is_encoder = preset == "bert_tiny"
    before = t5x_lite.load(workdir)
    answers = before.classify(["title: No 5"]) if is_encoder else before.generate(["title: No 5"], 4)

    for used in (data, tmp_path / "cache"):
        shutil.rmtree(used)
    for name in [name for name in registry.REGISTRY if name.startswith("reviews")]:
        del registry.REGISTRY[name]
    (tmp_path / "elsewhere").mkdir()
    moved = workdir.rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")

    after = t5x_lite.load("moved")
    assert after.labels == ("bad", "fine", "good")
    mask = after.vocabulary.mask_id  # read in a text only on request, as training did not
    assert mask not in after.tokenize(["a [MASK]"])["encoder_input_tokens"]
    assert mask in t5x_lite.load("moved", special_tokens=True).tokenize(["a [MASK]"])["encoder_input_tokens"]
    assert (after.classify(["title: No 5"]) if is_encoder else after.generate(["title: No 5"], 4)) == answers
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert cli.run(["export", "moved", "hf"]) == 0
    assert cli.run(["attention", "--workdir=moved", "--text=title: No 5", "--output=maps.html"]) == 0

    (moved / "own_columns.csv").write_text("title,kind\nNo 5,good\nNo 6,bad\n")
    (moved / "inputs.jsonl").write_text('{"inputs": "title: No 5"}\n{"inputs": "title: No 6"}\n')
    for name in ("own_columns.csv", "inputs.jsonl"):
        assert cli.run(["infer", "--workdir=moved", f"--input=moved/{name}", f"--output=moved/{name}.out"]) == 0
    lines = [
        [json.loads(line) for line in (moved / f"{name}.out").read_text().splitlines()]
        for name in ("own_columns.csv", "inputs.jsonl")
    ]
    assert [row["title"] for row in lines[0]] == ["No 5", "No 6"] and "inputs" not in lines[0][0]
    for key in ("prediction", "score", *(["probabilities"] if is_encoder else [])):
        assert [row[key] for row in lines[0]] == [row[key] for row in lines[1]]
    if is_encoder:
        probabilities = lines[0][0]["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert max(probabilities, key=probabilities.get) == lines[0][0]["prediction"]
        assert np.log(max(probabilities.values())) == pytest.approx(lines[0][0]["score"], abs=1e-4)

    capsys.readouterr()
    assert cli.run(["eval", "--workdir=moved"]) in (2, 65)
    assert "reviews.csv" in capsys.readouterr().err


def resolved_run(workdir, task: Task, preset="bert_tiny", **data):
    """Writes the definitions of a run of one task, and returns (its config, what it resolves to)."""
    registry.add(task)
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.length, cfg.data.vocabulary = preset, task.name, 32, "bytes"
    cfg.data.update(data)
    made = experiment.resolve(cfg)
    workdir.mkdir(exist_ok=True)
    saved_run.write(made, workdir)
    (workdir / "config.json").write_text(config.to_json(cfg))
    return cfg, made


def rows_of(split):
    return [{"inputs": "a", "targets": "yes"}]


def test_every_run_in_a_workdir_replaces_the_definitions_of_the_one_before(tmp_path, no_tables):
    first = Task("first", Function(rows_of), labels=("yes", "no"))
    resolved_run(tmp_path / "run", first)
    (tmp_path / "run" / "model" / "huggingface.json").write_text("{}")  # of a model that it was imported from
    _, second = resolved_run(tmp_path / "run", dataclasses.replace(first, name="second", labels=("a", "b", "c")))
    assert saved_run.resolve(second.cfg, tmp_path / "run").tasks[0].labels == ("a", "b", "c")
    assert initial_params.classes_of(tmp_path / "run") == ("a", "b", "c")
    assert not (tmp_path / "run" / "model" / "huggingface.json").exists()

    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "model").write_text("damaged")
    resolved_run(tmp_path / "run", first)
    assert initial_params.classes_of(tmp_path / "run") == ("yes", "no")

    class Own(ByteVocabulary):
        pass

    features = {"inputs": Feature(Own()), "targets": Feature(Own())}
    own = Task("own", Function(rows_of), features=features, labels=("x", "y"))
    resolved_run(tmp_path / "run", own, vocabulary="")
    assert saved_run.directory_of(tmp_path / "run") is None  # a class of the user's own cannot be described


def test_only_keys_that_decide_what_the_model_is_need_the_data_again(tmp_path, no_tables):
    _, made = resolved_run(tmp_path / "run", Task("gone", Function(rows_of), labels=("yes", "no")))
    del registry.REGISTRY["gone"]
    for key, value in (("data.length", "16"), ("eval.batch_rows", "4"), ("train.hang_s", "100"), ("mesh", "data=2")):
        changed = config.from_json(tmp_path / "run" / "config.json")
        config.override(changed, key, value)
        assert saved_run.resolve(changed, tmp_path / "run").model == made.model
    config.override(changed, "model.num_encoder_layers", "3")
    with pytest.raises(ConfigError, match="trained on 'gone'"):
        saved_run.resolve(changed, tmp_path / "run")


def test_rows_longer_than_the_positions_are_refused_there_too(tmp_path, no_tables):
    cfg, made = resolved_run(tmp_path / "run", Task("t", Function(rows_of), labels=("yes", "no")))
    cfg.data.length = made.model.max_positions + 1
    with pytest.raises(ConfigError, match=r"exceed model.max_positions"):
        saved_run.resolve(cfg, tmp_path / "run")


def test_a_vocabulary_s_file_may_have_any_name(tmp_path, no_tables):
    (tmp_path / "v").mkdir()
    ids = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "yes", "no"])}
    for name in ("model.json", "tasks.json"):
        tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]")).save(str(tmp_path / "v" / name))
        (tmp_path / "v" / "vocab.txt").write_text("[UNK]")  # export takes it along
        task = Task("t", Function(rows_of), labels=("yes", "no"))
        cfg, made = resolved_run(tmp_path / "run", task, vocabulary=str(tmp_path / "v" / name))
        again = saved_run.resolve(cfg, tmp_path / "run")
        assert again.vocabulary.fingerprint == made.vocabulary.fingerprint
        assert (tmp_path / "run" / "model" / "vocabulary" / "vocab.txt").exists()


def test_only_templates_of_files_are_kept(tmp_path, no_tables):
    """A source of the user's own may have an attribute of that name, and preprocessors may go on from a template."""

    class Own:
        templates = ("Is it {x}?", "{y}")

        def split(self, name):
            return rows_of(name)

    task = Task("t", Own(), labels=("yes", "no"))
    assert saved_run.templates_of(task) == {}
    filled = dataclasses.replace(task, source=NotHere("t", (("inputs", "{a}"),)))
    assert saved_run.templates_of(filled) == {"inputs": "{a}"}
    assert saved_run.templates_of(dataclasses.replace(filled, preprocessors=(str.upper,))) == {}


def test_a_run_from_an_imported_model_keeps_its_settings(tmp_path, no_tables):
    """`model.preset` and the vocabulary are one imported directory, which goes."""
    source, imported = tmp_path / "hf", tmp_path / "imported"
    interchange.export_directory(FAMILIES["gpt2"], random_params(FAMILIES["gpt2"]), source)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"note": "kept"}))
    interchange.import_directory(source, imported)
    cfg = config.base()
    cfg.model.preset, cfg.data.vocabulary, cfg.data.mixture = str(imported), "bytes", "python_docs_classify"
    cfg.model.vocab_size, cfg.data.length, cfg.eval.max_decode_tokens = 384, 32, 12
    resolved = experiment.resolve(cfg)
    (tmp_path / "run").mkdir()
    saved_run.write(resolved, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(config.to_json(cfg))
    shutil.rmtree(imported)
    again = saved_run.resolve(cfg, tmp_path / "run")
    assert again.model == resolved.model and again.converter == resolved.converter
    assert [task.target for task in again.tasks] == [task.target for task in resolved.tasks]
    assert "kept" in (tmp_path / "run" / "model" / "huggingface.json").read_text()
    with pytest.raises(DataError, match="python_docs_classify' is not in the workdir"):
        again.tasks[0].source.split("train")
    (tmp_path / "run" / "model" / "tasks.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"is corrupted: tasks.json"):
        saved_run.resolve(cfg, tmp_path / "run")
