"""Label maps and masks of single objects: every layout gives the objects that brute force finds in the files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pictures import grey_png
from resdet.config import DataConfig
from resdet.data.formats.common import Source
from resdet.data.formats.detect import detect
from resdet.data.formats.masks import EMPTY, OF_CELLPOSE, OVERLAP, PALETTE, PIECES, WITHOUT_MAP, read_masks
from resdet.data.formats.masks_layout import Map
from resdet.data.formats.masks_pixels import objects_of, read_map
from resdet.data.formats.write import WRITERS
from resdet.data.sources import open_split
from resdet.errors import UserError
from resdet.masks import decode_rle

H, W = 40, 60


def numbers(seed: int, count: int = 12, dtype: type = np.uint16) -> np.ndarray:
    """A map of rectangles that partly cover each other, with gaps in the numbers; one reaches the corner."""
    rng = np.random.default_rng(seed)
    result = np.zeros((H, W), dtype)
    for value in rng.permutation(250)[:count] + 1:
        y, x = rng.integers(0, H - 8), rng.integers(0, W - 12)
        result[y : y + rng.integers(2, 9), x : x + rng.integers(2, 13)] = value
    result[-3:, -2:] = 251
    return result


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def save_image(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    return save(path, np.full((*size, 3), 90, np.uint8))


def objects(source: Source) -> dict[str, list[tuple[str, bytes]]]:
    """{file name: the class and pixels of each object}, each checked against its box."""
    assert source.problems == []
    names = {c["id"]: c["name"] for c in source.content["categories"]}
    files = {i["id"]: i["file_name"] for i in source.content["images"]}
    result: dict[str, list[tuple[str, bytes]]] = {name: [] for name in files.values()}
    for entry in source.content["annotations"]:
        pixels = decode_rle(entry["segmentation"], H, W) > 0
        ys, xs = np.nonzero(pixels)
        assert entry["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        result[files[entry["image_id"]]].append((names[entry["category_id"]], pixels.tobytes()))
    return result


def brute(label_map: np.ndarray, name: str = "object") -> list[tuple[str, bytes]]:
    return [(name, (label_map == value).tobytes()) for value in np.unique(label_map) if value]


@pytest.mark.parametrize(
    ("image", "label_map"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("train/images/{}.png", "train/labels/{}.tif"),
        ("images/train/{}.png", "masks/train/{}.png"),
        ("PNGImages/{}.png", "PedMasks/{}_mask.png"),
        ("{}.png", "{}_cp_masks.png"),
        ("train/{}_img.tif", "train/{}_masks.tif"),
        ("{}_rgb.png", "{}_label.png"),
        ("{}.jpg", "masks/{}.png"),
    ],
)
def test_label_maps_are_read_in_the_layouts_that_tools_write(image: str, label_map: str, tmp_path) -> None:
    maps = {f"x{k}.5": numbers(k) for k in range(3)}
    for name, pixels in maps.items():
        save_image(tmp_path / image.format(name))
        save(tmp_path / label_map.format(name), pixels)
    found = detect(tmp_path)
    assert (found.format, found.path) == ("masks", tmp_path)
    source = open_split(DataConfig(root=tmp_path), "train")
    assert objects(source) == {image.format(name): brute(pixels) for name, pixels in maps.items()}
    assert (source.split == "train") == ("train" in image)
    if source.split:
        with pytest.raises(UserError, match="no split 'val'; it has train"):
            open_split(DataConfig(root=tmp_path), "val")


def test_other_folders_and_kinds_of_files(tmp_path) -> None:
    """Numbers of any depth, as indices of a palette and as an array; images lie where `images` says."""
    small = numbers(0, 4) % 16
    maps = {
        "eight": numbers(1).astype(np.uint8),
        "palette": numbers(2).astype(np.uint8),
        "float": numbers(3),
        "four": small,
    }
    for name, pixels in {**maps, "array": numbers(4)}.items():
        save_image(tmp_path / f"pictures/{name}.png")
        maps[name] = pixels
    save(tmp_path / "seg/eight.png", np.dstack([maps["eight"]] * 3))  # grey, saved as RGB
    colours = Image.fromarray(maps["palette"]).convert("P")
    colours.putdata(maps["palette"].ravel().tolist())
    colours.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    colours.save(tmp_path / "seg/palette.png")
    save(tmp_path / "seg/float.tif", maps["float"].astype(np.float32))
    four = Image.fromarray(small.astype(np.uint8)).convert("P")
    four.putdata(small.ravel().tolist())
    four.putpalette([v for k in range(16) for v in (17 * k,) * 3])
    four.save(tmp_path / "seg/four.png", bits=4)
    np.save(tmp_path / "seg/array.npy", maps["array"].astype(np.int32))
    source = read_masks(tmp_path / "seg", tmp_path / "pictures")
    assert objects(source) == {f"{name}.png": brute(pixels) for name, pixels in sorted(maps.items())}
    assert source.remarks[PALETTE] == 2


def test_a_mask_for_each_object(tmp_path) -> None:
    """As the 2018 Data Science Bowl has them, and a folder of masks for each image beside all images."""
    one, two = numbers(0), numbers(1)
    for name, label_map, kind in (("a", one, "a/masks/{}.png"), ("b", two, "b/masks/{}.png")):
        save_image(tmp_path / f"bowl/{name}/images/{name}.png")
        save_image(tmp_path / f"folders/images/{name}.png")
        for value in np.unique(label_map)[1:]:
            mask = (label_map == value).astype(np.uint8) * 255
            save(tmp_path / "bowl" / kind.format(f"{value:03}"), mask)
            of_class = "cell/" if value % 2 else "debris/"
            save(tmp_path / f"folders/masks/{name}/{of_class}{value:03}.png", np.dstack([mask] * 3))
    assert detect(tmp_path / "bowl").format == "masks"
    source = open_split(DataConfig(root=tmp_path / "bowl"), "train")
    assert objects(source) == {"a/images/a.png": brute(one), "b/images/b.png": brute(two)}
    found = objects(open_split(DataConfig(root=tmp_path / "folders"), "train"))
    for name, label_map in (("a", one), ("b", two)):
        expected = [
            ("cell" if value % 2 else "debris", (label_map == value).tobytes()) for value in np.unique(label_map)[1:]
        ]
        assert Counter(found[f"images/{name}.png"]) == Counter(expected)
    both = np.full((H, W), 255, np.uint8)
    jpeg = save(tmp_path / "bowl/a/masks/yyy.jpg", both)
    with pytest.raises(UserError, match="is a JPEG, which changes pixels"):
        read_map(Map(jpeg, tmp_path / "bowl/a/images/a.png", True, None), (H, W))
    jpeg.unlink()
    save(tmp_path / "bowl/a/masks/zzz.png", both)
    remarks = open_split(DataConfig(root=tmp_path / "bowl"), "train").remarks
    assert remarks[OVERLAP] == 1


def test_classes_from_folders_a_json_or_a_list(tmp_path) -> None:
    one, two = numbers(0, 3), numbers(1, 3)
    for kind in ("folders", "json", "list"):
        save_image(tmp_path / kind / "images/a.png")
    save(tmp_path / "folders/masks/cell/a.png", one)
    save(tmp_path / "folders/masks/debris/a.png", two)
    source = read_masks(tmp_path / "folders")
    assert objects(source) == {"images/a.png": brute(one, "cell") + brute(two, "debris")}
    map_of = save(tmp_path / "json/masks/a.png", one)
    values = [int(v) for v in np.unique(one)[1:]]
    classes = {value: ("b", "c")[k % 2] for k, value in enumerate(values)}
    map_of.with_suffix(".json").write_text(json.dumps(classes))
    (tmp_path / "json/classes.json").write_text('["c", "a", "b"]')
    source = read_masks(tmp_path / "json")
    assert [name for name, _ in objects(source)["images/a.png"]] == [classes[v] for v in values]
    assert [c["name"] for c in source.content["categories"]] == ["c", "a", "b"]
    map_of.with_suffix(".json").write_text(json.dumps({values[0]: "b", values[1]: "d"}))
    problems = read_masks(tmp_path / "json").problems
    assert "its class 'd' is not in classes.json" in problems[0]
    assert f"object {values[2]}: is not in a.json" in problems[1]
    map_of.with_suffix(".json").unlink()
    assert "its class is not said, which may be c, a, b" in read_masks(tmp_path / "json").problems[0]
    save(tmp_path / "list/masks/a.png", one)
    (tmp_path / "list/classes.json").write_text('["nucleus"]')
    assert objects(read_masks(tmp_path / "list")) == {"images/a.png": brute(one, "nucleus")}


def test_what_is_odd_is_told(tmp_path) -> None:
    two_pieces = np.zeros((H, W), np.uint8)
    two_pieces[2:5, 2:5] = two_pieces[20:30, 30:40] = 7
    cases = {
        "empty": np.zeros((H, W), np.uint8), "pieces": two_pieces, "white": (two_pieces > 0).astype(np.uint8) * 255,
        "small": two_pieces[:-1], "colour": np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8),
        "negative": two_pieces.astype(np.float32) - 1, "half": two_pieces / np.float32(2),
    }  # fmt: skip
    for name, pixels in cases.items():
        save_image(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.{'tif' if pixels.dtype == np.float32 else 'png'}", pixels)
    save_image(tmp_path / "images/jpeg.png")
    save(tmp_path / "masks/jpeg.jpg", two_pieces)
    save_image(tmp_path / "images/bit.png")
    (tmp_path / "masks/bit.png").write_bytes(grey_png(two_pieces > 0, 1))
    save_image(tmp_path / "images/bare.png")
    save(tmp_path / "masks/lonely.png", two_pieces)
    save_image(tmp_path / "images/twice.png")
    save_image(tmp_path / "images/twice.jpg")
    save(tmp_path / "masks/twice.png", two_pieces)
    (tmp_path / "images/empty_seg.npy").touch()
    source = read_masks(tmp_path)
    counted = {EMPTY: 1, PIECES: 1, WITHOUT_MAP: 1, OF_CELLPOSE: 1}
    assert source.remarks == counted
    assert [i["file_name"] for i in source.content["images"]] == ["images/empty.png", "images/pieces.png"]
    expected = {
        "lonely.png": "has no image of its name", "twice.png": "is the map of ", "white.png": "is black and white in several",
        "bit.png": "is black and white in several",
        "small.png": "is 39 x 60 (H x W), but its image", "colour.png": "is a colour image", "jpeg.jpg": "is a JPEG",
        "negative.tif": "has the number -1", "half.tif": "has fractions",
    }  # fmt: skip
    assert len(source.problems) == len(expected)
    for name, text in expected.items():
        assert any(f"masks/{name}: {text}" in problem for problem in source.problems), name
    with pytest.raises(UserError, match="no label map or mask with its image"):
        read_masks(tmp_path / "images")


def test_annotations_of_another_format_go_before_masks_beside_them(tmp_path) -> None:
    save_image(tmp_path / "images/a.png")
    save(tmp_path / "masks/a.png", numbers(0))
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    image = {"id": 1, "file_name": "a.png", "height": H, "width": W}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    assert detect(tmp_path).format == "coco"
    (tmp_path / "all.json").unlink()
    (tmp_path / "masks/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")
    assert detect(tmp_path) is None


def test_label_maps_that_are_written_are_read_back(tmp_path) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / f"from/images/{name}.png")
        label_map = save(tmp_path / f"from/masks/{name}.png", numbers(ord(name)) * (name == "a"))
        values = np.unique(numbers(ord(name)))[1:]
        label_map.with_suffix(".json").write_text(json.dumps({int(v): "cd"[int(v) % 2] for v in values}))
    source = read_masks(tmp_path / "from")
    for split in ("train", "val"):
        assert not WRITERS["masks"](source, tmp_path / "to", split)
        read = open_split(DataConfig(root=tmp_path / "to"), split)
        assert read.split == split
        before = {name.replace("images/", f"images/{split}/"): Counter(of) for name, of in objects(source).items()}
        assert {name: Counter(of) for name, of in objects(read).items()} == before
        assert read.content["categories"] == source.content["categories"]
    first = source.content["annotations"][0]
    source.content["annotations"] += [
        {**first, "id": 100},
        {**first, "id": 101, "segmentation": None, "bbox": [0, 0, W, H]},
    ]
    lost = WRITERS["masks"](source, tmp_path / "overlapping")
    assert list(lost.values()) == [1, 1, 1]  # a box for a mask, which is partly covered, and one object under its copy


def test_objects_of_a_map_are_found_by_runs() -> None:
    for label_map in (np.ones((3, 4), int), np.zeros((3, 4), int), np.eye(5, dtype=int) * 2**40, numbers(5)):
        found = objects_of(label_map)
        rebuilt = np.zeros_like(label_map)
        for value, crop, (y, x) in found:
            assert crop.any(0)[[0, -1]].all()
            assert crop.any(1)[[0, -1]].all()
            rebuilt[y : y + crop.shape[0], x : x + crop.shape[1]] += crop.astype(
                label_map.dtype
            ) * label_map.dtype.type(value)
        assert np.array_equal(rebuilt, label_map)
        assert [value for value, *_ in found] == [v for v in np.unique(label_map) if v]
