from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from resdet.config import SyntheticConfig
from resdet.data.coco import Annotations, read_coco
from resdet.data.shapes import ensure_shapes

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def thorough(request) -> bool:
    """Whether `pytest --thorough` asked for what takes minutes and hardly ever finds anything new."""
    return request.config.getoption("--thorough")


@pytest.fixture(scope="session")
def coco_open() -> Path:
    """Real COCO pictures, where they lie beside the project."""
    folder = SHARED / "coco_open"
    if not folder.is_dir():
        pytest.skip(f"needs the real COCO pictures in {folder}")
    return folder


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Blood cells in Pascal VOC XML, where they lie beside the project."""
    folder = SHARED / "bccd" / "BCCD"
    if not folder.is_dir():
        pytest.skip(f"needs the blood cells in {folder}")
    return folder


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    ensure_shapes(root, SyntheticConfig(num_train=12, num_val=4, size=96))
    return root


@pytest.fixture(scope="session")
def shapes(shapes_root) -> Annotations:
    return read_coco(shapes_root / "annotations" / "instances_train2017.json", shapes_root / "train2017")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="compare with other tools on every image and every model")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist, which share the cores
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
