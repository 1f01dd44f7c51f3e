"""The commands as people and other programs call them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import fuzzing
import resdet
import tiny
from pictures import textured
from resdet import cli
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.commands.drawings import places
from resdet.config import dump_config
from resdet.models.build import build_model

ROOT = Path(__file__).parents[2]


def tool(name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def trained(shapes_root, tmp_path_factory) -> tuple[Path, Path]:
    """(config, run folder)."""
    folder = tmp_path_factory.mktemp("cli")
    config = tiny.config_file(shapes_root, folder)
    done = tool("train", config, "train.max_iters=2", "--output", folder / "run")
    assert done.returncode == 0, done.stderr
    assert "COCO mask AP" in done.stdout
    assert "predictions.jpg" in done.stdout
    return config, folder / "run"


@pytest.mark.slow
def test_train_then_resume(trained) -> None:
    config, run = trained
    again = tool("train", config, "--output", run)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr
    more = tool("train", config, "train.max_iters=3", "--output", run, "--resume")
    assert more.returncode == 0, more.stderr
    assert "resuming after iteration 2" in more.stdout
    assert (run / "eval" / "metrics.json").exists()


@pytest.mark.slow
def test_a_stopped_run_exits_with_75(shapes_root, tmp_path) -> None:
    config = tiny.config_file(shapes_root, tmp_path, eval_every=0, max_iters=5000, checkpoint_every=5000)
    command = [sys.executable, ROOT / "tools" / "train.py", config, "--output", tmp_path / "run", "data.workers=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 100
    while time.time() < deadline and not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert "--resume" in output
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


@pytest.mark.slow
def test_eval_equals_what_training_said(trained, tmp_path) -> None:
    config, run = trained
    done = tool("eval", config, "--weights", run / "checkpoints" / "last.pt", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found == json.loads((run / "eval" / "metrics.json").read_text())
    assert set(found) == {"bbox", "segm"}
    assert "COCO box AP" in done.stdout
    entries = json.loads((tmp_path / "detections.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(entries[0])
    again = tool(
        "eval", "--results", tmp_path / "detections.json", "--output", tmp_path / "again",
        "--annotations", Path(tiny_root(config)) / "annotations" / "instances_val2017.json",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == found


def tiny_root(config: Path) -> str:
    import yaml

    return yaml.safe_load(config.read_text())["data"]["root"]


@pytest.mark.slow
def test_visualize_predict(trained, tmp_path) -> None:
    config, run = trained
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(textured(60, 80)).save(folder / "a.png")
    Image.fromarray(textured(60, 80)).save(folder / "sub" / "a.png")
    (folder / "broken.jpg").write_bytes(b"junk")
    (folder / "sub" / "notes.txt").write_text("no picture")
    done = tool(
        "visualize", "predict", config, "--weights", run / "checkpoints" / "last.pt", folder, "device=cpu",
        "--output", tmp_path / "out", "--score", 0.01,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.jpg", "sub_a.jpg", "sheet.jpg"}
    assert "skipped:" in done.stdout
    assert "broken.jpg" in done.stdout
    assert "skipped in folders: 1 file(s) without an image suffix (1 .txt)" in done.stdout
    width, height = Image.open(tmp_path / "out" / "a.jpg").size
    assert width == 640
    assert height >= 480  # more where a legend stands below


@pytest.mark.slow
def test_class_names_with_brackets_through_a_whole_run(shapes_root, tmp_path, capfd) -> None:
    names = ["[/]", "[red]", "a[0]", ":car: %s"]
    values = tiny.values(shapes_root, max_iters=1, eval_every=1)
    for split in ("train", "val"):
        content = json.loads((shapes_root / f"annotations/instances_{split}2017.json").read_text())
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name
        file = tmp_path / f"[{split}].json"
        file.write_text(json.dumps(content))
        values["data"][split] = {"images": str(shapes_root / f"{split}2017"), "annotations": str(file)}
    del values["data"]["root"]
    config, run = tmp_path / "[b].yaml", tmp_path / "run[/]"
    config.write_text(yaml.safe_dump(values))
    weights = str(run / "checkpoints/last.pt")
    assert cli.main(["train", str(config), "--output", str(run)]) == 0
    out = capfd.readouterr().out
    assert all(name in out for name in [*names, "[train].json", "run[/]"])
    assert cli.main(["eval", str(config), "--weights", weights, "--output", str(tmp_path / "e")]) == 0
    scored = capfd.readouterr().out
    assert all(name in scored for name in names)
    for kind, arguments in {
        "predict": [str(shapes_root / "val2017"), "--score", "0", "--weights", weights],
        "data": ["--count", "2"],
        "compare": ["--count", "2", "--score", "0", "--weights", weights],
    }.items():
        folder = tmp_path / f"[{kind}]"
        assert cli.main(["visualize", kind, str(config), *arguments, "--output", str(folder)]) == 0
        assert (folder / "sheet.jpg").is_file()
        assert f"[{kind}]" in capfd.readouterr().out
    assert resdet.Predictor.from_checkpoint(weights, device="cpu").class_names == names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data", "compare"])
def test_visualize_a_split(trained, tmp_path, kind: str) -> None:
    config, run = trained
    weights = ["--weights", str(run / "checkpoints" / "last.pt")] if kind == "compare" else []
    arguments = [kind, str(config), "data.limit=3", *weights, "--output", str(tmp_path), "--color-by", "instance"]
    assert cli.main(["visualize", *arguments]) == 0
    assert len(list(tmp_path.glob("0*.jpg"))) == 3
    width = {"data": 1, "compare": 2}[kind]
    picture = Image.open(next(tmp_path.glob("0*.jpg")))
    assert picture.width > picture.height * width * 0.7
    assert Image.open(tmp_path / "sheet.jpg").width == {"data": 960, "compare": 1920}[kind]


def test_what_is_read_is_never_written_over(shapes_root, tmp_path, capsys) -> None:
    root = tmp_path / "data"
    shutil.copytree(shapes_root, root)
    config = tiny.config_file(root, tmp_path)
    pictures, file = root / "val2017", root / "annotations" / "instances_val2017.json"
    weights = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, weights)
    labelme = tmp_path / "labelme"
    labelme.mkdir()
    fuzzing.read_labelme_text(json.dumps(fuzzing.LABELME), labelme)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments in (
        ["visualize", "predict", config, "--weights", weights, pictures, "--output", pictures],
        ["visualize", "data", config, "--output", pictures],
        ["data", "check", config, "--split", "val", "--fix", file],
        ["data", "convert", file, file],
        ["data", "convert", labelme, labelme / "1.json"],
        ["data", "check", config, "--fix", labelme / "1.json"],
        ["convert", weights, weights],
    ):
        assert cli.main(list(map(str, arguments))) == 2
        assert "choose another place for the output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for _ in range(2):  # what an earlier conversion wrote beside the pictures is no source
        assert cli.main(["data", "convert", str(labelme), str(labelme / "coco.json")]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", "CONFIG", "--output", "file"],
        ["data", "check", "CONFIG", "--fix", "file/x.json"],
        ["data", "stats", "CONFIG", "--output", "file"],
        ["visualize", "data", "CONFIG", "--output", "file"],
        ["visualize", "data", "CONFIG", "--augmented", "--output", "file"],
        ["eval", "--results", "r.json", "--annotations", "gt.json", "--output", "file/x"],
        ["eval", "CONFIG", "--weights", "WEIGHTS", "--output", "file"],
        ["convert", "WEIGHTS", "file/x.safetensors"],
        ["benchmark", "CONFIG", "--output", "file"],
    ],
)
def test_a_place_that_takes_no_results_is_told_before_the_work(
    shapes_root, tmp_path, monkeypatch, capsys, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resdet.evaluation.dataset.predict_dataset", None)
    (tmp_path / "file").touch()
    (tmp_path / "gt.json").write_text(json.dumps(fuzzing.COCO))
    (tmp_path / "r.json").write_text(json.dumps(fuzzing.RESULTS))
    config = tiny.config(shapes_root, tmp_path)
    content = Checkpoint(
        build_model(config.model).state_dict(),
        ["disk", "box", "triangle", "star"],
        [10, 11, 13, 14],
        dump_config(config),
    )
    save_checkpoint(content, tmp_path / "w.pt")
    names = {"CONFIG": str(tiny.config_file(shapes_root, tmp_path)), "WEIGHTS": "w.pt"}
    assert cli.main([names.get(word, word) for word in arguments]) == 2
    assert re.search(
        r"error: file\S*: cannot be a folder for results \((File exists|Not a directory)\)", capsys.readouterr().err
    )


def test_a_benchmark_of_the_loader_asks_for_its_data_first(tmp_path, capsys) -> None:
    arguments = ["benchmark", "maskrcnn_r50", f"data.root={tmp_path}", "--sections", "all", "--output", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "The data was not found" in capsys.readouterr().err


def test_drawings_do_not_replace_each_other_nor_the_overview(tmp_path) -> None:
    files = [Path("a/x.png"), Path("b/x.jpg"), Path("x_2.png"), Path("sheet.png")]
    names = [path.name for path in places(files, tmp_path)]
    assert names == ["a_x.jpg", "b_x.jpg", "x_2.jpg", "sheet_2.jpg"]


def test_drawings_tell_whose_they_are(tmp_path) -> None:
    cameras = [Path(f"run/cam{k}/{n}.jpg") for k in (1, 2) for n in (0, 1)]
    assert [path.name for path in places(cameras, tmp_path)] == ["cam1_0.jpg", "cam1_1.jpg", "cam2_0.jpg", "cam2_1.jpg"]
    assert [path.name for path in places([Path("c/x.png"), Path("c/x.jpg")], tmp_path)] == ["x.png.jpg", "x.jpg.jpg"]
    clash = [path.name for path in places([Path("a/x.png"), Path("b/x.png"), Path("a_x.png")], tmp_path)]
    assert len(set(clash)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/nothing.yaml"], "config not found"),
        (["train", "configs/quickstart.yaml", "train.lrr=3"], "did you mean train.lr?"),
        (["eval", "configs/quickstart.yaml", "--weights", "no.pt", "data.synthetic=null", "data.root=no"], "missing:"),
        (["train", "configs/quickstart.yaml", "data.root=."], "missing:      train2017"),
        (["eval", "--results", "no.json", "--annotations", "no2.json"], "no.json and no2.json: no such file or folder"),
        (["visualize", "predict", "configs/quickstart.yaml", "x.jpg", "--weights", "no.pt", "--output", "o"], "x.jpg"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(arguments, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mine.txt": "mine"}


def test_missing_coco_and_weights_are_explained_together(capsys, tmp_path, monkeypatch) -> None:
    import urllib.error

    import torch

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("RESDET_DATASETS", raising=False)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    assert cli.main(["train", "configs/maskrcnn_r50.yaml"]) == 2
    error = capsys.readouterr().err
    for text in ("datasets/coco/train2017", "instances_val2017.json", "data.root=/path/to/coco", "quickstart.yaml",
                 "resnet50-0676ba61.pth", "model.backbone.weights=none"):  # fmt: skip
        assert text in error
    assert len(error.splitlines()) < 25


def test_help_and_version_are_quick_and_do_not_import_torch() -> None:
    code = (
        "import contextlib, sys\n"
        "from resdet.cli import VERBS, main\n"
        "for words in (['--version'], *([verb, '--help'] for verb in VERBS)):\n"
        "    with contextlib.suppress(SystemExit): main(words)\n"
        "assert not {'torch', 'numpy', 'cv2'} & set(sys.modules), set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("resdet 0")
    assert all(f"usage: resdet {verb} " in done.stdout for verb in cli.VERBS)
    assert cli.main([]) == 2


def test_the_benchmark_says_where_it_is_when_the_package_alone_is_installed(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("resdet.commands.benchmark.BENCHMARKS", tmp_path / "benchmarks")
    assert cli.main(["benchmark", "maskrcnn_r50", "--output", str(tmp_path / "out")]) == 2
    assert "benchmarks/benchmark.py" in capsys.readouterr().err
