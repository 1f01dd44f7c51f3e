"""The page of a report: its numbers, its form, and in a real browser, if there is one, that it works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from resdet.commands.eval import main as eval_command
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.report import gallery
from resdet.report.images import of_folder
from resdet.report.page import static
from resdet.report.write import published_numbers, write_report
from resdet.training.loop import train
from resdet.training.report import report_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


def imperfect(file: Path) -> list[dict]:
    """The annotations as detections: some of another class, some moved, some left out, some made up."""
    content = json.loads(file.read_text())
    ids = [category["id"] for category in content["categories"]]
    entries = []
    for k, a in enumerate(entry for entry in content["annotations"] if not entry["iscrowd"]):
        if k % 5 == 4:
            continue
        x, y, w, h = a["bbox"]
        category = ids[(ids.index(a["category_id"]) + 1) % len(ids)] if k % 5 == 3 else a["category_id"]
        box = [x + w * 0.6, y, w, h] if k % 5 == 2 else a["bbox"]
        entry = {"image_id": a["image_id"], "category_id": category, "bbox": box, "score": 0.9 - 0.01 * (k % 7)}
        entries.append(entry | {"segmentation": a["segmentation"]})
    extra = {**entries[0], "bbox": [1, 1, 6, 6], "segmentation": [[1, 1, 7, 1, 7, 7, 1, 7]], "score": 0.95}
    return [*entries, extra]


@pytest.fixture(scope="module")
def evaluated(shapes_root, tmp_path_factory) -> Path:
    """The folder of an evaluation with its report."""
    folder = tmp_path_factory.mktemp("report")
    file = shapes_root / "annotations" / "instances_train2017.json"
    (folder / "found.json").write_text(json.dumps(imperfect(file)))
    arguments = ["--results", str(folder / "found.json"), "--annotations", str(file), "--output", str(folder / "eval")]
    assert eval_command([*arguments, "--report", "--images", str(shapes_root / "train2017")]) == 0
    return folder / "eval"


def embedded(page: str, name: str):
    (text,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    return json.loads(text)


class Wellformed(HTMLParser):
    """Every element is closed in order; identities are used once."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.ids, self.problems = [], [], []
        self.feed(page)
        self.problems += self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"/{tag}")


def test_the_numbers_are_those_of_metrics_json(evaluated) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    page = (evaluated / "report" / "index.html").read_text()
    assert embedded(page, "metrics") == metrics
    shown = re.findall(r'<span data-metric="(\w+)\.(\w+)" data-value="([^"]+)">([^<]+)</span>', page)
    assert len(shown) == sum(map(len, metrics.values())) == 24
    for kind, name, value, text in shown:
        expected = metrics[kind][name]
        assert (value, text) == (repr(expected), "-" if expected is None else f"{100 * expected:.1f}")
    report = json.loads((evaluated / "report" / "report.json").read_text())
    assert report["metrics"] == metrics
    low, high = report["intervals"]["bbox"]["AP"]
    assert low <= metrics["bbox"]["AP"] <= high
    assert report["boundary"]["mask_AP"] == pytest.approx(metrics["segm"]["AP"])
    kinds = {name for name, of in report["lost"]["bbox"].items() if of["count"]}
    assert {"Cls", "Loc", "Miss", "Bkg"} <= kinds


def test_it_is_well_formed_and_needs_nothing_else(evaluated) -> None:
    page = (evaluated / "report" / "index.html").read_text()
    parsed = Wellformed(page)
    assert parsed.problems == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page)) <= {"data:,"}
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)
    sections = re.findall(r'<h2 id="(\w+)"', page)
    assert sections == ["numbers", "classes", "lost", "confusion", "groups", "calibration", "pictures", "suspects"]
    links = re.findall(r'<li><a href="#(\w+)"', page)
    assert links == sections


def test_what_the_pictures_show(evaluated, shapes_root) -> None:
    data = embedded((evaluated / "report" / "index.html").read_text(), "data")
    assert len(data["pictures"]) == 12
    assert all(p["src"].startswith("data:image/jpeg;base64,") for p in data["pictures"])
    content = json.loads((shapes_root / "annotations/instances_train2017.json").read_text())
    names = {image["file_name"]: image["id"] for image in content["images"]}
    for picture in data["pictures"]:
        objects = [a for a in content["annotations"] if a["image_id"] == names[picture["name"]] and not a["iscrowd"]]
        np.testing.assert_allclose([g[:4] for g in picture["g"]], [a["bbox"] for a in objects], atol=0.051)
        for d in picture["d"]:
            if d[6] == 2:  # wrong class: its partner is of another
                assert picture["g"][d[7]][4] != d[4]
    assert {s["what"] for s in data["suspects"]} >= {"missing", "class"}
    for suspect in data["suspects"]:
        listed = data["pictures"][suspect["picture"]]["g" if suspect["what"] == "unfound" else "d"]
        assert data["names"][listed[suspect["row"]][4] - 1] in suspect["text"]


def test_hostile_names_stay_text(tmp_path) -> None:
    name = "</script><script>alert(1)</script>\"'<b>"
    content = {
        "images": [{"id": 1, "file_name": name, "height": 50, "width": 50}], "categories": [{"id": 1, "name": name}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
    }  # fmt: skip
    evaluation = Evaluation(Path("made up"), content=content)
    metrics, _ = evaluation.score([], ["bbox"])
    page = write_report(tmp_path, evaluation, metrics, [], limit=100, title=name).read_text()
    assert "alert(1)</script>" not in page.replace(static("report.js"), "")
    assert embedded(page, "data")["names"] == [name]
    assert Wellformed(page).problems == []


def test_what_cannot_be_measured_is_said(tmp_path) -> None:
    """No object, no picture, no detection; a class without objects; a folder that is a file."""
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 50, "width": 50} for k in range(1, 7)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}], "annotations": [],
    }  # fmt: skip
    found = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.9}]
    empty = Evaluation(Path("made up"), content=content)
    metrics, tables = empty.score(found, ["bbox"])
    assert "no objects: AP cannot be measured" in tables
    page = write_report(
        tmp_path / "empty", empty, metrics, found, limit=100, title="x", notes=["2 < 3 are left out"]
    ).read_text()
    assert "2 &lt; 3 are left out" in page
    assert "The ground truth has no objects" in page
    assert "Only 1 of the 6 pictures have detections" in page
    assert "The pictures were not given" in page
    assert [p["src"] for p in embedded(page, "data")["pictures"]] == [None] * 6
    assert not (tmp_path / "empty" / "thresholds.json").exists()
    content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    ]
    some = Evaluation(Path("made up"), content=content)
    page = write_report(
        tmp_path / "some", some, some.score([], ["bbox"])[0], [], limit=100, title="x", read=lambda identity: None
    ).read_text()
    assert "Without objects here, so not measured: dog." in page
    assert "There are no detections." in page
    assert "6 of the 6 pictures shown could not be read" in page
    assert json.loads((tmp_path / "some" / "thresholds.json").read_text())["classes"] == {"cat": 0.5, "dog": 0.5}
    (tmp_path / "5.jpg").write_bytes(b"")
    assert of_folder(some, tmp_path)[1] == f"{tmp_path} lacks 5 of 6 pictures (1.jpg, 2.jpg, 3.jpg, … 5 in all)"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be a folder for results"):
        write_report(tmp_path / "file", some, metrics, [], limit=100, title="x")


def test_a_large_split_is_sampled(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gallery, "PICTURES", 6)
    monkeypatch.setattr("resdet.report.write.PICTURES", 6)
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 50, "width": 50} for k in range(40)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0} for k in range(40)
        ],
    }  # fmt: skip
    found = [{"image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 0.9} for k in range(40) if k != 17]
    evaluation = Evaluation(Path("made up"), content=content)
    read = lambda identity: np.zeros((50, 50, 3), np.uint8)  # noqa: E731
    page = write_report(
        tmp_path, evaluation, evaluation.score(found, ["bbox"])[0], found, limit=100, title="x", read=read
    ).read_text()
    assert embedded(page, "data")["pictures"][0]["name"] == "17.jpg"
    assert "6 of 40 pictures, the worst first" in page
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["intervals"]["bbox"]["AP"][0] < 0.976 < report["intervals"]["bbox"]["AP"][1]
    found_quickly = write_report(
        tmp_path, evaluation, evaluation.score(found, ["bbox"])[0], found, limit=100, title="x", read=read, quick=True
    )
    assert "95 % interval" not in found_quickly.read_text()


def test_published_numbers() -> None:
    configs = Path(__file__).parents[2] / "configs"
    categories = [{"id": k, "name": f"c{k}"} for k in range(80)]
    coco = Evaluation(Path("x"), content={"images": [], "annotations": [], "categories": categories})
    assert published_numbers(configs / "maskrcnn_r50.yaml", coco) == {"bbox_AP": 0.386, "segm_AP": 0.352}
    assert published_numbers(configs / "panoptic_fpn_r50.yaml", coco)["panoptic_PQ"] == 0.394
    assert published_numbers(configs / "pointrend_r50_3x.yaml", coco) == {"segm_AP": 0.383}
    assert published_numbers(configs / "quickstart.yaml", coco) == {}
    other = Evaluation(Path("x"), content={"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]})
    assert published_numbers(configs / "maskrcnn_r50.yaml", other) == {}


@pytest.mark.slow
def test_a_run_ends_with_a_report_and_never_fails_for_it(shapes_root, tmp_path, capsys) -> None:
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=1, eval_every=1, report=True)
    train(config)
    assert f"report: {tmp_path / 'run/report/index.html'}" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/eval/metrics.json").read_text())
    assert json.loads((tmp_path / "run/report/report.json").read_text())["metrics"] == metrics
    assert "iteration 1" in (tmp_path / "run/report/index.html").read_text()
    (tmp_path / "run/eval/detections.json").write_text("[{")
    report_run(SimpleNamespace(config=config, evaluation=True, val_set=True))
    assert "warning: no report: JSONDecodeError: " in capsys.readouterr().out


def in_browser(page: Path, script: str, tmp_path: Path) -> str:
    """Opens a copy of the page, runs the script when it has loaded, and returns what the script writes into <pre id=said>.

    Fails for anything that the console says.
    """
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    copy = tmp_path / "page.html"
    report = "const say = (text) => document.body.append(el('pre', { id: 'said' }, text));"
    copy.write_text(page.read_text().replace("</body>", f"<script>{report}{script}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=2000",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (said,) = re.findall(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    return said


@pytest.mark.slow
def test_in_a_browser(evaluated, tmp_path) -> None:
    """No errors; filters by kind, class and score; a mix-up of the matrix; the dialog; the keyboard's order."""
    said = in_browser(
        evaluated / "report" / "index.html",
        """
        const log = [], tiles = () => document.querySelectorAll('#tiles .tile').length;
        const set = (id, value, event) => {
          const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event(event));
        };
        log.push(document.querySelectorAll('#tiles .tile svg image').length === tiles());
        set('filter-kind', '', 'change'); log.push(tiles());
        set('filter-kind', '6', 'change'); log.push(tiles());
        set('threshold', '0.96', 'input'); log.push(tiles());
        set('threshold', '0', 'input'); log.push(tiles());
        set('filter-kind', 'errors', 'change');
        document.querySelector('[data-pair]').click();
        log.push(tiles() > 0 && document.querySelector('#gallery .chips button').textContent.includes('taken for'));
        document.querySelector('#tiles .tile').click(); log.push(document.querySelector('dialog').open);
        document.querySelector('dialog').close();
        document.getElementById('show-predictions').click();
        log.push(document.querySelectorAll('#tiles rect[stroke="#e3a0c6"]').length);
        set('curve-class', '2', 'change');
        log.push([...document.querySelectorAll('.of-class.shown')].every((e) => e.dataset.category === '2'));
        log.push([...document.querySelectorAll('button, select, input, a')].every((e) => e.tabIndex === 0));
        log.push(document.querySelectorAll('#suspects-missing .tile').length);
        say(JSON.stringify(log));
        """,
        tmp_path,
    )
    assert json.loads(said) == [True, 12, 1, 0, 1, True, True, 0, True, True, 1]
