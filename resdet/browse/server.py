"""A local web server for `Browsed`: on 127.0.0.1 only, which reads images by their index and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from resdet.browse.findings import Concern
from resdet.browse.pictures import Browsed
from resdet.browse.search import SIZES, Query, Search
from resdet.errors import UserError
from resdet.report.gallery import DETECTION_KINDS
from resdet.report.page import document

HOST = "127.0.0.1"
PAGE = 24  # pictures
SIDES = {"thumbnail": 400, "picture": 1600}  # pixels
Reply = tuple[str, bytes]  # a content type, and the content


class Site:
    """What the server answers with.

    check: looks for findings, in a thread, once somebody asks.
    """

    def __init__(self, browsed: Browsed, title: str, check: Callable[[], list[Concern]]) -> None:
        self.browsed, self.title, self._check = browsed, title, check
        self.search = Search(browsed.annotations.images)
        self.findings: dict[str, Any] = {"state": "not looked for", "list": []}
        self._lock = threading.Lock()

    def answer(self, path: str, query: dict[str, str]) -> Reply:
        """Raises `UserError` for a bad query or an unreadable image, KeyError for an unknown path."""
        if path == "/":
            return "text/html; charset=utf-8", self.page().encode()
        if path == "/pictures":
            return _json(self.pictures(query))
        if path == "/findings":
            return _json(self.findings)
        kind, _, number = path[1:].partition("/")
        if not number.isdecimal() or int(number) >= len(self.search.images):
            raise KeyError(path)
        if kind == "predicted" and self.browsed.predictor:
            return _json(self.browsed.predicted(int(number)))
        return "image/jpeg", self.browsed.thumbnail(int(number), SIDES[kind])

    def page(self) -> str:
        annotations = self.browsed.annotations
        data = {
            "names": annotations.class_names, "sizes": SIZES, "predicts": self.browsed.predictor is not None,
            "kinds": DETECTION_KINDS, "threshold": 0.5, "total": len(annotations.images), "per": PAGE,
        }  # fmt: skip
        body = '<header class="top"><h1 id="title"></h1><p class="faint" id="summary"></p></header><main id="browse"></main>'
        values = {"data": data, "about": {"title": self.title, "summary": annotations.summary()}}
        return document(self.title, body, values, ["draw.js", "browse.js"])

    def pictures(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of the pictures that are asked for."""
        found = self.search.find(Query.of(query))
        number = query.get("page", "0")
        first = PAGE * (int(number) if number.isdecimal() else 0)
        return {"total": len(found), "pictures": [self.browsed.entry(k) for k in found[first : first + PAGE].tolist()]}

    def look_for_findings(self) -> None:
        """Start the check, unless it runs or has run."""
        with self._lock:
            if self.findings["state"] == "not looked for":
                self.findings = {"state": "looking", "list": []}
                threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        try:
            concerns = self._check()
        except UserError as error:
            self.findings = {"state": f"the check failed: {error}", "list": []}
            return
        listed = []
        for concern in concerns:
            self.search.findings[concern.code] = rows = self.search.concerned(concern.images)
            listed.append(
                {
                    "code": concern.code,
                    "what": concern.what,
                    "fix": concern.fix,
                    "count": concern.times,
                    "images": len(rows),
                }
            )
        self.findings = {"state": "done", "list": listed}


def serve(site: Site, port: int) -> ThreadingHTTPServer:
    """A server that is bound but does not serve yet; port 0: any free one. Raises `UserError`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(site.answer)

        def do_POST(self) -> None:
            def start(path: str, query: dict[str, str]) -> Reply:
                if path != "/findings":
                    raise KeyError(path)
                site.look_for_findings()
                return _json(site.findings)

            self._reply(start)

        def _reply(self, answer: Callable[[str, dict[str, str]], Reply]) -> None:
            # Another site's page may point a name of its own at this machine; its requests carry that name.
            if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            parts = urlsplit(self.path)
            try:
                kind, content = answer(parts.path, dict(parse_qsl(parts.query)))
            except KeyError:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            except UserError as error:
                kind, content = _json({"error": str(error)})
                self.send_response(HTTPStatus.UNPROCESSABLE_ENTITY)
            else:
                self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "max-age=3600" if kind == "image/jpeg" else "no-store")
            with suppress(ConnectionError):  # the browser has left the page
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Nothing: the terminal belongs to the user."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from None


def _json(value: Any) -> Reply:
    return "application/json", json.dumps(value).encode()
