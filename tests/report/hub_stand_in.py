"""The part of the Hub's HTTP interface that a push talks to, on this machine, for the real client.

A parquet file goes up as the Hub wants large files (batch, then PUT), everything else within the commit.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import yaml


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Hub:
    """What was asked, and what is there now."""

    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    repos: dict[str, bool] = field(default_factory=dict)
    """By name: whether it is private."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the one repository that is pushed to."""
    commits: int = 0
    large: bool = True
    """Whether parquet goes the way of large files."""
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By a part of the path: status and body to answer with instead."""
    _stored: dict[str, bytes] = field(default_factory=dict)

    def sent(self) -> str:
        """All that reached it: paths, headers and bodies, and what these hold in base64."""
        parts = []
        for request in self.requests:
            parts += [request.path, str(request.headers), request.body.decode("utf-8", "replace")]
            parts += [text for line in request.body.splitlines() for text in _decoded(line)]
        return "\n".join(parts)

    def answer(self, request: Request) -> tuple[int, Any]:
        path = request.path.partition("?")[0]
        told = next((answer for part, answer in self.answers.items() if part in path), None)
        if told is not None:
            return told
        if request.method == "PUT":
            self._stored[path.rpartition("/")[2]] = request.body
            return 200, {}
        if path == "/api/repos/create":
            return self._create(json.loads(request.body))
        if path == "/api/validate-yaml":
            head = json.loads(request.body)["content"].split("---\n")[1]
            return 200, {"errors": [], "warnings": [], "read": len(yaml.safe_load(head))}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._place(one) for one in json.loads(request.body)["objects"]],
            }
        if "/preupload/" in path:
            return 200, {"files": [self._mode(one) for one in json.loads(request.body)["files"]]}
        if "/commit/" in path:
            name = path.removeprefix("/api/").partition("/commit/")[0]
            return self._commit(request.body, f"{self.endpoint}/{name}/commit/{'1' * 40}")
        name = path.removeprefix("/api/datasets/")
        if name in self.repos:
            siblings = [{"rfilename": file} for file in self.files]
            return 200, {
                "id": name,
                "private": self.repos[name],
                "sha": "0" * 40,
                "tags": [],
                "siblings": siblings,
            }
        return 404, {"error": "not found"}

    def _create(self, given: dict[str, Any]) -> tuple[int, Any]:
        name = f"{given['organization']}/{given['name']}"
        is_new = name not in self.repos
        assert given["type"] == "dataset"
        if is_new:
            self.repos[name] = given.get("visibility") == "private" or bool(given.get("private"))
        return (200 if is_new else 409), {"url": f"{self.endpoint}/datasets/{name}"}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if self.large and file["path"].endswith(".parquet") else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        return one | {"actions": {"upload": {"href": f"{self.endpoint}/store/{one['oid']}"}}}

    def _commit(self, body: bytes, url: str) -> tuple[int, Any]:
        for line in body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                self.files[value["path"]] = self._stored[value["oid"]]
            elif told["key"] == "deletedFile":
                del self.files[value["path"]]
        self.commits += 1
        return 200, {"commitUrl": url, "commitOid": "1" * 40, "pullRequestUrl": None}


@contextmanager
def running() -> Iterator[Hub]:
    """A stand-in that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(self.command, self.path, dict(self.headers), self.rfile.read(length))
            hub.requests.append(request)
            status, told = hub.answer(request)
            body = told.encode() if isinstance(told, str) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _decoded(line: bytes) -> Iterator[str]:
    """The strings of a line of JSON that are base64."""
    try:
        yield from _strings(json.loads(line))
    except ValueError:  # a file's own bytes, which are looked at as they are
        return


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
    elif isinstance(value, str):
        try:
            yield base64.b64decode(value, validate=True).decode("utf-8", "replace")
        except ValueError:
            return
