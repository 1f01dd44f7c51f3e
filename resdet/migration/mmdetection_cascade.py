"""mmdetection's cascades list a head and its training for each stage -> the first stage's keys, and lists of what differs."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple

from resdet.migration.keys import Kind, Leaves, Row

LISTS = r"(model\.roi_head\.(?:bbox|mask)_head\.|model\.train_cfg\.rcnn\.)(\d+)\.(.+)"
OF_EACH = ("bbox_coder.target_stds", "assigner.pos_iou_thr")  # what stages differ in
AS_IOU = ("assigner.neg_iou_thr", "assigner.min_pos_iou")  # the same as pos_iou_thr


class Stages(NamedTuple):
    """given: keys of one head, and for `OF_EACH` a list under `…*.…`. names: what its keys are called in the file. rows: what
    became of the other keys."""

    given: dict[str, Any]
    names: dict[str, str]
    rows: list[Row]


def one_head(given: Leaves) -> Stages:
    """The keys unchanged where no stages are listed."""
    found = Stages({}, {}, [])
    values: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for key, value in given.items():
        if match := re.fullmatch(LISTS, key):
            values[match[1], match[3]][int(match[2])] = value
        else:
            found.given[key] = value
    for (prefix, rest), of_stage in values.items():
        if rest in OF_EACH:
            found.given[f"{prefix}*.{rest}"] = [of_stage[k] for k in sorted(of_stage)]
            continue
        if rest in AS_IOU:
            wanted = values[prefix, "assigner.pos_iou_thr"]
            note, other = "as pos_iou_thr", "in resdet the same as pos_iou_thr"
        else:
            if 0 in of_stage:
                found.given[prefix + rest] = of_stage[0]
                found.names[prefix + rest] = f"{prefix}0.{rest}"
            wanted = dict.fromkeys(of_stage, of_stage.get(0))
            note, other = "as in the first stage", "all stages are built and trained as the first"
        for k, value in of_stage.items():
            if k or rest in AS_IOU:
                same = value == wanted.get(k)
                kind = Kind.SAME if same else Kind.WARNING
                found.rows.append(Row(kind, f"{prefix}{k}.{rest}", value, {}, note if same else other))
    return found
