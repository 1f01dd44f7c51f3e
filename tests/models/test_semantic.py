"""Semantic FPN against its layers written out, label maps and panoptic segments against whole bitmaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resdet import label_maps
from resdet.errors import UserError
from resdet.inference.postprocess import to_instances
from resdet.label_maps import label_map
from resdet.models.heads.semantic import SemanticHead
from resdet.panoptic import Panoptic, merge
from resdet.structures import UNLABELLED, Instances
from tiny import SEMANTIC, SEMANTIC_HEAD, S, make_batch, small


def written_out(head: SemanticHead, features: dict[str, Tensor]) -> Tensor:
    """The paper's figure 3, with plain functions and the head's weights."""
    total = torch.zeros(())
    for level, tower in zip(("p2", "p3", "p4", "p5"), head.towers, strict=True):
        x = features[level]
        for conv in tower.convs:
            x = F.conv2d(x, conv.conv.weight, padding=1)
            x = F.relu(F.group_norm(x, 32, conv.norm.weight, conv.norm.bias))
            if level != "p2":
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    return F.conv2d(total, head.logits.weight, head.logits.bias)


def test_logits_and_loss_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    head = SemanticHead(16, S, width=32, class_weights=[1.0, 0.5, 2.0, 0.0], loss_weight=0.5)
    assert [len(tower.convs) for tower in head.towers] == [1, 1, 2, 3]
    batch = make_batch([2, 3])
    features = {f"p{k}": torch.randn(2, 16, 96 >> k, 128 >> k) for k in range(2, 6)}
    logits = written_out(head, features)
    torch.testing.assert_close(head(features), logits, rtol=1e-4, atol=1e-4)
    loss = head.loss(features, batch)["semantic"]
    large = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    labels = batch.targets.semantic.long()
    assert (labels == UNLABELLED).any()
    expected = F.cross_entropy(large, labels, torch.tensor([1.0, 0.5, 2.0, 0.0]), ignore_index=UNLABELLED)
    torch.testing.assert_close(loss.mean(), 0.5 * expected, rtol=1e-4, atol=1e-5)
    nothing = batch._replace(
        targets=batch.targets._replace(semantic=torch.full_like(batch.targets.semantic, UNLABELLED))
    )
    assert head.loss(features, nothing)["semantic"].mean() == 0


@pytest.mark.slow
def test_a_model_of_pixels_alone_learns_them() -> None:
    model = small(kind="semantic", head=SEMANTIC_HEAD, backbone={"name": "resnet18", "weights": "none", "norm": "gn"})
    batch = make_batch([1, 1])
    left = torch.arange(128) < 64
    labels = torch.where(left, 1, 2).expand(2, 96, 128).to(torch.uint8)
    images = (left * 200).to(torch.uint8).expand(2, 3, 96, 128)
    batch = batch._replace(images=images, targets=batch.targets._replace(semantic=labels))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = model(batch)["semantic"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    found, _ = to_instances(model.eval().predict(batch), [(50, 60), (96, 128)])
    assert len(found) == 0
    assert found.semantic.shape == (50, 60)
    assert np.mean(found.semantic == np.where(np.arange(60) < 30, 1, 2)) > 0.95


@pytest.mark.parametrize(("size", "original"), [((90, 121), (61, 200)), ((96, 128), (96, 128)), ((33, 128), (1, 7))])
def test_strips_are_the_whole_in_parts(size: tuple[int, int], original: tuple[int, int], monkeypatch) -> None:
    logits = torch.randn(S, 24, 32)
    whole = F.interpolate(logits[None], scale_factor=4, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    whole = F.interpolate(whole, size=original, mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr(label_maps, "NUMBERS_AT_ONCE", 7 * S * original[1])
    found = label_map(logits, size, original)
    best = whole.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()  # all but ties
    assert clear.mean() > 0.99
    assert (found == whole.argmax(0).numpy())[clear].all()


def by_pixels(masks: np.ndarray, scores, labels, semantic: np.ndarray, overlap: float, stuff_area: int) -> Panoptic:
    """The rules one by one on whole bitmaps: (ids, (label, thing) of each segment)."""
    ids, kinds = np.zeros(semantic.shape, int), []
    for mask, _, label in zip(masks, scores, labels, strict=True):
        if not mask.any() or (mask & (ids > 0)).sum() / mask.sum() > overlap:
            continue
        kinds.append((label, True))
        ids[mask & (ids == 0)] = len(kinds)
    for label in range(1, 255):
        mask = (semantic == label) & (ids == 0)
        if mask.any() and mask.sum() >= stuff_area:
            kinds.append((label, False))
            ids[mask] = len(kinds)
    return ids, kinds


def test_segments_are_those_of_whole_bitmaps() -> None:
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(20):
        semantic = rng.choice([0, 1, 2, 7, UNLABELLED], (40, 50)).astype(np.uint8)
        semantic[:, 30:] = 1
        placed, masks = [], np.zeros((8, 40, 50), bool)
        for mask in masks:
            y, x = rng.integers(0, 30, 2)
            crop = rng.random((10, 20)) > rng.choice([0.2, 1.0])
            mask[y : y + 10, x : x + 20] = crop
            placed.append(((y, x), crop))
        scores, labels = np.sort(rng.random(8))[::-1], rng.integers(0, 3, 8)
        found = merge(placed, scores, labels, semantic, overlap=0.4, stuff_area=200)
        ids, kinds = by_pixels(masks, scores, labels, semantic, 0.4, 200)
        assert np.array_equal(found.ids, ids)
        assert [(s.label, s.thing) for s in found.segments] == kinds
        assert [s.area for s in found.segments] == [(ids == s.id).sum() for s in found.segments]
        kept += len(kinds)
    assert kept > 60


def test_instances_of_enough_score_become_segments() -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 0, 10, 4], [0, 0, 10, 10]], np.float32)
    semantic = np.full((10, 10), 3, np.uint8)
    found = Instances(boxes, np.array([0.6, 0.9, 0.4], np.float32), np.array([5, 6, 7]), (10, 10),
                      np.ones((3, 14, 14), np.float32), semantic=semantic).panoptic(stuff_area=50)  # fmt: skip
    assert [(s.label, s.thing, s.area, s.instance) for s in found.segments] == [
        (6, True, 32, 1), (5, True, 8, 0), (3, False, 60, None)
    ]  # fmt: skip


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"model.semantic.class_weights has 2 numbers, but there are 4 classes"):
        small(semantic={**SEMANTIC, "class_weights": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"model.semantic.num_classes is not set"):
        small(semantic={})
    with pytest.raises(UserError, match=r"num_classes=256: label maps are bytes, so 255 is the most"):
        small(kind="semantic", num_classes=256)
    with pytest.raises(UserError, match=r"semantic needs the levels p2..p5 of an FPN"):
        small(semantic=SEMANTIC, neck="c4")
