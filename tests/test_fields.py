"""What is done to every field of a structure, also of one that has fields which nobody knew of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from resdet.fields import cat, chunk, map_tensors, replace
from resdet.inference.postprocess import to_instances
from resdet.structures import Detections, Instances


class Inner(NamedTuple):
    rows: Tensor
    absent: Tensor | None
    heatmaps: Tensor


class Outer(NamedTuple):
    images: Tensor
    inner: Inner | None
    style: str


def structure(b: int) -> Outer:
    rows = torch.arange(b * 2.0).view(b, 2)
    return Outer(rows, Inner(rows + 1, None, rows[:, :, None] + 2), "torchvision")


@pytest.mark.parametrize(("parts", "sizes"), [(1, [5]), (2, [3, 2]), (4, [2, 2, 1])])
def test_parts_and_their_whole(parts: int, sizes: list[int]) -> None:
    whole = structure(5)
    split = chunk(whole, parts)
    assert [len(part.images) for part in split] == [len(part.inner.heatmaps) for part in split] == sizes
    again = cat(split)
    assert type(again.inner) is Inner
    assert again.inner.absent is None
    assert again.style == "torchvision"
    for found, given in ((again.images, whole.images), *zip(again.inner[::2], whole.inner[::2], strict=True)):
        assert torch.equal(found, given)
    assert [part.inner for part in chunk(whole._replace(inner=None), 2)] == [None, None]


def test_fields_are_mapped_and_replaced_in_one_graph() -> None:
    def changed(x: Tensor) -> Outer:
        given = Outer(x, Inner(x, None, x), "resdet")
        return replace(map_tensors(lambda t: t + 1, given), images=x * 3, style="torchvision")

    x = torch.arange(3.0)
    graph = torch.compile(changed, fullgraph=True, backend="eager")
    for found in (changed(x), graph(x)):
        assert found.images.tolist() == [0, 3, 6]
        assert found.inner.rows.tolist() == found.inner.heatmaps.tolist() == [1, 2, 3]
        assert (found.inner.absent, found.style) == (None, "torchvision")


def test_each_image_gets_its_own_rows_in_its_own_frame() -> None:
    boxes = torch.tensor([[2.0, 4, 6, 8], [0, 0, 10, 20], [1, 1, 2, 2]]).expand(2, 3, 4)
    scores = torch.tensor([[0.2, 0.9, 0.0], [0.7, 0.5, 0.1]])
    valid = torch.tensor([[True, True, False], [True, False, True]])
    probs = torch.arange(6.0).view(2, 3, 1, 1)
    sizes = torch.tensor([[20, 10], [40, 20]])
    given = Detections(boxes, scores, torch.tensor([[0, 1, 2]] * 2), valid, sizes, probs, paste="torchvision")
    first, second = to_instances(given, [(40, 30), (40, 20)])
    assert first.boxes.tolist() == [[0, 0, 30, 40], [6, 8, 18, 16]]
    assert (first.labels.tolist(), first.image_size, first.paste) == ([1, 0], (40, 30), "torchvision")
    assert first.mask_probs.ravel().tolist() == [1, 0]
    assert second.mask_probs.ravel().tolist() == [3, 5]
    assert second.above(0.3).mask_probs.ravel().tolist() == [3]
    assert second.select(np.array([1, 0])).labels.tolist() == [0, 2][::-1]
    assert to_instances(given._replace(mask_probs=None), [(40, 30), (40, 20)])[1].mask_probs is None


def test_selection_reaches_every_array() -> None:
    n = {name: np.arange(3.0) for name in Instances.per_object()}
    few = Instances(**n, image_size=(4, 5), paste="torchvision").select(np.array([True, False, True]))
    assert all(getattr(few, name).tolist() == [0, 2] for name in n)
    assert (few.image_size, few.paste) == ((4, 5), "torchvision")
