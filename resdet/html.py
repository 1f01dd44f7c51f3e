"""Pages that need no other file: a document with its style, tables, curves as inline SVG, pictures as data."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/: told apart by the colour-blind
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("", "6 3", "2 3")  # for more curves than colours
STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#666;--line:#ccc;--ground:#fff;--band:#f4f4f4}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--soft:#a0a0a0;--line:#444;--ground:#16181b;--band:#20242a}}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--ground:#fff;--band:#fff}figure,tr{break-inside:avoid}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:72rem;margin:1.5rem auto}
body{padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}p.note{color:var(--soft);max-width:48rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}.scroll{overflow-x:auto}
th,td{text-align:right;padding:.15rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom-width:2px}
figure{margin:0}figcaption{color:var(--soft);font-size:.9rem}img{max-width:100%;height:auto;display:block}
.row{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr))}
.row img{width:100%}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,10rem),1fr))}
svg text{fill:var(--soft);font-size:11px}svg .grid{stroke:var(--line);stroke-width:.7}
svg polyline{fill:none;stroke-width:1.8}svg circle:hover{r:5}
.key i{display:inline-block;width:1.6rem;border-top:3px solid;vertical-align:middle;margin-right:.4rem}
.key span{margin-right:1.2rem}
""".strip()


class Curve(NamedTuple):
    """x, y: the points; color: its place in `COLORS`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int


def document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text whose first column names the rows."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = (
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{body}</table></div>'


def figure(content: str, caption: str) -> str:
    """A picture or chart with a caption of plain text."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(data: bytes, description: str, kind: str = "jpeg") -> str:
    return f'<img src="{data_uri(data, kind)}" alt="{escape(description)}" loading="lazy">'


def data_uri(data: bytes, kind: str = "jpeg") -> str:
    """An image file of that kind as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def key(names: Sequence[str]) -> str:
    """The colours of curves, in their order."""
    lines = ("solid", "dashed", "dotted")
    marks = (
        f'<span><i style="border-color:{COLORS[k % len(COLORS)]};border-top-style:{lines[k // len(COLORS) % 3]}"></i>'
        f"{escape(name)}</span>"
        for k, name in enumerate(names)
    )
    return f'<p class="key">{"".join(marks)}</p>'


def chart(title: str, curves: Sequence[Curve], width: int = 460, height: int = 250) -> str:
    """Curves over each other, at whose points the pointer reads the values. Points that are not finite are left out."""
    finite = [
        (curve, [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if abs(y) < float("inf")]) for curve in curves
    ]
    points = [point for _, part in finite for point in part]
    if not points:
        return ""
    left, right, top, bottom = 48, width - 12, 12, height - 30
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    x_span, y_span = (x_high - x_low) or 1, (y_high - y_low) or abs(y_high) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x_low) / x_span * (right - left), bottom - (y - y_low) / y_span * (bottom - top)

    marks = ""
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(x_low + share * x_span, y_low + share * y_span)
        marks += f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        marks += f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{y_low + share * y_span:.3g}</text>'
        marks += f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{x_low + share * x_span:.6g}</text>'
    for curve, part in finite:
        color, dash = COLORS[curve.color % len(COLORS)], DASHES[curve.color // len(COLORS) % len(DASHES)]
        places = [at(x, y) for x, y in part]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks += f'<polyline stroke="{color}" stroke-dasharray="{dash}" points="{path}"/>'
        for (x, y), (px, py) in zip(part, places, strict=True):
            tip = f"{curve.name}: {y:.4g} at {x:g}"
            marks += f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{color}"><title>{escape(tip)}</title></circle>'
    label = escape(title)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><title>{label}</title>{marks}</svg>'
