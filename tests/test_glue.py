"""Runs GLUE from files in the published layout: nine recipes, their evaluation, one submission and the average."""

import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import cli, experiment
from t5x_lite import config as configs
from t5x_lite.data import registry
from t5x_lite.data.reader import text_examples
from t5x_lite.errors import DivergedError
from t5x_lite.evaluation import submission
from t5x_lite.reports import glue_average
from t5x_lite.tasks import glue

RECIPES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
ROWS = {"train": 24, "dev": 11, "dev_matched": 11, "dev_mismatched": 10, "test": 9, "test_matched": 8}
ROWS |= {"test_mismatched": 7, "diagnostic": 6}
RECIPE = str(Path(__file__).parents[1] / "configs" / "glue.py")
ALSO = {"mnli": ("mnli_mismatched", "ax")}  # what the model of a recipe also predicts
FIFTHS = {f"{number}.0" for number in range(6)}
PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
MNLI = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2")
MRPC = ("#1 ID", "#2 ID", "#1 String", "#2 String")
STSB = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
PAIR = ("index", "sentence1", "sentence2")
# {folder: {file: its columns}}, as published. A column named after a task's label column holds labels.
COLUMNS = {
    "CoLA": dict.fromkeys(("train", "dev"), ("source", "label", "mark", "sentence")) | {"test": ("index", "sentence")},
    "SST-2": dict.fromkeys(("train", "dev"), ("sentence", "label")) | {"test": ("index", "sentence")},
    "MRPC": dict.fromkeys(("train", "dev"), ("Quality", *MRPC)) | {"test": ("index", *MRPC)},
    "STS-B": dict.fromkeys(("train", "dev"), (*STSB, "score")) | {"test": STSB},
    "QQP": dict.fromkeys(("train", "dev"), ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"))
    | {"test": ("id", "question1", "question2")},
    "MNLI": {"train": (*MNLI, "label1", "gold_label")}
    | dict.fromkeys(("dev_matched", "dev_mismatched"), (*MNLI, *(f"label{n}" for n in range(1, 6)), "gold_label"))
    | dict.fromkeys(("test_matched", "test_mismatched"), MNLI),
    "QNLI": dict.fromkeys(("train", "dev"), ("index", "question", "sentence", "label"))
    | {"test": ("index", "question", "sentence")},
    "RTE": dict.fromkeys(("train", "dev"), (*PAIR, "label")) | {"test": PAIR},
    "WNLI": dict.fromkeys(("train", "dev"), (*PAIR, "label")) | {"test": PAIR},
    "diagnostic": {"diagnostic": PAIR},
}  # fmt: skip
TEXTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String"}


def write_glue(root: Path, *, train: bool) -> str:
    """Writes GLUE's directory with a few invented examples per file, and returns its name."""
    rng = np.random.default_rng(0)
    label_of = {task.folder: task for name, task in glue.SUITE.items() if name != "ax"}
    for folder, files in COLUMNS.items():
        (root / folder).mkdir(parents=True)
        for name, columns in files.items():
            if name == "train" and not train:
                continue
            lines = ["\t".join(columns)] if folder != "CoLA" or name == "test" else []
            for row in range(ROWS[name]):
                cells = {column: str(row) for column in columns}
                cells |= {column: " ".join(rng.choice(("He", '"it"', "ran", "."), 3)) for column in TEXTS & {*columns}}
                if folder in label_of and label_of[folder].label_column in columns:
                    cells[label_of[folder].label_column] = _label(label_of[folder], row)
                lines.append("\t".join(cells.values()))
            (root / folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(root)


def _label(task: glue.Glue, row: int) -> str:
    if not task.labels:
        return f"{row % 6:.3f}"
    names_labels = task.folder in ("MNLI", "QNLI", "RTE")
    return task.labels[row % len(task.labels)] if names_labels else str(row % len(task.labels))


@pytest.fixture(autouse=True)
def own_cache_and_table(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Returns GLUE's directory, and one without training sets."""
    root = tmp_path_factory.mktemp("glue")
    return write_glue(root / "whole", train=True), write_glue(root / "unlabelled", train=False)


def run(*arguments: str) -> None:
    assert cli.run(list(arguments)) == 0


@pytest.mark.parametrize("task", RECIPES)
def test_a_recipe_reads_the_published_columns(directories, task):
    cfg = configs.load(f"{RECIPE}:{task}")
    cfg.data.dir, cfg.model.preset, cfg.data.vocabulary = directories[0], "bert_tiny", "bytes"
    configs.validate(cfg)
    found = experiment.resolve(cfg)
    assert [task.name for task in found.tasks] == [f"glue_{task}"]
    for evaluated in found.eval_tasks:
        definition = glue.SUITE[evaluated.name.removeprefix("glue_")]
        files = {"train": "train", "validation": definition.validation, "test": definition.test}
        for split, file in files.items():
            examples = [example for _, example in text_examples(evaluated, split)]
            assert len(examples) == ROWS[file.removesuffix(".tsv")]
            targets = {example["targets"] for example in examples}
            assert targets == ({registry.UNLABELLED} if split == "test" else {*definition.labels} or FIFTHS)


@pytest.mark.parametrize(
    "tasks", [("stsb", "mnli"), pytest.param(RECIPES, marks=pytest.mark.slow)], ids=["two", "nine"]
)
def test_recipes_train_evaluate_and_write_one_submission(directories, tasks, tmp_path, capsys):
    archive = tmp_path / "glue.zip"
    tiny = {"preset": "bert_tiny", "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 16, "num_encoder_layers": 1}
    flags = [f"--config.model.{key}={value}" for key, value in tiny.items()]
    flags += ["--config.init.checkpoint=", "--config.data.vocabulary=bytes", "--config.train.total_steps=2"]
    flags += ["--config.schedule.warmup_steps=1", "--config.data.batch_rows=8", "--config.data.length=64"]
    flags += ["--config.data.max_examples_per_row=4", "--config.eval.batch_rows=8", "--config.checkpoint.every_steps=2"]
    shown, missing = "", {f"{glue.SUBMISSION[name]}.tsv (glue_{name})" for name in glue.SUITE}
    for task in tasks:
        workdir = tmp_path / "runs" / task
        run("train", f"--config={RECIPE}:{task}", f"--workdir={workdir}", f"--config.data.dir={directories[0]}", *flags)
        capsys.readouterr()
        # The directory without training sets is enough to evaluate and submit.
        run("eval", f"--workdir={workdir}", f"--submission={archive}", f"--config.data.dir={directories[1]}")
        shown = capsys.readouterr().out.splitlines()[-1]
        missing -= {f"{glue.SUBMISSION[name]}.tsv (glue_{name})" for name in (task, *ALSO.get(task, ()))}
        assert {*filter(None, shown.removeprefix(f"{archive}: lacks ").split(", "))} == missing or not missing
    assert missing or shown == f"{archive}: has all 11 files"

    files = {glue.SUBMISSION[name]: glue.SUITE[name] for task in tasks for name in (task, *ALSO.get(task, ()))}
    with zipfile.ZipFile(archive) as found:
        assert sorted(found.namelist()) == sorted(f"{name}.tsv" for name in files)
        for name, task in files.items():
            header, *lines = found.read(f"{name}.tsv").decode().splitlines()
            indices, answers = zip(*(line.split("\t") for line in lines), strict=True)
            assert header == "index\tprediction"
            assert list(indices) == list(map(str, range(ROWS[task.test.removesuffix(".tsv")])))
            if name in ("MNLI-m", "MNLI-mm", "QNLI", "RTE", "AX"):
                assert {*answers} <= {*task.labels}
            elif task.labels:
                assert {*answers} <= {"0", "1"}
            else:
                assert all(0 <= float(answer) <= 5 for answer in answers)

    run("compare", *(str(tmp_path / "runs" / task) for task in tasks))
    shown = " ".join(capsys.readouterr().out.split())
    if missing:
        assert "none, because these runs lack glue_cola, glue_sst2, glue_mrpc, glue_qqp, glue_qnli" in shown
    else:
        assert f"GLUE average of the 9 tasks: {average(tmp_path / 'runs'):.2f}; without WNLI: " in shown
    run("compare", str(tmp_path / "runs" / tasks[0]))
    assert "GLUE average" not in capsys.readouterr().out


@pytest.mark.parametrize(("text", "score"), [("nan", math.nan), ("inf", math.inf), ("neutral", math.nan)])
def test_a_prediction_that_is_not_finite_is_not_submitted(tmp_path, text, score):
    path = tmp_path / "glue.zip"
    rows = [{"index": n, "prediction": "1.0", "score": 1.0} for n in range(3)]
    submission.write(path, {"glue_stsb": rows})
    before = path.read_bytes()
    with pytest.raises(DivergedError, match=r"'glue_stsb': the prediction for test example 3 is not finite"):
        submission.write(path, {"glue_stsb": [*rows, {"index": 3, "prediction": text, "score": score}]})
    assert path.read_bytes() == before
    _, content = glue.submission("glue_stsb", ["nan", "-inf", "2.5"])  # a text that a model generated, invalid like "x"
    assert content.splitlines()[1:] == ["0\t0.000", "1\t0.000", "2\t2.500"]


@given(st.data())
def test_the_average_weighs_tasks_equally_over_any_number_of_runs(data):
    metrics = {"cola": ["matthews"], "stsb": ["pearson", "spearman"], "mrpc": ["f1", "accuracy"]}
    metrics |= {"qqp": ["f1", "accuracy"]}
    runs, scores = [], {}
    for task in RECIPES:
        for _ in range(data.draw(st.integers(1, 2))):
            values = {
                f"glue_{name}": {metric: data.draw(st.floats(0, 100)) for metric in metrics.get(task, ["accuracy"])}
                for name in (("mnli", "mnli_mismatched") if task == "mnli" else (task,))
            }
            runs.append(values | {"glue_ax": {"matthews": 0.0}})
            scores.setdefault(task, []).append(np.mean([v for of_task in values.values() for v in of_task.values()]))
    mean_of = {task: np.mean(values) for task, values in scores.items()}
    shown = glue_average.summary(data.draw(st.permutations(runs)))
    whole, without = (float(number) for number in re.findall(r"\d+\.\d\d", shown))
    assert whole == pytest.approx(np.mean(list(mean_of.values())), abs=0.0051)
    assert without == pytest.approx(np.mean([value for task, value in mean_of.items() if task != "wnli"]), abs=0.0051)


def average(runs: Path) -> float:
    """GLUE's average from the files of metrics: of each task the mean of its metrics, of all tasks the mean."""
    scores = []
    for task in RECIPES:
        values = {}
        for line in (runs / task / "metrics.jsonl").read_text().splitlines():
            values |= json.loads(line)
        names = [
            metric for metric in ("matthews", "f1", "pearson", "spearman") if f"eval/glue_{task}/{metric}" in values
        ]
        names += ["accuracy"] if names in ([], ["f1"]) else []
        keys = [f"eval/glue_{task}/{name}" for name in names]
        keys += ["eval/glue_mnli_mismatched/accuracy"] if task == "mnli" else []
        scores.append(np.mean([values[key] for key in keys]))
    return float(np.mean(scores))
