"""The whole detector: one graph, hostile targets, independence of images from each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from resdet.models.anchors import Anchors
from resdet.models.detector import Detector
from resdet.models.heads.rpn import RPN
from resdet.models.layers import BatchNorm2d, FrozenBatchNorm2d
from resdet.structures import Batch, Detections, Targets
from tiny import SIZE, light, make_batch, small


def backward(losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()


@pytest.mark.slow
def test_compiled_losses_learn_as_eager_ones() -> None:
    """By inductor; that every detector is one graph, `test_every_detector` shows."""
    torch._dynamo.reset()
    model = light(box=None, mask=None, keypoint=None)
    first, second = make_batch([3, 5]), make_batch([0, 8], seed=7)
    expected = [model(first), model(second)]
    compiled = torch.compile(model, fullgraph=True)
    losses = compiled(first)
    backward(losses)
    assert model.backbone.net.conv.weight.grad.abs().sum() > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = compiled(second)
        backward(again)
    for found, wanted in zip((losses, again), expected, strict=True):
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_prediction_is_the_eager_one() -> None:
    torch._dynamo.reset()
    model = small(box={"width": 32, "samples": 32, "soft_sigma": 0.5}).eval()
    model.rpn.rank = "sigmoid"
    model.heads["box"].selection.score_threshold = 0.0
    batch = make_batch([1, 1])
    expected = model.predict(batch)
    found = torch.compile(model.predict, fullgraph=True, backend="aot_eager")(batch)
    assert expected.valid.all()
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.mask_probs, expected.mask_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "dtype"),
    [
        ({"name": "resnet18", "norm": "bn"}, torch.bfloat16),
        ({"name": "resnet50", "norm": "frozen_bn", "weights": "imagenet"}, None),
        ({"name": "resnet50", "norm": "frozen_bn", "weights": "imagenet"}, torch.bfloat16),
        ({"name": "resnet50", "norm": "gn"}, torch.bfloat16),
        # Only here two norms are folded that were not before, which bfloat16 would round otherwise.
        ({"name": "resnet18", "norm": "bn", "deep_stem": True, "avg_down": True}, None),
    ],
)
def test_a_model_that_only_predicts_says_the_same(backbone: dict, dtype: torch.dtype | None) -> None:
    box = {"width": 32, "samples": 32, "trunk": "4conv1fc", "norm": "bn", "score_threshold": 0.0}
    model = small(backbone={"weights": "none", **backbone}, box=box).eval()
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d | BatchNorm2d)]
    for norm in norms:
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1)
        nn.init.uniform_(norm.bias, -0.1, 0.1)
    batch = make_batch([1, 1])

    def predicted(model: Detector) -> Detections:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return model.predict(batch)

    wanted, ready = predicted(model), copy.deepcopy(model).train().prepare_for_inference(dtype)
    left = [m for m in ready.modules() if isinstance(m, FrozenBatchNorm2d | BatchNorm2d)]
    assert norms
    assert len(left) == ("deep_stem" in backbone)  # of three convolutions the last, whose norm stands elsewhere
    assert ready.backbone.layer4[0].conv1.weight.dtype == ready.rpn.deltas.bias.dtype == (dtype or torch.float32)
    assert {p.dtype for p in ready.heads.parameters()} == {torch.float32}
    for found, one in zip(predicted(ready), wanted, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)
        else:
            assert found == one
    assert wanted.valid.all()


def test_norms_that_are_not_to_be_folded_stay() -> None:
    model = small(fold_norm=False)
    count = sum(isinstance(m, BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, BatchNorm2d) for m in model.prepare_for_inference().modules()) == count > 0


def test_a_fixed_divisor_counts_the_anchors_that_could_have_been_sampled() -> None:
    model = small()
    batch = make_batch([2, 0])
    sampled = model(batch)
    features = model.features(batch)
    anchors = torch.cat(model.rpn(features, SIZE).anchors)
    model.rpn.samples = 2 * len(anchors)  # more than there are: fewer get sampled than that
    exhaustive = model.rpn.loss(features, anchors, batch.targets, batch.keys)
    model.rpn.fixed_divisor = True
    fixed = model.rpn.loss(features, anchors, batch.targets, batch.keys)
    for name in ("rpn_objectness", "rpn_box"):
        assert fixed[name].mean() < 0.75 * exhaustive[name].mean()
        assert sampled[name].isfinite()


def test_ranking_by_sigmoid_gives_the_same_where_nothing_saturates() -> None:
    model = small().eval()
    model.heads["box"].selection.score_threshold = 0.0
    batch = make_batch([1, 1])
    expected = model.predict(batch)
    model.rpn.rank = "sigmoid"
    found = model.predict(batch)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("counts", [[0, 0], [0, 4], [4, 0]])
@pytest.mark.parametrize("mask", [True, False])
def test_images_without_objects_train(counts: list[int], mask: bool) -> None:
    model = small(mask)
    losses = model(make_batch(counts))
    backward(losses)
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_reg"} | (
        {"mask", "keypoint"} if mask else set()
    )
    assert all(loss.isfinite() for loss in losses.values())
    for name, p in model.named_parameters():
        assert p.grad is not None, name  # every parameter takes part, so that no process waits for another's
        assert p.grad.isfinite().all(), name
    if sum(counts) == 0:
        assert losses["box_reg"] == losses["rpn_box"] == 0


def test_one_pixel_boxes_and_unknown_masks_train() -> None:
    batch = make_batch([3])
    boxes = batch.targets.boxes.clone()
    boxes[0, 0] = torch.tensor([5.0, 5, 6, 6])
    masks = batch.targets.masks.clone()
    masks[:] = 255
    model = small()
    losses = model(batch._replace(targets=batch.targets._replace(boxes=boxes, masks=masks)))
    backward(losses)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["mask"] == 0  # no object has a mask to learn from
    assert losses["box_reg"] > 0


def test_five_hundred_objects() -> None:
    losses = small()(make_batch([500], slots=512))
    backward(losses)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


@pytest.mark.slow
def test_long_pictures() -> None:
    batch = make_batch([3], size=(3008, 224))
    model = small()
    assert all(loss.isfinite() for loss in model(batch).values())
    assert model.eval().predict(batch).boxes.shape == (1, 100, 4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["gn", "none", "bn"])
def test_an_images_losses_do_not_depend_on_its_neighbours(norm: str) -> None:
    model = small(box={"trunk": "4conv1fc", "width": 32, "samples": 32, "norm": norm}, mask={"norm": norm}).eval()
    both = make_batch([3, 5])
    alone = [
        Batch(both.images[i : i + 1], both.image_sizes[i : i + 1], both.keys[i : i + 1],
              Targets(*(None if t is None else t[i : i + 1] for t in both.targets)))
        for i in range(2)
    ]  # fmt: skip
    together, apart = model(both), [model(b) for b in alone]
    for name in ("rpn_objectness", "rpn_box", "box_class", "box_reg"):  # all divided by equal counts here
        torch.testing.assert_close(together[name], (apart[0][name] + apart[1][name]) / 2, rtol=1e-4, atol=1e-6)
    model.heads["box"].selection.score_threshold = 0.0
    found = model.predict(both)
    for i in range(2):
        single = model.predict(alone[i])
        torch.testing.assert_close(found.scores[i : i + 1], single.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes[i : i + 1], single.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.mask_probs[i : i + 1], single.mask_probs, rtol=1e-3, atol=1e-4)


def test_padding_of_objects_and_its_content_change_nothing() -> None:
    model = small().eval()
    batch = make_batch([3, 5])
    t = batch.targets
    wide = Targets(
        torch.cat([t.boxes, torch.rand(2, 24, 4) * 50], 1),
        torch.cat([t.labels, torch.full((2, 24), -1)], 1),
        torch.cat([t.valid, torch.zeros(2, 24, dtype=torch.bool)], 1),
        torch.cat([t.masks, torch.ones(2, 24, 28, 28, dtype=torch.uint8)], 1),
    )
    # The RPN alone: the RoI sampler draws by position among proposals and objects, so its draw may differ.
    features = model.features(batch)
    anchors = torch.cat(model.rpn(features, SIZE).anchors)
    narrow_losses, wide_losses = (model.rpn.loss(features, anchors, targets, batch.keys) for targets in (t, wide))
    for name, loss in narrow_losses.items():
        torch.testing.assert_close(wide_losses[name].mean(), loss.mean())


def test_evaluation_mode_losses_leave_batch_norm_alone() -> None:
    model = small().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(make_batch([2, 3]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.train()(make_batch([2, 3]))
    assert not torch.equal(model.state_dict()["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])


def test_padded_rois_do_not_enter_the_heads_statistics() -> None:
    """With few proposals most sampled RoIs are padding; what they pool must not matter."""
    options = {
        "box": {"trunk": "4conv1fc", "width": 32, "samples": 512, "norm": "bn"},
        "mask": {"norm": "bn"},
        "keypoint": None,
    }
    stats = []
    for slots in (8, 32):
        model = small(**options).train()
        batch = make_batch([3, 2], slots=8)
        if slots == 32:
            t = batch.targets
            batch = batch._replace(targets=Targets(
                torch.cat([t.boxes, torch.zeros(2, 24, 4)], 1), torch.cat([t.labels, torch.full((2, 24), -1)], 1),
                torch.cat([t.valid, torch.zeros(2, 24, dtype=torch.bool)], 1),
                torch.cat([t.masks, torch.zeros(2, 24, 28, 28, dtype=torch.uint8)], 1),
            ))  # fmt: skip
        model(batch)
        stats.append(model.heads["box"].trunk.convs[0].norm.running_mean.clone())
    # samples (512) exceed the candidates, so both draw every candidate: only the padding differs.
    torch.testing.assert_close(stats[0], stats[1], rtol=1e-4, atol=1e-6)


def test_normalisation_pads_with_zero_and_turns_channels() -> None:
    model = small()
    images = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    images[:, 0] = 10
    batch = Batch(images, torch.tensor([[20, 30]]), torch.tensor([0]), None)
    x = model.normalize(batch)
    assert x[0, :, 20:].abs().sum() == x[0, :, :, 30:].abs().sum() == 0
    torch.testing.assert_close(x[0, 0, 0, 0], torch.tensor((10 - 123.675) / 58.395))
    bgr = small(input={"bgr": True, "mean": [103.53, 116.28, 123.675], "std": [1, 1, 1]})
    torch.testing.assert_close(bgr.normalize(batch)[0, 2, 0, 0], torch.tensor(10 - 123.675))


def test_bfloat16_stays_close() -> None:
    model, batch = small().eval(), make_batch([3, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch)
    exact = model(batch)
    for name in ("rpn_objectness", "box_class", "mask"):
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], exact[name], rtol=0.05, atol=0.02)


def test_faster_rcnn_is_mask_rcnn_without_its_mask_head() -> None:
    mask, faster = small(True, keypoint=None), small(False)
    weights = {k: v for k, v in mask.state_dict().items() if not k.startswith("heads.mask.")}
    faster.load_state_dict(weights, strict=True)
    assert isinstance(faster.heads, nn.ModuleDict)
    found, wanted = faster(make_batch([3])), mask(make_batch([3]))
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert faster.eval().predict(make_batch([3])).mask_probs is None


@pytest.mark.parametrize("num_convs", [1, 2])
def test_the_rpn_says_the_same_of_single_anchors_and_learns_the_same(num_convs: int) -> None:
    """`at` looks at the pixels around a few anchors; `forward` computes whole maps. Borders and corners included."""
    torch.manual_seed(1)
    rpn = RPN(8, Anchors(((32,), (64,)), (0.5, 1.0, 2.0), strides=(4, 8)), num_convs=num_convs).double()
    for parameter in rpn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = {
        "p2": torch.randn(2, 8, 6, 9, dtype=torch.float64, requires_grad=True),
        "p3": torch.randn(2, 8, 3, 5, dtype=torch.float64, requires_grad=True),
    }
    scores = rpn(features, (24, 36))
    every = torch.arange(3 * (6 * 9 + 3 * 5)).expand(2, -1)
    whole = torch.cat(scores.logits, 1), torch.cat(scores.deltas, 1)
    single = rpn.at(features, every)
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    inputs = [*rpn.parameters(), *features.values()]
    gradients = [torch.autograd.grad((x**2).sum() + (y**3).sum(), inputs) for x, y in (whole, single)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    few = every[:, [0, 200, 17]]
    torch.testing.assert_close(rpn.at(features, few)[0], whole[0][:, [0, 200, 17]])
