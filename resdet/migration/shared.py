"""What both tools' keys have in common: our names and values for backbones, sizes, weights, norms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from resdet.migration.keys import NotBuilt, NotTaken


def backbone_name(depth: int, groups: int, width: int) -> str:
    """`depth` layers, `groups` of `width` channels in res2's 3x3 convolutions."""
    if depth not in (18, 34, 50, 101, 152):
        raise NotBuilt("resdet supports depths 18, 34, 50, 101, 152")
    if groups == 1 and width == 64:
        return f"resnet{depth}"
    if groups == 1 and width == 128 and depth in (50, 101):
        return f"wide_resnet{depth}_2"
    if groups == 1 or depth < 50:
        raise NotBuilt(f"a ResNet-{depth} of {groups} groups of {width} channels is not one of resdet's backbones")
    return f"resnext{depth}_{groups}x{width}d"


def deformable(kind: str, stages: Sequence[bool], groups: int) -> dict[str, Any]:
    """kind: "v1" or "v2". stages: of c2..c5."""
    names = [name for name, on in zip(("c2", "c3", "c4", "c5"), stages, strict=True) if on]
    if not names:
        return {}
    return {
        "model.backbone.deformable": kind,
        "model.backbone.deformable_stages": names,
        "model.backbone.deformable_groups": groups,
    }


def trunk(convs: int, layers: int) -> str:
    if (convs, layers) not in ((0, 2), (4, 1)):
        raise NotBuilt(
            f"a box head of {convs} convolutions and {layers} fully connected layers; resdet supports 0 and 2, or 4 and 1",
            level=2,
        )
    return "4conv1fc" if convs else "2fc"


def sizes(train: Sequence[int], test: int) -> list[int]:
    """The short sides to draw from, evaluation's last."""
    return [*sorted({int(size) for size in train} - {test}), test] if test else sorted({int(size) for size in train})


def test_size(train: Sequence[int], test: int) -> dict[str, Any]:
    if not test:
        raise NotTaken("evaluation always resizes, to the last of data.min_size")
    taken = {"data.min_size": sizes(train, test)}
    if test not in train:
        raise NotTaken("training draws this short side, too, as the last of data.min_size", taken)
    return taken


def longest_test_side(test: int, train: int) -> dict[str, Any]:
    if test != train:
        raise NotTaken(f"evaluation uses the longest side of training ({train})")
    return {}


def weights(value: str, key: str) -> dict[str, Any]:
    """A path stays as it is; of an address the file's name stays, to be fetched."""
    if value.startswith("torchvision://"):
        return {key: "imagenet"}
    if "://" not in value:
        return {key: value}
    address = value.replace("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
    name = address.rpartition("/")[2]
    raise NotTaken(f"download {address} and set {key} to the file's path", {key: name})


def no_weights(frozen: bool) -> dict[str, Any]:
    if frozen:
        raise NotTaken("frozen layers need weights: those of ImageNet are the default here; or set model.weights")
    return {"model.backbone.weights": "none"}


def single(value: Any, what: str, level: int = 1) -> Any:
    if len(value) != 1:
        raise NotBuilt(f"resdet supports {what}", level)
    return value[0]


def same_width(widths: Sequence[int], accepted: tuple[int, ...]) -> int:
    """-> how many convolutions."""
    if any(width not in accepted for width in widths):
        raise NotBuilt(f"resdet's RPN has convolutions of {accepted[-1]} channels")
    return len(widths)


def one_width(widths: Sequence[int]) -> int:
    if len(set(widths)) != 1:
        raise NotBuilt("resdet supports convolutions of one width")
    return widths[0]


def known_norm(ours: str | None, theirs: Any) -> str:
    if ours is None:
        raise NotBuilt(f"{theirs!r} is not one of resdet's norms")
    return ours


def as_the_boxes(value: Any, of_boxes: Iterable[Any]) -> dict[str, Any]:
    """Masks and keypoints are pooled like boxes here."""
    if value not in list(of_boxes):
        raise NotTaken("masks and keypoints are pooled like boxes (model.pool)")
    return {}


def same_decay(value: float | None, decay: float) -> dict[str, Any]:
    if value is not None and value != decay:
        raise NotTaken("biases decay like weights (train.weight_decay)")
    return {}


def choice(value: Any, known: dict[Any, Any], level: int | None) -> Any:
    """What a value means; another one is not built (of that level), or, for None, not taken."""
    if isinstance(value, str | int | None) and value in known:
        return known[value]
    names = " or ".join(map(repr, known))
    if level is None:
        raise NotTaken(f"in resdet it is {names}")
    raise NotBuilt(f"resdet supports {names}", level)


def equal(value: Any, other: Any, what: str) -> dict[str, Any]:
    if value != other:
        raise NotTaken(f"here it is {other!r}: {what}")
    return {}
