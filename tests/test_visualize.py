from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pictures import textured
from resdet.data.index import Objects
from resdet.overlays import color_of
from resdet.structures import Instances
from resdet.visualize import _free_position, annotated_instances, contact_sheet, draw


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


def test_many_small_objects_have_a_colour_each_and_no_labels() -> None:
    grid = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(-1, 2) * 48 + 14.0
    boxes = np.concatenate([grid, grid + 20], axis=1).astype(np.float32)
    picture, labels = np.zeros((480, 480, 3), np.uint8), np.arange(100) % 2
    found = Instances(boxes, np.full(100, 0.9, np.float32), labels, (480, 480), np.ones((100, 28, 28), np.float32))
    gaps = np.ones((480, 480), bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        gaps[y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = False
    dense = draw(picture, found, ["a", "b"])
    assert not dense[gaps].any()
    centres = {tuple(dense[y, x]) for x, y in (grid.astype(int) + 10)}
    assert len(centres) > 90
    by_class = draw(picture, found, ["a", "b"], color_by="class")
    assert len({tuple(by_class[y, x]) for x, y in (grid.astype(int) + 10)}) == 2
    few = replace(found, **{name: getattr(found, name)[:5] for name in ("boxes", "scores", "labels", "mask_probs")})
    assert draw(picture, few, ["a", "b"])[gaps].any()  # labels and the boxes of masks
    one_class = replace(few, labels=np.zeros(5, int))
    assert np.array_equal(draw(picture, one_class, ["a"]), draw(picture, one_class, ["a"], color_by="instance"))
    assert not draw(picture, one_class, ["a"], scores=False)[gaps].any()  # nothing to write


def test_labels_do_not_cover_each_other() -> None:
    box, taken = np.array([50.0, 50, 150, 150]), []
    for _ in range(8):
        x, y = _free_position(box, 60, 15, 400, 300, taken)
        assert 0 <= x <= 340
        assert 0 <= y <= 285
        assert not any(x < c and a < x + 60 and y < d and b < y + 15 for a, b, c, d in taken)
        taken.append((x, y, x + 60, y + 15))


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
