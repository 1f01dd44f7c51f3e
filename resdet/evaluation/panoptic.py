"""Segments -> panoptic, segmentation and recognition quality (Kirillov et al. 2018, arXiv:1801.00868), as in panopticapi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resdet.evaluation.tables import numbers_table, percent

MATCH = 0.5  # IoU above which segments match: at most one can


class TrueSegment(NamedTuple):
    """category: its number among all, from 0. crowd: a group of things, of which no segment is missed."""

    category: int
    crowd: bool = False


class PanopticScore:
    """Counts of C categories over any number of images, to which those of other processes can be added.

    is_thing (C,) bool. iou (C,) float64: the sum of the matches'; matched, extra, missed (C,) int64.
    """

    def __init__(self, is_thing: Sequence[bool]) -> None:
        self.is_thing = np.array(is_thing, bool)
        c = len(self.is_thing)
        self.iou = np.zeros(c)
        self.matched, self.extra, self.missed = (np.zeros(c, np.int64) for _ in range(3))

    def add(
        self, ids: np.ndarray, categories: Mapping[int, int], true_ids: np.ndarray, truth: Mapping[int, TrueSegment]
    ) -> None:
        """Count an image. ids, true_ids (H, W): a segment of each pixel; categories, truth: of these by their ids; pixels whose
        id is not listed belong to none."""
        pairs, counts = np.unique((true_ids.astype(np.int64) << 32) | ids, return_counts=True)
        overlap = {(p >> 32, p & 0xFFFFFFFF): n for p, n in zip(pairs.tolist(), counts.tolist(), strict=True)}
        area: dict[int, int] = {}
        true_area: dict[int, int] = {}
        void: dict[int, int] = {}  # of each segment, pixels that have no true one
        for (t, p), n in overlap.items():
            area[p] = area.get(p, 0) + n
            true_area[t] = true_area.get(t, 0) + n
            if t not in truth:
                void[p] = void.get(p, 0) + n
        found, met = set(), set()
        for (t, p), n in overlap.items():
            if t not in truth or p not in categories or truth[t].crowd or truth[t].category != categories[p]:
                continue
            iou = n / (area[p] + true_area[t] - n - void.get(p, 0))
            if iou > MATCH:
                self.iou[categories[p]] += iou
                self.matched[categories[p]] += 1
                met.add(t)
                found.add(p)
        crowds: dict[int, int] = {}
        for t, segment in truth.items():
            if segment.crowd:
                crowds[segment.category] = t
            elif t not in met:
                self.missed[segment.category] += 1
        for p, category in categories.items():
            crowd = overlap.get((crowds[category], p), 0) if category in crowds else 0
            if p not in found and (void.get(p, 0) + crowd) / max(area.get(p, 0), 1) <= MATCH:
                self.extra[category] += 1

    def merge(self, other: PanopticScore) -> None:
        for name in ("iou", "matched", "extra", "missed"):
            getattr(self, name).__iadd__(getattr(other, name))

    def metrics(self) -> dict[str, float | None]:
        """PQ, SQ, RQ of all categories, of things (PQth, …) and of stuff (PQst, …), in 0..1: means over those that occur in the
        truth or in predictions; None without any."""
        quality = self.per_category()
        there = self.matched + self.extra + self.missed > 0
        result: dict[str, float | None] = {}
        for suffix, kind in (("", np.ones_like(there)), ("th", self.is_thing), ("st", ~self.is_thing)):
            for name, values in zip(("PQ", "SQ", "RQ"), quality, strict=True):
                counted = values[there & kind]
                result[name + suffix] = float(counted.mean()) if len(counted) else None
        return result

    def per_category(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """PQ, SQ and RQ of each category, (C,)."""
        weight = self.matched + 0.5 * self.extra + 0.5 * self.missed
        segmentation = self.iou / np.maximum(self.matched, 1)
        recognition = self.matched / np.maximum(weight, 0.5)
        return self.iou / np.maximum(weight, 0.5), segmentation, recognition

    def table(self, names: Sequence[str]) -> str:
        """The metrics and the qualities of each category in percent."""
        quality = self.per_category()
        there = np.flatnonzero(self.matched + self.extra + self.missed > 0).tolist()
        width = max([len(names[c]) for c in there] + [5])
        rows = [f"{names[c]:<{width}} {' '.join(f'{percent(values[c]):>5}' for values in quality)}" for c in there]
        head = f"{'class':<{width}} {'PQ':>5} {'SQ':>5} {'RQ':>5}"
        return "\n".join([numbers_table("panoptic quality, percent", self.metrics()), head, *rows, ""])
