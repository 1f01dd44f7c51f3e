"""Starting from pretrained weights: the config that belongs to them, and loading those that fit into a new model."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resdet.checkpoints.adapted import open_for
from resdet.checkpoints.cascade import single
from resdet.checkpoints.locate import find_weights
from resdet.checkpoints.rcnn import fit_hint
from resdet.checkpoints.recognise import Recognised, open_backbone, recognise
from resdet.checkpoints.stem import with_channels
from resdet.class_names import few, match_classes
from resdet.config import (
    ModelConfig,
    RCNNConfig,
    RTDETRConfig,
    keypoint_section,
    merged,
    parse_config,
    semantic_section,
    settings_of,
)  # fmt: skip
from resdet.errors import UserError, listed
from resdet.panoptic import ALL_THINGS

# Layers with rows for every class -> rows per class.
PREDICTORS = {
    "heads.box.classifier": 1, "heads.box.regressor": 4, "heads.mask.logits": 1, "head.classifier": 1,
    "queries.score": 1, "decoder.scores": 1, "denoising.embedding": 1, "classifier": 1,
}  # fmt: skip
# Layers whose inputs include the logits of all classes; re-initialised if the classes differ.
OF_ALL_CLASSES = ("heads.mask.coarse.logits", "heads.mask.point.")
# Keys of sections that the training set decides.
FROM_DATA = {
    "keypoint": ("num_keypoints", "names", "skeleton"),
    "semantic": ("num_classes", "names", "category_ids"),
}


def starting_point(config: ModelConfig) -> Recognised | None:
    """The checkpoint that `model.weights`, or else `model.backbone.weights`, names. Raises `UserError`."""
    if config.weights:
        return _for_input(recognise(find_weights(config.weights)), config)
    b = config.backbone
    if b.weights == "none":
        return None
    if not b.own:
        return open_for(config, find_weights(b.weights, b.name))
    found = open_backbone(find_weights(b.weights, b.name))
    name = found.model.backbone.name
    if name != b.name:
        raise UserError(
            f"{found.path}: holds a {name}, but the config has {b.name}: set model.backbone.name={name}, or use other weights"
        )
    return _for_input(found, config)


def _for_input(found: Recognised, config: ModelConfig) -> Recognised:
    """The checkpoint, adapted to `model.input.channels` if the config sets it."""
    return with_channels(found, config.input.channels) if "channels" in config.input.model_fields_set else found


def completed(config: ModelConfig, found: Recognised) -> ModelConfig:
    """The config with the architecture and the numerics of a checkpoint, except for keys that it sets itself."""
    if found.whole and found.model.kind != config.kind:
        refuse_keys_of_another_kind(config, found)
    theirs = {k: v for k, v in found.values.items() if k != "num_classes"}
    for part, decided in FROM_DATA.items():
        if theirs.get(part):
            theirs[part] = {k: v for k, v in theirs[part].items() if k not in decided}
    values = merged(theirs, settings_of(config))
    if found.whole:  # nothing is random then, whatever the backbone's own weights are
        values["weights"] = str(found.path)
    model = parse_config({"model": values}, str(found.path)).model
    model.weights = config.weights
    return model


def refuse_keys_of_another_kind(config: ModelConfig, found: Recognised) -> None:
    """Raises `UserError` if a config that starts from a detector sets what only another kind of detector has."""
    settings, kind = settings_of(config), found.model.kind
    others = [f"model.{key}" for key in settings if key not in type(found.model).model_fields or key == "kind"]
    if others:
        raise UserError(
            f"{found.path}: holds a detector of model.kind={kind}, but the config sets {few(others)} for model.kind="
            f"{config.kind}: leave them out, or start from a config of that kind"
        )


def disagreements(config: ModelConfig, found: Recognised) -> list[str]:
    """One line per numeric setting in which a config differs from the checkpoint that it starts from."""
    ours, lines = config.model_dump(), []
    for section, values in found.model.model_dump(
        include={"input", "anchors", "pool"} if found.whole else {"input"}
    ).items():
        lines += [
            f"model.{section}.{key}={ours[section][key]} in the config, but the weights need {value}"
            for key, value in values.items()
            if ours[section][key] != value
        ]
    if config.backbone.stride_in_1x1 != found.model.backbone.stride_in_1x1:
        lines.append(
            f"model.backbone.stride_in_1x1={config.backbone.stride_in_1x1} in the config, but the weights need "
            f"{found.model.backbone.stride_in_1x1}"
        )
    return lines


def fill(model: nn.Module, found: Recognised, class_names: Sequence[str], config: ModelConfig) -> str:
    """Load the weights that fit into `model`. -> a report: loaded, re-initialised and why, missing, left over.

    If the classes differ, predictors stay random except for the rows of classes that both sides name (and, if there are any,
    the background's). Parameters that are not in the file stay random; it is an error if the backbone is incomplete or shapes
    differ. Raises `UserError`.
    """
    own = model.state_dict()
    rcnn = config if isinstance(config, RCNNConfig) else None
    kept = rows_of(found, class_names)
    same = kept == list(range(len(class_names)))
    ready: dict[str, Tensor] = {}
    wrong: list[str] = []
    reinitialised: list[str] = []
    other_keypoints: list[str] = []
    other_pixels: list[str] = []
    pixels = _rows_of_label_maps(found, config, class_names)
    for name, value in own.items():
        given = found.weights.get(name)
        if given is None:
            continue
        layer = name.rpartition(".")[0]
        kind = re.sub(r"^decoder\.scores\.\d+$", "decoder.scores", single(layer + ".").removesuffix("."))
        rows = PREDICTORS.get(kind) if found.whole else None
        if layer.endswith(".regressor") and rcnn and ((rcnn.box and rcnn.box.class_agnostic) or rcnn.cascade):
            rows = None
        if layer == "heads.mask.logits" and rcnn and rcnn.mask and rcnn.mask.class_agnostic:
            rows = None
        if layer == "heads.keypoint.logits" and not _same_keypoints(config, found):
            other_keypoints.append(name)
            continue
        if layer == "heads.semantic.logits" and found.whole and pixels != list(range(len(value))):
            other_pixels.append(name)
            if given.shape[1:] == value.shape[1:]:
                ready[name] = _with_rows(value, given, pixels, 1)
            continue
        if rows and not (same and given.shape == value.shape):
            # A dense head's classifier has rows for all classes of each anchor.
            dense = layer == "head.classifier"
            anchors = len(value) // len(class_names) if dense else 1
            if dense and len(given) != anchors * (found.model.num_classes or 0):
                wrong.append(f"{name}: the file has {tuple(given.shape)}, the config builds {tuple(value.shape)}")
                continue
            reinitialised.append(name)
            if given.shape[1:] == value.shape[1:]:
                pairs = zip(value.chunk(anchors), given.chunk(anchors), strict=True)
                ready[name] = torch.cat([_with_rows(new, old, kept, rows) for new, old in pairs])
                continue
        if found.whole and not same and name.startswith(OF_ALL_CLASSES):
            reinitialised.append(name)
        elif given.shape != value.shape:
            wrong.append(f"{name}: the file has {tuple(given.shape)}, the config builds {tuple(value.shape)}")
        else:
            ready[name] = given
    missing = [k for k in own if k not in found.weights and not k.endswith("num_batches_tracked")]
    incomplete = [k for k in missing if k.startswith("backbone.") and not k.startswith("backbone.pyramid.")]
    if incomplete or wrong:
        hint = fit_hint(found.weights, config) if found.whole else ""
        problems = [f"missing: {k}" for k in incomplete] + wrong
        raise listed(
            f"{found.path}: does not fit the config{f' ({hint})' if hint else ''}; the first differences:",
            problems,
            4,
        )
    model.load_state_dict(ready, strict=False)
    left = [k for k in found.weights if k not in own and not k.endswith("num_batches_tracked")]
    in_part = sum(name in ready for name in (*reinitialised, *other_pixels))
    lines = [f"  loaded: {len(ready) - in_part} tensors, including the whole backbone"]
    if reinitialised:
        carried = [name for name, old in zip(class_names, kept, strict=True) if old is not None]
        layers = dict.fromkeys(name.rpartition(".")[0] for name in reinitialised)
        lines.append(
            f"  re-initialised: {', '.join(layers)}: the dataset has {len(class_names)} classes, the file "
            f"{found.model.num_classes}{'' if found.class_names else ' without names'}; rows carried over for: "
            + (few(carried) if carried else "none, no class has a name in both")
        )
    if other_keypoints:
        lines.append("  re-initialised: heads.keypoint.logits: the dataset's keypoints differ from the file's")
    if other_pixels:
        names = [name for name, old in zip(label_names(config, class_names), pixels, strict=False) if old is not None]
        lines.append(
            "  re-initialised: heads.semantic.logits: the label maps' classes differ from the file's; rows carried over for: "
            + (few(names) if names else "none, no class has a name in both")
        )
    if missing:
        lines.append(f"  not in the file, so random: {_by_part(missing)}")
    if left:
        hint = fit_hint(found.weights, config) if found.whole and isinstance(config, RTDETRConfig) else ""
        lines.append(f"  left over: {_by_part(left)}{f' ({hint})' if hint else ''}")
    return "\n".join(lines)


def _same_keypoints(config: ModelConfig, found: Recognised) -> bool:
    """Whether the file has the config's keypoints; if it does not name them, their number decides."""
    ours, theirs = keypoint_section(config), keypoint_section(found.model)
    assert ours
    assert theirs
    return ours.num_keypoints == theirs.num_keypoints and theirs.names in ([], ours.names)


def label_names(config: ModelConfig, class_names: Sequence[str]) -> list[str]:
    """The names of the classes of a model's label maps, by label; empty if there are none, or they are unknown."""
    if "semantic" not in config.outputs:
        return []
    section = semantic_section(config)
    if section is None:
        return list(class_names)
    return [ALL_THINGS, *section.names] if section.names else []


def _rows_of_label_maps(found: Recognised, config: ModelConfig, class_names: Sequence[str]) -> list[int | None]:
    """The label in the checkpoint's label maps of each of the config's, by name, or by number where either has no names."""
    if not found.whole or not {"semantic"} <= found.model.outputs & config.outputs:
        return []
    ours, theirs = label_names(config, class_names), label_names(found.model, found.class_names)
    if ours and theirs:
        return match_classes(ours, theirs, "the label maps", str(found.path))
    section, other = semantic_section(config), semantic_section(found.model)
    count = section.num_classes if section else config.num_classes
    assert count is not None
    same = count == (other.num_classes if other else found.model.num_classes)
    return list(range(count)) if same else [None] * count


def rows_of(found: Recognised, class_names: Sequence[str]) -> list[int | None]:
    """The label in the checkpoint of each class, by name; None for a class that it does not have.

    A file without class names is assumed to have the same classes if their number agrees. Raises `UserError` for ambiguous
    names.
    """
    if not found.whole:
        return [None] * len(class_names)
    if not found.class_names and found.model.num_classes == len(class_names):
        return list(range(len(class_names)))
    return match_classes(class_names, found.class_names, "the data", str(found.path))


def _with_rows(value: Tensor, given: Tensor, kept: list[int | None], rows: int) -> Tensor:
    """`value` with the rows of `given` for the classes in `kept`, and the background's, the last row, if there are any."""
    result = value.clone()
    for new, old in enumerate(kept):
        if old is not None:
            result[new * rows : (new + 1) * rows] = given[old * rows : (old + 1) * rows]
    if len(value) == len(kept) * rows + 1 and any(old is not None for old in kept):
        result[-1] = given[-1]
    return result


def _by_part(names: list[str]) -> str:
    """ "heads.mask (12 tensors), …": parts rather than hundreds of names."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        part = ".".join(parts[:2] if parts[0] == "heads" else parts[:1])
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items())
