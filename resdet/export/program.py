"""A detector's prediction as an exported graph (`torch.export`), to run without resdet's code or to convert further."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from resdet.errors import UserError
from resdet.models.backbones.adapted import Adapted
from resdet.models.detector import Detector
from resdet.structures import Batch
from resdet.writing import atomic_write

MOST_IMAGES, LONGEST_SIDE = 64, 4096


class Prediction(nn.Module):
    """images (B, C, H, W) RGB (or the model's own channels) in 0..255, padded with zeros, and image_sizes (B, 2) int64, the
    (H, W) before padding -> boxes (B, D, 4) XYXY in the input's pixels, scores (B, D), labels (B, D) in [0, K), valid
    (B, D), with a mask head mask probabilities (B, D, m, m), with a keypoint head logits (B, D, K, S, S), each in its own
    box, and with a semantic head logits of every pixel's class (B, S, H/4, W/4)."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        keys = torch.zeros_like(image_sizes[:, 0])
        found = self.model.predict(Batch(images, image_sizes, keys, None))
        fields = zip(found._fields, found, strict=True)
        return tuple(value for name, value in fields if isinstance(value, Tensor) and name != "image_sizes")


def export_prediction(
    model: Detector, dtype: torch.dtype = torch.uint8, size: tuple[int, int] | None = None
) -> ExportedProgram:
    """The graph of `Prediction`, on the model's device, with its thresholds. B is free from 1 to MOST_IMAGES, H and W in
    multiples of 32 from 96 (160 for a pyramid with p7) to LONGEST_SIDE. dtype: of the images; float32 where resizing does not
    round (torchvision's). size: (H, W), the only one, for backbones whose graph has one (ViT, Swin). NMS stays an operator of
    its own, `resdet::nms` or `resdet::soft_nms`. The model is left in evaluation mode."""
    device = model.pixel_mean.device
    least = max(3, max(model.fpn.strides.values()) // 32 + 1)  # no map may have a single row or column
    height, width = size or (32 * least, 32 * least + 64)
    images = torch.zeros(2, len(model.pixel_mean), height, width, dtype=dtype, device=device)
    sizes = torch.tensor([[96, 160], [80, 150]], device=device)
    batch = Dim("batch", min=1, max=MOST_IMAGES)
    rows, columns = (32 * Dim(name, min=least, max=LONGEST_SIDE // 32) for name in ("rows", "columns"))
    free = {0: batch} if size else {0: batch, 2: rows, 3: columns}
    try:
        with torch.no_grad():
            return torch.export.export(
                Prediction(model.eval().to(memory_format=torch.contiguous_format)), (images, sizes), strict=True,
                dynamic_shapes=(free, {0: batch}),
            )  # fmt: skip
    except torch._dynamo.exc.UserError as error:
        if size or not isinstance(model.backbone, Adapted):
            raise
        raise UserError(
            "the graph of this backbone has one size: give it, as size=(H, W) or on the command line as --size H W "
            f"({str(error).splitlines()[0]})"
        ) from None


def save_program(program: ExportedProgram, path: Path) -> None:
    """For `torch.export.load`, which needs `import resdet` before it for the operator."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)
