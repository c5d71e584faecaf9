"""Paired runs read the same documents in the same steps, and documents can be kept apart, in every architecture."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from t5x_lite import cli, config, experiment, inspect
from t5x_lite.data import document_steps, pipeline, registry, sources
from t5x_lite.data.convert import DecoderOnly, TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.denoise import UL2
from t5x_lite.data.denoiser import Denoiser
from t5x_lite.data.eval_batches import eval_batches
from t5x_lite.data.registry import Feature, Mixture, Task
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError

VOCABULARY = ByteVocabulary(extra_ids=100)
DOCUMENTS, SIZE = 24, 90  # documents of a step, documents in all: an epoch ends within the fourth step
CONVERTERS = {
    "text_to_text": TextToText(64, 24),
    "ul2": TextToText(64, 64, UL2),
    "decoder_only": DecoderOnly(48),
    "prefix_lm": DecoderOnly(64, (Denoiser("prefix_lm"),)),
    "encoder_only": EncoderOnly(64, ("mlm", "nsp"), max_examples_per_row=4),
}
ROWS = {"ul2": 128, "prefix_lm": 96}  # others: 64


def documents(split: str) -> list[dict]:
    """Returns texts of one letter each, so that a token tells its document: letter number n mod 26, repeated."""
    rng = np.random.default_rng(1)
    return [{"text": chr(97 + i % 26) * int(rng.integers(1, 150))} for i in range(SIZE)]


@pytest.fixture(autouse=True, scope="module")
def tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "REGISTRY", {})
        registry.add(Task("letters", sources.Function(documents), features={"text": Feature()}))
        registry.add(Task("others", sources.Function(documents), features={"text": Feature()}))
        registry.add(Mixture("two", {"letters": 1, "others": 1}))
        yield


def train(name: str, rows: int = 0, apart: bool = False, prefetch: int = 0, per_step: int = DOCUMENTS, **shard):
    converter = CONVERTERS[name]
    if apart and name != "encoder_only":
        converter = dataclasses.replace(converter, join_documents=False)
    return pipeline.train_batches(
        registry.mixture("letters"),
        converter,
        VOCABULARY,
        batch_rows=rows or ROWS.get(name, 64),
        seed=5,
        prefetch_batches=prefetch,
        documents_per_step=per_step,
        **shard,
    )


def steps_of(hosts, count: int) -> tuple[list[dict], list[dict]]:
    """Returns (global batches, documents over all hosts) of the next `count` steps."""
    batches, found = [], []
    for _ in range(count):
        parts = [next(host) for host in hosts]
        batches.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        found.append(document_steps.summed([host.documents for host in hosts]))
    return batches, found


def letters_in(row: np.ndarray, segments: np.ndarray) -> list[set[int]]:
    """Returns the letters that each segment of a row holds."""
    offset = VOCABULARY.encode(["a"])[0][0]
    return [
        set(row[(segments == n) & (row >= offset) & (row < offset + 26)].tolist()) for n in range(1, segments.max() + 1)
    ]


# ------------------------------------------------------------------------------------------ documents of a step


def test_architectures_rows_and_hosts_see_the_same_documents_in_the_same_steps():
    expected = None
    for name, rows, apart in itertools.product(CONVERTERS, (0, 256), (False, True)):
        _, found = steps_of([train(name, rows, apart)], 6)
        assert not any(one["left_out"] for one in found)
        expected = expected or found
        assert found == expected, (name, rows, apart)
    assert len({one["hash"] for one in expected}) == len(expected)
    assert {one["count"] for one in expected} == {DOCUMENTS}


@pytest.mark.parametrize("name", ["text_to_text", "decoder_only", "encoder_only"])
def test_any_number_of_hosts_makes_the_same_rows_of_a_step(name):
    whole, documents_of_whole = steps_of([train(name)], 5)
    for hosts in (2, 4):
        parts, found = steps_of([train(name, shard_index=n, shard_count=hosts) for n in range(hosts)], 5)
        assert found == documents_of_whole
        for a, b in zip(whole, parts, strict=True):
            for array in a:
                np.testing.assert_array_equal(a[array], b[array])


def test_every_document_is_read_once_an_epoch():
    batches, _ = steps_of([train("decoder_only", per_step=30)], 3)  # 3 steps of 30 are one epoch of 90
    read = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in batches])
    tokens = np.concatenate(VOCABULARY.encode([d["text"] for d in documents("train")]))
    np.testing.assert_array_equal(
        np.bincount(read, minlength=VOCABULARY.size)[tokens.min() : tokens.max() + 1],
        np.bincount(tokens, minlength=VOCABULARY.size)[tokens.min() : tokens.max() + 1],
    )


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_restored_state_goes_on_with_the_next_step(prefetch):
    batches, found = steps_of([train("text_to_text")], 6)
    first = train("text_to_text", prefetch=prefetch)
    steps_of([first], 3)
    second = train("text_to_text", prefetch=prefetch)
    second.set_state(json.loads(json.dumps(first.get_state())))
    again, found_again = steps_of([second], 3)
    counts = second.counters()
    for stream in (first, second):
        stream.close()
    assert found_again == found[3:]
    for a, b in zip(batches[3:], again, strict=True):
        for array in a:
            np.testing.assert_array_equal(a[array], b[array])
    whole = train("text_to_text")
    steps_of([whole], 6)
    assert whole.counters() == counts


def test_what_finds_no_room_is_counted_and_said(caplog):
    batches, found = steps_of([train("decoder_only", rows=16, per_step=DOCUMENTS)], 2)
    assert all(one["left_out"] > 0 for one in found) and "left out" in caplog.text and "16" in caplog.text
    _, roomy = steps_of([train("decoder_only", rows=64)], 2)
    assert [one["hash"] for one in found] == [one["hash"] for one in roomy]
    placed = [int((batch["decoder_segment_ids"] > 0).sum()) for batch in batches]
    lengths = [len(ids) + 1 for ids in VOCABULARY.encode([d["text"] for d in documents("train")])]
    assert all(0 < number < sum(lengths) for number in placed)


def test_a_step_s_documents_are_those_of_one_task():
    with pytest.raises(ConfigError, match="2 tasks, letters, others; the documents of a step are those of one task"):
        pipeline.train_batches(
            registry.mixture("two"), CONVERTERS["decoder_only"], VOCABULARY,
            batch_rows=16, seed=0, documents_per_step=8,
        )  # fmt: skip
    few = "has 2 streams of rows for data.documents_per_step=24, and 2 is not divisible by the 4 input processes"
    with pytest.raises(ConfigError, match=f"{few}; use data.batch_rows=64, or a number"):
        train("decoder_only", rows=32, shard_count=4)
    with pytest.raises(
        ConfigError, match=r"documents_per_step=25, and 1 is .*; use a number of processes that divides"
    ):
        train("decoder_only", per_step=25, shard_count=2)


def test_a_stream_that_several_hosts_read_counts_once():
    whole, host = train("text_to_text"), train("text_to_text", shard_index=1, shard_count=2)
    other = train("text_to_text", shard_index=0, shard_count=2)
    _, (expected,) = steps_of([whole], 1)
    _, (found,) = steps_of([host, other, train("text_to_text", shard_index=1, shard_count=2)], 1)
    assert found == expected


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_source_of_which_nothing_is_left_stops_the_run(name):
    def rare(example):
        return example if len(example["text"]) == 1 else None

    texts = sources.Function(lambda split: [{"text": "a" * (1 + (i != 70))} for i in range(90)])
    blank = sources.Function(lambda split: [{"text": ""}] * 30)
    for task in (
        Task("dropped", sources.Function(documents), (lambda e: None,), features={"text": Feature()}),
        Task("blank", blank, features={"text": Feature()}),
        Task("rare", texts, (rare, lambda e: {"text": "some words"}), features={"text": Feature()}),
    ):
        batches = pipeline.train_batches(
            [registry.Rated(task, 1.0)], CONVERTERS[name], VOCABULARY,
            batch_rows=64, seed=5, prefetch_batches=0, documents_per_step=4,
        )  # fmt: skip
        if task.name == "rare":  # most steps have no example
            assert sum(int((next(batches)[f"{side_of(name)}_segment_ids"] > 0).any()) for _ in range(23)) == 1
        else:
            with pytest.raises(DataError, match=f"{task.name}' has no example left of"):
                next(batches)


def side_of(name: str) -> str:
    return "encoder" if name == "encoder_only" else "decoder"


# ----------------------------------------------------------------------------------------------- documents apart


@pytest.mark.parametrize("per_step", [0, DOCUMENTS])
@pytest.mark.parametrize("name", ["text_to_text", "ul2", "decoder_only", "prefix_lm"])
def test_documents_apart_never_share_a_segment_and_joined_ones_do(name, per_step):
    for apart in (True, False):
        batches, _ = steps_of([train(name, apart=apart, per_step=per_step)], 3) if per_step else ([], [])
        if not per_step:
            batches = list(itertools.islice(train(name, apart=apart, per_step=0), 3))
        most = 0
        for batch in batches:
            for side in ("encoder", "decoder"):
                if f"{side}_segment_ids" in batch:
                    rows = zip(batch[f"{side}_input_tokens"], batch[f"{side}_segment_ids"], strict=True)
                    most = max([most, *(len(found) for row, ids in rows for found in letters_in(row, ids))])
        assert (most == 1) if apart else (most > 1)


def test_an_encoder_s_segments_hold_one_document_unless_the_second_text_is_foreign():
    for batch in itertools.islice(train("encoder_only", per_step=0), 3):
        arrays = (batch[name] for name in ("encoder_input_tokens", "encoder_segment_ids", "nsp_targets"))
        for row, ids, is_foreign in zip(*arrays, strict=True):
            for number, found in enumerate(letters_in(row, ids)):
                assert len(found) <= 1 + is_foreign[number] + 2  # up to 2 letters are random replacements of masking


def test_documents_apart_keep_every_token_that_an_example_can_hold():
    """Only a piece of one token is dropped: it would have no target or no context."""
    converter = dataclasses.replace(CONVERTERS["decoder_only"], join_documents=False)
    batches = list(eval_batches(registry.REGISTRY["letters"], converter, VOCABULARY, batch_rows=8, pack=True))
    read = sum(int((batch["decoder_segment_ids"] > 0).sum()) for batch in batches)
    lengths = [len(ids) + 1 for ids in VOCABULARY.encode([d["text"] for d in documents("validation")])]
    assert read == sum(n - (n % converter.length == 1) for n in lengths)


def test_a_state_of_joined_documents_is_refused_for_documents_apart_and_old_states_still_fit():
    joined, apart = train("text_to_text", per_step=0), train("text_to_text", per_step=0, apart=True)
    assert joined.get_state()["fingerprint"]["converter"] == repr(joined._setting.converter)  # as in version 0.2
    with pytest.raises(Exception, match="documents apart"):
        apart.set_state(joined.get_state())


# ------------------------------------------------------------------------------------------------------- a run


def test_a_run_writes_the_documents_of_each_step_also_after_a_resume(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(f"text number {n} about nothing" * (n % 5 + 1) for n in range(300)))
    flags = [
        *(f"--config.data.files={tmp_path / 'a.txt'}", "--config.data.text={text}", "--config.model.d_model=32"),
        *("--config.data.length=64", "--config.data.batch_rows=16", "--config.data.documents_per_step=8"),
        *("--config.eval.every_steps=0", "--config.eval.untrained=False", "--config.eval.max_examples=4"),
        *("--config.model.preset=gpt2_tiny", "--config.model.d_ff=32", "--config.model.num_decoder_layers=1"),
        *("--config.schedule.warmup_steps=1", "--config.optimizer.name=adamw", "--config.checkpoint.every_steps=2"),
    ]
    config = tmp_path / "plain.py"
    config.write_text("from t5x_lite import config\nget_config = config.base\n")
    for steps, name in ((5, "whole"), (3, "parts"), (5, "parts")):
        run = ["train", f"--config={config}", f"--workdir={tmp_path / name}", f"--config.train.total_steps={steps}"]
        assert cli.run([*run, *flags]) == 0, capsys.readouterr().err
    rows = {}
    for name in ("whole", "parts"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows[name] = [
            {k: v for k, v in row.items() if not k.startswith("time")} for row in lines if "documents/hash" in row
        ]
    assert rows["whole"] == rows["parts"]
    assert [row["step"] for row in rows["whole"]] == [1, 2, 3, 4, 5]
    assert all(row["documents/count"] == 8 and row["documents/left_out"] == 0 for row in rows["whole"])


def test_inspect_counts_the_epochs_of_documents_and_the_padding_of_empty_rows():
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.vocabulary = "gpt2_tiny", "letters", "bytes"
    cfg.data.batch_rows, cfg.data.length, cfg.data.documents_per_step = 64, 48, DOCUMENTS
    cfg.train.total_steps = 15
    description = inspect.describe(experiment.resolve(cfg), 1, "train")
    (task,) = description["tasks"]
    assert task["run"]["epochs"] == pytest.approx(15 * DOCUMENTS / SIZE, rel=0.1)
    tokens = sum(len(ids) + 1 for ids in VOCABULARY.encode([d["text"] for d in documents("train")]))
    filled = tokens / SIZE * DOCUMENTS / (64 * 48)
    assert description["padding"] == pytest.approx(1 - filled, abs=0.1) == task["padding"]
