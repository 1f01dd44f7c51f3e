"""From mask probabilities to COCO run lengths, and to bitmaps: resdet's way and torchvision's, of the same detections.

    python benchmarks/masks.py [detections] [height width]

Boxes of three sizes. torchvision pastes each mask onto the whole picture; its references then hand the bitmaps to
pycocotools one by one.
"""

import sys

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmark import interleaved
from resdet.runtime.device import keep_memory
from resdet.structures import Instances

count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
size = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (800, 1333)


def made(share: float) -> Instances:
    """Blobs in boxes whose sides are up to this share of the picture's."""
    chance = np.random.default_rng(0)
    extent = np.array(size[::-1])
    side = chance.random((count, 2)) ** 2 * extent * share + 8
    low = chance.random((count, 2)) * (extent - side).clip(min=0)
    noise = [cv2.GaussianBlur(chance.random((28, 28)).astype(np.float32), (9, 9), 3) for _ in range(count)]
    probs = (1 / (1 + np.exp(-40 * (np.stack(noise) - 0.5)))).astype(np.float32)
    boxes = np.concatenate([low, low + side], 1).astype(np.float32)
    return Instances(boxes, np.ones(count, np.float32), np.zeros(count, np.int64), size, probs, "torchvision")


def pasted_by_torchvision(found: Instances) -> np.ndarray:
    assert found.mask_probs is not None
    soft = paste_masks_in_image(torch.from_numpy(found.mask_probs)[:, None], torch.from_numpy(found.boxes), size)
    bitmaps: np.ndarray = (soft[:, 0] > 0.5).numpy()
    return bitmaps


def encoded_by_torchvision(found: Instances) -> list[dict[str, object]]:
    bitmaps = pasted_by_torchvision(found)
    return [coco_mask.encode(np.asfortranarray(bitmap[:, :, None], dtype=np.uint8))[0] for bitmap in bitmaps]


def pasted(found: Instances) -> np.ndarray:
    found.__dict__.pop("masks", None)  # which it would keep
    assert found.masks is not None
    return found.masks


keep_memory()
print(f"{count} detections, {size[0]} x {size[1]}, {torch.get_num_threads()} threads; milliseconds")
for share in (0.1, 0.3, 1.0):
    found = made(share)
    ours, theirs = found.rle(), encoded_by_torchvision(found)
    assert ours
    areas = np.array([coco_mask.area(rle) for rle in ours]), np.array([coco_mask.area(rle) for rle in theirs])
    work = {
        "run lengths": found.rle, "torchvision's run lengths": lambda found=found: encoded_by_torchvision(found),
        "bitmaps": lambda found=found: pasted(found), "torchvision's": lambda found=found: pasted_by_torchvision(found),
    }  # fmt: skip
    times = {name: f"{1000 * spent['median']:.1f}" for name, spent in interleaved(work, 7).items()}
    print(
        f"sides up to {share:.0%}: {', '.join(f'{name} {value}' for name, value in times.items())}; of {areas[0].sum()} pixels "
        f"on, the areas differ by {np.abs(areas[0] - areas[1].astype(int)).sum()}"
    )
