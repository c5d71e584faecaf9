"""Any local file as a task: what is inferred, what is printed, and what is refused."""

import collections
import gzip
import json

import pyarrow
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite import cli, config, experiment
from t5x_lite.data import records, registry
from t5x_lite.data.guessed_format import Reading, has_header
from t5x_lite.data.local_files import find
from t5x_lite.data.preprocess import fill, pieces
from t5x_lite.data.targets import Number
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.tasks.files import discover, task_from_files


@pytest.fixture(autouse=True)
def own_cache_and_table(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


def write(path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def reviews(count: int = 400) -> str:
    return "title,body,label\n" + "".join(f'No {i},"good, {i}",{"good" if i % 4 else "bad"}\n' for i in range(count))


# --------------------------------------------------------------------------------------------------------- one line


def test_a_table_of_reviews_is_a_classification_task(tmp_path):
    path = write(tmp_path / "reviews.csv", reviews())
    found = discover(path, inputs="{title}: {body}", targets="{label}")
    task = found.task
    assert (task.name, task.labels, task.baseline, task.is_corpus) == ("reviews", ("bad", "good"), "majority", False)
    assert [m.__name__ for m in task.metrics] == ["accuracy", "macro_f1"]
    examples = [example for split in records.PERCENT for example in task.source.split(split)]
    assert len(examples) == 400 and {"inputs": "No 7: good, 7", "targets": "good"} in examples
    test = task.source.split("test")
    assert test.read_many([3, 0, 3]) == [test[3], test[0], test[3]]
    assert found.notes[0].startswith(f"{path}: CSV with the columns title, body, label; split by hash: train 3")
    assert found.notes[1] == ("targets '{label}': 2 labels found, bad 25.0%, good 75.0%; scored by accuracy, macro_f1")
    assert task_from_files(path, inputs="{title}", targets="{label}", name="mine").name == "mine"


def test_numbers_and_free_text_are_told_from_labels(tmp_path):
    def kind(targets: list[str], **kwargs) -> str:
        rows = "".join(json.dumps({"inputs": str(i), "targets": t}) + "\n" for i, t in enumerate(targets))
        task = discover(f"train={write(tmp_path / 'a.jsonl', rows)}", **kwargs).task
        return "labels" if task.labels else "numbers" if isinstance(task.target, Number) else "text"

    assert kind(["yes", "no"] * 10) == "labels"
    assert kind(["0", "1", "2"] * 10) == "labels"
    assert kind(["0.0", "2.5", "5"] * 10) == "numbers"
    assert kind([str(i) for i in range(100)]) == "numbers"
    assert kind([f"answer {i}" for i in range(20)]) == "text"
    assert kind([f"answer {i}" for i in range(100)] * 10) == "labels"
    assert kind([f"answer {i}" for i in range(300)] * 10) == "text"
    assert kind([str(i) for i in range(100)] * 10) == "numbers"
    assert kind(["a long answer " * 9, "another"] * 10) == "text"
    assert kind(["yes", "no"] * 10, labels=()) == "text"
    assert kind(["yes", "no"] * 10, labels=["yes", "no", "perhaps"]) == "labels"
    with pytest.raises(DataError, match="all 20 targets are 'yes'; there is nothing to learn"):
        kind(["yes"] * 20)


def test_a_corpus_needs_nothing_said(tmp_path):
    lines = discover(write(tmp_path / "lines.txt", "one\ntwo\n" * 20))
    assert lines.task.is_corpus and "one example a line" in lines.notes[0]
    path = write(tmp_path / "my poems.txt", "Tyger\nburning\n\nbright\n" * 20)
    poems = discover(f"train={path}")
    assert poems.task.name == "my_poems" and "one example a paragraph" in poems.notes[0]
    assert [e["text"] for e in poems.task.source.split("train")][:2] == ["Tyger\nburning", "bright\nTyger\nburning"]
    assert discover(write(tmp_path / "a.jsonl", '{"text": "x", "n": 1}\n' * 9)).task.is_corpus
    own = discover(write(tmp_path / "b.jsonl", '{"title": "t", "body": "b"}\n' * 9), text="{title}\n{body}")
    assert own.task.source.split("train")[0] == {"text": "t\nb"}


# ------------------------------------------------------------------------------------------------------------ splits


def test_a_directory_has_its_splits_by_name(tmp_path):
    for name in ("train", "dev", "in_domain_dev"):
        write(tmp_path / "cola" / f"{name}.tsv", f'gj04\t1\t\tHe said "{name}.\nbc\t0\t*\tNo said he.\n')
    write(tmp_path / "cola" / "test.tsv", "index\tsentence\n0\tBill whistled.\n")
    write(tmp_path / "cola" / "README.md", "not data")
    found = find(str(tmp_path / "cola"))
    assert found.splits == ("train", "validation")
    assert found.fields == ("column_1", "column_2", "column_3", "column_4")
    assert found.source.split("validation")[0]["column_4"] == 'He said "dev.'
    assert "TSV without a header" in found.notes[0] and "gj04 | 1 |  | He said" in found.notes[1]
    assert found.notes[2].endswith("test.tsv is left out: its format or columns differ from train's (index, sentence)")


def test_directories_that_cannot_be_understood(tmp_path):
    write(tmp_path / "a" / "set.dev.jsonl", "{}\n")
    with pytest.raises(ConfigError, match=r"no file is named after the split train \(set\.dev\.jsonl\); use train="):
        find(str(tmp_path / "a"))
    write(tmp_path / "a" / "one.train.jsonl", "{}\n")
    write(tmp_path / "a" / "two.train.jsonl", "{}\n")
    with pytest.raises(ConfigError, match=r"which is train, one\.train\.jsonl, two\.train\.jsonl\?"):
        find(str(tmp_path / "a"))


def test_what_save_to_disk_writes(tmp_path):
    import pyarrow
    import pyarrow.ipc

    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for shard in range(2):
            table = pyarrow.table({"text": [f"{split} {shard} {i}" for i in range(3)], "label": [0, 1, 0]})
            path = tmp_path / split / f"data-{shard:05}-of-00002.arrow"
            with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    task = discover(str(tmp_path), inputs="{text}", targets="{label}").task
    assert task.labels == ("0", "1") and len(task.source.split("train")) == 6
    assert task.source.split("validation")[4] == {"inputs": "validation 1 1", "targets": "1"}


def test_files_for_each_split_and_pairs_of_files(tmp_path):
    for split in ("train", "val"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}.gz").write_bytes(gzip.compress(f"{split} {language}\n".encode() * 5))
    spec = f"train={tmp_path}/train.{{en,de}}.gz,val={tmp_path}/val.{{en,de}}.gz"
    task = discover(spec, inputs="translate: {en}", targets="{de}", labels=()).task
    assert task.source.split("validation")[4] == {"inputs": "translate: val en", "targets": "val de"}
    with pytest.raises(ConfigError, match="'trian' is not a split; use train, validation or test"):
        find("trian=a.csv,validation=b.csv")


# -------------------------------------------------------------------------------------------------- what is guessed


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("a.csv", "text;label\nfine, really;1\n", {"text": "fine, really", "label": "1"}),
        ("a.csv", "text|label\nfine|1\n", {"text": "fine", "label": "1"}),
        ("a.csv", "text\nfine\n", {"text": "fine"}),
        ("a.csv", "good,yes\nbad,no\nfair,yes\n", {"column_1": "good", "column_2": "yes"}),
        ("a.tsv", '"a "quoted" word\t1\n', {"column_1": '"a "quoted" word', "column_2": "1"}),
        ("a.tsv", 'text\tn\n"say ""so"""\tx\n', {"text": 'say "so"', "n": "x"}),
        ("a.tsv", "\ufeffQuality\t#1 String\r\n1\tx\r\n", {"Quality": "1", "#1 String": "x"}),
        ("a.conll", "EU\tNNP\tB-org\n", {"tokens": "EU", "column_2": "NNP", "tags": "B-org"}),
    ],
)
def test_tables_are_understood(tmp_path, name, text, row):
    found = find(f"train={write(tmp_path / name, text)}")
    assert found.source.split("train")[0] == row and found.fields == tuple(row)


def test_what_was_named_is_not_left_out(tmp_path):
    train, more = write(tmp_path / "a.csv", reviews(40)), write(tmp_path / "b.csv", "body,label\nfine,good\n")
    both, templates = f"train={train},validation={more}", {"inputs": "{body}", "targets": "{label}"}
    assert len(discover(both, **templates).task.source.split("validation")) == 1
    message = r"b\.csv:2: the record has no 'title', which inputs needs; the record has body, label"
    with pytest.raises(DataError, match=message):
        discover(both, inputs="{title}", targets="free text {label}", labels=())
    write(tmp_path / "b.csv", "fine;1\nfair;2\n")
    with pytest.raises(
        DataError, match=r"b\.csv: its format or columns differ from train's \(column_1, column_2\); remove it"
    ):
        find(both)


def test_a_directory_of_pairs_says_how_to_name_them(tmp_path):
    for name in ("train.en.gz", "train.de.gz", "val.en.gz", "val.de.gz"):
        write(tmp_path / name, "")
    with pytest.raises(
        ConfigError, match=r"no file is named after the split train .*; use train=.*/train\.\{de,en\}\.gz"
    ):
        find(str(tmp_path))


def test_home_is_found_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.csv", reviews(40))
    assert find("~/a.csv").fields == find("train=~/a.csv").fields == ("title", "body", "label")


def test_what_is_no_text_is_an_error_only_where_a_text_is_wanted(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = str(tmp_path / "images.parquet")
    table = pyarrow.table({"text": ["a", "b"] * 9, "image": [b"\xff\xd8"] * 18, "note": [b"n"] * 18})
    pyarrow.parquet.write_table(table, path)
    source = discover(f"train={path}", text="{text} {note}").task.source
    assert source.split("train")[1] == {"text": "b n"}
    with pytest.raises(DataError, match=r"images.parquet: row 0: the field 'image' holds bytes that are not UTF-8"):
        source = discover(f"train={path}", text="{text} {image}").task.source
        source.split("train")[0]


def test_columns_of_one_name_are_said_to_be_such(tmp_path):
    path = write(tmp_path / "a.csv", "text,text,label\n" + "one,two,1\n" * 3)
    with pytest.raises(DataError, match=r"a\.csv:1: two columns are named 'text'; rename one"):
        find(path)


def test_a_file_s_name_may_be_of_any_letters(tmp_path):
    rows = "".join(f'{{"text": "{n}"}}\n' for n in range(30))
    assert discover(write(tmp_path / "отзывы 2.jsonl", rows)).task.name == "2"
    assert discover(write(tmp_path / ("x" * 200 + ".jsonl"), rows)).task.name == "x" * 64


@given(st.lists(st.lists(st.text(st.characters(codec="ascii", categories=["L"]), max_size=5), min_size=2, max_size=2)))
def test_a_header_is_never_a_value_of_its_column(rows):
    if rows and has_header(rows):
        assert not any(cell == row[n] for row in rows[1:] for n, cell in enumerate(rows[0]))


def test_what_is_said_of_a_table_is_not_guessed(tmp_path):
    index = write(tmp_path / "index.csv", ",text\n0,a\n1,b\n")  # as pandas writes it
    assert find(f"train={index}").fields == ("", "text")
    years = f"train={write(tmp_path / 'years.csv', '2019,2020' + chr(10) + '1,2' + chr(10))}"
    assert find(years).fields == ("column_1", "column_2") and "data.header=true" in find(years).notes[1]
    (row,) = find(years, reading=Reading(header=True)).source.split("train")
    assert row == {"2019": "1", "2020": "2"}
    named = f"train={write(tmp_path / 'named.csv', 'yes;no' + chr(10) + 'a,b;c' + chr(10))}"
    assert len(find(named, reading=Reading(header=False)).source.split("train")) == 2
    with pytest.raises(DataError, match="2 columns; the header has 1"):
        find(named, reading=Reading(header=True, delimiter=","))
    with pytest.raises(ConfigError, match=r"data.delimiter=', ': must be one character"):
        find(named, reading=Reading(delimiter=", "))
    cfg = config.base()
    cfg.data.files, cfg.data.inputs, cfg.data.targets, cfg.model.preset = years, "{2019}", "{2020}", "t5_tiny"
    cfg.data.header = True
    assert experiment.resolve(cfg).tasks[0].source.split("train")[0] == {"inputs": "1", "targets": "2"}


def test_a_label_that_cannot_be_written_is_refused(tmp_path):
    rows = "".join(f"day {i},{'a much longer label' if i % 3 else 'b'}\n" for i in range(120))
    cfg = config.base()
    cfg.data.files, cfg.data.inputs, cfg.data.targets = (
        write(tmp_path / "a.csv", "text,label\n" + rows),
        "{text}",
        "{label}",
    )
    for preset, targets_length, new_tokens, message in (
        ("t5_tiny", 19, 64, "data.targets_length=19: the label 'a much longer label' of task 'a' has 19 tokens"),
        ("t5_tiny", 20, 18, "eval.max_decode_tokens=18: .* set at least 19"),
        ("gpt2_tiny", 1, 18, "eval.max_decode_tokens=18"),
        ("t5_tiny", 20, 19, None),
        ("bert_tiny", 1, 1, None),
    ):
        cfg.model.preset, cfg.data.targets_length, cfg.eval.max_decode_tokens = preset, targets_length, new_tokens
        cfg.data.length = 128
        if message is None:
            experiment.resolve(cfg)
            continue
        with pytest.raises(ConfigError, match=message):
            experiment.resolve(cfg)
    cfg.checkpoint.keep_best = "accuracy"
    assert experiment.resolve(cfg).cfg.checkpoint.keep_best == ""  # of data.files: another task's is not used


# ------------------------------------------------------------------------------------------------------- templates


def test_templates_write_values_as_json_would(tmp_path):
    row = {"a": ["x", "y"], "b": True, "n": 1.5, "o": {"k": ["z"]}, "odd name": "u", "none": None}
    path = write(tmp_path / "a.jsonl", json.dumps(row) + "\n")

    def filled(template: str) -> str:
        return discover(f"train={path}", text=template).task.source.split("train")[0]["text"]

    assert filled("{a}|{b}|{n}|{o[k]}|{o[k][0]}|{odd name}|{{}}") == "x y|true|1.5|z|z|u|{}"
    for template, message in (
        ("{none}", "the field 'none' is null"),
        ("{o}", r"the field 'o' is an object, not a text \(name one of its keys: o\[KEY\]\)"),
        ("{o[q]}", r"the field 'o\[q\]' has no 'q'"),
        ("{a[7]}", r"the field 'a\[7\]' has no '7'"),
        ("{n[k]}", r"the field 'n\[k\]' has no 'k'"),
    ):
        with pytest.raises(DataError, match=rf"a\.jsonl:1: {message}, which text needs; the record has a, b, n"):
            filled(template)
    for template, message in (
        ("{", r"expected '}'|single '{'|Single '{'"),
        ("{}", "put the name of a field in the braces"),
        ("{n:.2f}", r"no field 'n:.2f'; did you mean \{n\}\?"),
        ("no field", "it names no field"),
        ("{bb}", r"no field 'bb'; did you mean \{b\}\? \(fields: a, b, n, o"),
        ("{o.k.0}", r"no field 'o.k.0'; did you mean \{o\[k\]\[0\]\}\?"),
    ):
        with pytest.raises(ConfigError, match=message):
            filled(template)


@given(st.lists(st.text(st.characters(exclude_characters="{}"), min_size=1), min_size=1), st.text(), st.data())
def test_a_field_of_any_name_without_braces_can_stand_in_a_template(names, between, data):
    literal = between.replace("{", "{{").replace("}", "}}")
    row = {name: data.draw(st.text()) for name in names}
    template = literal.join(f"{{{name}}}" for name in names) + literal
    assert fill(template, row) == between.join(row[name] for name in names) + between
    assert [field for _, field in pieces(template) if field] == names


def test_what_is_wrong_in_a_record_names_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"q": "x", "a": "yes"}\n\n{"q": "y"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:3: the record has no 'a', which targets needs; the record has q"):
        discover(f"train={path}", inputs="{q}", targets="{a}")
    path = write(tmp_path / "b.csv", "q,a\n" + "x,yes\nx,no\n" * 5 + "z,maybe\n")
    task = discover(f"train={path}", inputs="{q}", targets="{a}", labels=["yes", "no"]).task
    with pytest.raises(DataError, match=r"b\.csv:12: label 'maybe' is not one of yes, no; correct the label, or add"):
        list(task.source.split("train"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.bmp", r"no known suffix; allowed: \.txt"),
        ("a.xlsx", "in an unsupported format; save the sheet as CSV"),
        ("a.tar.gz", "in an unsupported format; unpack it"),
        ("a.jsnol", r"no known suffix \(\.jsonl\?\); allowed"),
        ("nowhere.csv", "cannot read nowhere.csv: No such file"),
        ("nowhere/*.csv", "no file matches 'nowhere/"),
        ("nowhere.{en,de}", "cannot read nowhere.en"),
    ],
)
def test_what_is_no_data_is_refused(spec, message):
    with pytest.raises((ConfigError, DataError), match=message):
        find(spec)


def test_templates_that_are_missing_are_asked_for(tmp_path):
    path = write(tmp_path / "reviews.csv", reviews())
    for given_templates, message in (
        ({}, "no template is set; set data.inputs and data.targets, or data.text"),
        ({"inputs": "{body}"}, "only inputs set"),
        ({"inputs": "{body}", "targets": "{label}", "text": "{body}"}, "only inputs, targets, text set"),
    ):
        with pytest.raises(ConfigError, match=message):
            discover(path, **given_templates)


# --------------------------------------------------------------------------------------------- the command line


def test_inspect_shows_a_file_at_once(tmp_path, capsys, caplog):
    path = write(tmp_path / "reviews.csv", reviews())
    flags = [f"--config.data.files={path}", "--config.data.inputs={title}: {body}", "--config.data.targets={label}"]
    for preset in ("t5_tiny", "gpt2_tiny", "bert_tiny"):
        size = [f"--config.model.preset={preset}", "--config.data.length=64", "--config.data.batch_rows=4", "-n", "2"]
        assert cli.run(["inspect", *flags, *size]) == 0
        shown = capsys.readouterr()
        assert "2 labels found, bad 25.0%, good 75.0%" in caplog.text and "vocabulary: bytes" in caplog.text
        caplog.clear()
        assert "row 1" in shown.out and "good, " in shown.out
    assert cli.run(["inspect", *flags, "--config.data.vocabulary=nowhere.model"]) == 2
    assert "cannot read the vocabulary nowhere.model" in capsys.readouterr().err
    assert cli.run(["inspect", "quickstart", *flags]) == 2
    assert "NAME 'quickstart' and config.data.files=" in capsys.readouterr().err
    assert cli.run(["inspect", "--config.data.inputs={title}"]) == 2
    assert "or set data.files" in capsys.readouterr().err
    assert cli.run(["inspect", "quickstart", "--config.data.inputs={title}"]) == 2
    assert "needs data.files, which is empty" in capsys.readouterr().err


def test_a_run_of_files_keeps_its_labels(tmp_path, caplog):
    caplog.set_level("INFO", "t5x_lite")
    cfg = config.base()
    cfg.data.mixture = "quickstart"
    cfg.data.files = write(tmp_path / "reviews.csv", reviews())
    cfg.data.inputs, cfg.data.targets = "{body}", "{label}"
    config.validate(cfg)
    resolved = experiment.resolve(cfg)
    assert cfg.data.mixture == "quickstart" and cfg.data.labels is None  # the caller's config is unchanged
    cfg = resolved.cfg
    assert resolved.tasks[0].name == cfg.data.mixture == "reviews" and resolved.vocabulary == ByteVocabulary()
    assert cfg.data.labels == ("bad", "good")
    assert caplog.messages[-1] == "training on data.files in place of the mixture 'quickstart'"
    experiment.resolve(cfg)  # again, as in a resumed run
    assert cfg.data.mixture == "reviews"
    assert discover(write(tmp_path / "quickstart.txt", "a\nb\n")).task.name == "quickstart_file"
    write(tmp_path / "config.json", config.to_json(cfg))
    again = config.from_json(tmp_path / "config.json")
    with (tmp_path / "reviews.csv").open("a") as file:
        file.write("New,new,ugly\n" * 100)
    with pytest.raises(DataError, match=r"reviews\.csv:\d+: label 'ugly' is not one of bad, good"):
        for split in records.PERCENT:
            list(experiment.resolve(again).tasks[0].source.split(split))


def test_files_that_would_be_dropped_are_an_error(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.csv", reviews(40))
    a, b, c = (str(tmp_path / f"{name}.csv") for name in "abc")
    for spec in (f"train={a},{b}", f"train={a},train={b}", f"train={a},dev={b},validation={c}"):
        with pytest.raises(ConfigError, match="each split once"):
            find(spec)


def test_two_files_of_one_name_are_two_tasks(tmp_path):
    how = {"inputs": "{body}", "targets": "{label}"}
    first = registry.add(discover(write(tmp_path / "a" / "train.csv", reviews(40)), **how).task)
    second = registry.add(discover(write(tmp_path / "b" / "train.csv", reviews(80)), **how).task)
    assert (first.name, second.name) == ("a", "b")
    third = registry.add(discover(write(tmp_path / "c" / "b" / "train.csv", reviews(60)), **how).task)
    assert third.name == "b_file"
    assert discover(str(tmp_path / "b" / "train.csv"), **how).task.name == second.name


def test_a_file_of_one_record_is_read(tmp_path):
    for n in range(20):  # in whichever split its hash puts it
        assert find(write(tmp_path / f"{n}.jsonl", f'{{"text": "number {n}"}}\n')).fields == ("text",)
    with pytest.raises(DataError, match="is empty"):
        find(write(tmp_path / "empty.jsonl", ""))


def test_a_target_that_is_missing_is_no_label(tmp_path):
    path = write(tmp_path / "a.csv", reviews() + 'No 400,"good, 400",\n')
    with pytest.raises(DataError, match=r"a.csv:402: targets is empty"):
        discover(path, inputs="{title}", targets="{label}")
    assert discover(path, inputs="{title}", targets="{label}", max_bad_fraction=0.01).task.labels == ("bad", "good")
    for split in ("train", "test"):  # a corpus has no targets, so it lacks none
        write(tmp_path / "corpus" / f"{split}.txt", "a\nb\n")
    assert len(discover(str(tmp_path / "corpus"), text="{text}").task.source.split("test")) == 2
    blank = write(tmp_path / "b.csv", "a,b\nx,y\n ,z\n")
    source = discover(f"train={blank}", inputs="{a}", targets="{b}").task.source
    with pytest.raises(DataError, match=r"b.csv:3: inputs is empty"):
        source.split("train").read_many([0, 1])
    rows = [{"s": f"text {i}", "label": label} for i, label in enumerate([0, 1] * 20)]
    for split, label in (("train", None), ("test", -1), ("validation", None)):
        lines = [json.dumps(row if label is None else row | {"label": label}) + "\n" for row in rows]
        write(tmp_path / "glue" / f"{split}.jsonl", "".join(lines))
    made = discover(str(tmp_path / "glue"), inputs="{s}", targets="{label}")
    assert made.task.labels == ("0", "1") and set(made.task.source.source.files) == {"train", "validation"}
    assert any("test is left out: it has no labels" in note for note in made.notes)


def arrow(path, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": [f"text {i}" for i in range(rows)]})
    with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def test_only_the_shards_of_the_last_save_to_disk_count(tmp_path):
    """`save_to_disk` removes nothing that an earlier one left there."""
    names = [f"data-{n:05d}-of-00002.arrow" for n in range(2)]
    for name in ("data-00000-of-00001.arrow", *names):
        arrow(tmp_path / name, 30)
    state = {"_data_files": [{"filename": name} for name in names]}
    write(tmp_path / "state.json", json.dumps(state))
    source = discover(str(tmp_path), text="{text}").task.source
    assert sum(len(source.split(split)) for split in records.PERCENT) == 60
    (tmp_path / names[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"00001-of-00002.arrow is missing, which state.json names"):
        discover(str(tmp_path), text="{text}")
    for content, message in (
        ({"_indices_data_files": [1]} | state, "flatten_indices"),
        ([], "cannot be read"),
        ({"_data_files": [{"filename": names[0]}]}, "not the shards of one data set"),
    ):
        write(tmp_path / "state.json", json.dumps(content))
        with pytest.raises(ConfigError, match=message):
            discover(str(tmp_path), text="{text}")


def test_the_shards_of_a_split_are_one_split(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation-00000-of-00001.jsonl"):
        write(tmp_path / name, '{"text": "a"}\n{"text": "b"}\n')
    source = discover(str(tmp_path)).task.source
    assert [len(source.split(split)) for split in ("train", "validation")] == [4, 2]
    assert len(discover(str(tmp_path.rename(tmp_path.parent / "a[1]b"))).task.source.split("train")) == 4
    (tmp_path.parent / "a[1]b").rename(tmp_path)
    (tmp_path / "train-00001-of-00002.jsonl").unlink()
    assert len(discover(str(tmp_path)).task.source.split("validation")) == 2  # one file is a file of that name


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("above", ["", "-DOCSTART-\n\n", "# sent_id = 1\n", "#\thttp://x.org [2009-10-17]\n"])
@pytest.mark.parametrize("behind", ["", " "])
def test_conll_files_as_they_are_published(tmp_path, separator, above, behind):
    if separator == "\t" and behind:
        pytest.skip("there a space belongs to the tag")
    text = above + "".join(f"{word}{separator}{tag}{behind}\n" for word, tag in (("#", "O"), ("Ada", "B-PER")))
    (row,) = find(f"train={write(tmp_path / 'a.conll', text)}").source.split("train")
    assert row == {"tokens": "# Ada", "tags": "O B-PER"}


def test_splits_of_save_to_disk_are_those_of_its_directories(tmp_path):
    import pyarrow
    import pyarrow.ipc

    def shard(*parts: str) -> None:
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.table({"text": [f"{path.parent.name} {i}" for i in range(3)]})
        with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    for folder in ("train", "test", "unsupervised"):
        shard("imdb", folder, "data-00000-of-00001.arrow")
    shard("imdb", "train", "cache-123.arrow")
    found = find(str(tmp_path / "imdb"))
    assert sorted(found.splits) == ["test", "train"]
    assert [row["text"] for row in found.source.split("train")] == ["train 0", "train 1", "train 2"]
    shard("imdb", "other", "train", "data-00000-of-00001.arrow")
    with pytest.raises(ConfigError, match="which is train"):
        find(str(tmp_path / "imdb"))


def test_however_many_files_match_each_is_scanned_once(tmp_path, monkeypatch):
    for number in range(4200):  # more than any table of recently used files would hold
        (tmp_path / f"{number}.txt").write_text(f"text {number}\n")
    scanned, scan = collections.Counter(), records.scan
    monkeypatch.setattr(records, "scan", lambda *a: scanned.update([a[2].name]) or scan(*a))
    source = discover(f"{tmp_path}/*.txt").task.source
    texts = [example["text"] for split in records.PERCENT for example in source.split(split)]
    assert sorted(texts) == sorted(f"text {number}" for number in range(4200))
    assert len(scanned) == 4200 and set(scanned.values()) == {1}
