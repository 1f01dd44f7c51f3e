"""Small valid exports of annotation tools, to be spoiled by `fuzzing.py`: images of 40 x 50, the annotations as JSON's values,
as text or as bytes."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np

H, W = 40, 50
PICTURE = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)


class Export(NamedTuple):
    """images: their paths. files: path -> content, text, bytes or what JSON holds; the first ones are those to spoil."""

    images: list[str]
    files: dict[str, Any]


def _via(shape: dict[str, Any], label: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": {"kind": label}}


RECT = {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 15}
CIRCLE = {"name": "ellipse", "cx": 20, "cy": 20, "rx": 10, "ry": 5, "theta": 0.5}
POLYGON = {"name": "polygon", "all_points_x": [0, 40, 40], "all_points_y": [0, 0, 30]}
VIA = {
    "1.jpg9": {"filename": "1.jpg", "size": 9, "regions": [_via(RECT, "cat"), _via(CIRCLE, {"dog": True})]},
    "2.jpg9": {"filename": "2.jpg", "size": 9, "regions": {"0": _via(POLYGON, "dog")}, "file_attributes": {}},
}
_CELLS = (json.dumps(part).replace('"', '""') for part in (RECT, {"kind": "cat"}))
VIA_CSV = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    '1.jpg,9,"{}",1,0,"' + '","'.join(_CELLS) + '"\n2.jpg,9,"{}",0,0,"{}","{}"\n'
)
CVAT = """<annotations><version>1.1</version><meta><task><labels><label><name>dog</name></label><label><name>cat</name></label>
<label><name>blurred</name><type>tag</type></label><label><name>man</name><type>skeleton</type></label>
<label><name>head</name><type>points</type><parent>man</parent></label><label><name>foot</name><parent>man</parent></label>
</labels></task></meta><image id="0" name="1.jpg" width="50" height="40"><box label="cat" xtl="10.5" ytl="20" xbr="40"
ybr="35"/><box label="cat" xtl="20" ytl="25" xbr="40" ybr="35" rotation="90"/><polygon label="dog" points="0,0;40,0;40,30"/>
<ellipse label="dog" cx="20" cy="20" rx="10" ry="5" rotation="30"/><mask label="dog" rle="3, 4, 5, 4" left="30"
top="20" width="4" height="4"/><tag label="blurred"/><skeleton label="man"><points label="foot" points="9,20.5"/>
<points label="head" occluded="1" points="5,6"/></skeleton></image>
<image id="1" name="2.jpg" width="50" height="40"/></annotations>"""


def encode_brush(alpha: np.ndarray) -> list[int]:
    """Label Studio's run lengths of an RGBA image whose alpha is this, written from the format's description."""
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., 3] = alpha
    values = rgba.ravel()
    bits = f"{values.size:032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (2, 4, 8, 16))
    first = 0
    for end in [*(np.flatnonzero(np.diff(values)) + 1), values.size]:
        while first < end:
            length = min(int(end) - first, 2**16)
            bits += f"1{3:02b}{length - 1:016b}{values[first]:08b}"
            first += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


BRUSH = encode_brush(np.pad(np.full((20, 20), 255, np.uint8), ((10, 10), (5, 25))))


def _result(kind: str, label: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": W, "original_height": H, "value": {**value, kind: [label]}}


LABEL_STUDIO = [
    {"id": 1, "data": {"image": "/data/upload/1/0f3a5c77-1.jpg"}, "annotations": [{"result": [
        _result("rectanglelabels", "cat", x=12.5, y=25, width=50, height=50, rotation=0),
        _result("polygonlabels", "dog", points=[[0, 0], [50, 0], [50, 50]]),
        _result("ellipselabels", "dog", x=50, y=50, radiusX=25, radiusY=25, rotation=15),
        _result("brushlabels", "dog", format="rle", rle=BRUSH),
    ]}]},
    {"id": 2, "data": {"image": "https://example.com/2.jpg?x=1"}, "annotations": [{"result": [], "was_cancelled": True}]},
]  # fmt: skip
LABEL_STUDIO_MIN = [
    {"annotation_id": 1, "annotator": 1, "id": 1, "image": "/data/local-files/?d=set/1.jpg", "box": [
        {"x": 12.5, "y": 25, "width": 50, "height": 50, "rotation": 5, "rectanglelabels": ["cat"], "original_width": W},
    ]},
    {"annotation_id": 2, "annotator": 1, "id": 2, "image": "s3://set/2.jpg", "outline": [
        {"points": [[0, 0], [50, 0], [50, 50]], "closed": True, "polygonlabels": ["dog"]},
    ]},
]  # fmt: skip
_ALPHA = np.dstack([np.zeros((5, 5, 3), np.uint8), np.full((5, 5), 255, np.uint8)])
BITMAP = base64.b64encode(zlib.compress(cv2.imencode(".png", _ALPHA)[1].tobytes())).decode()
SUPERVISELY = {
    "size": {"height": H, "width": W},
    "objects": [
        {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[10, 20], [39, 34]], "interior": []}},
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": BITMAP, "origin": [30, 20]}},
        {"classTitle": "dog", "geometryType": "polygon", "points": {
            "exterior": [[10, 10], [40, 10], [40, 30], [10, 30]], "interior": [[[20, 20], [30, 20], [30, 25], [20, 25]]],
        }},
    ],
}  # fmt: skip
CITYSCAPES = {
    "imgHeight": H, "imgWidth": W, "objects": [
        {"label": "road", "polygon": [[0, 0], [49, 0], [49, 39], [0, 39]]},
        {"label": "car", "polygon": [[10, 10], [39, 10], [39, 30], [10, 30]]},
        {"label": "persongroup", "polygon": [[20, 20], [45, 20], [45, 35]], "deleted": 0},
    ],
}  # fmt: skip
LVIS = {
    "images": [
        {"id": k, "height": H, "width": W, "coco_url": f"http://images.example.org/train2017/{k}.jpg",
         "neg_category_ids": [7], "not_exhaustive_category_ids": [], "known_category_ids": [3, 7]}
        for k in (1, 2)
    ],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5.0, 5.0, 20.0, 10.0], "area": 200}],
    "categories": [{"id": 3, "name": "cat", "frequency": "f"}, {"id": 7, "name": "dog", "frequency": "r"}],
}  # fmt: skip
LABEL_MAP = np.zeros((H, W), np.uint16)
LABEL_MAP[5:15, 5:25], LABEL_MAP[20:30, 10:40], LABEL_MAP[15:18, 30:34] = 1, 300, 2
BOTH = ["1.jpg", "2.jpg"]
STEM = "train/ulm/ulm_000000_000019"
EXPORTS = {
    "via": Export(BOTH, {"via.json": VIA}),
    "via csv": Export(BOTH, {"via.csv": VIA_CSV}),
    "cvat": Export(BOTH, {"annotations.xml": CVAT}),
    "label_studio": Export(BOTH, {"export.json": LABEL_STUDIO}),
    "label_studio min": Export(BOTH, {"export.json": LABEL_STUDIO_MIN}),
    "yolo darknet": Export(BOTH, {
        "1.txt": "0 0.3 0.25 0.4 0.25\n1 0.5 0.5 -0.5 0.25\n",
        "obj.data": "classes = 2\ntrain = data/train.txt\nnames = obj.names\n",
        "train.txt": "data/1.jpg\ndata/2.jpg\n", "obj.names": "cat\ndog\n",
    }),
    "supervisely": Export(["train/img/1.jpg"], {
        "train/ann/1.jpg.json": SUPERVISELY, "meta.json": {"classes": [{"title": "cat"}, {"title": "dog"}]},
    }),
    "open_images": Export(["train/1.jpg"], {
        "train-annotations-bbox.csv": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
        "1,xclick,/m/01,1,0.125,0.5,0.25,0.75,0\n1,xclick,/m/02,1,0,1,0,1,1\n",
        "class-descriptions-boxable.csv": '/m/01,Cat\n/m/02,"Dog, big"\n',
    }),
    "kitti": Export(["training/image_2/000000.png"], {
        "training/label_2/000000.txt": "Car 0.00 0 -1.57 10.0 20.0 40.5 35.0 1.5 1.6 3.9 1 2 3 0.1\n"
        "DontCare -1 -1 -10 1 1 5 5 -1 -1 -1 -1000 -1000 -1000 -10\n",
    }),
    "mot": Export(["MOT-02/img1/000001.jpg", "MOT-02/img1/000002.jpg"], {
        "MOT-02/gt/gt.txt": "1,1,11,21,30,15,1,1,1.0\n1,2,1,1,5,5,0,1,1.0\n2,1,12,21,30,15,1,1,0.5\n",
    }),
    "cityscapes": Export([f"leftImg8bit/{STEM}_leftImg8bit.png"], {f"gtFine/{STEM}_gtFine_polygons.json": CITYSCAPES}),
    "masks": Export(["images/1.jpg", "images/2.jpg"], {
        "masks/1.png": cv2.imencode(".png", LABEL_MAP)[1].tobytes(), "masks/1.json": {"1": "cat", "2": "dog", "300": "dog"},
        "masks/2.tif": cv2.imencode(".tif", LABEL_MAP)[1].tobytes(), "classes.json": ["dog", "cat", "object"],
    }),
    "coco lvis": Export(["train2017/1.jpg", "train2017/2.jpg"], {"lvis_v1_train.json": LVIS}),
}  # fmt: skip
