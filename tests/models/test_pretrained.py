from __future__ import annotations

import urllib.error

import pytest
import torch
import torchvision

from resdet.config import parse_config
from resdet.errors import UserError
from resdet.models.build import build_backbone
from resdet.models.pretrained import FILES, find_weights, load_backbone
from resdet.models.resnet import RESNETS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_file_names_are_torchvisions() -> None:
    assert FILES.keys() == RESNETS.keys()
    for name, file in FILES.items():
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        assert weights.url.endswith("/" + file)


def test_weights_in_the_cache_are_used_without_a_network(hub, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    hub.mkdir(parents=True)
    theirs = torchvision.models.resnet18(weights=None)
    torch.save(theirs.state_dict(), hub / FILES["resnet18"])
    path = find_weights("resnet18", "imagenet")
    backbone = build_backbone(parse_config({"model": {"backbone": {"name": "resnet18"}}}).model)
    load_backbone(backbone, path)
    assert torch.equal(backbone.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert not backbone.conv1.weight.requires_grad


def test_without_network_the_error_says_file_folder_and_ways_out(hub, monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(UserError) as caught:
        find_weights("resnet50", "imagenet")
    text = str(caught.value)
    assert str(hub / "resnet50-0676ba61.pth") in text
    assert "model.backbone.weights=none" in text


def test_a_wrong_backbone_is_refused(tmp_path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    backbone = build_backbone(parse_config({"model": {"backbone": {"name": "resnet34"}}}).model)
    with pytest.raises(UserError, match=r"r18\.pth: does not fit"):
        load_backbone(backbone, find_weights("resnet34", str(tmp_path / "r18.pth")))
    with pytest.raises(UserError, match=r"nothing\.pth: no such file"):
        find_weights("resnet34", "nothing.pth")
