"""What the report says of a run's data."""

from t5x_lite import report


def test_what_was_seen_of_each_task_is_that_of_the_last_log_line():
    def row(step, a, b):
        counts = {"a": a, "b": b}
        return {
            "step": step,
            **{f"train/examples/{k}": float(n) for k, n in counts.items()},
            **{f"train/tokens/{k}": 10.0 * n for k, n in counts.items()},
            **{f"train/epochs/{k}": n / 100 for k, n in counts.items()},
        }

    rows = [row(1, 1, 3) | {"train/task_loss/a": 2.5}, row(2, 2, 6) | {"train/task_loss/b": 1.5}, {"step": 2}]
    a, b = report.seen(rows)
    assert a == {
        "task": "a",
        "examples": "2",
        "share of examples %": 25.0,
        "epochs": 0.02,
        "tokens": "20",
        "share of tokens %": 25.0,
        "training loss": 2.5,
    }
    assert (b["epochs"], b["training loss"]) == (0.06, 1.5)
    assert report.seen([{"step": 0}]) == []


def test_results_go_by_step_and_the_later_evaluation_of_a_step_counts():
    rows = [
        {"step": 0, "baseline/t/accuracy": 10.0, "eval/t/accuracy": 5.0, "eval/t/loss": 4.0},
        {"step": 20, "eval/t/accuracy": 60.0, "eval/t/loss": 1.0},
        {"step": 10, "eval/t/accuracy": 70.0, "eval/t/loss": 2.0},  # `t5x-lite eval --checkpoints=10`, afterwards
        {"step": 20, "eval/t/accuracy": 61.0},
    ]
    accuracy, loss = report.results(rows)
    assert accuracy == {
        "task": "t",
        "metric": "accuracy",
        "baseline": 10.0,
        "untrained": 5.0,
        "last": 61.0,
        "best": 70.0,
        "best step": 10,
    }
    assert (loss["last"], loss["best"], loss["best step"]) == (1.0, 1.0, 20)
