from __future__ import annotations

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pictures import textured
from resdet.data.dataset import read_annotated
from resdet.data.image_files import find_images
from resdet.data.images import decode_image, read_header, read_image
from resdet.data.index import ImageInfo, Objects
from resdet.data.resize import resize_image, resized_size
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


@pytest.mark.parametrize("at", [33, -12])  # behind IHDR; before IEND, after the pixels
def test_the_header_of_a_png_has_its_orientation_without_its_pixels(at: int) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth(4, 6)).save(buffer, "PNG")
    data, body = (
        buffer.getvalue()[:41] + b"spoiled!" + buffer.getvalue()[49:],
        b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0"),
    )
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    header = read_header(data[:at] + chunk + data[at:], "x.png")
    assert (header.size, header.orientation, header.upright_size) == ((4, 6), 6, (6, 4))


def test_rotation_is_applied_only_where_the_annotation_agrees(tmp_path, caplog) -> None:
    path = tmp_path / "x.jpg"
    save(path, smooth(40, 64), 6)
    assert read_annotated(ImageInfo(1, path, (64, 40), NOTHING)).shape == (64, 40, 3)
    assert not caplog.records
    assert read_annotated(ImageInfo(1, path, (40, 64), NOTHING)).shape == (40, 64, 3)
    assert "kept as stored" in caplog.text
    with pytest.raises(UserError, match=r"x\.jpg: the image is 64 x 40 \(H x W\), the annotation says 10 x 10"):
        read_annotated(ImageInfo(1, path, (10, 10), NOTHING))


def test_grey_cmyk_palette_and_alpha_become_rgb(tmp_path) -> None:
    picture = smooth(40, 64)
    grey = picture[..., 1]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - picture).mean() < 4
    Image.fromarray(np.dstack([picture, grey])).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png"), picture)
    Image.merge("LA", [Image.fromarray(plane) for plane in (grey, 255 - grey)]).save(tmp_path / "grey_alpha.png")
    for channels, expected in ((1, grey[..., None]), (2, np.dstack([grey, 255 - grey])), (3, np.dstack([grey] * 3))):
        assert np.array_equal(read_image(tmp_path / "grey_alpha.png", channels), expected)
    Image.fromarray(picture).save(tmp_path / "colour.png")
    assert np.array_equal(read_image(tmp_path / "colour.png"), picture)  # RGB, not BGR


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"not a picture", "not an image in a supported format"),
        (b"\xff\xd8\xff\xe0 torn", "not a"),
        (b"../there.jpg\n", "the path '../there.jpg': a symbolic link that Git checked out as text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS.*`git lfs pull`"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content: bytes, message: str) -> None:
    (tmp_path.parent / "there.jpg").touch()
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.jpg: .*{message}"):
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
    for name in ("b.npy", "d.npy"):  # an array beside an image is a cache of it
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_images([tmp_path])] == ["a.JPG", "b.png", "d.npy", "c.webp"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
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
    with pytest.raises(UserError, match=r"bomb\.png: 30000 x 30000 \(H x W\) are 900,000,000 pixels, the limit is"):
        read_image(path)


def test_images_between_pillows_limit_and_ours_are_read_without_a_warning(recwarn) -> None:
    before = Image.MAX_IMAGE_PIXELS
    buffer = io.BytesIO()
    Image.new("1", (13500, 13500)).save(buffer, "PNG")
    assert read_header(buffer.getvalue(), "big.png").size == (13500, 13500)
    assert not recwarn.list
    assert before == Image.MAX_IMAGE_PIXELS


def encoded(array: np.ndarray, suffix: str, orientation: int = 1) -> bytes:
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()
    ok, data = cv2.imencode(suffix, array[..., ::-1] if array.shape[2] == 3 else array)
    assert ok
    if orientation == 1:
        return data.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0]).save(buffer, "TIFF", tiffinfo={274: orientation})
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_depth_is_read_as_it_is_stored(suffix: str, channels: int, dtype: type) -> None:
    if suffix == ".png" and dtype == np.float32:
        pytest.skip("PNG holds integers")
    array = (np.random.default_rng(0).random((21, 34, channels)) * (200 if dtype == np.uint8 else 4000)).astype(dtype)
    data = encoded(array, suffix)
    header = read_header(data, "x")
    assert (header.size, header.dtype, header.channels) == ((21, 34), dtype, channels)
    found = decode_image(data, "x", header, channels)
    assert found.dtype == dtype
    assert np.array_equal(found, array)
    if channels == 1:
        assert np.array_equal(decode_image(data, "x", header, 3), np.repeat(array, 3, 2))
    elif suffix != ".npy":
        grey = decode_image(data, "x", header, 1)
        assert np.abs(grey[..., 0] - array @ np.array([0.299, 0.587, 0.114])).max() < (
            1.5 if dtype != np.float32 else 0.01
        )


def test_arrays_and_pages_of_any_number_are_channels() -> None:
    array = np.random.default_rng(0).integers(0, 4096, (21, 34, 5)).astype(np.uint16)
    data = encoded(array, ".npy")
    assert np.array_equal(decode_image(data, "x.npy", read_header(data, "x.npy"), 5), array)
    with pytest.raises(
        UserError, match=r"x\.npy: has 5 channels, the model takes 3 channels: set model\.input\.channels=5"
    ):
        decode_image(data, "x.npy", read_header(data, "x.npy"), 3)
    for dtype in (np.uint8, np.uint16, np.float32):
        pages = [(array[..., k] % 256).astype(dtype) for k in range(5)]
        buffer = io.BytesIO()
        images = [Image.fromarray(page) for page in pages]
        images[0].save(buffer, "TIFF", save_all=True, append_images=images[1:])
        data = buffer.getvalue()
        header = read_header(data, "x.tif")
        assert header.pages == 5
        assert np.array_equal(decode_image(data, "x.tif", header, 5), np.dstack(pages))
        for channels in (1, 3):  # not the first page without a word
            with pytest.raises(UserError, match=rf"x\.tif: has 5 pages, the model takes {channels} channels?: set"):
                decode_image(data, "x.tif", header, channels)


def test_pages_of_colour_are_not_taken_for_one_image() -> None:
    pages = [Image.fromarray(smooth(21, 34)) for _ in range(2)]

    def saved(**options: object) -> bytes:
        buffer = io.BytesIO()
        pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **options)
        return buffer.getvalue()

    with pytest.raises(UserError, match=r"x\.tif: has 2 pages of 3 channels, the model takes 3 channels: save the"):
        decode_image(saved(), "x.tif", read_header(saved(), "x.tif"))
    pages[1].encoderinfo = {"tiffinfo": {254: 4}}  # NewSubfileType: a mask of the first
    data = saved()
    assert np.array_equal(decode_image(data, "x.tif", read_header(data, "x.tif")), np.asarray(pages[0]))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("bands", [2, 4, 7])
def test_tiffs_of_many_bands(planar: str, bands: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    for dtype in (np.uint8, np.uint16, np.float32):
        array = (np.random.default_rng(0).random((21, 34, bands)) * 200).astype(dtype)
        buffer = io.BytesIO()
        stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
        tifffile.imwrite(buffer, stored, photometric="minisblack", planarconfig=planar)
        data = buffer.getvalue()
        header = read_header(data, "x.tif")
        assert np.array_equal(decode_image(data, "x.tif", header, bands), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_tiffs_are_turned_upright_once(orientation: int, dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 256, (21, 34, 1)).astype(dtype)
    data = encoded(array, ".tiff", orientation)
    expected = {1: array, 3: array[::-1, ::-1], 6: np.rot90(array, -1)}[orientation]
    assert np.array_equal(decode_image(data, "x", read_header(data, "x"), 1), expected)


@pytest.mark.parametrize("array", [np.zeros((4, 5), bool), np.zeros((4, 5), complex), np.zeros(7), np.zeros((0, 4, 3))])
def test_arrays_that_are_no_images_are_refused(array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    with pytest.raises(UserError, match=r"x\.npy: not a readable image \(an array of"):
        read_header(buffer.getvalue(), "x.npy")


def test_damaged_deep_images_are_named() -> None:
    array = np.random.default_rng(0).integers(0, 4096, (21, 34, 3)).astype(np.uint16)
    for suffix in (".png", ".tiff", ".npy"):
        data = encoded(array, suffix)
        for length in range(0, len(data), len(data) // 40):
            shape = array.shape
            with contextlib.suppress(UserError):  # and nothing else
                shape = decode_image(data[:length], "x", read_header(data[:length], "x"), 3).shape
            assert shape == array.shape


def test_resizing_takes_any_channels_and_floats() -> None:
    image = np.repeat(textured(97, 131)[..., :1], 5, 2).astype(np.float32)
    for kernel in ("opencv", "pillow", "torch"):
        found = resize_image(image, (50, 70), kernel)
        assert found.dtype == np.float32
        alone = resize_image(image[..., :1].copy(), (50, 70), kernel)
        np.testing.assert_allclose(found, np.repeat(alone, 5, 2), atol=1e-3)
