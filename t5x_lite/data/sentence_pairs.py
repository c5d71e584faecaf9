"""Cuts documents into pairs of texts, for the objectives of an encoder that are about a pair."""

import re

import numpy as np

from t5x_lite.data.vocabulary import Vocabulary


def sentences(text: str) -> list[str]:
    """Splits a text into sentences. A sentence ends at a blank line, and at a . ! or ? with white space after it.

    >>> sentences("One. Two?\\n\\nThree")
    ['One.', 'Two?', 'Three']
    """
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if s.strip()]


def sentence_ids(text, vocabulary: Vocabulary) -> list[np.ndarray]:
    """Returns the ids of each sentence of a text. Returns a text from a cache unchanged, because it already is such a
    list."""
    return vocabulary.encode(sentences(text)) if isinstance(text, str) else text


def pairs_of(document: list[np.ndarray], room: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits a document into pairs (first, second) of texts.

    A pair is a run of consecutive sentences with at most `room` tokens in total. A run of several sentences is split at
    the sentence end nearest to its middle. A run of one sentence is split in its middle. Sentences longer than `room`
    are first cut into shorter ones.
    """
    out, run, length = [], [], 0

    def close() -> None:
        if not run:
            return
        whole = np.concatenate(run)
        ends = np.cumsum([len(s) for s in run])
        inner = ends[ends < len(whole)]
        cut = int(inner[np.abs(inner - len(whole) / 2).argmin()]) if len(inner) else len(whole) // 2
        out.append((whole[:cut], whole[cut:]) if cut else (whole, whole[:0]))

    for sentence in (s[i : i + room] for s in document for i in range(0, len(s), room)):
        if run and length + len(sentence) > room:
            close()
            run, length = [], 0
        run.append(sentence)
        length += len(sentence)
    close()
    return out


def other_second(pieces, document: bytes, rng: np.random.Generator) -> np.ndarray | None:
    """Returns the second text of a random piece of a different document, or None if eight draws fail.

    Documents are compared by their token ids, because one window can hold the same document of a small corpus several
    times.
    """
    for _ in range(8):
        other, _, second = pieces[int(rng.integers(len(pieces)))]
        if other != document and len(second):
            return second
    return None
