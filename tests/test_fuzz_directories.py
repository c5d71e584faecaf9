"""Damaged and hostile directories: every verb that reads one gives the same result, or one error that names the file.

A tiny workdir and a tiny directory in Hugging Face format are mutated: bits flip, files are cut, deleted, swapped, or
replaced by FIFOs, sockets, devices, directories and links; JSON gets huge numbers, other types, keys twice; manifests
name /dev/zero; tensors get NaNs and other shapes. Half of the mutations of sealed files are sealed again, as an
attacker would do. Then `load`, `verify`, `infer`, `export` and `import` run with limits on time and new memory.

- The only error is one of ours, and it names the directory.
- From a workdir, the parameters, the model, the vocabulary, the labels and the predictions equal those before the
  mutation, unless it was sealed again. (config.json is the user's own file, which may change how predictions are made.)
- From a directory in Hugging Face format, each parameter equals the tensor that another reader finds in the file.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import xxhash
from tiny_models import random_params

import t5x_lite
from t5x_lite import cli, config, experiment, saved_run
from t5x_lite.checkpoints import manifest
from t5x_lite.data import registry
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Function
from t5x_lite.errors import UserError
from t5x_lite.hub import interchange, parameters
from t5x_lite.hub.import_report import ImportReport

MUTATIONS, FEW = 300, 16
LIMIT_S, LIMIT_BYTES = 20, 2_000_000_000
TEXT = "a b c yes"
NUMBERS = ("1" + "0" * 9, "1" + "0" * 12, "1" + "0" * 30, "-1", "0", "1e400", "NaN", "Infinity", "0.5", "1" * 5000)
VALUES = (None, True, 7, 0.5, "x", "🦊" * 9, "\ud800", [], {}, [[]], {"a": {}}, ["a", 1], "../../x", "/dev/zero")
NAMES = ("/dev/zero", "../../x", "../../config.json", "/etc/passwd", "params/../../../config.json", "params", "", "\0")
REGEX = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}

hash_of = xxhash.xxh3_128_hexdigest


class Hang(BaseException):
    """No `except Exception` catches it."""


@contextlib.contextmanager
def limits():
    """Raises Hang after LIMIT_S, and MemoryError once the process has LIMIT_BYTES more than now."""

    def hang(*_):
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, old = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, before[1]))
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


# ---------------------------------------------------------------------------------------------- the sound directories


def sound(directory: Path) -> tuple[Path, Path]:
    """Makes (a workdir, a directory in Hugging Face format) of the same classifier."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "yes", "no"]
    (directory / "v").mkdir()
    (directory / "v" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = tokenizers.BertWordPieceTokenizer(str(directory / "v" / "vocab.txt"))
    tokenizer.save(str(directory / "v" / "tokenizer.json"))
    (directory / "v" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    registry.add(Task("fuzzed", Function(lambda split: [{"inputs": TEXT, "targets": "yes"}]), labels=("yes", "no")))
    cfg = config.base()
    cfg.model.preset, cfg.data.mixture, cfg.data.vocabulary = "bert_tiny", "fuzzed", str(directory / "v")
    cfg.model.update({"d_model": 8, "d_ff": 8, "num_heads": 2, "head_dim": 4, "num_encoder_layers": 2})
    cfg.model.max_positions, cfg.data.length, cfg.eval.batch_rows = 16, 16, 8
    made = experiment.resolve(cfg)
    workdir, theirs = directory / "workdir", directory / "hf"
    workdir.mkdir()
    saved_run.write(made, workdir)
    (workdir / "config.json").write_text(config.to_json(cfg))
    (workdir / "metrics.jsonl").write_text('{"step": 0, "eval/fuzzed/accuracy": 50.0}\n')
    (workdir / "run.lock").write_text("")
    interchange._write_checkpoint(directory / "saved", made.model, random_params(made.model), ImportReport(()))
    shutil.move(directory / "saved" / "checkpoints", workdir / "checkpoints")
    interchange.export_model(t5x_lite.load(workdir), theirs)
    return workdir, theirs


# ---------------------------------------------------------------------------------------------------------- mutations


def mutate(directory: Path, rng: random.Random) -> tuple[str, Path, bool]:
    """Changes one file. Returns (what was done, the file, whether a manifest was made to fit)."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    by_kind = sorted({file.suffix or "bytes" for file in files})
    likely = [kind for kind in (".json", ".safetensors") if kind in by_kind]  # Orbax has many files of other kinds
    kind = rng.choice(by_kind if rng.random() < 0.4 else likely)
    file = rng.choice([file for file in files if (file.suffix or "bytes") == kind])
    changes = [*ON_BYTES, *ON_ENTRIES]
    if file.suffix == ".json":
        changes += ON_JSON * 3
    if file.suffix == ".safetensors":
        changes = ON_BYTES + ON_ENTRIES[:3] + ON_TENSORS * 5
    if file.name == manifest.NAME:
        changes = [*ON_BYTES, *ON_ENTRIES, *[hostile_manifest] * 8]
    if file.name == "tokenizer.json":
        changes += [catastrophic_regex] * 4
    change = rng.choice(changes)
    change(file, rng)
    sealed = next((p for p in file.parents if (p / manifest.NAME).is_file() and p != directory), None)
    again = file.name == manifest.NAME and change is hostile_manifest
    if sealed and file.name != manifest.NAME and rng.random() < 0.5:
        seal(sealed)
        again = True
    return f"{change.__name__} of {file.relative_to(directory)}{', sealed again' * again}", file, again


def seal(directory: Path) -> None:
    """Makes a manifest fit the files again. Only regular files can have a hash."""
    body = json.loads((directory / manifest.NAME).read_bytes())
    del body["xxh3_128"]
    for name in list(body["files"]):
        file = directory / name
        if file.is_file() and file.stat().st_size < 1_000_000:
            body["files"][name] = {"bytes": file.stat().st_size, "xxh3_128": hash_of(file.read_bytes())}
        else:
            del body["files"][name]
    sealed = body | {"xxh3_128": hash_of(json.dumps(body, sort_keys=True).encode())}
    (directory / manifest.NAME).write_text(json.dumps(sealed))


def flip(file, rng):
    data = bytearray(file.read_bytes() or b"\0")
    for _ in range(rng.choice([1, 1, 3, 20])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def cut(file, rng):
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data) + 1)])


def insert(file, rng):
    data = file.read_bytes()
    at = rng.randrange(len(data) + 1)
    file.write_bytes(data[:at] + rng.choice([b"\0", b"\xff", b"[" * 5000, b'"', b"\xef\xbb\xbf", b"{}"]) + data[at:])


def grow_sparse(file, rng):
    os.truncate(file, 1 << 40)


def swap(file, rng):
    other = rng.choice([f for f in sorted(file.parent.iterdir()) if f.is_file() and f.name != manifest.NAME] or [file])
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)


def delete(file, rng):
    file.unlink()


def to_directory(file, rng):
    file.unlink()
    file.mkdir()


def to_fifo(file, rng):
    file.unlink()
    os.mkfifo(file)


def to_socket(file, rng):
    file.unlink()
    here = Path.cwd()
    os.chdir(file.parent)  # the path of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(file.name)
    finally:
        os.chdir(here)


def to_device(file, rng):
    file.unlink()
    file.symlink_to(rng.choice(["/dev/zero", "/dev/full", "/dev/tty", "/dev/stdin"]))


def to_loop(file, rng):
    file.unlink()
    file.symlink_to(file.name)


def to_link_elsewhere(file, rng):
    copy = file.parents[len(file.parents) - 2] / "nowhere"
    file.unlink()
    file.symlink_to(copy)


def number(file, rng):
    text = file.read_text()
    if places := list(re.finditer(r"-?\b\d+(\.\d+)?(e-?\d+)?\b", text)):
        place = rng.choice(places)
        file.write_text(text[: place.start()] + rng.choice(NUMBERS) + text[place.end() :])


def other_type(file, rng):
    value = json.loads(file.read_bytes())
    inside = value
    while isinstance(inside, dict | list) and inside:
        key = rng.choice(sorted(inside) if isinstance(inside, dict) else range(len(inside)))
        if not isinstance(inside[key], dict | list) or not inside[key] or rng.random() < 0.4:
            inside[key] = rng.choice(VALUES)
            break
        inside = inside[key]
    file.write_text(json.dumps(value))


def other_root(file, rng):
    file.write_text(json.dumps(rng.choice(VALUES)))


def renamed_key(file, rng):
    value = json.loads(file.read_bytes())
    if isinstance(value, dict) and value:
        value[rng.choice(["é🦊", "", "x" * 500, "\0"])] = value.pop(rng.choice(sorted(value)))
    file.write_text(json.dumps(value))


def key_twice(file, rng):
    text = file.read_text()
    if pair := re.search(r'\{\s*"(\w+)":', text):
        file.write_text(text[: pair.start() + 1] + f'"{pair[1]}": 1, ' + text[pair.start() + 1 :])


def hostile_manifest(file, rng):
    body = json.loads(file.read_bytes())
    body.pop("xxh3_128")
    name = rng.choice(sorted(body["files"]))
    entry = body["files"].pop(name)
    entry["bytes"] = rng.choice([0, entry["bytes"], 10**15])
    body["files"][rng.choice(NAMES)] = rng.choice([entry, None, 7])
    file.write_text(json.dumps(body | {"xxh3_128": hash_of(json.dumps(body, sort_keys=True).encode())}))


def catastrophic_regex(file, rng):
    value = json.loads(file.read_bytes())
    value["pre_tokenizer"] = REGEX
    file.write_text(json.dumps(value))


def _tensors(file, rng, change):
    tensors = safetensors.numpy.load_file(file)
    name = rng.choice(sorted(tensors))
    tensors[name] = change(tensors[name])
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})


def not_finite(file, rng):
    def change(tensor):
        tensor = tensor.copy()
        tensor.flat[rng.randrange(tensor.size)] = rng.choice([np.nan, np.inf, -np.inf])
        return tensor

    _tensors(file, rng, change)


def too_large_for_float32(file, rng):
    _tensors(file, rng, lambda tensor: tensor.astype(np.float64) * 1e300)


def other_shape(file, rng):
    _tensors(file, rng, lambda tensor: np.stack([tensor, tensor]))


def other_dtype(file, rng):
    _tensors(file, rng, lambda tensor: tensor.astype(rng.choice([np.int32, np.bool_, np.float16, np.uint8])))


def header(file, rng):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    value = json.loads(data[8 : 8 + length])
    entry = value[rng.choice(sorted(value.keys() - {"__metadata__"}))]
    entry[rng.choice(sorted(entry))] = rng.choice([*VALUES, [10**9, 10**9], [0, 2**62], [-1], "F99"])
    new = json.dumps(value).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


def header_number(file, rng):
    data = file.read_bytes()
    file.write_bytes(struct.pack("<Q", rng.choice([0, 2**63, 2**40, len(data)])) + data[8:])


ON_BYTES = [flip, cut, insert, swap, grow_sparse]
ON_ENTRIES = [delete, to_directory, to_fifo, to_socket, to_device, to_loop, to_link_elsewhere]
ON_JSON = [number, number, other_type, other_type, other_root, renamed_key, key_twice]
ON_TENSORS = [not_finite, too_large_for_float32, other_shape, other_dtype, header, header_number]


# ------------------------------------------------------------------------------------------------------------- verbs


def predictions(output: Path) -> list:
    return [json.loads(line) for line in output.read_text().splitlines()]


class Outcome:
    """What the verbs do with a directory: {verb: its result, or its error}. `errors` has what must not happen."""

    def __init__(self, directory: Path, capsys):
        self.results: dict[str, Any] = {}
        self.errors: list[str] = []
        self.directory = directory
        out = directory.parent
        self.model: Any = self.attempt("load", lambda: self.loaded())
        if directory.name == "hf":
            self.verb("import", capsys, str(directory), str(out / "imported"))
            return
        self.verb("verify", capsys, str(directory))
        (out / "inputs.jsonl").write_text(json.dumps({"inputs": TEXT}) + "\n")
        where = (f"--workdir={directory}", f"--input={out / 'inputs.jsonl'}", f"--output={out / 'answers.jsonl'}")
        if self.verb("infer", capsys, *where) == 0:
            self.results["infer"] = predictions(out / "answers.jsonl")
        if self.verb("export", capsys, str(directory), str(out / "exported")) == 0:
            self.results["export"] = safetensors.numpy.load_file(out / "exported" / "model.safetensors")

    def loaded(self):
        model = t5x_lite.load(self.directory)
        probabilities = model.classify(["a" * 30 + "!", TEXT])
        assert np.isfinite([p for row in probabilities for p in row.values()]).all(), "probabilities are NaN"
        return model

    def attempt(self, verb, call):
        try:
            with limits():
                self.results[verb] = call()
                return self.results[verb]
        except UserError as error:
            self.results[verb] = error
            if str(self.directory) not in str(error) or len(str(error).splitlines()) > 3:
                self.errors.append(f"{verb}: {error!r} does not name the directory")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.results[verb] = error
            self.errors.append(f"{verb}: {type(error).__name__}: {str(error)[:300]}")
        return None

    def verb(self, verb, capsys, *arguments):
        capsys.readouterr()
        code = self.attempt(verb, lambda: cli.run([verb, *arguments]))
        said = capsys.readouterr()
        if code and (code not in (2, 65, 74, 76) or "Traceback" in said.err or not re.search("hf|workdir", said.err)):
            self.errors.append(f"{verb}: exit {code}: {said.err[-1500:]}")
        return code


def compare(outcome: Outcome, before: Any, file: Path, sealed_again: bool) -> list[str]:
    """Returns what differs from the sound directory without a word."""
    model, wrong = outcome.model, []
    if outcome.directory.name == "hf":
        if model is not None:
            theirs = safetensors.numpy.load_file(outcome.directory / "model.safetensors")
            found = parameters.open_directory(outcome.directory)
            for name, values in parameters.tensors(model.config, found.family, model.params)[1]:
                if name not in found.names or not np.array_equal(values, theirs[found.names[name]].astype(np.float32)):
                    wrong.append(f"{name} differs from the file")
        return wrong
    if sealed_again:
        return wrong
    if model is not None:
        same = jax.tree.all(jax.tree.map(np.array_equal, model.params, before.model.params))
        wrong += [] if same else ["the parameters differ"]
    if file.name == "config.json":
        return wrong
    if model is not None:
        wrong += [name for name in ("config", "labels") if getattr(model, name) != getattr(before.model, name)]
        wrong += ["vocabulary"] * (model.vocabulary.fingerprint != before.model.vocabulary.fingerprint)
    if isinstance(outcome.results["infer"], list) and outcome.results["infer"] != before.results["infer"]:
        wrong.append("the predictions differ")
    if isinstance(exported := outcome.results["export"], dict):
        expected = before.results["export"]
        if not all(np.array_equal(exported[name], expected[name]) for name in exported.keys() | expected.keys()):
            wrong.append("the exported tensors differ")
    return wrong


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    plain, registry.REGISTRY = registry.REGISTRY, dict(registry.REGISTRY)
    yield sound(tmp_path_factory.mktemp("sound"))
    registry.REGISTRY = plain


def run(numbers, directories, tmp_path, capsys):
    """Runs mutations and returns {outcome: count}. Fails with all that went wrong."""
    before: dict[str, Outcome] = {}
    for directory in directories:
        place = tmp_path / f"sound_{directory.name}"
        shutil.copytree(directory, place / directory.name)
        before[directory.name] = Outcome(place / directory.name, capsys)
        assert not before[directory.name].errors and before[directory.name].model is not None
    faults, counts = [], {"same": 0, "refused": 0}
    for number in numbers:
        rng = random.Random(f"directory {number}")
        directory = directories[number % 2]
        place = tmp_path / str(number)
        shutil.copytree(directory, place / directory.name)
        what, file, sealed_again = mutate(place / directory.name, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = Outcome(place / directory.name, capsys)
        wrong = outcome.errors + compare(outcome, before[directory.name], file, sealed_again)
        faults += [f"{number}: {what}: {text}" for text in wrong]
        counts[
            "refused" if any(isinstance(r, UserError | int) and r for r in outcome.results.values()) else "same"
        ] += 1
        shutil.rmtree(place)
    assert not faults, "\n".join(faults)
    return counts


@pytest.mark.timeout(600, method="thread")  # the other method needs the signal that `limits` uses
def test_a_few_mutated_directories(directories, tmp_path, capsys):
    assert min(run(range(FEW), directories, tmp_path, capsys).values()) > 1


@pytest.mark.slow
@pytest.mark.timeout(3600, method="thread")
@pytest.mark.parametrize("part", range(MUTATIONS // 30))
def test_mutated_directories(directories, tmp_path, capsys, part):
    counts = run(range(part * 30, part * 30 + 30), directories, tmp_path, capsys)
    assert min(counts.values()) > 1
