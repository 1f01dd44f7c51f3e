"""RT-DETR against transformers' RTDetrForObjectDetection and RTDetrV2ForObjectDetection with the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oracle_rtdetr import ours, theirs
from resdet.models.rtdetr import denoising
from resdet.structures import Batch, Targets
from tiny import RTDETR, SIZE, K

LOSSES = {"class": "loss_vfl", "box": "loss_bbox", "giou": "loss_giou"}
SLOTS, OBJECTS = 24, 3  # denoising queries of an image; objects, of which four groups fill these


def batch_of(objects: int) -> tuple[Batch, list[dict[str, Tensor]]]:
    """Two images with as many objects each, in our convention and in transformers'."""
    g = torch.Generator().manual_seed(2)
    images = (torch.rand(2, 3, *SIZE, generator=g) * 255).to(torch.uint8)
    low, extent = (torch.rand(2, objects, 2, generator=g) * 0.5 for _ in range(2))
    labels = torch.randint(K, (2, objects), generator=g)
    boxes = torch.cat([low, low + extent + 0.05], dim=-1) * torch.tensor([SIZE[1], SIZE[0]] * 2)
    targets = Targets(boxes, labels, torch.ones_like(labels, dtype=torch.bool), None)
    centred = torch.cat([low + (extent + 0.05) / 2, extent + 0.05], dim=-1)
    theirs = [{"class_labels": a, "boxes": b} for a, b in zip(labels, centred, strict=True)]
    return Batch(images, torch.tensor([SIZE] * 2), torch.arange(2), targets), theirs


def noise_of_transformers(seed: int) -> Tensor:
    """What its denoising draws after this seed, laid out as ours draws: (2, SLOTS * 10)."""
    torch.manual_seed(seed)
    labels, boxes = torch.zeros(2, SLOTS, dtype=torch.int32), torch.zeros(2, SLOTS, 4)
    change, label = torch.rand_like(labels, dtype=torch.float), torch.randint_like(labels, 0, K)
    signs, parts = torch.randint_like(boxes, 0, 2), torch.rand_like(boxes)
    return torch.cat([change[..., None], (label[..., None] + 0.5) / K, signs.float(), parts], dim=-1).flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "options", "values"),
    [
        (1, {}, {}),
        (1, {"deep": True, "layers": 1}, {"decoder": {**RTDETR["decoder"], "layers": 1}}),
        (2, {"decoder_n_points": 2, "decoder_offset_scale": 0.8, "matcher_class_cost": 1.0, "focal_loss_alpha": 0.5},
         {"decoder": {**RTDETR["decoder"], "points": [2, 2, 2], "offset_scale": 0.8}, "matching": {"class_cost": 1.0},
          "loss": {"alpha": 0.5}}),
        (2, {"decoder_method": "discrete"}, {"decoder": {**RTDETR["decoder"], "sampling": "discrete"}}),
    ],
    ids=["v1", "v1-resnet50-one-layer", "v2", "v2-discrete"],
)  # fmt: skip
def test_logits_boxes_and_losses_are_theirs(version: int, options: dict, values: dict, monkeypatch) -> None:
    oracle = theirs(version, **options)
    model = ours(oracle, **values)
    batch, labels = batch_of(OBJECTS)
    pixels = batch.images.float() / 255
    with torch.no_grad():
        wanted = oracle(pixel_values=pixels)
        memory = model.decoder.memory(model.features(batch))
        chosen = model.queries(memory)
        contents, boxes = model.decoder(chosen.content, chosen.boxes, memory, len(model.decoder.layers))
    assert wanted.pred_boxes.std(1).mean() > 0.02
    torch.testing.assert_close(boxes[-1], wanted.pred_boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.decoder.scores[-1](contents[-1]), wanted.logits, rtol=0, atol=1e-4)

    for module in oracle.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    noise = noise_of_transformers(seed=5)
    monkeypatch.setattr(denoising, "uniform", lambda keys, n: noise)
    torch.manual_seed(5)
    answer = oracle(pixel_values=pixels, labels=labels)
    losses = model(batch)
    for kind, mark in (("", None), ("aux_", "_aux_"), ("denoising_", "_dn_")):
        for name, their_name in LOSSES.items():
            parts = [
                value
                for key, value in answer.loss_dict.items()
                if (key == their_name if mark is None else key.startswith(their_name + mark))
            ]
            torch.testing.assert_close(losses[kind + name], torch.stack(parts).sum(), rtol=1e-4, atol=1e-4)
    assert len(answer.loss_dict) == 3 * (2 * len(model.decoder.layers) + 1)  # all of them were compared

    if (
        len(model.decoder.layers) == 1
    ):  # with more, a layer's loss moves the boxes of the one before here, and not there
        answer.loss.backward()
        torch.stack(list(losses.values())).sum().backward()
        for ours_, theirs_ in (
            (
                model.backbone.layer2[0].conv1,
                oracle.model.backbone.model.encoder.stages[1].layers[0].layer[0].convolution,
            ),
            (
                model.fpn.top_down[0].blocks[1].conv1x1.conv,
                oracle.model.encoder.fpn_blocks[0].bottlenecks[1].conv2.conv,
            ),
            (model.queries.box.layers[0], oracle.model.enc_bbox_head.layers[0]),
            (
                model.decoder.layers[0].cross_attention.offsets,
                oracle.model.decoder.layers[0].encoder_attn.sampling_offsets,
            ),
            (model.denoising.embedding, oracle.model.denoising_class_embed),
        ):
            scale = theirs_.weight.grad.norm()
            assert scale > 0
            assert (ours_.weight.grad - theirs_.weight.grad).norm() < 1e-3 * scale
