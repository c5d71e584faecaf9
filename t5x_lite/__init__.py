"""t5x_lite trains and evaluates BERT, GPT and T5 models on JAX in one loop."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from t5x_lite.hub.model import Model
    from t5x_lite.hub.pipelines import Pipeline

__version__ = "0.1.0"

# With the default stack size of its fibers, a TPU's compiler crashes on GPT-2 (libtpu 0.0.42 and 0.0.52). libtpu reads
# this when jax opens the TPU, so importing any part of this package is early enough. A value that is set already wins.
STACKS = "--fibers_default_thread_stack_size="
if STACKS not in os.environ.get("LIBTPU_INIT_ARGS", ""):
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {STACKS}{1 << 20}".strip()  # bytes


def load(path: "str | Path", which: "str | int" = "latest", special_tokens: bool | None = None) -> "Model":
    """Loads a model from a workdir, a checkpoint, or an imported or Hugging Face directory; see hub/model.py."""
    from t5x_lite.hub import model  # imported here, so that importing the package stays fast

    return model.load(path, which, special_tokens)


def pipeline(task: str, model: "str | Path | Model", **options: "Any") -> "Pipeline":
    """Returns a function that turns texts into answers, like `transformers.pipeline`; see hub/pipelines.py."""
    from t5x_lite.hub import pipelines

    return pipelines.pipeline(task, model, **options)
