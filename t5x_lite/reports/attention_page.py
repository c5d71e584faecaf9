"""Holds the attention maps of one text and makes the page that shows them; attention_page.html is its template."""

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

    tokens: {"encoder" or "decoder": the tokens of this side as readable text}.
    maps: {"encoder", "decoder" or "cross" (decoder to encoder): float32 [N, H, L, M]}. An entry is
        the attention weight of a query token on a key token, in one layer and head. N: layers; H: heads; L: query
        tokens; M: key tokens. The weights of a query token sum to 1.
    """

    tokens: dict[str, list[str]]
    maps: "dict[str, np.ndarray]"


def page(attention: AttentionMaps, title: str) -> str:
    """Returns the HTML page. It has a small map of every head, a large map of the chosen head, and the text.

    If the mouse is over a token, the page shows where the token attends.
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
    # A token may be "</script>". With "<" escaped, it does not end the script.
    return shell(title, Markup(drawing.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)))
