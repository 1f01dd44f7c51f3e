"""A split in the labels of a model whose classes are others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from resdet.data.coco import Annotations, read_coco
from resdet.data.relabel import for_classes
from resdet.errors import UserError


def split(folder: Path, names: list[str]) -> Annotations:
    """Three images; object k of class k % K, at x = k, in image k % 3, every second one with a mask."""
    (folder / "img").mkdir(exist_ok=True)
    for k in range(3):
        (folder / "img" / f"{k}.png").touch()
    objects = [
        {
            "id": k + 1, "image_id": k % 3, "category_id": 7 + k % len(names), "bbox": [k, 0, 5, 5],
            "segmentation": [[k, 0, k + 5, 0, k + 5, 5]] if k % 2 else None,
        }
        for k in range(4 * len(names))
    ]  # fmt: skip
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 40, "width": 60} for k in range(3)],
        "categories": [{"id": 7 + k, "name": name} for k, name in enumerate(names)],
        "annotations": objects,
    }
    (folder / "ann.json").write_text(json.dumps(content))
    return read_coco(folder / "ann.json", folder / "img")


def objects_of(annotations: Annotations) -> list[tuple[int, float, str, bool]]:
    """(image, x, class name, has a mask) of every object."""
    return sorted(
        (info.image_id, float(box[0]), annotations.class_names[label], mask is not None)
        for info in annotations.images
        for box, label, mask in zip(*info.objects[:3], strict=True)
    )


def test_the_same_names_in_another_order(tmp_path) -> None:
    read = split(tmp_path, ["a", "A", "b"])
    found, notes = for_classes(read, ["b", "a", "A"], "w.pt", "the checkpoint")
    assert (found.category_ids, notes) == ([9, 7, 8], [])
    assert objects_of(found) == objects_of(read)
    assert for_classes(read, ["a", "A", "b"], "w.pt", "the checkpoint") == (read, [])


def test_classes_that_one_side_lacks_are_told(tmp_path) -> None:
    read = split(tmp_path, ["a", "strange", "traffic_light"])
    found, notes = for_classes(read, ["new", "Traffic Light", "a"], "w.pt", "the checkpoint")
    assert found.category_ids == [None, 9, 7]
    expected = [entry for entry in objects_of(read) if entry[2] != "strange"]
    renamed = [(i, x, name.replace("traffic_light", "Traffic Light"), mask) for i, x, name, mask in expected]
    assert objects_of(found) == renamed
    np.testing.assert_array_equal(np.sort(found.images.counts), [0, 4, 4])  # image and class go together here
    assert "1 of the 3 classes of" in notes[0]
    assert "4 objects count as missed: strange" in notes[0]
    assert notes[1].endswith("detections of them are not scored: new")
    assert notes[2].endswith("'traffic_light' = 'Traffic Light'")


def test_nothing_in_common_and_ambiguity_are_errors(tmp_path) -> None:
    read = split(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"no class in common: the checkpoint has cat; the data have a, b"):
        for_classes(read, ["cat"], "w.pt", "the checkpoint")
    with pytest.raises(UserError, match=r"w\.pt(.|\n)*'a' could be 'A' or 'a '"):
        for_classes(read, ["A", "a ", "b"], "w.pt", "the checkpoint")
