"""Scores named entities (values × 100), and converts between their two notations: tags and text."""

import collections
import re
from collections.abc import Hashable, Iterable, Sequence

from t5x_lite.tasks.metrics import pairs

NONE = "none"  # the text of a sentence without entities
CONTINUES, ENDS = ("I", "E", "L"), ("E", "L", "S", "U")  # marks of tags: Inside, End, Last; Single, Unit


def span_f1(
    targets: Sequence[Iterable[Hashable]], predictions: Sequence[Iterable[Hashable] | None]
) -> dict[str, float]:
    """Returns precision, recall and F1 over the spans of all examples (CoNLL 2003's score).

    A predicted span is right if a target span has the same kind and place (or text). If a span is predicted twice, both
    are right only if the target has it twice. A prediction of None has no spans.

    >>> span_f1([[("PER", 0, 2)], [("LOC", 3, 4)]], [[("PER", 0, 2), ("ORG", 5, 6)], []])
    {'precision': 50.0, 'recall': 50.0, 'span_f1': 50.0}
    """
    hits = in_predictions = in_targets = 0
    for target, predicted in pairs(targets, predictions):
        target_spans, predicted_spans = collections.Counter(target), collections.Counter(predicted or ())
        hits += sum((target_spans & predicted_spans).values())
        in_targets += sum(target_spans.values())
        in_predictions += sum(predicted_spans.values())
    both = in_predictions + in_targets
    return {
        "precision": 100 * hits / in_predictions if in_predictions else 0.0,
        "recall": 100 * hits / in_targets if in_targets else 0.0,
        "span_f1": 100 * 2 * hits / both if both else 100.0,
    }


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns (kind, begin, end) of each entity. Tags may follow any of the schemes BIO, IOB1, IO, BIOES and BILOU. As
    in CoNLL's script, an I- that continues no entity begins one.

    >>> spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    >>> spans(["B-PER", "I-PER", "E-PER", "S-LOC"]), spans(["B-PER", "L-PER", "U-LOC"])
    ([('PER', 0, 3), ('LOC', 3, 4)], [('PER', 0, 2), ('LOC', 2, 3)])
    """
    entities: list[tuple[str, int, int]] = []
    open_kind = None  # the kind of the entity that the next tag may continue
    for place, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark in CONTINUES and open_kind == kind:
            entities[-1] = (kind, entities[-1][1], place + 1)
        elif mark != "O":
            entities.append((kind, place, place + 1))
        open_kind = None if mark == "O" or mark in ENDS else kind
    return entities


def spans_as_text(tokens: Sequence[str], tags: Sequence[str]) -> str:
    """Returns the entities of a sentence as text, for a text-to-text model.

    >>> spans_as_text(["Ada", "Lovelace", "in", "London"], ["B-person", "I-person", "O", "B-location"])
    'person: Ada Lovelace; location: London'
    """
    listed = [f"{kind}: {' '.join(tokens[begin:end])}" for kind, begin, end in spans(tags)]
    return "; ".join(listed) or NONE


def spans_of_text(text: str) -> list[tuple[str, str]] | None:
    """Returns the (kind, words) of each entity in a text from `spans_as_text`; None for any other text.

    >>> spans_of_text("person: Ada Lovelace; location: London")
    [('person', 'Ada Lovelace'), ('location', 'London')]
    """
    if text.strip() == NONE:
        return []
    # Words may contain a semicolon. It separates two spans only if a kind follows it.
    parts = [part.partition(":") for part in re.split(r";\s*(?=[\w-]+:\s)", text)]
    if not all(colon and kind.strip() and words.strip() for kind, colon, words in parts):
        return None
    return [(kind.strip(), " ".join(words.split())) for kind, _, words in parts]
