"""resdet's checkpoints: one file that `torch.load(weights_only=True)` opens, written atomically.

A training checkpoint holds "model" (the weights that evaluation uses: averaged ones if `train.ema_decay` is on),
"class_names", "category_ids", "config" (YAML text), "iteration", "metrics", "training" (the state to resume from), and a
"checksum" of all these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resdet.errors import UserError, listed
from resdet.writing import atomic_write


@dataclass
class Checkpoint:
    """The content of a checkpoint; a bare state dict has `model` only."""

    model: dict[str, Tensor]
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int | str | None] = field(default_factory=list)
    config: str = ""
    iteration: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `path` atomically. Raises `UserError`."""
    with atomic_write(path) as temporary:
        torch.save({**vars(checkpoint), "checksum": checksum(vars(checkpoint))}, temporary)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a resdet checkpoint or a bare state dict to the CPU, without running code from the file.

    Raises `UserError`, also if the checksum does not match.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on garbage, an unpickler may raise anything, such as struct.error or IndexError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    if "model" not in content:
        content = {"model": content}
    model = content["model"]
    if not isinstance(model, dict) or not all(isinstance(value, Tensor) for value in model.values()):
        raise UserError(f'{path}: its "model" is not a state dict of tensors')
    known = {name: content[name] for name in Checkpoint.__dataclass_fields__ if name in content}
    if "checksum" in content and content["checksum"] != checksum(known):
        raise UserError(f"{path}: damaged: its content does not match its checksum")
    return Checkpoint(**known)


def checksum(content: Any) -> str:
    """BLAKE2b of nested dicts and lists of tensors and plain values."""
    digest = hashlib.blake2b(digest_size=16)
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(repr([str(key) for key in value]).encode())
            waiting += value.values()
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)} entries".encode())
            waiting += value
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str | Path, hint: str = "") -> None:
    """Load weights that must match the model exactly; raises one `UserError` that lists missing and left-over entries and
    wrong shapes, in the order of the model.

    hint: what would make them fit, for the error.
    """
    own = model.state_dict()
    # Only trainable batch norms count their batches; the number does not matter for prediction.
    given = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked") or k in own}
    problems = []
    for k in own:
        if k not in given:
            problems += [] if k.endswith("num_batches_tracked") else [f"missing: {k}"]
        elif own[k].shape != given[k].shape:
            problems.append(f"{k}: the file has {tuple(given[k].shape)}, the config builds {tuple(own[k].shape)}")
    problems += [f"left over: {k}" for k in given if k not in own]
    if problems:
        title = f"{source}: does not fit the model that the config describes{f' ({hint})' if hint else ''}:"
        raise listed(title, problems, limit=8)
    model.load_state_dict(given, strict=False)
