"""FCOS, ATSS, GFL and YOLOF against their papers' formulas, computed anchor by anchor in plain Python and float64."""

from __future__ import annotations

import math
from itertools import product
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from resdet.models.anchors import Anchors
from resdet.models.dense.atss import ATSSHead
from resdet.models.dense.detector import DenseHead
from resdet.models.dense.fcos import FCOSHead
from resdet.models.dense.gfl import GFLHead
from resdet.models.dense.gfl import expected as expected_distance
from resdet.models.dense.yolof import YOLOFHead
from resdet.models.selection import Selection
from resdet.structures import Targets
from tiny import SIZE, K, make_batch

Box = list[float]
STRIDES = (8, 16, 32)
CHANNELS = 32


def iou_of(a: Box, b: Box) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / (size_of(a) + size_of(b) - shared)


def giou_of(a: Box, b: Box) -> float:
    around = size_of([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    iou = iou_of(a, b)
    union = (size_of(a) + size_of(b)) / (1 + iou)
    return iou - (around - union) / around


def size_of(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def away(point: tuple[float, float], box: Box) -> list[float]:
    """Distances to left, top, right, bottom."""
    return [point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]]


def around(point: tuple[float, float], distances: list[float]) -> Box:
    x, y = point
    return [x - distances[0], y - distances[1], x + distances[2], y + distances[3]]


def moved(anchor: Box, deltas: list[float], weights: list[float], shift: float = math.inf) -> Box:
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dx, dy, dw, dh = (d / weight for d, weight in zip(deltas, weights, strict=True))
    x, y = (m + min(max(d * side, -shift), shift) for m, d, side in zip(middle(anchor), (dx, dy), (w, h), strict=True))
    w, h = w * math.exp(dw), h * math.exp(dh)
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(x: float, wanted: float) -> float:
    return -wanted * math.log(sigmoid(x)) - (1 - wanted) * math.log(sigmoid(-x))


def focal_of(logits: list[float], label: int | None) -> float:
    total = 0.0
    for k, x in enumerate(logits):
        p, weight = (sigmoid(x), 0.25) if k == label else (sigmoid(-x), 0.75)
        total -= weight * (1 - p) ** 2 * math.log(p)
    return total


def central(distances: list[float]) -> float:
    left, top, right, bottom = distances
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def candidates_of(levels: list[list[Box]], objects: list[Box], count: int = 9) -> list[int | None]:
    """ATSS: for each anchor the object that it belongs to."""
    best: list[tuple[float, int] | None] = [None] * sum(map(len, levels))
    anchors = [a for level in levels for a in level]
    for g, box in enumerate(objects):
        chosen: list[int] = []
        start = 0
        for level in levels:
            order = sorted(range(len(level)), key=lambda i, lv=level: math.dist(middle(lv[i]), middle(box)))
            chosen += [start + i for i in order[:count]]
            start += len(level)
        overlaps = [iou_of(anchors[i], box) for i in chosen]
        threshold = mean(overlaps) + stdev(overlaps)
        for i, overlap in zip(chosen, overlaps, strict=True):
            inside = min(away(middle(anchors[i]), box)) > 0.01
            if overlap >= threshold and inside and (best[i] is None or overlap > best[i][0]):
                best[i] = overlap, g
    return [None if b is None else b[1] for b in best]


def randomised(head: DenseHead) -> DenseHead:
    torch.manual_seed(1)
    for name, parameter in head.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(std=(0.5 if "regressor" in name else 1.0) / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return head.double()


def maps(strides: tuple[int, ...] = STRIDES) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {f"p{s}": torch.randn(2, CHANNELS, SIZE[0] // s, SIZE[1] // s).double() for s in strides}


def objects_of(counts: list[int]) -> tuple[Targets, list[list[Box]], list[list[int]]]:
    """Objects of all sizes, as tensors and as lists."""
    targets = make_batch(counts).targets
    grown = targets.boxes.double() * torch.tensor([1, 1, 1.3, 1.6]) + torch.tensor([0.0, 0, 0.37, 0.71])
    targets = targets._replace(boxes=grown * targets.valid[..., None])
    boxes = [b[v].tolist() for b, v in zip(targets.boxes, targets.valid, strict=True)]
    return targets, boxes, [x[v].tolist() for x, v in zip(targets.labels, targets.valid, strict=True)]


def squares(scale: float, offset: float) -> Anchors:
    return Anchors([[scale * s] for s in STRIDES], [1.0], strides=STRIDES, offset=offset).double()


def listed(tensors: list[Tensor], b: int) -> list:
    return torch.cat(tensors, dim=1)[b].tolist()


@pytest.mark.parametrize("plain", [True, False])
def test_fcos(plain: bool) -> None:
    """plain: the paper's first version, without the later improvements."""
    options = {"distances": "exp", "centerness_on": "class", "radius": None, "box_loss": "iou", "bias": False}
    head = randomised(FCOSHead(CHANNELS, K, squares(1, 0.5), Selection(), **(options if plain else {})))
    features, (targets, objects, labels) = maps(), objects_of([6, 0])
    logits, distances, centerness = head(features)
    points = [[middle(a) for a in level.tolist()] for level in head.points(features, SIZE)]
    classes = boxes = centers = weights = positive = 0.0
    for b in range(2):
        said = zip(*(listed(t, b) for t in (logits, distances, centerness)), strict=True)
        places = [(p, k) for k, level in enumerate(points) for p in level]
        for (point, k), (scores, sides, middling) in zip(places, said, strict=True):
            fitting = []
            for g, box in enumerate(objects[b]):
                to = away(point, box)
                low, high = (0 if k == 0 else 4 * STRIDES[k]), (math.inf if k == 2 else 8 * STRIDES[k])
                near = plain or max(abs(p - m) for p, m in zip(point, middle(box), strict=True)) < 1.5 * STRIDES[k]
                if min(to) > 0 and low < max(to) < high and near:
                    fitting.append((size_of(box), g))
            label = None
            if fitting:
                g = min(fitting)[1]
                label = labels[b][g]
                weight = central(away(point, objects[b][g]))
                found = around(point, sides)
                error = (
                    -math.log(max(iou_of(found, objects[b][g]), 1e-6)) if plain else 1 - giou_of(found, objects[b][g])
                )
                positive += 1
                weights += weight
                boxes += weight * error
                centers += cross_entropy(middling, weight)
            classes += focal_of(scores, label)
    assert positive > 20
    expected = {"box_class": (classes, positive), "box_reg": (boxes, weights), "centerness": (centers, positive)}
    check(head.loss(features, SIZE, targets), expected)


def test_atss() -> None:
    head = randomised(ATSSHead(CHANNELS, K, squares(4, 0.0), Selection()))
    features, (targets, objects, labels) = maps(), objects_of([6, 0])
    logits, deltas, centerness = head(features)
    levels = [level.tolist() for level in head.anchors(features, SIZE)]
    classes = boxes = centers = weights = positive = 0.0
    for b in range(2):
        owners = candidates_of(levels, objects[b])
        anchors = [a for level in levels for a in level]
        said = [listed(t, b) for t in (logits, deltas, centerness)]
        for owner, anchor, scores, delta, middling in zip(owners, anchors, *said, strict=True):
            classes += focal_of(scores, None if owner is None else labels[b][owner])
            if owner is not None:
                weight = central(away(middle(anchor), objects[b][owner]))
                positive += 1
                weights += weight
                boxes += 2 * weight * (1 - giou_of(moved(anchor, delta, [10, 10, 5, 5]), objects[b][owner]))
                centers += cross_entropy(middling, weight)
    assert positive > 10
    count = positive + 1  # of the image without objects
    expected = {"box_class": (classes, count), "box_reg": (boxes, weights), "centerness": (centers, count)}
    check(head.loss(features, SIZE, targets), expected)


def test_gfl() -> None:
    head = randomised(GFLHead(CHANNELS, K, squares(4, 0.0), Selection(), farthest=4))
    features, (targets, objects, labels) = maps(), objects_of([6, 0])
    logits, distances = head(features)
    levels = [level.tolist() for level in head.anchors(features, SIZE)]
    classes = boxes = spread = weights = positive = 0.0
    for b in range(2):
        owners = candidates_of(levels, objects[b])
        anchors = [(a, stride) for level, stride in zip(levels, STRIDES, strict=True) for a in level]
        for owner, (anchor, stride), scores, said in zip(
            owners, anchors, listed(logits, b), listed(distances, b), strict=True
        ):
            quality = 0.0
            if owner is not None:
                box, point = objects[b][owner], middle(anchor)
                shares = [[math.exp(x) for x in said[5 * s : 5 * s + 5]] for s in range(4)]
                shares = [[x / sum(side) for x in side] for side in shares]
                found = around(point, [stride * sum(n * x for n, x in enumerate(side)) for side in shares])
                quality, weight = iou_of(found, box), max(map(sigmoid, scores))
                positive += 1
                weights += weight
                boxes += 2 * weight * (1 - giou_of(found, box))
                for side, distance in zip(shares, away(point, box), strict=True):
                    wanted = min(max(distance / stride, 0), 3.9)
                    n = int(wanted)
                    entropy = -(n + 1 - wanted) * math.log(side[n]) - (wanted - n) * math.log(side[n + 1])
                    spread += 0.25 * weight * entropy / 4
            for k, x in enumerate(scores):
                wanted = quality if owner is not None and k == labels[b][owner] else 0.0
                classes += cross_entropy(x, wanted) * abs(sigmoid(x) - wanted) ** 2
    assert positive > 10
    expected = {"box_class": (classes, positive + 1), "box_reg": (boxes, weights), "box_dfl": (spread, weights)}
    check(head.loss(features, SIZE, targets), expected)


def test_distances_are_not_rounded_under_autocast() -> None:
    logits = torch.randn(3, 4 * 17, generator=torch.Generator().manual_seed(0))
    exact = expected_distance(logits.double())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(expected_distance(logits), exact.float(), rtol=1e-5, atol=1e-5)


def test_yolof() -> None:
    anchors = Anchors([[16, 32, 64, 128]], [1.0], strides=(16,), offset=0.0).double()
    head = randomised(YOLOFHead(CHANNELS, K, anchors, Selection(), norm="gn", high=0.4))
    features, (targets, objects, labels) = maps((16,)), objects_of([6, 0])
    (regular,) = anchors(features, SIZE)
    moved_a_little = regular + torch.randn_like(regular)
    anchors.forward = lambda *_: [moved_a_little]  # on a grid, many are equally far from an object
    feature = features["p16"]
    raw, _, _ = head(features, SIZE)
    separate = [
        layer(tower(feature)).permute(0, 2, 3, 1).reshape(2, -1, width)
        for layer, tower, width in (
            (head.classifier, head.class_tower, K), (head.objectness, head.box_tower, 1), (head.regressor, head.box_tower, 4)
        )
    ]  # fmt: skip
    torch.testing.assert_close(raw.sigmoid(), separate[0].sigmoid() * separate[1].sigmoid())
    places = head.anchors(features, SIZE)[0].tolist()
    classes = boxes = positive = 0.0
    ignored = 0
    for b in range(2):
        deltas = separate[2][b].tolist()
        found = [moved(a, d, [1, 1, 1, 1], 32) for a, d in zip(places, deltas, strict=True)]
        owner: list[int | None] = [None] * len(places)
        for i, box in enumerate(found):
            if any(iou_of(box, o) > 0.4 for o in objects[b]):
                owner[i] = -1

        def far(box: Box, other: Box) -> float:
            return sum(
                abs(p - q)
                for p, q in zip(
                    (*middle(box), box[2] - box[0], box[3] - box[1]),
                    (*middle(other), other[2] - other[0], other[3] - other[1]), strict=True,
                )
            )  # fmt: skip

        orders = [
            [sorted(range(len(places)), key=lambda i, o=o, of=of: far(of[i], o))[:4] for o in objects[b]]
            for of in (found, places)
        ]
        for place, of, g in product(range(4), range(2), range(len(objects[b]))):
            i = orders[of][g][place]
            good = iou_of(places[i], objects[b][g]) >= 0.15
            owner[i] = g if good else -1
            boxes += (1 - giou_of(found[i], objects[b][g])) * good
        for i, own in enumerate(owner):
            ignored += own == -1
            if own != -1:
                classes += focal_of(raw[b, i].tolist(), None if own is None else labels[b][own])
                positive += own is not None
    assert positive > 10
    assert ignored > 4
    expected = {"box_class": (classes, positive + 1), "box_reg": (boxes, positive + 1)}
    check(head.loss(features, SIZE, targets), expected)


def check(found: dict, expected: dict[str, tuple[float, float]]) -> None:
    assert set(found) == set(expected)
    for name, (total, count) in expected.items():
        assert found[name].sum.item() == pytest.approx(total, rel=1e-9), name
        assert found[name].count.item() == pytest.approx(count, rel=1e-9), name
