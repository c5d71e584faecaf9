"""t5x_lite: train and evaluate BERT, GPT and T5 models on JAX in one loop."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from t5x_lite.hub.model import Model
    from t5x_lite.hub.pipelines import Pipeline

__version__ = "0.1.0"


def load(path: "str | Path", which: str = "latest") -> "Model":
    """The model of a workdir, a checkpoint, an imported or a Hugging Face directory; see t5x_lite/hub/model.py."""
    from t5x_lite.hub import model  # importing the package stays light

    return model.load(path, which)


def pipeline(task: str, model: "str | Path | Model", **options: "Any") -> "Pipeline":
    """A function from texts to a model's answers, as `transformers.pipeline` has it; see t5x_lite/hub/pipelines.py."""
    from t5x_lite.hub import pipelines

    return pipelines.pipeline(task, model, **options)
