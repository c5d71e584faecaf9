"""Every moment of a run belongs to one span, and none is lost."""

import contextlib
import types
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.reports import goodput
from t5x_lite.reports.goodput import SPANS, Clock

# Seconds that pass, or a span: its name, what happens in it, and whether an exception ends it.
HAPPENINGS = st.recursive(
    st.integers(1, 9),
    lambda inner: st.tuples(st.sampled_from(sorted(SPANS)), st.lists(inner, max_size=4), st.booleans()),
    max_leaves=12,
)


@given(before=st.lists(HAPPENINGS, max_size=4), after=st.lists(HAPPENINGS, max_size=4), taken=st.booleans())
def test_a_second_goes_to_the_innermost_span_however_it_ends(before, after, taken):
    now_s, expected_s = 100, dict.fromkeys(SPANS, 0)

    def happens(one, around: str) -> None:
        nonlocal now_s
        if isinstance(one, int):
            now_s += one
            expected_s[around] += one
            return
        name, inner, fails = one
        with contextlib.suppress(ZeroDivisionError), clock.span(name):
            for part in inner:
                happens(part, name)
            if fails:
                raise ZeroDivisionError

    with mock.patch.object(goodput, "time", types.SimpleNamespace(monotonic=lambda: now_s)):
        clock, parts = Clock(), []
        for one in before:
            happens(one, "start")
        if taken:
            parts.append(clock.take())
        clock.steps_begin()
        for one in after:
            happens(one, "step")
        parts.append(clock.take())
        assert not any(clock.take().values())
    assert {name: sum(part[name] for part in parts) for name in SPANS} == expected_s
    assert sum(sum(part.values()) for part in parts) == now_s - 100
