"""Roboflow writes a parent of all classes as category 0, which is no class to learn."""

from __future__ import annotations

import json

import pytest

from resdet.config import DataConfig
from resdet.data.root_category import root_category
from resdet.data.sources import open_split

ROOT = {"id": 0, "name": "cells", "supercategory": "none"}
CHILDREN = [{"id": 1, "name": "cells", "supercategory": "cells"}, {"id": 2, "name": "RBC", "supercategory": "cells"}]


def content(categories: list[dict], used: object = 1) -> dict:
    return {"images": [], "annotations": [{"category_id": used}], "categories": categories}


def test_an_unused_root_is_left_out_and_told(tmp_path) -> None:
    (tmp_path / "ann.json").write_text(json.dumps(content([ROOT, *CHILDREN])))
    data = DataConfig.model_validate({"train": {"images": tmp_path, "annotations": tmp_path / "ann.json"}})
    source = open_split(data, "train")
    assert source.content["categories"] == CHILDREN
    assert source.remarks == {
        "root category 'cells' (parent of all others, no object has it: left out of the classes)": 1
    }


@pytest.mark.parametrize(
    ("categories", "used"),
    [
        ([ROOT, *CHILDREN], 0),  # an object has it
        ([ROOT, *CHILDREN], "0"),
        ([ROOT, CHILDREN[0], {**CHILDREN[1], "supercategory": "other"}], 1),  # not the parent of all
        ([ROOT], 1),  # the only class
        ([{**ROOT, "supercategory": "cells"}, *CHILDREN], 1),  # one of a kind that only shares its name
        ([{"id": 0, "name": "none", "supercategory": "none"}, {"id": 1, "name": "a", "supercategory": "b"}], 1),
    ],
)
def test_what_may_be_a_class_stays(categories: list[dict], used: object) -> None:
    assert root_category(content(categories, used)) is None
