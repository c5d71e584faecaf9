"""Corrupted files of every format: reading one raises a UserError that names it, or returns exactly its contents.

Checks each mutated file, opened alone and as a task of `data.files`:
- the only exception is a UserError of at most three lines, and a DataError names the file;
- rows equal a second, plain reading of the same bytes by different code (`REFERENCES`), which fails on ragged rows,
  broken checksums and missing ends, so nothing is dropped, cut or shifted silently;
- for gzip and ArrayRecord, which checksum all contents, rows equal the rows that were written;
- a vocabulary that still loads returns ids within its size.
A mutation depends only on (format, number). A hang runs into the time limit.
"""

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pytest

from t5x_lite.data import sources, vocabularies
from t5x_lite.errors import ConfigError, DataError, UserError
from t5x_lite.tasks.files import discover

MUTATIONS = 60  # of each format
ROWS = [{"text": f"row {i}: ü“{chr(0x4E00 + i)}” is, {i * i}", "label": "yes" if i % 3 else "no"} for i in range(24)]
INSERTED = [
    b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"{",
    b"[" * 5000, b"\\", b"\\ud800", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x85", b"NaN", b"1" * 5000, b'"text": 1, ',
    b"null", b" ", b"-0",
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    def place() -> int:
        return rng.randrange(len(data) + 1)

    kind = rng.randrange(10)
    if kind <= 2:  # flip bits
        out = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        return bytes(out)
    if kind == 3:
        return data[: place()]
    if kind == 4:
        begin, end = sorted((place(), place()))
        return data[:begin] + data[end:]
    if kind == 5:
        begin, end = sorted((place(), place()))
        return data[:end] + data[begin:]
    if kind == 6:
        return rng.choice(
            [
                b"\xef\xbb\xbf" + data,
                data.replace(b"\n", b"\r\n"),
                data.replace(b"\n", b"\r"),
                data + b"\n\n",
                b"",
                b"\n",
            ]
        )
    if kind == 7:
        return data.decode("latin-1").encode(rng.choice(["utf-16", "utf-16-le", "utf-8"]))
    at = place()
    return data[:at] + rng.choice(INSERTED) + data[at:]


# ------------------------------------------------------------------------------------- each format, and a second reader


def text_lines(data: bytes) -> list[str]:
    text = data.decode("utf-8-sig")
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def read_text(data: bytes) -> list[dict]:
    return [{"text": line} for line in text_lines(data) if line.strip()]


def read_paragraphs(data: bytes) -> list[dict]:
    lines = "\n".join(line if line.strip() else "" for line in text_lines(data))
    return [{"text": part.strip("\n")} for part in lines.split("\n\n") if part.strip("\n")]


def read_jsonl(data: bytes) -> list[dict]:
    return [json.loads(line) for line in text_lines(data) if line.strip()]


def read_table(data: bytes, delimiter: str, quoting: int) -> list[dict]:
    text = io.StringIO("\n".join(text_lines(data)), newline="")
    header, *rows = [r for r in csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True) if r]  # type: ignore[arg-type]
    assert len(set(header)) == len(header)
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_conll(data: bytes) -> list[dict]:
    blocks = "\n".join(line if line.strip() else "" for line in text_lines(data)).split("\n\n")
    rows = []
    for block in blocks:
        lines = [line for line in block.split("\n") if line and not line.startswith("-DOCSTART-")]
        pairs = [line.split("\t") if "\t" in line else line.split(" ") for line in lines]
        assert all(len(pair) == 2 and all(pair) for pair in pairs)
        if pairs:
            rows.append({"tokens": " ".join(p[0] for p in pairs), "tags": " ".join(p[1] for p in pairs)})
    return rows


def read_parquet(data: bytes) -> list[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()


def read_arrow(data: bytes) -> list[dict]:
    import pyarrow.ipc

    assert data.endswith(b"\xff\xff\xff\xff\0\0\0\0")
    return pyarrow.ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()


def as_written(data: bytes) -> list[dict]:
    return ROWS


REFERENCES = {
    "txt": (sources.Text, read_text),
    "text": (lambda files: sources.Text(files, paragraphs=True), read_paragraphs),
    "jsonl": (sources.Jsonl, read_jsonl),
    "csv": (sources.Csv, lambda data: read_table(data, ",", csv.QUOTE_MINIMAL)),
    "tsv": (
        lambda files: sources.Csv(files, delimiter="\t", quoting=False),
        lambda data: read_table(data, "\t", csv.QUOTE_NONE),
    ),
    "conll": (sources.Conll, read_conll),
    "jsonl.gz": (sources.Jsonl, as_written),
    "parquet": (sources.Parquet, read_parquet),
    "arrow": (sources.Arrow, read_arrow),
    "array_record": (sources.ArrayRecord, as_written),
}


def whole(suffix: str, directory: Path) -> bytes:
    """Writes an intact file of each format."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
    from array_record.python.array_record_module import ArrayRecordWriter

    path = directory / f"whole.{suffix}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if suffix == "array_record":
        writer = ArrayRecordWriter(str(path), "group_size:4")
        for row in ROWS:
            writer.write(json.dumps(row).encode())
        writer.close()
        return path.read_bytes()
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist(ROWS)
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, buffer, row_group_size=8, write_page_checksum=True)
    elif suffix == "arrow":
        with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table, max_chunksize=8)
    else:
        quoted = "text,label\n" + "".join(f'"{r["text"]}\n""{r["label"]}""",{r["label"]}\n' for r in ROWS)
        return {
            "txt": "".join(r["text"] + "\n" for r in ROWS).encode(),
            "text": "".join(f"{r['text']}\n{r['label']}\n\n" for r in ROWS).encode(),
            "jsonl": lines,
            "csv": quoted.encode(),
            "tsv": ("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS)).encode(),
            "conll": "".join(f"{r['text'].replace(' ', '_')}\tO\n{r['label']}\tB-x\n\n" for r in ROWS).encode(),
            "jsonl.gz": gzip.compress(lines, mtime=0),
        }[suffix]
    return buffer.getvalue()


def complain(error: UserError, path: Path) -> None:
    assert path.name in str(error) or isinstance(error, ConfigError), f"{error} does not name {path.name}"
    assert len(str(error).splitlines()) <= 3, error


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("suffix", REFERENCES)
def test_damaged_files(tmp_path, suffix):
    source, reference = REFERENCES[suffix]
    sound = whole(suffix, tmp_path)
    outcomes = {"rows": 0, "refused": 0}
    for number in range(MUTATIONS):
        data = mutated(sound, random.Random(f"{suffix} {number}")) if number else sound
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(data)
        try:
            rows = list(source({"train": str(path)}).split("train"))
        except DataError as error:
            complain(error, path)
            outcomes["refused"] += 1
            rows = None
        else:
            assert rows == reference(data), f"mutation {number} is not read as it is written"
            outcomes["rows"] += 1
        try:  # if bad records are allowed, the rest is readable
            left = list(source({"train": str(path)}).tolerant(0.99).split("train"))
            assert rows is None or left == rows
        except DataError as error:
            complain(error, path)
            assert rows is None
        templates = {"inputs": "{tokens}", "targets": "{tags}"} if suffix == "conll" else {"text": "{text}"}
        try:
            task = discover(f"train={path}", **templates).task
            assert all(isinstance(text, str) for row in task.source.split("train") for text in row.values())
        except UserError as error:
            complain(error, path)
    assert min(outcomes.values()) > 1, outcomes  # both outcomes occur


def vocabulary_files(directory: Path) -> dict[str, bytes]:
    import sentencepiece
    from tokenizers import pre_tokenizers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop", "##e", "##s", "the", "fox"]
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n")
    word_piece = vocabularies.TokenizerVocabulary(directory / "vocab.txt").tokenizer.to_str()
    tokens = {token: i for i, token in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"])}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fox and the dog " * 3, "a cat sat on a mat"] * 20), model_writer=model,
        vocab_size=21, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return {
        "vocab.txt": "\n".join(pieces).encode(),
        "tokenizer.json": word_piece.encode(),
        "vocab.json": json.dumps(tokens).encode(),
        "merges.txt": b"#version: 0.2\nt h\n",
        "a.model": model.getvalue(),
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "vocab.json", "merges.txt", "a.model"])
def test_damaged_vocabularies(tmp_path, name):
    contents = vocabulary_files(tmp_path)
    for file, data in contents.items():
        (tmp_path / file).write_bytes(data)
    loaded = {"merges.txt": "vocab.json"}.get(name, name)
    outcomes = {"ids": 0, "refused": 0}
    for number in range(MUTATIONS):
        data = mutated(contents[name], random.Random(f"{name} {number}")) if number else contents[name]
        (tmp_path / name).write_bytes(data)
        try:
            vocabulary = vocabularies.load(str(tmp_path / loaded))
            ids = vocabulary.encode(["The fox, the ü “x”\n", ""])[0]
            assert all(0 <= i < vocabulary.size for i in [*ids, vocabulary.pad_id, vocabulary.eos_id])
            vocabulary.decode(ids), vocabulary.show(ids), vocabulary.fingerprint
            outcomes["ids"] += 1
        except UserError as error:
            assert str(tmp_path) in str(error) and len(str(error).splitlines()) <= 3
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 1, outcomes
