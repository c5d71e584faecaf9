"""Maps tokens to words: finds the word to which each token belongs, and the places of words in a text."""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from t5x_lite.data import ragged
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabulary import Vocabulary

# Scripts without spaces between words: Thai to Tibetan, Myanmar, Khmer, kana, ideographs and their extensions.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
UNSPACED += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"


def encoded(texts: Sequence[Sequence[str]], vocabulary: Vocabulary) -> tuple[Ragged, Ragged]:
    """Encodes texts that are lists of words. Returns (ids, the index of each id's word in its text: int64).

    A word includes the space before it, if there is one. A word without ids in the vocabulary becomes the unknown id.

    >>> from t5x_lite.data.vocabularies import ByteVocabulary
    >>> ids, words = encoded([["hi", " yo"]], ByteVocabulary())
    >>> ids.values.tolist(), words.values.tolist()
    ([107, 108, 35, 124, 114], [0, 0, 1, 1, 1])
    """
    words = [word for text in texts for word in text]
    ids = [of_word if len(of_word) else np.array([vocabulary.unk_id], np.int32) for of_word in vocabulary.encode(words)]
    counts = np.fromiter(map(len, ids), np.int64, len(ids))
    in_text = np.fromiter(map(len, texts), np.int64, len(texts))
    numbers = ragged.spread(np.zeros_like(in_text), in_text)
    ends = np.concatenate([[0], np.cumsum(counts)])[np.cumsum(in_text)]
    lengths = np.diff(ends, prepend=0)
    return Ragged(ragged.of(ids).values, lengths), Ragged(np.repeat(numbers, counts), lengths)


@functools.cache
def _word() -> re.Pattern:
    """Returns the pattern of a word. A word is a run of letters, digits and the marks that combine with them, or any
    other single character except white space.

    In scripts without spaces between words, each letter counts as a word, so `around` does not widen tokens of such
    scripts.
    """
    every = "".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c)[0] == "M")
    marks = re.sub(f"[{UNSPACED}]", "", every)
    return re.compile(rf"[^\W{UNSPACED}]+(?:[{marks}]+[^\W{UNSPACED}]*)*|\S")


def around(text: str, places_T2: np.ndarray) -> np.ndarray:
    """Widens each token to the whole words that it touches (see `_word`). Returns the place of each widened token:
    (begin, end) in characters, int64 [tokens, 2].

    places_T2: int64 [tokens, 2], (begin, end) of each token. A token of spaces gets the place of the next word, or of
    the last word if none follows.

    >>> around("No, U.S.", np.array([[0, 1], [1, 3], [3, 5], [3, 4]])).tolist()
    [[0, 2], [0, 3], [4, 5], [4, 5]]
    >>> around("\u5317\u4eac cafe\u0301s", np.array([[0, 1], [3, 5]])).tolist()
    [[0, 1], [3, 9]]
    """
    words_W2 = np.array([match.span() for match in _word().finditer(text)], np.int64).reshape(-1, 2)
    if not len(words_W2):
        return places_T2
    first_T = np.searchsorted(words_W2[:, 1], places_T2[:, 0], side="right").clip(max=len(words_W2) - 1)
    last_T = np.searchsorted(words_W2[:, 0], places_T2[:, 1], side="left") - 1
    return np.stack([words_W2[first_T, 0], words_W2[np.maximum(first_T, last_T), 1]], axis=1)
