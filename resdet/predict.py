"""The former home of names in `resdet.inference`."""

from resdet.inference.inputs import read_pixels as _checked  # noqa: F401
from resdet.inference.postprocess import to_coco as to_coco
from resdet.inference.postprocess import to_instances as to_instances
from resdet.inference.predictor import Predictor as Predictor
