"""An HTML page that is one file and asks for nothing outside it: shell, style, small elements."""

import base64
import html
import io
import math

STYLE = """
:root { color-scheme: light dark; --bg: #fcfcfa; --ink: #1c1e22; --soft: #5a606a; --line: #e1e1da; --fill: #f1f1ec;
  --accent: #1f5a96; --hit: #2f6fb3; --miss: #b8441a; --up: #17723f; --down: #b02a20;
  --s0: #1f5a96; --s1: #b8441a; --s2: #17723f; --s3: #7a4a9e; --s4: #7d6200; --s5: #5a606a; }
@media screen and (prefers-color-scheme: dark) {
  :root { --bg: #15171b; --ink: #e6e6e1; --soft: #a1a7b1; --line: #2d3138; --fill: #1e2126;
    --accent: #86b8ef; --hit: #6ba6e6; --miss: #e8875c; --up: #6cc493; --down: #f08a80;
    --s0: #86b8ef; --s1: #e8875c; --s2: #6cc493; --s3: #c39be0; --s4: #d9bb4a; --s5: #a1a7b1; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Inter,
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; }
.sheet { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3, p, dl, dd, ul, ol, figure, table { margin: 0; padding: 0; }
ul, ol { list-style: none; }
h1 { font-size: 2rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; font-weight: 650; letter-spacing: -.01em; margin-bottom: .35rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 2rem 0 .5rem; }
a { color: var(--accent); text-underline-offset: .2em; text-decoration-thickness: 1px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
section { margin-top: 3.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
section:first-child { margin-top: 1.25rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
.lead { max-width: 44rem; overflow-wrap: anywhere; }
.charts h3 { margin-top: 1rem; }
.reasons { margin-top: .6rem; max-width: 44rem; }
.note { background: var(--fill); padding: .6rem .9rem; border-radius: .3rem; font-size: .9rem; margin: 1rem 0;
  overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; margin-top: 1.25rem; }
nav a { color: var(--soft); text-decoration: none; display: inline-block; padding: .3rem 0; }
nav a:hover { color: var(--accent); text-decoration: underline; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.scores { display: grid; grid-template-columns: minmax(19rem, 1.4fr) 1fr 1fr; gap: 1.75rem 2rem;
  margin: 1.25rem 0 2rem; }
.scores dt { color: var(--soft); font-size: .875rem; }
.scores dd { font-size: 1.65rem; line-height: 1.25; letter-spacing: -.02em; }
.scores .main { grid-row: span 2; }
.scores .main dd:first-of-type { font-size: 4rem; font-weight: 300; line-height: 1.05; letter-spacing: -.045em; }
.scores .unit { font-size: .55em; color: var(--soft); letter-spacing: 0; margin-left: .15em; }
.scores dd.delta, .scores dd.soft { font-size: .875rem; letter-spacing: 0; line-height: 1.5; }
.up { color: var(--up); } .down { color: var(--down); } .same { color: var(--soft); }
.up, .down { white-space: nowrap; }

table { border-collapse: collapse; font-size: .875rem; width: 100%; }
caption { text-align: left; padding-bottom: .5rem; }
th { font-weight: inherit; text-align: left; }
thead th { color: var(--soft); font-size: .8rem; vertical-align: bottom; }
th, td { padding: .28rem .5rem .28rem 0; border-bottom: 1px solid var(--line); }
tr > :last-child { padding-right: 0; }
.n { text-align: right; } td.n { white-space: nowrap; }
tbody th { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: .12em; background: var(--c);
  box-shadow: 0 0 0 1px rgb(128 128 128 / .55); margin-right: .5em; }
.scroll { overflow-x: auto; max-width: 100%; }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 0 3rem;
  align-items: start; }

tbody .named, .classes th[scope=row] { position: relative; line-height: 1.3; padding-left: 1.25em; }
.named { width: 36%; overflow-wrap: anywhere; }
th .swatch, td .swatch { position: absolute; left: 1px; top: .62em; }
small { color: var(--soft); font-size: .85em; }
.classes th[scope=row] { width: 36%; } .classes .bar { width: 28%; padding-right: .75rem; }
.bar > span { position: relative; display: block; height: .8rem; background: var(--fill); border-radius: .12rem; }
.bar i { position: absolute; inset: 0 auto 0 0; width: var(--v); background: var(--c); border-radius: .12rem;
  box-shadow: inset 0 0 0 1px rgb(128 128 128 / .55); }
.bar b { position: absolute; inset: -.2rem auto -.2rem var(--o); width: 2px; margin-left: -1px; background: var(--ink);
  outline: 1px solid var(--bg); }

.matrix { width: auto; border-collapse: separate; border-spacing: 1px; font-size: .75rem; }
.matrix th, .matrix td { border: 0; padding: 0; }
.matrix thead td { background: none; } .matrix thead th { font-size: .75rem; padding: .3rem 0; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); display: block; max-height: 7rem;
  margin: 0 auto; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; line-height: 1.1; }
.matrix tbody th { position: sticky; left: 0; z-index: 1; background: var(--bg); padding-right: .6rem;
  line-height: 1.15; text-align: right; }
.matrix tbody span { display: block; width: max-content; max-width: 9rem; margin-left: auto; overflow-wrap: anywhere; }
.matrix td { width: 2.6rem; min-width: 2.1rem; height: 2.1rem; text-align: center; background: var(--fill); }
.matrix .hit { background: color-mix(in srgb, var(--hit) calc(var(--v) * 1%), var(--fill)); }
.matrix .miss { background: color-mix(in srgb, var(--miss) calc(var(--v) * 1%), var(--fill)); }
.matrix .high { color: #fff; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; } .beside > * { min-width: 0; }
.beside > .list { flex: 1 1 24rem; }
.map { display: block; width: 100%; max-width: 44rem; height: auto; margin: .5rem 0; }
.map image { image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .8rem; color: var(--soft); }
.legend li { max-width: 100%; overflow-wrap: anywhere; }
.ramp { display: inline-block; width: 4rem; height: .7em; margin: 0 .4em; border-radius: .12em;
  background: linear-gradient(90deg, var(--fill), var(--c)); }

.shot { margin-top: 1.5rem; break-inside: avoid; }
.shot h4 { margin: 0 0 .4rem; font-size: .875rem; font-weight: 600; overflow-wrap: anywhere; }
.shot h4 span { font-weight: 400; color: var(--soft); }
.panels { display: grid; grid-template-columns: repeat(4, 1fr); gap: .6rem; margin-bottom: .4rem; align-items: end; }
.panels img { display: block; width: 100%; height: auto; max-height: 22rem; object-fit: contain;
  background: var(--fill); border-radius: .15rem; }
.panels .classes-of { image-rendering: pixelated; }
.panels figcaption { font-size: .75rem; padding-top: .15rem; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 2rem 3rem; }
.chart { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--soft); font-size: 13px; }
.chart .axis { stroke: var(--soft); } .chart .grid { stroke: var(--line); }
.chart path.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .fill { fill: var(--accent); }
.chart.small { max-width: 32rem; margin-top: .75rem; }
.key { display: inline-block; width: 1.7em; height: 0; border-top: 2px var(--d, solid) var(--c); vertical-align: middle;
  margin-right: .45em; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: .9rem 1.5rem;
  margin: 1rem 0 1.5rem; }
.facts dt { color: var(--soft); font-size: .8rem; } .facts dd { overflow-wrap: anywhere; font-size: .95rem; }
summary { cursor: pointer; padding: .4rem 0; color: var(--accent); width: fit-content; }
pre { margin: .25rem 0 1rem; padding: .9rem 1rem; background: var(--fill); border-radius: .3rem; font-size: .8rem;
  line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace; }
footer { margin-top: 3.5rem; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }

@media screen and (prefers-color-scheme: dark) { .matrix .high, .matrix .middle { color: #101216; } }
@media (min-width: 60rem) { .chart:not(.map) text { font-size: 10.5px; } }
@media (max-width: 40rem) {
  .map text { font-size: 22px; }
  .sheet { padding-top: 1.5rem; }
  h1 { font-size: 1.6rem; }
  section { margin-top: 2.5rem; }
  .scores { grid-template-columns: 1fr 1fr; gap: 1.25rem; } .scores .main { grid-column: span 2; }
  .wide { display: none; } .classes th[scope=row] { width: 38%; } .classes .bar { width: 22%; }
  .panels { grid-template-columns: 1fr 1fr; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  .matrix tbody span { max-width: 5.5rem; } }
@media print {
  :root { --bg: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 10pt; } .sheet { max-width: none; padding: 0; } nav { display: none; }
  section { margin-top: 2rem; } h2, h3, h4 { break-after: avoid; } tr, figure, .map, .matrix { break-inside: avoid; }
  .scroll { overflow: visible; } .matrix td { min-width: 0; } .matrix { font-size: .6rem; width: 100%; } }
"""


def escape(value):
    """Any value as text that is safe between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def document(title, header, sections, footer):
    """The page, pure ASCII text, so that no encoding can spoil it.

    sections: list of (id, heading, body); `title` is plain text, all else is HTML.
    """
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(heading)}</h2>{content}</section>\n'
        for name, heading, content in sections
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><div class="sheet"><header>{header}'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>\n{body}</main>\n'
        f"<footer>{footer}</footer></div></body></html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


def table(heads, rows, caption="", kind=""):
    """A table; heads: (HTML, class) for each column, rows: lists of HTML, of which the first heads the row."""
    head = "".join(f'<th scope="col"{_kind(name)}>{text}</th>' for text, name in heads)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{_kind(name)}>{cell}</td>" for cell, (_, name) in zip(rest, heads[1:]))
        lines.append(f'<tr><th scope="row"{_kind(heads[0][1])}>{first}</th>{cells}</tr>')
    return (
        f"<table{_kind(kind)}>"
        + (f"<caption>{caption}</caption>" if caption else "")
        + f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _kind(name):
    return f' class="{name}"' if name else ""


def facts(pairs):
    """A list of (term, value), plain text."""
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in pairs)
        + "</dl>"
    )


def note(text):
    """A paragraph that stands out."""
    return f'<p class="note">{escape(text)}</p>'


def color(rgb):
    """An (r, g, b) as CSS."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, rgb))


def swatch(rgb):
    """A small square of that colour."""
    return f'<span class="swatch" style="--c:{color(rgb)}"></span>'


def data_uri(image, kind):
    """A PIL image as a data URI; kind: "png" or "jpeg"."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 82} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def percent(share):
    """A share as a percentage with two decimals, a dash for NaN."""
    return f"{100 * share:.2f}" if math.isfinite(share) else "\N{EN DASH}"


def delta(share, reference):
    """share - reference in points, HTML; "" where one is NaN."""
    if not math.isfinite(share - reference):
        return ""
    change = round(100 * (share - reference), 2)
    kind = "up" if change > 0 else "down" if change < 0 else "same"
    sign = {"up": "+", "down": "\N{MINUS SIGN}", "same": "\N{PLUS-MINUS SIGN}"}[kind]
    return f'<span class="{kind}">{sign}{abs(change):.2f}</span>'
