"""The state of a run, to a checkpoint and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from resdet.checkpoints.checkpoint import Checkpoint, load_weights
from resdet.config import Config, dump_config
from resdet.data.class_dataset import ClassificationDataset
from resdet.data.coco import Annotations
from resdet.data.dataset import DetectionDataset
from resdet.errors import UserError
from resdet.evaluation.coco import Metrics, evaluation_of
from resdet.evaluation.pixels import PixelEvaluation
from resdet.models.detector import Detector, LossSums
from resdet.runtime.console import console
from resdet.runtime.device import compiled
from resdet.runtime.distributed import Distributed, data_parallel
from resdet.training.best import best_accuracy, best_metric
from resdet.training.faults import Unreadable
from resdet.training.optim import WeightAverage, build_optimizer, restore_optimizer
from resdet.training.resume import changes, config_of
from resdet.training.setup import Inputs


def dataset_of(annotations: Annotations, config: Config, model: Detector, *, train: bool) -> DetectionDataset:
    """What the model learns from or is evaluated on."""
    if "classes" in model.outputs:
        return ClassificationDataset(annotations, config.data, config.model.input, train=train, seed=config.seed)
    return DetectionDataset(
        annotations,
        config.data,
        config.model.input,
        train=train,
        masks="masks" in model.outputs,
        keypoints="keypoints" in model.outputs,
        semantic="semantic" in model.outputs,
        seed=config.seed,
    )


class Run:
    """A run in one process: config, data, model, optimizer, moving average and counters."""

    def __init__(
        self, config: Config, inputs: Inputs, model: Detector, device: torch.device, distributed: Distributed
    ) -> None:
        t = config.train
        self.config, self.model, self.device, self.inputs = config, model.train(), device, inputs
        self.distributed = distributed
        self.train_set = dataset_of(inputs.train, config, model, train=True)
        self.val_set = dataset_of(inputs.val, config, model, train=False) if inputs.val else None
        self.evaluation, self.best_metric = None, None
        if inputs.val and "classes" in model.outputs:
            self.best_metric = best_accuracy(t)
        elif inputs.val:
            self.evaluation = evaluation_of(inputs.val, config.data.keypoint_sigmas)
            pixels = PixelEvaluation(inputs.val, model.outputs).kinds
            self.best_metric = best_metric(t, self.evaluation, model.outputs, pixels)
        share = config.data.max_unreadable / distributed.world
        self.unreadable = Unreadable("train", len(inputs.train.images), share)
        self.unreadable_val = Unreadable("val", len(inputs.val.images) if inputs.val else 0, share)
        if t.channels_last:
            model.to(memory_format=torch.channels_last)
        if t.compile:
            torch._dynamo.config.recompile_limit = 256  # one graph per padded size and object count
        self.forward = data_parallel(
            compiled(LossSums(model), t.compile, fullgraph=True, dynamic=False), distributed, device
        )
        # A CUDA graph overwrites its gradients in its next run, so micro-batches must accumulate into other tensors.
        self.gradients_stay = t.compile == "reduce-overhead" and t.accumulate > 1
        if self.gradients_stay:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer = build_optimizer(model, t)
        self.scaler = torch.amp.GradScaler(device.type, enabled=t.amp == "fp16")
        self.average = WeightAverage(model, t.ema_decay) if t.ema_decay else None
        self.iteration, self.best, self.evaluations_without_gain = 0, -1.0, 0
        self.metrics: Metrics = {}

    def evaluated_model(self, alone: bool = False) -> Detector:
        """The model to evaluate: a copy with the averaged weights if `train.ema_decay` is on, else the trained model.

        All processes must call this and get the main one's buffers, unless `alone`.
        """
        if not alone:
            averages = list(self.average.weights.values()) if self.average else []
            self.distributed.share_buffers([*self.model.buffers(), *averages])
        if not self.average:
            return self.model
        averaged = copy.deepcopy(self.model)  # the model may have heads that are in no config
        averaged.load_state_dict(self.average.weights)
        return averaged

    def note_evaluation(self) -> bool:
        """Compare the new `metrics` with the best so far. -> whether they are better; False without a `best_metric`."""
        if self.best_metric is None:
            return False
        kind, _, name = self.best_metric.partition("_")
        value = self.metrics[kind][name]
        improved = value is not None and value > self.best
        self.best = max(self.best, value or 0.0)
        self.evaluations_without_gain = 0 if improved else self.evaluations_without_gain + 1
        return improved

    def checkpoint(self, resumable: bool = True) -> Checkpoint:
        """A checkpoint; `resumable` adds the state that a resumed run needs."""
        training: dict[str, Any] = {}
        if resumable:
            training = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "weights": self.model.state_dict() if self.average else {},
                "best": self.best,
                "best_metric": self.best_metric,
                "evaluations_without_gain": self.evaluations_without_gain,
                "random": torch.get_rng_state(),  # for custom heads; resdet's own use no generators
                "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
                "world": self.distributed.world,
            }
        return Checkpoint(
            model=self.average.weights if self.average else self.model.state_dict(),
            class_names=self.inputs.train.class_names,
            category_ids=list(self.inputs.train.category_ids),
            config=dump_config(self.config),
            iteration=self.iteration,
            metrics=self.metrics,
            training=training,
        )

    def restore(self, checkpoint: Checkpoint, source: Path) -> None:
        """Load the state of `checkpoint`. Raises `UserError` if it belongs to another model or other classes."""
        state = checkpoint.training
        if not state:
            raise UserError(f"{source}: holds weights only and cannot be resumed")
        if checkpoint.class_names != self.inputs.train.class_names:
            raise UserError(f"{source}: was trained on the classes {checkpoint.class_names}; the data now has others")
        load_weights(self.model, state["weights"] or checkpoint.model, source)
        if self.average:
            self.average.weights = {k: v.to(self.device) for k, v in checkpoint.model.items()}
        before = config_of(checkpoint)
        restore_optimizer(
            self.optimizer, build_optimizer(self.model, (before or self.config).train), state["optimizer"]
        )
        if self.scaler.is_enabled() and state["scaler"]:  # empty if the run was not in fp16 before
            self.scaler.load_state_dict(state["scaler"])
        self.best, self.evaluations_without_gain = state["best"], state["evaluations_without_gain"]
        if state.get("best_metric", self.best_metric) != self.best_metric:
            console.print(f"  best.pt is now selected by {self.best_metric}, not {state['best_metric']}")
            self.best, self.evaluations_without_gain = -1.0, 0
        self.iteration, self.metrics = checkpoint.iteration, checkpoint.metrics
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        console.print(f"resuming after iteration {self.iteration} from {source}")
        for line in changes(checkpoint, self.config, self.distributed.world):
            console.print(f"  warning: {line}")
