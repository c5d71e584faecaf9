"""Checks a run's pages and tables, and that a user's text never becomes markup in them."""

import json
import re

import pytest

from t5x_lite.reports import attention_page, figures, page, results, run_page, sweep_page
from t5x_lite.reports.terminal import Terminal


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
    a, b = run_page.seen(rows)
    assert a == {
        "task": "a",
        "examples": 2,
        "share of examples %": 25.0,
        "epochs": 0.02,
        "tokens": 20,
        "share of tokens %": 25.0,
        "training loss": 2.5,
    }
    assert (b["epochs"], b["training loss"]) == (0.06, 1.5)
    assert run_page.seen([{"step": 0}]) == []


def test_results_go_by_step_and_the_later_evaluation_of_a_step_counts():
    rows = [
        {"step": 0, "baseline/t/accuracy": 10.0, "eval/t/accuracy": 5.0, "eval/t/loss": 4.0},
        {"step": 20, "eval/t/accuracy": 60.0, "eval/t/loss": 1.0},
        {"step": 10, "eval/t/accuracy": 70.0, "eval/t/loss": 2.0},  # `t5x-lite eval --checkpoints=10`, afterwards
        {"step": 20, "eval/t/accuracy": 61.0},
    ]
    accuracy, loss = results.results(rows)
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


def test_a_step_with_only_invalid_answers_is_best_only_if_all_steps_are_such():
    """An untrained model that writes no label has an ece of 0, because it is sure of nothing and right in nothing."""
    values = {0: (100.0, 0.0, 0.0), 10: (100.0, 0.1, 0.0), 20: (40.0, 30.0, 20.0), 30: (0.0, 12.0, 80.0)}
    names = ("invalid", "ece", "wrong")  # of these, lower is better
    rows = [{"step": 0} | {f"{results.LOWER}t{way}/{name}": 1.0 for name in names for way in ("", "/beam")}]
    for way in ("", "/beam"):
        rows += [
            {"step": s} | dict(zip((f"eval/t{way}/{n}" for n in names), v, strict=True)) for s, v in values.items()
        ]
    for way in ("", "/beam"):
        assert results.best_step(rows, f"t{way}/ece", saved=tuple(values)) == 30
        assert results.best_step(rows, f"t{way}/wrong", saved=tuple(values)) == 20
        assert results.best_step(rows, f"t{way}/ece", saved=(0, 10)) == 0
    assert {row["best step"] for row in results.results(rows) if row["metric"] == "ece"} == {30}
    no_labels = [{"step": 0, "eval/t/loss": 1.0}, {"step": 5, "eval/t/loss": 2.0}]  # training only did harm
    assert results.best_step(no_labels, "t/loss", saved=(0, 5)) == 0


def test_words_intervals_and_glue_s_average_stand_in_both_reports(tmp_path):
    row = {"step": 3, "baseline/glue_cola/matthews": 0.0, "words/glue_cola/matthews": 12.0}
    row |= {"low/glue_cola/matthews": 31.0, "high/glue_cola/matthews": 49.0}
    names = ("sst2", "qnli", "rte", "mnli", "mnli_mismatched", "mrpc", "qqp")
    row |= {"eval/glue_cola/matthews": 40.0, "eval/glue_stsb/pearson": 80.0, "eval/glue_stsb/spearman": 80.0}
    row |= {f"eval/glue_{name}/accuracy": 80.0 for name in names}
    row |= {"eval/glue_mrpc/f1": 80.0, "eval/glue_qqp/f1": 80.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"name": "mine", "model": {"preset": "p"}, "data": {"mixture": "m"}, "train": {"total_steps": 3}})
    )
    folder = tmp_path / "predictions" / "step_3"
    folder.mkdir(parents=True)
    answers = [("yes", "yes"), ("no", "yes"), ("no", "perhaps"), ("yes", "yes")]
    rows = [{"inputs": "x", "target": t, "prediction": p, "score": -0.1} for t, p in answers]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row | {"target": f"a summary of {i}", "prediction": "short"} for i, row in enumerate(rows)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    page = run_page.write(tmp_path, 2).read_text()
    text = (tmp_path / "report.md").read_text()
    assert "| glue_cola | matthews | 0.00 | 12.00 | – | 40.00 | 31.00 | 49.00 | 40.00 | 3 |" in text
    for shown in (page, text):
        assert "GLUE average, each task at its best step: 75.00" in shown  # (40 + 7 · 80) / 8
    assert [f'alt="{name}"' in page for name in ("confusion", "calibration", "lengths")] == [True] * 3
    assert figures.counts_of(rows, ["no", "yes"]) == [[0, 1, 1], [0, 2, 0]]
    assert figures.of_predictions([row | {"target": f"{i}.5"} for i, row in enumerate(rows)]) == {}
    ratings = [{"target": f"{800 + i % 2}.0", "prediction": f"{810.25 + i}", "score": 810.25 + i} for i in range(40)]
    assert figures.of_predictions(ratings) == {}  # few numbers are not classes, nor their score a probability
    digits = [row | {"target": str(i % 2), "prediction": str(i % 3)} for i, row in enumerate(rows * 10)]
    assert set(figures.of_predictions(digits)) == {
        "confusion",
        "calibration",
    }  # a model may generate other numbers


MARKUP = "[bold]:smile:<b>&$x^$"  # of rich, of HTML, and of matplotlib's formulas


def test_text_in_a_page_is_text(tmp_path):
    shown = MARKUP.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    parts = page.table([{MARKUP: MARKUP, "n": 1234}], ""), page.table([], MARKUP), page.image(MARKUP, b"")
    whole = page.shell(MARKUP, *parts, page.tag("p", MARKUP, class_=MARKUP))
    assert whole.count(shown) == 8 and "<b>" not in whole and ">1,234<" in whole
    labels = [{"inputs": MARKUP, "target": f"{MARKUP}{i % 2}", "prediction": MARKUP, "score": -0.1} for i in range(8)]
    folder = tmp_path / "predictions" / "step_3"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 3, f"eval/a/{MARKUP}": 1.0, "eval/$x^$/loss": 1.0}))
    config = {"name": MARKUP, "model": {"preset": MARKUP}, "data": {"mixture": MARKUP}, "train": {"total_steps": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = run_page.write(tmp_path, 2).read_text()
    assert "<b>" not in report and report.count(shown) == 14 and report.count("<img ") == 3


def test_text_on_the_terminal_is_text(capsys):
    terminal = Terminal(10, 0)
    terminal.line(f"line {MARKUP}")
    terminal.show(results.results_table([{"step": 3, f"eval/a/{MARKUP}": 1.0}], 3))
    out = capsys.readouterr().out
    assert f"line {MARKUP}\n" in out and out.count(MARKUP) == 2


def test_metrics_have_curves_and_wrong_answers_a_mark(tmp_path):
    values = {"accuracy": 50.0, "ece": 9.0, "loss": 1.0, "nsp_loss": 1.0, "perplexity": 3.0}
    rows = [{"step": s} | {f"eval/{task}/{n}": v for n, v in values.items() for task in "ab"} for s in (0, 5)]
    rows.append({"step": 5, "eval/a/rouge1": 1.0})  # a single value is no curve
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"name": "n", "model": {"preset": "p"}, "data": {"mixture": "m"}, "train": {"total_steps": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "predictions" / "step_5").mkdir(parents=True)
    answers = [{"inputs": "x", "target": f"{i}", "prediction": f"{i % 2}", "score": -0.1} for i in range(3)]
    (tmp_path / "predictions" / "step_5" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    whole = run_page.write(tmp_path, 3).read_text()
    assert re.findall('<img alt="(.*?)"', whole)[:4] == ["loss curve", "accuracy", "ece", "perplexity"]
    assert "rouge1" not in re.sub("<td.*?</td>", "", whole) and whole.count("✓ yes") == 2 and whole.count("✗ no") == 1


def test_a_page_follows_the_reader_s_screen_and_colours():
    """Only the page's own variables name colours, so a dark page has no dark text; only boxes scroll sideways."""
    whole = page.shell("t", page.table([{"a": 1}], ""))
    assert "<meta name=viewport" in whole and "prefers-color-scheme: dark" in whole
    assert whole.count('<div class="wide"><table>') == whole.count("<table") == 1
    light, dark = (set(re.findall(r"(--\w+): #", block)) for block in whole.split("@media")[0:2])
    assert light == dark == set(re.findall(r"var\((--\w+)\)", whole)) | {"--dim", "--accent", "--right", "--wrong"}
    attention = attention_page.page(attention_page.AttentionMaps({}, {}), "t").split("<script>")[0]
    for style in (page.STYLE, sweep_page.STYLE, attention):
        others = re.sub(r":root \{.*?\}", "", style, flags=re.DOTALL)
        assert not re.search(r"#[0-9a-f]{3}([0-9a-f]{3})?\b|: ?(white|black)\b(?!-)", others)


def test_a_sweep_of_one_parameter_is_a_scatter_plot():
    def rows(**points):
        names = list(points)
        settings = [dict(zip(names, values, strict=True)) for values in zip(*points.values(), strict=True)]
        return [{"point": p, "mean": float(i), "sd": None, "runs": ["r"]} for i, p in enumerate(settings)]

    rates = (0.001, 0.01, 0.1)
    one = sweep_page.drawing("m", rows(**{"config.optimizer.learning_rate": rates, "config.seed": (0, 0, 0)}))
    assert one.count("<circle") == 3 and "<path" not in one and ">optimizer.learning_rate<" in one
    xs, ys = (list(map(float, re.findall(rf'c{axis}="(.*?)"', one))) for axis in "xy")
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2) and ys == sorted(ys, reverse=True)
    two = sweep_page.drawing("m", rows(**{"config.optimizer.learning_rate": rates, "config.seed": (0, 1, 2)}))
    assert two.count("<path") == 3 and "<circle" not in two
    assert sweep_page.drawing("m", rows(**{"config.seed": (0,)})) == sweep_page.drawing("m", []) == ""
