"""Attention maps of one text, and the page that shows them: one HTML file that opens offline."""

import base64
import dataclasses
import html
import json

import numpy as np

QUERIES_AND_KEYS = {
    "encoder": ("encoder", "encoder"),
    "decoder": ("decoder", "decoder"),
    "cross": ("decoder", "encoder"),
}


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """What a model looked at while it read one text.

    tokens: of "encoder" and "decoder", as people read them.
    maps: of "encoder", "decoder" and "cross" (decoder to encoder), float32 [N, H, L, M]: how token l shares its
        attention out among tokens m, in every head of every layer. Each row sums to 1.
    """

    tokens: dict[str, list[str]]
    maps: dict[str, np.ndarray]


def page(found: AttentionMaps, title: str) -> str:
    """The page: a small picture of every head to pick from, the picked one large, and the text, in which the token that
    the mouse is on shows where its attention goes."""
    data = {
        name: {
            "shape": map_NHLM.shape,
            "queries": found.tokens[QUERIES_AND_KEYS[name][0]],
            "keys": found.tokens[QUERIES_AND_KEYS[name][1]],
            "values": base64.b64encode(np.round(map_NHLM * 65535).astype("<u2").tobytes()).decode(),
        }
        for name, map_NHLM in found.maps.items()
    }
    script = SCRIPT.replace("DATA", json.dumps(data).replace("<", "\\u003c"))
    title = html.escape(title)
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n" + (
        BODY.replace("TITLE", title) + f"<script>{script}</script></html>\n"
    )


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.3em } .columns { display: flex; gap: 2em; align-items: flex-start; flex-wrap: wrap }
select { font: inherit; margin-right: 1em } .hint { color: #777; font-size: 13px } canvas { display: block }
#heads { display: grid; gap: 4px; align-items: center; font-size: 11px; color: #777; text-align: center }
#heads canvas { width: 33px; height: 33px; image-rendering: pixelated; cursor: pointer; outline: 1px solid #ddd }
#heads canvas.picked { outline: 3px solid #c2410c }
#large { display: grid; grid-template-columns: auto 1fr; font-size: 11px; color: #555 }
#large span.on { color: #c2410c }
#map { grid-area: 2 / 2; image-rendering: pixelated; cursor: crosshair; outline: 1px solid #ddd }
#left { grid-area: 2 / 1; text-align: right; padding-right: .4em } #left span { display: block }
#top { grid-area: 1 / 2; display: flex; align-items: flex-end; padding-bottom: .3em }
#top span { writing-mode: vertical-rl; transform: rotate(180deg) }
#left span, #top span { overflow: hidden; white-space: pre; max-width: 9em; max-height: 9em }
.text { max-width: 60em; line-height: 2 } .text span { padding: .15em .2em; margin: 0 1px; border-radius: 3px;
white-space: pre-wrap; cursor: default } .text span.on { outline: 2px solid #c2410c }
#said { font-variant-numeric: tabular-nums; min-height: 1.5em }
"""
BODY = """
<h1>TITLE</h1>
<p><label>attention <select id=kind></select></label><label>layer <select id=layer></select></label>
<label>head <select id=head></select></label></p>
<div class=columns><div><div id=heads></div><p class=hint>A row for each layer, a column for each head.</p></div>
<div><div id=large><div id=top></div><div id=left></div><canvas id=map></canvas></div><p id=said></p></div></div>
<p class=hint id=reads></p><div class=text id=queries></div>
<p class=hint>… gives its attention to these:</p><div class=text id=keys></div>
"""
SCRIPT = """
const data = DATA, get = id => document.getElementById(id);
const state = {kind: Object.keys(data)[0], layer: 0, head: 0, query: 0};
for (const one of Object.values(data)) {
  const bytes = Uint8Array.from(atob(one.values), c => c.charCodeAt(0));
  one.values = new Uint16Array(bytes.buffer);
}
const shade = share => {  // white to dark blue; the root makes small shares visible
  const t = Math.sqrt(share);
  return [255 - 225 * t, 255 - 175 * t, 255 - 100 * t];
};
const share = (layer, head, query, key) => {
  const {values, shape: [N, H, L, M]} = data[state.kind];
  return values[((layer * H + head) * L + query) * M + key] / 65535;
};
function draw(canvas, layer, head) {
  const [N, H, L, M] = data[state.kind].shape;
  canvas.width = M; canvas.height = L;
  const image = new ImageData(M, L);
  for (let l = 0; l < L; l++) for (let m = 0; m < M; m++)
    image.data.set([...shade(share(layer, head, l, m)), 255], 4 * (l * M + m));
  canvas.getContext("2d").putImageData(image, 0, 0);
}
function options(id, count, of) {
  get(id).replaceChildren(...Array.from({length: count}, (_, i) => new Option(of(i), i)));
}
function tokens(id, texts, over) {
  get(id).replaceChildren(...texts.map((text, i) => {
    const span = document.createElement("span");
    span.textContent = text;
    if (over) span.onmouseover = () => show({query: i});
    return span;
  }));
}
function begin() {  // another kind of attention: everything is made anew
  const {shape: [N, H, L, M], queries, keys} = data[state.kind];
  Object.assign(state, {layer: Math.min(state.layer, N - 1), head: Math.min(state.head, H - 1), query: 0});
  options("layer", N, i => i + 1); options("head", H, i => i + 1);
  get("heads").style.gridTemplateColumns = `1.5em repeat(${H}, 33px)`;
  get("heads").replaceChildren(...Array.from({length: N * (H + 1)}, (_, i) => {
    const layer = Math.floor(i / (H + 1)), head = i % (H + 1) - 1;
    if (head < 0) return Object.assign(document.createElement("span"), {textContent: layer + 1});
    const canvas = Object.assign(document.createElement("canvas"), {title: `layer ${layer + 1}, head ${head + 1}`});
    draw(canvas, layer, head);
    canvas.onclick = () => show({layer, head});
    return canvas;
  }));
  const size = Math.max(2, Math.min(28, Math.floor(560 / Math.max(L, M))));
  Object.assign(get("map").style, {width: `${M * size}px`, height: `${L * size}px`});
  get("map").onmousemove = event => show(
    {query: Math.min(L - 1, Math.floor(event.offsetY / size))}, Math.min(M - 1, Math.floor(event.offsetX / size)));
  const labels = (id, texts, dimension) => get(id).replaceChildren(...(size < 12 ? [] : texts).map(text => {
    const span = Object.assign(document.createElement("span"), {textContent: text});
    Object.assign(span.style, {[dimension]: `${size}px`, lineHeight: `${size}px`});
    return span;
  }));
  labels("left", queries, "height"); labels("top", keys, "width");
  get("reads").textContent = state.kind == "cross" ? "A token of the decoder …" : "A token …";
  tokens("queries", queries, true); tokens("keys", keys, false);
  show({});
}
function show(change, key) {
  Object.assign(state, change);
  const {shape: [N, H, L, M], queries, keys} = data[state.kind], {layer, head, query} = state;
  if (!("query" in change)) draw(get("map"), layer, head);
  get("layer").value = layer; get("head").value = head;
  get("heads").querySelectorAll("canvas").forEach((canvas, i) =>
    canvas.classList.toggle("picked", i == layer * H + head));
  get("queries").childNodes.forEach((span, i) => span.classList.toggle("on", i == query));
  get("keys").childNodes.forEach((span, i) => {
    const part = share(layer, head, query, i);
    span.style.background = `rgb(${shade(part)})`;
    span.style.color = part > .4 ? "white" : "";
    span.title = `${(100 * part).toFixed(1)} %`;
    span.classList.toggle("on", i === key);
  });
  get("left").childNodes.forEach((span, i) => span.classList.toggle("on", i == query));
  get("top").childNodes.forEach((span, i) => span.classList.toggle("on", i === key));
  if (key === undefined) key = keys.reduce((best, _, i) =>
    share(layer, head, query, i) > share(layer, head, query, best) ? i : best, 0);
  get("said").textContent =
    `“${queries[query]}” → “${keys[key]}”: ${(100 * share(layer, head, query, key)).toFixed(1)} %`;
}
get("kind").replaceChildren(...Object.keys(data).map(name => new Option(name, name)));
get("kind").onchange = event => { state.kind = event.target.value; begin(); };
get("layer").onchange = event => show({layer: +event.target.value});
get("head").onchange = event => show({head: +event.target.value});
begin();
"""
