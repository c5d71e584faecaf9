"""A run ends before its last step when its metric stops improving, or when its time is over."""

import json
from pathlib import Path

import pytest

from t5x_lite import cli, config, early_end
from t5x_lite.cluster.guard import Guard
from t5x_lite.data.pipeline import TrainBatches

CONFIG = str(Path(__file__).parent / "experiments" / "tiny.py")
FLAGS = ["train", f"--config={CONFIG}:bert_tiny", "--config.data.mixture=tiny_animal", "--config.eval.untrained=false"]
BEST = "--config.checkpoint.keep_best=tiny_animal/accuracy"


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[int]:
    return [row["step"] for row in rows(workdir) if "train/loss" in row]


def test_patience_ends_a_run_that_does_not_improve(tmp_path, capsys):
    still = ["--config.optimizer.learning_rate=0", "--config.train.total_steps=40", "--config.eval.every_steps=2"]
    command = [*FLAGS, f"--workdir={tmp_path}", BEST, *still, "--config.train.patience=2"]
    assert cli.run(command) == 0
    out = capsys.readouterr().out
    assert "ended at step 6 of 40: tiny_animal/accuracy was best at step 2" in " ".join(out.split())
    assert (tmp_path / "report.html").exists() and (tmp_path / "checkpoints" / "6").exists()
    assert cli.run(command) == 0  # again: nothing more is trained
    assert losses(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert cli.run([*command, "--config.train.patience=3"]) == 0
    assert losses(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_metric_for_which_lower_is_better_is_judged_so(tmp_path):
    names = {"lower_is_better/t/loss": 1.0}
    values = {"loss": (3.0, 2.0, 1.0), "accuracy": (3.0, 2.0, 1.0)}
    lines = [{"step": n, f"eval/t/{name}": v} for name, of in values.items() for n, v in enumerate(of, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [{"step": 1, **names}, *lines]))
    for metric, ends in (("loss", False), ("accuracy", True)):
        cfg = config.base()
        cfg.train.patience, cfg.checkpoint.keep_best = 2, f"t/{metric}"
        assert bool(early_end.reason(cfg, tmp_path, 1.0)) == ends


def test_hours_end_a_run_which_is_then_saved_and_evaluated(tmp_path, capsys, monkeypatch):
    """The time ends after the fifth batch, however long compiling took."""
    taken, limits, limit, following, reason = [], [], Guard.limit, TrainBatches.__next__, early_end.reason

    def limited(self, seconds):
        limits.append((self, seconds))
        if taken:
            limit(self, seconds)

    def counted(self):
        taken.append(None)
        if len(taken) == 5:
            limit(*limits[0])
        return following(self)

    monkeypatch.setattr(TrainBatches, "__next__", counted)
    monkeypatch.setattr(Guard, "limit", limited)
    monkeypatch.setattr(early_end, "reason", lambda *arguments: reason(*arguments) if len(taken) > 4 else "")
    command = [
        *FLAGS,
        f"--workdir={tmp_path}",
        "--config.train.total_steps=100000",
        "--config.checkpoint.every_steps=5000",
    ]
    command += ["--config.eval.every_steps=0", "--config.train.log_every_steps=100", "--config.train.max_hours=0.0003"]
    assert cli.run(command) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "of 100000: train.max_hours=0.0003 are over" in out
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert limits[0][1] == pytest.approx(1.08) and 0 < step < 5000
    assert any(row["step"] == step and "eval/tiny_animal/accuracy" in row for row in rows(tmp_path))
    assert cli.run(command) == 0
    assert [int(path.name) for path in (tmp_path / "checkpoints").iterdir()] == [step]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.patience=2"], "train.patience=2 needs a metric; set checkpoint.keep_best"),
        (["--config.train.patience=2", BEST, "--config.eval.every_steps=0"], "eval.every_steps above 0"),
        (
            ["--config.train.patience=2", "--config.checkpoint.keep_best=tiny_animal/speed"],
            "is not a metric of this run; it has",
        ),
    ],
)
def test_patience_without_a_metric(flags, message, tmp_path, capsys):
    assert cli.run([*FLAGS, f"--workdir={tmp_path}", *flags]) == 2
    assert message in capsys.readouterr().err
