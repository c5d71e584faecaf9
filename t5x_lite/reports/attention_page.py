"""Attention maps of one text, and the page that shows them. Its drawing is in attention_page.html."""

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
    """The attention of a model while it reads one text.

    tokens: of "encoder" and "decoder", as people read them.
    maps: of "encoder", "decoder" and "cross" (decoder to encoder), float32 [N, H, L, M]: the attention weight of query
        token l on key token m, in every head of every layer. Each row sums to 1.
    """

    tokens: dict[str, list[str]]
    maps: "dict[str, np.ndarray]"


def page(attention: AttentionMaps, title: str) -> str:
    """The page: a small picture of every head to choose from, the chosen one large, and the text. Its token under the
    mouse shows where its attention goes."""
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
    # A token may be "</script>": "<" is written so that it ends no script.
    return shell(title, Markup(drawing.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)))
