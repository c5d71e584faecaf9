"""Scores of named entities, values × 100, and the two ways to write entities down: tags and text."""

import collections
import re
from collections.abc import Hashable, Iterable, Sequence

from t5x_lite.tasks.metrics import pairs

NONE = "none"  # the text of a sentence without entities


def span_f1(
    targets: Sequence[Iterable[Hashable]], predictions: Sequence[Iterable[Hashable] | None]
) -> dict[str, float]:
    """Precision, recall and F1 of all spans together (CoNLL 2003's score): a span is right where kind and place (or
    text) are. A span that is said twice must be there twice; a prediction of None has none.

    >>> span_f1([[("PER", 0, 2)], [("LOC", 3, 4)]], [[("PER", 0, 2), ("ORG", 5, 6)], []])
    {'precision': 50.0, 'recall': 50.0, 'span_f1': 50.0}
    """
    hits = said = wanted = 0
    for target, predicted in pairs(targets, predictions):
        ours, theirs = collections.Counter(target), collections.Counter(predicted or ())
        hits += sum((ours & theirs).values())
        wanted += sum(ours.values())
        said += sum(theirs.values())
    return {
        "precision": 100 * hits / said if said else 0.0,
        "recall": 100 * hits / wanted if wanted else 0.0,
        "span_f1": 100 * 2 * hits / (said + wanted) if said + wanted else 100.0,
    }


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, begin, end) of the entities in BIO tags. As CoNLL's script reads them, an I- that continues nothing
    begins an entity.

    >>> spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    found: list[tuple[str, int, int]] = []
    before = "O"
    for place, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark == "I" and before != "O" and before.partition("-")[2] == kind:
            found[-1] = (kind, found[-1][1], place + 1)
        elif mark != "O":
            found.append((kind, place, place + 1))
        before = tag
    return found


def spans_as_text(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """The entities of a sentence for a text-to-text model.

    >>> spans_as_text(["Ada", "Lovelace", "in", "London"], ["B-person", "I-person", "O", "B-location"])
    'person: Ada Lovelace; location: London'
    """
    listed = [f"{kind}: {' '.join(tokens[begin:end])}" for kind, begin, end in spans(tags)]
    return "; ".join(listed) or NONE


def spans_of_text(text: str) -> list[tuple[str, str]] | None:
    """The (kind, words) of such a text; None where it is none.

    >>> spans_of_text("person: Ada Lovelace; location: London")
    [('person', 'Ada Lovelace'), ('location', 'London')]
    """
    if text.strip() == NONE:
        return []
    # Words may hold a semicolon; what follows one between spans is a kind.
    parts = [part.partition(":") for part in re.split(r";\s*(?=[\w-]+:\s)", text)]
    if not all(colon and kind.strip() and words.strip() for kind, colon, words in parts):
        return None
    return [(kind.strip(), " ".join(words.split())) for kind, _, words in parts]
