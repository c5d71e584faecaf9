"""Texts word by word: which token belongs to which word, and which words stand where in a text."""

import re
from collections.abc import Sequence

import numpy as np

from t5x_lite.data import ragged
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabularies import Vocabulary

WORD = re.compile(r"\w+|[^\w\s]")


def encoded(texts: Sequence[Sequence[str]], vocabulary: Vocabulary) -> tuple[Ragged, Ragged]:
    """The ids of texts that are lists of words (each with the space before it, where there is one), and the number in
    its text of the word that each id is of. A word that the vocabulary has nothing for is its unknown id.

    >>> from t5x_lite.data.vocabularies import ByteVocabulary
    >>> ids, words = encoded([["hi", " yo"]], ByteVocabulary())
    >>> ids.values.tolist(), words.values.tolist()
    ([107, 108, 35, 124, 114], [0, 0, 1, 1, 1])
    """
    words = [word for text in texts for word in text]
    ids = [found if len(found) else np.array([vocabulary.unk_id], np.int32) for found in vocabulary.encode(words)]
    counts = np.fromiter(map(len, ids), np.int64, len(ids))
    in_text = np.fromiter(map(len, texts), np.int64, len(texts))
    numbers = ragged.spread(np.zeros_like(in_text), in_text)
    ends = np.concatenate([[0], np.cumsum(counts)])[np.cumsum(in_text)]
    lengths = np.diff(ends, prepend=0)
    return Ragged(ragged.of(ids).values, lengths), Ragged(np.repeat(numbers, counts), lengths)


def found_in(text: str) -> tuple[list[str], np.ndarray]:
    """The words and marks of a text, each with the space before it, and their (begin, end) in characters, [words, 2].

    >>> words, places = found_in("No, U.S.")
    >>> words, places.tolist()
    (['No', ',', ' U', '.', 'S', '.'], [[0, 2], [2, 3], [4, 5], [5, 6], [6, 7], [7, 8]])
    """
    matches = list(WORD.finditer(text))
    words = [" " * (m.start() > 0 and text[m.start() - 1].isspace()) + m[0] for m in matches]
    return words, np.array([m.span() for m in matches], np.int64).reshape(-1, 2)
