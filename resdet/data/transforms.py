"""The configured augmentations as albumentations' transforms, each tried once: those that cannot work are refused by name."""

from __future__ import annotations

import difflib
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resdet.errors import listed

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version

TRIED_ON = (128, 160)  # (H, W) of the image on which each transform is tried, unless its crop needs a larger one
MASK_ARGUMENTS = {"fill_mask": (None, 0), "mask_interpolation": (None, 0), "mask_drop_value": (None,)}


def build_compose(entries: Sequence[Any]) -> Any:
    """[{"name": "HorizontalFlip", "p": 0.5}, …] -> `albumentations.Compose`.

    Raises one `UserError` that lists every unknown name, unknown argument, wrong value, and every transform that works
    with more than an image and its objects, or that returns anything but an image.
    """
    import albumentations as A  # takes a second: only where something is to be augmented

    problems: list[str] = []
    transforms = [_build(entry, problems) for entry in entries]
    if not problems:
        for transform in transforms:
            _examine(transform, problems)
    if problems:
        raise listed("data.train.augmentations:", problems)
    return A.Compose(transforms)


def leaves(transform: Any) -> Iterator[Any]:
    """Every transform, containers included: those draw which of theirs to apply."""
    import albumentations as A

    yield transform
    if isinstance(transform, A.BaseCompose):
        for inner in transform.transforms:
            yield from leaves(inner)


def moves_pixels(transform: Any) -> bool:
    """Whether objects have to follow. Dropout and morphological filters leave them in place."""
    import albumentations as A
    from albumentations.augmentations.dropout.transforms import BaseDropout

    still = BaseDropout | A.PixelDropout | A.Morphological | A.NoOp
    return isinstance(transform, A.DualTransform) and not isinstance(transform, still)


def crop_size(transform: Any) -> tuple[int, int] | None:
    """(H, W) that an image must have for a transform's crop; None if any will do."""
    import albumentations as A

    fixed = A.RandomCrop | A.CenterCrop | A.CropNonEmptyMaskIfExists | A.AtLeastOneBBoxRandomCrop
    if getattr(transform, "pad_if_needed", False):
        return None
    if isinstance(transform, A.Crop):
        return transform.y_max, transform.x_max
    return (transform.height, transform.width) if isinstance(transform, fixed) else None


# ---- names and arguments ---------------------------------------------------------------------------------------------


def _build(entry: Any, problems: list[str]) -> Any:
    import albumentations as A

    arguments = dict(entry) if isinstance(entry, dict) else {}
    name = arguments.pop("name", None)
    found = getattr(A, str(name), None)
    bases = (A.BasicTransform, A.BaseCompose, A.DualTransform, A.ImageOnlyTransform, A.Transform3D)
    if found in bases or not (isinstance(found, type) and issubclass(found, A.BasicTransform | A.BaseCompose)):
        known = [n for n in dir(A) if isinstance(getattr(A, n), type)]
        near = difflib.get_close_matches(str(name), known, n=1)
        problems.append(f"{name!r} is not an albumentations transform" + (f"; did you mean {near[0]}?" if near else ""))
        return None
    wrong = len(problems)
    problems += [
        f"{name}: {key} has no effect, since masks move as outlines; leave it out"
        for key in MASK_ARGUMENTS.keys() & arguments.keys()
        if arguments[key] not in MASK_ARGUMENTS[key]
    ]
    if "transforms" in arguments:
        if not isinstance(arguments["transforms"], list):
            problems.append(f"{name}: transforms must be a list of transforms")
        else:
            arguments["transforms"] = [_build(inner, problems) for inner in arguments["transforms"]]
    if len(problems) > wrong:
        return None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not valid for transform.*")
            return found(**arguments)
    except Exception as error:  # whatever albumentations says of the arguments
        problems.append(f"{name}: {_one_line(error)}")
        return None


# ---- what works only elsewhere ---------------------------------------------------------------------------------------


def _examine(transform: Any, problems: list[str]) -> None:
    """Try a transform, or those of a container one by one."""
    import albumentations as A

    name = type(transform).__name__
    if isinstance(transform, A.SelectiveChannelTransform):
        moving = [type(t).__name__ for t in leaves(transform) if moves_pixels(t)]
        if moving:
            problems.append(f"{name}: {', '.join(moving)} would move some channels relative to others; take it out")
            return
    elif isinstance(transform, A.ReplayCompose):
        problems.append(f"{name} records its parameters for a replay that is never used: use Compose")
        return
    elif isinstance(transform, A.BaseCompose):
        for inner in transform.transforms:
            _examine(inner, problems)
        return
    problem = _why_not(transform) or _try(transform)
    if problem:
        problems.append(f"{name} {problem}")


def _why_not(transform: Any) -> str | None:
    import albumentations as A

    if isinstance(transform, A.Transform3D | A.ToTensor3D):
        return "works on volumes, not on images: leave it out"
    if isinstance(transform, A.MaskDropout | A.ConstrainedCoarseDropout):
        return "drops out parts of objects, for which it needs their masks as one image: use CoarseDropout"
    if isinstance(transform, A.Lambda):
        return "needs Python functions, which a config cannot hold: leave it out"
    needs = sorted(set(getattr(transform, "targets_as_params", ())) - {"image", "bboxes"})
    if needs:
        return f"needs {', '.join(needs)} with every image, which datasets here do not have: leave it out"
    return None


def _try(transform: Any) -> str | None:
    """Apply it to an image of noise -> what is wrong with the result, or None."""
    height, width = crop_size(transform) or (0, 0)
    stream = np.random.default_rng(0)
    image = stream.integers(0, 256, (max(height, TRIED_ON[0]), max(width, TRIED_ON[1]), 3), np.uint8)
    for inner in leaves(transform):
        inner.set_random_state(stream, random.Random(0))
    boxes, mask = np.array([[0.3, 0.3, 0.6, 0.7]], np.float32), np.ones(image.shape[:2], np.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = transform(image=image, bboxes=boxes, mask=mask, force_apply=True)["image"]
    except Exception as error:
        return f"fails on an image of {image.shape[0]} x {image.shape[1]} (H x W): {_one_line(error)}"
    return spoiled(result, image)


def spoiled(result: Any, image: np.ndarray) -> str | None:
    """Why the result of a transform is no longer a usable image: another dtype or other channels; None if it is."""
    advice = "leave it out, the model normalizes its input itself"
    if not isinstance(result, np.ndarray) or result.dtype != image.dtype:
        return f"turns {image.dtype} images into {getattr(result, 'dtype', type(result).__name__)}: {advice}"
    if result.shape[2:] != image.shape[2:]:
        return f"turns an image of shape {image.shape} into {result.shape}: the number of channels must stay the same"
    return None if result.size else "returns an empty image"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
