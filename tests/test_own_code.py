"""A config's own model, optimizer, schedule, loss, metric, source and logger: they run, resume, and fail clearly."""

import json
import re
import statistics
from pathlib import Path

import pytest

from t5x_lite import cli, config
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Function
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation import evaluate, scores
from t5x_lite.reports import results

EXAMPLES = Path(__file__).parents[1] / "configs" / "examples"
SMALL = ["--config.model.d_model=16", "--config.model.head_dim=8", "--config.model.d_ff=16", "--config.data.length=32"]
SMALL += ["--config.data.batch_rows=8", "--config.eval.batch_rows=8", "--config.eval.max_examples=8"]
SMALL += ["--config.eval.untrained=false", "--config.schedule.warmup_steps=1", "--config.checkpoint.every_steps=2"]
ONE_LAYER = ("--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1")
# {example: flags}; the others are of a decoder
LAYERS = {"model": (), "without": (), "loss": ONE_LAYER[:1], "metric": ONE_LAYER}
# What config.json records for each example's object, and whether a run resumes without it (with a warning).
REFERENCES = {
    "model": (r"model\.py:BagOfWords#\w+", False),
    "optimizer": (r"optimizer\.py:nadamw#\w+", False),
    "schedule": (r"schedule\.py:triangle#\w+", True),
    "loss": (r"loss\.py:focal_loss#\w+", False),
    "metric": (r"metric\.py:mean_absolute_error#\w+", True),
    "source": (r"source\.py:SourceFiles\(.*\)#\w+", False),
    "logger": (r"logger\.py:CsvLogger#\w+", True),
}


def train(file: Path, workdir: Path, *flags: str) -> int:
    layers = LAYERS.get(file.stem, ONE_LAYER[1:])
    return cli.run(["train", f"--config={file}", f"--workdir={workdir}", *SMALL, *layers, *flags])


def copy(name: str, tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """Copies an example with some of its text replaced."""
    text = (EXAMPLES / f"{name}.py").read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    return file


def test_an_own_optimizer_runs_with_what_wraps_optimizers(tmp_path):
    flags = ["--config.train.spike_sigmas=3", "--config.optimizer.unfreeze_every_steps=1"]
    assert train(copy("optimizer", tmp_path), tmp_path / "run", *flags, "--config.train.total_steps=2") == 0


@pytest.mark.parametrize("name", REFERENCES)
def test_an_example_runs_and_resumes_only_with_its_own_code(name, tmp_path, capsys):
    workdir, (pattern, goes_on) = tmp_path / "run", REFERENCES[name]
    file = copy(name, tmp_path)
    assert train(file, workdir, "--config.train.total_steps=2") == 0
    assert re.search(pattern, (workdir / "config.json").read_text())
    if name == "metric":  # its direction, not its name, decides which step is best
        rows = results.read_metrics(workdir)
        assert results.lower_is_better(rows)("sums/mean_absolute_error")
        assert not results.lower_is_better(rows)("sums/accuracy")
    if name == "logger":
        assert "2,train/loss," in (workdir / "values.csv").read_text()
    if not goes_on:  # else, the run resumes with changed code
        assert train(file, workdir, "--config.train.total_steps=3") == 0
        assert "at step 2" in capsys.readouterr().out

    changed = {
        "model": ("jnp.maximum(is_of", "1.0 * jnp.maximum(is_of"),
        "optimizer": ("b1=0.9", "b1=0.8"),
        "schedule": ("/ CYCLE_STEPS", "/ 1 / CYCLE_STEPS"),
        "loss": ("** 2", "** 3"),
        "metric": ("else 100.0", "else 99.0"),
        "source": ("number % 10 == 0", "number % 10 == 1"),
        "logger": ('open("a"', 'open(mode="a"'),
    }[name]
    code = train(copy(name, tmp_path, changed), workdir, "--config.train.total_steps=4")
    said = "".join(capsys.readouterr())
    assert ("at step 2" in said) == goes_on
    assert code == (0 if goes_on else 2), said
    assert re.search(rf"with a different config.*{pattern}.*→.*{pattern}", said.replace("\n", "")), said


def test_a_run_whose_own_model_is_not_given_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "word_baselines", lambda experiment: {})  # fitted on all docstrings of Python
    file, workdir = copy("model", tmp_path), tmp_path / "run"
    assert train(file, workdir, "--config.train.total_steps=1") == 0
    assert cli.run(["eval", f"--workdir={workdir}"]) == 2
    assert re.search(r"model\.py:BagOfWords#.*give --config=FILE\.py", capsys.readouterr().err)
    assert cli.run(["eval", f"--workdir={workdir}", f"--config={file}"]) == 0
    other = copy("model", tmp_path, ("nn.Dense(self", "nn.DenseGeneral(self"))
    assert cli.run(["eval", f"--workdir={workdir}", f"--config={other}"]) == 2
    assert "Restore the file to its old state" in capsys.readouterr().err
    without = tmp_path / "without.py"
    without.write_text((EXAMPLES / "model.py").read_text().replace("    cfg.model.module = BagOfWords\n", ""))
    assert train(without, workdir, "--config.train.total_steps=2") == 2
    assert re.search(r"model\.module: 'model\.py:BagOfWords#\w+' → None", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "model",
            "config: Any  #",
            "size: int\n    config: Any  #",
            r"model\.module=BagOfWords is called with \(config, ",
        ),
        ("model", "return {", "return 1 / 0 or {", r"model\.module=BagOfWords failed with ZeroDivisionError"),
        ("model", '{"classification":', '{"mlm":', r"BagOfWords returns mlm; the run's tasks need classification"),
        ("model", "(mean_BED)}", "(x_BSD)}", r"'classification' of shape \[8, 32, 9\]; it must be \[8, 1, 9\]"),
        ("optimizer", "def nadamw(schedule)", "def nadamw()", r"optimizer\.name=nadamw is called with \(schedule\)"),
        (
            "optimizer",
            "return optax.nadamw",
            "return optax.nadamv",
            r"name=nadamw failed with AttributeError",
        ),
        (
            "optimizer",
            "return optax",
            "return schedule or optax",
            r"nadamw returns a function; it must return",
        ),
        ("schedule", "triangle(updates)", "triangle()", r"schedule\.name=triangle is called with \(updates\)"),
        ("schedule", "return 1", "return jnp.ones(2)", r"returns an array of shape \[2\]; it must return one"),
        ("loss", "loss(outputs, batch)", "loss(outputs)", r"loss\.name=focal_loss is called with \(outputs, batch\)"),
        ("loss", "class_targets", "clas_targets", r"loss\.name=focal_loss failed with KeyError: 'clas_targets'"),
        (
            "loss",
            "(losses_BE * weights_BE).sum()",
            "losses_BE",
            r"the sum of 'focal' has the shape \[8, 1\]; it must be",
        ),
        (
            "loss",
            'return {"focal": ',
            'return {"f": 0.0, "focal": ',
            r"focal_loss returns .*must return \{name: Los",
        ),
        (
            "metric",
            "error(targets, p",
            "error(p",
            r"metrics=mean_absolute_error is called with \(targets, predictions\)",
        ),
        (
            "metric",
            'return {"',
            'return [] or {0 / 1: "x", "',
            r"metrics=mean_absolute_error returns .*\{name:",
        ),
        ("source", "def split(self, name)", "def split(self)", r"source=SourceFiles.split is called with \(name\)"),
        ("source", '{"text": f.read_text()}', "f.read_text()", r"task 'source_files': its source returned a str"),
        ("logger", "workdir, run_name, config)", "workdir)", r"loggers entry=CsvLogger is called with \(workdir, run"),
    ],
)
def test_wrong_own_code_is_one_clear_error(name, old, new, message, tmp_path, capsys):
    file = copy(name, tmp_path, (old, new))
    assert train(file, tmp_path / "run", "--config.train.total_steps=2") in (2, 65)
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    if name != "metric":  # a metric's values are checked at the end
        assert not (tmp_path / "run" / "checkpoints" / "2").exists()


RATE = "from t5x_lite.data import registry\nadd(registry.Mixture('sums', {'source_files': lambda n: 1 / 0}))\ndef get_c"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "metric",
            "Function(sums), ",
            "Function(sums), (lambda example: {**example, 'inputs': 1 / 0},), ",
            r"the preprocessor <lambda> failed with ZeroDivisionError: .*it was given the fields inputs, targets",
        ),
        ("metric", "cfg = config.base()", "cfg = config.base(1 / 0)", r"config file .* failed: ZeroDivisionError"),
        ("source", 'wanted = name != "train"', "wanted = {}[name]", r"your own code failed"),
        ("source", "[number % 10 == 0 for", "[number % 0 for", r"your own code failed"),
        ("source", "def get_c", RATE, r"your own code failed"),
    ],
)
def test_own_code_that_fails_at_run_time_is_named_with_its_lines(name, old, new, message, tmp_path, capsys):
    """Also where only user code calls a library that raises; no such error is called a bug of t5x_lite."""
    file = copy(name, tmp_path, (old, new))
    mixture = ["--config.data.mixture=sums"] if new == RATE else []
    assert train(file, tmp_path / "run", "--config.train.total_steps=2", *mixture) in (2, 65)
    said = capsys.readouterr().err
    number = file.read_text()[: file.read_text().index(new.splitlines()[0])].count("\n") + 1
    assert re.search(message, said), said
    assert re.search(rf"in your .*{re.escape(str(file))}, line {number + (new == RATE)}\b", said), said
    assert ("Traceback" in said) == (message == "your own code failed") and "a bug in t5x_lite" not in said


def test_a_task_s_own_function_that_fails_in_an_evaluation_is_named_with_its_lines():
    def fails(*_):
        return statistics.fmean([])  # the library's line is not the one to show

    source, example = Function(lambda split: []), {"inputs": "a", "targets": "b"}
    for part in ({"postprocess": fails}, {"reference": fails}, {"metrics": (fails,)}):
        task = Task("t", source, **({"metrics": (lambda targets, predictions: {},)} | part))
        line = fails.__code__.co_firstlineno + 1
        with pytest.raises(ConfigError) as caught:
            scores.of_guesses(task, [example], ["b"])
        what = rf"task 't': {next(iter(part))}=.*fails failed with StatisticsError: .*"
        what += rf"in your {re.escape(__file__)}, line {line}\)"
        assert re.fullmatch(what, str(caught.value)), caught.value


def test_a_logger_that_fails_is_switched_off_and_the_run_goes_on(tmp_path, capsys):
    file = copy("logger", tmp_path, ("def scalars", "def scalar"))
    assert train(file, tmp_path / "run", "--config.train.total_steps=1") == 0
    assert "CsvLogger is off: CsvLogger has no method scalars(step, values)" in capsys.readouterr().err


def test_a_stranger_s_config_json_runs_no_code(tmp_path):
    """References in config.json are only strings; resuming imports none of them."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"optimizer": {"name": "os:system#12345678"}, "loggers": ["os:system#12345678"]}))
    cfg = config.from_json(path)
    assert cfg.optimizer.name == "os:system#12345678" and cfg.loggers == ("os:system#12345678",)
