from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from pictures import textured
from resdet.data.index import Objects
from resdet.drawing.labels import gap, place_labels
from resdet.overlays import color_of
from resdet.structures import Instances
from resdet.visualize import annotated_instances, contact_sheet, draw, layout_of, save_drawing


def some(size: tuple[int, int], count: int = 3, masks: bool = True) -> Instances:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.5, (count, 2)) * np.array(size[::-1])
    boxes = np.concatenate([corner, corner + np.array(size[::-1]) * 0.4], axis=1).astype(np.float32)
    probs = np.ones((count, 28, 28), np.float32) if masks else None
    return Instances(boxes, np.full(count, 0.9, np.float32), np.arange(count), size, probs)


@pytest.mark.parametrize("size", [(40, 60), (480, 640), (2000, 3000)])
@pytest.mark.parametrize("masks", [True, False])
def test_objects_are_drawn_on_pictures_of_any_size(size: tuple[int, int], masks: bool) -> None:
    picture = textured(*size)
    before = picture.copy()
    drawn = draw(picture, some(size, masks=masks), ["a", "b", "c"])
    assert np.array_equal(picture, before)  # the caller's picture is left alone
    assert min(drawn.shape[:2]) >= 480
    assert drawn.shape[0] * size[1] == drawn.shape[1] * size[0]
    changed = (draw(picture, some(size, 0), []).astype(int) != drawn).any(-1).mean()
    assert (0.2 if masks else 0.005) < changed < 0.95


def test_keypoints_and_limbs_are_drawn_where_they_are_labelled() -> None:
    points = np.array([[[100, 100, 2], [200, 100, 1], [200, 200, 0]]], np.float32)
    instances = Instances(np.array([[50, 50, 300, 300]], np.float32), np.ones(1), np.zeros(1, int), (480, 480))
    plain = draw(np.zeros((480, 480, 3), np.uint8), instances, ["a"])
    posed = replace(instances, keypoints=points)
    drawn = draw(np.zeros((480, 480, 3), np.uint8), posed, ["a"], edges=[(0, 1), (1, 2)])
    changed = (plain != drawn).any(2)
    assert changed[99, 99]
    assert changed[99, 150]
    assert changed[99, 199]
    assert drawn[95:105, 150].min(1).max() > 120  # a limb is edged in white
    assert not changed[150:250].any()


def test_colours_by_class_and_by_instance() -> None:
    instances = some((200, 200), 2)
    same_class = Instances(instances.boxes, instances.scores, np.zeros(2, np.int64), (200, 200), instances.mask_probs)
    by_class = draw(np.zeros((200, 200, 3), np.uint8), same_class, ["a"], color_by="class")
    by_instance = draw(np.zeros((200, 200, 3), np.uint8), same_class, ["a"], color_by="instance")
    assert not np.array_equal(by_class, by_instance)
    colors = [color_of(k) for k in range(30)]
    assert len(set(colors)) == 30
    assert all(sum(abs(a - b) for a, b in zip(x, y, strict=True)) > 60 for x, y in itertools.pairwise(colors))


def grid_of(size: int = 20) -> Instances:
    """A hundred objects in rows, all with masks."""
    corners = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(-1, 2) * 48 + 14.0
    boxes = np.concatenate([corners, corners + size], axis=1).astype(np.float32)
    return Instances(
        boxes, np.full(100, 0.9, np.float32), np.arange(100) % 2, (480, 480), np.ones((100, 28, 28), np.float32)
    )


def test_many_objects_have_a_legend_instead_of_labels_and_those_of_one_class_a_colour_each() -> None:
    found, picture = grid_of(), np.zeros((480, 480, 3), np.uint8)
    gaps = np.ones((480, 480), bool)
    for x1, y1, x2, y2 in found.boxes.astype(int):
        gaps[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = False
    centres = [(x, y) for x, y in (found.boxes[:, :2].astype(int) + 10)]
    dense = draw(picture, found, ["a", "b"])
    assert not dense[:480][gaps].any()
    assert len({tuple(dense[y, x]) for x, y in centres}) == 2
    assert layout_of(picture, found, ["a", "b"]).legend == [(color_of(0), "a 50"), (color_of(1), "b 50")]
    legend = {tuple(pixel) for pixel in dense[480:].reshape(-1, 3).tolist()}
    assert {color_of(0), color_of(1)} < legend
    for same in (
        draw(picture, found, ["a", "b"], color_by="instance"),
        draw(picture, replace(found, labels=found.labels * 0), ["a"]),
    ):
        assert same.shape == (480, 480, 3)
        assert not same[gaps].any()
        assert len({tuple(same[y, x]) for x, y in centres}) > 90
    few = replace(found, **{name: getattr(found, name)[:5] for name in ("boxes", "scores", "labels", "mask_probs")})
    assert draw(picture, few, ["a", "b"])[gaps].any()  # labels and the boxes of masks
    one_class = replace(few, labels=np.zeros(5, int))
    assert not draw(picture, one_class, ["a"], scores=False)[gaps].any()  # nothing to write


def test_labels_cover_neither_objects_nor_each_other() -> None:
    boxes = np.array([[50.0, 50, 150, 150]] * 8 + [[0, 0, 400, 20]])
    occupied = np.zeros((300, 400), bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        occupied[y1:y2, x1:x2] = True
    places = place_labels(boxes, [(60, 15)] * 9, occupied)
    for x1, y1, x2, y2 in places:
        assert (x2 - x1, y2 - y1) == (60, 15)
        assert x1 >= 0 <= y1
        assert x2 <= 400
        assert y2 <= 300
        assert not occupied[round(y1) : round(y2), round(x1) : round(x2)].any()
    for a, b in itertools.combinations(places, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    full = np.ones((300, 400), bool)
    full[40:60, 100:200] = False  # the one free place is inside another object's box
    (place,) = place_labels(np.array([[60.0, 60, 250, 250]]), [(60, 15)], full)
    assert 100 <= place[0] < place[2] <= 200


def test_a_label_that_is_away_from_its_box_has_a_line_to_it() -> None:
    box = np.array([10.0, 10, 20, 20])
    assert gap(box, (10, 21, 40, 30)) is None
    assert gap(box, (12, 40, 18, 50)) == ((15, 20), (15, 40))
    assert gap(box, (40, 40, 50, 50)) == ((20, 20), (40, 40))


def seen_by(color: tuple[int, int, int], matrix: list[list[float]]) -> np.ndarray:
    """Machado et al. 2009: linear RGB as the colour-blind see it."""
    linear = (np.array(color) / 255) ** 2.2
    return (np.array(matrix) @ linear).clip(0, 1) ** (1 / 2.2)


def test_the_first_colours_are_told_apart_by_the_colour_blind() -> None:
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]

    def nearest(colors: list[tuple[int, int, int]]) -> float:
        pairs = itertools.product((protan, deutan), itertools.combinations(colors, 2))
        return min(float(np.linalg.norm(seen_by(a, m) - seen_by(b, m))) for m, (a, b) in pairs)

    safe = nearest([color_of(k) for k in range(7)])
    assert safe > 0.12
    assert nearest([(220, 60, 40), (130, 130, 30)]) < safe  # red and olive, which deuteranopes confuse


def test_shapes_and_text_of_a_drawing_are_written_as_such(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    points = np.array([[[100, 100, 2], [200, 100, 1], [200, 200, 0]]], np.float32).repeat(3, 0)
    found = replace(some((480, 640)), keypoints=points)
    layout = layout_of(textured(480, 640), found, ["cat", "d<g", "cow"], edges=[(0, 1), (1, 2)])
    save_drawing([layout, layout], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("<image") == 2
    assert re.findall(r">(cat|d&lt;g|cow) 90%<", text).count("d&lt;g") == 2
    save_drawing([layout, layout], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
    save_drawing([layout_of(textured(480, 480), grid_of(), ["cat", "dog"])], tmp_path / "b.svg")
    assert ">cat 50<" in (tmp_path / "b.svg").read_text()
    save_drawing([layout], tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_contact_sheet_has_a_cell_for_each() -> None:
    sheet = contact_sheet([(np.full((50, 80, 3), 255, np.uint8), "a very long title " * 10)] * 5, columns=3, tile=100)
    assert sheet.shape == (2 * 124, 300, 3)
    assert sheet[60, 50].min() == 255
    assert sheet[124 + 60, 250].max() < 50  # the sixth cell is empty


def test_annotations_without_masks_are_drawn_as_boxes() -> None:
    boxes = np.array([[10, 10, 60, 60], [70, 10, 120, 60]], np.float32)
    objects = Objects(boxes, np.array([0, 1]), [[[10, 10, 60, 10, 60, 60]], None])
    found = annotated_instances(objects, (130, 130))
    drawn = draw(np.zeros((130, 130, 3), np.uint8), found, ["a", "b"], scores=False)
    k = drawn.shape[0] / 130
    assert drawn[int(30 * k), int(50 * k)].max() > 0  # inside the triangle
    assert drawn[int(35 * k), int(95 * k)].max() == 0  # nothing to fill
    assert annotated_instances(objects._replace(segmentations=[None, None]), (130, 130)).mask_probs is None
