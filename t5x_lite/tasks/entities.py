"""Defines tasks of named entities: CoNLL 2003 and WNUT 2017. From the inputs "conll2003: Ada met Babbage" a text model
predicts "PER: Ada; PER: Babbage". An encoder tags words; its tags are then converted to the same notation.

CoNLL 2003 can be read from TFDS. Both can be read from a directory with the published files: --config.data.dir=DIR,
where DIR holds conll2003/eng.train and so on.
"""

import dataclasses
from collections.abc import Sequence

from t5x_lite.data import registry
from t5x_lite.data.records import Example
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Tfds
from t5x_lite.data.targets import Tags
from t5x_lite.data.text_formats import Sentences
from t5x_lite.tasks.published import Chosen, Published
from t5x_lite.tasks.span_metrics import span_f1, spans_as_text, spans_of_text

WNUT_KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
WNUT_TAGS = ("O", *(f"{mark}-{kind}" for kind in WNUT_KINDS for mark in "BI"))
CONLL_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")  # TFDS's order


@dataclasses.dataclass(frozen=True)
class ConllTfds(Tfds):
    """CoNLL 2003 from TFDS, without the empty sentence that TFDS has in every split and the files lack."""

    def split(self, name: str) -> Sequence[Example]:
        rows = super().split(name)
        return Chosen(rows, [place for place in range(len(rows)) if len(rows[place]["tokens"])])


def of_file(row: Example) -> Example:
    """The first of several tags that WNUT's test set allows a word."""
    return {"tokens": row["tokens"].split(" "), "tags": [tag.split(",")[0] for tag in row["tags"].split(" ")]}


def conll_of_tfds(example: Example) -> Example:
    return {"tokens": [str(token) for token in example["tokens"]], "tags": [CONLL_TAGS[i] for i in example["ner"]]}


def as_text(name: str):
    """Returns a preprocessor. The inputs are `name` as a prefix and the tokens, joined by spaces. The targets are the
    entities, in order."""

    def apply(example: Example) -> Example:
        tokens = example["tokens"]
        return {**example, "inputs": f"{name}: {' '.join(tokens)}", "targets": spans_as_text(tokens, example["tags"])}

    return apply


def _task(
    name: str, files: dict[str, Sequence[str]], columns: tuple[str, ...], tags: tuple[str, ...], tfds: Tfds | None
) -> Task:
    source = Published(name, files, Sentences(columns), tfds, of_file, conll_of_tfds)
    return Task(name, source, (as_text(name),), target=Tags(tags), metrics=(span_f1,), postprocess=spans_of_text)


TASKS = (
    registry.add(
        _task(
            "conll2003",
            {
                "train": ("eng.train", "train.txt"),
                "validation": ("eng.testa", "valid.txt"),
                "test": ("eng.testb", "test.txt"),
            },
            ("tokens", "pos", "chunk", "tags"),
            CONLL_TAGS,
            ConllTfds("conll2003", {"train": "train", "validation": "dev", "test": "test"}),
        )
    ),
    registry.add(
        _task(
            "wnut17",
            {
                "train": ("train.conll", "wnut17train.conll"),
                "validation": ("dev.conll", "emerging.dev.conll"),
                "test": ("test.conll", "emerging.test.annotated"),
            },
            ("tokens", "tags"),
            WNUT_TAGS,
            None,
        )
    ),
)
