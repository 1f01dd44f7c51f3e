"""Blood cells from scratch: resdet and torchvision's own Faster R-CNN, the same backbone, data, order, budget and seed.

    python benchmarks/bccd.py BCCD [OUTPUT [SEED ...]]

BCCD is the folder that holds JPEGImages, Annotations and ImageSets. Both train on the batches of resdet's loader with the
same optimiser and schedule (configs/examples/bccd.yaml) and are scored by the same evaluation on the test split, once for each
seed (0 if none is given). Then resdet trains again, for as many iterations as fit into the time that torchvision took.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import resdet
from resdet.config import Config
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import evaluation_loader, training_loader
from resdet.data.splits import read_split
from resdet.evaluation.coco import evaluation_of
from resdet.training.optim import learning_rate

KEYS = ("AP", "AP50", "AP75", "AR100")


def torchvision_model(config: Config, num_classes: int) -> nn.Module:
    """torchvision's builder with the numbers of the config, and everything else its own."""
    m = config.model
    backbone = resnet_fpn_backbone(
        backbone_name=m.backbone.name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    return FasterRCNN(
        backbone,
        num_classes + 1,
        min_size=config.data.min_size[-1],
        max_size=config.data.max_size,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in m.anchors.sizes), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=m.rpn.pre_nms_train,
        rpn_post_nms_top_n_train=m.rpn.post_nms_train,
        rpn_pre_nms_top_n_test=m.rpn.pre_nms_predict,
        rpn_post_nms_top_n_test=m.rpn.post_nms_predict,
        box_batch_size_per_image=m.box.samples,
        box_score_thresh=m.box.score_threshold,
    )


def split_batch(batch: resdet.Batch) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    images = [x[:, :h, :w].float() / 255 for x, (h, w) in zip(batch.images, batch.image_sizes.tolist(), strict=True)]
    t = batch.targets
    if t is None:
        return images, []
    targets = [
        {"boxes": boxes[valid], "labels": labels[valid] + 1}
        for boxes, labels, valid in zip(t.boxes, t.labels, t.valid, strict=True)
    ]
    return images, targets


def train_torchvision(config: Config) -> dict[str, float | None]:
    train, val = read_split(config, "train"), read_split(config, "val")
    t = config.train
    torch.manual_seed(config.seed)
    model = torchvision_model(config, len(train.class_names)).train()
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": t.weight_decay},
        {"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=t.lr)
    dataset = DetectionDataset(train, config.data, config.model.input, train=True, masks=False, seed=config.seed)
    batches = training_loader(dataset, t.batch_size, config.data.workers)
    for iteration in range(1, t.max_iters + 1):
        images, targets = split_batch(next(batches).batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(iteration, t)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), t.clip_grad_norm or float("inf"))
        optimizer.step()
        if iteration % 20 == 0:
            print(f"torchvision {iteration}/{t.max_iters}  loss {loss.item():.3f}", flush=True)
    dataset = DetectionDataset(val, config.data, config.model.input, train=False, masks=False, seed=config.seed)
    entries: list[dict[str, Any]] = []
    model.eval()
    for loaded in evaluation_loader(dataset, 4, config.data.workers):
        images, _ = split_batch(loaded.batch)
        with torch.inference_mode():
            found = model(images)
        for index, image, result in zip(loaded.indices, images, found, strict=True):
            info = val.images[index]
            scale = torch.tensor([info.size[1] / image.shape[2], info.size[0] / image.shape[1]] * 2)
            boxes = result["boxes"] * scale
            boxes[:, 2:] -= boxes[:, :2]
            for box, score, label in zip(
                boxes.tolist(), result["scores"].tolist(), result["labels"].tolist(), strict=True
            ):
                entry = {
                    "image_id": info.image_id,
                    "category_id": val.category_ids[label - 1],
                    "bbox": box,
                    "score": score,
                }
                entries.append(entry)
    metrics, tables = evaluation_of(val).score(entries, ("bbox",))
    print(tables)
    return metrics["bbox"]


def main(root: Path, output: Path, seeds: list[int]) -> None:
    rows: dict[str, list[tuple[dict[str, float | None], float]]] = {}

    def run(name: str, train: Callable[[], dict[str, float | None]]) -> float:
        began = time.perf_counter()
        metrics = train()
        minutes = (time.perf_counter() - began) / 60
        rows.setdefault(name, []).append((metrics, minutes))
        return minutes

    for seed in seeds:
        config = resdet.load_config("configs/examples/bccd.yaml", [f"data.root={root}", f"seed={seed}"])
        iterations = config.train.max_iters

        def ours(config: Config = config) -> dict[str, float | None]:
            config.train.eval_every = config.train.max_iters
            config.output = output / f"{config.train.max_iters}-{config.seed}"
            return resdet.train(config).metrics["bbox"]

        theirs = run(f"torchvision, {iterations} iterations", partial(train_torchvision, config))
        own = run(f"resdet, {iterations} iterations", ours)
        config.train.max_iters = round(iterations * theirs / own)
        run("resdet, as many minutes", ours)
        for name, results in rows.items():
            means = {key: 100 * sum(m[key] or 0 for m, _ in results) / len(results) for key in KEYS}
            minutes = sum(t for _, t in results) / len(results)
            each = ", ".join(f"{100 * (m['AP'] or 0):.1f}" for m, _ in results)
            numbers = "  ".join(f"{key} {value:.1f}" for key, value in means.items())
            print(
                f"{name:>28}: {numbers}  {minutes:.1f} minutes, evaluation included (AP of each seed: {each})",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="BCCD")
    parser.add_argument("output", type=Path, nargs="?", default=Path("outputs/bccd"), metavar="OUTPUT")
    parser.add_argument("seeds", type=int, nargs="*", default=[0], metavar="SEED")
    args = parser.parse_args()
    try:
        main(args.root, args.output, args.seeds)
    except resdet.UserError as error:
        sys.exit(f"error: {error}")
