from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from resdet.data.collate import split_batch
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import evaluation_loader
from resdet.data.splits import read_split
from resdet.inference import dataset as detect
from resdet.inference.batch import predict_batch
from resdet.inference.dataset import predict_dataset
from resdet.models.build import build_model
from resdet.structures import Batch

CPU = torch.device("cpu")


@pytest.fixture
def dataset(shapes_root, tmp_path) -> DetectionDataset:
    config = tiny.config(shapes_root, tmp_path)
    return DetectionDataset(read_split(config, "val"), config.data, config.model.input, train=False, masks=True, seed=0)


@pytest.fixture
def model(shapes_root, tmp_path):
    torch.manual_seed(0)
    return build_model(tiny.config(shapes_root, tmp_path).model)


def test_results_are_written_when_the_next_batch_is_on_its_way(dataset, model, monkeypatch) -> None:
    predict, to_coco, events = model.predict, detect.to_coco, []

    def noted(batch):
        events.append("predict")
        return predict(batch)

    def written(*arguments):
        events.append("write")
        return to_coco(*arguments)

    monkeypatch.setattr(model, "predict", noted)
    monkeypatch.setattr(detect, "to_coco", written)
    assert len(list(predict_dataset(model, dataset, device=CPU, batch_size=1))) == 4
    assert events == ["predict", *["predict", "write"] * 3, "write"]


def test_batches_come_in_order_with_their_own_entries(dataset, model) -> None:
    model.train()
    found = list(predict_dataset(model, dataset, device=CPU, batch_size=2, losses=True))
    assert model.training
    indices = [index for batch in found for index in batch.loaded.indices]
    assert sorted(indices) == list(range(len(dataset.annotations.images)))
    ids = dataset.annotations.images.arrays["ids"]
    for batch in found:
        assert {entry["image_id"] for entry in batch.entries} <= {int(ids[i]) for i in batch.loaded.indices}
        assert all(np.isfinite(pair).all() and len(pair) == 2 for pair in batch.losses.values())
    assert any(batch.entries for batch in found)
    (first, *_) = predict_dataset(model, dataset, device=CPU, batch_size=2, losses=True)
    assert first.entries == found[0].entries
    assert first.losses == found[0].losses


def test_a_batch_that_does_not_fit_goes_in_smaller_parts(dataset, model, monkeypatch) -> None:
    batch = next(evaluation_loader(dataset, 4, 0)).batch
    images, sizes, keys = (t[[0, 0, 0]] for t in batch[:3])
    batch = Batch(images, sizes, keys, None)
    whole = model.eval().predict(batch)
    predict, sizes = model.predict, []

    def small(batch):
        sizes.append(len(batch.images))
        if len(batch.images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(batch)

    monkeypatch.setattr(model, "predict", small)
    parts = predict_batch(model.predict, batch)
    assert sizes == [3, 2, 1, 1, 1]
    assert whole.mask_probs is not None
    for of_whole, of_parts in zip(whole, parts, strict=True):
        if isinstance(of_whole, torch.Tensor):
            assert torch.allclose(of_whole, of_parts, atol=1e-4)
        else:
            assert of_whole == of_parts
    assert [len(p.images) for p in split_batch(batch, 5)] == [1, 1, 1]
