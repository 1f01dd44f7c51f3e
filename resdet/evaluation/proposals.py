"""Class-agnostic proposals: average recall (Hosang et al. 2015, arXiv:1502.05082), COCO's evaluation with `useCats=0`."""

from __future__ import annotations

import numpy as np

from resdet.evaluation.tables import measured_mean

LIMITS = [100, 1000]  # proposals per image that count, by score
METRICS = ("AR100", "AR1000", "ARs", "ARm", "ARl")


def summary(recall: np.ndarray) -> dict[str, float | None]:
    """Recall (T, 1, A, M) -> AR at each of `LIMITS`, and at the last one for small, medium and large objects."""
    numbers = {f"AR{limit}": measured_mean(recall[..., 0, m]) for m, limit in enumerate(LIMITS)}
    return numbers | {f"AR{name}": measured_mean(recall[..., k, -1]) for k, name in enumerate("sml", 1)}
