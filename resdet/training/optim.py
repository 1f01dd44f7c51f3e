"""Optimiser, learning rate schedule, and moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from resdet.config import TrainConfig
from resdet.errors import UserError
from resdet.models.detector import Detector
from resdet.models.layers import BatchNorm2d, FrozenBatchNorm2d


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters, in groups of equal weight decay and "lr_scale" (`rate_scales`), which a
    training step multiplies the learning rate by.

    Norms have no weight decay, nor has what the backbone excludes. The fused implementations skip the step if the tensor
    `optimizer.found_inf` is not zero.
    """
    norms = (BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
    undecayed = {id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters()}
    undecayed |= {id(p) for p in model.backbone.undecayed()} if isinstance(model, Detector) else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    scales = rate_scales(model, config) if isinstance(model, Detector) else {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = 0.0 if id(parameter) in undecayed else config.weight_decay
            groups.setdefault((scales.get(id(parameter), 1.0), decay), []).append(parameter)
    ordered = [{"params": params, "lr_scale": scale, "weight_decay": d} for (scale, d), params in groups.items()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(ordered, lr=config.lr, fused=True)
    sgd = torch.optim.SGD(ordered, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        for group in sgd.param_groups:
            for parameter in group["params"]:  # torch does not create them in a step that it skips
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def restore_optimizer(new: torch.optim.Optimizer, old: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the momenta of `state` into `new`, which keeps its own learning rates, weight decays and groups.

    old: an optimizer of the same parameters, grouped as when `state` was saved. Raises `UserError` if `state` is of other
    parameters.
    """
    try:
        old.load_state_dict(state)
    except ValueError as error:
        raise UserError(
            f"the optimizer's state does not match the parameters that are trained now ({error}): resume with the same "
            "model and config as before, or start a new run from the weights"
        ) from None
    for parameter, momenta in old.state.items():
        new.state[parameter] |= momenta


def rate_scales(model: Detector, config: TrainConfig) -> dict[int, float]:
    """The learning rate multiplier of each parameter, by `id`.

    `head_lr` for the heads, `backbone_lr` for the backbone, 1 in between. With a `layer_decay` of d the backbone's last stage
    has d times that, the stage before it d**2, …, a ResNet's stem d**5, that of a ViT with 12 blocks d**13 (layer-wise learning
    rate decay, Clark et al. 2020, arXiv:2003.10555).
    """
    scales = {id(p): config.head_lr for p in model.parameters()}
    scales |= {id(p): 1.0 for part in model.below_heads() for p in part.parameters()}
    for distance, stage in enumerate(reversed(model.backbone.stages()), 1):
        scales |= {
            id(p): config.backbone_lr * config.layer_decay**distance for module in stage for p in module.parameters()
        }
    return scales


def learning_rate(iteration: int, config: TrainConfig) -> float:
    """At the 1-based `iteration`: linear warm-up, then either a factor of 0.1 at each milestone or a cosine to zero."""
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
    """Exponential moving average of a model's weights; `decay` is lower in the first iterations."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Update the average after the step of the 1-based `iteration`."""
        keep = min(self.decay, iteration / (iteration + 10))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.weights
