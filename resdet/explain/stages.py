"""From the recorded calls of a detector to chapters: each takes what it shows where the model has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resdet.boxes import from_cxcywh, iou
from resdet.explain.pictures import (
    Figure,
    Section,
    crop,
    heat,
    strength,
    tile,
    with_boxes,
    with_points,
)
from resdet.explain.record import Call, Calls
from resdet.overlays import color_of
from resdet.structures import Instances

OBJECTS = 8  # of the final result that are followed through the network
PROPOSALS = 50  # that are drawn
ANCHORS = 9  # that are drawn for an object
PROPOSAL, REFINED, FINAL = color_of(0), color_of(1), color_of(3)


class Seen(NamedTuple):
    """image: (h, w, 3) RGB, the network's input as it is shown, enlarged by `factor`. padded: (H, W) of the batch, enlarged.
    found: the final result in the input frame, the best first."""

    calls: Calls
    image: np.ndarray
    padded: tuple[int, int]
    factor: int
    found: Instances
    class_names: list[str]

    def name(self, i: int) -> str:
        """An object of the final result."""
        return f"{self.class_names[self.found.labels[i]]} {self.found.scores[i]:.0%}"

    @property
    def followed(self) -> int:
        return min(OBJECTS, len(self.found))


def feature_maps(seen: Seen) -> list[Section]:
    """The backbone's stages and the levels of the neck."""
    text = "The mean magnitude of all channels, each map from its lowest to its highest value."
    parts = (("backbone", "The backbone's stages"), ("fpn", "The neck's levels"))
    sections = []
    for name, title in parts:
        maps: Mapping[str, Tensor] = seen.calls[name].output
        figures = []
        for level, x in maps.items():
            caption = f"{level}: {x.shape[1]} channels of {x.shape[2]} x {x.shape[3]}"
            figures.append(Figure(heat(seen.image, strength(x[0]), seen.padded), caption))
        sections.append(Section(title, text, figures))
    return sections


def objectness(seen: Seen) -> list[Section]:
    """The RPN's scores on each level, and its best proposals."""
    call = seen.calls.get("rpn")
    if call is None:
        return []
    figures = []
    for (level, x), logits in zip(seen.calls["fpn"].output.items(), call.output.logits, strict=True):
        scores = logits[0].float().sigmoid().view(x.shape[2], x.shape[3], -1).amax(-1).cpu().numpy()
        figures.append(Figure(heat(seen.image, scores, seen.padded, (0, 1)), f"{level}: up to {scores.max():.2f}"))
    text = "The best objectness of the anchors at each place, from 0 (dark) to 1 (bright)."
    sections = [Section("Objectness", text, figures)]
    first = next(iter(box_stages(seen)), None)
    if first:
        boxes, valid = first.inputs[1][0].float().cpu().numpy(), first.inputs[2][0].cpu().numpy()
        shown = boxes[valid][:PROPOSALS]
        picture = with_boxes(seen.image, shown * seen.factor, [PROPOSAL] * len(shown))
        text = f"The {len(shown)} best of {int(valid.sum())} proposals, by objectness."
        sections.append(Section("Proposals", text, [Figure(picture, "proposals")]))
    return sections


def box_stages(seen: Seen) -> list[Call]:
    """The box heads that ran, in their order: one, or the stages of a cascade."""
    return [
        call for name, call in seen.calls.items() if name.startswith("heads.box") and hasattr(call.module, "refine")
    ]


def refinement(seen: Seen) -> list[Section]:
    """Each object's way from its proposal to its box, and the features that were pooled for it."""
    stages = box_stages(seen)
    if not stages:
        return []
    refined = []
    for call in stages:
        boxes = call.module.refine(call.output[1], call.inputs[1])[0].float()  # type: ignore[operator]
        refined.append(boxes)
    pooled = [
        call.output for name, call in seen.calls.items() if name.startswith("heads.box") and name.endswith("pool")
    ]
    rois, maps = [], []
    for i in range(seen.followed):
        column = 0 if refined[-1].shape[1] == 1 else int(seen.found.labels[i])
        target = torch.from_numpy(seen.found.boxes[i : i + 1]).to(refined[-1])
        row = int(iou(target, refined[-1][:, column]).argmax())
        path = [
            stages[0].inputs[1][0, row].float(),
            *(boxes[row, 0 if boxes.shape[1] == 1 else column] for boxes in refined[:-1]),
        ]
        steps = np.stack([*(box.cpu().numpy() for box in path), seen.found.boxes[i]]) * seen.factor
        colors = [PROPOSAL, *[REFINED] * (len(steps) - 2), FINAL]
        picture = with_boxes(seen.image, steps[::-1], colors[::-1])
        around = np.concatenate([steps[:, :2].min(0), steps[:, 2:].max(0)])
        rois.append(Figure(crop(picture, around), f"{seen.name(i)}, from proposal {row + 1}"))
        if pooled:
            values = strength(pooled[0].view(-1, *pooled[0].shape[1:])[row])
            maps.append(Figure(tile(values, (float(values.min()), float(values.max()))), f"{seen.name(i)}: pooled"))
    text = "The proposal (orange), what a cascade's earlier stages make of it (blue), and the final box (green)."
    pooling = "The features that RoIAlign gave the box head for these proposals: the mean magnitude of all channels."
    return [Section("From proposals to boxes", text, rois, True), Section("RoI crops", pooling, maps, True)]


def masks(seen: Seen) -> list[Section]:
    """The mask head's output before it becomes pixels."""
    probs = seen.found.mask_probs
    if probs is None or not len(probs):
        return []
    logits = np.log(
        np.clip(probs[: seen.followed], 1e-4, 1 - 1e-4) / (1 - np.clip(probs[: seen.followed], 1e-4, 1 - 1e-4))
    )
    figures = [Figure(tile(x, (-6, 6)), f"{seen.name(i)}: {x.shape[0]} x {x.shape[1]}") for i, x in enumerate(logits)]
    text = "From -6 (dark) to 6 (bright); pixels above 0 become the mask, which is then stretched over the box."
    return [Section("Mask logits", text, figures, True)]


def classification(seen: Seen) -> list[Section]:
    """A dense head's class scores on each level, and the anchors that respond most to each object."""
    call = seen.calls.get("head")
    if call is None:
        return []
    levels: list[Tensor] = call.output[0]  # (B, A_l, K) each
    quality: list[Tensor] | None = call.output[2] if len(call.output) > 2 else None
    figures = []
    for k, ((level, x), logits) in enumerate(zip(seen.calls["fpn"].output.items(), levels, strict=True)):
        scores = logits[0].float().sigmoid().amax(-1).view(x.shape[2], x.shape[3], -1).amax(-1).cpu().numpy()
        figures.append(Figure(heat(seen.image, scores, seen.padded, (0, 1)), f"{level}: up to {scores.max():.2f}"))
        if quality and quality[k].ndim == 2:
            center = quality[k][0].float().sigmoid().view(x.shape[2], x.shape[3], -1).amax(-1).cpu().numpy()
            figures.append(Figure(heat(seen.image, center, seen.padded, (0, 1)), f"{level}: centre-ness"))
    text = "The best class score at each place, from 0 (dark) to 1 (bright)."
    return [
        Section("Classification", text, figures),
        *_responding_anchors(seen, torch.cat(levels, dim=1)[0].float().sigmoid()),
    ]


def _responding_anchors(seen: Seen, scores: Tensor) -> list[Section]:
    call = seen.calls.get("head.anchors") or seen.calls.get("head.points")
    if call is None or call.output[0].shape[-1] != 4:
        return []
    anchors = torch.cat(call.output).float()
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    figures = []
    for i in range(seen.followed):
        low, high = torch.from_numpy(seen.found.boxes[i]).to(centers).view(2, 2)
        inside = ((centers > low - 0.5) & (centers < high + 0.5)).all(-1)
        of_class = torch.where(inside, scores[:, int(seen.found.labels[i])], -1.0)
        best, rows = of_class.topk(min(ANCHORS, len(of_class)))
        rows, best = rows[best >= 0], best[best >= 0]
        if not len(rows):
            continue
        points = with_points(seen.image, centers[rows].cpu().numpy() * seen.factor, best.cpu().numpy(), PROPOSAL)
        boxes = np.concatenate([seen.found.boxes[i : i + 1], anchors[rows].cpu().numpy()]) * seen.factor
        picture = with_boxes(points, boxes, [FINAL, *[PROPOSAL] * len(rows)])
        around = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
        figures.append(
            Figure(crop(picture, around, 0.1), f"{seen.name(i)}: scores from {best[0]:.2f} to {best[-1]:.2f}")
        )
    text = (
        f"The {ANCHORS} anchors, or points, within each final box (green) that score highest for its class (orange; the larger "
        "the dot, the higher). In training, which anchors learn from an object follows from its annotated box instead."
    )
    return [Section("Anchors that respond", text, figures, True)]


def attention(seen: Seen) -> list[Section]:
    """The places that RT-DETR's best queries look at in each layer of the decoder, and how their boxes move."""
    layers = [name for name in seen.calls if name.endswith("cross_attention")]
    scores = [call.output for name, call in seen.calls.items() if name.startswith("decoder.scores.")]
    if not layers or not scores:
        return []
    height, width = seen.padded
    scale = torch.tensor([width, height, width, height])
    classes = scores[-1].shape[-1]
    queries = scores[-1][0].float().flatten().topk(seen.followed).indices // classes
    figures = []
    for i, query in enumerate(queries.tolist()):
        boxes = []
        for name in layers:
            box = seen.calls[name].inputs[1][0, query].float().cpu()
            boxes.append(from_cxcywh(box) * scale)
        points, weights = sampling_points(seen.calls, layers[-1], query)
        picture = with_boxes(
            seen.image, np.stack([seen.found.boxes[i] * seen.factor, *(b.numpy() for b in boxes)]),
            [FINAL, *[PROPOSAL, *[REFINED] * (len(boxes) - 1)]],
        )  # fmt: skip
        at = (points * scale[:2]).flatten(0, 1).numpy()
        picture = with_points(picture, at, weights.flatten().numpy(), color_of(2))
        figures.append(Figure(picture, f"{seen.name(i)}: query {query + 1}"))
    text = (
        f"Where the best queries look in the last of {len(layers)} decoder layers: a point for each head, level and sample, "
        "the larger the greater its weight. Boxes: the encoder's (orange), after each layer (blue), at the end (green)."
    )
    return [Section("Attention", text, figures)]


def sampling_points(calls: Calls, name: str, query: int) -> tuple[Tensor, Tensor]:
    """Where a `DeformableAttention` samples for a query: points (heads, P, 2), x and y in 0..1, and weights (heads, P)."""
    module, inputs, _ = calls[name]
    heads = int(module.heads)  # type: ignore[arg-type]
    box = inputs[1][0, query].float().cpu()
    offsets = calls[f"{name}.offsets"].output[0, query].float().cpu().view(heads, -1, 2)
    weights = calls[f"{name}.weights"].output[0, query].float().cpu().view(heads, -1).softmax(-1)
    return box[:2] + offsets * module.get_buffer("scale").cpu() * box[2:], weights
