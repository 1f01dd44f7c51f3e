"""Minimum-cost bipartite matching as a custom operator: the only host synchronisation of a training step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


@torch.library.custom_op("resdet::assign", mutates_args=(), tags=(torch._C.Tag.cudagraph_unsafe,))
def assign(cost: Tensor) -> Tensor:
    """Match each object to a different query such that the sum of costs is minimal (Kuhn 1955; SciPy's Jonker-Volgenant).

    cost (L, B, Q, G): of each query for each object, infinite for padding, finite otherwise -> (L, B, G) int64: each object's
    query; -1 for padding, and for objects without a query if there are more objects than queries.
    All layers and images of a step are copied to the host together.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and only needed in training

    host = cost.detach().cpu().numpy()
    index = np.full((*host.shape[:2], host.shape[3]), -1, dtype=np.int64)
    for place in np.ndindex(host.shape[:2]):
        objects = np.flatnonzero(np.isfinite(host[place][0]))
        if len(objects):
            rows, columns = linear_sum_assignment(host[place][:, objects])
            index[place][objects[columns]] = rows
    return torch.from_numpy(index).to(cost.device)


@assign.register_fake
def _(cost: Tensor) -> Tensor:
    return cost.new_empty((*cost.shape[:2], cost.shape[3]), dtype=torch.int64)
