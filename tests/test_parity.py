"""Our detector against torchvision's with the same weights: detections and losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracle import CLASSES, from_torchvision, torchvision_model, torchvision_numerics
from pictures import textured
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.config import Config
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.models.heads.mask import mask_loss
from resdet.structures import Batch, Targets

NAMES = [f"{kind}rcnn_resnet50_fpn{version}" for kind in ("faster", "mask") for version in ("", "_v2")]
NAMES += ["keypointrcnn_resnet50_fpn"]
MANY = ["maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"]  # of what the others have, too


def require(name: str, thorough: bool, always: list[str] = MANY) -> None:
    if name not in always and not thorough:
        pytest.skip("only with --thorough")


def same_detections(name: str, pictures: list[np.ndarray], tmp_path, size: int) -> None:
    theirs = torchvision_model(name, box_score_thresh=0.1, min_size=size, max_size=size * 5 // 3)
    weights = from_torchvision(theirs.state_dict())
    save_checkpoint(Checkpoint(model=weights), tmp_path / "weights.pt")
    config = Config(model=torchvision_numerics(name))
    config.data.min_size, config.data.max_size = [size], size * 5 // 3
    predictor = Predictor(config, tmp_path / "weights.pt", score_threshold=0.1, device="cpu")
    total = 0
    for picture in pictures:
        with torch.inference_mode():
            (expected,) = theirs([torch.from_numpy(picture).permute(2, 0, 1).float() / 255])
        (found,) = predictor([picture])
        assert len(found) == len(expected["scores"])
        total += len(found)
        np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-4)
        # Two that score the same to seven digits may change places, so each is looked for among all of its class.
        gap = np.abs(found.boxes[:, None] - expected["boxes"].numpy()).max(-1)
        gap = np.where(found.labels[:, None] + 1 == expected["labels"].numpy(), gap, np.inf)
        place = gap.argmin(1)
        assert sorted(place) == list(range(len(found)))
        assert gap.min(1).max() <= 1e-3
        np.testing.assert_allclose(found.scores, expected["scores"].numpy()[place], atol=1e-4)
        if "masks" in expected:
            wanted = expected["masks"][place, 0].numpy() > 0.5
            union = (found.masks | wanted).sum((1, 2))
            shared = (found.masks & wanted).sum((1, 2))
            assert (shared[union > 0] / union[union > 0]).min() > 0.999
            assert (union > 0).sum() > len(found) / 2
        if "keypoints" in expected:
            wanted = torch.cat([expected["keypoints"][..., :2], expected["keypoints_scores"][..., None]], 2)[
                place
            ].numpy()
            apart = np.abs(found.keypoints - wanted).max(-1)
            assert (apart < 0.01).mean() > 0.99  # a tie of two pixels goes either way
    assert total >= 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn"])
def test_detections_equal_torchvisions(name: str, tmp_path) -> None:
    same_detections(name, [textured(160, 224), textured(230, 150, seed=1)], tmp_path, size=160)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_detections_equal_torchvisions_on_real_pictures(name: str, tmp_path, coco_open, thorough) -> None:
    require(name, thorough, MANY[:1])  # keypoints are compared in tests/export/test_torchvision.py
    from resdet.data.images import read_image

    pictures = [read_image(p) for p in sorted((coco_open / "val2017").glob("*.jpg"))[:1]]
    same_detections(name, pictures, tmp_path, size=512)


def random_targets(b: int, g: int, size: tuple[int, int], masks: int | None = 28) -> Targets:
    corner = torch.rand(b, g, 2) * torch.tensor([size[1], size[0]]) * 0.6
    boxes = torch.cat([corner, corner + 12 + torch.rand(b, g, 2) * 80], dim=-1)
    boxes = boxes.minimum(torch.tensor([size[1], size[0], size[1], size[0]]).float())
    valid = torch.ones(b, g, dtype=torch.bool)
    crops = None if masks is None else (torch.rand(b, g, masks, masks) > 0.3).to(torch.uint8)
    return Targets(boxes, torch.randint(CLASSES, (b, g)), valid, crops)


def exhaustive(name: str) -> tuple[torch.nn.Module, Detector]:
    few = (
        4 if name.startswith("keypoint") else 16
    )  # proposals, all of which are sampled; a wide head is slow in float64
    theirs = torchvision_model(
        name, rpn_batch_size_per_image=10**6, box_batch_size_per_image=10**6, rpn_post_nms_top_n_train=few
    )
    config = torchvision_numerics(name)
    config.rpn.post_nms_train = few
    config.rpn.samples = config.box.samples = 10**6
    ours = build_model(config)
    ours.load_state_dict(from_torchvision(theirs.state_dict()), strict=True)
    return theirs.double(), ours.double().eval()


def norms_fixed(model: torch.nn.Module) -> None:
    """torchvision gives losses in training mode only; its batch norms shall not notice."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_torchvisions(name: str, thorough) -> None:
    require(name, thorough)
    theirs, ours = exhaustive(name)
    norms_fixed(theirs)
    size = (64, 96)
    theirs.transform.min_size, theirs.transform.max_size = (size[0],), size[1]
    images = torch.from_numpy(np.stack([textured(*size, seed=s) for s in range(2)])).permute(0, 3, 1, 2)
    targets = random_targets(2, 5, size)
    targets = targets._replace(boxes=targets.boxes.double())
    lists = [{"boxes": targets.boxes[b], "labels": targets.labels[b] + 1} for b in range(2)]
    if name.startswith("mask"):
        for entry in lists:
            entry["masks"] = torch.zeros(5, *size, dtype=torch.uint8)
    if name.startswith("keypoint"):
        places = (
            targets.boxes[:, :, None, :2]
            + torch.rand(2, 5, 17, 2) * (targets.boxes[..., 2:] - targets.boxes[..., :2])[:, :, None]
        )
        seen = torch.randint(3, (2, 5, 17, 1)).double()
        targets = targets._replace(keypoints=torch.cat([places, seen], 3).float())
        for entry, keypoints in zip(lists, targets.keypoints, strict=True):
            entry["keypoints"] = keypoints
    expected = theirs([image.double() / 255 for image in images], lists)
    found = ours(Batch(images, torch.tensor([size, size]), torch.tensor([1, 2]), targets))
    pairs = {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
    pairs |= {"box_class": "loss_classifier", "box_reg": "loss_box_reg"}
    if name.startswith("keypoint"):
        pairs |= {"keypoint": "loss_keypoint"}
    for mine, its in pairs.items():
        torch.testing.assert_close(
            found[mine], expected[its], rtol=1e-4, atol=0, check_dtype=False, msg=lambda m, k=mine: f"{k}: {m}"
        )
        assert found[mine] > 1e-4
    sum(found.values()).backward()
    sum(expected.values()).backward()
    pairs = [(ours.rpn.objectness, theirs.rpn.head.cls_logits)]
    if not name.startswith("mask"):  # their mask targets are others, so everything below the mask head is, too
        pairs += [(ours.backbone.conv1, theirs.backbone.body.conv1)]
    for mine, its in pairs:  # torchvision makes its targets in float32, so single small entries differ by more
        assert (mine.weight.grad - its.weight.grad).norm() < 1e-4 * its.weight.grad.norm()


def test_mask_loss_equals_torchvisions() -> None:
    from torchvision.models.detection.roi_heads import maskrcnn_loss

    rois = torch.tensor([[4.0, 6, 40, 50], [10, 3, 30, 60], [0, 0, 64, 64]], dtype=torch.float64)
    bitmaps = (torch.rand(3, 64, 64) > 0.5).double()
    logits, labels = torch.randn(3, CLASSES + 1, 28, 28, dtype=torch.float64), torch.tensor([3, 1, CLASSES])
    expected = maskrcnn_loss(logits, [rois], [bitmaps], [labels], [torch.arange(3)])
    # The targets that torchvision makes of these bitmaps:
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    wanted = project_masks_on_boxes(bitmaps, rois, torch.arange(3), 28)
    own = logits[torch.arange(3), labels]
    found = mask_loss(own, wanted, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found.mean(), expected, rtol=1e-10, atol=0)
    padded = mask_loss(torch.cat([own, own]), torch.cat([wanted, 1 - wanted]), torch.tensor([True] * 3 + [False] * 3))
    torch.testing.assert_close(padded.mean(), expected, rtol=1e-10, atol=0)
