"""Label maps and COCO's panoptic annotations: read, checked, and moved with their images."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from pictures import grey_png
from resdet.config import InputConfig, parse_config
from resdet.data.coco import parse_coco
from resdet.data.collate import collate
from resdet.data.dataset import DetectionDataset
from resdet.data.formats.detect import detect
from resdet.data.formats.glimpse import SMALL, json_kind
from resdet.data.formats.panoptic import read_panoptic
from resdet.data.label_maps import LabelFile, LabelFiles, of_classes, of_things, read_values
from resdet.data.quality.label_maps import inspect_label_maps
from resdet.data.relabel import as_label_maps, with_label_maps
from resdet.data.sources import detected, open_split, other_splits
from resdet.data.splits import read_split
from resdet.errors import UserError
from resdet.structures import UNLABELLED
from tiny import panoptic


def data_of(**data: object):
    return parse_config({"data": data})


@pytest.fixture
def examples() -> Path:
    folder = SHARED / "coco_panoptic"
    if not folder.is_dir():
        pytest.skip(f"needs COCO's panoptic examples in {folder}")
    return folder


def test_the_things_of_panoptic_annotations_are_those_of_cocos_own_conversion(examples) -> None:
    given = {"annotations": str(examples / "panoptic_examples.json"), "images": str(examples / "input_images")}
    config = data_of(train=given, val=given)
    source = open_split(config.data, "val")
    assert "has COCO's segments_info" in source.notes[0]
    expected = json.loads((examples / "panoptic_coco_detection_format.json").read_text())
    content = json.loads((examples / "panoptic_examples.json").read_text())
    isthing = {category["id"]: category["isthing"] for category in content["categories"]}

    def by_place(entries: list[dict]) -> list:
        keys = ("image_id", "category_id", "iscrowd", "bbox")
        return sorted([*(e[key] for key in keys), e["segmentation"]["counts"]] for e in entries)

    things = [e for e in expected["annotations"] if isthing[e["category_id"]]]
    assert by_place(source.content["annotations"]) == by_place(things)
    assert [len(source.content["categories"]), len(source.labels.classes)] == [80, 54]
    read = read_split(config, "val")
    # Every stuff segment's area, and that of all things together, as the annotations have them.
    for info, entry in zip(read.images, content["annotations"], strict=True):
        labels = read.label_maps.read(info)
        areas = dict.fromkeys(range(54), 0)
        for segment in entry["segments_info"]:
            label = 0 if isthing[segment["category_id"]] else read.label_maps.ids.index(segment["category_id"])
            areas[label] += segment["area"]
        assert np.array_equal(np.bincount(labels.ravel(), minlength=256)[:54], list(areas.values()))


def panoptic_set(folder: Path) -> tuple[Path, dict]:
    """One image of 20 x 30: a thing with the id 5, stuff with 600."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "images/a.png")
    ids = np.full((20, 30), 600)
    ids[4:8, 10:20] = 5
    (folder / "panoptic").mkdir()
    png = np.stack([ids % 256, ids // 256, ids * 0], axis=2).astype(np.uint8)
    Image.fromarray(png).save(folder / "panoptic/a.png")
    segments = [{"id": 5, "category_id": 7}, {"id": 600, "category_id": 9}]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "grass", "isthing": 0}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    return folder / "panoptic.json", content


def test_a_lone_panoptic_file_is_of_any_split_but_not_of_another(tmp_path) -> None:
    path, content = panoptic_set(tmp_path / "set")
    path.write_text(json.dumps(content))
    assert read_panoptic(path.parent, path.parent / "images", "train").split == "panoptic"
    path.with_suffix("").rename(path.with_name("panoptic_val2017"))
    path.rename(path.with_name("panoptic_val2017.json"))
    assert read_panoptic(path.parent, path.parent / "images", "val").split == "val2017"
    with pytest.raises(UserError, match=r"no panoptic annotations of train \(there are: val2017\)"):
        read_panoptic(path.parent, path.parent / "images", "train")


def drop_segment(content: dict, png: Path) -> None:
    content["annotations"][0]["segments_info"].pop()


def add_segment(content: dict, png: Path) -> None:
    content["annotations"][0]["segments_info"].append({"id": 8, "category_id": 7})


def shrink(content: dict, png: Path) -> None:
    Image.open(png).resize((15, 10), Image.Resampling.NEAREST).save(png)


def as_palette(content: dict, png: Path) -> None:
    Image.open(png).convert("P").save(png)


def other_category(content: dict, png: Path) -> None:
    content["annotations"][0]["segments_info"][0]["category_id"] = 8


def remove(content: dict, png: Path) -> None:
    png.unlink()


def test_instances_beside_panoptic_annotations_are_meant(tmp_path, shapes_root) -> None:
    root = panoptic(shapes_root, tmp_path / "coco")
    assert detect(root).format == "coco_panoptic"
    (root / "annotations/instances_train2017.json").write_bytes(
        (shapes_root / "annotations/instances_train2017.json").read_bytes()
    )
    assert detect(root).format == "coco"
    assert open_split(data_of(root=str(root), format="coco_panoptic").data, "train").labels
    large = tmp_path / "large.json"
    category = {"id": 1, "name": "cat", "isthing": 1, "supercategory": "x" * SMALL}
    for key, kind in (("segmentation", "coco"), ("segments_info", "coco_panoptic"), ("area", "coco_panoptic")):
        large.write_text(json.dumps({"categories": [category], "images": [], "annotations": [{key: []}]}))
        assert json_kind(large) == kind


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_segment, r"a\.png: has the id 600, which its segments_info does not list: add the segment, or write 0"),
        (
            add_segment,
            r"a\.png: has no pixel of segment 8, which its segments_info lists: remove the segment, or draw it",
        ),
        (shrink, r"a\.png: the label map is 10 x 15 \(H x W\), its image 20 x 30: write it at the image's size"),
        (
            as_palette,
            r"  - \S+a\.png: panoptic PNGs hold ids as R \+ 256 G \+ 65536 B, this one has a palette: write it as 8-bit RGB",
        ),
        (other_category, r"annotation of image 1: segment 5: category_id 8 is not listed"),
        (remove, r"a\.png: the label map cannot be read \(No such file or directory\)"),
    ],
)
def test_panoptic_annotations_that_disagree_with_their_pngs(spoil, message: str, tmp_path) -> None:
    path, content = panoptic_set(tmp_path / "set")
    spoil(content, path.parent / "panoptic/a.png")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_split(data_of(train={"annotations": str(path), "images": str(tmp_path / "set/images")}).data, "train")


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    """The places of all values inside JSON's, but of the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(*path, key), *leaves(inner, (*path, key))]]


def test_any_spoiled_value_is_one_clear_error_or_is_read(tmp_path) -> None:
    path, content = panoptic_set(tmp_path / "set")
    config = data_of(train={"annotations": str(path), "images": str(tmp_path / "set/images")})
    messages = []
    for place in leaves(content):
        for odd in (None, -1, 2.5, True, "\0", "../a.png", [], [1], {}, {"id": 5}):
            spoiled = json.loads(json.dumps(content))
            parent = spoiled
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = odd
            path.write_text(json.dumps(spoiled))
            try:
                read_split(config, "train")
            except UserError as error:
                messages.append(str(error))
    assert len(messages) > 150
    named = re.compile(r"panoptic|a\.png|(image|annotation) [0-9]+|category")
    assert [message for message in messages if not named.search(message)] == []


def label_set(root: Path, labels: np.ndarray, mode: str | None = None) -> Path:
    """Two images, train and val, whose grey value is 80 times their label."""
    names = "unlabelled\nsky\nsea\n"
    for split in ("training", "validation"):
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        Image.fromarray((labels * 80).astype(np.uint8)).convert("RGB").save(root / "images" / split / "a.png")
        png = Image.fromarray(labels)
        (png.convert(mode) if mode else png).save(root / "annotations" / split / "a.png")
    (root / "classes.txt").write_text(names)
    return root


STRIPES = np.repeat(np.arange(3, dtype=np.uint8)[:, None] * np.ones((1, 60), np.uint8), 16, axis=0)
STRIPES[:20, 10:20] = 2  # so that no symmetry is left


@pytest.mark.parametrize("mode", [None, "P", "RGB"])
def test_label_maps_by_index_and_palette_but_not_by_colour(mode: str | None, tmp_path) -> None:
    root = label_set(tmp_path / "set", STRIPES, mode)
    config = data_of(root=str(root))
    if mode == "RGB":
        with pytest.raises(
            UserError, match=r"a\.png: is a colour image \(RGB\), but label maps hold one number a pixel"
        ):
            read_split(config, "val").label_maps.read(read_split(config, "val").images[0])
        return
    if mode == "P":  # as Pillow, the indices of a palette
        for path in root.glob("annotations/*/*.png"):
            png = Image.fromarray(STRIPES, mode="P")
            png.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
            png.save(path)
    read = read_split(config, "val")
    assert (read.class_names, read.label_maps.names, read.label_maps.ids) == (["sky", "sea"], ["sky", "sea"], [1, 2])
    expected = np.where(STRIPES == 0, UNLABELLED, STRIPES.astype(int) - 1)
    assert np.array_equal(read.label_maps.read(read.images[0]), expected)
    assert as_label_maps(read).class_names == ["sky", "sea"]
    with pytest.raises(UserError, match=r"no label for things, so they do not go with instances"):
        with_label_maps(read)


def test_label_maps_of_few_bits_upper_case_names_and_all_splits(tmp_path) -> None:
    root = label_set(tmp_path / "set", STRIPES)
    for bits in (1, 2, 4):  # grey, whose numbers Pillow spreads
        map_file = tmp_path / f"{bits}.png"
        map_file.write_bytes(grey_png(STRIPES % 2**bits, bits))
        assert np.array_equal(read_values(LabelFile(map_file, []), STRIPES.shape), STRIPES % 2**bits)
    png = root / "annotations/training/a.png"
    png.rename(png.with_suffix(".PNG"))
    config = data_of(root=str(root)).data
    source = open_split(config, "train")
    assert len(source.labels.files) == 1
    assert other_splits(detected(config, config.train), source) == ["validation"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "classes.txt").write_text("a\n\nb\n"),
            r"classes\.txt: needs 1 to 255 names, .* line 2 is empty",
        ),
        (lambda root: (root / "classes.txt").write_text("a\nb\na\n"), r"classes\.txt: names 'a' twice"),
        (
            lambda root: (root / "classes.txt").unlink(),
            r"classes\.txt: is not there: write the names of the classes into it",
        ),
        (
            lambda root: (root / "annotations/training/a.png").unlink(),
            r"its label map .*training/a\.png is not there",
        ),
    ],
)
def test_label_maps_that_are_not_whole(spoil, message: str, tmp_path) -> None:
    root = label_set(tmp_path / "set", STRIPES)
    spoil(root)
    with pytest.raises(UserError, match=message):
        open_split(data_of(root=str(root), format="label_maps").data, "train")


def test_every_label_map_that_is_wrong_is_found_before_training(tmp_path) -> None:
    root = label_set(tmp_path / "set", STRIPES)
    source = open_split(data_of(root=str(root)).data, "train")
    assert inspect_label_maps("train", source) == []
    Image.fromarray(STRIPES + 5).save(root / "annotations/training/a.png")
    (finding,) = inspect_label_maps("train", source)
    assert (finding.code, finding.severity, finding.count) == ("label-map", "error", 1)
    assert "a.png: has the value 5, but the classes are numbered 0 to 2" in finding.examples[0]


def test_cityscapes_label_maps_need_no_list_of_names(tmp_path) -> None:
    for folder, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
        (tmp_path / folder / "train/ulm").mkdir(parents=True)
        Image.fromarray(STRIPES).save(tmp_path / folder / f"train/ulm/ulm_0_{end}.png")
    read = read_split(data_of(root=str(tmp_path), format="label_maps"), "train")
    assert (len(read.class_names), read.class_names[18]) == (19, "bicycle")
    assert np.array_equal(read.label_maps.read(read.images[0]), STRIPES)


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [{"name": "HorizontalFlip", "p": 1.0}, {"name": "RandomCrop", "height": 30, "width": 40, "p": 1.0}],
        [{"name": "Transpose", "p": 1.0}, {"name": "RandomBrightnessContrast", "p": 0.0}],
        [{"name": "Affine", "rotate": 25, "scale": 1.3, "p": 1.0}],
        [{"name": "ElasticTransform", "alpha": 40, "sigma": 6, "interpolation": 0, "p": 1.0}],
    ],
    ids=["none", "crop", "transpose", "affine", "elastic"],
)
def test_label_maps_go_where_their_pixels_go(transforms: list, tmp_path) -> None:
    root = label_set(tmp_path / "set", STRIPES + 1)
    (root / "classes.txt").write_text("outside\na\nb\nc\n")
    config = data_of(root=str(root), train={"augmentations": transforms}, min_size=70, max_size=200)
    dataset = DetectionDataset(
        as_label_maps(read_split(config, "train")),
        config.data,
        InputConfig(),
        train=True,
        masks=False,
        semantic=True,
        seed=0,
    )
    flips = set()
    for epoch in range(6):
        sample = dataset[0, epoch]
        assert sample.semantic.shape == sample.image.shape[:2]
        value = np.where(sample.semantic == UNLABELLED, 0, sample.semantic.astype(int))  # images are filled with 0
        apart = np.abs(sample.image[..., 0].astype(int) - value * 80)
        assert np.mean(apart < 41) > 0.97  # but at borders, where the image is interpolated
        flips.add(sample.semantic.tobytes())
    assert len(flips) > 1
    batch = collate([sample, sample._replace(semantic=sample.semantic[:40, :50], image=sample.image[:40, :50])]).batch
    assert batch.targets.semantic.shape == (2, *batch.images.shape[2:])
    assert np.array_equal(batch.targets.semantic[1, :40, :50], sample.semantic[:40, :50])
    assert (batch.targets.semantic[1, 40:] == UNLABELLED).all()


def test_label_maps_are_drawn_from_masks(shapes, tmp_path) -> None:
    classes, things = of_classes(shapes.class_names), of_things(shapes.class_names)
    info = max(shapes.images, key=lambda info: len(info.objects.labels))
    labels, any_thing = classes.read(info), things.read(info)
    assert (classes.names, things.names) == (["background", *shapes.class_names], ["things", "background"])
    assert np.array_equal(labels > 0, any_thing == 0)
    assert set(np.unique(labels)) == {0, *(info.objects.labels + 1)}
    unknown = info._replace(objects=info.objects._replace(segmentations=[None] * len(info.objects.labels)))
    assert set(np.unique(classes.read(unknown))) == {0, UNLABELLED}
    assert as_label_maps(shapes).label_maps.names == classes.names
    entries = [
        {"id": k, "image_id": 1, "category_id": 1, "iscrowd": k % 2, "bbox": box, "segmentation": outline}
        for k, (box, outline) in enumerate([
            ([2, 2, 4, 4], [[2, 2, 6, 2, 6, 6, 2, 6]]), ([1, 1, 8, 3], None),
            ([12, 4, 2, 2], [[12, 4, 14, 4, 14, 6, 12, 6]]), ([10, 2, 5, 5], [[10, 2, 15, 2, 15, 7, 10, 7]]),
        ])
    ]  # fmt: skip
    image = {"id": 1, "file_name": "a.png", "height": 10, "width": 20}
    content = {"images": [image], "annotations": entries, "categories": [{"id": 1, "name": "a"}]}
    expected = np.zeros((10, 20), np.uint8)
    expected[1:4, 1:9] = expected[2:7, 10:15] = UNLABELLED  # crowds, the first by its box
    expected[2:6, 2:6] = expected[4:6, 12:14] = 1
    read = as_label_maps(parse_coco(content, tmp_path, tmp_path, are_files=False))
    assert np.array_equal(read.label_maps.read(read.images[0]), expected)
    as_label_maps(replace(shapes, class_names=[f"c{k}" for k in range(254)]))
    with pytest.raises(
        UserError, match="has 256 classes of pixels, background included, but label maps hold at most 255"
    ):
        as_label_maps(replace(shapes, class_names=[f"c{k}" for k in range(255)]))


def test_joined_sources_keep_their_label_maps(tmp_path) -> None:
    roots = [label_set(tmp_path / name, STRIPES) for name in ("one", "two")]
    read = read_split(data_of(train=[{"root": str(root), "format": "label_maps"} for root in roots]), "train")
    assert isinstance(read.label_maps, LabelFiles)
    files = [read.label_maps.source.files[info.image_id].file for info in read.images]
    assert [file.parents[2].name for file in files] == ["one", "two"]
    (roots[1] / "classes.txt").write_text("x\ny\nz\n")
    with pytest.raises(UserError, match="joined label maps need the same classes"):
        read_split(data_of(train=[{"root": str(root), "format": "label_maps"} for root in roots]), "train")
