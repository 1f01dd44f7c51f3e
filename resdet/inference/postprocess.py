"""Detections in the network's input frame -> `Instances` in each image's own frame -> COCO results entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resdet.fields import map_tensors
from resdet.keypoints import PIXEL_CENTRE, heatmaps_to_keypoints
from resdet.label_maps import label_map
from resdet.structures import Detections, Instances


def to_instances(detections: Detections, originals: Sequence[tuple[int, int]]) -> list[Instances]:
    """One `Instances` per image, sorted by descending score. originals: (H, W) of each image as it was read."""
    host = map_tensors(Tensor.cpu, detections)
    return [_of_image(host, b, size) for b, size in enumerate(originals)]


def _of_image(host: Detections, b: int, original: tuple[int, int]) -> Instances:
    order = np.argsort(-host.scores[b].float().numpy(), kind="stable")  # a head may have changed the scores
    rows = torch.from_numpy(order[host.valid[b].numpy()[order]])
    (height, width), (h, w) = original, host.image_sizes[b].tolist()
    scale = np.array([width / w, height / h, width / w, height / h], dtype=np.float32)

    def array(values: Tensor) -> np.ndarray:
        chosen = values[b, rows]
        return (chosen.float() if chosen.is_floating_point() else chosen).numpy()

    semantic = None
    if host.semantic is not None:
        semantic = label_map(host.semantic[b].float(), (h, w), original)
    keypoints = None
    if (
        host.keypoint_logits is not None
    ):  # decoded in the network's frame, like detectron2 and torchvision do, then scaled
        found = host.keypoint_logits[b, rows], host.boxes[b, rows].float()
        keypoints = heatmaps_to_keypoints(*found, host.keypoint_decode).numpy() * [*scale[:2], np.float32(1)]
    return Instances(
        boxes=array(host.boxes) * scale,
        scores=array(host.scores),
        labels=array(host.labels),
        image_size=original,
        mask_probs=None if host.mask_probs is None else array(host.mask_probs),
        paste=host.paste,
        keypoints=keypoints,
        semantic=semantic,
    )


def to_coco(
    instances: Instances, image_id: int | str, category_ids: Sequence[int | str | None]
) -> list[dict[str, Any]]:
    """COCO results entries: bbox as XYWH, the mask as RLE, keypoints in pixel indices. category_ids: by label."""
    rles: Sequence[Any] = instances.rle() or [None] * len(instances)
    poses: Sequence[Any] = [None] * len(instances)
    if instances.keypoints is not None:
        poses = list(instances.keypoints - np.array([PIXEL_CENTRE, PIXEL_CENTRE, 0], np.float32))
    entries = []
    for box, score, label, rle, pose in zip(
        instances.boxes, instances.scores, instances.labels, rles, poses, strict=True
    ):
        x1, y1, x2, y2 = box.tolist()
        entry: dict[str, Any] = {"image_id": image_id, "category_id": category_ids[int(label)]}
        entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)}
        if rle is not None:
            entry["segmentation"] = rle
        if pose is not None:
            entry["keypoints"] = pose.ravel().tolist()
        entries.append(entry)
    return entries
