"""Which texts may be generated: a prefix tree over token sequences, as arrays that a jitted loop walks."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.decoding.buckets import power_of_two
from t5x_lite.errors import ConfigError

ROOT = 0


class PrefixTree(NamedTuple):
    """Node s allows the tokens `tokens_SC[s]`, and `nodes_SC` are where they lead; −1 where there is none.

    Sizes are rounded up, so that label sets of about the same size share a compiled program."""

    tokens_SC: jax.Array | np.ndarray
    nodes_SC: jax.Array | np.ndarray
    depth: jax.Array | np.ndarray  # tokens of the longest sequence, its end included


def prefix_tree(sequences: Sequence[Sequence[int]], eos_id: int) -> PrefixTree:
    """The tree of the sequences, each closed by `eos_id`; one may begin another.

    >>> prefix_tree([[5, 6], [5]], eos_id=1).tokens_SC.tolist()
    [[5, -1], [6, 1], [1, -1], [-1, -1]]
    """
    if not len(sequences):
        raise ConfigError("constrained decoding needs at least one text to choose from")
    children: list[dict[int, int]] = [{}]
    for sequence in sequences:
        node = ROOT
        for token in map(int, sequence):
            if token == eos_id:
                raise ConfigError(f"a text to choose from holds the end-of-sequence id {eos_id}: {list(sequence)}")
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        children[node].setdefault(eos_id, ROOT)  # where a finished row stands matters no more
    nodes, widest = (power_of_two(n) for n in (len(children), max(map(len, children))))
    tree = PrefixTree(
        np.full((nodes, widest), -1, np.int32),
        np.full((nodes, widest), -1, np.int32),
        np.array(max(map(len, sequences)) + 1, np.int32),
    )
    for node, following in enumerate(children):
        tree.tokens_SC[node, : len(following)] = list(following)
        tree.nodes_SC[node, : len(following)] = list(following.values())
    return tree


def forbid(tree: PrefixTree, node_R: jax.Array, logits_RV: jax.Array) -> jax.Array:
    """The logits, −inf where a row's node does not allow the token."""
    tokens_RC = jnp.asarray(tree.tokens_SC)[node_R]
    vocab_size = logits_RV.shape[1]
    places_RC = jnp.where(tokens_RC < 0, vocab_size, tokens_RC)  # out of range: dropped
    allowed_RV = jnp.zeros(logits_RV.shape, bool).at[jnp.arange(len(node_R))[:, None], places_RC].set(True, mode="drop")
    return jnp.where(allowed_RV, logits_RV, -jnp.inf)


def advance(tree: PrefixTree, node_R: jax.Array, token_R: jax.Array) -> jax.Array:
    """Where each row stands after its token; a token that was not allowed (of a finished row) leads to the root."""
    found_RC = jnp.asarray(tree.tokens_SC)[node_R] == token_R[:, None]
    return jnp.max(jnp.where(found_RC, jnp.asarray(tree.nodes_SC)[node_R], ROOT), axis=1)
