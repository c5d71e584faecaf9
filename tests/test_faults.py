"""What becomes of bad steps, for any sequence of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.errors import DivergedError
from t5x_lite.training.faults import BeginAt, FaultPolicy, Verdict

GOOD, NONFINITE, SPIKE = {"is_finite": 1.0, "is_spike": 0.0}, {"is_finite": 0.0}, {"is_finite": 1.0, "is_spike": 1.0}
MOST = st.integers(0, 4)


@given(policy=st.sampled_from(["stop", "skip"]), run=st.lists(st.sampled_from([GOOD, NONFINITE, SPIKE])), most=MOST)
def test_a_run_stops_when_it_is_told_to_or_after_too_many_bad_steps_in_a_row(policy, run, most):
    faults = FaultPolicy(policy, most)
    for index, metrics in enumerate(run):
        latest = run[index - most : index + 1] if index >= most else [GOOD]
        if GOOD not in latest or (policy == "stop" and metrics is NONFINITE):
            with pytest.raises(DivergedError, match=f"(^| )step {index + 1} is "):
                faults.judge(index + 1, metrics, BeginAt(0), [])
            return
        verdict = faults.judge(index + 1, metrics, BeginAt(0), [])
        assert verdict.begin is None and bool(verdict.problem) == (metrics is not GOOD)


@given(is_bad=st.lists(st.booleans(), max_size=40), save_every=st.integers(1, 5), most=MOST)
def test_a_rollback_goes_back_to_a_checkpoint_and_past_the_bad_batch(is_bad, save_every, most):
    """A run over these batches that saves where its steps are good. A bad batch is read once."""
    faults, begun, rollbacks = FaultPolicy("rollback", most), BeginAt(0), 0
    read_at = {0: 0}  # for each saved step, the number of batches read before it; 0 is the beginning, not a checkpoint
    step = read = 0
    while read < len(is_bad):
        step, read = step + 1, read + 1
        metrics = NONFINITE if is_bad[read - 1] else GOOD
        saved_steps = sorted(read_at.keys() - {0})
        if is_bad[read - 1] and rollbacks == most:
            with pytest.raises(DivergedError, match=f" at step {step} is not finite"):
                faults.judge(step, metrics, begun, saved_steps)
            return
        verdict = faults.judge(step, metrics, begun, saved_steps)
        if not is_bad[read - 1]:
            assert verdict == Verdict()
            if step % save_every == 0:
                read_at[step] = read
            continue
        rollbacks, begun = rollbacks + 1, verdict.begin
        assert begun and begun.step == max(read_at) < step
        assert read_at[begun.step] + begun.skip_batches == read
        step = begun.step
    assert rollbacks == sum(is_bad) <= most


@given(run=st.lists(st.sampled_from([NONFINITE, SPIKE]), min_size=1, max_size=9))
def test_a_spike_is_skipped_where_others_are_rolled_back(run):
    faults = FaultPolicy("rollback", len(run))
    for metrics in run:
        assert (faults.judge(7, metrics, BeginAt(4), [4]).begin == BeginAt(4, 3)) == (metrics is NONFINITE)
