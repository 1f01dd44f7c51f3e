"""Optimiser, learning rate schedule, moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resdet.config import TrainConfig
from resdet.models.layers import BatchNorm2d, FrozenBatchNorm2d


def build_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """SGD or AdamW over what trains; the affine parameters of norms are not decayed."""
    norms = (BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
    undecayed = {id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in undecayed], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) in undecayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type == "cuda"
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)


def learning_rate(iteration: int, config: TrainConfig) -> float:
    """Of the 1-based `iteration`: linear warm-up, then steps of a tenth or half a cosine down to zero."""
    if config.schedule == "cosine":
        span = max(1, config.max_iters - config.warmup_iters)
        done = min(max(iteration - config.warmup_iters, 0) / span, 1.0)
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * done))
    else:
        rate = config.lr * 0.1 ** sum(iteration > milestone for milestone in config.milestones)
    if iteration <= config.warmup_iters:
        done = iteration / config.warmup_iters
        rate *= config.warmup_factor * (1 - done) + done
    return rate


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992); young averages forget faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """After the step of the 1-based `iteration`."""
        keep = min(self.decay, iteration / (iteration + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights
