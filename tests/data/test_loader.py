from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from pictures import textured
from resdet.config import DataConfig, InputConfig
from resdet.data import loader
from resdet.data.coco import Annotations
from resdet.data.collate import OBJECT_LADDER, Sample, collate, split_batch
from resdet.data.dataset import DetectionDataset, repeat_factors
from resdet.data.index import ImageInfo, Objects
from resdet.data.loader import evaluation_loader, evaluation_order, training_loader, training_order
from resdet.errors import UserError
from resdet.runtime.workers import start_worker
from resdet.structures import Batch

SIZES = {"min_size": [96, 112, 128], "max_size": 200}


def dataset(annotations: Annotations, train: bool = True, **changes: object) -> DetectionDataset:
    data = DataConfig.model_validate({**SIZES, **changes})
    return DetectionDataset(annotations, data, InputConfig(), train=train, masks=True, seed=3)


def test_a_sample_is_a_function_of_seed_epoch_and_image(shapes) -> None:
    data = dataset(shapes, train=True)
    first, again, later = data[4, 0], data[4, 0], [data[4, epoch] for epoch in range(1, 6)]
    assert np.array_equal(first.image, again.image)
    assert first.key == again.key
    assert len({s.key for s in [first, *later]}) == 6
    assert len({s.image.shape for s in [first, *later]}) > 1  # other short sides


def test_mask_crops_have_the_side_that_the_config_says(shapes) -> None:
    small, usual = dataset(shapes, mask_size=28)[0, 0].masks, dataset(shapes)[0, 0].masks
    assert small.shape[1:] == (28, 28)
    assert usual.shape[1:] == (112, 112)
    assert np.abs(small.mean((1, 2)) - usual.mean((1, 2))).max() < 0.05  # the same outlines


@pytest.mark.parametrize(("rotated", "suffix"), [(False, ".jpg"), (True, ".jpg"), (False, ".png")])
def test_a_far_larger_picture_is_decoded_small_and_stays_the_same(rotated: bool, suffix: str, tmp_path) -> None:
    picture = Image.fromarray(textured(803, 1201))
    exif = picture.getexif()
    exif[0x0112] = 6 if rotated else 1
    file = tmp_path / f"big{suffix}"
    picture.save(file, exif=exif)
    size = (1201, 803) if rotated else (803, 1201)
    outline = [[100.0, 100, 700, 100, 400, 500]]
    objects = Objects(np.array([[100, 100, 700, 500]], np.float32), np.array([0]), [outline])
    annotations = Annotations(tmp_path, tiny.pack([ImageInfo(1, file, size, objects)], tmp_path), ["x"], [1])
    whole = dataset(annotations)
    whole._reduction = lambda size, short: 1
    for epoch in range(3):  # flipped or not, other short sides
        small, full = dataset(annotations)[0, epoch], whole[0, epoch]
        assert small.image.shape == full.image.shape
        assert np.array_equal(small.boxes, full.boxes)
        assert np.array_equal(small.masks, full.masks)
        blurred = [
            cv2.GaussianBlur(s.image, (0, 0), 2).astype(np.float32) for s in (small, full)
        ]  # the full one aliases
        assert np.abs(blurred[0] - blurred[1]).mean() < 1.5
        assert np.array_equal(small.image, full.image) == (suffix == ".png")


def test_decoding_small_never_goes_below_what_is_needed(shapes) -> None:
    data = dataset(shapes)
    sizes = [(200, 400), (96 * 2, 400), (96 * 2 - 1, 400), (96 * 8, 96 * 12), (96 * 50, 96 * 50)]
    assert [data._reduction(size, 96) for size in sizes] == [2, 2, 1, 8, 8]
    assert dataset(shapes, train=False)._reduction((5000, 5000), 96) == 1  # evaluation sees every pixel


def test_rare_classes_repeat_and_negatives_have_their_share() -> None:
    """100 images: a common class in 90, a rare one in 4 of those and in none of the 10 empty ones."""
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])

    def with_labels(*labels: int) -> Objects:
        return Objects(
            np.tile(np.array([[0, 0, 9, 9]], np.float32), (len(labels), 1)), np.array(labels), [None] * len(labels)
        )

    objects = [with_labels(0, 1)] * 4 + [with_labels(0)] * 86 + [empty] * 10
    images = [ImageInfo(k, Path(f"{k}.jpg"), (10, 20), entry) for k, entry in enumerate(objects)]
    data = Annotations(Path("x"), tiny.pack(images, Path()), ["common", "rare"], [1, 2])
    assert repeat_factors(data, None, None) is None
    factors = repeat_factors(data, 0.16, None)
    assert factors[:4].tolist() == [2.0] * 4  # sqrt(0.16 / 0.04)
    assert factors[4:].tolist() == [1.0] * 96
    half = repeat_factors(data, None, 0.5)
    assert half[90:].sum() == pytest.approx(half[:90].sum())
    assert repeat_factors(data, None, 0.0)[90:].sum() == 0
    order = training_order(np.zeros(100, bool), 10, 0, repeat_factors(data, 0.09, None))  # 1.5 times
    seen = Counter(index for batch in islice(order, 2040 // 10) for index, _ in batch)
    rare = sum(seen[k] for k in range(4)) / 4
    common = sum(seen[k] for k in range(4, 90)) / 86
    assert 1.3 < rare / common < 1.7
    again = training_order(np.zeros(100, bool), 10, 0, repeat_factors(data, 0.09, None))
    assert next(again) == next(training_order(np.zeros(100, bool), 10, 0, repeat_factors(data, 0.09, None)))


def test_flip_moves_picture_boxes_and_masks_together(shapes) -> None:
    flipped, plain = dataset(shapes, flip=1, min_size=96), dataset(shapes, flip=0, min_size=96)
    for index in range(6):
        a, b = flipped[index, 0], plain[index, 0]
        assert np.array_equal(a.image[:, ::-1], b.image)
        mirrored = b.boxes.copy()
        mirrored[:, [0, 2]] = b.image.shape[1] - b.boxes[:, [2, 0]]
        np.testing.assert_allclose(a.boxes, mirrored, atol=1e-4)
        assert np.array_equal(a.masks[:, :, ::-1], b.masks)


def test_boxes_scale_with_the_picture(shapes) -> None:
    small, large = dataset(shapes, train=False, min_size=96), dataset(shapes, train=False, min_size=192, max_size=400)
    for index in range(4):
        a, b = small[index, 0], large[index, 0]
        np.testing.assert_allclose(a.boxes * 2, b.boxes, rtol=0.02)
        assert np.array_equal(a.masks, b.masks)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_batches(shapes, context: str) -> None:
    augmentations = [{"name": "RandomBrightnessContrast", "p": 0.5}, {"name": "Rotate", "limit": 10, "p": 0.5}]
    data = dataset(shapes, train={"augmentations": augmentations})
    alone = list(islice(training_loader(data, 3, 0), 5))
    shared = list(islice(training_loader(data, 3, 2, context=context), 5))
    late = list(islice(training_loader(data, 3, 0, start=3), 2))
    for one, two in [*zip(alone, shared, strict=True), *zip(alone[3:], late, strict=True)]:
        assert one.indices == two.indices
        assert torch.equal(one.batch.images, two.batch.images)
        assert torch.equal(one.batch.keys, two.batch.keys)
        for a, b in zip(one.batch.targets, two.batch.targets, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_training_order_shows_every_image_equally_and_groups_shapes() -> None:
    groups = np.arange(11) % 3 == 0
    batches = list(islice(training_order(groups, 4, seed=0), 55))  # 220 images: 20 epochs of 11
    seen = Counter(index for batch in batches for index, _ in batch)
    assert set(seen) == set(range(11))
    assert max(seen.values()) - min(seen.values()) <= 2
    assert all(len({bool(groups[i]) for i, _ in batch}) == 1 for batch in batches)
    assert len({item for batch in batches for item in batch}) == 220  # never the same draw twice
    other = list(islice(training_order(groups, 4, seed=1), 55))
    assert other != batches


def test_evaluation_takes_each_image_once_in_equal_sizes(shapes) -> None:
    order = evaluation_order([(96, 128), (128, 96), (96, 128), (96, 128)], 2)
    assert sorted(i for batch in order for i, _ in batch) == [0, 1, 2, 3]
    assert [len(batch) for batch in order] == [2, 1, 1]
    loaded = list(evaluation_loader(dataset(shapes, train=False), 4, 0))
    assert sorted(i for batch in loaded for i in batch.indices) == list(range(12))


def with_broken(shapes, folder, broken: list[int]) -> Annotations:
    """The shapes, some of whose files are junk."""
    images = []
    for i, info in enumerate(shapes.images):
        file = folder / f"{i}.jpg"
        file.write_bytes(b"junk" if i in broken else info.file.read_bytes())
        images.append(info._replace(file=file))
    return Annotations(shapes.source, tiny.pack(images, folder), shapes.class_names, shapes.category_ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_another_picture_takes_the_place_of_one_that_cannot_be_read(shapes, tmp_path, workers: int) -> None:
    broken = with_broken(shapes, tmp_path, [3])
    loaded = list(islice(training_loader(dataset(broken), 4, workers), 3))  # an epoch
    told = [(row, text) for b in loaded for row, texts in b.problems.items() for text in texts]
    assert len(told) == 1
    row, text = told[0]
    assert "3.jpg: not an image" in text
    assert row != 3
    rows = [row for b in loaded for row in b.indices]
    assert len(rows) == 12
    assert 3 not in rows
    again = list(islice(training_loader(dataset(broken), 4, 0), 3))
    assert [b.indices for b in again] == [b.indices for b in loaded]  # as reproducible as the rest


def test_in_evaluation_it_is_blank_and_told(shapes, tmp_path) -> None:
    broken = with_broken(shapes, tmp_path, [3])
    loaded = {row: b for b in evaluation_loader(dataset(broken, train=False), 1, 0) for row in b.indices}
    assert sorted(loaded) == list(range(12))
    assert {row for b in loaded.values() for row in b.problems} == {3}
    assert loaded[3].batch.images.unique().tolist() == [127]
    assert not loaded[3].batch.targets.valid.any()


def test_a_folder_that_vanished_is_named(shapes, tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    broken = with_broken(shapes, tmp_path / "gone", [])
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(UserError, match=r"none of 5 images tried could be read; their folder \S*/gone is gone"):
        next(training_loader(dataset(broken), 2, 0))


class Deadly(DetectionDataset):
    def __getitem__(self, item):
        if item[0] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(item)


def test_a_dead_worker_is_reported_with_the_picture_it_held(shapes) -> None:
    data = dataset(shapes, train=False)
    data.__class__ = Deadly
    file = re.escape(str(shapes.images[5].file))
    with pytest.raises(
        UserError, match=rf"a loader worker died \(SIGKILL\) while loading {file}: .*lower data\.workers"
    ):
        list(evaluation_loader(data, 1, 2))


@pytest.mark.slow
def test_a_worker_that_dies_does_not_disturb_what_is_under_way(shapes) -> None:
    others = active_children()
    loader = evaluation_loader(dataset(shapes, train=False), 1, 1)
    next(loader)
    (worker,) = [child for child in active_children() if child not in others]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)  # where torch's own handler would raise
    assert worker.exitcode == -signal.SIGKILL
    with pytest.raises(UserError, match="SIGKILL"):
        list(loader)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no such call on this system")
def test_a_worker_leaves_when_its_parent_says_so_and_nobody_else() -> None:
    def work() -> None:
        start_worker(0)
        ready.set()
        time.sleep(60)

    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=work, daemon=True)
    worker.start()
    assert ready.wait(10)
    for name in ("TERM", "INT", "USR1", "HUP"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no such call on this system")
@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "HUP"])
def test_nor_while_it_starts(shapes, monkeypatch, name: str) -> None:
    def told_first(worker: int) -> None:
        subprocess.run(["kill", f"-{name}", str(os.getpid())], check=True)
        start_worker(worker)

    monkeypatch.setattr(loader, "start_worker", told_first)
    loaded = evaluation_loader(dataset(shapes, train=False), 4, 2, context="fork")
    assert sorted(row for batch in loaded for row in batch.indices) == list(range(12))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_each_process_gets_its_share(shapes) -> None:
    data = dataset(shapes)
    whole = list(islice(training_loader(data, 4, 0), 3))
    shares = [list(islice(training_loader(data, 4, 0, rank=r, world=2), 3)) for r in range(2)]
    assert [b.indices for b in whole] == [a.indices + b.indices for a, b in zip(*shares, strict=True)]
    data = dataset(shapes, train=False)
    parts = [[i for b in evaluation_loader(data, 1, 0, rank=r, world=5) for i in b.indices] for r in range(5)]
    assert sorted(map(len, parts)) == [2, 2, 2, 3, 3]
    assert sorted(i for part in parts for i in part) == list(range(12))


def sample(count: int, size: tuple[int, int] = (40, 50)) -> Sample:
    boxes = np.random.default_rng(0).random((count, 4)).astype(np.float32)
    masks = np.ones((count, 28, 28), np.uint8)
    return Sample(np.full((*size, 3), 7, np.uint8), boxes, np.zeros(count, np.int64), masks, 1, 0)


@pytest.mark.parametrize(("counts", "padded"), [([0, 0], 8), ([3, 8], 8), ([9, 1], 32), ([500, 0], 512)])
def test_objects_are_padded_up_a_short_ladder(counts: list[int], padded: int) -> None:
    targets = collate([sample(c) for c in counts]).batch.targets
    assert padded in OBJECT_LADDER
    assert targets.boxes.shape == (2, padded, 4)
    assert targets.masks.shape == (2, padded, 28, 28)
    assert targets.valid.sum(1).tolist() == counts
    assert (targets.labels[~targets.valid] == -1).all()


def test_images_are_padded_at_bottom_and_right() -> None:
    batch = collate([sample(1, (40, 50)), sample(1, (60, 33))], multiple=64).batch
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.image_sizes.tolist() == [[40, 50], [60, 33]]
    assert batch.images[0, :, :40, :50].eq(7).all()
    assert batch.images[0].sum() == 7 * 3 * 40 * 50


def test_split_batch_keeps_everything() -> None:
    batch = collate([sample(c) for c in (1, 2, 3, 4)]).batch
    parts = split_batch(batch, 2)
    assert [p.targets.valid.sum().item() for p in parts] == [3, 7]
    assert torch.equal(torch.cat([p.images for p in parts]), batch.images)
    assert split_batch(batch._replace(targets=None), 2)[1].targets is None


def test_all_images_of_a_batch_become_squares_of_one_size(shapes) -> None:
    """Also where two processes share the batch; evaluation takes the last size."""
    data, square = DataConfig(min_size=[64, 96, 128]), InputConfig(keep_ratio=False)
    training, evaluation = (
        DetectionDataset(shapes, data, square, train=train, masks=False, seed=3) for train in (True, False)
    )

    def loaded(**share: int) -> list[Batch]:
        return [loaded.batch for loaded in islice(training_loader(training, 4, 0, **share), 6)]

    whole = loaded()
    for batch, *parts in zip(whole, loaded(rank=0, world=2), loaded(rank=1, world=2), strict=True):
        side = batch.images.shape[2]
        assert (batch.image_sizes == side).all()
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert batch.targets
        assert side / 2 < batch.targets.boxes.amax() <= side
    assert {batch.images.shape[2] for batch in whole} == {64, 96, 128}
    assert {b.batch.image_sizes.unique().item() for b in evaluation_loader(evaluation, 4, 0)} == {128}
