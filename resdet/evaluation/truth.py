"""Ground truth in COCO's structure -> checked, and in the form that pycocotools and hotcoco score correctly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from resdet.data.coco import read_coco_json
from resdet.data.keypoints import read_skeleton
from resdet.data.known import check_known, known_ids, says_known
from resdet.data.normalise import normalise
from resdet.data.outlines import area_of
from resdet.data.readings import Readings
from resdet.data.rules import (
    check_flags,
    check_ids,
    id_kind,
    is_id,
    is_size,
    parse_box,
    parse_segmentation,
    read_categories,
    title_of,
)
from resdet.errors import listed
from resdet.evaluation import keypoints

ANY_SIZE = (10**9, 10**9)  # of an image without a size, where only boxes are scored


class GroundTruth:
    """The ground truth of a split.

    image_ids: only these images count (None: all). content: COCO's structure, if the file `annotations` has been read or is
    in another format. sigmas: per keypoint, for OKS (None: COCO's, or `OTHER_SIGMA`).

    truth: COCO's structure with ids 1, 2, … and only the fields that are scored: pycocotools takes a match to an annotation
    with id 0 for none, hotcoco refuses negative ids and odd values in unused fields.
    image_sizes: (H, W) by image id. file_names: by image id. without_mask: how many objects have their box for a mask.
    Raises one `UserError` that lists all problems.
    """

    def __init__(
        self,
        annotations: Path,
        image_ids: Collection[int] | None = None,
        content: dict[str, Any] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        self.source, self.readings = annotations, Readings()
        problems: list[str] = []
        origins: dict[int, str] = {}
        if content is None:
            content, self.readings, problems, origins = normalise(read_coco_json(annotations))
        kind = id_kind(content["images"])
        all_images = {entry["id"]: entry for entry in content["images"] if is_id(entry.get("id"), kind)}
        if len(all_images) < len(content["images"]):
            problems.append(f"{len(content['images']) - len(all_images)} images have no id, or one that is used twice")
        images = all_images if image_ids is None else {identity: all_images[identity] for identity in image_ids}
        self.image_sizes = {identity: (entry.get("height"), entry.get("width")) for identity, entry in images.items()}
        self.file_names = {identity: str(entry.get("file_name", identity)) for identity, entry in images.items()}
        self.category_names = read_categories(content["categories"], problems)
        self.has_masks = any(entry.get("segmentation") for entry in content["annotations"])
        self.skeleton, posed = read_skeleton(content["categories"], problems)
        self.sigmas = keypoints.sigmas_of(self.skeleton, sigmas, annotations)
        self.without_mask = 0
        entries: list[dict[str, Any]] = []
        for i, entry in enumerate(content["annotations"]):
            wrong: list[str] = []
            image_id, category = check_ids(entry, all_images, self.category_names, wrong)
            if image_id in images and category is not None:
                pose = entry.get("keypoints") if category in posed else None
                if checked := self._checked(entry, image_id, pose, wrong):
                    checked["id"] = len(entries) + 1
                    entries.append(checked)
            problems += [f"{title_of(entry, i, origins)}: {text}" for text in wrong]
        self.counted_categories: dict[Any, set[Any]] = {}  # by image; all, if the image is not listed
        if says_known(content["images"]):
            self._leave_out_unknown(
                [image for image in images.values() if check_known(image, self.category_names, problems)], entries
            )
        if problems:
            raise listed(f"{annotations}: {len(problems)} problem(s):", problems)
        self._image_numbers = {identity: number for number, identity in enumerate(sorted(images), 1)}
        self._category_numbers = {identity: number for number, identity in enumerate(self.category_names, 1)}
        self.truth = {
            "images": [
                {"id": self._image_numbers[identity], **({"height": h, "width": w} if is_size(h, w) else {})}
                for identity, (h, w) in self.image_sizes.items()
            ],
            "annotations": [self.numbered(entry) for entry in entries],
            "categories": [
                {"id": self._category_numbers[identity], "name": name} for identity, name in self.category_names.items()
            ],
        }

    def numbered(self, entry: dict[str, Any]) -> dict[str, Any]:
        """An annotation or detection with the ids of `truth`, and only the fields that are scored."""
        used = ["id", "iscrowd", "score", "bbox", "area", "segmentation"]
        used += ["keypoints", "num_keypoints"] if self.skeleton else []
        ids = {
            "image_id": self._image_numbers[entry["image_id"]],
            "category_id": self._category_numbers[entry["category_id"]],
        }
        return ids | {key: entry[key] for key in used if key in entry}

    def _checked(self, entry: dict[str, Any], image_id: Any, pose: Any, wrong: list[str]) -> dict[str, Any] | None:
        """An annotation with all fields that scoring needs; None, with what is `wrong`, if it cannot be used."""
        h, w = self.image_sizes[image_id]
        if is_size(h, w):
            size = (h, w)
        elif not self.has_masks:
            size = ANY_SIZE
        else:
            wrong.append(f"height {h!r} and width {w!r} of image {image_id} are not the size of an image")
            return None
        check_flags(entry, wrong)
        box = parse_box(entry.get("bbox"), size, wrong)
        outline = parse_segmentation(entry.get("segmentation"), size, wrong, Counter())
        posed = keypoints.truth_of(pose, len(self.skeleton.names), wrong) if self.skeleton else {}
        if box is None:
            return None
        checked = {**entry, **posed, "segmentation": outline, "iscrowd": entry.get("iscrowd") or 0}
        if checked.get("area") is None:
            checked["area"] = area_of(checked if outline else {"bbox": entry["bbox"]}, size)
        if not outline:
            self.without_mask += 1
            x1, y1, x2, y2 = box
            checked["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        return checked

    def _leave_out_unknown(self, images: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        """Do not count detections of classes that an image's annotations are not complete for, as in LVIS's evaluation
        (`data/known.py`). If such a class has objects in the image, detections that match one still count: a crowd region
        over the whole image absorbs the others."""
        annotated: dict[Any, set[Any]] = {}
        for entry in entries:
            annotated.setdefault(entry["image_id"], set()).add(entry["category_id"])
        for image in images:
            here = annotated.get(image["id"], set())
            known = known_ids(image, here)
            if known is None:
                continue
            self.counted_categories[image["id"]] = known | here
            pose = keypoints.truth_of(None, len(self.skeleton.names), []) if self.skeleton else {}
            height, width = (
                (image["height"], image["width"]) if is_size(image.get("height"), image.get("width")) else ANY_SIZE
            )
            for category in sorted(here - known):
                entries.append({
                    "id": len(entries) + 1, "image_id": image["id"], "category_id": category, "iscrowd": 1,
                    "bbox": [0, 0, width, height], "area": width * height,
                    "segmentation": [[0, 0, width, 0, width, height, 0, height]], **pose,
                })  # fmt: skip
