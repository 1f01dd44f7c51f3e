"""The numbers of a report -> the sections of its page, as HTML, and what they say to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from resdet.evaluation.tables import percent
from resdet.report import charts
from resdet.report.charts import table
from resdet.report.curves import RECALLS, SCORES
from resdet.report.intervals import MANY
from resdet.report.numbers import Numbers

TITLES = {
    "bbox": "boxes", "segm": "masks", "keypoints": "keypoints (OKS)", "proposals": "proposals", "semantic": "label maps",
    "panoptic": "panoptic segments",
}  # fmt: skip
SHORT = {
    "bbox": "box",
    "segm": "mask",
    "keypoints": "keypoint",
    "proposals": "proposals'",
    "semantic": "",
    "panoptic": "",
}
MATRIX = 25  # classes of a confusion matrix at most
# TIDE's kinds: what they are, what tends to help.
LOST = {
    "Cls": ("right place, wrong class", "more examples of the classes below, or fewer, clearer classes"),
    "Loc": ("right class, poorly placed (IoU 0.1 to 0.5)", "a larger input, longer training, tighter annotations"),
    "Both": ("wrong class and poorly placed", "longer training, more data"),
    "Dupe": ("a second detection of an object", "a lower NMS threshold"),
    "Bkg": ("nothing there", "pictures without objects; look for objects that were not annotated, below"),
    "Miss": ("no detection of the object", "more data of such objects, a larger input for small ones, a lower score threshold"),
}  # fmt: skip


def metrics_section(values: dict[str, Any], published: Mapping[str, float]) -> str:
    """COCO's numbers, their intervals, and the published ones, e.g. {"bbox_AP": 0.386}."""
    parts = []
    for kind, numbers in values["metrics"].items():
        spans = values["intervals"].get(kind, {})
        given = {name: published[f"{kind}_{name}"] for name in numbers if f"{kind}_{name}" in published}
        head = ["", "percent", *(["95 % interval"] if spans else []), *(["published"] if given else [])]
        rows = []
        for name, value in numbers.items():
            row = [name, f'<span data-metric="{kind}.{name}" data-value="{value!r}">{percent(value)}</span>']
            if spans:
                low, high = spans.get(name, (None, None))
                row.append("-" if low is None else f"{percent(low)} to {percent(high)}")
            if given:
                row.append(percent(given[name]) if name in given else "")
            rows.append(row)
        parts.append(f"<div><h3>{escape(TITLES[kind])}</h3>{table(head, rows, bars=list(numbers.values()))}</div>")
    note = (
        '<p class="faint">The intervals come from a bootstrap over the pictures: how much a number depends on which '
        "pictures are in the split. The effect of training again with another seed is not included.</p>"
        if any(values["intervals"].values())
        else '<p class="faint">Intervals: <code>resdet eval … --report</code>.</p>' * (values["images"] > MANY)
    )
    return f'<div class="pair">{"".join(parts)}</div>{note}'


def classes_section(numbers: Numbers) -> str:
    """AP of each class, sorted; curves; thresholds."""
    values, kinds = numbers.values, [k for k in ("bbox", "segm", "keypoints") if k in numbers.values["metrics"]]
    rows_of = enumerate(values["classes"], 1)
    ordered = sorted(rows_of, key=lambda row: -1 if (ap := row[1][kinds[0]]["AP"]) is None else ap)
    present = [(k, row) for k, row in ordered if row["objects"]]
    head = ["class", "objects", *(f"{SHORT[k]} AP" for k in kinds), "AP50", "best F1", "at score"]
    rows = []
    for k, row in present:
        name = f'<button type="button" class="link" data-show-class="{k}">{escape(row["name"])}</button>'
        cells = [
            name,
            str(row["objects"]),
            *(percent(row[kind]["AP"]) for kind in kinds),
            percent(row[kinds[0]]["AP50"]),
        ]
        rows.append([*cells, percent(row.get("F1")), f"{row['threshold']:.2f}" if row.get("F1") else "-"])
    absent = [escape(row["name"]) for row in values["classes"] if not row["objects"]]
    text = table(head, rows, "worst first", bars=[row[kinds[0]]["AP"] for _, row in present])
    if absent:
        listed = ", ".join(absent[:20]) + (f" and {len(absent) - 20} more" if len(absent) > 20 else "")
        text += f'<p class="faint">Without objects here, so not measured: {listed}.</p>'
    return text + _curves(numbers, present)


def _curves(numbers: Numbers, present: Sequence[tuple[int, dict[str, Any]]]) -> str:
    overall = numbers.curves[0] if numbers.curves else None
    if not overall:
        return ""
    there = [(k, c) for k, c in enumerate(numbers.curves[1:], 1) if c]
    most = max(present, key=lambda row: row[1]["objects"])[0]
    options = "".join(
        f'<option value="{k}"{" selected" * (k == most)}>{escape(row["name"])}</option>' for k, row in sorted(present)
    )
    precision = charts.lines(
        "precision against recall at IoU 0.5", "recall", "precision", RECALLS, overall.precision,
        [(k, c.precision) for k, c in there],
    )  # fmt: skip
    f1 = charts.lines(
        "F1 against the score threshold at IoU 0.5", "score threshold", "F1", SCORES, overall.f1,
        [(k, c.f1) for k, c in there],
    )  # fmt: skip
    return (
        '<div class="controls"><label>class <select id="curve-class">' + options + "</select></label>"
        '<span class="faint">solid: the class; dashed: all classes as one</span></div>'
        f'<div class="pair"><figure style="margin:0">{precision}<figcaption>precision and recall, IoU 0.5</figcaption></figure>'
        f'<figure style="margin:0">{f1}<figcaption>F1 by threshold, IoU 0.5</figcaption></figure></div>'
        f"<p>All classes as one have their highest F1, {percent(overall.best)} %, at a score of {overall.threshold:.2f}. "
        "<code>thresholds.json</code> has the best score of each class: <code>resdet visualize predict … --score "
        "thresholds.json</code>, <code>Predictor(…, score_threshold=&quot;thresholds.json&quot;)</code>.</p>"
    )


def lost_section(values: dict[str, Any]) -> str:
    parts = []
    for kind, of_kind in values["lost"].items():
        rows = [
            [f"{name}: {what}", str(of_kind[name]["count"]), percent(of_kind[name]["gain"])]
            for name, (what, _) in LOST.items()
        ]
        rows += [
            [f"<i>{text}</i>", str(of_kind[name]["count"]), percent(of_kind[name]["gain"])]
            for name, text in (("FP", "all false detections"), ("FN", "all objects not found"))
        ]
        gains = [of_kind[name]["gain"] for name in (*LOST, "FP", "FN")]
        most = max(*gains, 1e-9)
        heads = ["error", "count", "AP50 lost"]
        parts.append(f"<div><h3>{TITLES[kind]}</h3>{table(heads, rows, bars=[g / most for g in gains])}</div>")
    return (
        "<p>How much AP50 would rise, in points, if all errors of one kind were fixed and nothing else (Bolya et al. 2020). "
        f'They do not add up: fixing one reveals the next.</p><div class="pair">{"".join(parts)}</div>'
    )


def confusion_section(values: dict[str, Any]) -> str:
    if not values["confusion"]:
        return "<p>No objects: nothing to mix up.</p>"
    counts, names = np.array(values["confusion"]["table"]), [row["name"] for row in values["classes"]]
    inner = counts[:-1, :-1] * (1 - np.eye(len(names), dtype=int))
    there = np.flatnonzero(counts[:-1].sum(axis=1) + counts[:, :-1].sum(axis=0))
    mixed = inner.sum(axis=0) + inner.sum(axis=1)
    if len(there) > MATRIX:
        there = np.sort(there[np.argsort(-mixed[there], kind="stable")][:MATRIX])
    rows = [*there.tolist(), len(names)]
    shown = f"{len(there)} classes that are mixed up most" if len(there) < len(names) else "all classes"
    text = f"<p>At a score of {values['confusion']['threshold']:.2f} or more and IoU 0.5; {shown}. "
    text += "A number off the diagonal opens its pictures in the gallery.</p>"
    text += charts.confusion(counts[np.ix_(rows, rows)], names, [k + 1 for k in there.tolist()])
    if pairs := mixups(values)[:12]:
        chips = "".join(
            f'<button type="button" data-pair="{a},{b}">{escape(names[a - 1])} taken for {escape(names[b - 1])}: {count}'
            "</button>"
            for a, b, count in pairs
        )
        text += f'<h3>Mixed up most</h3><div class="chips">{chips}</div>'
    return text


def mixups(values: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(annotated as, detected as, how often) of different classes, the most first."""
    if not values["confusion"]:
        return []
    counts = np.array(values["confusion"]["table"])[:-1, :-1]
    np.fill_diagonal(counts, 0)
    rows, columns = np.nonzero(counts)
    order = np.argsort(-counts[rows, columns], kind="stable")
    return [(int(rows[k]) + 1, int(columns[k]) + 1, int(counts[rows[k], columns[k]])) for k in order]


def groups_section(values: dict[str, Any]) -> str:
    parts = []
    for kind, properties in values["groups"].items():
        rows: list[list[str]] = []
        bars: list[float | None] = []
        for name, groups in properties.items():
            rows.append([f"<b>by {name}</b>", "", "", ""])
            bars.append(None)
            for g in groups:
                rows.append([escape(g["name"]), str(g["objects"]), percent(g["ap"]), percent(g["ap50"])])
                bars.append(g["ap"])
        parts.append(f"<div><h3>{TITLES[kind]}</h3>{table(['', 'objects', 'AP', 'AP50'], rows, bars=bars)}</div>")
    text = f'<div class="pair">{"".join(parts)}</div>'
    if edge := values["boundary"]:
        text += (
            f"<p><b>Boundary AP {percent(edge['boundary_AP'])}</b> beside a mask AP of {percent(edge['mask_AP'])} on "
            f"{'the same' if edge['images'] == values['images'] else 'a sample of'} {edge['images']} pictures: by how well the "
            "masks' edges agree (Cheng et al. 2021). A wide gap means that shapes are right but coarse.</p>"
        )
    return text


def calibration_section(values: dict[str, Any]) -> str:
    parts = []
    for kind, found in values["calibration"].items():
        if not found["bins"]:
            continue
        chart = charts.reliability(f"reliability of {TITLES[kind]}", found["bins"])
        parts.append(
            f'<figure style="margin:0">{chart}<figcaption>{TITLES[kind]}: expected calibration error '
            f"<b>{percent(found['ece'])} %</b>, largest {percent(found['mce'])} %</figcaption></figure>"
        )
    if not parts:
        return "<p>No detections.</p>"
    return (
        "<p>How often detections of a score are right at IoU 0.5. On the dotted line 8 of 10 detections with a score of 0.8 "
        "are right; below it the model is overconfident, above it underconfident. Bars: how many detections there are.</p>"
        f'<div class="pair">{"".join(parts)}</div>'
    )


def advice(values: dict[str, Any], suspects: int) -> list[str]:
    """What the numbers say to do next, the most important first."""
    lines = []
    of_kind: dict[str, Any] = next(iter(values["lost"].values()), {})
    if of_kind:
        name = max(LOST, key=lambda name: of_kind[name]["gain"])
        if of_kind[name]["gain"] > 0:
            what, helps = LOST[name]
            lines.append(
                f"Most AP50 is lost to {name}, {escape(what)}: {percent(of_kind[name]['gain'])} points. "
                f"What tends to help: {escape(helps)}."
            )
    if (pairs := mixups(values)) and pairs[0][2] >= 3:
        names = [row["name"] for row in values["classes"]]
        a, b, count = pairs[0]
        lines.append(f"{escape(names[a - 1])} is taken for {escape(names[b - 1])} most often, {count} times.")
    if suspects:
        lines.append(
            f"{suspects} annotations that may be wrong or missing are at the end of the page: look before training again."
        )
    few = [escape(row["name"]) for row in values["classes"] if 0 < row["objects"] < 10]
    if few:
        more = f" and {len(few) - 8} more" if len(few) > 8 else ""
        lines.append(f"Fewer than 10 objects, so hardly measured: {', '.join(few[:8])}{more}.")
    return lines
