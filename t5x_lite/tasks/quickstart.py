"""Defines the quickstart's tasks: to restore, classify and summarise Python's own documentation.

Each task has one definition for all architectures. The vocabulary is trained on the training texts on first use.
"""

import functools
import logging
import re
from pathlib import Path

from t5x_lite.data import registry, vocabularies
from t5x_lite.data.registry import Feature, Mixture, Task
from t5x_lite.data.sources import Function
from t5x_lite.data.targets import Match
from t5x_lite.tasks import python_docs
from t5x_lite.tasks.metrics import accuracy, macro_f1, retrieval
from t5x_lite.tasks.python_docs import Document
from t5x_lite.tasks.text_metrics import rouge

_log = logging.getLogger(__name__)

VOCABULARY_SIZE = 4000
BODY_WORDS = 24  # in a summary's input; more words say little more about the first sentence
SUMMARY_WORDS = 30  # longer first sentences are not summaries

# {purpose of a part of the standard library: the top-level modules of that part}.
CATEGORIES = {
    "concurrency": "_threading_local asyncio concurrent contextvars multiprocessing pty queue sched selectors signal "
    "subprocess threading",
    "debugging": "bdb cProfile cgitb doctest faulthandler logging pdb profile pstats pydoc timeit trace traceback "
    "tracemalloc unittest warnings",
    "files": "_compression _pyio bz2 dbm filecmp fileinput fnmatch genericpath glob gzip io linecache lzma nturl2path "
    "ntpath os pathlib posixpath shelve shutil sqlite3 stat tarfile tempfile zipfile zipimport",
    "graphics": "colorsys curses idlelib tkinter turtle turtledemo",
    "internet": "asynchat asyncore cgi email ftplib html http imaplib ipaddress mailbox mailcap mimetypes netrc "
    "nntplib poplib smtpd smtplib socket socketserver ssl telnetlib urllib uuid webbrowser wsgiref xmlrpc",
    "language": "_collections_abc _py_abc _pyrepl _weakrefset abc ast builtins code codeop collections contextlib "
    "copy ctypes dataclasses dis enum functools graphlib inspect keyword lib2to3 opcode operator pyclbr reprlib "
    "symtable token tokenize types typing weakref",
    "numbers": "_pydatetime _pydecimal _strptime bisect calendar cmath datetime decimal fractions hashlib heapq hmac "
    "math numbers random secrets statistics zoneinfo",
    "packaging": "_aix_support _osx_support compileall distutils ensurepip imp importlib modulefinder pkgutil platform "
    "py_compile runpy site sysconfig venv zipapp",
    "text": "_markupbase argparse base64 binascii cmd codecs configparser copyreg csv difflib encodings getopt gettext "
    "json locale optparse pickle pickletools plistlib pprint quopri re shlex sre_compile string stringprep textwrap "
    "tomllib uu xml",
}
CATEGORY_OF = {module: category for category, modules in CATEGORIES.items() for module in modules.split()}


# --------------------------------------------------------------------------------- from documents to examples


def one_line(text: str) -> str:
    return " ".join(text.split())


def first_and_rest(text: str) -> tuple[str, str]:
    """Returns a docstring's first sentence, and the rest.

    >>> first_and_rest("Open a file. Return it.\\n\\nRaises OSError.")
    ('Open a file.', 'Return it. Raises OSError.')
    """
    first, *rest = python_docs.paragraphs(text)
    head, *tail = re.split(r"(?<=[.!?])\s+", one_line(first), maxsplit=1)
    return head, one_line(" ".join([*tail, *rest]))


def classify(document: Document) -> dict[str, str] | None:
    """The part of the library that a docstring is from; None for modules that belong to none."""
    category = CATEGORY_OF.get(document["module"].split(".")[0])
    if category is None:
        return None
    return {"inputs": f"classify: {one_line(document['text'])}", "targets": category}


def summarize(document: Document) -> dict[str, str] | None:
    """The first sentence of a docstring from the rest of it, after the words of the name of what it describes and
    its arguments. The name is given in words because pieces of identifiers are hardly ever pieces of sentences."""
    if document["kind"] not in ("function", "class"):
        return None
    summary, body = first_and_rest(document["text"])
    if not 3 <= len(summary.split()) <= SUMMARY_WORDS:
        return None
    _, parenthesis, arguments = document["signature"].partition("(")
    head = f"{name_words(document)} {parenthesis}{arguments}" if parenthesis else f"{name_words(document)} class"
    body = " ".join(body.split()[:BODY_WORDS])
    return {"inputs": f"summarize: {head} {body}".strip(), "targets": summary}


def search(document: Document) -> dict[str, str] | None:
    """What `summarize` returns, the other way round: the text that a summary is of is its match."""
    example = summarize(document)
    return example and {"inputs": example["targets"], "targets": example["inputs"].removeprefix("summarize: ")}


def name_words(document: Document) -> str:
    """Returns the last part of a document's name, in words.

    >>> name_words({"name": "Screen.setWorld_size"})
    'set world size'
    """
    last = document["name"].rpartition(".")[2]
    return " ".join(re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", last).replace("_", " ").lower().split())


def examples_of(make) -> Function:
    """Returns a source whose examples are `make(document)` for the documents of a split. If `make` returns None for a
    document, the document is left out."""
    return Function(lambda split: [example for d in python_docs.documents(split) if (example := make(d))])


# --------------------------------------------------------------------------------------------------- vocabulary


def build_vocabulary(path: Path) -> None:
    _log.info("training a vocabulary of %d pieces on the training texts (about 10 s, once)", VOCABULARY_SIZE)
    vocabularies.train_sentencepiece(
        size=VOCABULARY_SIZE, output=path, texts=[d["text"] for d in python_docs.documents("train")]
    )


@functools.cache
def vocabulary() -> vocabularies.SentencePieceVocabulary:
    """Returns a vocabulary of 4,000 pieces. It is trained on the training texts on first use (about 10 s) and stored in
    the user's cache."""
    edition = python_docs.edition(python_docs.default_stdlib())
    path = python_docs.cache_dir() / f"python_docs-{edition}-{VOCABULARY_SIZE}.model"
    return vocabularies.SentencePieceVocabulary(path, build=build_vocabulary)


# -------------------------------------------------------------------------------------------------------- tasks

_TOKENS = Feature(vocabulary())
_SUPERVISED = {"inputs": _TOKENS, "targets": _TOKENS}

python_docs_task = registry.add(
    Task(
        "python_docs",
        Function(lambda split: [{"text": d["text"]} for d in python_docs.documents(split)]),
        features={"text": _TOKENS},
    )
)
classify_task = registry.add(
    Task(
        "python_docs_classify",
        examples_of(classify),
        features=_SUPERVISED,
        labels=tuple(CATEGORIES),
        metrics=(accuracy, macro_f1),
        baseline="majority",
    )
)
summarize_task = registry.add(
    Task("python_docs_summarize", examples_of(summarize), features=_SUPERVISED, metrics=(rouge,), baseline="copy")
)
registry.add(
    Task(
        "python_docs_search",
        examples_of(search),
        features=_SUPERVISED,
        target=Match(("targets",)),
        metrics=(retrieval,),
    )
)
registry.add(
    Mixture(
        "quickstart",
        # The loss counts tokens. Labels and summaries have few, so they need more examples than the corpus.
        {"python_docs": 1.0, "python_docs_classify": 3.0, "python_docs_summarize": 5.0},
    )
)
registry.add(
    Mixture(
        "quickstart_decoder",
        # A decoder needs even more such examples: in its rows, a label or a summary shares the space with its inputs.
        {"python_docs": 1.0, "python_docs_classify": 4.0, "python_docs_summarize": 12.0},
    )
)
