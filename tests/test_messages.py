"""What arrives is what was sent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.cluster import messages
from t5x_lite.errors import ConfigError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
HASHABLE = st.recursive(LEAVES, lambda part: st.lists(part, max_size=3).map(tuple) | st.frozensets(part, max_size=3))
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3),
    lambda part: (
        st.lists(part, max_size=3) | st.lists(part, max_size=3).map(tuple) | st.dictionaries(HASHABLE, part, max_size=3)
    ),
)


def typed(value):
    """A text that tells apart what == does not (1, 1.0 and True; 0.0 and -0.0), and no NaN from another."""
    if isinstance(value, dict):
        return f"dict {[(typed(key), typed(part)) for key, part in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value)} {[typed(part) for part in value]}"
    if isinstance(value, set | frozenset):
        return f"{type(value)} {sorted(typed(part) for part in value)}"
    return f"{type(value)} {value!r}"


@given(VALUES)
def test_a_message_arrives_with_its_types(value):
    assert typed(messages.decode(messages.encode(value))) == typed(value)


@given(
    st.sampled_from([np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64, np.bool_]), st.integers(0, 255)
)
def test_a_number_of_numpy_arrives_as_one_of_python(dtype, number):
    assert typed(messages.decode(messages.encode([dtype(number)]))) == typed([dtype(number).item()])


@pytest.mark.parametrize("value", [b"bytes", np.zeros(2), 1j, np.complex64(1), object(), range(3)])
def test_what_cannot_be_sent_is_named_wherever_it_stands(value):
    for message in (value, [value], {"a": (value,)}):
        with pytest.raises(ConfigError, match=f"type {type(value).__name__.removesuffix('64')} cannot be sent"):
            messages.encode(message)
