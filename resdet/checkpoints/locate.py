"""The `weights` of a config -> a file: a path, or a torchvision or timm model, cached or downloaded."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import urllib.error
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision

from resdet.errors import UserError

IMAGENET = {"imagenet": "IMAGENET1K_V1", "imagenet_v1": "IMAGENET1K_V1", "imagenet_v2": "IMAGENET1K_V2"}


def find_weights(weights: str, backbone: str | None = None) -> Path:
    """`weights` -> a file. Raises `UserError` that says what is missing, where it was looked for and how to fix it.

    weights: a path, also of a folder written by transformers; "torchvision:NAME", a detector or classifier of torchvision;
             "hf:OWNER/NAME", a detector on the Hugging Face Hub; "timm:NAME"; with a `backbone` ("resnet50") also
             "imagenet", "imagenet_v1" or "imagenet_v2", torchvision's weights; for a backbone of timm or torchvision, that
             library's.
    """
    if weights in IMAGENET:
        if backbone is None:
            raise UserError(
                f"{weights}: these are weights of a backbone: set model.backbone.weights, not model.weights"
            )
        library, _, bare = backbone.rpartition(":")
        if library == "timm":
            if weights != "imagenet":
                raise UserError(f"model.backbone.weights={weights}: of timm's models write imagenet, or timm:NAME.TAG")
            return _timm(bare)
        return _cached(_torchvision_url(bare, IMAGENET[weights], weights), "model.backbone.weights")
    kind, _, name = weights.partition(":")
    if kind == "torchvision":
        key = "model.backbone.weights" if backbone else "model.weights"
        return _cached(_torchvision_url(name, "DEFAULT", weights), key)
    if kind == "timm":
        return _timm(name)
    if kind == "hf":
        return _from_hub(name)
    path = Path(weights)
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if not path.is_file():
        names = f"{', '.join(IMAGENET)}, timm:NAME, none" if backbone else "torchvision:NAME, hf:OWNER/NAME"
        raise UserError(f"{path}: no such weights file (a file, {names})")
    return path


def cache_folder() -> Path:
    """Where torch.hub and torchvision keep what they download."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _torchvision_url(name: str, version: str, asked: str) -> str:
    known = torchvision.models.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{asked}: torchvision has no model {name!r}{hint}")
    versions = torchvision.models.get_model_weights(name)
    if version not in versions.__members__:
        raise UserError(f"{asked}: torchvision has {', '.join(versions.__members__)} for {name}, no {version}")
    url: str = versions[version].url
    return url


def _cached(url: str, key: str) -> Path:
    """torch.hub's cached file of that URL, downloaded if necessary; it must match the hash in its name.

    key: the config key that named the weights, for errors.
    """
    path = cache_folder() / url.rpartition("/")[2]
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    wanted = digest[1] if digest else ""
    if path.is_file():
        actual = _sha256(path)
        if not actual.startswith(wanted):
            raise UserError(
                f"{path}: damaged: its SHA-256 should begin with {wanted}, but is {actual[:8]}…: "
                f"delete it and start again, or download {url}"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=wanted)  # to another name, then renamed
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the weights were not found and could not be downloaded ({error}).\n"
            f"  looked for:   {path}\n"
            f"  to fix:       download {url} elsewhere and put it there"
            f"{'' if 'TORCH_HOME' in os.environ else ' (or set TORCH_HOME)'},\n"
            f"                or give a file: {key}=/path/to/{path.name},\n"
            f"                or train from scratch: "
            f"{'model.backbone.weights=none' if 'backbone' in key else 'another config, with model.backbone.weights=none'}"
        ) from None
    return path


def _timm(name: str) -> Path:
    """A file placed manually in torch.hub's cache, or else timm's file on the Hugging Face Hub."""
    manual = cache_folder() / f"{name}.safetensors"
    if manual.is_file():
        return manual
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} needs the extra: pip install 'resdet[timm]', or the file {manual}") from None
    try:
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        config = None
    if config is None or not config.hf_hub_id:
        near = difflib.get_close_matches(name, timm.list_pretrained(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"timm:{name}: timm has no such pretrained model{hint}")
    try:
        return _hub_file(config.hf_hub_id, "model.safetensors")
    except Exception as error:  # the type depends on the versions of three libraries
        raise UserError(
            f"timm:{name} was not found and could not be downloaded ({type(error).__name__}).\n"
            f"  looked for:   {manual}, and Hugging Face's cache (HF_HOME)\n"
            f"  to fix:       download https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors and save it "
            "under that name"
        ) from None


def _from_hub(repository: str) -> Path:
    """A detector on the Hugging Face Hub, cached or downloaded, with its config files in the same folder."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    if find_spec("huggingface_hub") is None:
        raise UserError(f"hf:{repository} needs Hugging Face's client: pip install huggingface_hub")
    try:
        return [_hub_file(repository, name) for name in names][-1]
    except Exception as error:  # the type depends on the versions of two libraries
        raise UserError(
            f"hf:{repository} was not found and could not be downloaded ({type(error).__name__}).\n"
            f"  looked for:   Hugging Face's cache (HF_HOME)\n"
            f"  to fix:       download {', '.join(names)} from https://huggingface.co/{repository} into a folder, and give "
            "its path instead"
        ) from None


def _hub_file(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)  # no warnings about retries
    try:
        return Path(hf_hub_download(repository, name))
    finally:
        log.setLevel(level)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
