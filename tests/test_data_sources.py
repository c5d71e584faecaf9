"""Sources and preprocessors: what they read, and what they report about data that they cannot read."""

import dataclasses
import gzip
import hashlib
import json
import os
import pickle
import tracemalloc

import fsspec
import fsspec.implementations.memory
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_lite.data import json_documents, opened_files, preprocess, records, registry, remote_files, sources
from t5x_lite.data.registry import Mixture, Task, proportional
from t5x_lite.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))


def forget() -> None:
    """Clears the caches that a new process does not have."""
    records.records_of.cache_clear()
    records.index_of.cache_clear()
    remote_files.fetch.cache_clear()


def write(tmp_path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def test_text_lines(tmp_path):
    path = write(tmp_path, "a.txt", "\ufeffone\r\n\r\ntwo\x0btwo\nthree".encode())
    assert list(sources.Text({"train": path}).split("train")) == [
        {"text": "one"},
        {"text": "two\x0btwo"},
        {"text": "three"},
    ]


def test_jsonl(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"text": "a\\nb", "n": 1}\n\n{"text": "\xc3\xa9"}\n')
    assert list(sources.Jsonl({"train": path}).split("train")) == [{"text": "a\nb", "n": 1}, {"text": "é"}]


def test_csv_and_tsv(tmp_path):
    table = write(tmp_path, "a.csv", b'title,body\n"one, two","say ""hi"""\r\nthree,"four\nfive"\n')
    assert list(sources.Csv({"train": table}).split("train")) == [
        {"title": "one, two", "body": 'say "hi"'},
        {"title": "three", "body": "four\nfive"},
    ]
    glue = write(tmp_path, "a.tsv", b'gj04\t1\t\tHe said "no.\n')  # quotes are text, there is no header
    columns = ("source", "label", "mark", "sentence")
    source = sources.Csv({"train": glue}, delimiter="\t", columns=columns, quoting=False)
    assert list(source.split("train")) == [{"source": "gj04", "label": "1", "mark": "", "sentence": 'He said "no.'}]


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
    pinned = write(tmp_path, "b.jsonl", b"".join(b'{"text": "%d"}\n' % i for i in range(60)))
    assert [row["text"] for row in sources.Jsonl(pinned).split("validation")] == ["39", "53"]


BAD_FILES = {
    "empty.txt": (b"", r"empty\.txt is empty"),
    "blank.txt": (b"\n \n", r"blank\.txt holds no example"),
    "latin.txt": (b"fine\ncaf\xe9\n", r"latin\.txt:2: byte 0xe9 at offset 8 is not UTF-8.*iconv -f latin1 -t utf-8"),
    "wide.txt": ("fine\n".encode("utf-16"), r"wide\.txt:1: byte 0xff at offset 0 is not UTF-8.*iconv -f utf-16"),
    "zero.txt": (b"fine\n\0\n", r"zero\.txt:2: a NUL byte at offset 5"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl:2: not JSON"),
    "list.jsonl": (b'["a"]\n', r"list\.jsonl:1: a JSON list; write one object a line .*jq"),
    "pretty.jsonl": (b'[\n {"text": "a"}\n]\n', r"pretty\.jsonl:1: not JSON .*write one object a line .*jq"),
    "object.jsonl": (b'{\n "text": "a"\n}\n', r"object\.jsonl:1: not JSON .*jq -c \. FILE"),
    "disguised.csv": (b"PAR1\x00\xff", r"disguised\.csv is not text: it begins like a Parquet file; .*\.parquet"),
    "packed.txt": (b"\x1f\x8b\x08\n", r"packed\.txt is not text: it begins like a gzip file; .*\.gz"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", r"deep\.jsonl:1: not JSON"),
    "ragged.csv": (b"a,b\n1,2\n3\n", r"ragged\.csv:3: 1 columns; the header has 2 \(a, b\)"),
    "wide.csv": (b"a,b\n1,2,3\n", r"wide\.csv:2: 3 columns"),
    "open.csv": (b'a,b\n1,"2\n3,4\n', r"open\.csv:\d: .*is a quote left open"),
    "mac.csv": (b"a,b\r1,2\r3,4\r", r"mac\.csv:1: a carriage return inside a cell; .*tr"),
    "header.csv": (b"a,b\n", r"header\.csv holds no example"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_where(tmp_path, name):
    data, message = BAD_FILES[name]
    kind = {"txt": sources.Text, "jsonl": sources.Jsonl, "csv": sources.Csv}[name.split(".")[1]]
    for _ in range(2):  # a failure is not cached as a success
        with pytest.raises(DataError, match=message):
            kind({"train": write(tmp_path, name, data)}).split("train")


SOME_BAD = {  # a file, its rows without the bad records, and the number of bad records
    "a.txt": (b"one\ncaf\xe9\ntwo\nthr\0ee\nfour\n", ["one", "two", "four"], 2),
    "a.jsonl": (b'{"text": "one"}\n{"text": \n["x"]\n{"text": "\xff"}\n{"text": "two"}\n', ["one", "two"], 3),
    "a.csv": (b'text,n\none,1\ntwo\nthree,3\n"fo"ur,4\nfi\xffve,5\nsix,6\n', ["one", "three", "six"], 3),
    "b.csv": (b'text,n\none,1\n"two\nl\xffnes",2\n"three\nlines",3\n', ["one", "three\nlines"], 1),
    "a.conll": (b"one O\n\ntwo\nx O\n\nthr\xffee O\nx O\n\nfour O\nx O\n", ["one", "four x"], 2),
}


@pytest.mark.parametrize("name", SOME_BAD)
@pytest.mark.parametrize("small", [True, False])
def test_bad_records_are_left_out_and_counted_where_some_may_be(tmp_path, monkeypatch, caplog, name, small):
    data, left, bad = SOME_BAD[name]
    monkeypatch.setattr(records, "SMALL_BYTES", 1 << 20 if small else 0)
    kinds = {"txt": sources.Text, "jsonl": sources.Jsonl, "csv": sources.Csv, "conll": sources.Conll}
    source = kinds[name.split(".")[1]]({"train": write(tmp_path, name, data)})
    for _ in range(2):  # a cached index gives the same result
        forget()
        with pytest.raises(DataError, match=rf"{name}:[234]: "):
            source.split("train")
        found = source.tolerant(0.7).split("train")
        assert [row.get("text", row.get("tokens")) for row in found] == left
        assert (found.bad, found.total) == (bad, bad + len(left))
        with pytest.raises(DataError, match=rf"{name}: {bad} of {bad + len(left)} records are bad, .*=0.1;"):
            source.tolerant(0.1).split("train")
    assert f"skipped: {tmp_path / name}:" in caplog.text
    by_hash = dataclasses.replace(source.tolerant(0.7), files=source.files["train"])  # type: ignore[index]
    assert sum(len(by_hash.split(split)) for split in records.PERCENT) == len(left)


def test_what_swallows_the_rest_of_a_file_is_no_bad_record(tmp_path):
    for name, data in (("open.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n'), ("head.csv", b'a,"b"c\n1,2\n3,4\n')):
        with pytest.raises(DataError, match=rf"{name}:\d: .* in the record that begins here"):
            sources.Csv({"train": write(tmp_path, name, data)}).tolerant(0.9).split("train")


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


# ------------------------------------------------------------------------------------------------- random access

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
CELLS = WORDS.map(lambda text: text.replace("\r", " "))  # CSV readers and writers differ about carriage returns
LINES = CELLS.map(lambda text: text.replace("\n", " "))


def write_rows(path, rows: list[dict]) -> None:
    """Writes rows in the format of the path's suffix."""
    import csv

    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
    from array_record.python.array_record_module import ArrayRecordWriter

    suffix = path.suffix.removeprefix(".")
    if suffix == "jsonl":
        path.write_bytes(
            b"".join(json.dumps(row, ensure_ascii=len(row["a"]) % 2 == 0).encode() + b"\n" for row in rows)
        )
    elif suffix == "csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3, write_page_checksum=True)
    elif suffix == "array_record":
        writer = ArrayRecordWriter(str(path), "group_size:2")
        for row in rows:
            writer.write(json.dumps(row).encode())
        writer.close()
    else:
        table = pyarrow.Table.from_pylist(rows)
        kind = pyarrow.ipc.new_stream if suffix == "arrow" else pyarrow.ipc.new_file
        with path.open("wb") as file, kind(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)


FORMATS = {
    "jsonl": sources.Jsonl,
    "csv": sources.Csv,
    "parquet": sources.Parquet,
    "arrow": sources.Arrow,
    "arrow_file": sources.Arrow,
    "array_record": sources.ArrayRecord,
}


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"a": CELLS, "ß b": CELLS}), min_size=1, max_size=9), data=st.data())
def test_what_was_written_is_read_in_any_order(tmp_path_factory, suffix, rows, data):
    path = tmp_path_factory.mktemp("rows") / f"rows.{suffix}"
    write_rows(path, rows)
    found = FORMATS[suffix]({"train": str(path)}).split("train")
    assert len(found) == len(rows)
    for place in data.draw(st.permutations(range(len(rows)))):
        assert found[place] == rows[place]
    several = data.draw(st.lists(st.integers(0, len(rows) - 1)))
    assert found.read_many(several) == [rows[place] for place in several]
    assert list(pickle.loads(pickle.dumps(found))) == rows


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_text_lines_in_any_order(tmp_path_factory, lines, end, last):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes((end.join(lines) + end * last).encode())
    kept = [line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(lines)]
    kept = [line for line in kept if line.strip()]
    if not kept:
        with pytest.raises(DataError, match=r"is empty|holds no example"):
            sources.Text({"train": str(path)}).split("train")
        return
    found = sources.Text({"train": str(path)}).split("train")
    assert [found[i]["text"] for i in reversed(range(len(found)))] == kept[::-1]


def test_an_index_is_kept_and_opens_a_long_file_in_constant_memory(tmp_path, monkeypatch, caplog):
    rows = 200_000
    caplog.set_level("INFO", "t5x_lite")
    monkeypatch.setattr(records, "LONG_BYTES", 1 << 20)
    path = write(tmp_path, "long.jsonl", b"".join(b'{"text": "row %d"}\n' % i for i in range(rows)))
    assert len(sources.Jsonl(path).split("train")) == pytest.approx(0.9 * rows, rel=0.01)
    assert [m for m in caplog.messages if "MB, once; later runs open" in m] == caplog.messages[:1]
    caplog.clear()
    forget()
    monkeypatch.setattr(records, "scan", None)  # the file is not scanned again
    tracemalloc.start()
    parts = {name: sources.Jsonl(path).split(name) for name in ("train", "validation", "test")}
    assert tracemalloc.get_traced_memory()[1] < 500_000  # bytes: the index alone has 2,600,000
    tracemalloc.stop()
    assert sum(map(len, parts.values())) == rows
    last = max(int(part[len(part) - 1]["text"].split()[1]) for part in parts.values())
    assert last == rows - 1 and not caplog.messages
    assert parts["train"].where(0) == f"{path}:{1 + int(parts['train'][0]['text'].split()[1])}"


def test_a_fingerprint_is_of_the_contents_alone(tmp_path):
    def fingerprint(name: str, data: bytes, make=sources.Jsonl) -> str:
        return make({"train": write(tmp_path, name, data)}).fingerprint("train")

    rows = b'{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n'
    mine = fingerprint("a.jsonl", rows)
    assert mine == fingerprint("moved.jsonl", rows) == fingerprint("b.jsonl", rows.replace(b"\n", b"\r\n\n"))
    others = {fingerprint("a.jsonl", other) for other in (rows[:19], rows[19:] + rows[:19], rows.replace(b"y", b"z"))}
    assert len(others | {mine}) == 4
    parts = sources.Jsonl(write(tmp_path, "c.jsonl", b"".join(b'{"a": %d}\n' % i for i in range(100))))
    assert len({parts.fingerprint(split) for split in records.PERCENT}) == 3


def test_a_damaged_index_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SMALL_BYTES", 0)
    path = write(tmp_path, "a.txt", b"one\ntwo\n")
    assert len(sources.Text({"train": path}).split("train")) == 2
    (stored,) = records.cache_dir().rglob("*.npy")
    for damage in (b"", b"nonsense", stored.read_bytes()[:100]):
        stored.write_bytes(damage)
        forget()
        assert [row["text"] for row in sources.Text({"train": path}).split("train")] == ["one", "two"]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    for name, make in (("a.txt", sources.Text), ("a.arrow", sources.Arrow)):
        path = tmp_path / name
        path.write_text("one\ntwo\n") if name == "a.txt" else write_rows(path, [{"a": "x"}, {"a": "y"}])
        opened = make({"train": str(path)}).split("train")
        assert opened[0]
        with path.open("ab") as file:
            file.write(b"three\n")
        with pytest.raises(DataError, match="changed while it was being read"):
            _ = opened[1]


def test_an_arrow_file_that_is_cut_off_or_damaged_while_it_is_read_is_an_error(tmp_path):
    """Without the check, mapped pages that vanished would kill the process."""
    path = tmp_path / "a.arrow"
    write_rows(path, [{"a": "x" * 1000}] * 5000)
    opened = sources.Arrow({"train": str(path)}).split("train")
    assert opened[0]
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b"xx", b"\xff\xff"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"a\.arrow: corrupted .*get it again"):
        opened.read_many([4000, 1])
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(DataError, match="changed while it was being read"):
        opened.read_many([4000, 1])


def test_a_change_that_time_and_size_do_not_show_is_no_traceback(tmp_path):
    for name, make, data in (("a.jsonl", sources.Jsonl, b'{"a": 1}\n'), ("a.txt", sources.Text, b"abcdefgh\n")):
        path = tmp_path / name
        path.write_bytes(data)
        opened = make({"train": str(path)}).split("train")
        before = path.stat()
        path.write_bytes(b"\xff" * len(data))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DataError, match="the record at byte 0 has changed since the file was indexed"):
            _ = opened[0]


def test_compressed_files(tmp_path):
    whole = gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')
    path = write(tmp_path, "a.jsonl.gz", whole)
    assert [row["text"] for row in sources.Jsonl({"train": path}).split("train")] == ["one", "two"]
    bad_crc = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for damaged in (whole[:-9], bad_crc, b"no gzip at all", whole[:12] + b"\xff\xff" + whole[14:]):
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: corrupted after \d+ bytes of text"):
            sources.Jsonl({"train": write(tmp_path, "a.jsonl.gz", damaged)}).split("train")
    with pytest.raises(DataError, match=r"b\.txt\.gz is empty \(0 bytes of text\)"):
        sources.Text({"train": write(tmp_path, "b.txt.gz", gzip.compress(b""))}).split("train")
    with pytest.raises(DataError, match=r"c\.txt\.gz:2: byte 0xff"):
        sources.Text({"train": write(tmp_path, "c.txt.gz", gzip.compress(b"a\n\xff\n"))}).split("train")


@pytest.mark.parametrize("content", [bytes(1 << 25), b"\n" + b"a" * (1 << 25), b"{}\n" * 9 + b"1" * (1 << 25)])
def test_a_compressed_file_with_an_endless_line_is_refused_before_it_fills_the_cache(tmp_path, monkeypatch, content):
    unpacked, read = [0], gzip.GzipFile.read

    def counted(self, size):
        block = read(self, size)
        unpacked[0] += len(block)
        return block

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    monkeypatch.setattr(opened_files, "MAX_RECORD_BYTES", 1 << 22)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    opened = [sources.Text, sources.Jsonl, sources.Csv, lambda files: json_documents.document(files["train"])]
    for name, source in zip(("a.txt.gz", "a.jsonl.gz", "a.csv.gz", "a.json.gz"), opened, strict=True):
        path, unpacked[0] = write(tmp_path, name, gzip.compress(content, 1)), 0
        with pytest.raises(DataError, match=rf"{name}: a line longer than 4 MB"):
            source({"train": path}).split("train")
        assert 1 << 22 <= unpacked[0] <= 6 << 20
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_compressed_json_value_too_long_to_parse_does_not_stay_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(json_documents, "MOST_BYTES", 1000)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path, "a.json.gz", gzip.compress(b"[\n" + b'"text",\n' * 1000 + b'""]'))
    with pytest.raises(DataError, match=r"one JSON value of over .* too long to parse"):
        json_documents.document(path)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_wildcards_are_one_file_after_the_other(tmp_path):
    for number in range(3):
        write(tmp_path, f"part-{number}.txt", b"%d a\n%d b\n" % (number, number))
    found = sources.Text({"train": str(tmp_path / "part-*.txt")}).split("train")
    assert [row["text"] for row in found] == ["0 a", "0 b", "1 a", "1 b", "2 a", "2 b"]
    places = [5, 0, 3, 3, 1]
    several = found.read_many(places)
    assert several == [found[place] for place in places] and found.read_many([]) == []
    assert several[2] is not several[3]  # a preprocessor may modify its input
    assert found[-1] == {"text": "2 b"} and found.where(3).endswith("part-1.txt:2")
    everything = {row["text"] for name in records.PERCENT for row in sources.Text(str(tmp_path / "part-*")).split(name)}
    assert len(everything) == 6
    with pytest.raises(DataError, match=r"no file matches .*none-\*"):
        sources.Text({"train": str(tmp_path / "none-*")}).split("train")


def test_parallel_files(tmp_path):
    write(tmp_path, "a.en", b"one\n\n\nfour\n")
    write(tmp_path, "a.de.gz", gzip.compress(b"eins\n\ndrei\nvier"))
    pattern = str(tmp_path / "a.{en,de.gz}")
    found = sources.ParallelText({"train": pattern}).split("train")
    assert list(found) == [{"en": t, "de.gz": s} for t, s in (("one", "eins"), ("", "drei"), ("four", "vier"))]
    assert found.read_many([2, 0]) == [found[2], found[0]]
    assert found.where(1) == f"{pattern}:3"
    write(tmp_path, "a.en", b"one\n")
    with pytest.raises(DataError, match=r"en has 1 lines, de.gz has 4 lines; parallel files must"):
        sources.ParallelText({"train": pattern}).split("train")


def test_sentences_in_columns(tmp_path):
    path = write(tmp_path, "a.conll", b"\n-DOCSTART-\tO\n\nEU\tB-org\nrejects\tO\n\t\n\nPeter\tB-per\r\n")
    source = sources.Conll({"train": path})
    assert list(source.split("train")) == [
        {"tokens": "EU rejects", "tags": "B-org O"},
        {"tokens": "Peter", "tags": "B-per"},
    ]
    assert source.split("train").where(1) == f"{path}:8"
    for damaged in (b"a O\nb\n", b"a O\nb O O\n", b"a O\nb  O\n", b"a\tO\n\tO\n"):
        with pytest.raises(DataError, match=r"b\.conll:2: [123] columns, .* every line must have 2 \(tokens, tags\)"):
            sources.Conll({"train": write(tmp_path, "b.conll", damaged)}).split("train")


def test_a_cut_off_table_is_no_shorter_table(tmp_path):
    rows = [{"a": f"row {i}"} for i in range(50)]
    for suffix in ("arrow", "arrow_file", "parquet", "array_record"):
        whole = tmp_path / f"whole.{suffix}"
        write_rows(whole, rows)
        data = whole.read_bytes()
        for keep in (len(data) - 1, len(data) - 8, len(data) * 2 // 3, len(data) // 3, 40, 1):
            with pytest.raises(DataError, match=rf"cut\.{suffix}"):
                list(FORMATS[suffix]({"train": write(tmp_path, f"cut.{suffix}", data[:keep])}).split("train"))


class Remote(fsspec.implementations.memory.MemoryFileSystem):
    """A remote file system, with or without ETags, that counts how often a file was opened."""

    protocol, store, pseudo_dirs, etags, opened = "elsewhere", {}, [""], True, 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("elsewhere://", "memory://"))

    def info(self, path, **kwargs):
        found = super().info(path, **kwargs)
        content = self.store[self._strip_protocol(path)].getvalue()
        return found | ({"ETag": hashlib.md5(content).hexdigest()} if Remote.etags else {"created": 0})

    def _open(self, path, mode="rb", **kwargs):
        Remote.opened += mode == "rb"
        return super()._open(path, mode, **kwargs)


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_remote_file_is_fetched_once_a_version(monkeypatch, etags, suffix):
    """If a file system has no modification time (epath shows none for Amazon's), a different file of the same size must
    not be read from the first file's copy."""
    fsspec.register_implementation("elsewhere", Remote, clobber=True)
    monkeypatch.setattr(Remote, "etags", etags)
    monkeypatch.setattr(Remote, "opened", 0)
    packed = (lambda text: gzip.compress(text, mtime=0)) if suffix else bytes
    name, system = f"elsewhere://bucket/there.txt{suffix}", fsspec.filesystem("elsewhere")

    def read() -> list[str]:
        forget()  # as in a different process
        return [row["text"] for row in sources.Text({"train": name}).split("train")]

    system.pipe("/bucket/there.txt" + suffix, packed(b"a\nb\n"))
    assert read() == read() == ["a", "b"]
    assert Remote.opened == (1 if etags else 2)
    system.pipe("/bucket/there.txt" + suffix, packed(b"c\nd\n"))
    assert read() == ["c", "d"]
    assert Remote.opened == (2 if etags else 3)
    with pytest.raises(DataError, match=r"cannot read elsewhere://bucket/nowhere.txt: there is no such file"):
        sources.Text({"train": "elsewhere://bucket/nowhere.txt"}).split("train")
    with pytest.raises(DataError, match=r"cannot read nosuch://a: .*nosuch"):
        sources.Text({"train": "nosuch://a"}).split("train")


def test_json_that_others_read_without_a_word(tmp_path):
    for line, message in (
        ('{"a": 1, "a": 2}', "the key 'a' is repeated"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": "x\0"}', "a NUL byte at offset"),
    ):
        with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
            sources.Jsonl({"train": write(tmp_path, "a.jsonl", b'{"a": 0}\n' + line.encode())}).split("train")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", write(tmp_path, "not_a_directory", b"x"))
    monkeypatch.setattr(records, "SMALL_BYTES", 0)
    assert len(sources.Text({"train": write(tmp_path, "a.txt", b"a\n")}).split("train")) == 1
    with pytest.raises(DataError, match=r"cannot write .*T5X_LITE_CACHE"):
        sources.Text({"train": write(tmp_path, "a.txt.gz", gzip.compress(b"a\n"))}).split("train")


# --------------------------------------------------------------------------------------------------- preprocessors


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
    for name, message in (("empty", r"has no tasks"), ("zero", "has only rates of 0"), ("self", "contains itself")):
        with pytest.raises(ConfigError, match=message):
            entries.rates(name)
