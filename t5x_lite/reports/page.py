"""Makes the HTML of all pages: shell, table and image. A page needs no other file, so it opens offline.

Every text is escaped here, and secrets in it are hidden, unless it has the type Markup: such a text is HTML already.
"""

import base64
import html

from t5x_lite import console

# On a phone, wide tables scroll, so that the page does not. Figures are PNGs on white; a dark page inverts them.
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #222; --dim: #666; --faint: #f6f6f6; --line: #ddd;
--right: #176b2c; --wrong: #a3262a; --accent: #b93b0b }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --text: #ddd; --dim: #9aa0a8; --faint: #23262b;
--line: #3b3f46; --right: #7fd394; --wrong: #f2a0a0; --accent: #ff9a66 } img { filter: invert(1) hue-rotate(180deg) } }
html { background: var(--page) }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: var(--text);
overflow-wrap: anywhere }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid var(--line) }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: 1em 0; overflow-wrap: normal }
td, th { padding: .3em .8em; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { background: var(--faint) } .number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } pre { background: var(--faint); padding: 1em; overflow-x: auto; font-size: 13px }
.right { color: var(--right) } .wrong { color: var(--wrong) }
.passage { min-width: 9em; max-width: 34em; overflow-wrap: anywhere }
"""
HEAD = """<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">"""


class Markup(str):
    """A string of HTML. Any other str is plain text, which has to be escaped."""


def shell(title: str, *parts: Markup) -> str:
    """Returns a whole page. The title is also the heading; the parts follow below it."""
    head = f"{HEAD}{tag('title', title)}<style>{STYLE}</style>"
    return "\n".join([head, tag("h1", title), *parts, "</html>\n"])


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """Returns an HTML element.

    Attribute values are escaped, and so is the content unless it is Markup. Attribute names are Python identifiers:
    `class_` stands for class, `text_anchor` for text-anchor.

    >>> tag("td", "a < b", class_="passage")
    '<td class="passage">a &lt; b</td>'
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items())
    inner = content if isinstance(content, Markup) else _escaped(content)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def together(*parts: Markup) -> Markup:
    """Returns the parts joined, one per line."""
    return Markup("\n".join(parts))


def table(rows: list[dict], empty: str) -> Markup:
    """Returns a table with one column per key. All rows have the same keys. Without rows, returns a paragraph `empty`.

    Numbers are right-aligned: floats with two decimals, integers with commas. None is shown as a dash.
    """
    if not rows:
        return tag("p", empty)
    numbers = {key for row in rows for key, value in row.items() if _is_number(value)}
    head = [tag("th", key, class_="number") if key in numbers else tag("th", key) for key in rows[0]]
    body = [[_cell(value) for value in row.values()] for row in rows]
    return wide(tag("table", together(*(tag("tr", Markup("".join(cells))) for cells in (head, *body)))))


def wide(element: Markup) -> Markup:
    """Returns an element that may be wider than the page, in a box that scrolls sideways."""
    return tag("div", element, class_="wide")


def image(name: str, png: bytes) -> Markup:
    """Returns an image, embedded in the page. name: its alternative text."""
    return Markup(f'<img alt="{_escaped(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')


def _escaped(text: object) -> str:
    return html.escape(console.safe(text))


def _cell(value: object) -> Markup:
    if value is None:
        return tag("td", "–", class_="number")
    if _is_number(value):
        return tag("td", f"{value:.2f}" if isinstance(value, float) else f"{value:,}", class_="number")
    return tag("td", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
