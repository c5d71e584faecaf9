"""Lengths in epochs and in shares of the run."""

import pytest

from t5x_lite import config, experiment
from t5x_lite.data import registry
from t5x_lite.data.registry import Feature, Task
from t5x_lite.data.sources import Function
from t5x_lite.errors import ConfigError


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", {})
    for name, count in (("forty", 40), ("ten", 10)):
        rows = [{"inputs": f"number {n}", "targets": "odd" if n % 2 else "even"} for n in range(count)]
        registry.add(Task(name, Function(lambda split, rows=rows: rows), labels=("odd", "even")))
    registry.add(registry.Mixture("both", {"forty": 0.8, "ten": 0.2}))
    text = [{"text": "x" * 64 * 8} for _ in range(10)]
    registry.add(Task("corpus", Function(lambda split: text), features={"text": Feature()}))


def made(**changes):
    cfg = config.base()
    cfg.model.preset, cfg.data.vocabulary, cfg.data.pack = "bert_tiny", "bytes", False
    cfg.data.mixture, cfg.data.batch_rows, cfg.data.length = "forty", 8, 64
    for name, value in changes.items():
        config.override(cfg, name.replace("__", "."), str(value))
    config.validate(cfg)
    return experiment.resolve(cfg)


@pytest.mark.parametrize(("mixture", "rows", "expected"), [("forty", 8, 5), ("forty", 4, 10), ("both", 10, 5)])
def test_an_epoch_reads_as_many_examples_as_the_tasks_have(mixture, rows, expected):
    resolved = made(data__mixture=mixture, data__batch_rows=rows, train__total_steps=100)
    assert resolved.steps_per_epoch() == pytest.approx(expected, rel=0.02)


def test_packing_shortens_an_epoch():
    """An example has 10 or 11 tokens, so that a row has 5 or 6."""
    packed = made(data__mixture="forty", data__pack=True, train__total_steps=2000)
    assert 5 / 6 < packed.steps_per_epoch() < 1


def test_lengths_become_steps():
    cfg = made(train__epochs=3, schedule__warmup_steps="20%", schedule__name="linear").cfg
    assert (cfg.train.total_steps, cfg.schedule.warmup_steps, cfg.train.epochs) == (15, 3, 0)
    cfg = made(
        train__total_steps=200, schedule__name="wsd", schedule__warmup_steps="2 epochs", schedule__decay_steps="25%"
    ).cfg
    assert (cfg.schedule.warmup_steps, cfg.schedule.decay_steps) == (10, 50)
    cfg = made(train__total_steps=200, schedule__warmup_steps="30").cfg
    assert cfg.schedule.warmup_steps == 30


def test_the_same_config_has_the_same_lengths_again():
    first, second = (made(train__epochs=7, data__pack=True, schedule__warmup_steps="0.5 epochs").cfg for _ in range(2))
    assert first == second


def test_lengths_that_cannot_be():
    for value in ("5", "x%", "-5%", "2 epoch s"):
        cfg = config.base()
        cfg.data.mixture, cfg.schedule.warmup_steps = "forty", value
        with pytest.raises(ConfigError, match=r"schedule.warmup_steps=.*: must be a number of steps .*'5%'"):
            config.validate(cfg)
    with pytest.raises(ConfigError, match=r"schedule.warmup_steps=15: must be below train.total_steps=15"):
        made(train__epochs=3, schedule__warmup_steps="100%", schedule__name="linear")
