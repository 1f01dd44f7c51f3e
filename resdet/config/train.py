"""The `train` section: schedule, optimiser, precision, what is written and when."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
)

from resdet.config.types import Count, Positive, Section, Share

Tracker = Literal["tensorboard", "wandb", "mlflow", "comet", "clearml"]


class TrainConfig(Section):
    max_iters: Positive = 90000
    batch_size: Positive = 16  # of all processes together
    accumulate: Positive = 1  # split the batch into sequential parts: less memory; the loss is the mean of the parts'
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.02
    head_lr: Annotated[float, Field(gt=0)] = 1.0  # factor on the heads' learning rate
    backbone_lr: Annotated[float, Field(gt=0)] = 1.0  # factor on the backbone's learning rate
    layer_decay: Annotated[float, Field(gt=0, le=1)] = (
        1.0  # factor on layer4's learning rate; its square on layer3's, …
    )
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # not for norms
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: list[Positive] = [60000, 80000]  # multistep: multiply the rate by 0.1 at each
    warmup_iters: Count = 1000
    warmup_factor: Share = 0.001
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    amp: Annotated[Literal["off", "bf16", "fp16"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    # torch.compile; "reduce-overhead" is its mode that replays CUDA graphs
    compile: bool | Literal["reduce-overhead"] = False
    channels_last: bool = True  # memory layout in which convolutions are fastest
    log_every: Positive = 20
    checkpoint_every: Positive = 5000
    keep: Positive = 2  # numbered checkpoints kept beside last.pt and best.pt
    eval_every: Count = 5000  # and at the end; 0: never
    val_loss: bool = True  # compute validation losses with each evaluation
    # Selects best.pt, and what patience watches; None: the AP of keypoints or masks if evaluated, else of boxes;
    # of the RPN alone AR1000; of a classifier top-1
    best_metric: (
        Literal[
            "bbox_AP", "bbox_AP50", "bbox_AP75", "bbox_APs", "bbox_APm", "bbox_APl", "bbox_AR100",
            "segm_AP", "segm_AP50", "segm_AP75", "segm_APs", "segm_APm", "segm_APl", "segm_AR100",
            "keypoints_AP", "keypoints_AP50", "keypoints_AP75", "keypoints_APm", "keypoints_APl", "keypoints_AR",
            "classes_top1", "classes_top5",
            "proposals_AR100", "proposals_AR1000", "proposals_ARs", "proposals_ARm", "proposals_ARl",
        ]
        | None
    ) = None  # fmt: skip
    patience: Positive | None = None  # stop after this many evaluations without improvement
    # Where numbers, settings and sample predictions go beside metrics.jsonl; each is an extra
    loggers: list[Tracker] = []
    tensorboard: bool = False  # the same as "tensorboard" in loggers
    report: bool = True  # report/index.html in the run's folder, of the last evaluation
    pictures: bool = True  # curves.png and film.jpg in the run's folder, drawn at each evaluation
    timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds for which processes wait for each other
