"""The order contract: batches are a pure function of (seed, mixture, step), on any hosts and after any stop."""

import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.data import pipeline, preprocess, registry, sources
from t5x_lite.data.convert import DecoderOnly, TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.denoise import UL2
from t5x_lite.data.denoiser import Denoiser
from t5x_lite.data.eval_batches import eval_batches, prompt_batches
from t5x_lite.data.registry import Feature, Mixture, Task
from t5x_lite.data.streams import Stream
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import CheckpointError, ConfigError, DataError

VOCABULARY = ByteVocabulary(extra_ids=50)
ROWS = 16


def documents(split: str) -> list[dict]:
    rng = np.random.default_rng(1)
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    return [{"text": ". ".join(f"{rng.choice(words)} {i}" for _ in range(rng.integers(1, 12)))} for i in range(150)]


def numbered(split: str) -> list[dict]:
    """Registers examples that contain their number and have one of two labels."""
    return [{"inputs": f"{split} {i}", "targets": "odd" if i % 2 else "even"} for i in range(90)]


def shout(example, rng):
    return {**example, "inputs": example["inputs"] + "!" * int(rng.integers(4))}


KEEP = preprocess.keep(lambda e: not e["inputs"].endswith("7"))


@pytest.fixture(autouse=True)
def entries(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", {})
    register()


def register() -> None:
    registry.add(Task("corpus", sources.Function(documents), features={"text": Feature()}))
    registry.add(Task("numbers", sources.Function(numbered), (KEEP, shout), labels=("even", "odd")))
    registry.add(Task("plain", sources.Function(numbered), labels=("even", "odd")))
    registry.add(Task("many", sources.Function(lambda split: 3 * numbered(split)), (KEEP,), labels=("even", "odd")))
    registry.add(Mixture("both", {"corpus": 1, "numbers": 3}))
    registry.add(Mixture("nested", {"both": 1, "plain": 1}))


CONVERTERS = {
    "text_to_text": TextToText(48, 24),
    "decoder_only": DecoderOnly(64),
    "encoder_only": EncoderOnly(64, ("mlm", "nsp", "classification"), max_examples_per_row=4),
}
OBJECTIVES = {
    "ul2": TextToText(60, 60, UL2),
    "rolled": TextToText(48, 24, (Denoiser(random_roll=True, final_sentinel=True),)),
    "prefix_lm": DecoderOnly(64, (Denoiser("prefix_lm"),)),
    "whole_words": EncoderOnly(64, ("mlm", "nsp", "classification"), 0.15, 4, True, 2, True),
}


def train(mixture="nested", converter="text_to_text", pack=True, seed=0, rows=ROWS, prefetch=0, **shard):
    return pipeline.train_batches(
        registry.mixture(mixture),
        (CONVERTERS | OBJECTIVES)[converter],
        VOCABULARY,
        batch_rows=rows,
        seed=seed,
        pack=pack,
        prefetch_batches=prefetch,
        **shard,
    )


def take(batches, n: int) -> list[dict]:
    return list(itertools.islice(batches, n))


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for step, (x, y) in enumerate(zip(a, b, strict=True)):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=f"{name} at step {step}")


def joined(parts: list[list[dict]]) -> list[dict]:
    """Returns the hosts' batches, concatenated by rows."""
    return [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("converter", [*CONVERTERS, *OBJECTIVES])
def test_any_number_of_hosts_sees_the_same_rows(converter, pack):
    whole = take(train(converter=converter, pack=pack), 6)
    for hosts in (2, 4, 8):
        parts = [take(train(converter=converter, pack=pack, shard_index=h, shard_count=hosts), 6) for h in range(hosts)]
        assert_same(joined(parts), whole)


@settings(max_examples=12, deadline=None)
@given(
    mixture=st.sampled_from(["corpus", "numbers", "many", "both", "nested"]),
    converter=st.sampled_from(sorted(CONVERTERS | OBJECTIVES)),
    pack=st.booleans(),
    stop=st.integers(0, 40),
    prefetch=st.sampled_from([0, 2]),
    hosts=st.sampled_from([(1, 1), (2, 1), (1, 4), (4, 8)]),
    seed=st.integers(0, 3),
)
def test_a_resumed_run_goes_on_bit_for_bit(mixture, converter, pack, stop, prefetch, hosts, seed):
    """Stopped on some hosts, state through JSON, resumed on a different number of hosts: the batches are the same."""
    make = functools.partial(train, mixture, converter, pack, seed)
    expected = take(make(), stop + 5)
    before, after = hosts
    states = []
    for host in range(before):
        batches = make(shard_index=host, shard_count=before, prefetch=prefetch)
        take(batches, stop)
        states.append(batches.get_state())
        batches.close()
    state = json.loads(json.dumps(pipeline.merge_states(states)))
    parts = []
    for host in range(after):
        batches = make(shard_index=host, shard_count=after, prefetch=prefetch)
        batches.set_state(state)
        parts.append(take(batches, 5))
        batches.close()
    assert_same(joined(parts), expected[stop:])


def test_the_state_belongs_to_the_batches_handed_out(monkeypatch):
    """A background thread has prefetched more batches; they must not be lost."""
    is_ahead, take_rows, calls = threading.Event(), Stream.take, itertools.count(1)

    def counted(self, rows):
        if next(calls) > 4 * pipeline.stream_count(ROWS):  # the fourth batch is made
            is_ahead.set()
        return take_rows(self, rows)

    monkeypatch.setattr(Stream, "take", counted)
    batches = train(prefetch=2)
    take(batches, 3)
    assert is_ahead.wait(timeout=60)
    state = batches.get_state()
    rest = take(batches, 3)
    assert_same(take(_restored(state), 3), rest)
    batches.set_state(state)  # also on a running pipeline
    assert_same(take(batches, 3), rest)
    batches.close()
    assert_same(take(batches, 2), take(_restored(state), 5)[3:])  # closed and read again


def _restored(state):
    batches = train()
    batches.set_state(state)
    return batches


def test_order_is_a_function_of_the_seed():
    assert_same(take(train(seed=1), 3), take(train(seed=1), 3))
    a, b = take(train(seed=1), 1)[0], take(train(seed=2), 1)[0]
    assert any((a[name] != b[name]).any() for name in a)


def digest(batches: list[dict]) -> str:
    return hashlib.sha256(b"".join(b[name].tobytes() for b in batches for name in sorted(b))).hexdigest()


def test_another_process_makes_the_same_batches():
    """Uses no `hash()` of a string and no set order, which differ between processes. And none needs jax."""
    code = (
        "import sys, test_data_pipeline as t\n"
        "t.register()\n"
        "print(t.digest(t.take(t.train(), 3)), [m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "PYTHONHASHSEED": "123"},
    )
    assert done.stdout.split(" ", 1) == [digest(take(train(), 3)), "[]\n"], done.stderr[-2000:]


def test_adding_a_task_leaves_the_order_of_the_others():
    registry.add(Mixture("one", {"plain": 1}))
    registry.add(Mixture("two", {"plain": 1, "corpus": 1}))
    seen = [_numbers(take(train(m, pack=False), 12)) for m in ("one", "two")]
    assert len(seen[1]) > 20 and set(seen[1]) <= set(seen[0])


def _numbers(batches) -> list[str]:
    texts = [VOCABULARY.decode(row) for b in batches for row in b["encoder_input_tokens"]]
    return [t for t in texts if t.startswith("train ")]


def test_each_epoch_has_every_example_once_in_a_new_order():
    rows = take(train("plain", pack=False, rows=10), 9 * 3)  # three epochs of 90
    numbers = _numbers(rows)
    streams = pipeline.stream_count(10)
    # Streams interleave the order: element n of it is number n // streams of stream n % streams.
    per_stream = [[numbers[i] for i in range(len(numbers)) if i % 10 * streams // 10 == s] for s in range(streams)]
    order = [per_stream[n % streams][n // streams] for n in range(270)]
    epochs = [order[:90], order[90:180], order[180:]]
    assert all(len(set(e)) == 90 for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


@pytest.mark.parametrize("rows", [5, 10, 24])
def test_packing_keeps_the_epochs_apart(rows):
    """Packing windows are longer than these epochs, but none may hold an example of the next epoch."""
    examples = [{"inputs": f"train {i}", "targets": "x" * (i % 19)} for i in range(700)]  # 320 rows
    registry.add(Task("small", sources.Function(lambda split: examples)))
    streams = pipeline.stream_count(rows)
    batches = take(train("small", rows=rows), 800 // rows)
    per_stream: list[list[str]] = [[] for _ in range(streams)]
    for batch in batches:
        for row, (tokens, segments) in enumerate(
            zip(batch["encoder_input_tokens"], batch["encoder_segment_ids"], strict=True)
        ):
            texts = [VOCABULARY.decode(tokens[segments == n]) for n in range(1, segments.max() + 1)]
            per_stream[row * streams // rows] += texts
    for epoch in range(2):
        shares = [(700 * (epoch + 1) + streams - 1 - s) // streams for s in range(streams)]
        begins = [(700 * epoch + streams - 1 - s) // streams for s in range(streams)]
        found = [t for texts, b, e in zip(per_stream, begins, shares, strict=True) for t in texts[b:e]]
        assert len(found) == 700 == len(set(found))
    assert min(len(texts) for texts in per_stream) > 1400 // streams


@pytest.mark.parametrize("converter", ["text_to_text", "encoder_only"])
def test_a_text_met_again_has_other_noise(converter):
    """The mask is fresh in each epoch: one repeated document does not give one repeated row."""
    text = " ".join(f"word {i}" for i in range(9))
    registry.add(Task("one", sources.Function(lambda split: [{"text": text}]), features={"text": Feature()}))
    batches = take(train("one", converter, pack=False), 3)
    name = "decoder_target_tokens" if converter == "text_to_text" else "encoder_input_tokens"
    assert len({row.tobytes() for b in batches for row in b[name]}) > 20


def test_examples_follow_the_rates():
    batches = train("both", pack=False)
    rows = take(batches, 300)
    counts = batches.counters()
    total = counts["examples/corpus"] + counts["examples/numbers"]
    assert total == 300 * ROWS == len(rows) * ROWS
    share = counts["examples/numbers"] / total
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / total) ** 0.5
    assert len(_numbers(rows)) == counts["examples/numbers"]
    assert counts["epochs/numbers"] > 10 > counts["epochs/corpus"] > 0


def test_hosts_that_share_rows_count_once():
    """Two parts, each read by two hosts, as when a tensor axis spans hosts."""
    parts = [train("both", shard_index=part, shard_count=2) for part in (0, 1)]
    states = [take(part, 20) and part.get_state() for part in parts]
    assert pipeline.merge_states(states + states) == pipeline.merge_states(states)
    assert np.sum(states[0]["counts"]) > 0


def test_filtered_examples_never_come_and_random_ones_vary():
    texts = _numbers(take(train("numbers", pack=False), 40))
    assert not any(t.rstrip("!").endswith("7") for t in texts)
    assert len({t for t in texts if t.rstrip("!") == "train 12"}) > 1  # a new draw each epoch


def test_the_state_of_a_long_run_is_small_and_restores():
    """test_data_contract.py checks that restoring needs no replay; benchmarks/data.py measures how long it takes."""
    batches = train(rows=64)
    take(batches, 2)
    state = batches.get_state()
    assert len(json.dumps(state)) < 5_000
    for stream in state["streams"].values():  # the positions of a long run
        stream["drawn"] += 10**9
        stream["tasks"] = pipeline.encode_positions(np.tile([10**7, 0, 0], (3, 1)))
    far = train(rows=64)
    far.set_state(state)
    next(far)
    assert all(stream["drawn"] >= 10**9 for stream in far.get_state()["streams"].values())


def test_another_pipelines_state_is_refused_by_name():
    state = train().get_state()
    for other, name in (
        (train(seed=1), "seed 0 → 1"),
        (train("both"), "mixture"),
        (train(rows=32), "batch_rows 16 → 32"),
        (train(pack=False), "pack True → False"),
        (train(converter="decoder_only"), "converter"),
    ):
        with pytest.raises(CheckpointError, match=name):
            other.set_state(state)
    with pytest.raises(CheckpointError, match=r"lacks streams .*merge_states"):
        train(shard_index=1, shard_count=2).set_state(train(shard_index=0, shard_count=2).get_state())
    with pytest.raises(CheckpointError):
        train().set_state({})


def test_hosts_that_do_not_divide_the_streams():
    with pytest.raises(
        ConfigError, match=r"batch_rows=12 has 4 streams .* by the 8 input processes; use data.batch_rows=16"
    ):
        train(rows=12, shard_count=8)
    with pytest.raises(ConfigError, match=r"by the 3 input processes; use a number of processes that divides 8"):
        train(rows=24, shard_count=3)
    assert [pipeline.stream_count(n) for n in (16, 32, 64)] == [8, 8, 8]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_wrong_label_stops_every_architecture_and_goes_on_stopping(prefetch):
    rows = [{"inputs": f"n {i}", "targets": "maybe" if i == 5 else "yes"} for i in range(20)]
    registry.add(Task("labelled", sources.Function(lambda split: rows), labels=("no", "yes")))
    for converter in CONVERTERS:
        batches = train("labelled", converter, prefetch=prefetch)
        for _ in range(2):
            with pytest.raises(DataError, match=r"'labelled': label 'maybe' is not one of no, yes.*'n 5'"):
                take(batches, 20)
        batches.close()


def test_nothing_to_train_on():
    registry.add(Task("none", sources.Function(lambda split: [])))
    registry.add(Task("dropped", sources.Function(numbered), (lambda e: None,)))
    empty = sources.Function(lambda split: [{"text": ""}, {"text": "  "}])
    registry.add(Task("blank", empty, features={"text": Feature()}))
    with pytest.raises(DataError, match="'none' has no training example"):
        train("none")
    with pytest.raises(DataError, match="'dropped' has no example left of 90"):
        next(train("dropped"))
    with pytest.raises(DataError, match="'blank' has no example left of 2"):
        next(train("blank", "encoder_only"))
    with pytest.raises(DataError, match="needs the field 'text'"):
        registry.add(Task("misnamed", sources.Function(numbered), features={"text": Feature()}))
        next(train("misnamed"))


def test_a_rare_example_is_found():
    """One example in 2,000 survives the filter: a single stream may not see it for more than an epoch."""
    rows = [{"inputs": str(i), "targets": "x"} for i in range(2000)]
    only = preprocess.keep(lambda e: e["inputs"] == "1234")
    registry.add(Task("rare", sources.Function(lambda split: rows), (only,)))
    assert [VOCABULARY.decode(r) for r in next(train("rare", pack=False, rows=8))["encoder_input_tokens"]] == [
        "1234"
    ] * 8


def test_empty_texts_among_others_do_no_harm():
    rows = [{"text": "" if i % 3 else f"some text {i}"} for i in range(60)]
    registry.add(Task("gaps", sources.Function(lambda split: rows), features={"text": Feature()}))
    for converter in CONVERTERS:
        for batch in take(train("gaps", converter), 3):
            weights = next(batch[k] for k in ("decoder_loss_weights", "mlm_weights") if k in batch)
            assert (weights.sum(axis=1) > 0).all()


# ----------------------------------------------------------------------------------------------------- evaluation


def evaluated(name: str, converter: str, **kwargs) -> list[dict]:
    task = registry.REGISTRY[name]
    return list(eval_batches(task, CONVERTERS[converter], VOCABULARY, **kwargs))  # type: ignore[arg-type]


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_sees_every_example_exactly_once(hosts, pack):
    parts = [
        evaluated("plain", "text_to_text", batch_rows=8, pack=pack, shard_index=h, shard_count=hosts)
        for h in range(hosts)
    ]
    assert len({len(p) for p in parts}) == 1  # all hosts take part in all steps
    texts = []
    for batch in joined(parts):
        for ids, segments in zip(batch["encoder_input_tokens"], batch["encoder_segment_ids"], strict=True):
            texts += [VOCABULARY.decode(ids[segments == n]) for n in range(1, segments.max() + 1)]
    assert sorted(texts) == sorted(f"validation {i}" for i in range(90))
    last = joined(parts)[-1]
    assert not pack or last["decoder_loss_weights"].sum() > 0
    unused = last["encoder_segment_ids"].max(axis=1) == 0
    assert (last["decoder_loss_weights"][unused] == 0).all()


@pytest.mark.parametrize("converter", CONVERTERS)
def test_evaluating_a_corpus_twice_gives_the_same_noise(converter):
    assert_same(*[evaluated("corpus", converter, batch_rows=4, pack=True) for _ in range(2)])


def test_a_limit_and_an_absent_split():
    assert (
        sum(b["encoder_segment_ids"][:, 0].sum() for b in evaluated("plain", "text_to_text", batch_rows=8, limit=11))
        == 11
    )
    with pytest.raises(DataError, match=r"'none' has no example in split 'validation'"):
        registry.add(Task("none", sources.Function(lambda split: [])))
        evaluated("none", "text_to_text", batch_rows=4)
    with pytest.raises(ConfigError, match=r"eval\.batch_rows=8: must be a multiple of the 3 processes"):
        evaluated("plain", "text_to_text", batch_rows=8, shard_count=3)


@pytest.mark.parametrize("converter", CONVERTERS)
def test_prompts_come_with_their_texts(converter):
    side = "decoder" if converter == "decoder_only" else "encoder"
    seen = []
    for host in range(2):
        for batch, indices, examples in prompt_batches(
            registry.REGISTRY["plain"],  # type: ignore[arg-type]
            CONVERTERS[converter],
            VOCABULARY,
            batch_rows=8,
            max_new_tokens=8,
            limit=21,
            shard_index=host,
            shard_count=2,
        ):
            assert len(batch[f"{side}_input_tokens"]) == 4 and len(indices) == len(examples)
            for row, (index, example) in enumerate(zip(indices, examples, strict=True)):
                assert example["inputs"] == f"validation {index}"
                used = batch[f"{side}_segment_ids"][row] > 0
                assert example["inputs"] in VOCABULARY.show(batch[f"{side}_input_tokens"][row][used])
            assert (batch[f"{side}_segment_ids"][len(examples) :] == 0).all()
            seen += indices
    assert sorted(seen) == list(range(21))


def test_neither_jax_nor_tensorflow_is_imported():
    """Listing, checking and reading tasks loads no accelerator library."""
    code = (
        "import sys, pkgutil, importlib, t5x_lite.data as d\n"
        "[importlib.import_module('t5x_lite.data.' + m.name) for m in pkgutil.iter_modules(d.__path__)]\n"
        "print([m for m in ('jax', 'tensorflow', 'tensorflow_datasets', 'torch') if m in sys.modules])"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"
