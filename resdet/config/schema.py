"""The typed configuration: the only place with defaults. A YAML file holds what differs from them (`config/io.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag, model_validator

from resdet.config.classifier import ClassifierConfig
from resdet.config.data import DataConfig
from resdet.config.dense import ATSSConfig, FCOSConfig, GFLConfig, RetinaNetConfig, YOLOFConfig
from resdet.config.rcnn import RCNNConfig
from resdet.config.rtdetr import RTDETRConfig
from resdet.config.semantic import SemanticConfig
from resdet.config.train import TrainConfig
from resdet.config.types import Count, Section, UserPath


def _kind(model: Any) -> str:
    kind = model.get("kind", "rcnn") if isinstance(model, dict) else getattr(model, "kind", "rcnn")
    return f"<{kind}>"


# Each kind of detector has its own keys, and some that all have (`config/model.py`).
AnyModelConfig = Annotated[
    Annotated[RCNNConfig, Tag("<rcnn>")]
    | Annotated[RetinaNetConfig, Tag("<retinanet>")]
    | Annotated[FCOSConfig, Tag("<fcos>")]
    | Annotated[ATSSConfig, Tag("<atss>")]
    | Annotated[GFLConfig, Tag("<gfl>")]
    | Annotated[YOLOFConfig, Tag("<yolof>")]
    | Annotated[RTDETRConfig, Tag("<rtdetr>")]
    | Annotated[SemanticConfig, Tag("<semantic>")]
    | Annotated[ClassifierConfig, Tag("<classifier>")],
    Discriminator(_kind),
]


class Config(Section):
    seed: Count = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    output: UserPath = Path("outputs")  # `--output` on the command line
    auto: bool = False  # choose what is not set from the data (`data/auto.py`), and print it
    model: AnyModelConfig = RCNNConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) must be a multiple of train.accumulate "
                f"({self.train.accumulate}): the batch is split into equal parts"
            )
        if max(self.data.min_size) > self.data.max_size:
            raise ValueError(f"data.max_size ({self.data.max_size}) is below data.min_size ({max(self.data.min_size)})")
        if isinstance(self.model, ClassifierConfig):
            self._of_a_folder()
        return self

    def _of_a_folder(self) -> None:
        """A classifier learns from one folder of pictures in folders of their classes."""
        d, problems = self.data, ["auto=true chooses the settings of detectors"] if self.auto else []
        if isinstance(d.train, list):
            problems.append("data.train must be one folder, not a list")
        elif d.train.augmentations:
            problems.append("data.train.augmentations are for objects: use data.classification.augment")
        if d.val_fraction:
            problems.append(
                f"data.val_fraction={d.val_fraction}: the validation pictures must have a folder of their own"
            )
        if problems:
            raise ValueError(f"model.kind=classifier: {'; '.join(problems)}")
