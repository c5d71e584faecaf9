"""Sources and preprocessors: what they read, and what they say about what they cannot read."""

import json

import pytest

from t5x_lite.data import preprocess, registry, sources
from t5x_lite.data.registry import Mixture, Task, proportional
from t5x_lite.errors import ConfigError, DataError


def write(tmp_path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def test_text_lines(tmp_path):
    path = write(tmp_path, "a.txt", "\ufeffone\r\n\r\ntwo\x0btwo\nthree".encode())
    assert sources.Text({"train": path}).split("train") == [{"text": "one"}, {"text": "two\x0btwo"}, {"text": "three"}]


def test_jsonl(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"text": "a\\nb", "n": 1}\n\n{"text": "\xc3\xa9"}\n')
    assert sources.Jsonl({"train": path}).split("train") == [{"text": "a\nb", "n": 1}, {"text": "é"}]


def test_csv_and_tsv(tmp_path):
    table = write(tmp_path, "a.csv", b'title,body\n"one, two","say ""hi"""\r\nthree,"four\nfive"\n')
    assert sources.Csv({"train": table}).split("train") == [
        {"title": "one, two", "body": 'say "hi"'},
        {"title": "three", "body": "four\nfive"},
    ]
    glue = write(tmp_path, "a.tsv", b'gj04\t1\t\tHe said "no.\n')  # quotes are text, there is no header
    columns = ("source", "label", "mark", "sentence")
    source = sources.Csv({"train": glue}, delimiter="\t", columns=columns, quoting=False)
    assert source.split("train") == [{"source": "gj04", "label": "1", "mark": "", "sentence": 'He said "no.'}]


def test_a_file_is_read_once_until_it_changes(tmp_path):
    path = write(tmp_path, "a.txt", b"one\n")
    source = sources.Text({"train": path})
    assert source.split("train") is source.split("train")
    write(tmp_path, "a.txt", b"one\ntwo\n")
    assert len(source.split("train")) == 2


def test_hash_split_is_stable_and_keeps_equal_texts_together(tmp_path):
    rows = [{"text": f"text number {i % 500}"} for i in range(1000)]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    parts = {name: {r["text"] for r in sources.Jsonl(path).split(name)} for name in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 500 == len(set.union(*parts.values()))
    assert 420 < len(parts["train"]) < 475
    assert [sources.hash_split(t) for t in ("a", "b", "c", "w")] == ["train", "train", "train", "train"]
    assert sources.hash_split("text number 12") == sources.hash_split("text number 12")


BAD_FILES = {
    "empty.txt": (b"", r"empty\.txt is empty"),
    "blank.txt": (b"\n \n", r"blank\.txt holds no example"),
    "latin.txt": (b"fine\ncaf\xe9\n", r"latin\.txt:2: byte 0xe9 at offset 8 is not UTF-8"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl:2: not JSON"),
    "list.jsonl": (b'["a"]\n', r"list\.jsonl:1: a JSON list; write an object"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", r"deep\.jsonl:1: not JSON"),
    "ragged.csv": (b"a,b\n1,2\n3\n", r"ragged\.csv:3: 1 columns; the header has 2 \(a, b\)"),
    "wide.csv": (b"a,b\n1,2,3\n", r"wide\.csv:2: 3 columns"),
    "open.csv": (b'a,b\n1,"2\n3,4\n', r"open\.csv:\d: .*is a quote left open"),
    "header.csv": (b"a,b\n", r"header\.csv holds no example"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_where(tmp_path, name):
    data, message = BAD_FILES[name]
    kind = {"txt": sources.Text, "jsonl": sources.Jsonl, "csv": sources.Csv}[name.split(".")[1]]
    for _ in range(2):  # what failed once is not remembered as read
        with pytest.raises(DataError, match=message):
            kind({"train": write(tmp_path, name, data)}).split("train")


def test_missing_files_and_splits(tmp_path):
    write(tmp_path, "train.jsonl", b"{}\n")
    with pytest.raises(DataError, match=r"cannot read .*trian\.jsonl: No such file.*; did you mean .*train\.jsonl\?"):
        sources.Jsonl({"train": str(tmp_path / "trian.jsonl")}).split("train")
    with pytest.raises(DataError, match=r"is .*nowhere the right directory"):
        sources.Jsonl({"train": str(tmp_path / "nowhere" / "a.jsonl")}).split("train")
    with pytest.raises(ConfigError, match="unknown split 'validatoin'; did you mean 'validation'"):
        sources.Text({"train": "a", "validation": "b"}).split("validatoin")
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        sources.Function(lambda split: []).split("dev")


def test_preprocessors():
    example = {"title": "T", "body": "B"}
    assert preprocess.template(inputs="say {title}: {body}")(example) == {**example, "inputs": "say T: B"}
    with pytest.raises(DataError, match=r"'tilte'; the example has body, title"):
        preprocess.template(inputs="{tilte}")(example)
    keep = preprocess.keep(lambda e: e["title"] == "T")
    assert preprocess.apply((keep,), example, None) == example  # type: ignore[arg-type]
    assert preprocess.apply((keep, lambda e: 1 / 0), {"title": "U"}, None) is None  # type: ignore[arg-type]
    with_rng = lambda e, rng: {"n": rng}  # noqa: E731
    assert preprocess.apply((with_rng,), example, lambda: 7) == {"n": 7}  # type: ignore[arg-type,return-value]


@pytest.fixture
def entries(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", {})

    def task(name: str, size: int) -> None:
        registry.add(Task(name, sources.Function(lambda split, n=size: [{"text": "x"}] * n)))

    task("small", 100)
    task("large", 300)
    task("huge", 10_000)
    return registry


def test_rates_nest_and_sum_to_one(entries):
    entries.add(Mixture("inner", {"small": 1, "large": 3}))
    entries.add(Mixture("outer", {"inner": 2, "small": 1, "huge": 1}))
    assert entries.rates("outer") == pytest.approx({"small": 3 / 8, "large": 3 / 8, "huge": 1 / 4})
    assert entries.rates("small") == {"small": 1.0}


def test_proportional_rates_clip_before_the_temperature(entries):
    by_size = proportional(cap=400, temperature=2)
    entries.add(Mixture("m", dict.fromkeys(("small", "large", "huge"), by_size)))
    roots = [100**0.5, 300**0.5, 400**0.5]
    assert list(entries.rates("m").values()) == pytest.approx([r / sum(roots) for r in roots])


def test_bad_mixtures_and_names(entries):
    with pytest.raises(ConfigError, match="unknown task or mixture 'smal'; did you mean 'small'"):
        entries.rates("smal")
    entries.add(Mixture("empty", {}))
    entries.add(Mixture("zero", {"small": 0.0}))
    entries.add(Mixture("self", {"small": 1, "self": 1}))
    for name, message in (("empty", r"has no tasks"), ("zero", "must be .*positive"), ("self", "contains itself")):
        with pytest.raises(ConfigError, match=message):
            entries.rates(name)
