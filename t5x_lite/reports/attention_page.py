"""Holds the attention maps of one text and makes the page that shows them. attention_page.html draws the page."""

import base64
import dataclasses
import importlib.resources
import json
from typing import TYPE_CHECKING

from t5x_lite.reports.page import Markup, shell

if TYPE_CHECKING:
    import numpy as np

QUERIES_AND_KEYS = {
    "encoder": ("encoder", "encoder"),
    "decoder": ("decoder", "decoder"),
    "cross": ("decoder", "encoder"),
}


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """The attention of a model for one text.

    tokens: the tokens of "encoder" and "decoder", as readable text.
    maps: for "encoder", "decoder" and "cross" (decoder to encoder), float32 [N, H, L, M]: the attention weight of query
        token l on key token m, for each layer and head. Each row sums to 1.
    """

    tokens: dict[str, list[str]]
    maps: "dict[str, np.ndarray]"


def page(attention: AttentionMaps, title: str) -> str:
    """Returns the HTML page: a small map of every head to choose from, a large map of the chosen head, and the text.

    Hovering over a token shows where it attends.
    """
    data = {
        name: {
            "shape": map_NHLM.shape,
            "queries": attention.tokens[QUERIES_AND_KEYS[name][0]],
            "keys": attention.tokens[QUERIES_AND_KEYS[name][1]],
            "values": base64.b64encode((map_NHLM * 65535).round().astype("<u2").tobytes()).decode(),
        }
        for name, map_NHLM in attention.maps.items()
    }
    drawing = importlib.resources.files("t5x_lite.reports").joinpath("attention_page.html").read_text(encoding="utf-8")
    # A token may be "</script>": an escaped "<" does not end the script.
    return shell(title, Markup(drawing.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)))
