"""RetinaNet and FCOS against torchvision's with the same weights: losses, gradients, detections."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import backbone_utils, fcos, retinanet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from oracle import randomise_dense
from resdet.checkpoints.names import to_ours
from resdet.config.model import RGB_MEAN, RGB_STD
from resdet.models.anchors import Anchors
from resdet.models.backbones.resnet import ResNet, architecture
from resdet.models.dense.detector import DenseHead, OneStage
from resdet.models.dense.fcos import FCOSHead
from resdet.models.dense.retinanet import RetinaNetHead
from resdet.models.fpn import FPN, ConvTop
from resdet.models.selection import Selection
from tiny import SIZE, K, make_batch

KINDS = ["retinanet", "retinanet_v2", "fcos"]
OCTAVE = [[x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))] for x in (32, 64, 128, 256, 512)]


def theirs_of(kind: str) -> nn.Module:
    """torchvision's on ResNet-18 and 32 channels, with random weights that detect."""
    torch.manual_seed(0)
    top = LastLevelP6P7(512 if kind == "retinanet_v2" else 32, 32)
    layers = {f"layer{k}": str(k) for k in (2, 3, 4)}
    body = backbone_utils.BackboneWithFPN(resnet18(), layers, [128, 256, 512], 32, extra_blocks=top)
    limits = {
        "score_thresh": 0.2,
        "nms_thresh": 0.5,
        "detections_per_img": 50,
        "min_size": SIZE[0],
        "max_size": SIZE[1],
    }
    if kind == "fcos":
        model = fcos.FCOS(body, K + 1, **limits)
    else:
        norm = partial(nn.GroupNorm, 32) if kind == "retinanet_v2" else None
        head = retinanet.RetinaNetHead(32, 9, K + 1, norm_layer=norm)
        if norm:
            head.regression_head._loss_type = "giou"
        model = retinanet.RetinaNet(body, K + 1, head=head, **limits)
    randomise_dense(model.head, K)
    return model.double()


def ours_of(kind: str, theirs: nn.Module) -> OneStage:
    selection = Selection(score_threshold=0.2, nms_threshold=0.5, max_detections=50, empty="keep")
    anchors = {"offset": 0.0, "strides": (8, 16, 32, 64, 128), "rounded": True, "grid_stride": True}
    head: DenseHead
    if kind == "fcos":
        points = Anchors([[8], [16], [32], [64], [128]], [1.0], **anchors)
        head = FCOSHead(32, K, points, selection, scales=False, weighted=False, score="mean")
    else:
        v2 = kind == "retinanet_v2"
        head = RetinaNetHead(
            32, K, Anchors(OCTAVE, **anchors), selection, norm="gn" if v2 else "none",
            box_loss="giou" if v2 else "l1", divisor="image",
        )  # fmt: skip
    top = ConvTop(32, 512 if kind == "retinanet_v2" else None)
    model = OneStage(
        ResNet(architecture("resnet18"), norm="bn"), FPN([128, 256, 512], 32, top=top), head, num_classes=K,
        pixel_mean=RGB_MEAN, pixel_std=RGB_STD,
    )  # fmt: skip
    weights, unknown = to_ours(theirs.state_dict(), "torchvision")
    assert not unknown
    model.load_state_dict(weights, strict=True)
    return model.double()


def mapped(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return to_ours(gradients, "torchvision")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_torchvisions(kind: str) -> None:
    theirs = theirs_of(kind)
    ours = ours_of(kind, theirs)
    batch = make_batch([3, 5])
    targets = batch.targets._replace(boxes=batch.targets.boxes.double())
    lists = [{"boxes": b[v], "labels": x[v] + 1} for b, x, v in zip(*targets[:3], strict=True)]
    expected = theirs(list(batch.images.double() / 255), lists)
    found = ours(batch._replace(targets=targets))
    names = {"box_class": "classification", "box_reg": "bbox_regression", "centerness": "bbox_ctrness"}
    assert {names[name] for name in found} == set(expected)
    for name, value in found.items():
        assert value > 0
        torch.testing.assert_close(value, expected[names[name]], rtol=1e-5, atol=0)
    torch.stack(list(expected.values())).sum().backward()
    torch.stack(list(found.values())).sum().backward()
    wanted = mapped({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-12, name


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_torchvisions(kind: str) -> None:
    theirs = theirs_of(kind).eval()
    ours = ours_of(kind, theirs).eval()
    batch = make_batch([1, 1])
    with torch.no_grad():
        expected = theirs(list(batch.images.double() / 255))
    found = ours.predict(batch)
    for b, wanted in enumerate(expected):
        valid = found.valid[b]
        assert 10 <= valid.sum() == len(wanted["scores"])
        torch.testing.assert_close(found.scores[b][valid], wanted["scores"], rtol=0, atol=1e-6)
        assert torch.equal(found.labels[b][valid], wanted["labels"] - 1)
        torch.testing.assert_close(found.boxes[b][valid], wanted["boxes"], rtol=0, atol=1e-4)
