"""Whatever a user's text holds, tables and pages show it as text, hide its secrets, and nothing fails."""

import html
import json
import logging
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import cli, config, console, redaction
from t5x_lite.data import registry
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.errors import ConfigError
from t5x_lite.reports import attention_page, compare, figures, page, results, run_page, sweep_page
from t5x_lite.reports.loggers import Loggers
from t5x_lite.reports.terminal import Terminal

# Made up, in the form of real ones.
TOKENS = (
    "hf_" + "aB3dE6gH9j" * 4,
    "ghp_" + "aB3dE6gH9j" * 4,
    "github_pat_" + "11ABCDEF0" * 5,
    "glpat-" + "aB3dE6gH9j" * 2,
    "sk-" + "aB3dE6gH9j" * 4,
    "sk-ant-api03-" + "aB3-E6_H9j" * 4,
    "AKIA" + "ABCD2345" * 2,
    "xoxb-" + "123456789012-aBcDeFgH",
)
NAMED = "0123456789abcdef" * 2 + "01234567"  # a key of wandb: only its name tells
SECRETS = {
    **dict.fromkeys(TOKENS, "{}"),
    NAMED: "WANDB_API_KEY={}",
    "me:hunter22": "https://{}@host/a.csv",
    "hunter33": "password={}",
    "Zm9vOmJhcg": "Authorization: Basic {}",
}
PLANTED = [form.format(secret) for secret, form in SECRETS.items()]
HOSTILE = (
    *("[/red]", "[bold]", "[link=file:///x]y[/link]", ":smile:", "<script>alert(1)</script>", "</script>", "<!--"),
    *("../x", "a\nb", "%s %(x)s {x}", "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\r", "$x^$", "| a |", "`b` *c* _d_"),
    *("&lt;", "\\", '"', "'", "\u202etxt", "🙂", " "),
)


ROOT = Path(__file__).parents[1]


def leaked(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


@given(st.sampled_from(PLANTED), st.text(string.printable, max_size=30), st.text(string.printable, max_size=30))
def test_a_secret_is_hidden_wherever_it_stands_in_a_text(planted, before, after):
    """A token is told from the word it stands in by what surrounds it."""
    secret = next(s for s in SECRETS if s in planted)
    text = f"{before} {planted} {after}"
    assert secret not in redaction.redact(text)
    assert redaction.redact(redaction.redact(text)) == redaction.redact(text)
    assert secret not in json.dumps(redaction.redacted({"a": [text, {"b": text}], planted.split("=")[0]: planted}))


@pytest.mark.parametrize(
    "text",
    [
        "eval/t/token_accuracy: 98.65", "token: 512", "unknown key: optimizer.learning_rate", "eos_token='<|end|>'",
        "hf://t5/small@0123456789abcdef0123456789abcdef01234567", "runs/task-abcdefghijklmnopqrstuvwxyz",
        "http://localhost:8080/a@b", "config.eval.max_decode_tokens=64", "data.inputs=password: {password}",
        "hf_t5_small", "sk-learn", "params/token_embedder/embedding", "", "mailto:me@host",
        "checkpoint.mirror=gs://bucket/run", "key=value", "seed=1 token=abc",
    ],
)  # fmt: skip
def test_ordinary_texts_are_left_as_they_are(text):
    assert redaction.redact(text) == text and not redaction.has_secret(text)


@pytest.mark.parametrize("secret", [PLANTED[0], PLANTED[-2]])
def test_a_config_holds_no_secret(secret, tmp_path, capsys):
    """config.json has to hold every value as it is, so a secret is refused, and the message does not repeat it."""
    texts = [name for name, value in config.flat(config.base()).items() if isinstance(value, str)]
    assert len(texts) > 20
    for name in texts:
        with pytest.raises(ConfigError, match=f"{name} holds a password or token") as error:
            config.KEYS[name].check(name, f"a {secret}")
        assert not leaked(str(error.value))
    for name in ("eval.tasks", "data.labels"):
        with pytest.raises(ConfigError, match="holds a password"):
            config.KEYS[name].check(name, ("a", secret))
    workdir = tmp_path / "run"
    command = ["train", f"--config={tmp_path / 'c.py'}", f"--workdir={workdir}"]
    (tmp_path / "c.py").write_text("from t5x_lite import config\nget_config = config.base\n")
    for flag in ("--config.wandb.entity=", "--config.train.total_steps=", "--config.tokenn=", "--tokenn="):
        assert cli.run([*command, flag + secret]) == 2
    with pytest.raises(SystemExit):
        cli.run([secret])
    said = "".join(capsys.readouterr())
    assert not leaked(said) and said.count("[redacted]") >= 4 and not workdir.exists()


def a_run(workdir, texts):
    """Writes the files of a run whose name, config, metrics and predictions are these texts."""
    (workdir / "predictions" / "step_3").mkdir(parents=True)
    cfg = config.base()
    cfg.name = cfg.data.mixture = cfg.wandb.project = f"{workdir.name} {' '.join(texts)}"
    (workdir / "config.json").write_text(config.to_json(cfg))
    metrics = {"train/loss": 1.0} | {f"{kind}/t/{text}": 9.0 for text in texts for kind in ("eval", "baseline")}
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 3} | metrics) + "\n")
    lines = [{"inputs": text, "target": text, "prediction": text, "score": -0.1} for text in texts]
    (workdir / "predictions" / "step_3" / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def everything_shown(tmp_path, texts, capsys) -> tuple[str, str, str]:
    """Returns (what the console shows, all pages, report.md) of runs, sweeps and tables full of these texts."""
    runs = [a_run(tmp_path / name, texts) for name in ("one", "two")]
    pages = [run_page.write(runs[0], len(texts)).read_text()]
    markdown = (runs[0] / "report.md").read_text()
    terminal = Terminal(10, 0)
    terminal.show(results.results_table(results.read_metrics(runs[0]), 3))
    for line in results.sample_lines(runs[0], 3, len(texts)):
        terminal.line(line)
    compare.run(runs, tmp_path / "compare.html")
    pages.append((tmp_path / "compare.html").read_text())
    points = [
        {"point": {"config.name": t, "config.seed": 0}, "mean": 1.0 + i, "sd": None, "runs": [t]}
        for i, t in enumerate(texts)
    ]
    pages.append(sweep_page.page(texts[0], texts[0], True, points, len(points)))
    maps = attention_page.AttentionMaps({"encoder": list(texts)}, {})
    pages.append(attention_page.page(maps, texts[0]))
    for text in texts:
        console.tell(text)
        console.say(text)
        record = logging.LogRecord("t5x_lite", logging.INFO, "", 0, "%s", (text,), None)
        print(console.SafeFormatter("%(message)s").format(record))
    return "".join(capsys.readouterr()), "\n".join(pages), markdown


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_texts_are_shown_as_text(tmp_path, capsys):
    said, pages, markdown = everything_shown(tmp_path, HOSTILE, capsys)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said), "a terminal would obey it"
    pages = re.sub(r"data:image/png;base64,[^\"]*", "", pages)
    for text in HOSTILE:
        shown = console.safe(text)
        assert all(part.strip() in said for part in shown.split("\n"))
        assert html.escape(shown) in pages
    assert "alert(1)</script>" not in pages and "<!--" not in pages.replace("<!doctype", "")
    assert not re.search(r"(?<!\\)[<`|*]script|(?<!\\)[*`<]", markdown)
    table = [line for line in markdown.splitlines() if line.startswith("| t")]
    assert len(table) == 1 + len(HOSTILE)  # and the heading
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}  # its columns, whatever the metric's name


def test_no_secret_is_shown(tmp_path, capsys):
    said, pages, markdown = everything_shown(tmp_path, PLANTED, capsys)
    for shown in (said, pages, markdown.replace("\\", "")):
        assert not leaked(shown) and shown.count("[redacted]") >= len(PLANTED)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_are_drawn_of_any_text():
    rows = [{"target": t, "prediction": t, "score": -0.1} for t in HOSTILE[:8] * 3]
    assert set(figures.of_predictions(rows)) == {"confusion", "calibration"}
    assert figures.curves({text: [(1, 2.0)] for text in HOSTILE}, HOSTILE[0], 3).startswith(b"\x89PNG")


def test_loggers_get_no_secret_and_take_any_text(tmp_path, capsys):
    """Metrics' names and the config go to TensorBoard, wandb and the user's own loggers."""
    received: list = []

    class Own:
        def __init__(self, *given):
            received.append(given)

        def scalars(self, step, values):
            received.append(values)

        def table(self, step, name, rows):
            received.append(rows)
            raise RuntimeError(f"cannot send: {PLANTED}")

    given = config.data(config.base()) | {"note": PLANTED, "api_key": NAMED}
    loggers = Loggers(tmp_path, PLANTED[0], given, 0, own=(Own,))
    loggers.scalars(1, {f"eval/t/{text}": 1.0 for text in HOSTILE})
    loggers.table(1, "predictions/t", [{"inputs": text} for text in PLANTED])
    assert set(loggers.loggers) == {"metrics.jsonl", "TensorBoard"}
    loggers.close()
    assert len(received) == 3 and not leaked(repr(received)) and not leaked("".join(capsys.readouterr()))
    assert results.read_metrics(tmp_path)[0][f"eval/t/{HOSTILE[4]}"] == 1.0
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or not leaked(file.read_bytes().decode(errors="replace")), file


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\nb", "a" * 200, "<b>", "%s/%s", "a\x00"])
def test_a_task_cannot_be_named_so_that_its_files_lie_elsewhere(name):
    with pytest.raises(ConfigError, match="its files are named after it"):
        Task(name, Function(lambda split: []), features={"text": Feature()})
    assert name not in registry.REGISTRY


def test_page_attributes_and_titles_are_escaped():
    for text in (*HOSTILE, *PLANTED):
        whole = page.shell(
            text, page.tag("p", text, title=text), page.table([{text: text}], text), page.image(text, b"")
        )
        assert not leaked(whole) and whole.count("<script") == 0
        assert whole.count(html.escape(console.safe(text))) >= 5


LEAKY = """
import os
from configs_of_the_tests import tiny
from t5x_lite.data import registry
from t5x_lite.data.registry import Mixture
import dataclasses

def broken(targets, predictions):
    raise RuntimeError(f"cannot score: {os.environ['PLANTED']}")

def logger(workdir, run_name, config):
    raise OSError(f"cannot connect: {os.environ['PLANTED']}")

animal = registry.REGISTRY["tiny_animal"]
registry.add(dataclasses.replace(animal, name="leaky", metrics=(broken,), baseline=None))

def get_config():
    cfg = tiny.get_config("gpt2_tiny")
    cfg.data.mixture = "leaky"
    cfg.loggers = (logger,)
    cfg.eval.on_error = "record"
    cfg.train.total_steps = 2
    return cfg
"""


@pytest.mark.slow
def test_no_file_of_a_sweep_holds_a_secret(tmp_path):
    """A planted secret, which the user's code knows, fails in a metric and in a logger."""
    (tmp_path / "leaky.py").write_text(LEAKY)
    (tmp_path / "configs_of_the_tests").symlink_to(ROOT / "tests" / "experiments")
    command = f"[{sys.executable}, -m, t5x_lite.cli, train, --config={tmp_path / 'leaky.py'}, --workdir=$WANDB_RUN_ID]"
    (tmp_path / "s.yaml").write_text(
        "method: grid\nmetric: {name: eval/leaky/loss}\nparameters: {config.seed: {values: [0, 1]}}\n"
        f'command: {command[:-1]}, "${{args}}"]\n'
    )
    keys = {"PLANTED": " ".join(PLANTED), "WANDB_API_KEY": NAMED, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    environment = os.environ | keys
    output, said = tmp_path / "out", ""
    for verb in (f"sweep {tmp_path}/s.yaml --output={output}", f"compare {output}/* --output={tmp_path}/c.html"):
        done = subprocess.run(
            f"{sys.executable} -m t5x_lite.cli {verb}", shell=True, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    contents = [said, *(file.read_bytes().decode(errors="replace") for file in files)]
    assert not any(map(leaked, contents)) and len(files) > 20
    logs = "".join(file.read_text() for file in files if file.name == "output.txt")
    assert "cannot score: [redacted]" in logs and "cannot connect: [redacted]" in logs


def test_a_file_name_that_is_not_utf_8_can_be_printed():
    assert console.safe(b"run\xff".decode(errors="surrogateescape")) == r"run\xdcff"
