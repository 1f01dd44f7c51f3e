"""Numbers -> pieces of HTML: tables with bars, and charts as inline SVG. Their colours are those of `static/style.css`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from resdet.evaluation.tables import percent

WIDTH, HEIGHT, LEFT, BOTTOM = 340, 260, 38, 34


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", bars: Sequence[float | None] | None = None
) -> str:
    """Rows of cells, HTML already; bars: for each row a value in 0..1, drawn in a last column."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head) + ("<th></th>" if bars is not None else "")
    lines = []
    for k, row in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        if bars is not None:
            value = bars[k]
            bar = "" if value is None else f'<i style="width:{100 * min(max(value, 0.0), 1.0):.1f}%"></i>'
            cells += f'<td class="bar">{bar}</td>'
        lines.append(f"<tr>{cells}</tr>")
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def lines(
    title: str, across: str, up: str, x: np.ndarray, of_all: np.ndarray, of_classes: Sequence[tuple[int, np.ndarray]]
) -> str:
    """Curves in the unit square: one of all classes, and one of each class (its number), hidden until it is selected."""
    curves = f'<polyline class="of-all" points="{_points(x, of_all)}"><title>all classes</title></polyline>'
    curves += "".join(
        f'<polyline class="of-class" data-category="{k}" points="{_points(x, values)}"/>' for k, values in of_classes
    )
    return _frame(title, across, up, curves)


def reliability(title: str, bins: Sequence[dict[str, float]]) -> str:
    """How often detections of each score are right, against the score; bars: how many detections there are, at the foot."""
    most = max([b["count"] for b in bins], default=0) or 1
    marks = f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
    for b in bins:
        if not b["count"]:
            continue
        left, right, top = _x(b["low"]) + 1, _x(b["high"]) - 1, _y(0.25 * b["count"] / most)
        marks += (
            f'<rect class="count" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{_y(0) - top:.1f}">'
            f"<title>{int(b['count'])} detections</title></rect>"
        )
    there = [b for b in bins if b["count"]]
    path = " ".join(f"{_x(b['score']):.1f},{_y(b['right']):.1f}" for b in there)
    marks += f'<polyline class="path" points="{path}"/>'
    for b in there:
        tip = f"score {b['score']:.2f}: {percent(b['right'])} % of {int(b['count'])} are right"
        at = f'cx="{_x(b["score"]):.1f}" cy="{_y(b["right"]):.1f}"'
        marks += f'<circle class="mark" {at} r="4"><title>{tip}</title></circle>'
    return _frame(title, "score", "share that is right", marks)


def confusion(counts: np.ndarray, names: Sequence[str], categories: Sequence[int]) -> str:
    """Rows are objects, columns detections, the last of each background. categories: the numbers of the classes that `counts`
    (n + 1, n + 1) are of. Each cell is shaded by its share of its row."""
    titles = [escape(names[k - 1]) for k in categories]
    heads = "".join(f'<th scope="col">{title}</th>' for title in [*titles, "nothing"])
    body = ""
    for r, title in enumerate([*titles, "background"]):
        total = counts[r].sum() or 1
        body += f'<tr><th scope="row">{title}</th>'
        for c in range(len(titles) + 1):
            value = int(counts[r, c])
            mixed = r != c and max(r, c) < len(titles) and value
            text = f"{value}" if value else ""
            if mixed:
                pair = f"{categories[r]},{categories[c]}"
                text = f'<button type="button" class="link" data-pair="{pair}" title="show these">{value}</button>'
            right = ' class="right"' if r == c and r < len(titles) else ""
            body += f'<td{right} style="--v:{value / total:.3f}">{text}</td>'
        body += "</tr>"
    return (
        '<div class="scroll" tabindex="0"><table class="confusion"><caption>rows: annotated as; columns: detected as</caption>'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _frame(title: str, across: str, up: str, content: str) -> str:
    grid = ""
    for value in (0, 0.25, 0.5, 0.75, 1):
        grid += f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 10}" y1="{_y(value):.1f}" y2="{_y(value):.1f}"/>'
        grid += f'<text x="{LEFT - 5}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        grid += f'<text x="{_x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
    label = escape(title)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{grid}{content}"
        f'<text x="{(LEFT + WIDTH - 10) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="{LEFT}" y="10">{escape(up)}</text></svg>'
    )


def _points(x: np.ndarray, values: np.ndarray) -> str:
    return " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(x.tolist(), values.tolist(), strict=True))


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - 10 - LEFT)


def _y(value: float) -> float:
    return 18 + (1 - value) * (HEIGHT - BOTTOM - 18)
