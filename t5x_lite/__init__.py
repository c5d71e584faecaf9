"""t5x_lite: train and evaluate BERT, GPT and T5 models on JAX in one loop."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from t5x_lite.hub.model import Model

__version__ = "0.1.0"


def load(path: "str | Path", which: str = "latest") -> "Model":
    """The model of a workdir, a checkpoint, an imported or a Hugging Face directory; see t5x_lite/hub/model.py."""
    from t5x_lite.hub import model  # importing the package stays light

    return model.load(path, which)
