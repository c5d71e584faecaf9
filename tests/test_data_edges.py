"""Cases where data once failed silently or hung."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from t5x_lite.data import packing, pipeline, registry, sources
from t5x_lite.data.convert import TEXT, DecoderOnly, TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.denoiser import Denoiser
from t5x_lite.data.eval_batches import eval_batches, prompt_batches
from t5x_lite.data.preprocess import template
from t5x_lite.data.reader import text_examples
from t5x_lite.data.registry import Feature, Mixture, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import CheckpointError, ConfigError, DataError

BYTES = ByteVocabulary()
CORPUS = {"text": Feature()}


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", {})


def task(name="task", rows=(), **kwargs) -> Task:
    return registry.add(Task(name, Function(lambda split: list(rows)), **kwargs))  # type: ignore[return-value]


def copies(count: int) -> list[dict]:
    return [{"inputs": f"{i} " * (i % 9 + 1), "targets": str(i)} for i in range(count)]


def train(name, converter=None, rows=8, prefetch=0, seed=0, pack=True):
    return pipeline.train_batches(
        registry.mixture(name),
        converter or DecoderOnly(32),
        BYTES,
        batch_rows=rows,
        seed=seed,
        prefetch_batches=prefetch,
        pack=pack,
    )


# ------------------------------------------------------------------------------------------------------- converters


def _corpus(converter, texts):
    rng = np.random.default_rng(0)
    examples = converter.corpus(texts, BYTES, rng)
    return converter.denoise(examples, BYTES, rng) if TEXT in examples else examples


@pytest.mark.parametrize(("length", "targets_length"), [(64, 2), (2, 64), (1, 1)])
def test_no_room_for_span_corruption_is_an_error_and_no_endless_search(length, targets_length):
    with pytest.raises(ConfigError, match=f"data.length={length}, data.targets_length={targets_length}"):
        _corpus(TextToText(length, targets_length), ["some text"])


@pytest.mark.parametrize("density", [0.0, 0.01, 0.15, 0.5])
def test_span_corruption_fits_at_any_density(density):
    examples = _corpus(TextToText(40, 60, (Denoiser(noise_density=density),)), ["x" * 500])
    assert 0 < examples["encoder_input_tokens"].lengths.max() <= 40


def test_null_is_not_the_text_none():
    with pytest.raises(DataError, match="the field 'inputs' of an example is null"):
        DecoderOnly(16).supervised([{"inputs": None, "targets": "x"}], task(), BYTES)


def test_nothing_in_and_nothing_out_has_one_length():
    bare = {"inputs": Feature(add_eos=False), "targets": Feature(add_eos=False)}
    examples, _ = DecoderOnly(16).supervised([{"inputs": "", "targets": ""}], task(features=bare), BYTES)
    assert {tuple(column.lengths) for column in examples.values()} == {(0,)}


def test_a_sentence_longer_than_the_row_is_cut_up_and_none_of_it_lost():
    text = "".join(chr(97 + i % 26) for i in range(200))
    converter = EncoderOnly(23, ("mlm",), mlm_rate=0.01)
    examples = _corpus(converter, [text])
    special = {BYTES.cls_id, BYTES.sep_id}
    found = []
    for i in range(packing.count(examples)):
        example = packing.example(examples, i)
        tokens = example["encoder_input_tokens"].copy()
        tokens[example["mlm_positions"]] = example["mlm_targets"]
        found += [t for t in tokens.tolist() if t not in special]
    assert found == BYTES.encode([text])[0].tolist()


def test_a_document_met_twice_in_a_window_is_no_other_document():
    texts = ["One one one. Two two two."] * 20
    examples = _corpus(EncoderOnly(32, ("mlm", "nsp")), texts)
    assert packing.count(examples) == 20 and not examples["nsp_targets"].values.any()


# --------------------------------------------------------------------------------------------------------- pipeline


def test_the_order_a_mixture_is_written_in_does_not_matter():
    task("a", copies(50))
    task("b", copies(50))
    registry.add(Mixture("ab", {"a": 1, "b": 2}))
    registry.add(Mixture("ba", {"b": 2, "a": 1}))
    one, other = next(train("ab")), next(train("ba"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("pack", [False, True])
def test_counters_go_on_after_a_restart_as_if_there_had_been_none(pack, prefetch):
    task(rows=[{"inputs": "i" * (i % 60), "targets": "t"} for i in range(100)])
    whole = train("task", prefetch=prefetch, pack=pack)
    counted = []
    for _ in range(12):
        next(whole)
        counted.append(whole.counters())
        state = whole.get_state()
        if len(counted) == 5:
            half = state
    whole.close()
    assert counted[0]["examples/task"] > 0 and 0 < counted[-1]["truncated"] < 1
    for again in (train("task", prefetch=prefetch, pack=pack), whole):  # a new process, and the same one rolled back
        again.set_state(half)
        for expected in counted[5:]:
            next(again)
            assert again.counters() == pytest.approx(expected)
        again.close()


CONVERTERS = (TextToText(16, 8), DecoderOnly(24), EncoderOnly(16, ("classification",)))


@pytest.mark.parametrize("converter", CONVERTERS, ids=lambda converter: type(converter).__name__)
def test_what_is_too_long_is_truncated_skipped_or_an_error(converter):
    task(rows=[{"inputs": "i" * (99 if i % 4 == 2 else 3), "targets": "t"} for i in range(40)], labels=("t", "u"))
    side = "decoder" if isinstance(converter, DecoderOnly) else "encoder"

    def lengths(on_long: str) -> tuple[set[int], dict[str, float]]:
        batches = train("task", dataclasses.replace(converter, on_long=on_long), pack=False)
        segments = [next(batches)[f"{side}_segment_ids"] for _ in range(20)]
        return set(np.concatenate(segments).sum(axis=1).tolist()), batches.counters()

    (truncated, counted), (left, also_counted) = lengths("truncate"), lengths("skip")
    assert len(truncated) == 2 and left == {min(truncated)} and max(truncated) == converter.length
    assert counted["truncated"] == pytest.approx(0.25, abs=0.1) and "skipped_long" not in counted
    assert also_counted["skipped_long"] == pytest.approx(0.25, abs=0.1) and "truncated" not in also_counted
    with pytest.raises(DataError, match=r"task 'task', example \d+ of 'train': .* does not fit in a row \(.*coder \d"):
        lengths("error")
    task(rows=[{"inputs": "i" * 99, "targets": "t"}], labels=("t", "u"))
    with pytest.raises(DataError, match=r"no example left of 1 .*all too long"):
        lengths("skip")


def broken(example):
    return {**example, "inputs": example["inputs"] + example["more"]}


BAD_EXAMPLES = {
    "label": ({"targets": "z"}, r"label 'z' is not one of x, y"),
    "field": ({"more": None}, r"the field 'more' is null"),
    "bug": (
        {"more": 7},
        r"preprocessor broken failed with TypeError: .*test_data_edges.py, line \d+\); it was given",
    ),
}


@pytest.mark.parametrize("kind", BAD_EXAMPLES)
def test_a_bad_example_is_an_error_that_says_where_or_left_out_and_counted(tmp_path, kind, caplog):
    """Also for a Python function, and for a file with a task's own preprocessors."""
    change, says = BAD_EXAMPLES[kind]
    rows = [{"inputs": f"{i}", "more": "m", "targets": "xy"[i % 2]} for i in range(40)]
    for i in (5, 18):
        rows[i] |= change
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = {"preprocessors": (template(note="{more}"), broken), "labels": ("x", "y")}
    of_file = Task("of_file", sources.Jsonl({"train": str(path)}), **how)  # type: ignore[arg-type]
    of_function = Task("of_function", Function(lambda split: rows), **how)  # type: ignore[arg-type]
    for bad, where in ((of_file, rf"{path}:(6|19): "), (of_function, r"example (5|18) of 'train': ")):
        registry.add(bad)
        with pytest.raises(DataError, match=f"{where}.*{says}"):
            [next(train(bad.name, pack=False)) for _ in range(9)]
        with pytest.raises(DataError, match=f"{where}.*{says}"):
            list(text_examples(bad, "train"))
        registry.tolerate(bad.name, 0.01)
        with pytest.raises(
            DataError, match=r"2 of 40 examples are bad, .*max_bad_fraction=0.01; correct .*The first: .*" + where
        ):
            [next(train(bad.name, pack=False)) for _ in range(9)]
        registry.tolerate(bad.name, 0.05)
        batches = train(bad.name, pack=False)
        seen = {BYTES.decode(row) for _ in range(20) for row in next(batches)["decoder_target_tokens"]}
        assert any(text.startswith("4m") for text in seen) and not any(text.startswith("5") for text in seen)
        assert batches.counters()["bad"] > 2
        assert len(list(text_examples(registry.REGISTRY[bad.name], "train"))) == 38  # type: ignore[arg-type]
        assert f"task {bad.name!r}: skipping bad examples, 2 of 40 checked are bad" in caplog.text


def test_a_bad_record_of_a_tasks_own_file_is_left_out_too(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_bytes(b"fine\n" * 30 + b"caf\xe9\n")
    source = sources.Text({"train": str(path)})
    assert len(Task("lines", source, features=CORPUS, max_bad_fraction=0.1).source.split("train")) == 30
    with pytest.raises(DataError, match=r"rows.txt:31: byte 0xe9"):
        Task("lines", source, features=CORPUS).source.split("train")


def test_a_file_replaced_under_a_run_is_refused_by_name(tmp_path):
    """Even if the new file has as many rows and bytes."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in copies(40)))
    registry.add(Task("rows", sources.Jsonl({"train": str(path)})))
    batches = train("rows")
    next(batches)
    state = batches.get_state()
    train("rows").set_state(state)
    path.write_text(path.read_text().replace('"targets": "7"', '"targets": "8"'))
    with pytest.raises(CheckpointError, match=r"differs from the data this run was trained on: tasks\.rows\.source "):
        train("rows").set_state(state)


def test_another_vocabulary_is_refused_by_name():
    task(rows=copies(40))
    state = train("task").get_state()
    other = pipeline.train_batches(
        registry.mixture("task"), DecoderOnly(32), ByteVocabulary(extra_ids=5), batch_rows=8, seed=0
    )
    with pytest.raises(CheckpointError, match=r"differs from the data this run was trained on: vocabulary '"):
        other.set_state(state)


def test_closing_leaves_no_thread_and_costs_no_batch():
    task(rows=copies(100))
    plain, prefetched = train("task"), train("task", prefetch=3)
    before = threading.active_count()
    for _ in range(4):
        expected, got = next(plain), next(prefetched)
        assert threading.active_count() == before + 1
        prefetched.close()
        assert threading.active_count() == before
        assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_evaluating_nothing_is_an_error():
    task("empty", [{"text": ""}] * 3, features=CORPUS)
    task("dropped", copies(3), preprocessors=(lambda example: None,))
    with pytest.raises(DataError, match="all texts of split 'test' are empty"):
        list(eval_batches(registry.REGISTRY["empty"], DecoderOnly(16), BYTES, batch_rows=2, split="test"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no example left of 3 in split 'validation'"):
        list(eval_batches(registry.REGISTRY["dropped"], DecoderOnly(16), BYTES, batch_rows=2))  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- sources


def test_a_csv_error_names_the_line_its_record_begins_in(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,b\n1,"two\nlines"\n"3\nlines"\n')
    with pytest.raises(DataError, match=r"table.csv:4: 1 columns; the header has 2 \(a, b\)"):
        sources.Csv({"train": str(path)}).split("train")
    path.write_text('a,b\n1,2\n3,"left open\n5,6\n7,8\n')
    with pytest.raises(DataError, match=r"table.csv:3: .*quote left open"):
        sources.Csv({"train": str(path)}).split("train")


def test_two_columns_of_one_name_are_an_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("text,label,text\n1,2,3\n")
    with pytest.raises(DataError, match="two columns are named 'text'"):
        sources.Csv({"train": str(path)}).split("train")


def test_a_long_document_is_no_open_quote(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(sources.Csv({"train": str(path)}).split("train")[0]["text"]) == 200_000


def test_tfds_reads_a_real_data_set_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"text": f"Grüße {i}", "label": i % 2}) for i in range(5))

    TinyReviews(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = sources.Tfds("tiny_reviews", splits={"train": "train"}, data_dir=str(tmp_path))
    examples = source.split("train")
    assert sorted(examples[i]["text"] for i in range(len(examples))) == [f"Grüße {i}" for i in range(5)]
    with pytest.raises(DataError, match="cannot open the TFDS data set 'tiny_reviewz'"):
        sources.Tfds("tiny_reviewz", data_dir=str(tmp_path)).split("train")


@pytest.mark.parametrize("converter", [TextToText(16, 8), DecoderOnly(32)])
def test_a_host_without_an_example_in_the_last_group_takes_part(converter):
    """5 examples in rows of 4 on two hosts: the second host has none of the last group and must stay in step."""
    pairs = registry.add(task(rows=[{"inputs": f"{i}", "targets": "x"} for i in range(5)]))
    per_host = [
        list(
            prompt_batches(
                pairs,
                converter,
                ByteVocabulary(),
                batch_rows=4,
                max_new_tokens=4,
                split="train",
                shard_index=host,
                shard_count=2,
            )
        )
        for host in range(2)
    ]
    assert [[indices for _, indices, _ in batches] for batches in per_host] == [[[0, 1], [4]], [[2, 3], []]]
    empty = per_host[1][1][0]
    assert {name: array.shape for name, array in empty.items()} == {
        name: array.shape for name, array in per_host[0][0][0].items()
    }
    assert not any(array.any() for array in empty.values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ("y", "x")}, "labels"),
        ({"segments": ("inputs", "more")}, "segments"),
        ({"features": {"inputs": Feature(add_eos=False), "targets": Feature()}}, "add_eos.inputs True → False"),
    ],
)
def test_what_makes_targets_of_examples_is_part_of_a_tasks_identity(change, says):
    rows = [{"inputs": "a", "targets": "x"}]
    before, after = (
        registry.identity(task(rows=rows, labels=("x", "y"))),
        registry.identity(task(rows=rows, **{"labels": ("x", "y")} | change)),
    )
    (difference,) = registry.differences(before, after)
    assert says in difference
    changed = [{"inputs": str(i), "targets": "x"} for i in range(1000)]
    assert registry.identity(task(rows=changed)) != registry.identity(
        task(rows=[*changed[:5], {"inputs": "5!", "targets": "x"}, *changed[6:]])
    )


@pytest.mark.parametrize(
    ("text", "example", "says"),
    [
        ("{title}", {"title": None}, "is null"),
        ("{titel}", {"title": "t"}, "has no 'titel'"),
        ("{a[b]}", {"a": {"c": "d"}}, r"the field 'a\[b\]' has no 'b'"),
        ("{a}", {"a": {"c": "d"}}, "is an object"),
        ("{a}", {"a": [["b"], ["c"]]}, r"is a list of lists, which cannot be joined \(name one: a\[0\]\)"),
        ("{a!r}", {"a": "b"}, "has no 'a!r'"),
    ],
)
def test_a_template_writes_no_none(text, example, says):
    with pytest.raises(DataError, match=says):
        template(inputs=text)(example)
    assert template(inputs="{a[0]} {b}")({"a": ["x"], "b": ["y", "z"]})["inputs"] == "x y z"
    for wrong in ("{", "}", "{}", "{a{b}}"):
        with pytest.raises(ConfigError, match="template"):
            template(inputs=wrong)


def test_a_table_may_begin_with_an_empty_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ntext,label\nfine,a\n")
    assert list(sources.Csv({"train": str(path)}).split("train")) == [{"text": "fine", "label": "a"}]
