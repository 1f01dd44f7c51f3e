"""Starting from others' weights: the config that they bring, and which of them go where in a new model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from resdet.checkpoints.cascade import single
from resdet.checkpoints.locate import find_weights
from resdet.checkpoints.recognise import Recognised, fit_hint, open_backbone, recognise
from resdet.checkpoints.stem import with_channels
from resdet.class_names import few, match_classes
from resdet.config import ModelConfig, RCNNConfig, keypoint_section, parse_config, settings_of
from resdet.errors import UserError, listed

# Layers with rows for every class, and how many rows a class has in them.
PREDICTORS = {"heads.box.classifier": 1, "heads.box.regressor": 4, "heads.mask.logits": 1}
# Layers that see every class's logits among their inputs, and so start anew with other classes.
OF_ALL_CLASSES = ("heads.mask.coarse.logits", "heads.mask.point.")
# Keys of model.keypoint that the training set decides.
FROM_DATA = ("num_keypoints", "names", "skeleton")


def starting_point(config: ModelConfig) -> Recognised | None:
    """Open what `model.weights`, or else `model.backbone.weights`, names. Raises `UserError`."""
    if config.weights:
        return _for_input(recognise(find_weights(config.weights)), config)
    b = config.backbone
    if b.weights == "none":
        return None
    found = open_backbone(find_weights(b.weights, b.name))
    name = found.model.backbone.name
    if name != b.name:
        raise UserError(
            f"{found.path}: holds a {name}, the config says {b.name}: set model.backbone.name={name}, or name other weights"
        )
    return _for_input(found, config)


def _for_input(found: Recognised, config: ModelConfig) -> Recognised:
    """The checkpoint for as many channels as the config asks for; its own where that leaves them open."""
    return with_channels(found, config.input.channels) if "channels" in config.input.model_fields_set else found


def completed(config: ModelConfig, found: Recognised) -> ModelConfig:
    """The config with the architecture and the numerics of a checkpoint, except where it sets a key itself."""
    if found.whole and found.model.kind != config.kind:
        refuse_keys_of_another_kind(config, found)
    theirs = {k: v for k, v in found.values.items() if k != "num_classes"}
    if theirs.get("keypoint"):
        theirs["keypoint"] = {k: v for k, v in theirs["keypoint"].items() if k not in FROM_DATA}
    values = _merged(theirs, settings_of(config))
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
    """The numerics in which a config goes against the checkpoint that it starts from."""
    ours, lines = config.model_dump(), []
    for section, values in found.model.model_dump(
        include={"input", "anchors", "pool"} if found.whole else {"input"}
    ).items():
        lines += [
            f"model.{section}.{key}={ours[section][key]} is the config's; the weights are made for {value}"
            for key, value in values.items()
            if ours[section][key] != value
        ]
    if config.backbone.stride_in_1x1 != found.model.backbone.stride_in_1x1:
        lines.append(
            f"model.backbone.stride_in_1x1={config.backbone.stride_in_1x1} is the config's; the weights' is other"
        )
    return lines


def fill(model: nn.Module, found: Recognised, class_names: Sequence[str], config: ModelConfig) -> str:
    """Put the weights where they belong. -> a report: loaded, re-initialised and why, missing, left over.

    Predictors of other classes stay random but for the rows of classes that both sides name (and, with such, the
    background's). What the file does not have stays random too, which for a part of the backbone is an error, as is a
    part of another shape. Raises `UserError`.
    """
    own = model.state_dict()
    rcnn = config if isinstance(config, RCNNConfig) else None
    kept = rows_of(found, class_names)
    same = kept == list(range(len(class_names)))
    ready: dict[str, Tensor] = {}
    wrong: list[str] = []
    redone: list[str] = []
    points: list[str] = []
    for name, value in own.items():
        given = found.weights.get(name)
        if given is None:
            continue
        layer = name.rpartition(".")[0]
        rows = PREDICTORS.get(single(layer + ".").removesuffix(".")) if found.whole else None
        if layer.endswith(".regressor") and rcnn and ((rcnn.box and rcnn.box.class_agnostic) or rcnn.cascade):
            rows = None
        if layer == "heads.mask.logits" and rcnn and rcnn.mask and rcnn.mask.class_agnostic:
            rows = None
        if layer == "heads.keypoint.logits" and not _same_keypoints(config, found):
            points.append(name)
            continue
        if rows and not (same and given.shape == value.shape):
            redone.append(name)
            if given.shape[1:] == value.shape[1:]:
                ready[name] = _with_rows(value, given, kept, rows)
                continue
        if found.whole and not same and name.startswith(OF_ALL_CLASSES):
            redone.append(name)
        elif given.shape != value.shape:
            wrong.append(f"{name}: the file has {tuple(given.shape)}, the config builds {tuple(value.shape)}")
        else:
            ready[name] = given
    missing = [k for k in own if k not in found.weights and not k.endswith("num_batches_tracked")]
    torn = [k for k in missing if k.startswith("backbone.")]
    if torn or wrong:
        hint = fit_hint(found.weights, config) if found.whole else ""
        problems = [f"missing: {k}" for k in torn] + wrong
        raise listed(
            f"{found.path}: does not fit the config{f' ({hint})' if hint else ''}; where they first differ:",
            problems,
            4,
        )
    model.load_state_dict(ready, strict=False)
    left = [k for k in found.weights if k not in own and not k.endswith("num_batches_tracked")]
    lines = [f"  loaded: {len(ready) - len(redone)} tensors, all of the backbone's"]
    if redone:
        carried = [name for name, old in zip(class_names, kept, strict=True) if old is not None]
        layers = dict.fromkeys(name.rpartition(".")[0] for name in redone)
        lines.append(
            f"  re-initialised: {', '.join(layers)}: the data have {len(class_names)} classes, the file "
            f"{found.model.num_classes}{'' if found.class_names else ' without names'}; rows carried over for: "
            + (few(carried) if carried else "none, no class has a name in both")
        )
    if points:
        lines.append("  re-initialised: heads.keypoint.logits: the data's keypoints are others than the file's")
    if missing:
        lines.append(f"  not in the file, so random: {_by_part(missing)}")
    if left:
        lines.append(f"  left over: {_by_part(left)}")
    return "\n".join(lines)


def _same_keypoints(config: ModelConfig, found: Recognised) -> bool:
    """Whether a file's keypoints are the config's; one without their names is taken to have the same if it has as many."""
    ours, theirs = keypoint_section(config), keypoint_section(found.model)
    assert ours
    assert theirs
    return ours.num_keypoints == theirs.num_keypoints and theirs.names in ([], ours.names)


def rows_of(found: Recognised, class_names: Sequence[str]) -> list[int | None]:
    """For each class its label in the checkpoint, by name; None for one that it does not know.

    A file without class names is taken to have the same classes if it has as many. Raises `UserError` for names that could be
    several of the file's.
    """
    if not found.whole:
        return [None] * len(class_names)
    if not found.class_names and found.model.num_classes == len(class_names):
        return list(range(len(class_names)))
    return match_classes(class_names, found.class_names, "the data", str(found.path))


def _with_rows(value: Tensor, given: Tensor, kept: list[int | None], rows: int) -> Tensor:
    """`value` with the rows of `given` for the classes that both have; the background is a last row of its own."""
    result = value.clone()
    for new, old in enumerate(kept):
        if old is not None:
            result[new * rows : (new + 1) * rows] = given[old * rows : (old + 1) * rows]
    if len(value) == len(kept) * rows + 1 and any(old is not None for old in kept):
        result[-1] = given[-1]
    return result


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in place of its own."""
    result = dict(base)
    for key, value in over.items():
        inner = base.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _by_part(names: list[str]) -> str:
    """ "heads.mask (12 tensors), …": parts rather than hundreds of names."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        part = ".".join(parts[:2] if parts[0] == "heads" else parts[:1])
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items())
