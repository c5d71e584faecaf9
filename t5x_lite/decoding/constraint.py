"""Constrained decoding: a prefix tree of the token sequences that may be generated, as arrays for a jitted loop."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.decoding.buckets import power_of_two
from t5x_lite.errors import ConfigError

ROOT = 0


class PrefixTree(NamedTuple):
    """Holds a prefix tree of S nodes, each of which allows up to C tokens.

    `tokens_SC[s]` are the tokens that node s allows, and `nodes_SC[s]` are the nodes to which these tokens lead. Unused
    entries are −1. S and C are rounded up, so that label sets of similar sizes share a compiled program.
    """

    tokens_SC: jax.Array | np.ndarray
    nodes_SC: jax.Array | np.ndarray
    depth: jax.Array | np.ndarray  # int32, the number of tokens of the longest sequence, including its end


def prefix_tree(sequences: Sequence[Sequence[int]], eos_id: int) -> PrefixTree:
    """Returns the prefix tree of the sequences, each followed by `eos_id`. A sequence may be a prefix of a longer one.

    Raises ConfigError if there are no sequences or if a sequence contains `eos_id`.

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
                raise ConfigError(
                    f"a text to choose from contains the end-of-sequence id {eos_id}: {list(sequence)}; remove this id"
                )
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        children[node].setdefault(eos_id, ROOT)  # the node is never used: the row is finished
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
    """Returns the logits [R, V] with −inf for the tokens that each row's node does not allow.

    node_R: int32, the node of each row.
    """
    tokens_RC = jnp.asarray(tree.tokens_SC)[node_R]
    vocab_size = logits_RV.shape[1]
    places_RC = jnp.where(tokens_RC < 0, vocab_size, tokens_RC)  # out of range: dropped
    allowed_RV = jnp.zeros(logits_RV.shape, bool).at[jnp.arange(len(node_R))[:, None], places_RC].set(True, mode="drop")
    return jnp.where(allowed_RV, logits_RV, -jnp.inf)


def advance(tree: PrefixTree, node_R: jax.Array, token_R: jax.Array) -> jax.Array:
    """Returns the node that each row reaches with its token, int32 [R].

    The node is ROOT if the row's old node does not allow the token, which happens in finished rows.
    """
    is_token_RC = jnp.asarray(tree.tokens_SC)[node_R] == token_R[:, None]
    return jnp.max(jnp.where(is_token_RC, jnp.asarray(tree.nodes_SC)[node_R], ROOT), axis=1)
