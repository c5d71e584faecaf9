"""Makes the HTML of all pages: shell, table and image. A page needs no other file, so it opens offline.

Every text is escaped here, unless it has the type Markup: such a text is HTML already.
"""

import base64
import html

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .3em .8em; text-align: left; vertical-align: top;
border-bottom: 1px solid #eee } th { background: #f6f6f6 } .number { text-align: right; font-variant-numeric:
tabular-nums } img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px }
.right { color: #176b2c } .passage { max-width: 34em; overflow-wrap: anywhere }
"""


class Markup(str):
    """A string of HTML. Any other str is plain text, which has to be escaped."""


def shell(title: str, *parts: Markup) -> str:
    """Returns a whole page. The title is also the heading; the parts follow below it."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{tag('title', title)}<style>{STYLE}</style>"
    return "\n".join([head, tag("h1", title), *parts, "</html>\n"])


def tag(name: str, content: object = "", **attributes: object) -> Markup:
    """Returns an HTML element.

    Attribute values are escaped, and so is the content unless it is Markup. Attribute names are Python identifiers:
    `class_` stands for class, `text_anchor` for text-anchor.

    >>> tag("td", "a < b", class_="passage")
    '<td class="passage">a &lt; b</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    inner = content if isinstance(content, Markup) else html.escape(str(content))
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
    return tag("table", together(*(tag("tr", Markup("".join(cells))) for cells in (head, *body))))


def image(name: str, png: bytes) -> Markup:
    """Returns an image, embedded in the page. name: its alternative text."""
    return Markup(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')


def _cell(value: object) -> Markup:
    if value is None:
        return tag("td", "–", class_="number")
    if _is_number(value):
        return tag("td", f"{value:.2f}" if isinstance(value, float) else f"{value:,}", class_="number")
    return tag("td", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
