"""Real data as tasks, each in a line or two: what is inferred, its counts, and rows for the models."""

import itertools
from pathlib import Path

import pytest

from t5x_lite import cli
from t5x_lite.data import pipeline, registry
from t5x_lite.data.convert import DecoderOnly, TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.targets import Number
from t5x_lite.data.vocabularies import load
from t5x_lite.tasks.files import discover

SHARED = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the folder of real data is not on this machine")
LANGUAGES = "{en,de}.gz"


@pytest.fixture(autouse=True)
def own_cache_and_table(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(registry, "REGISTRY", {})


def counts(task) -> tuple[int, ...]:
    files = task.source.source.files
    return tuple(len(task.source.split(split)) for split in files)


def rows(task, converter, vocabulary, count: int = 3):
    """Returns the first batches of 8 packed rows."""
    registry.add(task)
    found = pipeline.train_batches(
        registry.mixture(task.name), converter, vocabulary, batch_rows=8, seed=0, prefetch_batches=0
    )
    return list(itertools.islice(found, count))


def test_c4_is_a_corpus():
    text = SHARED / "text"
    task = discover(f"train={text}/c4_en_train.jsonl,validation={text}/c4_en_validation.jsonl").task
    assert task.is_corpus and counts(task) == (1000, 200)
    t5 = load(str(SHARED / "vocab" / "t5"))
    for batch in rows(task, TextToText(512, 114), t5):
        assert (batch["encoder_segment_ids"] > 0).mean() > 0.95  # a window of documents ends in a short row
        assert {t5.sentinel(0), t5.eos_id} < set(batch["encoder_input_tokens"][0].tolist())


GLUE = {  # inputs, targets, (train, validation), labels (None: numbers), a row's inputs and target
    "CoLA": (
        "{column_4}", "{column_2}", (8551, 1043), ("0", "1"),
        ("Our friends won't buy this analysis, let alone the next one we propose.", "1"),
    ),
    "SST-2": (
        "{sentence}", "{label}", (67349, 872), ("0", "1"), ("hide new secretions from the parental units ", "0"),
    ),
    "MRPC": (
        "{#1 String} {#2 String}", "{Quality}", (3668, 408), ("0", "1"),
        ('Amrozi accused his brother , whom he called " the witness " , of deliberately distorting his evidence . '
         'Referring to him as only " the witness " , Amrozi accused his brother of deliberately distorting his '
         "evidence .", "1"),
    ),
    "STS-B": (
        "{sentence1} {sentence2}", "{score}", (5749, 1500), None,
        ("A plane is taking off. An air plane is taking off.", "5.000"),
    ),
    "WNLI": (
        "{sentence1} {sentence2}", "{label}", (635, 71), ("0", "1"),
        ("I stuck a pin through a carrot. When I pulled the pin out, it had a hole. The carrot had a hole.", "1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GLUE)
def test_glue(name):
    inputs, targets, sizes, labels, first = GLUE[name]
    found = discover(str(SHARED / "glue" / name), inputs=inputs, targets=targets)
    task = found.task
    assert (
        counts(task) == sizes and task.labels == (labels or ()) and isinstance(task.target, Number) == (labels is None)
    )
    assert task.source.split("train")[0] == {"inputs": first[0], "targets": first[1]}
    assert any("test.tsv is left out" in note for note in found.notes)  # GLUE does not publish its test labels
    assert found.notes[0].startswith(f"{SHARED / 'glue' / name}: TSV with")  # quotes are text and stay
    bert = load(str(SHARED / "vocab" / "bert-base-uncased"))
    head = "classification" if labels else "regression"
    (batch,) = rows(task, EncoderOnly(128, (head,)), bert, 1)
    assert (batch["encoder_input_tokens"][:, 0] == bert.cls_id).all() and batch["pooled_positions"].any()


def test_the_first_row_behind_mrpcs_byte_order_mark():
    task = discover(str(SHARED / "glue" / "MRPC"), inputs="{#1 String}", targets="{Quality}").task
    row = task.source.split("validation")[0]
    assert row["targets"] == "1" and row["inputs"].startswith("He said the foodservice pie business doesn 't fit")


def test_k_shot_pieces_of_the_large_ones():
    qqp = discover(str(SHARED / "glue_kshot/QQP/16-13"), inputs="{question1} {question2}", targets="{is_duplicate}")
    assert counts(qqp.task) == (32, 32) and qqp.task.labels == ("0", "1")
    assert "cells quoted" in qqp.notes[0]  # QQP's are; dev just happens to have none
    texts = [row["inputs"] for row in qqp.task.source.split("train")]
    assert 'Where can I get Raki in Las Vegas? Why is a drink of liquor called a "shot"?' in texts
    directory = SHARED / "glue_kshot/MNLI/16-13"
    mnli = discover(
        f"train={directory}/train.tsv,dev={directory}/dev_matched.tsv",
        inputs="mnli hypothesis: {sentence2} premise: {sentence1}",
        targets="{gold_label}",
    )
    assert mnli.task.labels == ("contradiction", "entailment", "neutral")


def test_multi30k_is_pairs_of_files():
    directory = SHARED / "seq2seq" / "multi30k"
    files = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    spec = ",".join(f"{split}={directory}/{name}.{LANGUAGES}" for split, name in files.items())
    task = discover(spec, inputs="translate English to German: {en}", targets="{de}").task
    assert counts(task) == (29000, 1014, 1000) and not task.labels
    assert task.source.split("train")[0] == {
        "inputs": "translate English to German: Two young, White males are outside near many bushes.",
        "targets": "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    }
    rows(task, TextToText(64, 64), load(str(SHARED / "vocab" / "t5")))


def test_dialogsum_is_split_by_hash():
    found = discover(
        str(SHARED / "seq2seq/dialogsum/dialogsum.dev.jsonl"), inputs="summarize: {dialogue}", targets="{summary}"
    )
    sizes = [len(found.task.source.split(split)) for split in ("train", "validation", "test")]
    assert sum(sizes) == 500 and 420 < sizes[0] < 480 and "free text" in found.notes[1]
    assert found.task.name == "dialogsum"
    rows(found.task, DecoderOnly(512), load(str(SHARED / "vocab" / "gpt2")), 1)


def test_wnut17_is_sentences_in_columns():
    found = discover(str(SHARED / "ner" / "wnut17"), inputs="ner: {tokens}", targets="{tags}")
    assert counts(found.task) == (3394, 1009, 1287)
    for split in ("train", "validation", "test"):
        for row in found.task.source.split(split):
            assert len(row["inputs"].split(" ")) == len(row["targets"].split(" ")) + 1
    row = found.task.source.split("train")[0]
    assert row["inputs"].startswith("ner: @paulwalk It 's the view from") and "B-location I-location" in row["targets"]


def test_boolq_has_truth_values_and_the_words_for_them():
    directory = SHARED / "superglue" / "BoolQ"
    spec = f"train={directory}/fewglue_train32.jsonl,validation={directory}/val.jsonl"
    task = discover(spec, inputs="{passage} {question}", targets="{label}").task
    assert task.labels == ("false", "true") and counts(task) == (32, 3270)


def test_plain_text_is_cut_where_it_has_blank_lines():
    plays = discover(str(SHARED / "text" / "tinyshakespeare.txt"))
    assert "one example a paragraph" in plays.notes[0]
    texts = [e["text"] for s in ("train", "validation", "test") for e in plays.task.source.split(s)]
    assert "First Citizen:\nBefore we proceed any further, hear me speak." in texts
    whole = (SHARED / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert sorted("\n".join(texts).split("\n")) == sorted(line for line in whole.split("\n") if line)


def test_inspect_shows_real_data_at_once(capsys, caplog):
    flags = ["--config.data.inputs={sentence}", "--config.data.targets={label}", "-n", "1"]
    size = ["--config.data.batch_rows=4", "--config.data.length=64"]
    vocabulary = f"--config.data.vocabulary={SHARED / 'vocab' / 't5'}"
    assert cli.run(["inspect", f"--config.data.files={SHARED / 'glue' / 'SST-2'}", vocabulary, *flags, *size]) == 0
    assert "train 67,349, validation 872" in caplog.text and "row 0" in capsys.readouterr().out
