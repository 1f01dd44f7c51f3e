"""Overfits a small detector on eight images of COCO from scratch: does the whole chain learn?

    python benchmarks/overfit.py COCO [KIND] [KEY=VALUE …]

KIND is a `model.kind`: rcnn (Mask R-CNN, the default), retinanet, fcos, atss, gfl, yolof or rtdetr. More of the first:

    model.cascade={}                                  Cascade Mask R-CNN
    model.mask={point_rend:{}}                        PointRend
    model.keypoint={num_convs:2,width:64} model.mask=null data.train.annotations=… data.train.images=…    Keypoint R-CNN

Prints the AP on those images and the time it took. Anything wrong in boxes, masks, keypoints, frames or ids keeps it low.
"""

import sys
import tempfile
import time
from pathlib import Path

import yaml

import resdet

root, arguments = Path(sys.argv[1]), sys.argv[2:]
kind = arguments.pop(0) if arguments and "=" not in arguments[0] else "rcnn"
pyramid = {"fpn": {"channels": 64}, "head": {"num_convs": 2}}
parts = {
    "rcnn": {
        "fpn": {"channels": 64},
        "anchors": {"sizes": [12, 24, 48, 96, 192]},
        "rpn": {"pre_nms_train": 1000, "post_nms_train": 500},
        "box": {"width": 512, "samples": 256},
        "mask": {"num_convs": 2, "width": 64},
    },
    "retinanet": pyramid, "fcos": pyramid, "atss": pyramid, "gfl": pyramid,
    "yolof": {},
    "rtdetr": {
        "norm": "bn", "queries": 100, "encoder": {"width": 128, "heads": 4, "ffn": 256},
        "decoder": {"width": 128, "heads": 4, "ffn": 256, "layers": 3},
    },
}  # fmt: skip
if kind not in parts:
    sys.exit(f"error: {kind} is none of {', '.join(parts)}")
values = {
    "model": {
        "kind": kind,
        "backbone": {"name": "resnet18", "weights": "none", "norm": "bn", "frozen_stages": 0},
        **parts[kind],
    },
    "data": {
        "train": {
            "images": str(root / "train2017"), "annotations": str(root / "annotations" / "instances_train2017.json"),
        },
        "limit": 8, "min_size": 256, "max_size": 384, "flip": 0, "workers": 1,
    },
    "train": {
        "max_iters": 400, "batch_size": 4, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.0, "schedule": "cosine",
        "warmup_iters": 50, "clip_grad_norm": 5.0, "channels_last": True, "eval_every": 200, "val_loss": False,
    },
}  # fmt: skip
output = Path(tempfile.mkdtemp())
(output / "overfit.yaml").write_text(yaml.safe_dump(values))
config = resdet.load_config(output / "overfit.yaml", arguments)
config.output = output / "run"
config.data.val.images, config.data.val.annotations = config.data.train.images, config.data.train.annotations
began = time.perf_counter()
metrics = resdet.train(config).metrics
print(
    ", ".join(f"{kind} AP {100 * found['AP']:.1f}" for kind, found in metrics.items() if found.get("AP") is not None)
    + f" on the images it learned, after {config.train.max_iters} iterations, {(time.perf_counter() - began) / 60:.1f} minutes"
)
