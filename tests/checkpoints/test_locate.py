"""Names of weights -> whole files on disk."""

from __future__ import annotations

import hashlib
import urllib.error

import pytest
import torch
import torchvision

import resdet.checkpoints.locate as locate
from resdet.checkpoints.locate import find_weights
from resdet.errors import UserError
from resdet.models.backbones.resnet import RESNETS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder in the place of torchvision's server: `server(name, content) -> the name with its hash`."""
    folder = tmp_path / "server"
    folder.mkdir()
    urls: dict[str, str] = {}
    monkeypatch.setattr(locate, "_torchvision_url", lambda name, version, asked: urls[name])

    def publish(name: str, content: bytes, digest: str | None = None) -> str:
        file = folder / f"{name}-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth"
        file.write_bytes(content)
        urls[name] = file.as_uri()
        return file.name

    return publish


def no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route")


@pytest.mark.parametrize("name", RESNETS)
def test_imagenet_is_torchvisions_first_weights(name: str) -> None:
    url = locate._torchvision_url(name, locate.IMAGENET["imagenet"], "imagenet")
    assert url == torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    assert locate.IMAGENET["imagenet_v2"] == "IMAGENET1K_V2"


def test_a_download_lands_in_the_cache_under_its_name_and_is_used_again(hub, server, monkeypatch) -> None:
    name = server("resnet18", b"weights")
    path = find_weights("imagenet", "resnet18")
    assert (path, path.read_bytes()) == (hub / name, b"weights")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    assert find_weights("imagenet_v1", "resnet18") == path


def test_a_download_with_another_hash_leaves_no_file(hub, server) -> None:
    server("resnet18", b"weights", digest="00000000")
    with pytest.raises(UserError, match="invalid hash value"):
        find_weights("imagenet", "resnet18")
    assert list(hub.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_named(hub, server) -> None:
    name = server("maskrcnn", b"weights")
    hub.mkdir(parents=True)
    (hub / name).write_bytes(b"weig")
    with pytest.raises(UserError, match=rf"{name}: damaged: its SHA-256 should begin with .* delete it"):
        find_weights("torchvision:maskrcnn")


def test_without_network_the_error_says_file_folder_and_ways_out(hub, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as caught:
        find_weights("imagenet", "resnet50")
    text = str(caught.value)
    assert str(hub / "resnet50-0676ba61.pth") in text
    assert "model.backbone.weights=none" in text
    with pytest.raises(UserError, match=r"maskrcnn_resnet50_fpn_v2_coco-73cbd019\.pth"):
        find_weights("torchvision:maskrcnn_resnet50_fpn_v2")
    with pytest.raises(UserError, match=r"resnet50-11ad3fa6\.pth"):
        find_weights("imagenet_v2", "resnet50")


def test_names_that_nobody_has() -> None:
    with pytest.raises(UserError, match=r"did you mean .*maskrcnn_resnet50_fpn"):
        find_weights("torchvision:maskrcn_resnet50_fpn")
    with pytest.raises(UserError, match=r"has IMAGENET1K_V1, DEFAULT for resnet18, no IMAGENET1K_V2"):
        find_weights("imagenet_v2", "resnet18")
    with pytest.raises(UserError, match=r"nothing\.pth: no such weights file \(a file, imagenet"):
        find_weights("nothing.pth", "resnet18")
    with pytest.raises(UserError, match=r"set model\.backbone\.weights, not model\.weights"):
        find_weights("imagenet")


def test_timms_names(hub, monkeypatch) -> None:
    pytest.importorskip("timm")
    import huggingface_hub

    with pytest.raises(UserError, match=r"timm has no such pretrained model; did you mean .*resnet50"):
        find_weights("timm:resnet50.a1_in1", "resnet50")
    asked = []

    def offline(*arguments: str) -> None:
        asked.append(arguments)
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"resnet50\.a1_in1k\.safetensors, and Hugging Face's cache") as caught:
        find_weights("timm:resnet50.a1_in1k", "resnet50")
    assert asked == [("timm/resnet50.a1_in1k", "model.safetensors")]
    assert "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors" in str(caught.value)
    hub.mkdir(parents=True)
    (hub / "resnet50.a1_in1k.safetensors").write_bytes(b"x")
    assert find_weights("timm:resnet50.a1_in1k", "resnet50") == hub / "resnet50.a1_in1k.safetensors"
