"""Checkpoint files of any tool -> tensors by name and plain metadata, without running code from the file.

`.pth`, `.pt`, `.bin` are read by torch's weights-only unpickler, `.pkl` (detectron2, Caffe2) by one that allows only NumPy
arrays and plain containers; `.safetensors` contain no code.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resdet.errors import UserError, first_line


class Contents(NamedTuple):
    """weights: name -> tensor on the CPU, nested dicts flattened. meta: the file's other content, plain Python."""

    weights: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def ours(self) -> bool:
        """Whether resdet wrote it, with its config."""
        return "config" in self.meta and ("checksum" in self.meta or "resdet" in str(self.meta.get("format")))


def read_file(path: str | Path) -> Contents:
    """Read a checkpoint file. Raises `UserError` if it is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"{path}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path}: is an HTML page, not weights; the download link was wrong")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    torch_file = zipfile.is_zipfile(path) or b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." in head[:32]  # zip, or torch < 1.6
    content = _read_torch(path) if torch_file else _read_pickle(path)
    return _flattened(content, path)


def require_finite(weights: dict[str, Tensor], path: str | Path) -> None:
    """Raises `UserError` if a tensor contains NaN or infinity; names the first."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(f"{path}: {len(bad)} tensor(s) hold NaN or infinity, the first {bad[0]}")


def _read_torch(path: Path) -> Any:
    """torch.save's format. mmengine's logging objects are not needed and become empty objects."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        inert = [(_Inert, name) for name in unknown if re.match(r"(mmengine|mmcv|mmdet)\.", name)]
        with torch.serialization.safe_globals([*inert, *_NUMPY_GLOBALS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on garbage, an unpickler may raise anything
        raise UserError(f"{path}: not a checkpoint that can be read safely ({first_line(error)})") from None


def _read_pickle(path: Path) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint that can be read safely ({first_line(error)})") from None


def _read_safetensors(path: Path) -> Contents:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return Contents(weights, dict(file.metadata() or {}))
    except Exception as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error)})") from None


def _flattened(content: Any, path: Path) -> Contents:
    """Every tensor by its path in nested dicts ("state_dict.module.conv1.weight"), and the other top-level entries."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    weights: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))  # a malicious dict may contain itself
            waiting += [(f"{prefix}.{k}" if prefix else str(k), v) for k, v in reversed(value.items())]
        elif isinstance(value, Tensor | np.ndarray):
            tensor = _tensor(value)
            if tensor is not None:
                weights[prefix] = tensor
    if not weights:
        raise UserError(f"{path}: holds no dictionary of tensors")
    owners = {name.partition(".")[0] for name in weights}
    return Contents(weights, {str(k): v for k, v in content.items() if str(k) not in owners})


def _tensor(value: Tensor | np.ndarray) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.from_numpy(np.array(value)) if value.dtype.kind in "fiub" else None


class _Inert:
    """Replaces an object whose class is neither needed nor trusted."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as Python 3 uses it to pickle bytes in protocol 2; any other use is refused."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Allows only the globals that pickled arrays and plain containers need."""

    _reconstruct = np.zeros(0).__reduce__()[0]  # its module changed in NumPy 2
    _scalar = np.float64(0).__reduce__()[0]
    allowed = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("collections", "OrderedDict"): dict,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need")
        return self.allowed[module, name]


_NUMPY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "fdbBhilqe?"),
    (_ArrayUnpickler._reconstruct, "numpy.core.multiarray._reconstruct"),
    (_ArrayUnpickler._reconstruct, "numpy._core.multiarray._reconstruct"),
    (_ArrayUnpickler._scalar, "numpy.core.multiarray.scalar"),
    (_ArrayUnpickler._scalar, "numpy._core.multiarray.scalar"),
]
