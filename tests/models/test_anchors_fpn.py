from __future__ import annotations

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from resdet.models.anchors import Anchors
from resdet.models.fpn import FPN, ConvTop

SIZE = (160, 224)


def maps() -> dict[str, torch.Tensor]:
    shapes = [(40, 56), (20, 28), (10, 14), (5, 7), (3, 4)]
    return {f"p{k}": torch.zeros(1, 1, *shape) for k, shape in enumerate(shapes, 2)}


def test_anchors_are_torchvisions_with_its_numerics() -> None:
    theirs = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    (expected,) = theirs(ImageList(torch.zeros(1, 3, *SIZE), [SIZE]), list(maps().values()))
    found = Anchors(offset=0, rounded=True, grid_stride=True)(maps(), SIZE)
    torch.testing.assert_close(torch.cat(found), expected)
    ours = torch.cat(Anchors(offset=0, rounded=True)(maps(), SIZE))
    assert not torch.equal(ours[-36:], expected[-36:])  # p6's stride is 64 with us, 53 x 56 with torchvision


def test_our_anchors_are_centred_on_their_cells() -> None:
    levels = Anchors()(maps(), SIZE)
    first = levels[0][:3]
    torch.testing.assert_close((first[:, :2] + first[:, 2:]) / 2, torch.full((3, 2), 2.0))
    torch.testing.assert_close((first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1]), torch.full((3,), 1024.0))
    torch.testing.assert_close((first[:, 3] - first[:, 1]) / (first[:, 2] - first[:, 0]), torch.tensor([0.5, 1, 2]))
    assert [len(level) for level in levels] == [40 * 56 * 3, 20 * 28 * 3, 10 * 14 * 3, 5 * 7 * 3, 3 * 4 * 3]


def test_widths_are_torchvisions_to_the_last_bit() -> None:
    sizes, ratios = (24.0, 96.0, 100.0), (0.3, 0.5, 1.0, 2.0)
    theirs = AnchorGenerator().generate_anchors(sizes, ratios)  # rounded to whole pixels
    root = torch.tensor(ratios).sqrt()
    expected = torch.stack([size * (1 / root) for size in sizes])
    ours = Anchors([list(sizes)], ratios, strides=(4,)).shapes0
    assert torch.equal(ours[:, 2] - ours[:, 0], expected.flatten())
    assert torch.equal(ours.round().view(3, 4, 4).transpose(0, 1).flatten(0, 1), theirs)


def test_pyramid_keeps_its_declaration() -> None:
    for norm in ("none", "bn", "gn"):
        fpn = FPN([8, 16, 24, 32], channels=32, norm=norm)
        inputs = {f"c{k}": torch.randn(2, 8 * (k - 1), 160 // 2**k, 224 // 2**k) for k in range(2, 6)}
        outputs = fpn(inputs)
        assert list(outputs) == list(fpn.strides)
        for level, stride in fpn.strides.items():
            assert outputs[level].shape == (2, fpn.channels, -(-160 // stride), -(-224 // stride))
        assert torch.equal(outputs["p6"], outputs["p5"][:, :, ::2, ::2])


def test_a_pyramid_for_dense_heads_goes_from_p3_to_p7() -> None:
    inputs = {f"c{k}": torch.randn(2, 8 * (k - 1), 160 // 2**k, 224 // 2**k) for k in range(2, 6)}
    for top in (ConvTop(32, 32), ConvTop(32), ConvTop(32, relu=False)):
        fpn = FPN([16, 24, 32], channels=32, top=top)
        outputs = fpn(inputs)
        assert list(outputs) == list(fpn.strides) == ["p3", "p4", "p5", "p6", "p7"]
        for level, stride in fpn.strides.items():
            assert outputs[level].shape == (2, 32, -(-160 // stride), -(-224 // stride))
        assert torch.equal(outputs["p6"], top.p6(inputs["c5"] if top.source == "c5" else outputs["p5"]))
        assert torch.equal(outputs["p7"], top.p7(outputs["p6"].relu() if top.relu else outputs["p6"]))
