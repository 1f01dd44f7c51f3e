"""A config that trains in seconds, and a detector with batches for it that need no files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from resdet.config import Config, parse_config
from resdet.data import index
from resdet.data.index import ImageInfo, ImageList
from resdet.data.patch import patch_of
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.structures import UNLABELLED, Batch, Targets

MODEL = {
    "num_classes": 4,
    "backbone": {"name": "resnet18", "weights": "none"},
    "fpn": {"channels": 16},
    "anchors": {"sizes": [16, 32, 64, 96, 128]},
    "rpn": {"pre_nms_train": 60, "post_nms_train": 40, "pre_nms_predict": 60, "post_nms_predict": 40},
    "box": {"width": 16, "samples": 16},
    "mask": {"num_convs": 1, "width": 16},
}


def values(root: Path, model: dict = MODEL, **train: object) -> dict:
    return {
        "device": "cpu",
        "model": model,
        "data": {"root": str(root), "min_size": 64, "max_size": 96, "workers": 0},
        "train": {
            "max_iters": 4, "batch_size": 2, "lr": 0.001, "warmup_iters": 1, "log_every": 1, "eval_every": 2,
            "checkpoint_every": 2, "milestones": [3], "pictures": False, "report": False, **train,
        },
    }  # fmt: skip


def posed(root: Path, folder: Path) -> Path:
    """A copy of the shapes, without their images, whose objects have keypoints: the middles of their box's sides."""
    (folder / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (folder / name).symlink_to(root / name)
        file = f"annotations/instances_{name}.json"
        content = json.loads((root / file).read_text())
        for category in content["categories"]:
            category |= {"keypoints": ["left", "top", "right", "bottom"], "skeleton": [[1, 3], [2, 4]]}
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            middles = [(x, y + h / 2), (x + w / 2, y), (x + w - 1, y + h / 2), (x + w / 2, y + h - 1)]
            entry |= {"keypoints": [v for point in middles for v in (*point, 2)], "num_keypoints": 4}
        (folder / file).write_text(json.dumps(content))
    return folder


def panoptic(root: Path, folder: Path) -> Path:
    """The shapes as COCO's panoptic annotations, images linked: the upper half around them is of one stuff, the lower half of
    another, but for a column of no class."""
    categories = [{"id": 150, "name": "ground", "isthing": 0}, {"id": 120, "name": "air", "isthing": 0}]
    for name in ("train2017", "val2017"):
        content = json.loads((root / f"annotations/instances_{name}.json").read_text())
        (folder / f"annotations/panoptic_{name}").mkdir(parents=True)
        (folder / name).symlink_to(root / name)
        objects = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            objects[entry["image_id"]].append(entry)
        annotations = []
        for image in content["images"]:
            ids = np.zeros((image["height"], image["width"]), int)
            ids[: len(ids) // 2], ids[len(ids) // 2 :] = 70000, 300
            ids[:, 0] = 0
            segments = [{"id": 70000, "category_id": 120, "iscrowd": 0}, {"id": 300, "category_id": 150, "iscrowd": 0}]
            for number, entry in enumerate(objects[image["id"]], 1000):
                mask = patch_of(entry["segmentation"], np.zeros(4), ids.shape)
                h, w = mask.bitmap.shape
                ids[mask.y : mask.y + h, mask.x : mask.x + w][mask.bitmap > 0] = number
                segments.append({"id": number, "category_id": entry["category_id"], "iscrowd": entry["iscrowd"]})
            there = set(np.unique(ids).tolist())
            file = f"{Path(image['file_name']).stem}.png"
            png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
            Image.fromarray(png).save(folder / f"annotations/panoptic_{name}" / file)
            found = [segment for segment in segments if segment["id"] in there]
            annotations.append({"image_id": image["id"], "file_name": file, "segments_info": found})
        things = [category | {"isthing": 1} for category in content["categories"]]
        written = {"images": content["images"], "annotations": annotations, "categories": [*categories, *things]}
        (folder / f"annotations/panoptic_{name}.json").write_text(json.dumps(written))
    return folder


def crops(shapes_root: Path, root: Path) -> Path:
    """The objects of the generated shapes, cut out, in folders of their classes; none of the last class in val."""
    for split, name in (("train", "train2017"), ("val", "val2017")):
        content = json.loads((shapes_root / f"annotations/instances_{name}.json").read_text())
        file = {image["id"]: image["file_name"] for image in content["images"]}
        title = {category["id"]: category["name"] for category in content["categories"]}
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            if split == "val" and title[entry["category_id"]] == "star":
                continue
            (root / split / title[entry["category_id"]]).mkdir(parents=True, exist_ok=True)
            picture = Image.open(shapes_root / name / file[entry["image_id"]]).crop((x, y, x + w + 1, y + h + 1))
            picture.save(root / split / title[entry["category_id"]] / f"{entry['id']}.png")
    return root


KEYPOINT = {"num_convs": 1, "width": 16}


def config(root: Path, output: Path, **train: object) -> Config:
    return parse_config({**values(root, **train), "output": str(output)})


def config_file(root: Path, folder: Path, **train: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(root, **train)))
    return path


K = 5
S = 4  # classes of label maps
SIZE = (96, 128)
SEMANTIC_HEAD = {"width": 32, "class_weights": [1.0, 0.5, 2.0, 1.0]}
SEMANTIC = {"num_classes": S, **SEMANTIC_HEAD}
C4 = {
    "neck": "c4", "box": {"trunk": "res5", "samples": 32}, "mask": {"num_convs": 0, "width": 32}, "pool": {"sampling_ratio": 0},
}  # fmt: skip


class FourMaps(nn.Module):
    """The least that can be a backbone, for tests of what stands on it: one convolution, and maps at strides of 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv(x)
        return [torch.nn.functional.avg_pool2d(x, stride) for stride in (2, 4, 8, 16)]


def small(mask: bool | dict | None = True, **model: object) -> Detector:
    """mask: with mask (the default, or this section) and keypoint heads; neither is in a model of another kind."""
    torch.manual_seed(0)
    if "kind" in model:
        semantic = {"num_classes": S, "fpn": {"channels": 32}} if model["kind"] == "semantic" else {}
        body = {"num_classes": K, "backbone": {"name": "resnet18", "weights": "none"}, **semantic}
        return built(body | model)
    values = {
        "num_classes": K,
        "backbone": {"name": "resnet18", "weights": "none"},
        "fpn": {"channels": 32},
        "rpn": {"pre_nms_train": 100, "post_nms_train": 60, "pre_nms_predict": 100, "post_nms_predict": 60},
        "box": {"width": 32, "samples": 32},
        "mask": mask if isinstance(mask, dict) else {"num_convs": 1, "width": 32} if mask else None,
        "keypoint": {"num_keypoints": 3, "num_convs": 1, "width": 32} if mask else None,
        **model,
    }
    return built(values)


def light(**model: object) -> Detector:
    """A `small` one on `FourMaps`, which is compiled and exported in half the time."""
    return small(**{**model, "backbone": {"name": "custom", "frozen_stages": 0, "norm": "bn"}})


def built(model: dict) -> Detector:
    custom = model["backbone"]["name"] == "custom"
    return build_model(parse_config({"model": model}).model, backbone=FourMaps() if custom else None)


def make_batch(counts: list[int], seed: int = 0, slots: int = 8, size: tuple[int, int] = SIZE) -> Batch:
    g = torch.Generator().manual_seed(seed)
    b = len(counts)
    corner = torch.rand(b, slots, 2, generator=g) * torch.tensor([size[1], size[0]]) * 0.6
    boxes = torch.cat([corner, corner + 8 + torch.rand(b, slots, 2, generator=g) * 30], dim=-1)
    valid = torch.arange(slots)[None] < torch.tensor(counts)[:, None]
    targets = Targets(
        boxes * valid[..., None],
        torch.where(valid, torch.randint(K, (b, slots), generator=g), -1),
        valid,
        (torch.rand(b, slots, 28, 28, generator=g) > 0.4).to(torch.uint8),
    )
    places = (
        boxes[:, :, None, :2] + torch.rand(b, slots, 3, 2, generator=g) * (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    )
    seen = torch.randint(3, (b, slots, 3, 1), generator=g).float()
    label_maps = torch.randint(S + 1, (b, *size), generator=g).to(torch.uint8)
    label_maps[label_maps == S] = UNLABELLED
    targets = targets._replace(keypoints=torch.cat([places, seen], dim=-1), semantic=label_maps)
    images = (torch.rand(b, 3, *size, generator=g) * 255).to(torch.uint8)
    return Batch(images, torch.tensor([size] * b), torch.arange(b) + seed, targets)


def pack(images: Sequence[ImageInfo], folder: Path) -> ImageList:
    """`index.pack`, from images one by one."""
    objects = [info.objects for info in images]
    return index.pack(
        folder,
        [info.image_id for info in images],
        [str(info.file.relative_to(folder) if info.file.is_relative_to(folder) else info.file) for info in images],
        [info.size for info in images],
        [number for number, found in enumerate(objects) for _ in found.labels],
        np.concatenate([found.boxes for found in objects]).reshape(-1, 4),
        [label for found in objects for label in found.labels.tolist()],
        [mask for found in objects for mask in found.segmentations],
    )


DENSE = ("retinanet", "fcos", "atss", "gfl", "yolof")


def dense(kind: str, channels: int = 64, **head: object) -> dict:
    """The model section of a small one-stage detector, without its backbone; its norms see no other image."""
    if kind == "yolof":
        encoder = {"channels": channels, "width": 32, "dilations": [1, 2], "norm": "gn"}
        return {"kind": kind, "encoder": encoder, "head": {"class_convs": 1, "box_convs": 1, "norm": "gn", **head}}
    return {"kind": kind, "fpn": {"channels": channels}, "head": {"num_convs": 1, **head}}


RTDETR = {
    "kind": "rtdetr", "queries": 20, "encoder": {"width": 32, "heads": 4, "ffn": 48, "expansion": 0.5},
    "decoder": {"width": 40, "layers": 2, "heads": 4, "ffn": 48}, "denoising": {"queries": 12},
}  # fmt: skip


def small_rtdetr(**model: object) -> Detector:
    return small(**{**RTDETR, **model})


def shaken(model: nn.Module) -> nn.Module:
    """Weights and statistics at random, all of some size, so that each of them shows in the results."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in (*model.named_parameters(), *model.named_buffers()):
            if not p.is_floating_point() or name.endswith(("pixel_mean", "pixel_std", "scale")):
                continue
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5)
            elif name.endswith("running_var"):
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * 0.1 + name.endswith("weight"))
    return model
