"""`resdet browse`: the search, the server, and in a real browser, if there is one, the page."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from resdet.browse.search import Query, Search
from resdet.browse.server import Site, serve
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.commands.browse import site_of
from resdet.config import dump_config
from resdet.errors import UserError
from resdet.models.build import build_model

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@contextmanager
def served(site: Site):
    server = serve(site, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def get(url: str, method: str = "GET", **headers: str):
    with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers)) as reply:
        content = reply.read()
        return json.loads(content) if reply.headers["Content-Type"] == "application/json" else content


@pytest.fixture
def copy(shapes_root, tmp_path) -> Path:
    """The shapes with a box annotated twice and an image that cannot be read."""
    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    twice = next(entry for entry in content["annotations"] if not entry["iscrowd"])
    content["annotations"].append({**twice, "id": 10**6})
    file.write_text(json.dumps(content))
    (root / "val2017" / content["images"][1]["file_name"]).write_bytes(b"no image")
    return root


QUERIES = [
    {}, {"label": "1"}, {"size": "s"}, {"label": "2", "size": "m", "least": "2"}, {"least": "3", "most": "4"},
    {"most": "0"}, {"name": "003"}, {"label": "0", "most": "1"}, {"name": "NO SUCH"},
]  # fmt: skip


@pytest.mark.parametrize("values", QUERIES)
def test_the_search_finds_what_a_loop_finds(values: dict, shapes) -> None:
    query = Query.of(values)
    expected = []
    for k, info in enumerate(shapes.images):
        boxes = info.objects.boxes
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        fits = {"": areas >= 0, "s": areas < 32**2, "m": (areas >= 32**2) & (areas < 96**2), "l": areas >= 96**2}[
            query.size
        ]
        count = int((fits & ((info.objects.labels == query.label) | (query.label is None))).sum())
        least = query.least if query.least is not None else int(query.label is not None or query.size != "")
        if least <= count <= (query.most if query.most is not None else count) and query.name.lower() in info.file.name:
            expected.append(k)
    assert Search(shapes.images).find(query).tolist() == expected
    if values in ({"label": "1"}, {"least": "3", "most": "4"}, {"name": "003"}):
        assert 0 < len(expected) < len(shapes.images)


def test_a_query_that_makes_no_sense() -> None:
    for values, message in (
        ({"least": "-1"}, "least='-1' is not a number"),
        ({"size": "xl"}, "size='xl' is none of s, m, l"),
    ):
        with pytest.raises(UserError, match=message):
            Query.of(values)


def test_the_server(copy, tmp_path) -> None:
    with served(site_of(tiny.config(copy, tmp_path / "run"), "val")) as url:
        assert b"</html>" in get(url)
        found = get(url + "/pictures")
        assert (found["total"], [p["id"] for p in found["pictures"]]) == (4, [0, 1, 2, 3])
        content = json.loads((copy / "annotations/instances_val2017.json").read_text())
        first = found["pictures"][0]
        objects = [
            a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"] and not a["iscrowd"]
        ]
        np.testing.assert_allclose([g[:4] for g in first["g"]], [a["bbox"] for a in objects], atol=0.06)
        assert all(g[8].startswith("M") for g in first["g"])
        for path in ("/thumbnail/0", "/picture/0"):
            assert Image.open(io.BytesIO(get(url + path))).size == (first["w"], first["h"])
        assert get(url + "/pictures?page=7")["pictures"] == []
        for path, code in (
            ("/thumbnail/4", 404), ("/thumbnail/-1", 404), ("/thumbnail/../../x", 404), ("/etc/passwd", 404),
            ("/predicted/0", 404),
            ("/other/0", 404), ("/thumbnail/1", 422), ("/pictures?least=x", 422),
        ):  # fmt: skip
            with pytest.raises(urllib.error.HTTPError) as error:
                get(url + path)
            assert error.value.code == code, path
            error.value.close()
        with pytest.raises(urllib.error.HTTPError) as error:
            get(url, Host="evil.example")
        assert error.value.code == 403
        error.value.close()


def test_a_browser_that_leaves(shapes_root, tmp_path, capsys) -> None:
    """While much is written to it: nothing is said, and others are served."""
    site = site_of(tiny.config(shapes_root, tmp_path / "run"), "val")
    site.answer = lambda path, query: ("image/jpeg", b"x" * 2**24)
    with served(site) as url:
        gone = urllib.request.urlopen(url)
        gone.read(10)
        gone.close()
        assert len(get(url)) == 2**24
        time.sleep(0.2)
    assert "Traceback" not in capsys.readouterr().err


def test_findings_are_looked_for_when_asked(copy, tmp_path) -> None:
    with served(site_of(tiny.config(copy, tmp_path / "run"), "val")) as url:
        assert get(url + "/findings")["state"] == "not looked for"
        get(url + "/findings", method="POST")
        until = time.monotonic() + 30
        while (found := get(url + "/findings"))["state"] == "looking" and time.monotonic() < until:
            time.sleep(0.05)
        assert found["state"] == "done"
        (twice,) = [f for f in found["list"] if f["code"] == "duplicate"]
        assert twice["images"] == 1
        (picture,) = get(url + "/pictures?finding=duplicate")["pictures"]
        boxes = [tuple(g[:4]) for g in picture["g"]]
        assert len(boxes) > len(set(boxes))
        assert get(url + "/pictures?finding=none-such")["total"] == 0


def test_predictions_are_judged(shapes_root, tmp_path) -> None:
    config = tiny.config(shapes_root, tmp_path / "run")
    model = build_model(config.model)
    torch.nn.init.normal_(model.heads["box"].classifier.weight, std=0.5)
    model.heads["box"].selection.score_threshold = 0.0
    names = ["disk", "box", "triangle", "star"]
    save_checkpoint(Checkpoint(model.state_dict(), names, [10, 11, 13, 14], dump_config(config)), tmp_path / "w.pt")
    site = site_of(config, "val", tmp_path / "w.pt")
    with served(site) as url:
        picture, plain = get(url + "/predicted/2"), get(url + "/pictures")["pictures"][2]
        assert (picture["name"], picture["src"]) == (plain["name"], "/thumbnail/2")
        assert [g[:5] for g in picture["g"]] == [g[:5] for g in plain["g"]]
        (found,) = site.browsed.predictor([shapes_root / "val2017" / picture["name"]])
        np.testing.assert_allclose([d[5] for d in picture["d"]], found.scores, atol=1e-4)
        assert {d[6] for d in picture["d"]} - {0}  # errors
        assert all(d[7] >= 0 for d in picture["d"] if d[6] in (0, 2, 3, 4, 5))


def test_a_port_that_is_taken(shapes_root, tmp_path) -> None:
    site = site_of(tiny.config(shapes_root, tmp_path / "run"), "val")
    with served(site) as url, pytest.raises(UserError, match=r"cannot be used .*: choose another with --port"):
        serve(site, urllib.parse.urlsplit(url).port)


@pytest.mark.slow
def test_in_a_browser(shapes_root, tmp_path, monkeypatch) -> None:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    site = site_of(tiny.config(shapes_root, tmp_path / "run"), "train")
    script = """
    (async () => {
      const pause = (ms) => new Promise((done) => setTimeout(done, ms));
      const log = [], tiles = () => document.querySelectorAll('#tiles .tile').length;
      const set = async (id, value) => {
        const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event('input')); await pause(1500);
      };
      await pause(1500); log.push(tiles());
      await set('query-name', '003'); log.push(tiles());
      await set('query-name', ''); await set('query-label', '1'); log.push(tiles());
      document.querySelector('#tiles .tile').click();
      log.push(document.querySelector('dialog svg image').getAttribute('href').startsWith('/picture/'));
      document.body.append(el('pre', { id: 'said' }, JSON.stringify(log)));
    })();
    """
    plain = site.page()
    monkeypatch.setattr(site, "page", lambda: plain.replace("</body>", f"<script>{script}</script></body>"))
    with served(site) as url:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
                   "--virtual-time-budget=15000", f"--user-data-dir={tmp_path / 'profile'}", url]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    said = json.loads(done.stdout.partition('<pre id="said">')[2].partition("</pre>")[0])
    with_boxes = len(site.search.find(Query(label=1)))
    assert said == [12, 1, with_boxes, True]
