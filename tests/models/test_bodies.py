"""C4 and DC5 bodies against detectron2's, computed plainly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from resdet.config import parse_config
from resdet.errors import UserError
from resdet.models.anchors import Anchors
from resdet.models.roi_align import RoIAlign, flatten_rois
from resdet.structures import Detections
from tiny import C4, SIZE, K, make_batch, small

DC5 = {"neck": "c5", "backbone": {"name": "resnet18", "weights": "none", "c5_dilation": 2}}


def test_several_sizes_on_one_level_are_ordered_as_detectron2_orders_them() -> None:
    """`generate_cell_anchors`: for each size, for each ratio."""
    sizes, ratios = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
    expected = []
    for y, x in itertools.product(range(2), range(3)):
        for size, ratio in itertools.product(sizes, ratios):
            w = math.sqrt(size**2 / ratio)
            h = ratio * w
            expected.append([16 * x - w / 2, 16 * y - h / 2, 16 * x + w / 2, 16 * y + h / 2])
    anchors = Anchors([sizes], ratios, strides=(16,), offset=0)
    (found,) = anchors({"c4": torch.zeros(1, 1, 2, 3)}, (32, 48))
    torch.testing.assert_close(found, torch.tensor(expected))
    assert anchors.per_location == 15


def test_c4_heads_are_detectron2s_res5_heads() -> None:
    """RoIAlign to 14 x 14 on c4, res5 on each RoI; boxes from its mean, masks by a deconvolution of its 7 x 7 map."""
    model = small(**C4).eval()
    batch = make_batch([1, 1])
    features = model.features(batch)
    assert list(features) == ["c4"]
    boxes = torch.rand(2, 6, 4) * 40 + torch.tensor([0.0, 0, 40, 30])
    valid = torch.ones(2, 6, dtype=torch.bool)
    box, mask = model.heads["box"], model.heads["mask"]
    logits, deltas = box(features, boxes, valid)
    rois = torch.cat([torch.arange(2.0).repeat_interleave(6)[:, None], boxes.flatten(0, 1)], dim=1)
    pooled = model.backbone.layer4(roi_align(features["c4"], rois, 14, 1 / 16, 0, True))
    assert pooled.shape[2:] == (7, 7)
    mean = pooled.mean((2, 3))
    torch.testing.assert_close(logits.flatten(0, 1), box.classifier(mean))
    torch.testing.assert_close(deltas.flatten(0, 1).flatten(1), box.regressor(mean))
    labels = torch.randint(K, (2, 6))
    given = Detections(boxes, torch.ones(2, 6), labels, valid, batch.image_sizes)
    found = mask.predict(features, given).mask_probs
    assert found.shape == (2, 6, 14, 14)
    # MaskRCNNConvUpsampleHead with NUM_CONV 0
    assert (mask.upsample.in_channels, len(mask.convs)) == (pooled.shape[1], 0)
    expected = mask.logits(F.relu(mask.upsample(pooled)))[torch.arange(12), labels.flatten()].sigmoid()
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_c4_detector_owns_res5_once_and_all_of_it_learns() -> None:
    model = small(**C4)
    names = [name for name, _ in model.named_parameters()]
    assert any(name.startswith("backbone.layer4.") for name in names)
    assert not any("stage" in name for name in names)
    assert sum(p is model.backbone.layer4[0].conv1.weight for p in model.parameters()) == 1
    losses = model(make_batch([2, 3]))
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.backbone.layer4[0].conv1.weight.grad.abs().sum() > 0
    assert model.rpn.objectness.out_channels == 15


@pytest.mark.slow
def test_padded_rois_do_not_enter_the_statistics_of_res5() -> None:
    """512 samples of some 70 candidates: most rows are padding, as many as there are slots."""
    means = []
    for samples in (128, 512):
        model = small(**{**C4, "mask": None, "box": {"trunk": "res5", "samples": samples}}).train()
        model(make_batch([3, 2]))
        means.append(model.backbone.layer4[1].bn2.running_mean)
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-6)


def test_dc5_sees_c5_at_stride_16() -> None:
    model = small(**DC5)
    features = model.features(make_batch([1]))
    assert {name: tuple(f.shape[1:]) for name, f in features.items()} == {"c5": (512, SIZE[0] // 16, SIZE[1] // 16)}
    box, mask = model.heads["box"], model.heads["mask"]
    assert (box.pool.strides, box.pool.size, mask.pool.strides, mask.size) == ((16,), 7, (16,), 28)
    assert (box.trunk.fc1.in_features, model.rpn.anchors.strides) == (512 * 49, (16,))
    torch.stack(list(model(make_batch([2])).values())).sum().backward()
    assert model.backbone.layer4[0].conv2.dilation == (2, 2)
    assert model.eval().predict(make_batch([1])).mask_probs.shape == (1, 100, 28, 28)


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_on_a_single_level_is_the_operator(ratio: int) -> None:
    feature = torch.randn(2, 5, 20, 30, dtype=torch.float64)
    boxes = torch.rand(2, 9, 4, dtype=torch.float64) * 150 + torch.tensor([0.0, 0, 150, 150], dtype=torch.float64)
    flat, image = flatten_rois(boxes)
    expected = roi_align(feature, torch.cat([image[:, None].double(), flat], 1), 7, 1 / 16, ratio, True)
    found = RoIAlign(7, strides=[16], sampling_ratio=ratio)({"c4": feature}, flat, image)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"box": {"trunk": "res5"}}, r"box\.trunk=res5 computes c5 on RoIs of c4, but neck=fpn: set model\.neck=c4"),
        ({"anchors": {"sizes": [8, 16]}}, r"anchors\.sizes has 2 numbers: an FPN needs 5, one for each of p2\.\.p6"),
        ({"neck": "c4", "backbone": {"c5_dilation": 2}}, r"c5_dilation=2 has no effect with neck=c4"),
        ({"neck": "c5", "mask": {"point_rend": {}}}, r"mask\.point_rend needs the fine maps of an FPN, but neck=c5"),
    ],
)
def test_bodies_that_do_not_fit_together_are_told_before_work(model: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"model": model})


def test_weights_are_standardized_in_neck_and_heads() -> None:
    """As mmcv's ConvWS2d: each output channel's weights less their mean, divided by their standard deviation."""
    on = {"norm": "gn", "weight_standardization": True}
    model = small(
        {"num_convs": 1, "width": 32, **on}, fpn={"channels": 32, **on}, box={"trunk": "4conv1fc", "width": 32, **on}
    )
    convs = [model.fpn.lateral[1], model.fpn.output[0], model.heads["box"].trunk.convs[3], model.heads["mask"].convs[0]]
    for module in convs:
        w = module.conv.weight
        flat = w.flatten(1)
        w = (w - flat.mean(1)[:, None, None, None]) / (flat.std(1) + 1e-5)[:, None, None, None]
        x = torch.randn(2, w.shape[1], 6, 7)
        expected = F.group_norm(F.conv2d(x, w, padding=w.shape[2] // 2), 32, module.norm.weight, module.norm.bias)
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_one_mask_for_all_classes() -> None:
    model = small({"num_convs": 1, "width": 32, "class_agnostic": True}).eval()
    batch = make_batch([2, 3])
    mask = model.heads["mask"]
    assert mask.logits.weight.shape == (1, 32, 1, 1)
    boxes, every = batch.targets.boxes[:, :2] + torch.tensor([0.0, 0, 8, 8]), torch.ones(2, 2, dtype=torch.bool)
    features = model.features(batch)
    given = [Detections(boxes, torch.ones(2, 2), torch.full((2, 2), k), every, batch.image_sizes) for k in (0, K - 1)]
    first, last = (mask.predict(features, d).mask_probs for d in given)
    assert torch.equal(first, last)
    assert first.std() > 0
    model.train()(batch)["mask"].backward()
    assert mask.logits.weight.grad.abs().sum() > 0
