"""The quickstart's text: gathered completely, cached safely, split so that evaluations use only unseen text."""

import collections
import concurrent.futures
import os
import sys

import pytest

from t5x_lite.data import registry
from t5x_lite.errors import DataError
from t5x_lite.tasks import python_docs, quickstart

EVALUATION = ("validation", "test")
MAKERS = (quickstart.classify, quickstart.summarize)

SHAPES = '''
"""Shapes and their areas, in square metres."""
class Circle:
    """A round thing with a radius."""
    def area(self, precise: bool = False, *, unit="m"):
        """Return the area. It grows with the radius."""
        def helper(x):
            "An inner helper that is documented too."
if True:
    async def draw(canvas, *points, **style):
        """Draw all points on the canvas."""
def undocumented(): pass
def repeated(self):
    """Return   the AREA: it grows with the radius!"""
def short():
    """Too short."""
'''


@pytest.fixture
def stdlib(tmp_path):
    root = tmp_path / "lib"
    files = {
        "shapes/__init__.py": SHAPES,
        "test/test_shapes.py": '"""Tests that nobody wants to read here."""',
        "shapes/tests/more.py": '"""Tests that nobody wants to read here."""',
        "site-packages/other.py": '"""A package that is not part of Python."""',
        "python2.py": "print 'no longer a module of this language'",
        "latin.py": b"# coding: latin-1\n'Caf\xe9s and their many kinds of tea.'\n",
        "broken.py": b"'\xff\xfe is neither text nor code \x00'",
        "pydoc_data/topics.py": r"topics = {'loops': 'Loops\n*****\n\nThey go round.'}",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def documents(cache):
    """Returns this Python's own documentation."""
    return python_docs.load(cache=cache)


# ------------------------------------------------------------------------------------------------------ gathering


def test_gathers_every_docstring_and_article_but_no_tests_and_no_repetitions(stdlib):
    found = {(d["module"], d["name"]): d for d in python_docs.gather(stdlib)}
    assert set(found) == {
        ("shapes", ""),
        ("shapes", "Circle"),
        ("shapes", "Circle.area"),
        ("shapes", "Circle.area.helper"),
        ("shapes", "draw"),
        ("latin", ""),
        ("", "loops"),
    }
    assert found["shapes", "Circle.area"] == {
        "text": "Return the area. It grows with the radius.",
        "module": "shapes",
        "name": "Circle.area",
        "signature": "area(precise, unit)",
        "kind": "function",
    }
    assert found["shapes", "draw"]["signature"] == "draw(canvas, *points, **style)"
    assert found["latin", ""]["text"] == "Cafés and their many kinds of tea."
    assert found["", "loops"]["text"] == "Loops\n\nThey go round."


def test_a_library_without_sources_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"no documentation found in .*\n.*ships its standard library as \.py"):
        python_docs.gather(tmp_path)


def test_gathering_imports_none_of_the_modules(stdlib):
    (stdlib / "trap.py").write_text('"""A module that must not be imported."""\nraise SystemExit("imported")')
    assert any(d["module"] == "trap" for d in python_docs.gather(stdlib))
    assert not {"trap", "shapes", "latin"} & set(sys.modules)


def test_this_python_has_about_eight_thousand_documents(documents):
    kinds = collections.Counter(d["kind"] for d in documents)
    assert 5_000 < len(documents) < 15_000
    assert kinds["topic"] > 300 and kinds["class"] > 500 and kinds["module"] > 250
    assert not any("test" in d["module"].split(".") for d in documents)


def test_the_first_documents_of_a_split_are_a_fair_sample(documents):
    modules = {d["module"].split(".")[0] for d in [d for d in documents if d["split"] == "validation"][:100]}
    assert len(modules) > 25


# ---------------------------------------------------------------------------------------------------------- splits


def test_texts_that_share_a_sentence_share_a_split_whatever_their_order():
    chain = [f"Sentence number {i} of the chain. Sentence number {i + 1} of the chain." for i in range(40)]
    loners = [f"A text about the number {i} and nothing else." for i in range(400)]
    splits = python_docs.assign_splits(chain + loners)
    assert len(set(splits[:40])) == 1
    shares = collections.Counter(splits[40:])
    for split, percent in python_docs.EVALUATION_PERCENT.items():
        assert percent / 2 < 100 * shares[split] / 400 < percent * 2
    backwards = python_docs.assign_splits((chain + loners)[::-1])
    assert backwards[::-1] == splits


def test_no_sentence_of_an_evaluation_document_is_in_a_training_document(documents):
    prints = {
        split: {p for d in documents if d["split"] == split for p in python_docs.fingerprints(d["text"])}
        for split in python_docs.SPLITS
    }
    assert not prints["train"] & prints["validation"]
    assert not prints["train"] & prints["test"]
    assert not prints["validation"] & prints["test"]
    shares = collections.Counter(d["split"] for d in documents)
    for split in EVALUATION:
        assert 0.035 < shares[split] / len(documents) < 0.09


def test_no_evaluation_text_occurs_anywhere_in_training_whatever_the_task(documents):
    def seen(split):
        """Returns everything that a model sees of a split, in all tasks: inputs without prefix, and targets."""
        for d in documents:
            if d["split"] == split:
                yield d["text"]
                for make in MAKERS:
                    if example := make(d):
                        yield example["inputs"].partition(": ")[2]
                        yield example["targets"]

    train = f" {' | '.join(python_docs.normalise(text) for text in seen('train'))} "
    for d in documents:
        if d["split"] in EVALUATION:
            assert f" {python_docs.normalise(d['text'])} " not in train, d
            if example := quickstart.summarize(d):
                summary = python_docs.normalise(example["targets"])
                if len(summary.split()) >= python_docs.MIN_WORDS:  # shorter ones ("Return the value.") are just English
                    assert f" {summary} " not in train, d


def test_an_evaluation_text_inside_a_training_sentence_is_left_out():
    def document(text, split):
        return {"text": text, "split": split}

    train = document("Note that this opens the file twice in a row", "train")
    leaks = [document("Opens the file twice.", "test"), document("Opens the file twice. Then closes it.", "validation")]
    honest = document("Opens the door twice.", "test")
    assert python_docs.without_leaks([train, *leaks, honest]) == [train, honest]


# ----------------------------------------------------------------------------------------------------------- cache


def test_the_cache_is_reused_and_a_damaged_one_is_made_again(stdlib, tmp_path, monkeypatch):
    first = python_docs.load(stdlib, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(python_docs, "gather", lambda _: pytest.fail("gathered again"))
        assert python_docs.load(stdlib, tmp_path / "cache") == first
    path.write_bytes(whole[:-20])
    assert python_docs.load(stdlib, tmp_path / "cache") == first
    assert path.read_bytes() == whole


def test_the_cache_is_one_of_this_python_and_this_format(stdlib, monkeypatch):
    names = {python_docs.edition(stdlib), python_docs.edition(stdlib.parent)}
    monkeypatch.setattr(python_docs, "FORMAT", python_docs.FORMAT + 1)
    names.add(python_docs.edition(stdlib))
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    names.add(python_docs.edition(stdlib))
    assert len(names) == 4


def test_a_reader_never_sees_part_of_a_file_while_others_write_it(tmp_path):
    path, content = tmp_path / "deep" / "cache.jsonl", b"0123456789" * 100_000

    def write_and_read(_):
        python_docs.write_atomically(path, content)
        return path.read_bytes() == content

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(32)))
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*T5X_LITE_CACHE"):
        python_docs.write_atomically(tmp_path / "cache.jsonl", b"text")
    assert not list(tmp_path.iterdir())


def test_the_cache_directory_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("T5X_LITE_CACHE", raising=False)
    assert python_docs.cache_dir() == tmp_path / "t5x_lite"
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "own"))
    assert python_docs.cache_dir() == tmp_path / "own"


# ----------------------------------------------------------------------------------------------------------- tasks


def test_labels_are_complete_and_no_category_is_rare_or_dominant(documents):
    for split in python_docs.SPLITS:
        examples = [e for d in documents if d["split"] == split and (e := quickstart.classify(d))]
        counts = collections.Counter(e["targets"] for e in examples)
        assert set(counts) == set(quickstart.classify_task.labels)  # type: ignore[union-attr]
        assert max(counts.values()) < 0.3 * len(examples)
        assert min(counts.values()) > 0.02 * len(examples)
    uncategorised = [d for d in documents if d["kind"] != "topic" and quickstart.classify(d) is None]
    assert len(uncategorised) < 0.03 * len(documents)


def test_no_module_is_in_two_categories():
    modules = [module for modules in quickstart.CATEGORIES.values() for module in modules.split()]
    assert len(modules) == len(set(modules))


def test_examples_are_pure_functions_of_a_document(documents):
    for document in documents[:500]:
        before = dict(document)
        assert [make(document) for make in MAKERS] == [make(document) for make in MAKERS]
        assert document == before


def test_a_summary_is_not_in_its_own_input(documents):
    examples = [e for d in documents if (e := quickstart.summarize(d))]
    given_away = [e for e in examples if e["targets"] in e["inputs"]]
    assert len(examples) > 4_000
    assert len(given_away) < 0.01 * len(examples)
    assert all(e["inputs"].startswith("summarize: ") and "\n" not in e["inputs"] + e["targets"] for e in examples)


def test_worked_examples():
    document = {
        "text": "Fold header according to policy.\n\nThe parsed\nrepresentation of the header is folded.",
        "module": "email.headerregistry",
        "name": "BaseHeader.foldHeader",
        "signature": "foldHeader(policy)",
        "kind": "function",
    }
    text = "Fold header according to policy. The parsed representation of the header is folded."
    assert quickstart.classify(document) == {"inputs": f"classify: {text}", "targets": "internet"}
    assert quickstart.classify(document | {"module": "nowhere"}) is None
    assert quickstart.summarize(document) == {
        "inputs": "summarize: fold header (policy) The parsed representation of the header is folded.",
        "targets": "Fold header according to policy.",
    }
    by_class = document | {"name": "BaseHeader", "signature": "class BaseHeader", "kind": "class"}
    assert quickstart.summarize(by_class | {"text": "Base of all headers."}) == {
        "inputs": "summarize: base header class",
        "targets": "Base of all headers.",
    }
    assert quickstart.summarize(document | {"text": "Headers. Too short a summary."}) is None
    assert quickstart.summarize(document | {"kind": "topic"}) is None


def test_the_mixture_and_all_splits_have_examples(cache, documents, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(cache))
    python_docs.all_splits.cache_clear()
    python_docs.documents.cache_clear()
    tasks = registry.tasks("quickstart")
    assert {"python_docs", "python_docs_classify", "python_docs_summarize"} == {task.name for task in tasks}
    for task in tasks:
        keys = {"text"} if task.is_corpus else {"inputs", "targets"}
        for split in python_docs.SPLITS:
            examples = task.source.split(split)
            assert len(examples) > 100 and set(examples[0]) == keys
            assert examples == task.source.split(split)


def test_the_vocabulary_is_trained_when_first_used_and_then_read(tmp_path, monkeypatch):
    texts = [{"text": f"{' '.join(map(hex, range(i, i + 20)))} and other words of text {i}"} for i in range(500)]
    monkeypatch.setattr(python_docs, "documents", lambda split: {"train": texts}[split])
    monkeypatch.setattr(quickstart, "VOCABULARY_SIZE", 350)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path))
    quickstart.vocabulary.cache_clear()
    try:
        vocabulary = quickstart.vocabulary()
        assert not list(tmp_path.iterdir())
        assert vocabulary.size == 350 + vocabulary.extra_ids
        special = {getattr(vocabulary, f"{role}_id") for role in ("pad", "eos", "unk", "cls", "sep", "mask")}
        assert len(special) == 6
        (path,) = tmp_path.iterdir()
        model = path.read_bytes()
        path.unlink()
        quickstart.build_vocabulary(path)
        assert path.read_bytes() == model
    finally:
        quickstart.vocabulary.cache_clear()
