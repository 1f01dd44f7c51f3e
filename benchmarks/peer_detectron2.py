"""detectron2's model with the weights of ours."""

from __future__ import annotations

import torch

from resdet.checkpoints.names import from_ours
from resdet.config import Config, RCNNConfig
from resdet.errors import UserError
from resdet.models.detector import Detector
from resdet.runtime.device import autocast
from resdet.structures import Batch
from workload import Load, Sides


def detectron2_sides(ours: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    """detectron2's detector with the weights of `ours`, on the same batch. Raises `UserError` where it has no such model."""
    from detectron2 import model_zoo
    from detectron2.modeling import build_model as build_theirs
    from detectron2.structures import BitMasks, Boxes, Instances

    m = config.model
    if not isinstance(m, RCNNConfig):
        raise UserError(f"--compare detectron2: not with model.kind={m.kind}; --compare none")
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
