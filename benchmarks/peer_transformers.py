"""transformers' RT-DETR with the weights of ours."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from resdet.config import Config
from resdet.errors import UserError
from resdet.export.transformers import write_model
from resdet.models.detector import Detector
from resdet.runtime.device import autocast
from resdet.structures import Batch
from workload import Load, Sides


def transformers_sides(ours: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    """Its detector with the weights of `ours`, on the same batch. Raises `UserError` where it has no such model."""
    try:
        import transformers
    except ImportError:
        raise UserError("--compare transformers: it is not installed: pip install transformers") from None
    with tempfile.TemporaryDirectory() as folder:
        name = write_model(dict(ours.state_dict()), config.model, [], Path(folder), "the benchmark's model")
        model = getattr(transformers, name).from_pretrained(folder).to(device)
    processor = transformers.RTDetrImageProcessor()
    height, width = load.size
    images = batch.images[:, :, :height, :width].float() / 255
    t = batch.targets
    assert t is not None
    sides = torch.tensor([width, height] * 2, device=device)
    centred = torch.cat([(t.boxes[..., :2] + t.boxes[..., 2:]) / 2, t.boxes[..., 2:] - t.boxes[..., :2]], -1) / sides
    labels = [{"class_labels": c[v], "boxes": b[v]} for c, b, v in zip(t.labels, centred, t.valid, strict=True)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config.train.lr)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.train.amp):
            loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        optimizer.step()

    def predict(count: int) -> int:
        model.eval()
        with torch.inference_mode(), autocast(device, config.train.amp):
            output = model(pixel_values=images[:1].expand(count, -1, -1, -1))
            found = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[load.size] * count)
        return sum(len(f["boxes"]) for f in found)

    return Sides(train, predict)
