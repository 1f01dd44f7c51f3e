"""Can the whole chain learn? A ResNet-18 Mask R-CNN memorises the first 8 pictures of a COCO folder, from scratch.

    python benchmarks/overfit.py /path/to/coco [iterations]

Prints the AP on those 8 pictures and the time it took. Anything wrong in boxes, masks, frames or ids keeps it low.
"""

import sys
import tempfile
import time
from pathlib import Path

import resdet
from resdet.config import parse_config

root, iterations = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 400
train = {"images": root / "train2017", "annotations": root / "annotations" / "instances_train2017.json"}
config = parse_config(
    {
        "output": Path(tempfile.mkdtemp()) / "overfit",
        "model": {
            "num_classes": 80,
            "backbone": {"name": "resnet18", "weights": "none", "norm": "bn"},
            "fpn": {"channels": 64},
            "anchors": {"sizes": [12, 24, 48, 96, 192]},
            "rpn": {"pre_nms_train": 1000, "post_nms_train": 500},
            "box": {"width": 512, "samples": 256},
            "mask": {"num_convs": 2, "width": 64},
        },
        "data": {"train": train, "val": train, "limit": 8, "min_size": 256, "max_size": 384, "flip": 0, "workers": 1},
        "train": {
            "max_iters": iterations, "batch_size": 4, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.0,
            "schedule": "cosine", "warmup_iters": 50, "clip_grad_norm": 5.0, "channels_last": True,
            "eval_every": max(1, iterations // 2), "val_loss": False,
        },
    }
)  # fmt: skip
began = time.perf_counter()
result = resdet.train(config)
print(
    f"box AP {result.metrics['bbox']['AP']:.3f}, mask AP {result.metrics['segm']['AP']:.3f} on the 8 pictures "
    f"after {iterations} iterations, {(time.perf_counter() - began) / 60:.1f} minutes"
)
