"""Small HTTP servers over contents held in memory: plain files, and a Hugging Face Hub.

Both know Range, If-Range and ETags as real ones do. The Hub follows the API that
`GET /api/models/<id>/revision/<revision>?blobs=true` and `/<id>/resolve/<commit>/<path>` have, with
its X-Error-Code header, and redirects large files to another host name as the real one does.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class WebFile:
    """One file. `etag` and `modified` are sent as they are, unless empty."""

    body: bytes
    content_type: str = "application/octet-stream"
    etag: str | None = None
    modified: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, str] | None = None
    ranges: bool = True

    @property
    def tag(self) -> str:
        """The ETag: by default one of the content."""
        if self.etag is not None:
            return self.etag
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'


class FileServer:
    """Serves `files` by path. `seen` holds path and headers of every request, `posted` bodies."""

    def __init__(self) -> None:
        self.files: dict[str, WebFile] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.posted: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                outer.posted.append(self.rfile.read(length))
                self.do_GET()

            def do_GET(self) -> None:
                headers = {k.lower(): v for k, v in self.headers.items()}
                outer.seen.append((self.path, headers))
                status, answer, body = outer.answer(self.path, headers)
                self.send_response(status)
                for name, value in answer.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that read the head alone are expected."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a GET."""
        file = self.files.get(unquote(path)) or self.files.get(unquote(urlsplit(path).path))
        if file is None:
            return 404, {"Content-Type": "text/plain"}, b"not here"
        if file.needs and headers.get(file.needs[0].lower()) != file.needs[1]:
            return 403, {"Content-Type": "text/plain"}, b"not for you"
        return serve(file, headers)


def serve(file: WebFile, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """Return a file, or the part of it that a Range asks for."""
    answer = {"Content-Type": file.content_type, **file.headers}
    if file.tag:
        answer["ETag"] = file.tag
    if file.modified:
        answer["Last-Modified"] = file.modified
    if file.status != 200:
        return file.status, answer, file.body
    match = _RANGE.fullmatch(headers.get("range", ""))
    same = headers.get("if-range") in (None, file.tag, file.modified)
    if match and same and file.ranges:
        start, end = int(match[1]), int(match[2] or len(file.body) - 1)
        if start >= len(file.body):
            return 416, {"Content-Range": f"bytes */{len(file.body)}"}, b""
        part = file.body[start : end + 1]
        answer["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(file.body)}"
        return 206, answer, part
    return 200, answer, file.body


@dataclass
class Repository:
    """A model repository: files by path, revisions by name."""

    files: dict[str, bytes]
    large: tuple[str, ...] = ()
    token: str = ""
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        """A commit id of 40 hex digits, as the content demands."""
        total = hashlib.sha1(usedforsecurity=False)
        for path, body in sorted(self.files.items()):
            total.update(path.encode() + hashlib.sha256(body).digest())
        return total.hexdigest()


class HubServer(FileServer):
    """A Hugging Face Hub; large files lie at the same port under the name `localhost`."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        parts = [unquote(p) for p in urlsplit(path).path.strip("/").split("/")]
        if parts[0] == "cdn":
            # A signed address: whoever sends a token there leaks it.
            if "authorization" in headers:
                return 400, {}, b"only one auth mechanism allowed"
            body = self.repositories["/".join(parts[1:3])].files["/".join(parts[3:])]
            return serve(WebFile(body), headers)
        if parts[:2] == ["api", "models"] and parts[4] == "revision":
            return self._revision("/".join(parts[2:4]), parts[5], headers)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), headers)
        return 404, {}, b""

    def _repository(
        self, name: str, headers: dict[str, str]
    ) -> Repository | tuple[int, dict[str, str], bytes]:
        found = self.repositories.get(name)
        may = found is not None and (
            not found.token or headers.get("authorization") == f"Bearer {found.token}"
        )
        if found is None or not may:
            if found is not None and found.gated:
                return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return found

    def _revision(
        self, name: str, revision: str, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        found = self._repository(name, headers)
        if isinstance(found, tuple):
            return found
        if revision not in (*found.revisions, found.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = []
        for path, body in found.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False)
            item: dict[str, Any] = {
                "rfilename": path,
                "size": len(body),
                "blobId": blob.hexdigest(),
            }
            if path in found.large:
                item["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
            siblings.append(item)
        data = {"id": name, "sha": found.commit, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()

    def _resolve(
        self, name: str, commit: str, path: str, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        found = self._repository(name, headers)
        if isinstance(found, tuple):
            return found
        if commit not in (*found.revisions, found.commit) or path not in found.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if path in found.large:
            place = f"http://localhost:{self.port}/cdn/{name}/{path}"
            return 302, {"Location": place, "X-Repo-Commit": found.commit}, b""
        return serve(WebFile(found.files[path]), headers)


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    """Close the server at the end."""
    try:
        yield server
    finally:
        server.close()
