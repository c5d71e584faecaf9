"""Computes the order of the data as a pure function of integers. The functions need no state and no shuffle buffer.
They compute the element at any place of the order directly."""

import hashlib
import math
from typing import Any

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, SplitMix64's increment
_ROUNDS = 8


def key(*parts: Any, bits: int = 64) -> int:
    """Returns a number that depends only on the parts. Unlike `hash`, it is the same in every process and version of
    Python.

    bits: the size of the number, at most 256.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[: bits // 8], "big")


def generator(*parts: Any) -> np.random.Generator:
    """Returns a numpy generator that depends on the parts alone."""
    return np.random.Generator(np.random.Philox(key(*parts, bits=128)))


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns the elements at `places` of an endless sequence. In it, every epoch is a new random order of the elements
    0 to size − 1.

    places: int [places]. Place n is the (n mod size)-th element of epoch n // size.
    Returns int64 [places].
    An epoch's order is a pseudo-random permutation in constant memory: a Feistel network over a rectangle of at least
    `size` cells, about √size wide and high. An element that lands outside 0 to size − 1 is permuted again until it is
    inside, which is hardly ever needed (Black & Rogaway 2002, "Ciphers with arbitrary finite domains": generalised
    Feistel and cycle walking).

    >>> sorted(shuffled(np.arange(5), 5, seed=0).tolist()), sorted(shuffled(np.arange(5, 10), 5, seed=0).tolist())
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    epochs, index = np.divmod(np.asarray(places, np.int64), size)
    width = math.isqrt(size - 1) + 1
    height, width = np.uint64(-(-size // width)), np.uint64(width)
    keys = mixed(epochs.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(seed))
    out = index.astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        (row, column), row_keys = np.divmod(out[outside], width), keys[outside]
        for number in range(1, _ROUNDS + 1, 2):
            row = (row + mixed(row_keys + column + np.uint64(number * _GOLDEN % 2**64)) % height) % height
            column = (column + mixed(row_keys + row + np.uint64((number + 1) * _GOLDEN % 2**64)) % width) % width
        out[outside] = row * width + column
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def mixed(x: np.ndarray) -> np.ndarray:
    """Applies the finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection of uint64 with random-looking values.

    x: uint64 [any shape].
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
