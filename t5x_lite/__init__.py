"""t5x_lite trains and evaluates BERT, GPT and T5 models on JAX in one loop."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from t5x_lite.hub.model import Model
    from t5x_lite.hub.pipelines import Pipeline

__version__ = "0.1.0"


def load(path: "str | Path", which: "str | int" = "latest", special_tokens: bool | None = None) -> "Model":
    """Loads a model from a workdir, a checkpoint, or an imported or Hugging Face directory; see hub/model.py."""
    from t5x_lite.hub import model  # imported here, so that importing the package stays fast

    return model.load(path, which, special_tokens)


def pipeline(task: str, model: "str | Path | Model", **options: "Any") -> "Pipeline":
    """Returns a function that turns texts into answers, like `transformers.pipeline`; see hub/pipelines.py."""
    from t5x_lite.hub import pipelines

    return pipelines.pipeline(task, model, **options)
