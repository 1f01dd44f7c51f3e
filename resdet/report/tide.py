"""What AP is lost to: the AP that fixing one kind of error would gain. Bolya et al. 2020, TIDE (arXiv:2008.08115).

hotcoco's TIDE agrees but for a class without any detection: the authors' code, and this, leave it out of the mean once its
misses are mended; hotcoco keeps an AP of 0. Unlike in the authors' code, as in COCO's AP, classes without objects never count.
"""

from __future__ import annotations

import numpy as np
from hotcoco import metrics

from resdet.report.matches import BOTH, CLASS, FOUND, MISSED, NEARLY, NOTHING, PLACE, RIGHT, TWICE, Matches

# The authors' names, in their order.
KINDS = {"Cls": CLASS, "Loc": PLACE, "Both": BOTH, "Dupe": TWICE, "Bkg": NOTHING}


def lost(matches: Matches) -> dict[str, dict[str, float]]:
    """{"Cls" | "Loc" | "Both" | "Dupe" | "Bkg" | "Miss" | "FP" | "FN": {"count": errors, "gain": AP50 that mending them adds}}.

    FP: all false positives; FN: all objects that are not found.
    """
    m = matches
    rows = np.flatnonzero(m.counted)
    category, score, right = m.category[rows], m.score[rows], m.kind[rows] == RIGHT
    objects = np.bincount(
        m.object_category, minlength=int(max(m.object_category.max(initial=0), category.max(initial=0))) + 1
    )
    base = mean_ap(category, score, right, objects)
    result = {}
    for name, kind in KINDS.items():
        wrong = m.kind[rows] == kind
        keep, mended, moved = ~wrong, right, category
        if kind in (CLASS, PLACE):  # one detection mends an object, that of the highest score; the others are left out
            partner = m.partner[rows]
            helps = wrong.copy()
            helps[wrong] = (m.object_kind == NEARLY)[partner[wrong]] & (m.object_partner[partner[wrong]] == rows[wrong])
            keep, mended = ~wrong | helps, right | helps
            moved = category.copy()
            moved[helps] = m.object_category[partner[helps]]
        result[name] = _gain(wrong.sum(), mean_ap(moved[keep], score[keep], mended[keep], objects), base)
    missed, unfound = m.object_kind == MISSED, m.object_kind != FOUND
    for name, gone in (("Miss", missed), ("FN", unfound)):
        left = objects - np.bincount(m.object_category[gone], minlength=len(objects))
        spared = (objects > 0) & (np.bincount(category, minlength=len(objects)) == 0) & (left == 0)
        ap = mean_ap(category, score, right, left, np.flatnonzero((objects > 0) & ~spared))
        result[name] = _gain(gone.sum(), ap, base)
    perfect = mean_ap(category[right], score[right], right[right], objects)
    result["FP"] = _gain((~right).sum(), perfect, base)
    return result


def mean_ap(
    category: np.ndarray, score: np.ndarray, right: np.ndarray, objects: np.ndarray, classes: np.ndarray | None = None
) -> float:
    """COCO's AP over 101 recalls, averaged over `classes` (n,), by default those that have objects.

    objects (K,): how many objects there are, by category.
    """
    order = np.argsort(-score, kind="stable")
    order = order[np.argsort(category[order], kind="stable")]
    ends = np.cumsum(np.bincount(category, minlength=len(objects)))
    values = []
    for k in np.flatnonzero(objects > 0) if classes is None else classes:
        rows = order[ends[k - 1] if k else 0 : ends[k]]
        some = len(rows) and objects[k]
        values.append(metrics.average_precision(score[rows], right[rows], int(objects[k])) if some else 0.0)
    return float(np.mean(values)) if values else 0.0


def _gain(count: int, ap: float, base: float) -> dict[str, float]:
    return {"count": int(count), "gain": max(ap - base, 0.0)}
