from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from resdet.checkpoints.checkpoint import Checkpoint, load_weights, read_checkpoint, save_checkpoint
from resdet.errors import UserError


def test_round_trip_opens_with_weights_only(tmp_path) -> None:
    path = tmp_path / "deep" / "last.pt"
    saved = Checkpoint({"w": torch.arange(3.0)}, ["a"], [7], "seed: 0", 12, {"bbox": {"AP": 0.5}}, {"best": 0.5})
    save_checkpoint(saved, path)
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["model"]["w"], torch.arange(3.0))
    read = read_checkpoint(path)
    assert vars(read) | {"model": 0} == vars(saved) | {"model": 0}
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]  # no temporary file stays


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(Checkpoint({"w": torch.zeros(1)}), path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"last\.pt: could not be written.*No space left"):
        save_checkpoint(Checkpoint({"w": torch.ones(1)}), path)
    assert read_checkpoint(path).model["w"].item() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_bare_state_dict_is_a_checkpoint(tmp_path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    assert set(read_checkpoint(tmp_path / "w.pth").model) == {"weight", "bias"}


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 torn", b"version https://git-lfs.github.com/spec/v1\n"])
def test_unreadable_files_get_one_line(tmp_path, content: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pt: not a readable checkpoint") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_files_never_run_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


def test_other_content_and_missing_files(tmp_path) -> None:
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pt")
    with pytest.raises(UserError, match="not a state dict"):
        read_checkpoint(tmp_path / "numbers.pt")
    with pytest.raises(UserError, match="no such weights file"):
        read_checkpoint(tmp_path / "no.pt")


def test_weights_that_do_not_fit_are_listed(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights = dict(model.state_dict())
    weights["0.weight"] = torch.zeros(5, 2)
    weights["9.extra"] = weights.pop("0.bias")
    with pytest.raises(UserError) as caught:
        load_weights(model, weights, "w.pt")
    text = str(caught.value)
    assert "missing: 0.bias" in text
    assert "left over: 9.extra" in text
    assert "0.weight: the file has (5, 2), the config builds (3, 2)" in text
    good = {k: v for k, v in nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict().items() if "num_b" not in k}
    load_weights(model, good, "w.pt")
    assert torch.equal(model[0].weight, good["0.weight"])
