"""Says for which kind of devices a training step is traced. For accelerators, layers take the forms of fusion.py."""

import contextlib
import contextvars
from collections.abc import Iterator

_PLATFORM = contextvars.ContextVar("platform", default="cpu")


@contextlib.contextmanager
def traced_for(kind: str) -> Iterator[None]:
    """Traces what is called within, or in a decorated function, for devices of this kind: cpu, gpu or tpu."""
    token = _PLATFORM.set(kind)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


platform = _PLATFORM.get  # () -> the kind of devices; cpu outside of `traced_for`
