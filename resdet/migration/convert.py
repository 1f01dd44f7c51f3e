"""Whose config a file is, and its conversion: detectron2's YAML or LazyConfig, mmdetection's Python or checkpoint."""

from __future__ import annotations

from pathlib import Path

from resdet.errors import UserError
from resdet.migration.detectron2 import migrate_yaml
from resdet.migration.lazy import is_lazy, migrate_lazy
from resdet.migration.mmdetection import NotAConfig, migrate
from resdet.migration.python_config import PythonConfig, parse_python, read_python
from resdet.migration.report import Migration

CONFIGS = (".yaml", ".yml", ".py")


def migrate_file(path: Path, images: int | None = None) -> Migration:
    """A config file -> ours. images: how many the training data have, for schedules in epochs. Raises `UserError`."""
    if path.suffix in (".yaml", ".yml"):
        return migrate_yaml(path)
    config = read_python(path)
    bases = f" with {', '.join(file.name for file in config.files[1:])}" if config.files[1:] else ""
    if is_lazy(config):
        return migrate_lazy(config, f"detectron2's config {path}{bases}")
    return _mmdetection(config, f"mmdetection's config {path}{bases}", images)


def migrate_text(text: str, path: Path, images: int | None = None) -> Migration:
    """The config text of mmdetection's checkpoint `path`. Raises `UserError`."""
    return _mmdetection(parse_python(text, str(path)), f"the config in mmdetection's {path}", images)


def _mmdetection(config: PythonConfig, origin: str, images: int | None) -> Migration:
    try:
        return migrate(config, origin, images)
    except NotAConfig:
        raise UserError(f"{origin}: has no `model = dict(...)`, which every detector's config has") from None
