"""Folders of classes, and pictures as torchvision's own pipelines see them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

import tiny
from pictures import textured
from resdet.commands.eval import main as eval_main
from resdet.config import InputConfig, dump_settings, parse_config
from resdet.data.class_dataset import ClassificationDataset, read_picture
from resdet.data.class_folder import class_summary, missing_classes, read_class_folder, split_folder
from resdet.errors import UserError
from resdet.models.build import build_model
from resdet.training.classes import read_classes


def config_of(root: Path, **classification: object):
    values = {"data": {"root": str(root), "workers": 0, "classification": {"crop": 24, **classification}}}
    return parse_config({"model": {"kind": "classifier", "num_classes": 2}} | values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of every form that Pillow turns into RGB, of two classes."""
    root = tmp_path_factory.mktemp("classes")
    for name, size, mode in (
        ("a/portrait.jpg", (300, 200), "RGB"), ("a/wide.png", (90, 400), "RGB"), ("a/tiny.png", (9, 11), "RGB"),
        ("a/deep/er.jpg", (257, 256), "RGB"), ("b/grey.jpg", (120, 130), "L"), ("b/alpha.png", (64, 80), "RGBA"),
        ("b/print.jpg", (100, 140), "CMYK"), ("b/palette.png", (50, 60), "P"),
    ):  # fmt: skip
        (root / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(textured(*size, seed=len(name))).convert(mode).save(root / "val" / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by EXIF, which torchvision does not heed
    Image.fromarray(textured(100, 150)).save(root / "val/b/turned.jpg", exif=exif)
    return root


def test_classes_are_numbered_as_in_torchvision_and_other_files_counted(folder) -> None:
    (folder / "val/loose.jpg").write_bytes(b"")
    (folder / "val/a/notes.txt").write_text("")
    (folder / "val/.hidden").mkdir(exist_ok=True)
    read = read_class_folder(folder / "val")
    theirs = ImageFolder(folder / "val", allow_empty=True)
    assert read.class_names == ["a", "b"] == [name for name in theirs.classes if name != ".hidden"]
    offset = len(theirs.classes) - 2
    assert {(str(i.file), int(i.objects.labels[0]) + offset) for i in read.images} == set(theirs.samples)
    line = "9 pictures of 2 classes, 4 to 5 of each; 1 files that are no pictures; 1 pictures outside of the classes' folders"
    assert class_summary(read) == line
    other = read_class_folder(folder / "val", ["0", "b", "a", "z"])
    assert [int(info.objects.labels[0]) for info in other.images] == [2] * 4 + [1] * 5
    assert missing_classes(other) == ["0", "z"]


def test_what_cannot_be_learnt_from_is_one_error(tmp_path) -> None:
    data = config_of(tmp_path).data
    with pytest.raises(UserError, match=r"train: no such folder: it holds a folder of pictures for each class"):
        read_class_folder(split_folder(data, "train"))
    for name in ("cat", "dog", "emu"):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"(?s)3 of 3 classes have no picture: remove or fill.*cat.*dog.*emu"):
        read_class_folder(tmp_path / "train")
    for place in ("train/dog", "val/cat", "val/dgo", "flat"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
    with pytest.raises(UserError, match=r"(?s)2 of 3 classes have no picture.*cat.*emu"):
        read_class_folder(tmp_path / "train")
    with pytest.raises(UserError, match=r"(?s)1 of 2 classes are not in the training set, which has cat, dog.*dgo"):
        read_class_folder(tmp_path / "val", ["cat", "dog"])
    with pytest.raises(
        UserError, match=r"holds no folders, of which each is a class: sort its 1 pictures into folders"
    ):
        read_class_folder(tmp_path / "flat")
    for name in ("cat", "emu"):
        (tmp_path / "train" / name).rmdir()
    with pytest.raises(UserError, match=r"train: holds one class alone, dog: there is nothing to tell it from"):
        read_classes(data, ["train"])
    with pytest.raises(UserError, match=r"val_crop=64 is larger than val_resize=32: pictures would be padded"):
        parse_config({"data": {"classification": {"val_crop": 64, "val_resize": 32}}})


@pytest.mark.parametrize(
    ("resize", "crop", "how"), [(256, 224, "bilinear"), (232, 224, "bilinear"), (64, 64, "bicubic")]
)
def test_evaluation_sees_what_torchvisions_preset_sees(folder, resize, crop, how) -> None:
    config = config_of(folder, val_resize=resize, val_crop=crop, interpolation=how)
    dataset = ClassificationDataset(
        read_class_folder(folder / "val"), config.data, config.model.input, train=False, seed=0
    )
    model = build_model(config.model)
    preset = ImageClassification(crop_size=crop, resize_size=resize, interpolation=InterpolationMode(how))
    samples = [dataset[k, 0] for k in range(len(dataset))]
    ours = model.normalize(dataset.collate(samples).batch)
    theirs = torch.stack([preset(Image.open(info.file).convert("RGB")) for info in dataset.annotations.images])
    assert ours.shape == theirs.shape == (9, 3, crop, crop)
    assert (ours - theirs).abs().max() < 1e-5  # the same pixels, normalised in another order of operations


def test_a_training_crop_depends_on_seed_epoch_and_index_alone(folder) -> None:
    config = config_of(folder, augment="randaugment", erase=0.5)
    read = read_class_folder(folder / "val")

    def crop(index: int, epoch: int, seed: int = 0) -> np.ndarray:
        torch.rand(epoch + 3 * seed)  # as if something else had drawn
        before = torch.get_rng_state()
        dataset = ClassificationDataset(read, config.data, config.model.input, train=True, seed=seed)
        image = dataset[index, epoch, 0, 0].image
        assert torch.equal(before, torch.get_rng_state())
        return image

    assert crop(1, 0).shape == (24, 24, 3)
    assert np.array_equal(crop(1, 0), crop(1, 0))
    for other in (crop(1, 1), crop(2, 0), crop(1, 0, seed=1)):
        assert not np.array_equal(crop(1, 0), other)


def test_mixed_batches_have_the_shares_of_their_pixels(tmp_path) -> None:
    """Of one black and one white class, the brightness of a mixed picture is the share of white, in any mixture."""
    for name, value in (("black", 0), ("white", 255)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (30, 30), value).save(tmp_path / f"train/{name}/{k}.png")
    read = read_class_folder(tmp_path / "train")
    for kinds in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}, {}):
        config = config_of(tmp_path, **kinds)
        dataset = ClassificationDataset(read, config.data, config.model.input, train=True, seed=0)
        seen = set()
        for epoch in range(6):
            samples = [dataset[k, epoch, 0, epoch] for k in (0, 4, 5, 1)]
            batch, again = dataset.collate(samples).batch, dataset.collate(samples).batch
            shares = batch.targets.shares
            assert torch.equal(batch.images, again.images)
            assert torch.equal(shares, again.targets.shares)
            assert torch.allclose(shares.sum(1), torch.ones(4))
            assert torch.allclose(batch.images.float().mean((1, 2, 3)) / 255, shares[:, 1], atol=0.003)
            seen |= {round(float(share), 3) for share in shares.flatten()}
        assert (len(seen) > 4) == bool(kinds)
        plain = ClassificationDataset(read, config.data, config.model.input, train=False, seed=0)
        shares = plain.collate([plain[0, 0], plain[5, 0]]).batch.targets.shares
        assert torch.equal(shares, F.one_hot(torch.tensor([0, 1]), 2).float())


def test_what_is_no_picture_of_8_bits_is_told(tmp_path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(textured(90, 90)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-900])
    (tmp_path / "text.jpg").write_text("no picture")
    for name, message in (
        ("deep.png", "has 1 channels of uint16; a classifier takes 8-bit"), ("cut.jpg", "cannot be decoded as a picture"),
        ("text.jpg", "not an image in a supported format"), ("none.jpg", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            read_picture(tmp_path / name, 3)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    assert np.asarray(read_picture(tmp_path / "red.png", 1)).tolist() == np.full((8, 8), 76).tolist()
    assert InputConfig(channels=1).mean  # a grey model has numbers of its own


def test_eval_of_torchvisions_file_gives_torchvisions_own_predictions(folder, tmp_path, capsys) -> None:
    theirs = tiny.shaken(torchvision.models.resnet18(num_classes=2)).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    config = config_of(folder, val_resize=72, val_crop=64)
    config.model.backbone.name = "resnet18"
    (tmp_path / "c.yaml").write_text(dump_settings(config))
    command = [
        str(tmp_path / "c.yaml"),
        "device=cpu",
        "--weights",
        str(tmp_path / "theirs.pth"),
        "--output",
        str(tmp_path / "e"),
    ]
    assert eval_main(command) == 0
    found = {
        e["file"]: dict(zip(e["predicted"], e["scores"], strict=True))
        for e in json.loads((tmp_path / "e/predictions.json").read_text())
    }
    preset, right = ImageClassification(crop_size=64, resize_size=72), 0
    pictures = read_class_folder(folder / "val").images
    for info in pictures:
        with torch.no_grad():
            scores = theirs(preset(Image.open(info.file).convert("RGB"))[None]).softmax(1)[0]
        assert [found[info.image_id][name] for name in "ab"] == pytest.approx(scores.tolist(), abs=1e-3)
        right += "ab"[int(scores.argmax())] == info.image_id[0]
    metrics = json.loads((tmp_path / "e/metrics.json").read_text())
    assert metrics["classes"]["top1"] == pytest.approx(right / len(pictures))
    other = torchvision.models.resnet18(num_classes=3)
    torch.save(other.state_dict(), tmp_path / "theirs.pth")
    assert eval_main(command) == 2
    assert "has 3 classes without names" in capsys.readouterr().err
