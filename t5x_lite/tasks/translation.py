"""Defines translation tasks as text, in T5's format: WMT's English to German, French and Romanian, and Multi30k.

All but Multi30k can be read from TFDS. All can be read from a directory of parallel lines or JSON lines:
--config.data.dir=DIR. For Multi30k, DIR holds multi30k/train.en.gz, multi30k/train.de.gz and so on. For English to
Romanian, it holds wmt_en_ro/train.json and so on, whose lines are {"translation": {"en": …, "ro": …}}.
"""

from collections.abc import Callable, Sequence

from t5x_lite.data import registry
from t5x_lite.data.records import Example
from t5x_lite.data.registry import Task
from t5x_lite.data.sources import Tfds
from t5x_lite.data.text_formats import JsonLines
from t5x_lite.tasks.metrics import Metric
from t5x_lite.tasks.published import Published
from t5x_lite.tasks.text_metrics import bleu, chrf

LANGUAGES = {"de": "German", "en": "English", "fr": "French", "ro": "Romanian"}


def pair(example: Example) -> Example:
    """The two sides as fields; JSON lines have them in an object of their own."""
    return dict(example.get("translation", example))


def translate(source: str, target: str) -> Callable[[Example], Example]:
    """Returns a preprocessor. The inputs are T5's prefix and the text in the language `source`; the targets are the
    text in the language `target`.

    >>> translate("en", "de")({"en": "Yes.", "de": "Ja."})["inputs"]
    'translate English to German: Yes.'
    """

    def apply(example: Example) -> Example:
        inputs = f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: {example[source]}"
        return {**example, "inputs": inputs, "targets": example[target]}

    return apply


def _files(languages: str) -> dict[str, Sequence[str]]:
    called = {
        "train": ("train",),
        "validation": ("val", "valid", "validation", "dev"),
        "test": ("test", "test_2016_flickr"),
    }
    endings = (f".{{{languages}}}.gz", f".{{{languages}}}", ".jsonl", ".json")
    return {split: [f"{name}{ending}" for name in names for ending in endings] for split, names in called.items()}


def _task(name: str, folder: str, source: str, target: str, tfds: Tfds | None, metrics: tuple[Metric, ...]) -> Task:
    languages = ",".join(sorted((source, target), key=lambda language: language != "en"))
    published = Published(folder, _files(languages), JsonLines(), tfds, of_file=pair, of_tfds=pair)
    return Task(name, published, (translate(source, target),), metrics=metrics)


TASKS = (
    *(
        registry.add(_task(f"wmt_en_{other}", f"wmt_en_{other}", "en", other, Tfds(tfds), (bleu,)))
        for other, tfds in (
            ("de", "wmt14_translate/de-en"), ("fr", "wmt14_translate/fr-en"), ("ro", "wmt16_translate/ro-en"),
        )
    ),
    registry.add(_task("multi30k_en_de", "multi30k", "en", "de", None, (bleu, chrf))),
    registry.add(_task("multi30k_de_en", "multi30k", "de", "en", None, (bleu, chrf))),
)  # fmt: skip
