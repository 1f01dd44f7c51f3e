"""The classifier against torchvision's networks and torch's loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision

import tiny
from resdet.checkpoints.classifier import open_classifier
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.models.build import build_model
from resdet.structures import Batch, Targets

K = 7


def batch_of(shares: torch.Tensor, size: int = 64) -> Batch:
    g = torch.Generator().manual_seed(0)
    images = (torch.rand(len(shares), 3, size, size, generator=g) * 255).to(torch.uint8)
    one = torch.zeros(len(shares), 1)
    targets = Targets(one[..., None].expand(-1, -1, 4), one.long(), one.bool(), None, shares=shares)
    return Batch(images, torch.tensor([[size, size]] * len(shares)), torch.arange(len(shares)), targets)


def config_of(name: str = "resnet18", **model: object):
    values = {"kind": "classifier", "num_classes": K, "backbone": {"name": name, "weights": "none"}, **model}
    return parse_config({"model": values}).model


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_logits_equal_torchvisions(name, tmp_path) -> None:
    theirs = tiny.shaken(torchvision.models.get_model(name, num_classes=K)).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    opened = open_classifier(tmp_path / "theirs.pth", config_of(name))
    batch = batch_of(torch.eye(K)[:2])
    with torch.no_grad():
        expected = theirs(opened.model.normalize(batch))
        found = opened.model.logits(batch)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert opened.class_names == []
    with pytest.raises(
        UserError, match=rf"holds a {name}, but the config has resnet101: set model.backbone.name={name}"
    ):
        open_classifier(tmp_path / "theirs.pth", config_of("resnet101"))
    del theirs.fc
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"without its classifying layer \(fc.weight and fc.bias\)"):
        open_classifier(tmp_path / "bare.pth", config_of(name))
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="and of timm:convnext_atto no others are evaluated"):
        open_classifier(tmp_path / "other.pth", config_of("timm:convnext_atto"))


def test_the_loss_is_torchs_cross_entropy_with_smoothing_and_mixed_classes() -> None:
    shares = torch.softmax(torch.randn(4, K), dim=1)
    for smoothing in (0.0, 0.1):
        model = build_model(config_of(label_smoothing=smoothing))
        batch = batch_of(shares)
        expected = F.cross_entropy(model.eval().logits(batch), shares, label_smoothing=smoothing)
        assert model(batch)["class"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_predictions_are_the_most_probable_classes_in_the_whole_picture() -> None:
    model = build_model(config_of()).eval()
    batch = batch_of(torch.eye(K)[:3])
    found = model.predict(batch)
    probabilities = model.logits(batch).softmax(1)
    assert found.labels.tolist() == probabilities.argsort(1, descending=True)[:, :5].tolist()
    assert torch.allclose(found.scores, probabilities.gather(1, found.labels))
    assert found.boxes.unique(dim=1).tolist() == [[[0, 0, 64, 64]]] * 3
    few = build_model(config_of(num_classes=2)).eval().predict(batch)
    assert few.labels.shape == (3, 2)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_parameters_are_as_many_as_torchvision_publishes(depth) -> None:
    with torch.device("meta"):
        model = build_model(config_of(f"resnet{depth}", num_classes=1000))
    meta = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1.meta
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
