"""Depths, ranges and what is shown of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from resdet.data.pixels import decide_range, find_range, for_display, measure_depth, sample_of, to_unit
from resdet.errors import UserError


def twelve_bits(folder, count: int = 4) -> list:
    files = []
    for k in range(count):
        image = np.random.default_rng(k).integers(400, 3000, (40, 50)).astype(np.uint16)
        image[10:14, 10:14] = 4000  # small, in every image
        image[0, k] = 65535  # a hot pixel
        files.append(folder / f"{k}.png")
        cv2.imwrite(str(files[-1]), image)
    return files


def test_values_keep_their_precision_in_the_networks_unit() -> None:
    values = np.arange(500, 4500, dtype=np.uint16).reshape(40, 100, 1)
    unit = to_unit(values, (1000, 4000), "x")
    assert unit.dtype == np.float32
    exact = np.clip((values.astype(np.float64) - 1000) * 255 / 3000, 0, 255)
    assert np.abs(unit - exact).max() < 1e-4
    assert len(np.unique(unit)) == 3001
    far = np.array([[[2**31 + 1], [2**31 + 3]]], np.uint32)  # which float32 cannot tell apart
    assert to_unit(far, (2**31, 2**31 + 4), "x").ravel().tolist() == [63.75, 191.25]
    holes = np.array([[[np.nan], [np.inf], [-np.inf], [0.5]]], np.float32)
    assert to_unit(holes, (0, 1), "x").ravel().tolist() == [0, 255, 0, 127.5]


def test_8_bit_values_stay() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert to_unit(image, None, "x") is image
    assert np.array_equal(to_unit(image, (0, 4095), "x"), image)
    with pytest.raises(UserError, match=r"a\.png: has uint16 pixels, .*data\.pixel_range="):
        to_unit(image.astype(np.uint16), None, "a.png")


def test_ranges_of_a_set(tmp_path) -> None:
    depth = measure_depth(twelve_bits(tmp_path), 3)
    assert (depth.sampled, depth.deep, depth.dtypes, depth.channels, depth.highest) == (4, 4, ("uint16",), (1,), 65535)
    low, high = find_range("auto", depth)
    assert 400 <= low < 420
    assert high == 4000  # of the small objects; not that of the hot pixels
    low, high = find_range("percentile", depth)
    assert 400 < low < 450
    assert 2900 < high < 3000
    assert find_range("dtype", depth) == (0, 65535)
    decided, line = decide_range("auto", depth, None)
    assert decided == find_range("auto", depth)
    assert "4 with more than 8 bits, values from 400 to 65535" in line
    assert decide_range("auto", depth, (5, 6))[0] == (5, 6)
    assert decide_range((7, 8), depth, (5, 6))[0] == (7, 8)


def test_sets_of_8_bits_and_of_other_channels(tmp_path) -> None:
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.jpg"), np.zeros((8, 8, 3), np.uint8))
    files = sorted(tmp_path.glob("*.jpg"))
    assert decide_range("auto", measure_depth(files, 3), None) == (None, "")
    with pytest.raises(UserError, match=r"pixel_range=\(0, 9\) has no effect"):
        decide_range((0, 9), measure_depth(files, 3), None)
    with pytest.raises(
        UserError,
        match=r"(?s)3 of 3 sampled images do not have model.input.channels channels.*0\.jpg: has 3 channels.*=3",
    ):
        decide_range("auto", measure_depth(files, 5), None)
    np.save(tmp_path / "flat.npy", np.full((8, 8), 7, np.uint16))
    with pytest.raises(UserError, match="are all 7 to 7"):
        decide_range("auto", measure_depth([tmp_path / "flat.npy"], 1), None)
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan, np.float32))
    for given in ("auto", (0, 9)):
        with pytest.raises(UserError, match=r"(?s)1 of 2 sampled images have no finite pixel .all are NaN.*nan\.npy"):
            decide_range(given, measure_depth([tmp_path / "flat.npy", tmp_path / "nan.npy"], 1), None)
    with pytest.raises(UserError, match=r"nan\.npy: all its pixels are NaN or infinite"):
        to_unit(np.load(tmp_path / "nan.npy"), (0, 9), "nan.npy")


def test_samples_spread_over_a_set() -> None:
    assert sample_of(3) == [0, 1, 2]
    assert len(sample_of(5000)) == 100
    assert (sample_of(5000)[0], sample_of(5000)[-1]) == (0, 4999)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_composites(channels: int, shown: list[int]) -> None:
    image = (np.random.default_rng(0).random((4, 5, channels)) * 255).astype(np.float32)
    found = for_display(image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.rint(image[..., shown]).astype(np.uint8))
