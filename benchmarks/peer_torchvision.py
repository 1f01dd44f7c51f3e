"""torchvision's model with the weights of ours, and the input pipeline of its training reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from resdet.config import Config, FCOSConfig, RCNNConfig, RetinaNetConfig
from resdet.data.dataset import DetectionDataset
from resdet.data.patch import patch_of
from resdet.errors import UserError
from resdet.export.torchvision import to_torchvision
from resdet.models.detector import Detector
from resdet.runtime.device import autocast
from resdet.structures import Batch
from workload import Load, Sides


def torchvision_sides(ours: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    """torchvision's detector with the weights of `ours`, on the same batch. Raises `UserError` where it has no such model."""
    from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    m = config.model
    if not isinstance(m, RCNNConfig | RetinaNetConfig | FCOSConfig):
        raise UserError(f"--compare torchvision: not with model.kind={m.kind}; --compare none")
    assert m.num_classes is not None
    norms: dict[str, Any] = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d}
    if m.backbone.norm not in norms:
        raise UserError(f"--compare torchvision: not with model.backbone.norm={m.backbone.norm}; --compare none")
    trainable = 5 - max(m.backbone.frozen_stages - 1, 0)
    model: Any
    if isinstance(m, RCNNConfig):
        backbone = resnet_fpn_backbone(
            backbone_name=m.backbone.name, weights=None, norm_layer=norms[m.backbone.norm], trainable_layers=trainable
        )
        build = MaskRCNN if m.mask else FasterRCNN
        model = build(
            backbone, m.num_classes + 1, min_size=min(load.size), max_size=max(load.size), box_score_thresh=0.0
        )
    else:
        c5 = 512 if m.backbone.name in ("resnet18", "resnet34") else 2048
        backbone = resnet_fpn_backbone(
            backbone_name=m.backbone.name, weights=None, norm_layer=norms[m.backbone.norm], trainable_layers=trainable,
            returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(c5 if m.fpn.p6_from == "c5" else 256, 256),
        )  # fmt: skip
        limits = {"detections_per_img": m.head.max_detections, "topk_candidates": m.head.candidates}
        limits |= {"min_size": min(load.size), "max_size": max(load.size)}
        if isinstance(m, RetinaNetConfig):
            each = len(m.anchors.sizes) // 5
            sizes = tuple(tuple(m.anchors.sizes[k * each : (k + 1) * each]) for k in range(5))
            anchors = AnchorGenerator(sizes, (tuple(m.anchors.ratios),) * 5)
            model = RetinaNet(backbone, m.num_classes + 1, anchor_generator=anchors, score_thresh=0.0, **limits)
        else:
            model = FCOS(backbone, m.num_classes + 1, score_thresh=0.0, **limits)
    model = model.to(device)
    try:
        model.load_state_dict(to_torchvision(dict(ours.state_dict()), m, "the benchmark's model"), strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"--compare torchvision: it builds no model of these sizes ({first}); --compare none") from None
    if m.backbone.frozen_stages:
        for part in (
            model.backbone.body.conv1,
            *([model.backbone.body.layer1] if m.backbone.frozen_stages > 1 else []),
        ):
            part.requires_grad_(False)
    height, width = load.size
    images = [image[:, :height, :width].float() / 255 for image in batch.images]
    targets = []
    t = batch.targets
    assert t is not None
    for boxes, labels in zip(t.boxes, t.labels, strict=True):
        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8, device=device)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        targets.append({"boxes": boxes, "labels": labels + 1, "masks": masks})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=config.train.lr, momentum=0.9)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.train.amp):
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()

    def predict(count: int) -> int:
        model.eval()
        with torch.inference_mode(), autocast(device, config.train.amp):
            found = model(images[:1] * count)
        return sum(len(f["masks"][:, 0] > 0.5 if "masks" in f else f["boxes"]) for f in found)

    return Sides(train, predict)


def reference_samples(dataset: DetectionDataset) -> Iterator[Any]:
    """Pictures as torchvision's training reference (references/detection) reads them, without end: Pillow, bitmaps of the
    picture's size, floats, a flip, and its model's transform, which resizes both. In the order of the dataset."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms.functional import pil_to_tensor

    data = dataset.data
    transform = GeneralizedRCNNTransform(data.min_size, data.max_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for info in itertools.cycle(dataset.annotations.images):
        with Image.open(info.file) as file:
            image = pil_to_tensor(file.convert("RGB")).float() / 255
        objects = info.objects
        both = zip(objects.segmentations, objects.boxes, strict=True) if dataset.masks else ()
        masks = [patch_of(mask, box, info.size).whole(info.size) for mask, box in both]
        target = {"boxes": torch.from_numpy(objects.boxes), "labels": torch.from_numpy(objects.labels)}
        if dataset.masks:
            bitmaps = np.stack(masks) if masks else np.zeros((0, *info.size), np.uint8)
            target["masks"] = torch.from_numpy(bitmaps)
        if torch.rand(()) < data.flip:
            image = image.flip(-1)
            target = {k: v.flip(-1) if k == "masks" else v for k, v in target.items()}
            boxes = target["boxes"].clone()
            boxes[:, [0, 2]] = info.size[1] - boxes[:, [2, 0]]
            target["boxes"] = boxes
        yield transform([image], [target])
