"""A network of another library, or of the user's, as a `Backbone`: its maps by stride, its stages, its size rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from resdet.errors import UserError
from resdet.models.backbones.base import Backbone

LEVELS = {4: "c2", 8: "c3", 16: "c4", 32: "c5"}  # by stride
Sizes = tuple[tuple[int, int], ...]


class Map(NamedTuple):
    """One of the maps that a network returns. place: among them, from 0. last: channels come last, (B, H, W, C)."""

    place: int
    channels: int
    stride: float
    last: bool


class Fit(NamedTuple):
    """How images are made to fit a network. multiple: pad both sides to one of it. patch, stride: resize first, so that `patch`
    pixels of the network become of `stride` pixels of the image (a ViT's patches of 14 become a stride of 16)."""

    multiple: int = 32
    patch: int = 1
    stride: int = 1

    def resized(self, side: int) -> int:
        return side // self.stride * self.patch


ANY_SIZE = Fit()


class Adapted(Backbone):
    """`net` with its maps of strides 4, 8, 16 and 32 as c2..c5; of several of one stride the last.

    A network whose maps all have one stride (ViT) gets a `SimplePyramid`, which is in no stage: it is new, so it is neither
    frozen nor slowed down.

    net:    images (B, C, H, W) -> maps in a list, a tuple or a dict, or one map.
    maps:   what `measure` found.
    cuts:   the names of the modules that end a stage, in the order of forward; what lies between two belongs to the second.
            Empty: each child with parameters is a stage, in lists of modules each entry.
    stem:   the name of the last module before the first stage; None: what is defined before the first of `cuts`.
    frozen_norms: batch norms keep their statistics and affine, in training too.
    """

    def __init__(
        self,
        net: nn.Module,
        maps: Sequence[Map],
        *,
        fit: Fit = ANY_SIZE,
        cuts: Sequence[str] = (),
        stem: str | None = None,
        frozen_stages: int = 0,
        frozen_norms: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.fit, self.frozen_norms = net, fit, frozen_norms
        self.cuts, self.stem = tuple(cuts), stem
        self.maps = {LEVELS[int(m.stride)]: m for m in sorted(maps, key=lambda m: m.stride) if m.stride in LEVELS}
        self.pyramid: SimplePyramid | None = None
        if len({m.stride for m in maps}) == 1 and self.maps:
            (only,) = self.maps.values()
            self.pyramid = SimplePyramid(only.channels, int(only.stride))
            self.channels, self.strides = self.pyramid.channels, {name: stride for stride, name in LEVELS.items()}
        else:
            self.channels = {name: m.channels for name, m in self.maps.items()}
            self.strides = {name: int(m.stride) for name, m in self.maps.items()}
        for norm in self._frozen_norms():
            norm.requires_grad_(False)
        self.used = tuple(self.channels)
        self.freeze(frozen_stages)

    def use(self, levels: Sequence[str], inputs: int) -> None:
        """Give these maps alone, and do not train the parameters that none of them depends on: for their gradients
        DistributedDataParallel would wait. inputs: channels of the images. Raises whatever the network raises."""
        self.used = tuple(levels)
        trained = [p for p in self.parameters() if p.requires_grad]
        with evaluating(self), torch.enable_grad():
            x = torch.zeros(
                2, inputs, 2 * self.fit.multiple, 3 * self.fit.multiple, device=trained[0].device if trained else None
            )
            total = torch.stack([y.sum() for y in self(x).values()]).sum()
        if total.requires_grad:
            gradients = torch.autograd.grad(total, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.requires_grad_(gradient is not None)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = x.shape[-2:]
        found = run(self.net, x, self.fit)
        levels = {}
        for name, m in self.maps.items():
            if self.pyramid is None and name not in self.used:
                continue
            y = found[m.place].permute(0, 3, 1, 2) if m.last else found[m.place]
            levels[name] = y[:, :, : height // int(m.stride), : width // int(m.stride)].contiguous()
        if self.pyramid is not None:
            (only,) = levels.values()
            return {name: level(only).contiguous() for name, level in self.pyramid.levels.items() if name in self.used}
        return levels

    def stages(self) -> list[list[nn.Module]]:
        number = self._stage_of_parameters()
        stages: list[list[nn.Module]] = [[] for _ in range(max(number.values(), default=0) + 1)]
        for module, stage in _whole(self.net, "", number):
            stages[stage].append(module)
        return stages

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self._frozen_norms():
            norm.eval()
        return self

    def undecayed(self) -> list[nn.Parameter]:
        """Vectors (biases, norms, layer scales) and what the network itself excludes: position embeddings, tokens."""
        excluded: set[str] = getattr(getattr(self.net, "model", self.net), "no_weight_decay", set)()
        return [p for name, p in self.net.named_parameters() if p.ndim < 2 or name.removeprefix("model.") in excluded]

    def _frozen_norms(self) -> list[nn.Module]:
        if not self.frozen_norms:
            return []
        return [m for m in self.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _stage_of_parameters(self) -> dict[str, int]:
        """The stage of each parameter by name, from the order in which they are defined."""
        names = [name for name, _ in self.net.named_parameters()]
        under = [[k for k, name in enumerate(names) if within(name, cut)] for cut in self.cuts]
        ends = [max(inside) for inside in under if inside]
        if not ends:
            parts = [self._part_of(name) for name in names]
            order = list(dict.fromkeys(parts))
            return {name: order.index(part) for name, part in zip(names, parts, strict=True)}
        first = next(min(inside) for inside in under if inside)
        if self.stem is not None:
            first = 1 + max((k for k, name in enumerate(names) if within(name, self.stem)), default=-1)
        return {
            name: 0 if k < first else 1 + next((stage for stage, end in enumerate(ends) if k <= end), len(ends) - 1)
            for k, name in enumerate(names)
        }

    def _part_of(self, parameter: str) -> str:
        """The child of the network that a parameter is in or, in a list of modules, its entry."""
        parts = parameter.split(".")
        depth = 2 if parts[0] == "model" else 1  # timm's wrapper
        inside = self.net.get_submodule(".".join(parts[:depth])) if len(parts) > depth else None
        return ".".join(parts[: depth + isinstance(inside, nn.Sequential | nn.ModuleList)])


def within(parameter: str, module: str) -> bool:
    """Whether a parameter, by its name, is in a module."""
    return plain(parameter).startswith(f"{plain(module)}_")


def plain(name: str) -> str:
    """A parameter's or module's name, the same inside timm's wrappers, which change "stages.0" to "stages_0" or "model.…"."""
    return name.removeprefix("model.").replace(".", "_")


def _whole(module: nn.Module, prefix: str, number: dict[str, int]) -> Iterator[tuple[nn.Module, int]]:
    """The largest modules whose parameters are all of one stage, and a list of the parameters that are in none of them."""
    stages = {number[prefix + name] for name, _ in module.named_parameters() if prefix + name in number}
    if len(stages) == 1 and prefix:
        yield module, stages.pop()
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield nn.ParameterList([parameter]), number[prefix + name]
    for name, child in module.named_children():
        yield from _whole(child, f"{prefix}{name}.", number)


def run(net: nn.Module, x: Tensor, fit: Fit) -> list[Tensor]:
    """The maps of a network, whatever they come in, for images of any size."""
    height, width = x.shape[-2:]
    if fit.multiple > 32:
        x = F.pad(x, (0, -width % fit.multiple, 0, -height % fit.multiple))
        height, width = x.shape[-2:]
    if fit.patch != fit.stride:
        x = F.interpolate(x, size=(fit.resized(height), fit.resized(width)), mode="bilinear", align_corners=False)
    found = net(x)
    if isinstance(found, Tensor):
        return [found]
    return list(found.values()) if isinstance(found, dict) else list(found)


@torch.no_grad()
def sample(net: nn.Module, channels: int, fit: Fit) -> tuple[list[Tensor], tuple[int, int]]:
    """What a network returns for two small images, and their size. Raises whatever the network raises."""
    size = (2 * fit.multiple, 3 * fit.multiple)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    with evaluating(net):
        return run(net, torch.zeros(2, channels, *size, device=device), fit), size


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    state = {module: module.training for module in net.modules()}
    try:
        net.eval()
        yield
    finally:
        for module, training in state.items():
            module.training = training


def as_map(place: int, y: object, size: tuple[int, int]) -> Map | None:
    """An output for images of that size; None if it is no map, with the proportions of the image."""
    if not isinstance(y, Tensor) or y.ndim != 4:
        return None
    height, width = size
    for last, (h, w, c) in ((False, (y.shape[2], y.shape[3], y.shape[1])), (True, tuple(y.shape[1:]))):
        if h * width == w * height:
            return Map(place, c, height / h, last)
    return None


def measure(net: nn.Module, channels: int, fit: Fit = ANY_SIZE, *, who: str = "the backbone") -> list[Map]:
    """The maps of a network, from a run on a small image. who: for errors. Raises `UserError` for what is no map, and whatever
    the network raises."""
    found, size = sample(net, channels, fit)
    maps = [as_map(place, y, size) for place, y in enumerate(found)]
    for number, (y, m) in enumerate(zip(found, maps, strict=True), 1):
        if m is None:
            got = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise UserError(
                f"{who}: output {number} for images (2, {channels}, {size[0]}, {size[1]}) is {got}, not a map (2, C, "
                f"{size[0]} / s, {size[1]} / s): return the maps before pooling and classifier"
            )
    return [m for m in maps if m is not None]


def require_levels(backbone: Backbone, needed: Sequence[str], detector: str, who: str) -> None:
    """Raises `UserError` unless the backbone has the maps that a detector needs."""
    strides = {name: stride for stride, name in LEVELS.items()}
    if missing := [name for name in needed if name not in backbone.channels]:
        has = sorted({m.stride for m in backbone.maps.values()}) if isinstance(backbone, Adapted) else []
        raise UserError(
            f"{who}: has maps at strides {', '.join(f'{s:g}' for s in has) or 'that are none of 4, 8, 16, 32'}, but {detector} "
            f"needs {', '.join(str(strides[name]) for name in needed)}; missing: "
            f"{', '.join(str(strides[name]) for name in missing)}"
        )


class SimplePyramid(nn.Module):
    """One map -> c2..c5 (ViTDet's simple feature pyramid, Li et al. 2022, arXiv:2203.16527, section 3): transposed convolutions
    of stride 2, each halving the channels, towards finer levels, max pooling towards coarser ones, and a layer norm.

    ViTDet's 1x1 and 3x3 convolutions follow in the FPN, which adds its top-down path. channels, stride: of the map.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.levels, self.channels = nn.ModuleDict(), dict[str, int]()
        for target, name in LEVELS.items():
            layers: list[nn.Module] = []
            c, at = channels, stride
            while at > target:
                layers += [LayerNorm2d(c), nn.GELU()] if layers else []
                layers.append(nn.ConvTranspose2d(c, max(c // 2, 8), 2, 2))
                c, at = max(c // 2, 8), at // 2
            while at < target:
                layers.append(nn.MaxPool2d(2))
                at *= 2
            self.levels[name], self.channels[name] = nn.Sequential(*layers, LayerNorm2d(c)), c

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: level(x) for name, level in self.levels.items()}
