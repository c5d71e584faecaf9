"""The order contract: the global batch at a step is a function of (seed, mixture, step). Hosts, threads, caches and
interruptions do not change it, however tasks are mixed, filtered and packed."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import make_cache, pipeline, preprocess, registry, sources, windows
from t5x_lite.data.convert import DecoderOnly, TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.registry import Feature, Mixture, Task, proportional
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import CheckpointError

VOCABULARY = ByteVocabulary(extra_ids=50)
ROWS, STEPS = 16, 12  # 8 streams; each batch has two rows of each
CONVERTERS = {
    "text_to_text": TextToText(48, 24),
    "decoder_only": DecoderOnly(64),
    "encoder_only": EncoderOnly(64, ("mlm", "nsp", "classification"), max_examples_per_row=4),
}


def documents(split: str) -> list[dict]:
    rng = np.random.default_rng(1)
    return [{"text": ". ".join(f"word {i}" for _ in range(rng.integers(1, 12)))} for i in range(90)]


def numbered(split: str) -> list[dict]:
    return [{"inputs": f"{split} {i} " + "x" * (i % 23), "targets": "odd" if i % 2 else "even"} for i in range(70)]


def shout(example, rng):
    return {**example, "inputs": example["inputs"] + "!" * int(rng.integers(4))}


KEEP = preprocess.keep(lambda e: "7" not in e["inputs"])
LABELS = ("even", "odd")
TASKS = {
    "corpus": Task("corpus", sources.Function(documents), features={"text": Feature()}),
    "plain": Task("plain", sources.Function(numbered), labels=LABELS),
    "filtered": Task("filtered", sources.Function(numbered), (KEEP,), labels=LABELS),
    "random": Task("random", sources.Function(numbered), (KEEP, shout), labels=LABELS),
}


@pytest.fixture(autouse=True, scope="module")
def entries():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "REGISTRY", dict(TASKS))
        yield


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[str, str]:
    out = {}
    for name, converter in CONVERTERS.items():
        out[name] = str(tmp_path_factory.mktemp(name))
        make_cache.run(tuple(TASKS.values()), converter, VOCABULARY, out[name], report=lambda text: None)
    return out


RATES = st.floats(0.2, 5) | st.builds(proportional, st.integers(20, 200), st.just(1.0), st.floats(1, 4))


@st.composite
def mixtures(draw) -> str:
    """Draws the name of a task, or of a mixture of tasks and mixtures, up to three deep."""
    names = sorted(TASKS)
    for depth in range(draw(st.integers(0, 3))):
        members = draw(st.dictionaries(st.sampled_from(names), RATES, min_size=1, max_size=3))
        registry.add(Mixture(f"mixture{depth}", members))
        names = [f"mixture{depth}", *names]
    return names[0] if len(names) > len(TASKS) else draw(st.sampled_from(names))


def take(batches, steps: int) -> list[dict]:
    return [next(batches) for _ in range(steps)]


def assert_same_rows(ours: list[dict], theirs: list[dict], rows: slice) -> None:
    """Asserts, batch by batch, that ours equals those rows of theirs."""
    for step, (mine, whole) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.keys() == whole.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], whole[name][rows], err_msg=f"{name} of batch {step}")


@settings(max_examples=40, deadline=None)
@given(
    mixture=mixtures(),
    converter=st.sampled_from(sorted(CONVERTERS)),
    pack=st.booleans(),
    cached=st.tuples(st.booleans(), st.booleans()),
    hosts=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 2),
    prefetch=st.tuples(*[st.sampled_from([0, 2])] * 2),
    stop=st.integers(0, STEPS),
    seed=st.integers(0, 2**40),
)
def test_the_same_rows_whatever_happens(caches, mixture, converter, pack, cached, hosts, prefetch, stop, seed):
    """Runs some steps on some hosts, stops, passes the state through JSON and runs the rest on a different number of
    hosts, each part with or without cache and thread. Every host's rows equal those of one undisturbed host without
    them."""

    def make(which: int, host: int):
        return pipeline.train_batches(
            registry.mixture(mixture),
            CONVERTERS[converter],
            VOCABULARY,
            batch_rows=ROWS,
            seed=seed,
            pack=pack,
            prefetch_batches=prefetch[which],
            shard_index=host,
            shard_count=hosts[which],
            cache_dir=caches[converter] if cached[which] else "",
        )

    whole = pipeline.train_batches(
        registry.mixture(mixture),
        CONVERTERS[converter],
        VOCABULARY,
        batch_rows=ROWS,
        seed=seed,
        pack=pack,
        prefetch_batches=0,
    )
    expected = take(whole, STEPS)
    states = []
    for host in range(hosts[0]):
        batches = make(0, host)
        assert_same_rows(take(batches, stop), expected[:stop], rows_of(host, hosts[0]))
        states.append(batches.get_state())
        batches.close()
    state = json.loads(json.dumps(pipeline.merge_states(states)))
    for host in range(hosts[1]):
        batches = make(1, host)
        batches.set_state(state)
        assert_same_rows(take(batches, STEPS - stop), expected[stop:], rows_of(host, hosts[1]))
        batches.close()


def rows_of(host: int, hosts: int) -> slice:
    return slice(host * ROWS // hosts, (host + 1) * ROWS // hosts)


def test_far_into_a_run_the_state_is_small_and_restores_at_once(monkeypatch):
    registry.add(Mixture("all", dict.fromkeys(TASKS, 1.0)))
    make = functools.partial(
        pipeline.train_batches,
        registry.mixture("all"),
        TextToText(48, 24),
        VOCABULARY,
        batch_rows=512,
        seed=0,
        prefetch_batches=0,
    )
    batches = make()
    next(batches)
    state = batches.get_state()
    assert len(json.dumps(state)) < 100_000
    for stream in state["streams"].values():
        stream["drawn"] += 10**9
        stream["tasks"] = pipeline.encode_positions(np.tile([10**8, 0, 0], (len(TASKS), 1)))
    converted = []
    convert = windows.Feed.convert
    monkeypatch.setattr(windows.Feed, "convert", lambda self, n: converted.append(n) or convert(self, n))
    again = make()
    again.set_state(state)
    next(again)
    assert min(converted) >= 10**8  # no replay
    restored = len(converted)
    next(make())
    assert restored < 2 * (len(converted) - restored)  # the first batch after a restore costs what any first batch does


def test_the_state_of_a_hundred_tasks_in_64_streams_is_small():
    for n in range(100):
        registry.add(dataclasses.replace(TASKS["plain"], name=f"a_task_with_a_long_name_{n:03}"))
    registry.add(Mixture("hundred", {f"a_task_with_a_long_name_{n:03}": n + 1 for n in range(100)}))
    batches = pipeline.train_batches(
        registry.mixture("hundred"), TextToText(48, 24), VOCABULARY, batch_rows=512, seed=0
    )
    state = batches.get_state()
    rng = np.random.default_rng(0)
    positions = rng.integers(0, [10**7, 400, 400], (100, 3))  # as varied as in a long run
    for stream in state["streams"].values():
        stream |= {
            "drawn": 10**9,
            "emitted": 63,
            "tasks": pipeline.encode_positions(positions + rng.integers(0, 200, (100, 3))),
        }
    state["counts"] = (np.array(state["counts"]) + 123_456_789_012).tolist()
    assert len(json.dumps(state)) < 100_000
    batches.set_state(state)
    with pytest.raises(CheckpointError, match="data state is corrupted"):
        batches.set_state(state | {"streams": {n: s | {"tasks": s["tasks"][:-5]} for n, s in state["streams"].items()}})


def test_counts_are_of_the_whole_run_whoever_reads_them():
    make = functools.partial(
        pipeline.train_batches,
        registry.mixture("filtered"),
        TextToText(48, 24),
        VOCABULARY,
        batch_rows=ROWS,
        seed=0,
        prefetch_batches=0,
    )
    parts = [make(shard_index=host, shard_count=2) for host in range(2)]
    for part in parts:
        take(part, 7)
    state = pipeline.merge_states([part.get_state() for part in parts])
    whole, halves = make(), [make(shard_index=host, shard_count=2) for host in range(2)]
    undisturbed = make()
    take(undisturbed, 7)
    for resumed in (whole, *halves):
        resumed.set_state(state)
    for batches in (whole, undisturbed, *halves):
        take(batches, 4)
    expected = undisturbed.counters()
    assert whole.counters() == pytest.approx(expected)
    summed = sum(half.counters()["tokens/filtered"] for half in halves)
    assert summed == pytest.approx(expected["tokens/filtered"])


def test_the_rows_of_a_window_do_not_come_in_waves():
    """Rows of many short examples and rows of few long ones are equally likely early and late in a packing window."""
    registry.add(Mixture("uneven", {"corpus": 1, "plain": 3}))
    batches = pipeline.train_batches(
        registry.mixture("uneven"),
        DecoderOnly(64),
        VOCABULARY,
        batch_rows=ROWS,
        seed=0,
        task_ids=True,
        prefetch_batches=0,
    )
    corpus = batches.tasks.index("corpus") + 1
    halves = np.zeros((2, 2))
    for step in range(32 * 8):  # eight windows of 64 rows in each stream
        ids = next(batches)["decoder_task_ids"]
        halves[step % 32 // 16] += (ids == corpus).sum(), (ids > 0).sum()
    early, late = halves[:, 0] / halves[:, 1]
    assert abs(early - late) < 0.05


# ------------------------------------------------------------------------------------------------ real processes


def host_process(directory: Path, host: int, hosts: int, steps: int) -> None:
    """Runs one host between two stops: resumes from all hosts' states, if any, logs a digest of each of its rows and
    writes its state."""
    registry.REGISTRY = {**TASKS, "all": Mixture("all", dict.fromkeys(TASKS, 1.0))}
    batches = pipeline.train_batches(
        registry.mixture("all"),
        TextToText(48, 24),
        VOCABULARY,
        batch_rows=ROWS,
        seed=5,
        shard_index=host,
        shard_count=hosts,
    )
    if found := sorted((directory / "stopped").glob("*.json")):
        batches.set_state(pipeline.merge_states(json.loads(path.read_text()) for path in found))
    out = [[digest(batch, row) for row in range(ROWS // hosts)] for batch in take(batches, steps)]
    (directory / f"rows{host}.json").write_text(json.dumps(out))
    (directory / f"state{host}.json").write_text(json.dumps(batches.get_state()))
    batches.close()


def digest(batch: dict, row: int) -> str:
    return hashlib.sha256(b"".join(batch[name][row].tobytes() for name in sorted(batch))).hexdigest()


def run_processes(directory: Path, hosts: int, steps: int) -> list[list[str]]:
    """Returns the digests of the global batches' rows from this many processes, which resume the last ones."""
    code = "import sys, pathlib, test_data_contract as t\n"
    code += "t.host_process(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    here = Path(__file__).parent
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(directory), str(host), str(hosts), str(steps)],
            env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "PYTHONHASHSEED": str(host + 1)},
        )
        for host in range(hosts)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * hosts
    (directory / "stopped").mkdir(exist_ok=True)
    for path in (directory / "stopped").glob("*.json"):
        path.unlink()
    for path in directory.glob("state*.json"):
        path.rename(directory / "stopped" / path.name)
    parts = [json.loads((directory / f"rows{host}.json").read_text()) for host in range(hosts)]
    return [[row for part in batch for row in part] for batch in zip(*parts, strict=True)]


@pytest.mark.parametrize("processes", [(2, 1), (1, 2)])
def test_a_run_moves_between_one_process_and_two_with_the_same_batches(tmp_path, processes):
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    for directory in (moved, whole):
        directory.mkdir()
    rows = run_processes(moved, processes[0], 7) + run_processes(moved, processes[1], 5)
    assert rows == run_processes(whole, 1, 12)
    assert len({row for batch in rows for row in batch}) > 10 * ROWS
