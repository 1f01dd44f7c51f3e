"""The kernels step of `gpu.py`: RoIAlign, suppression, matching and pasting, beside a CPU's results and torchvision's times."""

from __future__ import annotations

import torch
from torchvision.ops import batched_nms, roi_align

from gpu_clock import Clock
from resdet.kernels.nms import nms
from resdet.masks import paste_bitmaps
from resdet.models.matching import match
from resdet.models.roi_align import RoIAlign, levels_of


def kernels(c: Clock) -> None:
    """Our kernels: equal to their references on a CPU, and how long they take beside torchvision's."""
    b, (h, w) = 4 if c.cuda else 1, (200, 336) if c.cuda else (25, 42)
    sides = [(-(-h // 2**k), -(-w // 2**k)) for k in range(4)]
    maps = [c.random(b, 256, *side) for side in sides]
    for size, each in ((7, 512), (14, 128)):
        n = b * (each if c.cuda else 16)
        low = torch.rand(n, 2, device=c.device) * torch.tensor([w * 4.0, h * 4.0], device=c.device) * 0.7
        boxes = torch.cat([low, low + 8 + torch.rand(n, 2, device=c.device) ** 2 * 400], 1)
        image = torch.arange(b, device=c.device).repeat_interleave(n // b)
        pool = RoIAlign(size)
        expected = pool.by_gather(
            [m.detach().cpu().float() for m in maps], boxes.cpu(), image.cpu(), levels_of(boxes.cpu())
        )
        for how in ("by_level", "by_gather"):
            run = lambda how=how, p=pool, x=boxes, i=image: getattr(p, how)(maps, x, i, levels_of(x))  # noqa: E731
            wrong = (run().detach().cpu().float() - expected).abs().max()
            with torch.no_grad():
                c.clock(f"RoIAlign {size}, {how}, forward", run)
            grad = torch.randn_like(run())
            c.clock(f"RoIAlign {size}, {how}, with backward", lambda r=run, g=grad: torch.autograd.grad(r(), maps, g))
            c.note(what=f"RoIAlign {size}, {how}, beside a CPU's", more=f"largest difference {float(wrong):.2g}")
            assert wrong < 0.1
        rois, whole = torch.cat([image[:, None].float(), boxes], 1), maps[0].detach().float()
        c.clock(
            f"torchvision's roi_align {size}, one level",
            lambda m=whole, r=rois, s=size: roi_align(m, r, s, 0.25, 2, True),
        )
    n = 2000 if c.cuda else 200
    boxes = torch.rand(20, n, 4, device=c.device) * 500
    boxes[..., 2:] += boxes[..., :2]
    scores = torch.rand(20, n, device=c.device)
    valid = torch.ones(20, n, dtype=torch.bool, device=c.device)
    keep = nms(boxes, scores, None, valid, 0.7, 1000)
    same = torch.equal(keep.cpu(), nms(boxes.cpu(), scores.cpu(), None, valid.cpu(), 0.7, 1000))
    c.note(what="suppression keeps what a CPU keeps", more=str(same))
    assert same
    c.clock(f"suppression of 20 x {n}", lambda: nms(boxes, scores, None, valid, 0.7, 1000))
    groups = torch.arange(20, device=c.device).repeat_interleave(n)
    c.clock(f"torchvision's of 20 x {n}", lambda: batched_nms(boxes.flatten(0, 1), scores.flatten(), groups, 0.7))
    anchors = torch.rand(268_000 if c.cuda else 4000, 4, device=c.device) * 800
    anchors[:, 2:] += anchors[:, :2]
    objects = torch.rand(4, 32, 4, device=c.device) * 400
    objects[..., 2:] += objects[..., :2]
    there = torch.ones(4, 32, dtype=torch.bool, device=c.device)
    c.clock(
        f"matching of {len(anchors)} x 32 in 4 images",
        lambda: match(anchors, objects, there, high=0.7, low=0.3, low_quality=True),
    )
    probs = torch.rand(100, 28, 28, device=c.device)
    placed = boxes[0, :100]
    c.clock("pasting of 100 masks", lambda: paste_bitmaps(probs, placed, c.size))
    wrong_pixels = (
        paste_bitmaps(probs, placed, c.size).cpu() != paste_bitmaps(probs.cpu(), placed.cpu(), c.size)
    ).sum()
    c.note(what="pasted pixels other than a CPU's", more=str(int(wrong_pixels)))
