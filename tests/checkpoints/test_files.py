"""Containers: what is read, and that nothing in a file ever runs."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resdet.checkpoints.files import read_file, require_finite
from resdet.errors import UserError


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "os.system": lambda: Calls(os.system, "touch executed"),
    "subprocess": lambda: Calls(subprocess.run, ["touch", "executed"]),
    "eval": lambda: Calls(eval, "open('executed', 'w')"),
    "open": lambda: Calls(open, "executed", "w"),
    "getattr": lambda: Calls(getattr, "", "join"),
    "nested reduce": lambda: {"a": [Calls(dict, Calls(os.system, "touch executed"))]},
    "numpy gadget": lambda: Calls(np.load, "x.npy"),
    "numpy f2py": lambda: Calls(np.testing.assert_equal, 1, 1),
    "torch.load": lambda: Calls(torch.load, "x.pt"),
    "torch.hub": lambda: Calls(torch.hub.load, "a", "b"),
    "codecs": lambda: Calls(__import__("_codecs").encode, "abc", "rot13"),
    "partial": lambda: Calls(__import__("functools").partial, os.system, "touch executed"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("container", ["pkl", "pth"])
def test_hostile_files_run_nothing(name: str, container: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if (name, container) == ("codecs", "pth"):
        pytest.skip("torch's own list admits codecs, which change bytes and do no more")
    path = tmp_path / f"evil.{container}"
    content = {"model": {"w": np.zeros(2, np.float32), "x": HOSTILE[name]()}}
    if container == "pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"evil\.\w+: not a checkpoint that can be read safely") as caught:
        read_file(path)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_pickles_are_read(protocol: int, tmp_path) -> None:
    arrays = collections.OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array([1, 2]), c=np.float64(3)
    )
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "n": np.float32(1)}, protocol=protocol))
    weights, meta = read_file(path)
    assert weights["model.a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights["model.b"].dtype == torch.int64
    assert meta["__author__"] == "x"


def test_torch_files_old_and_new_and_safetensors_are_read(tmp_path) -> None:
    state = {"w": torch.arange(3.0)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "x.safetensors", metadata={"note": "hello"})
    for name in ("new.pth", "old.pth", "x.safetensors"):
        weights, meta = read_file(tmp_path / name)
        assert torch.equal(weights["state_dict.w" if name == "new.pth" else "w"], state["w"])
        assert meta == {"new.pth": {"epoch": 3}, "old.pth": {}, "x.safetensors": {"note": "hello"}}[name]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "the file is empty"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
        ("a.pth", b"<!DOCTYPE html><html>", "HTML page"),
        ("a.pth", b"PK\x03\x04 torn", "read safely"),
        ("a.pkl", b"junk", "read safely"),
        ("a.pkl", pickle.dumps([1, 2]), "holds a list, not a dictionary of tensors"),
        ("a.pkl", pickle.dumps({"model": {"a": "text"}}), "no dictionary of tensors"),
        ("a.safetensors", b"\xff" * 16, "not a readable safetensors"),
    ],
)
def test_other_files_get_one_clear_line(name: str, content: bytes, message: str, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_file(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_truncated_and_poisoned_files(tmp_path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UserError, match="read safely"):
        read_file(path)
    with pytest.raises(UserError, match="NaN or infinity, the first w"):
        require_finite({"v": torch.ones(2), "w": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(UserError, match="no such weights file"):
        read_file(tmp_path / "nothing.pth")


def test_a_dict_that_holds_itself_ends(tmp_path) -> None:
    content: dict[str, Any] = {"w": np.zeros(2, np.float32)}
    content["again"] = content
    (tmp_path / "loop.pkl").write_bytes(pickle.dumps(content))
    assert list(read_file(tmp_path / "loop.pkl").weights) == ["w"]


def test_a_gigantic_header_is_refused(tmp_path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}" * 8)
    with pytest.raises(UserError, match="not a readable safetensors"):
        read_file(tmp_path / "a.safetensors")
    big = b"\x80\x02\x8e" + (2**60).to_bytes(8, "little") + b"x"  # a pickle that promises 2**60 bytes
    (tmp_path / "a.pkl").write_bytes(big)
    with pytest.raises(UserError, match="read safely"):
        read_file(tmp_path / "a.pkl")
