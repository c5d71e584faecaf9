"""Cached tasks: same batches as uncached ones, files that are complete or absent, and no unnoticed stale cache."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from waiting import wait_until

from t5x_lite import cli
from t5x_lite.data import cache, make_cache, pipeline, preprocess, registry, sources
from t5x_lite.data.convert import DecoderOnly, TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.registry import Feature, Mixture, Task
from t5x_lite.data.sentence_pairs import sentences
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError

VOCABULARY = ByteVocabulary(extra_ids=50)
EXAMPLES = 230
CONVERTERS = {
    "text_to_text": TextToText(48, 24),
    "decoder_only": DecoderOnly(64),
    "encoder_only": EncoderOnly(64, ("mlm", "nsp", "classification"), max_examples_per_row=4),
}


def documents(split: str) -> list[dict]:
    rng = np.random.default_rng(1)
    return [{"text": ". ".join(f"größe {i}" for _ in range(rng.integers(0, 9)))} for i in range(EXAMPLES)]


def numbered(split: str) -> list[dict]:
    return [{"inputs": f"{split} {i}", "targets": "odd" if i % 2 else "even"} for i in range(EXAMPLES)]


KEEP = preprocess.keep(lambda e: not e["inputs"].endswith("7"))
CORPUS = Task("corpus", sources.Function(documents), features={"text": Feature()})
NUMBERS = Task("numbers", sources.Function(numbered), (KEEP,), labels=("even", "odd"))
RANDOM = Task("random", sources.Function(numbered), (lambda example, rng: example,))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache, "MIN_SHARD_EXAMPLES", 50)
    monkeypatch.setattr(registry, "REGISTRY", {})
    for entry in (CORPUS, NUMBERS, RANDOM, Mixture("both", {"corpus": 1, "numbers": 1, "random": 1})):
        registry.add(entry)


def silent(text: str) -> None:
    pass


def job_of(directory: Path, task: Task = NUMBERS, converter="text_to_text", vocabulary=VOCABULARY) -> cache.Job:
    return cache.job_for(task, CONVERTERS[converter], vocabulary, directory)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# --------------------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize("vocabulary", [VOCABULARY, ByteVocabulary(extra_ids=70_000)], ids=["uint16", "int32"])
@pytest.mark.parametrize("task", [CORPUS, NUMBERS], ids=lambda task: task.name)
def test_what_is_read_is_what_was_tokenised(tmp_path, task, vocabulary):
    job = job_of(tmp_path, task, vocabulary=vocabulary)
    manifest = make_cache.make(job, report=silent)
    order = np.random.default_rng(0).permutation(EXAMPLES).tolist()
    read = [example for example in cache.Cache(job).read(order) if example is not None]
    source = task.source.split("train")
    expected = [e for i in order if (e := preprocess.apply(task.preprocessors, source[i], None)) is not None]
    assert len(read) == len(expected) == manifest["kept"] <= manifest["examples"] == EXAMPLES == len(cache.Cache(job))
    for ours, theirs in zip(read, expected, strict=True):
        for field, ids in ours.items():
            assert ids.dtype == (np.int32 if vocabulary.size > 2**16 else np.uint16)
            np.testing.assert_array_equal(ids, vocabulary.encode([theirs[field]])[0])
        if task.labels:
            assert ours.label == task.labels.index(theirs["targets"])
    assert manifest["tokens"] == sum(len(ids) for e in read for ids in e.values())
    assert cache.Cache(job).read([]) == []


def test_a_corpus_for_an_encoder_keeps_its_sentences(tmp_path):
    job = job_of(tmp_path, CORPUS, "encoder_only")
    make_cache.make(job, report=silent)
    for ours, theirs in zip(cache.Cache(job).read(range(EXAMPLES)), documents("train"), strict=True):
        assert ours is not None
        expected = VOCABULARY.encode(sentences(theirs["text"]))
        assert [ids.tolist() for ids in ours["text"]] == [ids.tolist() for ids in expected]


def test_an_encoder_reads_a_tasks_segments(tmp_path):
    task = dataclasses.replace(NUMBERS, segments=("inputs",), labels=("even", "odd"))
    assert job_of(tmp_path, task, "encoder_only").recipe["fields"] == ["inputs"]


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("pack", [True, False])
def test_batches_from_a_cache_are_those_without_it(tmp_path, converter, pack):
    """Uses a mixture of a corpus, a filtered task with labels, and a task that cannot be cached."""
    registry.add(dataclasses.replace(RANDOM, labels=("even", "odd")))
    make_cache.run(registry.tasks("both"), CONVERTERS[converter], VOCABULARY, tmp_path, report=silent)

    def batches(directory: str):
        return pipeline.train_batches(
            registry.mixture("both"),
            CONVERTERS[converter],
            VOCABULARY,
            batch_rows=8,
            seed=3,
            pack=pack,
            cache_dir=directory,
        )

    plain, cached = batches(""), batches(str(tmp_path))
    for _ in range(30):
        ours, theirs = next(cached), next(plain)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
            assert ours[name].dtype == theirs[name].dtype
    assert cached.counters() == plain.counters() and cached.counters()["epochs/numbers"] > 0
    plain.set_state(cached.get_state())  # a resumed run may switch between the two
    plain.close()
    cached.close()


# ----------------------------------------------------------------------------------------------------------- making


def test_several_processes_make_the_same_files(tmp_path):
    code = (
        "import sys; from pathlib import Path; import test_data_cache as t\n"
        "t.cache.MIN_SHARD_EXAMPLES = 50\n"
        "for task in (t.CORPUS, t.NUMBERS): t.make_cache.make(t.job_of(Path(sys.argv[1]), task), workers=3)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "many")], check=True, env=environment(), timeout=300)
    for task in (CORPUS, NUMBERS):
        make_cache.make(job_of(tmp_path / "one", task), report=silent)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert sum(name.endswith(".safetensors") for name in contents(tmp_path / "one")) == 2 * 5


def environment() -> dict[str, str]:
    here = Path(__file__).parent
    return os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}


def test_a_killed_job_goes_on_with_the_shards_it_lacks(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; import test_data_cache as t\n"
        "t.cache.MIN_SHARD_EXAMPLES = 50\n"
        "make = t.make_cache.make_shard\n"
        "t.make_cache.make_shard = lambda job, shard: (make(job, shard), time.sleep(1e3 * (shard > 1)))[0]\n"
        "t.make_cache.make(t.job_of(Path(sys.argv[1])), workers=2)"
    )
    directory = tmp_path / "numbers"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment(), start_new_session=True)
    # The recipe and three shards; then two workers hang.
    wait_until(lambda: len(list(directory.glob("*.json"))) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not _alive(process.pid))  # the workers end with their parent
    with pytest.raises(DataError, match=r"is incomplete.*t5x-lite cache numbers --output"):
        cache.Cache(job_of(tmp_path))
    (directory / "00001-of-00005.safetensors").write_bytes(b"half")  # as after a crash of the machine
    (directory / ".00004-of-00005.safetensors.1").write_bytes(b"part")
    os.utime(directory / ".00004-of-00005.safetensors.1", (0, 0))
    before = {path: path.stat().st_mtime_ns for path in directory.glob("*.safetensors")}
    lines: list[str] = []
    make_cache.make(job_of(tmp_path), report=lines.append)
    assert "5 shards" in lines[0] and "already made" in lines[0]
    kept = [path for path, time_ns in before.items() if path.stat().st_mtime_ns == time_ns]
    assert len(kept) == len(before) - 1 >= 2
    make_cache.make(job_of(tmp_path / "whole"), report=silent)
    assert contents(directory) == contents(tmp_path / "whole" / "numbers")


def _alive(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_run_again_a_whole_cache_is_checked_and_mended(tmp_path):
    job = job_of(tmp_path)
    make_cache.make(job, report=silent)
    expected = contents(tmp_path)
    path = tmp_path / "numbers" / "00002-of-00005.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    lines: list[str] = []
    make_cache.make(job, report=lines.append)
    assert "4 already made" in lines[0] and len(lines) == 2
    assert contents(tmp_path) == expected


def test_a_cache_made_again_is_not_read_from_the_old_memory_map(tmp_path):
    """Same process, directory and sizes; only the texts differ."""
    for number in range(2):
        source = sources.Function(lambda split, n=number: [{"inputs": f"{n}{i:03}", "targets": "x"} for i in range(90)])
        job = job_of(tmp_path, Task("again", source))
        make_cache.make(job, report=silent)
        read = cache.Cache(job).read(range(90))
        assert [VOCABULARY.decode(example["inputs"]) for example in read if example] == [
            f"{number}{i:03}" for i in range(90)
        ]
        shutil.rmtree(job.directory)


def test_a_job_leaves_what_another_is_writing(tmp_path):
    job = job_of(tmp_path)
    make_cache.begin(job)
    partial = job.directory / ".00001-of-00005.safetensors.abc"
    partial.write_bytes(b"more is coming")
    make_cache.make(job, report=silent)
    assert partial.exists()


def test_a_large_shard_is_made_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(make_cache, "EXAMPLES_TOGETHER", 8)
    monkeypatch.setattr(cache, "MIN_SHARD_EXAMPLES", 300)
    source = sources.Function(lambda split: [{"text": "x" * 20_000}] * 300)
    job = job_of(tmp_path, Task("large", source, features={"text": Feature()}))
    make_cache.begin(job)
    tracemalloc.start()
    counts = make_cache.make_shard(job, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["bytes"] > 12e6 and peak < 5e6
    assert sum(len(array) for array in safetensors.numpy.load_file(job.path(0, ".safetensors")).values()) == 6_000_601


def test_a_bad_record_ends_the_job_with_its_own_message(tmp_path):
    wrong = dataclasses.replace(NUMBERS, labels=("even",))
    code = (
        "import dataclasses, sys; from pathlib import Path; import test_data_cache as t\n"
        "t.cache.MIN_SHARD_EXAMPLES = 50\n"
        "wrong = dataclasses.replace(t.NUMBERS, labels=('even',))\n"
        "try: t.make_cache.make(t.job_of(Path(sys.argv[1]), wrong), workers=2)\n"
        "except t.DataError as error: print('said:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert " of 'train': task 'numbers': label 'odd' is not one of even" in done.stdout, done.stderr
    with pytest.raises(DataError, match="label 'odd' is not one of even"):
        make_cache.make(job_of(tmp_path / "b", wrong), report=silent)


def test_beam_makes_the_same_files(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra t5x-lite[beam]")
    for runner, flags in (("one", None), ("beam", ())):
        make_cache.run(
            (CORPUS, NUMBERS),
            CONVERTERS["decoder_only"],
            VOCABULARY,
            tmp_path / runner,
            beam_flags=flags,
            report=silent,
        )
    assert contents(tmp_path / "one") == contents(tmp_path / "beam")


def test_without_beam_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ConfigError, match=r"pip install 't5x-lite\[beam\]'"):
        make_cache.make_on_beam([job_of(tmp_path)])


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("task", "converter", "vocabulary", "named"),
    [
        (dataclasses.replace(NUMBERS, preprocessors=()), "text_to_text", VOCABULARY, r"preprocessors .*keep.* → \[\]"),
        (dataclasses.replace(NUMBERS, source=sources.Function(lambda s: numbered(s)[1:])), "text_to_text", VOCABULARY,
         r"examples 230 → 229; source"),
        (dataclasses.replace(NUMBERS, labels=("odd", "even")), "text_to_text", VOCABULARY, "labels"),
        (NUMBERS, "encoder_only", VOCABULARY, "fields"),
        (NUMBERS, "text_to_text", ByteVocabulary(), "vocabulary"),
    ],
    ids=["preprocessors", "source", "labels", "reader", "vocabulary"],
)  # fmt: skip
def test_a_stale_cache_is_refused_by_name_and_says_how_to_make_it_again(tmp_path, task, converter, vocabulary, named):
    make_cache.make(job_of(tmp_path), report=silent)
    other = job_of(tmp_path, task, converter, vocabulary)
    with pytest.raises(DataError, match=rf"stale: .*{named}.*`t5x-lite cache numbers --output="):
        cache.Cache(other)
    with pytest.raises(DataError, match=rf"a different cache: .*{named}"):
        make_cache.make(other, report=silent)


def test_a_cache_that_lost_a_file_or_part_of_one(tmp_path):
    job = job_of(tmp_path)
    with pytest.raises(DataError, match="is missing; `t5x-lite cache numbers"):
        cache.Cache(job)
    make_cache.make(job, report=silent)
    path = tmp_path / "numbers" / "00003-of-00005.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"[" + whole[9:])
    with pytest.raises(
        DataError, match=r"00003-of-00005.safetensors is corrupted \(.*`t5x-lite cache` again to repair it"
    ):
        cache.Cache(job).read(range(230))
    path.write_bytes(whole[:-7])
    with pytest.raises(DataError, match=r"00003-of-00005.safetensors has \d+ bytes instead of"):
        cache.Cache(job)
    path.unlink()
    with pytest.raises(DataError, match=r"00003-of-00005.safetensors is missing"):
        cache.Cache(job)
    for wrong in ("{", "[1]", "[" * 100_000):
        (tmp_path / "numbers" / "manifest.json").write_text(wrong)
        with pytest.raises(DataError, match=r"cannot read .*manifest.json"):
            cache.Cache(job)


def test_a_task_that_draws_at_random_is_not_cached(tmp_path):
    with pytest.raises(ConfigError, match=r"'random' cannot be cached: its preprocessor .*lambda"):
        job_of(tmp_path, RANDOM)
    lines: list[str] = []
    make_cache.run((NUMBERS, RANDOM), CONVERTERS["text_to_text"], VOCABULARY, tmp_path, report=lines.append)
    assert any(line.startswith("random: not cached") for line in lines)
    assert (tmp_path / "numbers").exists() and not (tmp_path / "random").exists()


def test_nothing_to_cache(tmp_path):
    nothing = dataclasses.replace(NUMBERS, source=sources.Function(lambda split: []))
    with pytest.raises(DataError, match="has no training example"):
        job_of(tmp_path, nothing)
    dropped = dataclasses.replace(NUMBERS, preprocessors=(preprocess.keep(lambda e: False),))
    with pytest.raises(DataError, match="no example left of 230"):
        make_cache.make(job_of(tmp_path, dropped), report=silent)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write the cache .*a different --output"):
        make_cache.make(job_of(tmp_path / "file"), report=silent)


def test_the_verb(tmp_path, capsys):
    flags = ("--config.data.vocabulary=bytes", "--workers=1")
    assert cli.run(["cache", "both", f"--output={tmp_path}", *flags]) == 0
    said = capsys.readouterr().out
    assert "random: not cached" in said and f"--config.data.cache_dir={tmp_path}" in said
    manifest = json.loads((tmp_path / "numbers" / "manifest.json").read_text())
    assert manifest["kept"] == 207 and len(manifest["shards"]) == 5
    assert cli.run(["cache", "numbers", f"--output={tmp_path}", "--config.data.vocabulary=bytez", *flags[1:]]) == 2
