"""Configs written in Python are read, never run, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdet.errors import UserError
from resdet.migration.expressions import Symbol, Unknown, known
from resdet.migration.python_config import parse_python, read_python


def test_plain_values_are_read() -> None:
    text = """
data_root = 'data/coco/'
epochs = 12
size = [(1333, 640), (1333, 800)]
model = dict(type='MaskRCNN', lr=0.02 / 8 * 16, sizes=size[:1] if False else size, stds=[.1, .1] + [.2, .2], n=-1)
train = dict(ann_file=data_root + 'a.json', name=f'{data_root}{epochs}', twice=[1] * 2, big=2 ** (1.0 / 2))
train.epochs = epochs
train['last'] = size[-1][0]
steps = [epoch * 2 for epoch in [8, 11]]
model.update(dict(depth=50), groups=32)
"""
    values = parse_python(text).values
    assert (values["model"]["lr"], values["model"]["stds"], values["model"]["n"]) == (0.04, [0.1, 0.1, 0.2, 0.2], -1)
    assert (values["model"]["depth"], values["model"]["groups"]) == (50, 32)
    assert isinstance(values["model"]["sizes"], Unknown)  # a choice takes more than reading
    assert values["train"] == {
        "ann_file": "data/coco/a.json", "name": "data/coco/12", "twice": [1, 1], "big": 2**0.5, "epochs": 12, "last": 1333
    }  # fmt: skip
    assert values["steps"] == [16, 22]
    assert known(values["model"])["type"] == "MaskRCNN"
    assert "sizes" not in known(values["model"])


def test_bases_are_merged_as_mmengine_does(tmp_path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.py").write_text(
        "model = dict(depth=50, head=dict(a=1, b=2), nms=dict(type='nms', thr=.5))\n"
    )
    (tmp_path / "data.py").write_text("batch = 2\nargs = dict(root='x')\n")
    (tmp_path / "c.py").write_text(
        "_base_ = ['models/m.py', './data.py']\n"
        "model = dict(depth=101, head=dict(b=3), nms=dict(_delete_=True, type='soft_nms'))\n"
        "copied = {{_base_.args}}\n_base_.model.extra = _base_.batch * 8\n"
    )
    found = read_python(tmp_path / "c.py")
    assert found.values["model"] == {"depth": 101, "head": {"a": 1, "b": 3}, "nms": {"type": "soft_nms"}, "extra": 16}
    assert found.values["copied"] == {"root": "x"}
    assert [path.name for path in found.files] == ["c.py", "m.py", "data.py"]


def test_imports_of_neighbours_are_bases(tmp_path) -> None:
    """mmengine's newer form, and detectron2's LazyConfig; classes are names."""
    (tmp_path / "base.py").write_text("from mmdet.models import ResNet\nmodel = dict(type=ResNet, depth=50)\n")
    (tmp_path / "c.py").write_text("with read_base():\n    from .base import *\nmodel = dict(depth=101)\n")
    assert read_python(tmp_path / "c.py").values["model"] == {"type": Symbol("ResNet"), "depth": 101}
    (tmp_path / "lazy.py").write_text("from .base import model as m\nfrom detectron2 import L\nx = L(m)(lr=.1)\n")
    assert read_python(tmp_path / "lazy.py").values["x"]["lr"] == 0.1


@pytest.mark.parametrize(
    "code",
    [
        "import os\nx = os.system('touch MARK')",
        "x = __import__('os').system('touch MARK')",
        "x = (lambda: open('MARK', 'w'))()",
        "x = open('MARK', 'w')",
        "x = eval(\"open('MARK', 'w')\")",
        "x = [open(n, 'w') for n in ['MARK']]",
        "x = f\"{open('MARK', 'w')}\"",
        "def f():\n    open('MARK', 'w')\nx = f()",
        "class X:\n    open('MARK', 'w')\nx = X",
        "for n in ['MARK']:\n    x = open(n, 'w')",
        "x = ().__class__.__base__.__subclasses__()",
        "x = '%s' % open",
        "x = dict(a=1).__class__",
        "x = 9 ** 9 ** 9 ** 9",
        "x = 'a' * 10 ** 9",
        "x = [0] * 10 ** 9",
        "x = b'1' * 10",
        "x = -'a'",
        "x = [1][5]",
        "x = 1 / 0",
        "x = (-8) ** 0.5",
    ],
)
def test_code_is_never_run(code: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_python(code)
    x = config.values["x"]
    assert isinstance(x, Unknown) or any(isinstance(entry, Unknown) for entry in x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = " + "(" * 5000 + ")" * 5000, "not Python"),
        ("x = " + "+".join(["1"] * 900), "nested too deeply"),
        ("x = " + "+".join(["1"] * 50_000), "nested too deeply|not Python"),
        ("x = dict(", "line 1: not Python"),
        ("x = 0\x00", "not Python"),
        ("a = [1] * 10\n" + "a = [a, a, a, a, a, a, a, a, a, a]\n" * 9, "more than 100000 values"),
        ("a = dict()\na.b = a", "more than 100000 values"),
        ("r = [0] * 1000\nx = [[[0 for a in r] for b in r] for c in r]", "1000000 steps"),
    ],
)
def test_endless_and_broken_text_is_one_error(code: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_python(code)


def test_growing_strings_and_lists_stop() -> None:
    doubled = parse_python("a = 'xx'\n" + "a = f'{a}{a}'\n" * 60 + "b = [0]\n" + "b = [*b, *b]\n" * 60).values
    assert isinstance(doubled["a"], Unknown)
    assert isinstance(doubled["b"], Unknown)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"c.py": "_base_ = './gone.py'"}, r"gone\.py: no such config file \(a base of .*c\.py\)"),
        ({"c.py": "_base_ = './d.py'", "d.py": "_base_ = ['c.py']"}, r"form a circle: c\.py -> d\.py -> c\.py"),
        ({"c.py": "_base_ = 'c.py'"}, "form a circle"),
        ({"c.py": "_base_ = ['d.py', 'e.py']", "d.py": "a = 1", "e.py": "a = 2"}, "a stand.s. in more than one"),
        ({"c.py": "_base_ = 'mmdet::_base_/x.py'"}, "is not a file beside it"),
        ({"c.py": "_base_ = open('x')"}, "is not a file beside it"),
        ({"c.py": "with read_base():\n    from mmdet.configs import *"}, "from an installed package"),
        ({"c.py": "_base_ = 'd.py'", "d.py": b"\xff\xfe"}, "cannot be read as text"),
    ],
)  # fmt: skip
def test_bad_bases_are_one_error(files: dict[str, str | bytes], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_python(tmp_path / "c.py")
