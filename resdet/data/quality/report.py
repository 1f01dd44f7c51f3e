"""The kinds of defects that a dataset can have, and how one is reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from resdet.data.readings import READINGS, Readings

KEPT = 1000  # examples of a kind that findings.json lists
FEW = 10  # objects of a class below which a model will hardly learn it
Severity = Literal["error", "warning"]
Entry = dict[str, Any]


@dataclass
class Finding:
    """One kind of defect in one split. Errors stop training, warnings do not."""

    split: str
    code: str
    severity: Severity
    what: str
    fix: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)  # ids, for `repair`

    def add(self, example: str, item: Any = None) -> None:
        self.count += 1
        self.items.append(item)
        if len(self.examples) < KEPT:
            self.examples.append(example)


class Findings:
    """Collects findings by code, in the order of their first appearance."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.by_code: dict[str, Finding] = {}

    def add(self, code: str, example: str, item: Any = None) -> None:
        severity, what, fix = KINDS[code]
        finding = self.by_code.setdefault(code, Finding(self.split, code, severity, what, fix))
        finding.add(example, item)

    def add_readings(self, readings: Readings) -> None:
        """What was read in another form than it is written."""
        for code, reading in readings.items():
            severity, what, fix = KINDS[code]
            self.by_code[code] = Finding(self.split, code, severity, what, fix, reading.count, reading.examples)


# code: (severity, what it is, how to fix it; "--fix" where `repair` can)
KINDS: dict[str, tuple[Severity, str, str]] = {
    "unusable": ("error", "files, lines or objects that cannot be read", "correct them, or --fix leaves them out"),
    **{code: ("warning", what, "--fix writes COCO's form") for code, what in READINGS.items()},
    "empty": ("error", "the annotation file has an empty list", "name at least one image and one category"),
    "image-id": ("error", "image id missing, not an integer, or used twice", "give every image an id of its own"),
    "image-size": ("error", "height or width is not a positive integer", "--fix takes it from the file"),
    "image-twice": ("warning", "images that several entries list (objects of one entry are background in the other)",
                    "--fix joins the entries"),
    "known-classes": ("error", "an image's lists of known, negative or not exhaustive categories name unlisted ones",
                      "correct the lists, or list the categories"),
    "image-name": ("error", "file_name missing or not a name", "name the file, or --fix drops the image"),
    "category-id": ("error", "category id missing or used twice", "give every category an id of its own"),
    "category-unnamed": ("error", "categories whose name is empty, blank or null", "give each a name"),
    "category-name": ("warning", "two categories of one name", "merge them, or rename one"),
    "category-gap": ("warning", "category ids with gaps (harmless here: labels are counted without them)",
                     "check that no category is missing"),
    "category-unknown": ("error", "annotation of a category that is not listed", "list the category, or --fix drops it"),
    "off-by-one": ("error", "category ids are off by one from those listed", "--fix shifts them"),
    "image-unknown": ("error", "annotation of an image that is not listed", "list the image, or --fix drops it"),
    "box-malformed": ("error", "bbox is not four finite numbers", "write [x, y, width, height], or --fix drops it"),
    "box-xyxy": ("error", "boxes look like [x1, y1, x2, y2]; COCO's are [x, y, width, height]", "--fix converts them"),
    "box-form": ("error", "boxes leave their images, but fit as [y, x, height, width] or in several other forms",
                 "write [x, y, width, height], and check height and width of the images"),
    "box-centred": ("error", "boxes look like [centre x, centre y, width, height]; COCO's are [x, y, width, height]",
                    "--fix converts them"),
    "label-xywh": ("error", "boxes look like [x, y, width, height] read as [centre x, centre y, width, height]",
                   "--fix converts them"),
    "label-xyxy": ("error", "boxes look like [x1, y1, x2, y2] read as [centre x, centre y, width, height]",
                   "--fix converts them"),
    "box-normalised": ("error", "boxes look like fractions of the image; COCO's are in pixels", "--fix converts them"),
    "box-degenerate": ("warning", "degenerate boxes without area (skipped in training)", "--fix drops them"),
    "box-outside": ("warning", "boxes that extend beyond their image by over 2 pixels (clipped)", "--fix clips them"),
    "box-nowhere": ("warning", "boxes entirely outside their image (skipped in training)", "--fix drops them"),
    "polygon-short": ("warning", "polygons of fewer than three points (skipped)", "--fix drops them"),
    "polygon-crossing": ("warning", "badly self-intersecting polygons", "redraw them: where they overlap counts as outside"),
    "polygon-apart": ("warning", "masks that disagree with their box by over 10 % of its size",
                      "--fix sets the box to the mask's"),
    "masks-elsewhere": ("error", "most masks lie outside their boxes: x and y exchanged, or other units",
                        "write boxes as [x, y, width, height] and polygons as [x, y, …], both in pixels"),
    "mask-normalised": ("error", "polygons look like fractions of the image; COCO's are in pixels", "--fix converts them"),
    "crowd-flag": ("error", "iscrowd is neither 0 nor 1", "write 0 or 1, or --fix drops the object"),
    "crowd-only": ("error", "every annotation is a crowd region (iscrowd: 1), so there is nothing to learn from",
                   "set iscrowd to 0 where an annotation is a single object, as CVAT's brush masks are; --fix does so for all"),
    "mask-missing": ("warning", "objects without a mask among others with one (they train the box head alone)",
                     "annotate their masks, or train boxes alone with model.mask=null"),
    "mask-empty": ("warning", "empty masks", "--fix drops the mask and keeps the box"),
    "mask-malformed": ("error", "segmentation is neither polygons nor RLE of the image's size", "--fix drops the mask"),
    "skeleton": ("error", "keypoints or skeletons of categories that cannot be read",
                 "list the keypoints' names, each once, and the skeleton as pairs of their numbers from 1"),
    "keypoints-differ": ("warning", "categories that list different keypoints (a keypoint head learns one set)",
                         "give all categories the same list, or train boxes alone"),
    "keypoints-unlisted": ("warning", "objects with keypoints whose category lists none (not read)",
                           "list their names in the category's keypoints"),
    "keypoints-malformed": ("error", "keypoints of another count than the category lists, or visibility other than 0, 1, 2",
                            "correct them, or --fix drops them and keeps the box"),
    "keypoints-outside": ("warning", "labelled keypoints outside their image (taken as not labelled)",
                          "--fix marks them as not labelled"),
    "keypoints-number": ("warning", "num_keypoints that disagrees with the labelled keypoints (which count)",
                         "--fix counts them"),
    "duplicate": ("warning", "the same object annotated twice", "--fix keeps one"),
    "class-rare": ("warning", f"classes with fewer than {FEW} objects",
                   "annotate more, or data.repeat_threshold=0.01"),
    "class-unseen": ("warning", "classes with objects in val but none in train",
                     "split again: data.val_fraction=0.2 is stratified by class"),
    "categories-differ": ("warning", "categories that only one split lists (val's others count as missed)",
                          "use one list of categories in both files"),
    "categories-disjoint": ("error", "train and val have no category name in common",
                            "use one list of categories in both files"),
    "categories-ambiguous": ("error", "category names that could be several of the other split's",
                             "rename them so that each has one counterpart"),
    "too-small": ("warning", "objects under 8 pixels after resizing",
                  "raise data.min_size and data.max_size, or tile the images"),
    "too-large": ("warning", "objects larger than the largest anchor reaches",
                  "lower data.min_size, or raise model.anchors.sizes"),
    "anchors": ("warning", "objects that no anchor overlaps with IoU 0.5", "see the advice on anchors below"),
    "file-missing": ("error", "missing image files", "correct file_name or the folder, or --fix drops the image"),
    "file-empty": ("error", "empty image files", "copy them again, or --fix drops the image"),
    "file-unreadable": ("error", "image files that cannot be read", "replace them, or --fix drops the image"),
    "channels": ("error", "images whose channels or pages are not model.input.channels",
                 "set model.input.channels, or convert them"),
    "deep": ("warning", "value range of images of more than 8 bits",
             "nothing if it is right, else set data.pixel_range=[low, high]"),
    "pixel-range": ("error", "value range that cannot be determined", "set data.pixel_range=[low, high]"),
    "file-void": ("error", "images without a finite pixel (all are NaN or infinite)",
                  "write them again, or --fix drops the image"),
    "file-truncated": ("error", "truncated image files", "copy them again, or --fix drops the image"),
    "file-size": ("error", "images not of the annotated size", "--fix takes the file's size (check that the boxes fit)"),
    "file-exif": ("warning", "images that EXIF rotates but whose annotations fit the stored pixels (left as stored)",
                  "remove the EXIF tag"),
    "label-map": ("error", "label maps that cannot be read, are of another size than their image, or hold unlisted values",
                  "correct the files, or the list of classes"),
    "model": ("error", "the model cannot learn from these data", "change the model's config, or the data"),
    "file-animated": ("warning", "images of several frames (the first is read)",
                      "save the annotated frame alone, if it is another"),
    "file-outside": ("error", "file names outside the image folder", "keep the images inside it"),
    "same-image": ("warning", "identical images within a split", "remove one"),
    "leak": ("warning", "val images that are also in train: validation AP will be too high", "remove them from one"),
}  # fmt: skip
