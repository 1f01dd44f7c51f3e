"""A PyTorch dataset in the place of files."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from resdet.data.torch_dataset import source_of, to_pixels
from resdet.errors import UserError
from resdet.training.loop import train


class Shapes:
    """A COCO file's boxes, as torchvision's detection references have them; images as arrays, Pillow images and tensors."""

    def __init__(self, root, split: str) -> None:
        content = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
        self.folder, self.images = root / f"{split}2017", content["images"]
        self.class_names = [category["name"] for category in content["categories"]]
        label = {category["id"]: k for k, category in enumerate(content["categories"])}
        self.targets = []
        for image in self.images:
            found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            boxes = np.array([a["bbox"] for a in found], float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            self.targets.append({
                "boxes": torch.tensor(boxes), "labels": torch.tensor([label[a["category_id"]] for a in found], dtype=int)
            })  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        pixels = cv2.imread(str(self.folder / self.images[index]["file_name"]))[..., ::-1].copy()
        forms = (pixels, Image.fromarray(pixels), torch.tensor(pixels).permute(2, 0, 1) / 255)
        return forms[index % 3], self.targets[index]


@pytest.mark.slow
def test_a_dataset_trains_as_its_files_do(shapes_root, tmp_path) -> None:
    logs = []
    for name, datasets in (("files", {}), ("dataset", {"dataset": Shapes(shapes_root, "train")})):
        config = tiny.config(shapes_root if not datasets else tmp_path / "nowhere", tmp_path / name, max_iters=2)
        config.model.mask = None
        if datasets:
            datasets["val_dataset"] = Shapes(shapes_root, "val")
        train(config, **datasets)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        logs.append(
            [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait", "time")} for line in lines]
        )
    assert logs[0] == logs[1]
    assert any("val_loss" in line for line in logs[0])


@pytest.mark.parametrize(
    ("image", "target", "message"),
    [
        (np.zeros((8, 8, 3)), {}, r"\[0\]: its image must be .*float64"),
        (np.zeros((8, 8, 4), np.uint8), {}, "4 channels, but model.input.channels is 3"),
        (
            Image.fromarray(np.full((8, 8), 900, np.uint16)),
            {},
            r"its Pillow image has mode I;16, more than 8 bits: scale it",
        ),
        (None, {"labels": [2]}, "object 0: label 2 is no index of class_names"),
        (None, {"boxes": [[0, 0, 4]]}, r"'boxes' of 1 labels must be \(1, 4\), got \(1, 3\)"),
        (None, {"masks": np.ones((1, 4, 4))}, r"'masks' of 1 labels must be \(1, 8, 8\)"),
        (None, {"boxes": None}, "its target has no 'boxes'"),
    ],
)
def test_items_of_another_form_are_named(image, target: dict, message: str) -> None:
    class Wrong(list):
        class_names = ("a", "b")

    whole = {"boxes": np.array([[0, 0, 4, 4.0]]), "labels": [0], **target}
    image = np.zeros((8, 8), np.uint8) if image is None else image
    with pytest.raises(UserError, match=message):
        source_of(Wrong([(image, {k: v for k, v in whole.items() if v is not None})]), "train")


def test_masks_keypoints_and_crowds_arrive() -> None:
    class One(list):
        class_names = ("a", "b")
        keypoint_names = ("left", "right")

    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1:3, 2:5] = True
    target = {"boxes": [[2, 1, 5, 3], [0, 0, 8, 8]], "labels": [1.0, 0.0], "masks": masks, "iscrowd": [0, 1],
              "keypoints": np.array([[[2, 1, 2], [4, 2, 1]]] * 2)}  # fmt: skip
    first, crowd = source_of(One([(np.zeros((8, 8), np.uint8), target)]), "train").content["annotations"]
    assert (first["bbox"], first["category_id"], first["keypoints"]) == ([2, 1, 3, 2], 2, [2, 1, 2, 4, 2, 1])
    assert first["segmentation"]["size"] == [8, 8]
    assert crowd["iscrowd"] == 1
    del One.keypoint_names
    with pytest.raises(UserError, match=r"One \(train\)\[0\]: has keypoints, but One \(train\) has no keypoint_names"):
        source_of(One([(np.zeros((8, 8), np.uint8), target)]), "train")
    assert "segmentation" not in crowd
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    assert np.array_equal(to_pixels(Image.fromarray(pixels), "x", 4), pixels)
