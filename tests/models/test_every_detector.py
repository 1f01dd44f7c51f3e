"""What every detector keeps to: losses of one graph that add up over shares of a batch, and a prediction that exports."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resdet.export.program import Prediction, export_prediction
from resdet.models.detector import Detector, LossSums
from tiny import C4, DENSE, RTDETR, SEMANTIC, SEMANTIC_HEAD, dense, light, make_batch, small

POINT_REND = {"width": 16, "point_width": 8, "points": 12, "steps": 3, "subdivision_points": 49}
DETECTORS = {
    "mask-keypoint": {},
    "cascade": {"cascade": {}, "keypoint": None},
    "cascade-resampled": {"cascade": {"resample": True}, "mask": None},
    "point-rend": {"mask": {"point_rend": POINT_REND}, "keypoint": None},
    "c4": C4,
    "panoptic": {"semantic": SEMANTIC, "keypoint": None},
    "semantic": {"kind": "semantic", "head": SEMANTIC_HEAD},
    "rpn": {"box": None, "mask": None, "keypoint": None},
    **{kind: dense(kind) for kind in DENSE},
    "rtdetr": RTDETR,
}
EXPORTED = {
    "all-heads": {"cascade": {}, "mask": {"point_rend": POINT_REND}, "semantic": SEMANTIC},  # and keypoints
    **{n: m for n, m in DETECTORS.items() if n != "cascade-resampled"},  # it predicts as "cascade" does
}
# Much as others of these; exported with `pytest --thorough` only.
SIMILAR = ("mask-keypoint", "cascade", "point-rend", "panoptic", "c4", "rpn", "atss", "gfl")


def built(model: dict) -> Detector:
    """On the least backbone, but where the heads take a part of the ResNet."""
    return small(**model) if model is C4 else light(**model)


@pytest.mark.slow
@pytest.mark.parametrize("model", DETECTORS.values(), ids=DETECTORS)
def test_losses_are_one_graph_that_other_objects_do_not_recompile(model: dict, thorough) -> None:
    if model is C4 and not thorough:
        pytest.skip("only with --thorough")
    torch._dynamo.reset()
    detector = built(model)
    first, second = make_batch([3, 5]), make_batch([0, 8], seed=7)
    expected = [detector(first), detector(second)]
    compiled = torch.compile(detector, fullgraph=True, backend="eager")
    found = [compiled(first)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found.append(compiled(second))
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=pytest.mark.slow if name == "c4" else []) for name, model in DETECTORS.items()],
    ids=DETECTORS,
)
def test_shares_of_a_batch_add_up_to_its_losses_and_gradients(model: dict) -> None:
    """Sums and counts of two processes with an image each are those of one with both; no norm sees another image."""
    detector = small(**model, backbone={"name": "resnet18", "weights": "none", "norm": "gn"}).eval()
    whole = make_batch([3, 5])
    shares = [type(whole)(whole.images[k : k + 1], whole.image_sizes[k : k + 1], whole.keys[k : k + 1],
                          type(whole.targets)(*(None if f is None else f[k : k + 1] for f in whole.targets)))
              for k in range(2)]  # fmt: skip
    forward = LossSums(detector)
    parts, together = [forward(share) for share in shares], forward(whole)
    weights = [p for p in detector.parameters() if p.requires_grad]
    counts = {name: loss.count for name, loss in together.items()}

    def gradients(losses: list[dict]) -> tuple[Tensor, ...]:
        total = sum(loss.sum / counts[name] for part in losses for name, loss in part.items())
        return torch.autograd.grad(total, weights, allow_unused=True)

    for name, loss in together.items():
        torch.testing.assert_close(sum(part[name].sum for part in parts), loss.sum, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sum(part[name].count for part in parts), loss.count, rtol=1e-6, atol=0)
    norms = 0
    for ours, wanted in zip(gradients(parts), gradients([together]), strict=True):
        if wanted is not None and wanted.norm() > 1e-5:
            assert (ours - wanted).norm() < 1e-4 * wanted.norm()
            norms += 1
    assert norms > 0.8 * len(weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_program_predicts_the_same_for_other_batches_and_sizes(name: str, thorough) -> None:
    if name in SIMILAR and not thorough:
        pytest.skip("only with --thorough")
    detector = built(EXPORTED[name]).eval()
    detector.limit(score_threshold=0.0)
    program = export_prediction(detector).module()
    least = max(96, max(detector.fpn.strides.values()) + 32)
    for counts, size in (([1], (least, least)), ([1, 1, 1], (least + 32, least + 128))):
        batch = make_batch(counts, size=size)
        sizes = batch.image_sizes - torch.tensor([5, 0])
        with torch.no_grad():
            expected, found = Prediction(detector)(batch.images, sizes), program(batch.images, sizes)
        if detector.outputs != {"semantic"}:
            assert expected[3].sum() > 5 * len(counts)
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-3)
