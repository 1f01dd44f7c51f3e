"""Predicted label maps and segments of a dataset -> their metrics, counted image by image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from resdet.data.coco import Annotations
from resdet.data.label_maps import LabelFiles, read_values
from resdet.evaluation.panoptic import PanopticScore, TrueSegment
from resdet.evaluation.semantic import SemanticScore
from resdet.structures import Instances, Output

PixelKind = Literal["semantic", "panoptic"]


class PixelEvaluation:
    """Of a model with these outputs on these annotations, whose labels are the model's.

    Panoptic quality needs the model's masks and COCO's panoptic annotations. One serves one evaluation, in one process.
    """

    def __init__(self, annotations: Annotations, outputs: Collection[Output]) -> None:
        self.annotations, self.maps = annotations, annotations.label_maps
        self.semantic = SemanticScore(len(self.maps.names)) if self.maps and "semantic" in outputs else None
        self.panoptic: PanopticScore | None = None
        if self.semantic and "masks" in outputs and isinstance(self.maps, LabelFiles) and self.maps.source.things:
            source = self.maps.source
            self.panoptic = PanopticScore([k < source.things for k in range(len(source.categories))])
            number = {name: k for k, name in enumerate(source.categories[: source.things])}
            self.thing_of = [number.get(name, -1) for name in annotations.class_names]  # -1: not in the annotations

    @property
    def kinds(self) -> tuple[PixelKind, ...]:
        if self.panoptic:
            return ("semantic", "panoptic")
        return ("semantic",) if self.semantic else ()

    def add(self, index: int, found: Instances) -> None:
        """Count image `index`."""
        if self.semantic is None:
            return
        assert self.maps is not None
        assert found.semantic is not None
        info = self.annotations.images[index]
        self.semantic.add(found.semantic, self.maps.read(info))
        if self.panoptic is None:
            return
        assert isinstance(self.maps, LabelFiles)
        file = self.maps.source.files.get(info.image_id)
        if file is None:  # not annotated
            return
        truth = {value.value: TrueSegment(value.category, value.crowd) for value in file.values}
        segments = found.panoptic()
        categories = {
            segment.id: self.thing_of[segment.label] if segment.thing else self.maps.source.things + segment.label - 1
            for segment in segments.segments
        }
        known = {identity: category for identity, category in categories.items() if category >= 0}
        self.panoptic.add(segments.ids, known, read_values(file, info.size), truth)

    def merge(self, semantic: SemanticScore | None, panoptic: PanopticScore | None) -> None:
        """Add the counts of another process."""
        if self.semantic and semantic:
            self.semantic.merge(semantic)
        if self.panoptic and panoptic:
            self.panoptic.merge(panoptic)

    def score(self) -> tuple[dict[str, dict[str, float | None]], list[str]]:
        """Metrics by kind, and a table of each."""
        metrics, tables = {}, []
        if self.semantic and self.maps:
            metrics["semantic"] = self.semantic.metrics()
            tables.append(self.semantic.table(self.maps.names))
        if self.panoptic and isinstance(self.maps, LabelFiles):
            metrics["panoptic"] = self.panoptic.metrics()
            tables.append(self.panoptic.table(self.maps.source.categories))
        return metrics, tables
