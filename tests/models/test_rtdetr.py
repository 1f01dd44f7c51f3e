"""RT-DETR: one graph, hostile targets, independence of images from each other; its parts by themselves."""

from __future__ import annotations

import copy
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from resdet.kernels.assign import assign
from resdet.models.layers import BatchNorm2d
from resdet.models.rtdetr.attention import DeformableAttention, Memory
from resdet.models.rtdetr.denoising import Denoising
from resdet.models.rtdetr.losses import Objects
from resdet.structures import Batch, Targets
from tiny import RTDETR, K, light, make_batch, shaken, small_rtdetr

KINDS = ("", "aux_", "denoising_")


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def without_masks(batch: Batch) -> Batch:
    assert batch.targets
    return batch._replace(targets=batch.targets._replace(masks=None, keypoints=None))


@pytest.mark.parametrize("counts", [[0, 0], [0, 4], [30, 3]], ids=["none", "half", "more-than-queries"])
def test_any_number_of_objects_trains(counts: list[int]) -> None:
    """30 objects are more than the 20 queries, and than the 12 that denoising takes."""
    model = small_rtdetr()
    losses = model(without_masks(make_batch(counts, slots=32)))
    total(losses).backward()
    assert set(losses) == {f"{kind}{name}" for kind in KINDS for name in ("class", "box", "giou")}
    assert all(loss.isfinite() for loss in losses.values())
    for name, p in model.named_parameters():
        assert p.grad is not None, name  # every parameter takes part, so that no process waits for another's
        assert p.grad.isfinite().all(), name
    if sum(counts) == 0:
        assert all(losses[f"{kind}{name}"] == 0 for kind in KINDS for name in ("box", "giou"))
        assert losses["class"] > 0
        assert losses["denoising_class"] == 0


def test_an_images_losses_depend_neither_on_its_neighbours_nor_on_padding() -> None:
    model = shaken(small_rtdetr()).eval()
    both = without_masks(make_batch([3, 3]))
    t = both.targets
    alone = [
        Batch(both.images[i : i + 1], both.image_sizes[i : i + 1], both.keys[i : i + 1],
              Targets(*(None if x is None else x[i : i + 1] for x in t)))
        for i in range(2)
    ]  # fmt: skip
    wide = Targets(
        torch.cat([t.boxes, torch.rand(2, 24, 4) * 50], 1), torch.cat([t.labels, torch.full((2, 24), -1)], 1),
        torch.cat([t.valid, torch.zeros(2, 24, dtype=torch.bool)], 1), None,
    )  # fmt: skip
    together, apart, padded = model(both), [model(b) for b in alone], model(both._replace(targets=wide))
    for name, loss in together.items():
        torch.testing.assert_close(loss, (apart[0][name] + apart[1][name]) / 2, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(padded[name], loss, rtol=1e-5, atol=1e-6)
    found = model.predict(both)
    for i in range(2):
        single = model.predict(alone[i])
        torch.testing.assert_close(found.scores[i : i + 1], single.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes[i : i + 1], single.boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_compiled_losses_learn_as_eager_ones(thorough) -> None:
    """By inductor, which takes minutes, with --thorough; else by what comes before it."""
    torch._dynamo.reset()
    model = light(**RTDETR).eval()
    first, second = (without_masks(b) for b in (make_batch([3, 5]), make_batch([0, 8], seed=7)))
    expected = [model(first), model(second)]
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if thorough else "aot_eager")
    losses = compiled(first)
    total(losses).backward()
    assert model.backbone.net.conv.weight.grad.abs().sum() > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = compiled(second)
    for found, wanted in zip((losses, again), expected, strict=True):
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)


def test_a_model_that_only_predicts_says_the_same() -> None:
    model = shaken(small_rtdetr()).eval()
    batch = make_batch([1, 1])
    wanted = model.predict(batch)
    ready = copy.deepcopy(model).train().prepare_for_inference()
    found = ready.predict(batch)
    assert isinstance(ready.fpn.top_down[0].blocks[0].conv1x1, nn.Identity)
    assert sum(isinstance(m, BatchNorm2d) for m in ready.modules()) == 1  # the deep stem's last
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes, wanted.boxes, rtol=1e-4, atol=1e-3)
    assert wanted.valid.all()


def test_fewer_layers_predict_what_a_decoder_of_so_many_would() -> None:
    decoder = {**RTDETR["decoder"], "layers": 3}
    whole, early = (shaken(small_rtdetr(decoder={**decoder, "predict_layers": n})).eval() for n in (None, 2))
    short = small_rtdetr(decoder={**decoder, "layers": 2}).eval()
    short.load_state_dict({k: v for k, v in whole.state_dict().items() if k in short.state_dict()})
    batch = make_batch([1])
    found, wanted, full = (model.predict(batch) for model in (early, short, whole))
    assert torch.equal(found.boxes, wanted.boxes)
    assert not torch.equal(found.boxes, full.boxes)


def test_the_limits_of_a_prediction_can_be_changed() -> None:
    model = shaken(small_rtdetr()).eval()
    batch = make_batch([1])
    every = model.predict(batch)
    assert every.boxes.shape == (1, 20 * K, 4)  # all pairs of a query and a class; the default is 300
    assert (every.scores.diff() <= 0).all()
    limit = float(every.scores[0, 10])
    model.limit(score_threshold=limit, max_detections=15)
    found = model.predict(batch)
    assert found.boxes.shape == (1, 15, 4)
    assert found.valid[0].sum() == 10
    assert torch.equal(found.boxes[0, :10], every.boxes[0, :10])


@pytest.mark.parametrize("points", [(4, 4, 4), (1, 2, 3)])
def test_both_ways_of_sampling_agree_with_gradients(points: tuple[int, ...]) -> None:
    """torch's operator, and the gather that is faster on a CPU; some points are outside the image."""
    torch.manual_seed(0)
    attention = DeformableAttention(8, 2, points, 0.5, "bilinear").double()
    sizes = [(6, 8), (3, 4), (2, 2)]
    value = torch.randn(2, sum(h * w for h, w in sizes), 2, 4, dtype=torch.float64, requires_grad=True)
    places = (torch.rand(2, 5, 2, sum(points), 2, dtype=torch.float64) * 1.6 - 0.3).requires_grad_()
    weights = torch.rand(2, 5, 2, sum(points), dtype=torch.float64, requires_grad=True)
    inputs = value, places, weights
    found = [way(*inputs, sizes) for way in (attention._by_level, attention._by_gather)]
    torch.testing.assert_close(*found)
    for one, other in zip(*(torch.autograd.grad((y**2).sum(), inputs) for y in found), strict=True):
        torch.testing.assert_close(one, other)
    half, exact = value.detach().bfloat16(), places.detach().float()  # as under autocast: only the values are rounded
    coarse = [way(half, exact, weights.detach().float(), sizes) for way in (attention._by_level, attention._by_gather)]
    wanted = attention._by_gather(half.double(), places.detach(), weights.detach(), sizes)
    for result in coarse:
        assert result.dtype == torch.bfloat16
        assert (result - wanted).abs().max() < 2**-8 * wanted.abs().max()
    attention._by_gather(half, exact * torch.nan, weights.detach().float(), sizes)  # a bad step must not raise


def test_discrete_sampling_reads_single_pixels_and_does_not_learn_where() -> None:
    attention = DeformableAttention(4, 1, (1,), 0.5, "discrete")
    assert not any(p.requires_grad for p in attention.offsets.parameters())
    for layer in (attention.value, attention.output):
        nn.init.eye_(layer.weight)
    nn.init.zeros_(attention.offsets.bias)
    memory = Memory(torch.arange(12.0)[None, :, None].expand(1, 12, 4), [(3, 4)])
    boxes = torch.tensor([[[0.3, 0.1, 0.2, 0.2], [0.99, 0.99, 0.1, 0.1]]])
    found = attention(torch.zeros(1, 2, 4), boxes, memory)
    assert found[0, :, 0].tolist() == [1.0, 11.0]  # (0.3 * 4 + 0.5, 0.1 * 3 + 0.5) is column 1, row 0


def test_the_assignment_is_the_best_of_all() -> None:
    cost = torch.rand(2, 3, 5, 4)
    valid = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    index = assign(torch.where(valid[:, None], cost, torch.inf))
    for layer in range(2):
        for image, n in ((0, 4), (1, 2)):
            best = min(sum(cost[layer, image, q, g] for g, q in enumerate(p)) for p in permutations(range(5), n))
            chosen = index[layer, image, :n]
            assert len(set(chosen.tolist())) == n
            torch.testing.assert_close(cost[layer, image, chosen, range(n)].sum(), best)
    assert (index[:, 1, 2:] == -1).all()
    assert (index[:, 2] == -1).all()
    crowded = assign(torch.rand(1, 1, 2, 4))[0, 0]
    assert sorted(crowded.tolist()) == [-1, -1, 0, 1]


def test_denoising_repeats_each_images_objects_in_groups_that_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    boxes = torch.rand(3, 8, 4) * 0.4 + 0.3
    valid = torch.arange(8) < torch.tensor([[3], [5], [0]])
    objects = Objects(boxes, torch.randint(K, (3, 8)), valid, None)
    denoising = Denoising(16, K, 12, label_noise=0.0, box_noise=1.0)
    noisy = denoising(objects, torch.arange(3), queries=7)
    assert [(noisy.owner[b] >= 0).sum().item() for b in range(3)] == [12, 10, 0]  # 4 groups of 3, 2 of 5
    assert noisy.share.sum(1).tolist() == pytest.approx([6, 10, 0])  # one for each object and sign
    for b in (0, 1):
        positive = noisy.owner[b] >= 0
        mine = objects.boxes[b, noisy.owner[b][positive]]
        found = noisy.boxes[b].sigmoid()
        assert ((found[positive] - mine).abs()[:, :2] < 0.5 * mine[:, 2:]).all()  # the centre stays inside its box
        wanted = denoising.embedding(objects.labels[b, noisy.owner[b][positive]])
        assert torch.equal(noisy.content[b][positive], wanted)
    mask = noisy.mask[0]
    group = torch.arange(24) // 6
    assert torch.equal(mask[:24, :24], group[:, None] == group)
    assert not mask[24:, :24].any()
    assert mask[:, 24:].all()
    assert not noisy.mask[2][:, :24].any()  # nobody sees queries that are not used
    assert torch.equal(noisy.boxes, denoising(objects, torch.arange(3), queries=7).boxes)
    assert not torch.equal(noisy.boxes, denoising(objects, torch.arange(3) + 1, queries=7).boxes)


def test_classes_that_were_not_annotated_teach_nothing() -> None:
    model = shaken(small_rtdetr(denoising=None)).eval()
    batch = without_masks(make_batch([0, 0]))
    known = torch.tensor([[True, False, True, True, True], [True] * 5])
    losses = model(batch._replace(targets=batch.targets._replace(known=known)))
    total(losses).backward()
    assert model.decoder.scores[0].weight.grad[1].abs().sum() > 0  # of the second image
    model.zero_grad()
    known[1, 1] = False
    total(model(batch._replace(targets=batch.targets._replace(known=known)))).backward()
    assert model.decoder.scores[0].weight.grad[1].abs().sum() == 0
    assert model.decoder.scores[0].weight.grad[0].abs().sum() > 0
    model.zero_grad()
    annotated = without_masks(make_batch([0, 4]))
    labels = torch.where(annotated.targets.valid, 1, -1)
    total(model(annotated._replace(targets=annotated.targets._replace(labels=labels, known=known)))).backward()
    assert (
        model.decoder.scores[0].weight.grad[1].abs().sum() > 0
    )  # an annotated object teaches, whoever else was left out
