"""Imports run downward only: a package may use those below it, never those above, local imports included."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1] / "resdet"
LAYERS = [  # from the bottom up; packages of one layer do not use each other
    {"errors"},
    {"boxes", "fields", "keypoints", "label_maps", "masks", "panoptic", "writing", "html"},
    {"structures"},
    {"config", "class_names", "runtime", "kernels", "overlays"},
    {"data", "models", "migration", "runs", "drawing"},
    {"checkpoints"},
    {"inference"},
    {"evaluation"},
    {"visualize", "report"},
    {"training", "export", "browse", "explain"},
    {"predict", "config_text"},  # older names of modules
    {"commands"},
    {"cli"},
]


def imports(path: Path) -> set[str]:
    """The packages of resdet, or its single modules, that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resdet"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("resdet.")}
    return found


def edges() -> set[tuple[str, str, str]]:
    found = set()
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        package = relative.parts[0].removesuffix(".py")
        found |= {(str(relative), package, other) for other in imports(path) if other != package}
    return {
        edge for edge in found if edge[0] != "__init__.py" and edge[2] != "__version__"
    }  # public names, from everywhere


def test_every_module_has_its_layer() -> None:
    there = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert there - set(listed) - {"__init__", "__pycache__"} == set()


def test_imports_run_downward() -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    upward = {f"{file} -> {other}" for file, package, other in edges() if height.get(other, 99) >= height[package]}
    assert upward == set()


def test_local_imports_are_seen(tmp_path) -> None:
    path = tmp_path / "module.py"
    local = ["from resdet.commands.train import train", "import resdet.data.coco", "from resdet import masks"]
    path.write_text("def f():\n" + "".join(f"    {line}\n" for line in local))
    assert imports(path) == {"commands", "data", "masks"}


def test_nothing_outside_models_asks_which_detector_it_is() -> None:
    knowing = re.compile(r"resdet\.models\.(heads|rcnn)\b")
    found = [path for path in ROOT.rglob("*.py") if "models" not in path.parts and knowing.search(path.read_text())]
    assert found == []
