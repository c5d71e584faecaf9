"""What a user can say about how files are read, and layouts of JSON: what is written is what is read."""

import gzip
import itertools
import json
import random
import re
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import cli, config, experiment, train
from t5x_lite.data import json_documents, line_pattern, records, registry, sources
from t5x_lite.data.class_labels import labels_in
from t5x_lite.data.guessed_format import Reading
from t5x_lite.data.local_files import find
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import infer
from t5x_lite.evaluation.during_training import EvaluationDuringTraining
from t5x_lite.tasks.files import METRICS, discover

few = settings(max_examples=40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=3,
)


@pytest.fixture(autouse=True)
def own_cache_and_table(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a function that makes a new directory, as often as a law needs one."""
    return lambda: tmp_path_factory.mktemp("files")


def rows_of(path: Path, **reading) -> list[dict]:
    return [dict(row) for row in find(f"train={path}", reading=Reading(**reading)).source.split("train")]


# -------------------------------------------------------------------------------------------------- layouts of JSON


@st.composite
def tables(draw, cells=values, columns=2):
    names = draw(st.lists(texts.filter(bool), min_size=columns, max_size=4, unique=True))
    return draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, cells)), min_size=1, max_size=4))


LAYOUTS = {
    "lines.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "lines.json": lambda rows: "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]),  # one line: a document?
    "list.json": json.dumps,
    "pretty.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "data.json": lambda rows: json.dumps({"version": "1.1", "data": rows, "license": None}),
    "only.json": lambda rows: json.dumps({"anything": rows}),
    "columns.json": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}, indent=1),
}


@few
@given(tables(), st.sampled_from(sorted(LAYOUTS)), st.booleans(), st.booleans())
def test_a_table_written_in_any_layout_of_json_reads_back_as_the_same_rows(folder, rows, layout, packs, has_mark):
    content = (b"\xef\xbb\xbf" if has_mark else b"") + LAYOUTS[layout](rows).encode()
    path = folder() / (f"{layout}.gz" if packs else layout)
    path.write_bytes(gzip.compress(content) if packs else content)
    assert rows_of(path) == [*rows, rows[0]] if layout == "lines.json" else rows_of(path) == rows


@few
@given(
    st.lists(st.tuples(texts, texts, texts, st.lists(st.tuples(texts, st.integers(0, 9)))), min_size=1), st.booleans()
)
def test_squad_s_layout_is_flattened_to_questions(folder, questions, has_flags):
    flags = {"is_impossible": False} if has_flags else {}
    nested = [
        {
            "title": title,
            "paragraphs": [
                {"context": context, "qas": []},
                {
                    "context": context,
                    "qas": [
                        {
                            "id": str(number),
                            "question": question,
                            "answers": [{"text": text, "answer_start": start} for text, start in answers],
                            "plausible_answers": [],
                            **flags,
                        }
                    ],
                },
            ],
        }
        for number, (title, context, question, answers) in enumerate(questions)
    ]
    path = folder() / "dev-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": nested}))
    found = find(f"train={path}")
    assert f"JSON in SQuAD's layout with the fields {', '.join(found.fields)}" in found.notes[0]
    assert list(found.source.split("train")) == [
        {
            "id": str(number),
            "title": title,
            "context": context,
            "question": question,
            "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
            **flags,
        }
        for number, (title, context, question, answers) in enumerate(questions)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"a": 1\n}', "is one JSON dict; it must be a list of objects, an object with such a list"),
        (
            '{"train": [{"a": 1}],\n "test": [{"a": 2}]}',
            r"several lists of objects, train, test; .* jq -c '\.train\[\]'",
        ),
        ('[{"a": 1},\n2]', r"a\.json: record 2: a JSON int"),
        ('[{"a": 1},\n{"a": NaN}]', r"a\.json: record 2: not JSON \(NaN is not a JSON number\)"),
        ('[{"a": 1},\n{"a": 2},]', r"a\.json: not JSON \(.*: line 2 column \d.*\); correct it, or write one object"),
        ('[{"a": 1, "a": 2}]', r"a\.json: not JSON \(the key 'a' is repeated\)"),
        ('{"a": 1}}\n{"a": 2}', r"a\.json:1: not JSON \(Extra data"),
        ('{"a": [1, 2],\n"b": [1]}', "is one JSON dict"),
        ('[{"a": "\\ud800"}]', r"a\.json: record 1: not JSON"),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "7"}]}]}]}',
            "SQuAD's layout.*'question' is missing",
        ),
        ("[1, 2]", "is one JSON list"),
    ],
)
def test_a_json_file_in_no_layout_says_what_can_be_read(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        list(find(str(tmp_path / "a.json")).source.split("train"))


def test_a_file_too_long_to_parse_and_files_of_two_layouts_are_refused(tmp_path, monkeypatch):
    for name, content in (("a", [{"x": 1}]), ("b", {"x": [1]}), ("c", {"data": [{"x": 1}]}), ("d", [{"x": 1}])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"b\.json is not one JSON list, as the first file is: not a list but a dict"):
        find(f"{tmp_path}/[ab].json")
    with pytest.raises(DataError, match=r"d\.json is not the JSON list under 'data', as the first file is"):
        find(f"{tmp_path}/[cd].json")
    monkeypatch.setattr(json_documents, "MOST_BYTES", 5)
    (tmp_path / "e.json").write_text('[{"x": 1}]')
    with pytest.raises(DataError, match=r"e\.json is one JSON value of over 0 MB, too long to parse; write one object"):
        find(str(tmp_path / "e.json"))


def test_bad_records_of_a_document_are_counted(tmp_path, caplog):
    (tmp_path / "a.json").write_text(json.dumps([{"x": n} if n % 10 else n for n in range(100)][1:]))
    source = find(f"train={tmp_path / 'a.json'}", max_bad_fraction=0.1).source
    assert len(source.split("train")) == 90 and "a.json: record 10: a JSON int" in caplog.text
    assert source.split("train").where(9).endswith("a.json: record 11")


# ------------------------------------------------------------------------------------------------ records of texts

lines = st.lists(st.sampled_from(["", " ", "\t", "a", " b ", "c\r", "\u2028", "d e", "ä"]), min_size=1, max_size=9)


@given(lines, st.booleans())
def test_the_records_of_a_text_joined_are_the_text_but_for_blank_lines(folder, given_lines, ends):
    content = "\n".join(given_lines) + "\n" * ends
    path = folder() / "a.txt"
    path.write_bytes(content.encode())
    if not content.strip(" \t\r\n\u2028"):
        for record in ("line", "paragraph", "file"):
            with pytest.raises(DataError, match=r"holds no example|is empty"):
                rows_of(path, text_record=record)
        return

    def joined(separator: str, record: str) -> str:
        return separator.join(row["text"] for row in rows_of(path, text_record=record))

    bare = [line.removesuffix("\r") for line in given_lines]
    kept = [line for line in bare if line.strip()]
    assert joined("\n", "line") == "\n".join(kept)
    assert joined("\n", "paragraph") == "\n".join(kept)
    runs = "\n".join(line if line.strip() else "" for line in bare).strip("\n")
    assert joined("\n\n", "paragraph") == re.sub(r"\n{2,}", "\n\n", runs)
    assert joined("", "file") == content


def test_a_record_of_many_files_is_a_file(tmp_path):
    contents = {f"{n:02}.txt": f"\ufeff{n}\n\n two \r\n" for n in range(30)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
    found = find(f"{tmp_path}/*.txt", reading=Reading(text_record="file"))
    assert "one example a file, with its line breaks and blank lines; split by hash" in found.notes[0]
    read = [row["text"] for split in found.splits for row in found.source.split(split)]
    assert sorted(read) == sorted(content.removeprefix("\ufeff") for content in contents.values())
    (tmp_path / "07.txt").write_bytes(b"fine\nnot \xff\n")
    with pytest.raises(DataError, match=r"07\.txt:2: byte 0xff"):
        find(f"{tmp_path}/*.txt", reading=Reading(text_record="file"))


# ------------------------------------------------------------------------------------------------ patterns of lines

PATTERN = r"IN: (?P<inputs>.*) OUT: (?P<targets>.*)"


@few
@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\n\r|\0", exclude_categories=["Cs"])), min_size=3,
                         max_size=3), min_size=1))  # fmt: skip
def test_a_pattern_splits_lines_into_the_fields_that_were_joined(folder, rows):
    path = folder() / "a.txt"
    path.write_bytes("".join(f"<{'|'.join(row)}>\n" for row in rows).encode())
    pattern = r"<(?P<a>[^|]*)\|(?P<b>[^|]*)\|(?P<c>[^|]*)>"
    read = rows_of(path, line_pattern=pattern)
    assert read == [dict(zip("abc", row, strict=True)) for row in rows]


def test_a_line_that_the_pattern_does_not_match_is_bad(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"IN: {n} OUT: {n % 2}\n\n" for n in range(20)) + "IN: 20 0\n")
    spec, reading = f"train={path}", Reading(line_pattern=PATTERN)
    with pytest.raises(DataError, match=r"a\.txt:41: data\.line_pattern='IN: .*' does not match the line 'IN: 20 0'"):
        find(spec, reading=reading)
    with pytest.raises(DataError, match="1 of 21 records are bad, more than"):
        find(spec, 0.01, reading=reading)
    assert len(find(spec, 0.05, reading=reading).source.split("train")) == 20
    task = discover(spec, max_bad_fraction=0.05, reading=reading).task
    assert task.source.split("train")[3] == {"inputs": "3", "targets": "1"} and task.labels == ("0", "1")
    optional = Reading(line_pattern=r"IN: (?P<inputs>\d+)( OUT: (?P<targets>.*)| .*)")
    with pytest.raises(DataError, match=r"a\.txt:41: the field 'targets' is null"):
        list(discover(spec, reading=optional, labels=()).task.source.split("train"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<a>.*", r"line_pattern='\(\?P<a>\.\*' is not a regular expression of Python's re: missing \)"),
        ("(.*) OUT", "names no field; write for example"),
        ("(?P<1>.*)", "bad character in group name '1'"),
        ("(?P<a>.*)(?P<a>.*)", "redefinition of group name 'a'"),
    ],
)
def test_a_pattern_that_cannot_split_is_refused(tmp_path, pattern, message):
    (tmp_path / "a.txt").write_text("IN: a OUT: b\n")
    with pytest.raises(ConfigError, match=message):
        find(str(tmp_path / "a.txt"), reading=Reading(line_pattern=pattern))


def test_a_catastrophic_pattern_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(line_pattern, "MOST_S", 0.2)
    (tmp_path / "a.txt").write_text("aaab\n" + "a" * 99 + "\n")
    with pytest.raises(ConfigError, match=r"a\.txt:2: data\.line_pattern=.* needs over 0\.2 s for this line of 99"):
        find(str(tmp_path / "a.txt"), max_bad_fraction=0.9, reading=Reading(line_pattern="(?P<a>(a+)+)b"))


@pytest.mark.parametrize(
    ("name", "reading", "message"),
    [
        (
            "a.csv",
            Reading(text_record="line"),
            r"data\.text_record='line' is for text files, and .*a\.csv is of another",
        ),
        ("a.csv", Reading(line_pattern="(?P<a>.*)"), r"data\.line_pattern=.* is for text files"),
        ("a.jsonl", Reading(header=False), r"data\.header=False is for CSV and TSV files"),
        ("a.txt", Reading(delimiter=";"), r"data\.delimiter=';' is for CSV and TSV files"),
        ("a.txt", Reading(text_record="file", line_pattern="(?P<a>.*)"), "splits lines, but data.text_record='file'"),
    ],
)
def test_a_setting_for_other_files_is_refused(tmp_path, name, reading, message):
    (tmp_path / name).write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match=message):
        find(str(tmp_path / name), reading=reading)


# --------------------------------------------------------------------------------------------------------- splits


@few
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=60),
    st.integers(1, 20),
    st.sampled_from(["7%", "12.5%", "3", "10"]),
    st.randoms(use_true_random=False),
)
def test_sizes_are_exact_and_splits_share_no_record_however_files_are_ordered(folder, numbers, dev, test, shuffler):
    def divided(order: list[int], files: int) -> dict[str, list[str]]:
        where = folder()
        for n in range(files):  # files may be of any sizes, but not empty
            (where / f"{n}.jsonl").write_text("".join(f'{{"n": {x}}}\n' for x in order[n::files]))
        source = find(f"{where}/*.jsonl", reading=Reading(split=f"validation={dev},test={test}")).source
        return {split: sorted(row["n"] for row in source.split(split)) for split in ("train", "validation", "test")}

    sizes = {
        "validation": dev,
        "test": -(-len(numbers) * 1000 * float(test[:-1]) // 100000) if "%" in test else int(test),
    }
    try:
        splits = divided(numbers, 1)
    except DataError as error:
        repeated = len(set(numbers)) < len(numbers)
        assert sum(sizes.values()) >= len(numbers) or ("records short" in str(error) and repeated)
        return
    assert {split: len(splits[split]) for split in sizes} == sizes
    assert sorted(itertools.chain(*splits.values())) == sorted(numbers)
    assert len(set(itertools.chain(*splits.values()))) == sum(len(set(split)) for split in splits.values())
    shuffler.shuffle(numbers)
    assert divided(numbers, min(3, len(numbers))) == splits


def test_a_field_names_the_split(tmp_path, caplog):
    names = ("train", "Training", "dev", "valid", "test")
    rows = [{"n": n, "fold": names[n % 5], "of": {"fold": names[-1 - n % 5]}} for n in range(50)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find(str(path), reading=Reading(split="fold"))
    assert (
        found.splits == ("train", "validation", "test")
        and "split by fold: train 20, validation 20, test 10" in (found.notes[0])
    )
    assert {row["n"] % 5 for row in found.source.split("validation")} == {2, 3}
    assert find(str(path), reading=Reading(split="of[fold]")).source.split("test")[0]["n"] == 0
    for field, message in (
        ("fodl", r"a\.jsonl:1: data\.split='fodl': the record has no 'fodl' \(it has n, fold, of\)"),
        ("n", r"a\.jsonl:1: data\.split='n': '0' is not a split; it must be train, validation or test"),
        ("of", "is an object, not a text"),
    ):
        with pytest.raises(DataError, match=message):
            find(str(path), reading=Reading(split=field))
    with path.open("a") as file:
        file.write('{"n": 50, "fold": "holdout"}\n')
    assert find(str(path), 0.1, Reading(split="fold")).source.split("train").bad == 1
    assert "a.jsonl:51: data.split='fold': 'holdout' is not a split" in caplog.text
    path.write_text('{"n": 1, "fold": "dev"}\n')
    with pytest.raises(DataError, match=r"data\.split='fold' names no record's split train"):
        find(str(path), reading=Reading(split="fold"))


def test_a_test_split_without_labels_is_left_out_whatever_names_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,kind,fold\n" + "".join(f"t {n},{'ab'[n % 2]},train\n" for n in range(40)) + "t,,test\n" * 9)
    found = discover(str(path), inputs="{text}", targets="{kind}", reading=Reading(split="fold"))
    assert found.task.labels == ("a", "b") and any("test is left out" in note for note in found.notes)


def test_sizes_take_missing_splits_from_the_file_of_train(tmp_path):
    for name, count in (("train", 100), ("test", 10)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"n": "{name} {n}"}}\n' for n in range(count)))
    for spec in (str(tmp_path), f"train={tmp_path}/train.jsonl,test={tmp_path}/test.jsonl"):
        found = find(spec, reading=Reading(split="dev=25%"))
        assert {split: len(found.source.split(split)) for split in found.splits} == {
            "train": 75, "test": 10, "validation": 25,
        }  # fmt: skip
        assert all(row["n"].startswith("train") for row in found.source.split("validation"))
        for division, message in (
            ("test=5", "both give test"),
            ("n", "the files are divided already; unset data.split"),
        ):
            with pytest.raises(ConfigError, match=message):
                find(spec, reading=Reading(split=division))


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ("5%", r"which split has this size\? Write validation=5%"),
        ("train=80%", "train gets the records of no other split"),
        ("validation=0", "'validation=0' does not size a split"),
        ("validation=-3", "does not size a split"),
        ("validation=5%,dev=3", "'dev=3' does not size a split; .* each split once"),
        ("holdout=5", "'holdout=5' does not size a split"),
        ("validation=100%", "leaves none of the 9 records to train"),
        ("validation=9", "leaves none"),
    ],
)
def test_a_division_that_cannot_be_made_is_refused(tmp_path, division, message):
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(9)))
    with pytest.raises((ConfigError, DataError), match=message):
        find(str(tmp_path / "a.txt"), reading=Reading(split=division))


# --------------------------------------------------------------------------------------- names, metrics, and lists

FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["pos", "neg", "fair"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["O", "B"], "_type": "ClassLabel"}, "_type": "List"},
    "old": [{"names": ["x", "y"], "_type": "ClassLabel"}],
    "parts": {"feature": {"kind": {"names": ["u", "v"], "_type": "ClassLabel"}}, "_type": "Sequence"},
    "o": {"k": {"names": ["p", "q"], "_type": "ClassLabel"}},
    "unnamed": {"num_classes": 2, "names": None, "_type": "ClassLabel"},
}
OTHERS = {"tags": [0, 1, -1], "old": [1], "parts": {"kind": [0, 1]}, "o": {"k": 1}, "unnamed": 1}
NAMED = {"tags": ["O", "B", -1], "old": ["y"], "parts": {"kind": ["u", "v"]}, "o": {"k": "q"}, "unnamed": 1}


def write_arrow(path: Path, rows: list[dict], features=FEATURES):
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_the_names_of_a_class_label_are_the_labels_in_their_order(tmp_path, suffix):
    for split, labels in (("train", [0, 1] * 20), ("validation", [1, 0, None]), ("test", [-1] * 6)):
        rows = [{"text": f"{split} {n}", "label": label, **OTHERS} for n, label in enumerate(labels)]
        write_arrow(tmp_path / "data" / f"{split}.{suffix}", rows)
    found = discover(str(tmp_path / "data"), inputs="{text} {o[k]} {tags}", targets="{label}")
    assert found.task.labels == ("pos", "neg", "fair")  # fair occurs nowhere
    assert list(found.task.source.split("train"))[:2] == [
        {"inputs": "train 0 q O B -1", "targets": "pos"}, {"inputs": "train 1 q O B -1", "targets": "neg"},
    ]  # fmt: skip
    assert "label: a ClassLabel, read as its names pos, neg, fair" in found.notes
    assert not any("old" in note for note in found.notes[1:])  # no template uses it
    assert any("test is left out: it has no labels" in note for note in found.notes)
    assert "{tags} is a list, joined by spaces; {tags[0]} is its first item" in found.notes
    assert dict(find(str(tmp_path / "data")).source.split("validation")[2]) == {
        "text": "validation 2",
        "label": None,
        **NAMED,
    }
    assert discover(str(tmp_path / "data"), inputs="{text}", targets="{o[k]}").task.labels == ("p", "q")
    only = discover(str(tmp_path / "data"), inputs="{text}", targets="{label}", labels=["neg", "pos"])
    assert only.task.labels == ("neg", "pos")
    rows = {(example["inputs"], example["targets"]) for example in found.task.source.split("train")}
    numbers = discover(str(tmp_path / "data"), inputs="{text}", targets="{label}", labels=["0", "1"]).task
    assert numbers.labels == ("0", "1")  # the labels of a run that began before the names were read
    as_names = {"0": "pos", "1": "neg"}
    assert {(e["inputs"] + " q O B -1", as_names[e["targets"]]) for e in numbers.source.split("train")} == rows


def test_a_file_of_one_record_is_described_as_it_is(tmp_path):
    """The hash decides which split has the record; of 40 such files, each split has some."""
    where = set()
    for n in range(40):
        path = tmp_path / f"{n}.jsonl"
        path.write_text(json.dumps({"words": ["a", str(n)], "label": "good", "none": "-1"}))
        made = discover(str(path), inputs="{words}", targets="{label}")
        (split,) = [name for name in records.PERCENT if len(made.task.source.split(name))]
        where.add(split)
        assert not any("left out" in note for note in made.notes), split
        assert any("{words} is a list" in note for note in made.notes), split
        if split == "test":  # without labels, it is no test set
            with pytest.raises(DataError, match="no record has a target"):
                discover(str(path), inputs="{words}", targets="{none}")
    assert where == set(records.PERCENT)


def test_names_that_no_template_uses_leave_runs_as_they_were(tmp_path):
    rows = [{"text": f"{n}", "label": n % 2, **OTHERS} for n in range(40)]
    write_arrow(tmp_path / "a.arrow", rows)
    plain = sources.Arrow(str(tmp_path / "a.arrow"))
    for kwargs in ({"text": "{text}"}, {"inputs": "{text}", "targets": "{label}", "labels": ["0", "1"]}):
        source = discover(str(tmp_path / "a.arrow"), **kwargs).task.source
        for split in records.PERCENT:
            assert source.source.fingerprint(split) == plain.fingerprint(split), kwargs
    named = discover(str(tmp_path / "a.arrow"), text="{text} {tags}").task.source
    assert named.source.form.labels == ((("tags", "*"), ("O", "B")),)
    assert named.source.fingerprint("train") != plain.fingerprint("train")


def test_numbers_without_a_name_and_shards_that_differ_are_bad(tmp_path):
    rows = [{"text": "t", "label": 3}, {"text": "t", "label": -2}, {"text": "t", "label": 0}]
    write_arrow(tmp_path / "a.arrow", rows)
    with pytest.raises(DataError, match=r"a\.arrow: row 0: the label 3 has no name; the names are pos, neg, fair"):
        find(str(tmp_path / "a.arrow"))
    assert len(find(f"train={tmp_path / 'a.arrow'}", 0.7).source.split("train")) == 1
    features = FEATURES | {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    write_arrow(tmp_path / "b-0.arrow", rows[2:])
    write_arrow(tmp_path / "b-1.arrow", rows[2:], features)
    with pytest.raises(DataError, match=r"b-1\.arrow: its ClassLabel features differ from the first file's"):
        find(f"train={tmp_path}/b-*.arrow")


@given(st.dictionaries(texts, values))
def test_metadata_of_any_kind_is_read_or_ignored(features):
    for metadata in ({"info": {"features": features}}, features):
        labels = labels_in({b"huggingface": json.dumps(metadata).encode()})
        assert all(isinstance(name, str) for _, names in labels for name in names)
    assert labels_in({b"huggingface": b"{"}) == labels_in({}) == ()


def test_names_are_those_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = {"label": ["no", "yes"], "tags": ["O", "B-X", "I-X"], "kind": ["u", "v"]}
    features = datasets.Features({
        "label": datasets.ClassLabel(names=names["label"]),
        "tags": datasets.Sequence(datasets.ClassLabel(names=names["tags"])),
        "parts": datasets.Sequence({"kind": datasets.ClassLabel(names=names["kind"])}),
    })  # fmt: skip
    rng = random.Random(0)
    rows = [{"label": rng.randrange(-1, 2), "tags": [rng.randrange(3) for _ in range(n % 4)],
             "parts": {"kind": [rng.randrange(2) for _ in range(n % 3)]}} for n in range(40)]  # fmt: skip
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "a.parquet"))

    def written(column: str, numbers):
        return [n if n == -1 else features_of[column].int2str(n) for n in numbers]

    features_of = {"label": features["label"], "tags": features["tags"].feature}
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        source = find(str(path)).source
        read = [row for split in records.PERCENT for row in source.split(split)]
        for column, flat in (("label", lambda row: [row["label"]]), ("tags", lambda row: row["tags"])):
            assert sorted(map(str, map(flat, read))) == sorted(str(written(column, flat(row))) for row in rows)
        assert sorted(str(row["parts"]) for row in read) == sorted(
            str({"kind": [names["kind"][n] for n in row["parts"]["kind"]]}) for row in rows
        )


def test_metrics_are_chosen_by_name_and_fit_the_targets(tmp_path):
    def made(targets, metrics, **kwargs):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps({"inputs": str(n), "targets": t}) + "\n" for n, t in enumerate(targets)))
        return discover(f"train={path}", metrics=metrics, **kwargs)

    kinds = dict(
        zip(METRICS, (["a", "b"] * 9, [str(n / 7) for n in range(99)], [f"t {n}" for n in range(20)]), strict=True)
    )
    for kind, targets in kinds.items():
        for name, metric in METRICS[kind].items():
            found = made(targets, (name,))
            assert found.task.metrics == (metric,) and type(found.task.target) is kind
            assert found.notes[-1].endswith(f"scored by {name}")
        for other in set(METRICS) - {kind}:
            with pytest.raises(
                ConfigError, match=f"unknown metric in data.metrics for {kind.__name__.lower()} targets"
            ):
                made(targets, tuple(METRICS[other]))
    with pytest.raises(ConfigError, match="'f1_macro'; did you mean 'macro_f1'"):
        made(["a", "b"] * 9, ("accuracy", "f1_macro"))
    with pytest.raises(ConfigError, match="a corpus is scored by its loss"):
        made(["a"], ("accuracy",), text="{inputs}")


# ------------------------------------------------------------------------------------------------- the command line


def test_the_verbs_read_a_file_as_the_user_says(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO", "t5x_lite")
    monkeypatch.chdir(tmp_path)
    Path("data.txt").write_text("".join(f"IN: No {n} OUT: {('bad', 'good')[n % 2]}\n" for n in range(60)))
    size = {"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8}
    settings = {
        "data.files": "data.txt", "data.line_pattern": PATTERN, "data.split": "validation=8,test=10%",
        "data.metrics": "matthews", "data.text_record": "line", "data.length": 32, "data.batch_rows": 8,
        "model.preset": "bert_tiny", **{f"model.{name}": value for name, value in size.items()},
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    assert cli.run(["inspect", *flags, "--split=validation", "-n=2"]) == 0
    assert "bad 50.0%, good 50.0%; scored by matthews" in caplog.text
    assert "split by validation=8,test=10%: train 46, validation 8, test 6" in caplog.text
    assert cli.run(["cache", *flags, "--output=cache", "--workers=1"]) == 0

    cfg = config.base()
    for name, value in settings.items():
        config.override(cfg, name, str(value))
    cfg.data.cache_dir, cfg.train.total_steps, cfg.eval.untrained, cfg.eval.batch_rows = "cache", 2, False, 8
    assert train.run(experiment.resolve(cfg), Path("run"), EvaluationDuringTraining) == 0
    assert "eval/data/matthews" in Path("run/metrics.jsonl").read_text()

    Path("data.txt").rename("moved.txt")
    assert cli.run(["infer", "--workdir=run", "--input=moved.txt", "--output=out.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and rows[7]["inputs"] == "No 7" and rows[7]["prediction"] in ("bad", "good")
    Path("data.json").write_text(json.dumps({"data": [{"inputs": "No 7"}, {"inputs": "No 8"}]}))
    assert cli.run(["infer", "--workdir=run", "--input=data.json", "--output=out2.jsonl"]) == 0
    assert json.loads(Path("out2.jsonl").read_text().splitlines()[0])["probabilities"] == rows[7]["probabilities"]
    Path("plain.txt").write_text("No 7\n")
    capsys.readouterr()
    assert cli.run(["infer", "--workdir=run", "--input=plain.txt", "--output=out3.jsonl"]) == 65
    assert "does not match the line 'No 7'; correct the line, or write the fields of the inputs as .jsonl" in (
        " ".join(capsys.readouterr().err.split())
    )


TABLES = {"text": ('5" disk', "it's"), "quoted": ('"so, so"', '"no"'), "bar": ("a|b", "c")}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("delimiter", ["", ";"])
@pytest.mark.parametrize("cells", TABLES.values(), ids=TABLES)
def test_infer_reads_a_table_as_the_run_read_it(tmp_path, name, header, delimiter, cells):
    mark = delimiter or ("," if name == "a.csv" else "\t")
    path = tmp_path / name
    path.write_text("".join(mark.join(row) + "\n" for row in [("text", "kind")] * header + [cells, ("x", "y")]))
    reading = Reading(header=header, delimiter=delimiter)
    try:
        rows = rows_of(path, header=header, delimiter=delimiter)
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error)[-40:])):
            infer.read_input(path, ("inputs",), (), {}, reading)
        return
    templates = {"inputs": "{text}" if header else "{column_1}"}
    assert list(infer.read_input(path, ("inputs",), (), templates, reading)) == rows


def test_keys_for_files_need_files(capsys):
    for flag in (
        "split=validation=5%",
        "metrics=accuracy",
        "text_record=file",
        "line_pattern=(?P<a>.*)",
        "header=false",
    ):
        assert cli.run(["inspect", "quickstart", f"--config.data.{flag}"]) == 2
        assert "needs data.files, which is empty" in capsys.readouterr().err
