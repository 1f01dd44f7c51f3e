"""Boundary AP: Cheng et al. 2021, Boundary IoU (arXiv:2103.16562): COCO's AP by the smaller of mask IoU and boundary IoU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resdet.evaluation.coco import Evaluation
from resdet.evaluation.tables import measured_mean
from resdet.report.matches import compressed

DILATION = 0.02  # of the image's diagonal: the width of a boundary, as the authors set it for COCO
PICTURES = 100  # evaluated at most, spread over the split: two IoUs of every pair take their time


def boundary_ap(
    evaluation: Evaluation, found: Sequence[dict[str, Any]], limit: int, pictures: int = PICTURES
) -> dict[str, Any]:
    """{"images": how many were evaluated, "boundary_AP", "mask_AP": of the same images, None without an object}.

    found: `Evaluation.detections` of masks.
    """
    images = evaluation.truth["images"]
    step = max(1, -(-len(images) // pictures))
    chosen = {image["id"]: image for image in images[::step]}
    contents = []
    for entries in (evaluation.truth["annotations"], found):
        kept = [entry for entry in entries if entry["image_id"] in chosen]
        contents.append(
            {**evaluation.truth, "images": list(chosen.values()), "annotations": [_with_edge(e, chosen) for e in kept]}
        )
    both = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, content in zip(both, contents, strict=True):
            coco.dataset = content
            coco.createIndex()
        values = {}
        for name, evaluator in (("boundary_AP", _ByBoundary(*both, "segm")), ("mask_AP", COCOeval(*both, "segm"))):
            evaluator.params.maxDets, evaluator.params.areaRng = [limit], evaluator.params.areaRng[:1]
            evaluator.params.areaRngLbl = ["all"]
            evaluator.evaluate()
            evaluator.accumulate()
            values[name] = measured_mean(np.asarray(evaluator.eval["precision"]))
    return {"images": len(chosen), **values}


class _ByBoundary(COCOeval):  # type: ignore[misc]
    """pycocotools' evaluation with another IoU."""

    def computeIoU(self, imgId: Any, catId: Any) -> Any:  # noqa: N802, N803 (pycocotools' names)
        ious = super().computeIoU(imgId, catId)
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not len(ious) or not truth or not found:
            return ious
        order = np.argsort([-entry["score"] for entry in found], kind="mergesort")[: self.params.maxDets[-1]]
        crowds = [int(entry["iscrowd"]) for entry in truth]
        edges = coco_mask.iou([found[k]["boundary"] for k in order], [entry["boundary"] for entry in truth], crowds)
        return np.where(np.array(crowds, bool)[None], ious, np.minimum(ious, edges))


def _with_edge(entry: dict[str, Any], images: dict[int, dict[str, Any]]) -> dict[str, Any]:
    image = images[entry["image_id"]]
    rle = compressed(entry["segmentation"], (image["height"], image["width"]))
    return {**entry, "segmentation": rle, "boundary": boundary(rle)}


def boundary(rle: dict[str, Any]) -> dict[str, Any]:
    """The pixels of a mask that are within `DILATION` of its contour, as an RLE; the picture's border is a contour, too."""
    height, width = rle["size"]
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    mask = coco_mask.decode(rle)
    part = cv2.copyMakeBorder(mask[y : y + h, x : x + w], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    reach = max(1, round(DILATION * float(np.hypot(height, width))))
    side = 2 * reach + 1  # as many steps of 3 x 3 at once
    mask[y : y + h, x : x + w] -= cv2.erode(part, np.ones((side, side), np.uint8))[1:-1, 1:-1]
    return dict(coco_mask.encode(np.asfortranarray(mask)))
