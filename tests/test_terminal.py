"""Checks what the terminal shows of a run's progress: the phase, the time left, and notices on lines of their own."""

import os
import types
from unittest import mock

import pytest

from t5x_lite.cluster import guard
from t5x_lite.reports import terminal


@pytest.fixture
def clock():
    """A clock for Terminal and rich that moves only if a test moves it."""
    now = types.SimpleNamespace(s=1000.0)
    fake = types.SimpleNamespace(monotonic=lambda: now.s)
    with mock.patch.object(terminal, "time", fake), mock.patch("rich.console.monotonic", fake.monotonic):
        yield now


def test_the_time_left_does_not_count_compilation(clock, capsys):
    """Compiling takes 600 s, each step 2 s."""
    shown = terminal.Terminal(100, 40)
    shown.compiling()
    clock.s += 600
    for step in range(41, 51):
        shown.advance(step)
        if step in (41, 50):
            shown.train(step, loss=1.0, tokens_per_s=10.0, padding=0.5)
        clock.s += 2
    compiling, first, tenth = capsys.readouterr().out.splitlines()
    assert compiling == "compiling the training step"
    assert first == "step 41/100  loss 1.000  10 tokens/s  padding 50.0%"  # one step tells nothing yet
    assert tenth.endswith("padding 50.0%  ETA 1:40")  # 50 steps


def test_the_bar_says_what_goes_on_and_how_long_it_takes(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = terminal.Terminal(100, 40)
    bar = shown._bar
    assert bar is not None
    try:
        (task,) = bar.tasks
        assert task.description == "starting"
        shown.compiling()
        assert task.description == "compiling the training step"
        clock.s += 600
        for step in range(41, 51):
            shown.advance(step)
            assert task.description == "training"
            clock.s += 2
        assert task.completed == 50 and task.time_remaining == pytest.approx(100, abs=2)
        shown.train(50, loss=1.0, tokens_per_s=10.0, padding=0.5)
        assert task.description == "loss 1.000  10 tokens/s  padding 50.0%"
    finally:
        shown.close()


def test_a_notice_begins_on_its_own_line_on_a_terminal_only(monkeypatch):
    read, pipe = os.pipe()
    main, terminal_fd = os.openpty()
    for fd, reader, expected in ((pipe, read, b"t5x-lite: x\n"), (terminal_fd, main, b"\r\nt5x-lite: x\r\n")):
        monkeypatch.setattr(guard, "STDERR", fd)
        guard._say("x")
        assert os.read(reader, 99) == expected
    for fd in (read, pipe, main, terminal_fd):
        os.close(fd)
