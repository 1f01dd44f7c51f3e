"""Types of config values, and the base class of the sections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def expanded(value: object) -> object:
    """Expand ~ and ~NAME at the start of a path."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


UserPath = Annotated[Path, BeforeValidator(expanded)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)
