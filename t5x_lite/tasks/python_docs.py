"""Provides real English text without a download: the documentation that ships with Python.

Gathers the articles of `pydoc_data.topics` and the docstrings of the standard library with `ast`, without importing any
module. This happens once per Python installation; the result is cached as JSON lines. Texts that share a sentence are
in the same split, so the answers of an evaluation are never in the training text.
"""

import ast
import functools
import hashlib
import json
import logging
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t5x_lite.data.user_cache import cache_dir, write_atomically
from t5x_lite.errors import DataError

_log = logging.getLogger(__name__)

Document = dict[str, str]  # text, module, name, signature, kind, split

FORMAT = 2  # raise it whenever the gathered texts or their splits change
SPLITS = ("train", "validation", "test")
EVALUATION_PERCENT = {"validation": 6, "test": 6}
MIN_WORDS = 4  # shorter texts teach too little; shorter sentences are too common to put two texts into one split
SECTION_CHARS = 1200  # articles are cut between paragraphs into sections of at most about this length

_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_KINDS = {
    ast.Module: "module",
    ast.ClassDef: "class",
    ast.FunctionDef: "function",
    ast.AsyncFunctionDef: "function",
}


# --- gathering ---


def gather(stdlib: Path) -> list[Document]:
    """Returns a document for every docstring and topic below `stdlib`, without duplicates. Documents are ordered by a
    hash of their words. So the order is the same on every machine, and the first few hundred documents are a fair
    sample.

    A document has a text, module ("email.message"), name ("Message.get_payload", "" for a module), signature
    ("get_payload(i, decode)") and kind ("module", "class", "function" or "topic"). Raises DataError if there is no
    document.
    """
    by_hash: dict[bytes, Document] = {}
    for document in (*_docstrings(stdlib), *_topics(stdlib)):
        words = normalise(document["text"])
        if words.count(" ") + 1 >= MIN_WORDS:
            by_hash.setdefault(hashlib.sha256(words.encode()).digest(), document)
    if not by_hash:
        raise DataError(
            f"no documentation found in {stdlib}: it has no modules with docstrings, or only compiled ones.\n"
            "Use a Python that ships its standard library as .py files (python.org, pyenv, conda, uv, most systems)."
        )
    return [by_hash[key] for key in sorted(by_hash)]


def _docstrings(stdlib: Path) -> Iterator[Document]:
    for path in sorted(stdlib.rglob("*.py"), key=lambda path: path.relative_to(stdlib).parts):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if _SKIPPED.intersection(parts) or not all(part.isidentifier() for part in parts) or parts[0] == "pydoc_data":
            continue
        tree = _parse(path)
        if tree is not None:
            yield from _walk(tree, ".".join(parts).removesuffix(".__init__"), "")


def _parse(path: Path) -> ast.Module | None:
    """Returns the syntax tree, or None if this Python cannot parse the file (templates, samples of bad syntax)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in code that is not ours
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _walk(node: ast.AST, module: str, name: str) -> Iterator[Document]:
    kind = _KINDS.get(type(node))
    if kind and (text := ast.get_docstring(node)):  # pyright: ignore[reportArgumentType]
        yield {"text": text.strip(), "module": module, "name": name, "signature": signature(node), "kind": kind}
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            inner = getattr(child, "name", None) if type(child) in _KINDS else None
            yield from _walk(child, module, f"{name}.{inner}".lstrip(".") if inner else name)


def signature(node: ast.AST) -> str:
    """Returns a definition's name and the names of its arguments.

    >>> signature(ast.parse("def seek(self, offset: int, whence=0, *, strict=True, **more): 'Move.'").body[0])
    'seek(offset, whence, strict, **more)'
    """
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    a = node.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args) if arg.arg not in ("self", "cls")]
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    names += [arg.arg for arg in a.kwonlyargs]
    names += [f"**{a.kwarg.arg}"] if a.kwarg else []
    return f"{node.name}({', '.join(names)})"


def _topics(stdlib: Path) -> Iterator[Document]:
    """Yields the articles that `help("topics")` lists, cut into sections."""
    tree = _parse(stdlib / "pydoc_data" / "topics.py")
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for name, article in sorted(ast.literal_eval(statement.value).items()):
                for section in sections(article):
                    yield {"text": section, "module": "", "name": name, "signature": "", "kind": "topic"}


def sections(article: str, max_chars: int = SECTION_CHARS) -> list[str]:
    """Cuts an article between paragraphs into pieces of at most `max_chars` characters. A longer paragraph is one
    piece.

    >>> sections("Title\\n*****\\n\\nOne two.\\n\\nThree.", max_chars=16)
    ['Title\\n\\nOne two.', 'Three.']
    """
    without_rules = re.sub(r"^[*=~^\-]{3,}$", "", article, flags=re.MULTILINE)
    pieces: list[str] = []
    for paragraph in paragraphs(without_rules):
        if pieces and len(pieces[-1]) + 2 + len(paragraph) <= max_chars:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces.append(paragraph)
    return pieces


def paragraphs(text: str) -> list[str]:
    """Returns the pieces between blank lines, stripped of white space at their ends.

    >>> paragraphs("One\\ntwo.\\n\\n  Three.\\n")
    ['One\\ntwo.', 'Three.']
    """
    return [piece.strip() for piece in re.split(r"\n\s*\n", text) if piece.strip()]


# --- splits: no sentence of an evaluation text was trained on ---


def normalise(text: str) -> str:
    """Returns the form in which two texts are compared: lower-case words and numbers.

    >>> normalise("Return `True`, if\\n  it is-open.")
    'return true if it is open'
    """
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def sentences(text: str) -> list[str]:
    """Returns the sentences in reading order, each on one line. A colon, a semicolon and the end of a paragraph also
    end a sentence.

    >>> sentences("Open it.  Then\\nread it:\\n\\n  f.read()")
    ['Open it.', 'Then read it:', 'f.read()']
    """
    return [
        " ".join(sentence.split())
        for paragraph in paragraphs(text)
        for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph)
        if sentence.strip()
    ]


def fingerprints(text: str) -> set[str]:
    """Returns the strings of a text that must not occur in two splits: the whole text, its first sentence, and every
    sentence of at least MIN_WORDS words. All are normalised."""
    all_of_them = [normalise(sentence) for sentence in sentences(text)]
    long = {words for words in all_of_them if words.count(" ") + 1 >= MIN_WORDS}
    return (long | {normalise(text)} | set(all_of_them[:1])) - {""}


def assign_splits(texts: Sequence[str]) -> list[str]:
    """Returns the split of each text.

    Texts that share a fingerprint, directly or through other texts, form a group (union-find). A hash of the group's
    alphabetically first fingerprint chooses its split, so splits depend neither on the machine nor on the texts' order.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    firsts = []
    for text in texts:
        keys = sorted(fingerprints(text))
        firsts.append(keys[0])
        for key in keys[1:]:
            a, b = sorted((root(keys[0]), root(key)))
            parent[b] = a  # the alphabetically first key stays the root
    return [split_of(root(key)) for key in firsts]


def split_of(key: str) -> str:
    """Returns the split to which a key hashes: an evaluation split for EVALUATION_PERCENT of all keys, else "train"."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for split, percent in EVALUATION_PERCENT.items():
        if draw < percent:
            return split
        draw -= percent
    return "train"


def without_leaks(documents: Sequence[Document]) -> list[Document]:
    """Removes the few evaluation documents that occur inside a longer sentence of a training document. It looks for the
    document's whole text and, if the first sentence has at least MIN_WORDS words, also for that sentence."""
    train = f" {' | '.join(normalise(d['text']) for d in documents if d['split'] == 'train')} "

    def leaks(text: str) -> bool:
        first = normalise(sentences(text)[0])
        return f" {normalise(text)} " in train or (first.count(" ") + 1 >= MIN_WORDS and f" {first} " in train)

    return [d for d in documents if d["split"] == "train" or not leaks(d["text"])]


# --- cache ---


def default_stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def edition(stdlib: Path) -> str:
    """Returns a short name for the texts that this Python gathers from `stdlib`. It is part of the name of every cached
    file."""
    place = hashlib.sha256(str(stdlib).encode()).hexdigest()[:8]
    return f"{sys.implementation.name}{'.'.join(map(str, sys.version_info[:3]))}-{place}-v{FORMAT}"


def load(stdlib: Path | None = None, cache: Path | None = None) -> list[Document]:
    """Returns all documents with their splits. Reads them from the cache (0.1 s) or gathers them (about 6 s).

    Raises DataError if the cache cannot be read or written.
    """
    stdlib = stdlib or default_stdlib()
    path = (cache or cache_dir()) / f"python_docs-{edition(stdlib)}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        pass
    except ValueError:
        _log.warning("%s is corrupted; gathering it again", path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Set T5X_LITE_CACHE to a different directory.") from None
    _log.info("gathering the documentation of Python's standard library (about 6 s, once)")
    documents = gather(stdlib)
    for document, split in zip(documents, assign_splits([d["text"] for d in documents]), strict=True):
        document["split"] = split
    documents = without_leaks(documents)
    write_atomically(path, to_jsonl(documents))
    return documents


def to_jsonl(records: Iterable[dict]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@functools.cache
def documents(split: str) -> tuple[Document, ...]:
    """Returns the documents of one split, from the Python that is running, in a fixed order.

    Reads them once per process.
    Raises DataError for an unknown split.
    """
    if split not in SPLITS:
        raise DataError(f"the Python documentation has no split {split!r}; it has {', '.join(SPLITS)}")
    return tuple(document for document in all_splits() if document["split"] == split)


@functools.cache
def all_splits() -> tuple[Document, ...]:
    """Returns the documents of all splits, from the Python that is running. Reads them once per process."""
    return tuple(load())
