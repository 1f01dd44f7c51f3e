from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pictures import textured
from resdet.data.dataset import read_annotated
from resdet.data.images import find_images, read_image, resize_image, resized_size
from resdet.data.index import ImageInfo, Objects
from resdet.errors import UserError

NOTHING = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])


def save(path, picture: np.ndarray, orientation: int = 1, **options: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif, **options)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], -1).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_pillows(tmp_path, orientation: int) -> None:
    from PIL import ImageOps

    path = tmp_path / "x.jpg"
    save(path, smooth(40, 64), orientation, quality=98)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_rotation_is_applied_only_where_the_annotation_agrees(tmp_path, caplog) -> None:
    path = tmp_path / "x.jpg"
    save(path, smooth(40, 64), 6)
    assert read_annotated(ImageInfo(1, path, (64, 40), NOTHING)).shape == (64, 40, 3)
    assert not caplog.records
    assert read_annotated(ImageInfo(1, path, (40, 64), NOTHING)).shape == (40, 64, 3)
    assert "left as stored" in caplog.text
    with pytest.raises(UserError, match=r"x\.jpg: the picture is 64 x 40 \(H x W\), the annotation says 10 x 10"):
        read_annotated(ImageInfo(1, path, (10, 10), NOTHING))


def test_grey_16_bit_cmyk_palette_and_alpha_become_rgb(tmp_path) -> None:
    picture = smooth(40, 64)
    grey = picture[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 257)
    assert np.abs(read_image(tmp_path / "deep.png")[..., 0].astype(int) - grey).max() <= 1
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - picture).mean() < 4
    Image.fromarray(np.dstack([picture, grey])).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png"), picture)
    Image.fromarray(picture).save(tmp_path / "colour.png")
    assert np.array_equal(read_image(tmp_path / "colour.png"), picture)  # RGB, not BGR


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0 torn"])
def test_unreadable_files_are_named(tmp_path, content: bytes) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.jpg: "):
        read_image(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / "missing.jpg")


def test_find_images(tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_images([tmp_path])] == ["a.JPG", "b.png", "c.webp"]
    with pytest.raises(UserError, match="no such file"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures in this folder"):
        find_images([tmp_path / "empty"])


def test_resized_size_follows_each_rule() -> None:
    assert resized_size((480, 640), 800, 1333) == (800, 1067)  # detectron2, mmdetection
    assert resized_size((480, 640), 800, 1333, "floor") == (800, 1066)  # torchvision
    assert resized_size((200, 3000), 800, 1333) == (89, 1333)
    assert resized_size((1, 5000), 800, 1333) == (1, 1333)


def test_resize_kernels() -> None:
    picture = textured(97, 131)
    pillow = np.asarray(Image.fromarray(picture).resize((70, 50), Image.Resampling.BILINEAR))
    assert np.array_equal(resize_image(picture, (50, 70), "pillow"), pillow)
    assert np.array_equal(resize_image(picture, (50, 70)), cv2.resize(picture, (70, 50)))
    exact = resize_image(picture, (50, 70), "torch")
    assert exact.dtype == np.float32
    assert np.abs(exact - cv2.resize(picture, (70, 50))).max() < 1.5
    assert np.abs(exact - pillow).max() > 10  # antialiasing makes a difference


def test_decompression_bombs_are_refused(tmp_path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (30000, 30000)).save(buffer, "PNG")
    path = tmp_path / "bomb.png"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"bomb\.png"):
        read_image(path)
