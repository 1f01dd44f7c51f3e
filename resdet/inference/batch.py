"""A batch on the device -> detections, for single images and for datasets."""

from __future__ import annotations

from collections.abc import Callable

import torch

from resdet.data.collate import split_batch
from resdet.fields import cat
from resdet.runtime.device import autocast, out_of_memory
from resdet.structures import Batch, Detections


def predict_batch(predict: Callable[[Batch], Detections], batch: Batch, amp: str = "off") -> Detections:
    """Run `predict` under autocast; if memory runs out, halve the batch until it fits.

    predict: `Detector.predict`, compiled or not. Detections are on the batch's device.
    """
    try:
        with torch.inference_mode(), autocast(batch.images.device, amp):
            return predict(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not out_of_memory(error) or len(batch.images) == 1:
            raise
    return cat([predict_batch(predict, part, amp) for part in split_batch(batch, 2)])
