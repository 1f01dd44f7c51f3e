"""Annotation tools' own files become COCO's structure: boxes, outlines and masks as the tool draws them."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from fuzzing_formats import encode_brush
from pictures import textured
from resdet.data.formats.cityscapes import read_cityscapes
from resdet.data.formats.common import Source
from resdet.data.formats.cvat import read_cvat
from resdet.data.formats.detect import detect
from resdet.data.formats.kitti import read_kitti
from resdet.data.formats.label_studio import decode_brush, read_label_studio
from resdet.data.formats.lookup import located
from resdet.data.formats.mot import read_mot
from resdet.data.formats.open_images import read_open_images
from resdet.data.formats.supervisely import read_supervisely
from resdet.data.formats.via import read_via
from resdet.errors import UserError
from resdet.masks import decode_rle

H, W = 60, 80


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), textured(H, W))
    return path


def found(source: Source) -> dict[str, list[tuple]]:
    """{file name: [(class, x, y, w, h), …]}"""
    names = {c["id"]: c["name"] for c in source.content["categories"]}
    files = {i["id"]: i["file_name"] for i in source.content["images"]}
    result: dict[str, list[tuple]] = {name: [] for name in files.values()}
    for entry in source.content["annotations"]:
        box = tuple(np.round(entry["bbox"], 4).tolist())
        result[files[entry["image_id"]]].append((names[entry["category_id"]], *box))
    return result


def pixels(source: Source, k: int) -> np.ndarray:
    return decode_rle(source.content["annotations"][k]["segmentation"], H, W).astype(bool)


def disc(cx: float, cy: float, r: float) -> np.ndarray:
    y, x = np.mgrid[:H, :W] + 0.5
    return (x - cx) ** 2 + (y - cy) ** 2 <= r**2


# ---- VGG Image Annotator ---------------------------------------------------------------------------------------------

RECT = {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 25}
TRIANGLE = {"name": "polygon", "all_points_x": [0, 40, 40], "all_points_y": [0, 0, 30]}
CIRCLE = {"name": "circle", "cx": 40, "cy": 30, "r": 10}


def via_images() -> dict:
    def region(shape: dict, label: object) -> dict:
        return {"shape_attributes": shape, "region_attributes": {"kind": label}}

    regions = [region(RECT, "cat"), region(TRIANGLE, "dog"), region(CIRCLE, {"cat": True})]
    return {
        "a.jpg123": {"filename": "a.jpg", "size": 123, "regions": regions, "file_attributes": {}},
        "b.jpg9": {"filename": "b.jpg", "size": 9, "regions": {"0": region(RECT, "dog")}, "file_attributes": {}},
        "c.jpg9": {"filename": "c.jpg", "size": 9, "regions": [], "file_attributes": {}},
    }


VIA = {
    "a.jpg": [("cat", 10, 20, 30, 25), ("dog", 0, 0, 40, 30), ("cat", 30, 20, 20, 20)],
    "b.jpg": [("dog", 10, 20, 30, 25)],
    "c.jpg": [],
}


@pytest.mark.parametrize("form", ["export", "project", "csv", "csv of version 1"])
def test_via(form: str, tmp_path) -> None:
    for name in "abc":
        save_image(tmp_path / f"{name}.jpg")
    images = via_images()
    file = tmp_path / ("via.csv" if "csv" in form else "via.json")
    if "csv" in form:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["#" * ("1" in form) + "filename", "file_size", "file_attributes", "region_count", "region_id",
                         "region_shape_attributes", "region_attributes"])  # fmt: skip
        for entry in images.values():
            regions = entry["regions"].values() if isinstance(entry["regions"], dict) else entry["regions"]
            rows = [(r["shape_attributes"], r["region_attributes"]) for r in regions] or [({}, {})]
            for k, parts in enumerate(rows):
                writer.writerow([entry["filename"], 1, "{}", len(regions), k, *map(json.dumps, parts)])
        file.write_text("\ufeff" + out.getvalue(), encoding="utf-8")
    else:
        file.write_text(json.dumps(images if form == "export" else {"_via_img_metadata": images, "_via_settings": {}}))
    source = read_via(file, tmp_path)
    assert source.problems == []
    assert detect(tmp_path).format == "via"
    assert found(source) == VIA
    outlines = [entry.get("segmentation") for entry in source.content["annotations"]]
    assert outlines[0] is None
    assert outlines[1] == [[0, 0, 40, 0, 40, 30]]


def test_via_asks_which_attribute_is_the_class(tmp_path) -> None:
    save_image(tmp_path / "a.jpg")
    region = {"shape_attributes": RECT, "region_attributes": {"colour": "red", "age": "3"}}
    content = {"a": {"filename": "a.jpg", "regions": [region]}}
    (tmp_path / "via.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"which region attribute holds the class: 'colour', 'age'"):
        read_via(tmp_path / "via.json", tmp_path)
    region["region_attributes"]["Class"] = "cat"
    (tmp_path / "via.json").write_text(json.dumps(content))
    assert found(read_via(tmp_path / "via.json", tmp_path)) == {"a.jpg": [("cat", 10, 20, 30, 25)]}


# ---- CVAT ------------------------------------------------------------------------------------------------------------


def test_cvat(tmp_path) -> None:
    save_image(tmp_path / "images/day/a.jpg")
    mask = disc(40, 30, 9)[20:40, 30:50]
    changes = np.flatnonzero(np.diff(np.r_[0, mask.ravel().astype(int)]))
    runs = np.diff(np.r_[0, changes, mask.size])
    shapes = f"""
      <box label="cat" xtl="10.5" ytl="20" xbr="40" ybr="45" occluded="0"/>
      <box label="cat" xtl="20" ytl="25" xbr="40" ybr="35" rotation="90"/>
      <polygon label="dog" points="0,0;40,0;40,30"/>
      <ellipse label="dog" cx="40" cy="30" rx="20" ry="10" rotation="90"/>
      <mask label="dog" rle="{", ".join(map(str, runs))}" left="30" top="20" width="20" height="20"/>
      <polyline label="dog" points="0,0;1,1"/><points label="dog" points="1,1"/>"""
    labels = (
        "<label><name>dog</name></label><label><name>cat</name><type>tag</type></label><label><name>bird</name></label>"
    )
    labels += "<label><name>blurred</name><type>tag</type></label>"  # of whole images: no class
    (tmp_path / "annotations.xml").write_text(
        f"<?xml version='1.0'?><annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
        f"<image id='0' name='day\\a.jpg' width='80' height='60'>{shapes}</image></annotations>"
    )
    source = read_cvat(tmp_path / "annotations.xml", tmp_path)
    assert source.problems == []
    assert [c["name"] for c in source.content["categories"]] == ["dog", "cat", "bird"]
    assert found(source)["images/day/a.jpg"][:4] == [
        ("cat", 10.5, 20, 29.5, 25), ("cat", 25, 20, 10, 20), ("dog", 0, 0, 40, 30), ("dog", 30, 10, 20, 40),
    ]  # fmt: skip
    np.testing.assert_array_equal(pixels(source, 4), disc(40, 30, 9))
    assert detect(tmp_path).format == "cvat"
    assert source.remarks.pop("labels of type tag (no classes: they enclose no area)") == 1
    assert sum(source.remarks.values()) == 2
    (tmp_path / "annotations.xml").write_text("<annotations><track id='0'/></annotations>")
    with pytest.raises(UserError, match="tracks of a video"):
        read_cvat(tmp_path / "annotations.xml", tmp_path)


def test_cvat_skeletons_are_keypoints(tmp_path) -> None:
    save_image(tmp_path / "a.jpg")
    parts = "".join(
        f"<label><name>{n}</name><parent>person</parent></label>" for n in ("nose", "left_eye", "right_eye")
    )
    shape = """<skeleton label="person"><points label="right_eye" outside="0" occluded="1" points="30,25"/>
      <points label="nose" outside="0" occluded="0" points="20.5,10"/>
      <points label="left_eye" outside="1" points="5,5"/></skeleton>
      <skeleton label="person"><points label="nose" outside="0" points="20,20"/></skeleton>"""
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><meta><labels><label><name>person</name></label>{parts}</labels></meta>"
        f"<image id='0' name='a.jpg' width='80' height='60'>{shape}</image></annotations>"
    )
    source = read_cvat(tmp_path / "annotations.xml")
    assert source.problems == []
    (category,) = source.content["categories"]
    assert (category["name"], category["keypoints"]) == ("person", ["nose", "left_eye", "right_eye"])
    (entry,) = source.content["annotations"]
    assert entry["keypoints"] == [20.5, 10, 2, 0, 0, 0, 30, 25, 1]
    assert (entry["bbox"], entry["num_keypoints"]) == ([20.5, 10, 9.5, 15], 2)
    assert list(source.remarks.values()) == [1]  # the skeleton of one point, which tells no size


# ---- Label Studio ----------------------------------------------------------------------------------------------------


def test_label_studio(tmp_path) -> None:
    save_image(tmp_path / "images/a.jpg")
    save_image(tmp_path / "images/b.jpg")
    mask = disc(40, 30, 9)

    def result(kind: str, label: str, **value: object) -> dict:
        return {"type": kind, "original_width": W, "original_height": H, "value": {**value, kind: [label]}}

    results = [
        result("rectanglelabels", "cat", x=12.5, y=25, width=50, height=50, rotation=0),
        result("rectanglelabels", "cat", x=50, y=50, width=25, height=25, rotation=90),
        result("polygonlabels", "dog", points=[[0, 0], [50, 0], [50, 50]]),
        result("ellipselabels", "dog", x=50, y=50, radiusX=25, radiusY=25, rotation=0),
        result("brushlabels", "dog", format="rle", rle=encode_brush(mask * 255)),
        {"type": "choices", "value": {"choices": ["sunny"]}},
    ]
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/0f3a5c77-a.jpg", "note": "x"}, "annotations": [{"result": results}]},
        {"id": 2, "data": {"image": "https://example.com/b.jpg?x=1"}, "annotations": [{"result": [], "was_cancelled": True}]},
    ]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    source = read_label_studio(tmp_path / "export.json", tmp_path)
    assert source.problems == []
    assert found(source)["images/a.jpg"][:4] == [
        ("cat", 10, 15, 40, 30), ("cat", 25, 30, 15, 20), ("dog", 0, 0, 40, 30), ("dog", 20, 15, 40, 30),
    ]  # fmt: skip
    np.testing.assert_array_equal(pixels(source, 4), mask)
    assert set(source.remarks.values()) == {1}
    assert len(source.remarks) == 2
    assert detect(tmp_path).format == "label_studio"
    assert decode_brush(encode_brush(mask * 255)[:-9], (H, W)) is None
    minimal = [{"id": 1, "image": "/data/local-files/?d=images/a.jpg", "annotator": 1, "annotation_id": 1,
                "label": [{"x": 12.5, "y": 25, "width": 50, "height": 50, "rectanglelabels": ["cat"]}]}]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(minimal))
    assert found(read_label_studio(tmp_path / "export.json", tmp_path)) == {"images/a.jpg": [("cat", 10, 15, 40, 30)]}


def test_label_studio_with_labels_beside_the_shapes(tmp_path) -> None:
    """<Labels> with <Rectangle>, <Polygon>, …: two entries of one id, of which "labels" repeats the shape."""
    save_image(tmp_path / "a.jpg")
    shapes = {
        "rectangle": {"x": 12.5, "y": 25, "width": 50, "height": 50, "rotation": 0},
        "polygon": {"points": [[0, 0], [50, 0], [50, 50]]},
        "ellipse": {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0},
        "brush": {"format": "rle", "rle": encode_brush(disc(40, 30, 9) * 255)},
    }
    results = [{"id": kind, "type": kind, "value": value} for kind, value in shapes.items()]
    results += [{"id": kind, "type": "labels", "value": {**v, "labels": [kind]}} for kind, v in shapes.items()]
    results += [{"id": "z", "type": "rectangle", "value": shapes["rectangle"]}]  # nobody has named it
    task = {"id": 1, "data": {"image": "/data/upload/1/0f3a5c77-a.jpg"}, "annotations": [{"result": results}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    source = read_label_studio(tmp_path / "export.json", tmp_path)
    assert source.problems == []
    assert [(name, *map(round, box)) for name, *box in found(source)["a.jpg"]] == [
        ("rectangle", 10, 15, 40, 30), ("polygon", 0, 0, 40, 30), ("ellipse", 20, 15, 40, 30), 
        ("brush", *cv2.boundingRect(disc(40, 30, 9).astype(np.uint8))),
    ]  # fmt: skip
    assert source.remarks == {"regions of type rectangle (left out: not labelled boxes or masks)": 1}
    minimal = {"id": 1, "image": "a.jpg", "annotator": 1, "annotation_id": 1,
               "label": [{**shapes["rectangle"], "labels": ["car"]}]}  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps([minimal]))
    assert found(read_label_studio(tmp_path / "export.json", tmp_path)) == {"a.jpg": [("car", 10, 15, 40, 30)]}


@pytest.mark.parametrize("name", ["a #1.jpg", "what?.jpg", "100% a%20b.jpg", "a b.jpg", "ä [x].jpg"])
def test_odd_names_of_a_storage_are_found(name: str, tmp_path) -> None:
    save_image(tmp_path / "x" / name)
    save_image(tmp_path / "x/other.jpg")
    for address in (
        f"s3://bucket/x/{name}",
        f"https://host/x/{quote(name)}?token=a/b",
        f"/data/local-files/?d=x/{quote(name)}",
    ):
        assert [path.name for path, _, _ in located([address], tmp_path, tmp_path, [], Counter())] == [name]


def test_outlines_without_points_are_problems(tmp_path) -> None:
    save_image(tmp_path / "a.jpg")
    shape = {"name": "polygon", "all_points_x": [], "all_points_y": []}
    region = {"shape_attributes": shape, "region_attributes": {"class": "cat"}}
    (tmp_path / "via.json").write_text(json.dumps({"x": {"filename": "a.jpg", "regions": [region]}}))
    value = {"points": [], "polygonlabels": ["cat"]}
    result = {"result": [{"type": "polygonlabels", "value": value}]}
    (tmp_path / "tasks.json").write_text(json.dumps([{"id": 1, "data": {"image": "a.jpg"}, "annotations": [result]}]))
    for source in (read_via(tmp_path / "via.json"), read_label_studio(tmp_path / "tasks.json")):
        (problem,) = source.problems
        assert problem.endswith("region 1: its outline has no points")
    box = "<box label='cat' xtl='nan' ytl='1' xbr='10' ybr='10'/>"
    (tmp_path / "annotations.xml").write_text(f"<annotations><image name='a.jpg'>{box}</image></annotations>")
    (problem,) = read_cvat(tmp_path / "annotations.xml").problems
    assert "shape 1 (box): its box [nan, 1.0, nan, 9.0] is not finite" in problem


def test_names_never_mean_another_image(tmp_path) -> None:
    """Two folders with a file of one name: the folder decides; without one both are named."""
    for folder in "ab":
        save_image(tmp_path / folder / "1.jpg")
    region = {"shape_attributes": RECT, "region_attributes": {"class": "cat"}}
    (tmp_path / "via.json").write_text(json.dumps({"x": {"filename": "b/1.jpg", "regions": [region]}}))
    assert list(found(read_via(tmp_path / "via.json", tmp_path))) == ["b/1.jpg"]
    (tmp_path / "via.json").write_text(json.dumps({"x": {"filename": "1.jpg", "regions": [region]}}))
    (problem,) = read_via(tmp_path / "via.json", tmp_path).problems
    assert "a/1.jpg" in problem
    assert "b/1.jpg" in problem


# ---- Supervisely -----------------------------------------------------------------------------------------------------


def test_supervisely(tmp_path) -> None:
    save_image(tmp_path / "ds/img/a.jpg")
    (tmp_path / "meta.json").write_text(json.dumps({"classes": [{"title": "cat"}, {"title": "dog"}]}))
    mask = disc(40, 30, 9)
    png = cv2.imencode(".png", np.dstack([np.zeros((20, 20, 3), np.uint8), mask[20:40, 30:50].astype(np.uint8) * 255]))[
        1
    ]
    data = base64.b64encode(zlib.compress(png.tobytes())).decode()
    ring = {
        "exterior": [[10, 10], [50, 10], [50, 50], [10, 50]],
        "interior": [[[20, 20], [40, 20], [40, 40], [20, 40]]],
    }
    objects = [
        {
            "classTitle": "cat",
            "geometryType": "rectangle",
            "points": {"exterior": [[10, 20], [39, 44]], "interior": []},
        },
        {
            "classTitle": "dog",
            "geometryType": "polygon",
            "points": {"exterior": [[0, 0], [40, 0], [40, 30]], "interior": []},
        },
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [30, 20]}},
        {"classTitle": "dog", "geometryType": "polygon", "points": ring},
        {"classTitle": "dog", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
    ]
    (tmp_path / "ds/ann").mkdir()
    content = {"size": {"height": H, "width": W}, "objects": objects}
    (tmp_path / "ds/ann/a.jpg.json").write_text(json.dumps(content))
    source = read_supervisely(tmp_path)
    assert source.problems == []
    assert found(source)["ds/img/a.jpg"][:2] == [("cat", 10, 20, 30, 25), ("dog", 0, 0, 40, 30)]
    np.testing.assert_array_equal(pixels(source, 2), mask)
    hole = pixels(source, 3)
    assert hole[15, 15]
    assert not hole[30, 30]
    assert detect(tmp_path).format == "supervisely"
    assert hole.sum() == 41 * 41 - 21 * 21
    assert sum(source.remarks.values()) == 1


# ---- Open Images, KITTI, MOT, Cityscapes -----------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [[], [[[1, 1], [5, 1], [5, 5]]]])
def test_supervisely_outlines_without_points_are_problems(holes: list, tmp_path) -> None:
    save_image(tmp_path / "ds/img/a.jpg")
    (tmp_path / "meta.json").write_text(json.dumps({"classes": [{"title": "cat"}]}))
    shape = {"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": [], "interior": holes}}
    (tmp_path / "ds/ann").mkdir()
    (tmp_path / "ds/ann/a.jpg.json").write_text(json.dumps({"objects": [shape]}))
    (problem,) = read_supervisely(tmp_path).problems
    assert problem.endswith("object 1: its outline has no points")


def test_open_images(tmp_path) -> None:
    save_image(tmp_path / "validation/00a1.jpg")
    (tmp_path / "class-descriptions-boxable.csv").write_text('/m/01,Cat\n/m/02,"Dog, big"\n')
    (tmp_path / "validation-annotations-bbox.csv").write_text(
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        "00a1,xclick,/m/01,1,0.125,0.5,0.25,0.75,0,0,0,0,0\n00a1,xclick,/m/02,1,0,1,0,1,0,0,1,0,0\nffff,x,/m/01,1,0,1,0,1,0,0,0,0,0\n"
    )
    source = read_open_images(tmp_path / "validation-annotations-bbox.csv", tmp_path)
    assert source.problems == []
    assert found(source) == {"validation/00a1.jpg": [("Cat", 10, 15, 30, 30), ("Dog, big", 0, 0, 80, 60)]}
    assert detect(tmp_path).format == "open_images"
    assert [entry["iscrowd"] for entry in source.content["annotations"]] == [0, 1]
    assert sum(source.remarks.values()) == 1


def test_kitti(tmp_path) -> None:
    save_image(tmp_path / "training/image_2/000000.png")
    (tmp_path / "training/label_2").mkdir()
    (tmp_path / "training/label_2/000000.txt").write_text(
        "Car 0.00 0 -1.57 10.0 20.0 40.5 45.0 1.5 1.6 3.9 1 2 3 0.1\n"
        "DontCare -1 -1 -10 1 1 5 5 -1 -1 -1 -1000 -1000 -1000 -10\n"
    )
    source = read_kitti(tmp_path)
    assert detect(tmp_path).format == "kitti"
    assert found(source) == {"000000.png": [("Car", 10, 20, 30.5, 25)]}
    assert sum(source.remarks.values()) == 1


def test_a_kitti_line_with_a_column_too_few_is_no_box(tmp_path) -> None:
    save_image(tmp_path / "training/image_2/000000.png")
    (tmp_path / "training/label_2").mkdir()
    (tmp_path / "training/label_2/000000.txt").write_text("Car 0.00 -1.57 10.0 20.0 40.5 45.0 50 1.5 1.6 3.9 1 2 3\n")
    (problem,) = read_kitti(tmp_path).problems
    assert problem.endswith("000000.txt:1: has 14 columns; KITTI's have 15, or 16 with a score, or the first 8")


def test_a_kitti_type_of_two_words_is_no_box(tmp_path) -> None:
    save_image(tmp_path / "training/image_2/000000.png")
    (tmp_path / "training/label_2").mkdir()
    line = "potted plant 0.00 0 -1.57 10.0 20.0 40.5 45.0 1.5 1.6 3.9 1 2 3 0.1\n"  # 16 columns, as with a score
    (tmp_path / "training/label_2/000000.txt").write_text(line)
    source = read_kitti(tmp_path)
    assert not source.content["annotations"]
    (problem,) = source.problems
    assert "000000.txt:1: 'potted plant 0.00 0 -1.57 10.0" in problem
    assert problem.endswith("must be one word for the type, then numbers alone")


def test_mot(tmp_path) -> None:
    for frame in (1, 2):
        save_image(tmp_path / f"MOT17-02/img1/00000{frame}.jpg")
    (tmp_path / "MOT17-02/gt").mkdir()
    (tmp_path / "MOT17-02/gt/gt.txt").write_text(
        "1,1,11,21,30,25,1,1,1.0\n1,2,1,1,5,5,0,1,1.0\n2,1,12,21,30,25,1,1,0.5\n2,3,1,1,9,9,1,3,1\n"
    )
    source = read_mot(tmp_path)
    assert detect(tmp_path).format == "mot"
    one, two = ("pedestrian", 10, 20, 30, 25), ("pedestrian", 11, 20, 30, 25)
    assert found(source) == {"MOT17-02/img1/000001.jpg": [one], "MOT17-02/img1/000002.jpg": [two]}
    assert set(source.remarks.values()) == {1}
    assert len(source.remarks) == 2


def test_cityscapes_later_polygons_hide_earlier_ones(tmp_path) -> None:
    save_image(tmp_path / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png")
    square = [[10, 10], [39, 10], [39, 39], [10, 39]]
    objects = [
        {"label": "road", "polygon": [[0, 0], [79, 0], [79, 59], [0, 59]]},
        {"label": "car", "polygon": square},
        {"label": "license plate", "polygon": [[12, 30], [20, 30], [20, 35], [12, 35]]},
        {"label": "pole", "polygon": [[25, 0], [79, 0], [79, 59], [25, 59]]},
        {"label": "persongroup", "polygon": [[50, 20], [70, 20], [70, 40]]},
        {"label": "car", "polygon": [[2, 2], [4, 2], [4, 4]], "deleted": 1},
    ]
    file = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_polygons.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"imgHeight": H, "imgWidth": W, "objects": objects}))
    source = read_cityscapes(tmp_path, split="val")
    assert source.problems == []
    assert found(source) == {
        "val/ulm/ulm_000000_000019_leftImg8bit.png": [("car", 10, 10, 15, 30), ("person", 50, 20, 21, 21)]
    }
    assert detect(tmp_path).format == "cityscapes"
    assert pixels(source, 0).sum() == 15 * 30
    assert [entry["iscrowd"] for entry in source.content["annotations"]] == [0, 1]
    with pytest.raises(UserError, match="no split 'test'; it has val"):
        read_cityscapes(tmp_path, split="test")
