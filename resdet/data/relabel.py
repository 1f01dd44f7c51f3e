"""Annotations -> the same in the label space of a model, so that training and `eval` score a file in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resdet.class_names import OBJECT, few, match_classes
from resdet.data.coco import Annotations
from resdet.data.label_maps import DrawnLabels, of_classes, of_things, refuse_many
from resdet.errors import UserError
from resdet.panoptic import ALL_THINGS


def as_objects(annotations: Annotations) -> Annotations:
    """The annotations with all classes as one, `OBJECT`, as a model of proposals sees them; `content` stays as it is."""
    images = annotations.images.as_one_class()
    return replace(annotations, images=images, class_names=[OBJECT], category_ids=[1])


def as_label_maps(annotations: Annotations) -> Annotations:
    """The annotations as a model of pixels alone sees them: no objects, and the classes are those of the label maps, which are
    drawn from the objects where there are none. `content` stays as it is. Raises `UserError` without masks to draw."""
    maps = annotations.label_maps or _drawn(annotations, of_classes(annotations.class_names))
    images = annotations.images.relabelled(np.full(len(annotations.class_names), -1))
    if isinstance(maps, DrawnLabels):
        images = annotations.images  # which are drawn
    return replace(annotations, images=images, class_names=maps.names, category_ids=maps.ids, label_maps=maps)


def with_label_maps(annotations: Annotations) -> Annotations:
    """The annotations as a semantic head beside instances sees them: with label maps, drawn where there are none."""
    maps = annotations.label_maps or _drawn(annotations, of_things(annotations.class_names))
    if maps.names[0] != ALL_THINGS:
        raise UserError(
            f"{annotations.source}: its label maps have no label for things, so they do not go with instances: train "
            "model.kind=semantic on them, or use COCO's panoptic annotations"
        )
    return replace(annotations, label_maps=maps)


def refuse_other_labels(annotations: Annotations, names: Sequence[str], owner: str) -> None:
    """Raises `UserError` if the label maps have other classes, or another order of them, than `names`, which are `owner`'s."""
    assert annotations.label_maps
    if (own := annotations.label_maps.names) != list(names):
        raise UserError(f"{annotations.source} and {owner} list different classes of pixels: {few(own)}; {few(names)}")


def _drawn(annotations: Annotations, maps: DrawnLabels) -> DrawnLabels:
    if not annotations.images.any_masks:
        raise UserError(
            f"{annotations.source}: has neither label maps nor masks to draw them from, so a semantic head cannot learn"
        )
    refuse_many(maps.names, annotations.source)
    return maps


def for_classes(
    annotations: Annotations, class_names: Sequence[str], owner: str, owners_classes: str
) -> tuple[Annotations, list[str]]:
    """A split with a model's labels, matched by class name, and notes about it for the user.

    Objects of classes that the model does not have are no longer targets, but stay in `content` and so count as missed.
    `category_ids` gets a None for each class that the file does not list. owner, owners_classes: whose `class_names`
    they are, for messages, as in "train.json", "the training set". Raises `UserError` where no class is known to both or
    a name could be several of the other's.
    """
    names = annotations.class_names
    if list(class_names) == names:
        return annotations, []
    labels = match_classes(names, class_names, str(annotations.source), owner)
    found = {label: k for k, label in enumerate(labels) if label is not None}
    if not found:
        raise UserError(
            f"{owner} and {annotations.source} have no class in common: {owners_classes} has {few(class_names)}; "
            f"the data have {few(names)}"
        )
    counts = np.bincount(annotations.images.labels, minlength=len(names))
    notes = []
    if strange := [k for k, label in enumerate(labels) if label is None]:
        notes.append(
            f"warning: {owners_classes} does not have {len(strange)} of the {len(names)} classes of {annotations.source}, so "
            f"their {counts[strange].sum()} objects count as missed: {few([names[k] for k in strange])}"
        )
    if absent := [name for label, name in enumerate(class_names) if label not in found]:
        notes.append(
            f"{len(absent)} of the {len(class_names)} classes of {owners_classes} are not in {annotations.source}; "
            f"detections of them are not scored: {few(absent)}"
        )
    if other := [
        f"{names[k]!r} = {class_names[label]!r}" for label, k in found.items() if names[k] != class_names[label]
    ]:
        notes.append(f"classes matched although they are spelled differently: {few(other)}")
    new_labels = np.array([-1 if label is None else label for label in labels])
    ids = [annotations.category_ids[found[label]] if label in found else None for label in range(len(class_names))]
    images = annotations.images.relabelled(new_labels)
    return replace(annotations, images=images, class_names=list(class_names), category_ids=ids), notes
