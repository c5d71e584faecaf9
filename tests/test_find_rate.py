"""The verb find-rate: its suggestion, and that it saves nothing."""

from pathlib import Path

import numpy as np
import pytest

from t5x_lite import cli, find_rate
from t5x_lite.errors import ConfigError

CONFIG = f"--config={Path(__file__).parent / 'experiments' / 'tiny.py'}:bert_tiny"


def test_the_suggestion_is_where_a_known_curve_is_steepest():
    rates = np.geomspace(1e-6, 1, 200).tolist()
    curve = [3 - 1 / (1 + np.exp(-3 * (np.log(rate) - np.log(1e-3)))) + 100 * rate**2 for rate in rates]
    assert find_rate.steepest(rates, curve) == pytest.approx(1e-3, rel=0.2)
    with pytest.raises(ConfigError, match="the loss never falls"):
        find_rate.steepest(rates, sorted(curve))


def test_the_verb_prints_a_rate_and_draws_a_curve(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["find-rate", CONFIG, "--config.data.mixture=tiny_animal", "--steps=40", "--output=curve.png"]
    assert cli.run(flags) == 0
    out = " ".join(capsys.readouterr().out.split())
    rate = float(out.split("falls fastest at ")[1].split(";")[0])
    assert 1e-6 < rate < 1
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    assert cli.run([*flags, "--lowest=1", "--highest=0.1"]) == 2
    assert "lowest must be above 0 and below highest" in capsys.readouterr().err
