"""Time and peak memory of augmenting one large image with many objects, beside the same sample without augmentation
and beside the augmentation of the image alone.

    python benchmarks/augment.py [objects] [height width]

Polygons, run lengths and bare boxes, a third each. Decoding, resizing and mask crops are part of every time; memory is what
NumPy allocates at most beyond what was there before (OpenCV's results included, its scratch buffers not).
"""

import sys
import time
import tracemalloc

import cv2
import numpy as np

from resdet.data.augment import Augmentations
from resdet.data.dataset import crop_masks
from resdet.data.index import Objects
from resdet.data.patch import patch_of_polygons
from resdet.masks import encode_bitmap

TRANSFORMS = ("HorizontalFlip", "RandomRotate90", "Affine", "Perspective", "GridDistortion", "ElasticTransform")
count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
height, width = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (3000, 4000)


def made() -> Objects:
    chance, angles = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 40, endpoint=False)
    boxes, masks = [], []
    for k in range(count):
        radius = chance.uniform(10, min(height, width) / 20, 2)
        centre = chance.uniform(radius, np.array([width, height]) - radius)
        outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        boxes.append([*(centre - radius), *(centre + radius)])
        polygons = [outline.ravel().tolist()]
        rle = encode_bitmap(patch_of_polygons(polygons, (height, width)).whole((height, width))) if k % 3 == 1 else None
        masks.append(polygons if k % 3 == 0 else rle)
    return Objects(np.array(boxes, np.float32), np.zeros(count, np.int64), masks)


def sample(augment: Augmentations | None, objects: Objects) -> None:
    """What training does with an image: decode, augment, crop masks, resize."""
    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    found = objects
    if augment:
        image, found = augment(image, objects, [0])
    crop_masks(found, 112)
    cv2.resize(image, (1067, 800), interpolation=cv2.INTER_LINEAR)


objects = made()
noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
jpeg = cv2.imencode(".jpg", cv2.resize(noise, (width, height)))[1]
nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])
print(
    f"{count} objects, {height} x {width}, an image of {height * width * 3 / 2**20:.0f} MiB; image alone, with objects"
)
for name in ("none", *TRANSFORMS):
    augment = None if name == "none" else Augmentations([{"name": name, "p": 1}])
    line = f"{name:18}"
    for given in (nothing, objects):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            sample(augment, given)
            times.append(time.perf_counter() - start)
        tracemalloc.start()
        sample(augment, given)
        line += f" {min(times):6.2f} s {tracemalloc.get_traced_memory()[1] / 2**20:6.0f} MiB"
        tracemalloc.stop()
    print(line)
