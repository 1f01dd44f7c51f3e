"""The numbers and pictures of a report -> one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from resdet.evaluation.tables import percent
from resdet.report import sections
from resdet.report.gallery import DETECTION_KINDS
from resdet.report.numbers import Numbers

SUSPECTS = {
    "missing": "Detected with confidence, but not annotated",
    "class": "Annotated as one class, detected with confidence as another in the same place",
    "unfound": "Annotated, but nothing is detected near it at any score",
}


def static(name: str) -> str:
    """A file of `static/`."""
    return (files("resdet.report") / "static" / name).read_text(encoding="utf-8")


def page(
    numbers: Numbers,
    *,
    title: str,
    subtitle: str,
    published: Mapping[str, float],
    warnings: Sequence[str],
    tables: str = "",
    pictures: Sequence[dict[str, Any]] = (),
    of_pictures: str = "",
    suspects: Sequence[dict[str, Any]] = (),
    threshold: float = 0.5,
) -> str:
    """The page. tables: of the metrics of pixels, as text. of_pictures: which the gallery has. suspects: {"what", "row",
    "picture": its position, "text"}. threshold: that the gallery starts with."""
    values = numbers.values
    parts = [("numbers", "Numbers", sections.metrics_section(values, published))]
    if set(values["metrics"]) & {"bbox", "segm", "keypoints"}:
        parts.append(("classes", "Classes", sections.classes_section(numbers)))
    if numbers.matches is not None:
        parts.append(("lost", "Lost AP", sections.lost_section(values)))
        parts.append(("confusion", "Mix-ups", sections.confusion_section(values)))
        parts.append(("groups", "Hard objects", sections.groups_section(values)))
    if tables:
        parts.append(("pixels", "Label maps and segments", f'<pre tabindex="0">{escape(tables)}</pre>'))
    if numbers.matches is not None:
        parts.append(("calibration", "Calibration", sections.calibration_section(values)))
        parts.append(("pictures", "Pictures", f'<p class="faint">{escape(of_pictures)}</p><div id="gallery"></div>'))
        parts.append(("suspects", "Annotation errors?", _suspects(suspects)))
    links = "".join(f'<li><a href="#{name}">{escape(head)}</a></li>' for name, head, _ in parts)
    body = "".join(f'<section><h2 id="{name}">{escape(head)}</h2>{content}</section>' for name, head, content in parts)
    data = {
        "names": [row["name"] for row in values["classes"]], "kinds": DETECTION_KINDS, "threshold": round(threshold, 2),
        "pictures": list(pictures) or None, "suspects": list(suspects),
    }  # fmt: skip
    return document(
        title,
        f'<header class="top"><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p></header>'
        f'<nav class="top" aria-label="sections"><ul>{links}</ul></nav>'
        f"<main>{_warnings(warnings)}{_headline(values)}{_advice(values, len(suspects))}{body}</main>",
        {"data": data, "metrics": values["metrics"]},
        ["draw.js", "report.js"],
    )


def document(title: str, body: str, data: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """A whole HTML document with the style, values for the scripts, and the scripts, all inline."""
    embedded = "".join(
        f'<script type="application/json" id="{name}">{_json(value)}</script>' for name, value in data.items()
    )
    code = "".join(f"<script>{static(name)}</script>" for name in scripts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{static("style.css")}</style></head>'
        f"<body>{body}{embedded}{code}</body></html>\n"
    )


def _json(value: Any) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _headline(values: dict[str, Any]) -> str:
    cells = []
    for kind, numbers in values["metrics"].items():
        name, value = next(iter(numbers.items()))
        span = values["intervals"].get(kind, {}).get(name)
        between = f"{percent(span[0])} to {percent(span[1])}" if span else "&nbsp;"
        cells.append(
            f"<div><span>{sections.SHORT[kind]} {name}</span><b>{percent(value)}</b><span>{between}</span></div>"
        )
    cells.append(
        f"<div><span>pictures</span><b>{values['images']}</b><span>{values['detections']} detections</span></div>"
    )
    return f'<div class="numbers">{"".join(cells)}</div>'


def _advice(values: dict[str, Any], suspects: int) -> str:
    lines = sections.advice(values, suspects)
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<div class="notes"><b>What to do next</b><ul>{items}</ul></div>' if lines else ""


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    return f'<div class="notes warning"><ul>{items}</ul></div>' if warnings else ""


def _suspects(suspects: Sequence[dict[str, Any]]) -> str:
    if not suspects:
        return "<p>None found.</p>"
    text = "<p>Where the model and the annotations disagree most. Not all are errors: look, then correct the files.</p>"
    for what, head in SUSPECTS.items():
        if count := sum(suspect["what"] == what for suspect in suspects):
            text += f'<h3>{head} ({count})</h3><div class="tiles" id="suspects-{what}"></div>'
    return text
