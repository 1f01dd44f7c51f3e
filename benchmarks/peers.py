"""The same model, weights and images for resdet, torchvision and detectron2: what `tools/benchmark.py` runs side by side."""

from __future__ import annotations

import copy
import gc
import itertools
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from resdet.checkpoints.names import from_ours
from resdet.config import Config
from resdet.data.dataset import DetectionDataset
from resdet.data.patch import patch_of
from resdet.errors import UserError
from resdet.export.torchvision import to_torchvision
from resdet.inference.predictor import to_instances
from resdet.masks import paste_bitmaps
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.runtime.device import DTYPES, autocast, compiled, keep_memory
from resdet.structures import Batch, Targets
from resdet.training.optim import build_optimizer


def _operations(x: list[int], weight: list[int], *others: Any, out_shape: list[int], **_: Any) -> int:
    """Of a fused convolution, which torch does not count; one that also adds has what it adds in the weight's place."""
    if len(others[0] or ()) == 4:
        weight = others[0]
    count: int = conv_flop_count(x, weight, out_shape)
    return count


FUSED = (
    {torch.ops.mkldnn._convolution_pointwise: _operations}
    if hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    else {}
)
Peer = Literal["torchvision", "detectron2", "none"]


class Load(NamedTuple):
    """What is computed: images of size (H, W), batch of them a training step, with so many objects each."""

    size: tuple[int, int]
    batch: int
    objects: int
    repeats: int


class Sides(NamedTuple):
    """One model's training step and prediction, with whole pasted masks, which stay on the device; predict tells how many
    detections came out."""

    train: Callable[[], object]
    predict: Callable[[int], int]


class InProcess:
    """A side in a process of its own, so that neither's memory allocator, threads or caches are the other's.

    ask(order) -> its answer, when the device has finished: "train", "predict N" (detections), "memory" (MiB that the
    training steps so far needed beyond the idle model), "operations train" and "operations predict" (floating-point, of a
    step and of one picture), "trace PATH" (of a step).
    """

    def __init__(self, name: str, config: Config, load: Load, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        arguments = (theirs, name, config, load, device, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # so that its death ends our waiting
        self._receive(name)

    def ask(self, order: str) -> Any:
        self._ours.send(order)
        return self._receive(order)

    def _receive(self, what: str) -> Any:
        try:
            answer = self._ours.recv()
        except EOFError:
            raise UserError(f"{what}: the process that was measured died (killed for want of memory?)") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(connection: Any, name: str, config: Config, load: Load, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    if name == "resdet" and device.type == "cpu":
        keep_memory()  # as training and prediction do
    try:
        side = side_of(name, config, load, device)
    except UserError as error:
        connection.send(error)
        return
    gc.collect()
    before = memory(device, peak=False)
    connection.send("ready")
    while True:
        order, _, argument = connection.recv().partition(" ")
        answer: Any = None
        if order == "train":
            side.train()
        elif order == "predict":
            answer = side.predict(int(argument))
        elif order == "memory":
            answer = memory(device, peak=True) - before
        elif order == "operations":
            with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                side.train() if argument == "train" else side.predict(1)
            answer = counter.get_total_flops()
        elif order == "trace":
            with torch.profiler.profile() as profiler:
                side.train()
            profiler.export_chrome_trace(argument)
        synchronize(device)
        connection.send(answer)


def memory(device: torch.device, peak: bool) -> float:
    """MiB of this process: on the device, or resident."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device) / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def made_batch(load: Load, count: int, classes: int, device: torch.device) -> Batch:
    """Noise with boxes of all sizes; half of each object's box is its mask."""
    chance = torch.Generator().manual_seed(0)
    height, width = load.size
    padded = [-(-side // 32) * 32 for side in load.size]
    images = torch.zeros(count, 3, *padded, dtype=torch.uint8)
    images[:, :, :height, :width] = torch.randint(
        0, 256, (count, 3, height, width), generator=chance, dtype=torch.uint8
    )
    extent = torch.tensor([width, height])
    low = torch.rand(count, load.objects, 2, generator=chance) * extent * 0.6
    side = torch.rand(count, load.objects, 2, generator=chance) ** 2 * extent * 0.39 + 4
    masks = torch.zeros(count, load.objects, 112, 112, dtype=torch.uint8)
    masks[:, :, :, :56] = 1
    targets = Targets(
        torch.cat([low, low + side], -1).to(device),
        torch.randint(0, classes, (count, load.objects), generator=chance).to(device),
        torch.ones(count, load.objects, dtype=torch.bool, device=device),
        masks.to(device),
    )
    sizes = torch.tensor([load.size] * count)
    return Batch(images.to(device), sizes.to(device), torch.arange(count, device=device), targets)


def side_of(name: str, config: Config, load: Load, device: torch.device) -> Sides:
    """The model of one side with the same weights, on the same images."""
    torch.manual_seed(0)
    ours = build_model(config.model).to(device)
    with torch.no_grad():
        for key, value in ours.backbone.state_dict().items():
            if key.endswith((".bn3.weight", "0.bn2.weight", "1.bn2.weight")):
                value.fill_(0.2)  # random branches would pile up, and no box would stay inside the image
    assert config.model.num_classes is not None
    batch = made_batch(load, load.batch, config.model.num_classes, device)
    if name == "resdet":
        return _resdet(ours, config, load, batch, device)
    if name == "torchvision":
        return _torchvision(ours, config, load, batch, device)
    return _detectron2(ours, config, load, batch, device)


def _resdet(model: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = compiled(model, config.train.compile, fullgraph=True, dynamic=False)
    optimizer = build_optimizer(model, config.train)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.train.amp):
            losses = forward(batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    predictor = copy.deepcopy(model).to(memory_format=torch.channels_last)  # all as `Predictor` has it
    predictor.only_predict(DTYPES.get(config.train.amp))
    predict_batch = compiled(predictor.predict, config.train.compile)

    def predict(count: int) -> int:
        with torch.inference_mode(), autocast(device, config.train.amp):
            images = batch.images[:1].expand(count, -1, -1, -1)
            sizes = batch.image_sizes[:1].expand(count, -1)
            found = predict_batch(Batch(images, sizes, batch.keys[:1].expand(count), None))
        if device.type == "cuda":
            if found.mask_probs is not None:
                for probs, boxes in zip(found.mask_probs, found.boxes, strict=True):
                    paste_bitmaps(probs, boxes, load.size)
            return int(found.valid.sum())
        instances = to_instances(found, [load.size] * count)
        return sum(len(i if i.masks is None else i.masks) for i in instances)

    return Sides(train, predict)


def _torchvision(ours: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    m = config.model
    assert m.num_classes is not None
    norms: dict[str, Any] = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d}
    if m.backbone.norm not in norms:
        raise UserError(f"--compare torchvision: not with model.backbone.norm={m.backbone.norm}; --compare none")
    backbone = resnet_fpn_backbone(
        backbone_name=m.backbone.name, weights=None, norm_layer=norms[m.backbone.norm],
        trainable_layers=5 - max(m.backbone.frozen_stages - 1, 0),
    )  # fmt: skip
    build = MaskRCNN if m.mask else FasterRCNN
    model: Any = build(
        backbone, m.num_classes + 1, min_size=min(load.size), max_size=max(load.size), box_score_thresh=0.0
    ).to(device)
    try:
        model.load_state_dict(to_torchvision(dict(ours.state_dict()), m, "the benchmark's model"), strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"--compare torchvision: it builds no model of these sizes ({first}); --compare none") from None
    if m.backbone.frozen_stages:
        for part in (
            model.backbone.body.conv1,
            *([model.backbone.body.layer1] if m.backbone.frozen_stages > 1 else []),
        ):
            part.requires_grad_(False)
    height, width = load.size
    images = [image[:, :height, :width].float() / 255 for image in batch.images]
    targets = []
    t = batch.targets
    assert t is not None
    for boxes, labels in zip(t.boxes, t.labels, strict=True):
        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8, device=device)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        targets.append({"boxes": boxes, "labels": labels + 1, "masks": masks})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=config.train.lr, momentum=0.9)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.train.amp):
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()

    def predict(count: int) -> int:
        model.eval()
        with torch.inference_mode(), autocast(device, config.train.amp):
            found = model(images[:1] * count)
        return sum(len(f["masks"][:, 0] > 0.5 if m.mask else f["boxes"]) for f in found)

    return Sides(train, predict)


def _detectron2(ours: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model as build_theirs
    from detectron2.structures import BitMasks, Boxes, Instances

    m = config.model
    depth = {"resnet50": 50, "resnet101": 101, "resnet152": 152}.get(m.backbone.name)
    if not depth:
        raise UserError(f"--compare detectron2: not with model.backbone.name={m.backbone.name}; --compare none")
    kind = "InstanceSegmentation/mask" if m.mask else "Detection/faster"
    theirs = model_zoo.get_config(f"COCO-{kind}_rcnn_R_50_FPN_1x.yaml")
    theirs.MODEL.DEVICE, theirs.MODEL.MASK_ON = str(device), m.mask is not None
    theirs.MODEL.RESNETS.DEPTH, theirs.MODEL.ROI_HEADS.NUM_CLASSES = depth, m.num_classes
    theirs.MODEL.RESNETS.STRIDE_IN_1X1 = m.backbone.stride_in_1x1
    theirs.MODEL.PIXEL_MEAN, theirs.MODEL.PIXEL_STD = list(m.input.mean), list(m.input.std)
    theirs.INPUT.MASK_FORMAT, theirs.MODEL.ROI_HEADS.SCORE_THRESH_TEST = "bitmask", 0.0
    model = build_theirs(theirs)
    names = {name: str(from_ours(name, "detectron2")) for name in ours.state_dict()}
    if m.rpn.num_convs == 1:  # which is not counted there
        names = {name: their.replace(".conv.conv0.", ".conv.") for name, their in names.items()}
    weights = {names[name]: value for name, value in ours.state_dict().items()}
    if not_theirs := model.load_state_dict(weights, strict=False).unexpected_keys:
        raise UserError(f"--compare detectron2: it has no {', '.join(not_theirs[:3])}, …; --compare none")
    height, width = load.size
    inputs = []
    t = batch.targets
    assert t is not None
    for image, boxes, labels in zip(batch.images, t.boxes, t.labels, strict=True):
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=device)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1 : (x1 + x2) // 2] = True
        truth = Instances(load.size, gt_boxes=Boxes(boxes), gt_classes=labels, gt_masks=BitMasks(masks))
        inputs.append({"image": image[:, :height, :width], "instances": truth, "height": height, "width": width})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=config.train.lr, momentum=0.9)

    def train() -> None:
        from detectron2.utils.events import EventStorage

        model.train()
        optimizer.zero_grad(set_to_none=True)
        with EventStorage(), autocast(device, config.train.amp):
            loss = sum(model(inputs).values())
        loss.backward()
        optimizer.step()

    def predict(count: int) -> int:
        model.eval()
        with torch.inference_mode(), autocast(device, config.train.amp):
            found = model(inputs[:1] * count)
        return sum(len(f["instances"]) for f in found)

    return Sides(train, predict)


def reference_samples(dataset: DetectionDataset) -> Iterator[Any]:
    """Pictures as torchvision's training reference (references/detection) reads them, without end: Pillow, bitmaps of the
    picture's size, floats, a flip, and its model's transform, which resizes both. In the order of the dataset."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms.functional import pil_to_tensor

    data = dataset.data
    transform = GeneralizedRCNNTransform(data.min_size, data.max_size, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for info in itertools.cycle(dataset.annotations.images):
        with Image.open(info.file) as file:
            image = pil_to_tensor(file.convert("RGB")).float() / 255
        objects = info.objects
        both = zip(objects.segmentations, objects.boxes, strict=True) if dataset.masks else ()
        masks = [patch_of(mask, box, info.size).whole(info.size) for mask, box in both]
        target = {"boxes": torch.from_numpy(objects.boxes), "labels": torch.from_numpy(objects.labels)}
        if dataset.masks:
            bitmaps = np.stack(masks) if masks else np.zeros((0, *info.size), np.uint8)
            target["masks"] = torch.from_numpy(bitmaps)
        if torch.rand(()) < data.flip:
            image = image.flip(-1)
            target = {k: v.flip(-1) if k == "masks" else v for k, v in target.items()}
            boxes = target["boxes"].clone()
            boxes[:, [0, 2]] = info.size[1] - boxes[:, [2, 0]]
            target["boxes"] = boxes
        yield transform([image], [target])
