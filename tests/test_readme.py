"""What the README and the docs show works as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

import resdet
import tiny
from resdet.config import Config
from resdet.config.io import _keys
from resdet.data.augment import Augmentations
from resdet.inference.predictor import Predictor

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "datasets/README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
TEXT = {page: (ROOT / page).read_text() for page in PAGES}


def block(language: str, containing: str) -> str:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", "\n".join(TEXT.values()), re.DOTALL | re.MULTILINE)
    (found,) = [body for name, body in blocks if name == language and containing in body]
    return found


@pytest.mark.slow
def test_a_head_of_ones_own(shapes_root, tmp_path, monkeypatch) -> None:
    code = block("python", "class IoUHead")
    body = code[code.index("class IoUHead") :]
    assert len(body.strip().splitlines()) <= 30
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=3, eval_every=3)
    monkeypatch.setattr(resdet, "load_config", lambda *_: config)
    space: dict = {}
    exec(code, space)
    model = space["model"]
    before = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["model"]
    assert "heads.iou.layers.1.weight" in before
    assert '"iou"' in (tmp_path / "run/metrics.jsonl").read_text()
    again = resdet.build_model(config.model)
    again.heads["iou"] = space["IoUHead"](again.fpn.channels)
    predictor = Predictor(config, tmp_path / "run/checkpoints/last.pt", model=again, score_threshold=0.0)
    import numpy as np

    (found,) = predictor([np.zeros((64, 80, 3), np.uint8)])
    assert (np.diff(found.scores) <= 0).all()
    assert model.heads["iou"] is not again.heads["iou"]


@pytest.mark.slow
def test_a_backbone_of_ones_own(shapes_root, tmp_path, monkeypatch) -> None:
    code = block("python", "backbone=MyNet()")
    assert len(code.strip().splitlines()) == 3
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=2, eval_every=2)
    config.model = type(config.model).model_validate({**tiny.MODEL, "backbone": {"name": "custom"}})
    monkeypatch.setattr(resdet, "load_config", lambda *_: config)

    class MyNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Conv2d(3, 8, s, s) for s in (4, 8, 16, 32))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [layer(x) for layer in self.layers]

    exec(code, {"resdet": resdet, "MyNet": MyNet})
    last = tmp_path / "run/checkpoints/last.pt"
    assert "backbone.net.layers.3.weight" in torch.load(last, weights_only=True)["model"]
    with pytest.raises(resdet.UserError, match="custom is a module of your own"):
        Predictor.from_checkpoint(last)
    Predictor(config, last, model=resdet.build_model(config.model, backbone=MyNet()))


def test_the_residual_block_is_shown_as_it_is() -> None:
    source = (ROOT / "resdet/models/backbones/resnet.py").read_text()
    shown = block("python", "shortcut = self.downsample")
    assert "\n".join(f"    {line}".rstrip() for line in shown.splitlines()) in source


def test_the_augmentations_are_valid() -> None:
    example = yaml.safe_load(block("yaml", "RandomBrightnessContrast"))
    assert len(Augmentations(example["data"]["train"]["augmentations"]).transforms) == 3


def test_the_tree_names_every_file_and_no_other() -> None:
    tree = block("", "configs/  tools/  datasets/")
    named = set(re.findall(r"\w+\.py", tree))
    there = {p.name for p in (ROOT / "resdet").rglob("*.py") if p.name != "__init__.py"}
    assert named == there


def test_commands_name_configs_that_exist_and_the_gate_runs_them() -> None:
    text = "\n".join(TEXT.values())
    for name in re.findall(r"configs/(\w+)\.yaml", text):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"`((?:maskrcnn|fasterrcnn)_\w+)`", text):
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name
    gate = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]" && pytest' in README
    assert 'pip install -q -e ".[dev]"' in gate
    assert gate.rstrip().endswith("pytest")


def test_config_keys_in_the_documents_exist() -> None:
    known = set(_keys(Config))
    for file, text in TEXT.items():
        named = set(re.findall(r"\b((?:model|data|train)\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)\b", text))
        wrong = {k for k in named - known if not k.endswith((".py", ".json", ".pkl", ".yaml", ".md"))}
        assert wrong - {"model.fpn.channels", "model.heads", "model.predict"} == set(), file


def test_links_lead_somewhere() -> None:
    """To a file that is there, and to a heading of it."""
    for page, text in TEXT.items():
        for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
            if target.startswith("http"):
                continue
            file = (ROOT / page).parent / target if target else ROOT / page
            assert file.exists(), f"{page}: {target}"
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [h.lower().replace(" ", "-").replace(",", "") for h in headings], (
                f"{page}: #{anchor}"
            )


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert max(len(cell) for cell in re.findall(r"\| ([^|\n]+) (?=\|)", README)) <= 120


def test_no_module_is_longer_than_400_lines() -> None:
    for path in (ROOT / "resdet").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
