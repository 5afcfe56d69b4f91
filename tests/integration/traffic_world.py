"""A model server for tests of traffic and scale: it takes as long as it is asked to.

`sleeper.py` answers every request after `?s=SECONDS` with who it is and the headers it saw;
`?stream=N` sends N lines, one every half second. `START` in its environment is how long it takes
until it listens. While a file `broken` lies beside it, it ends with an error instead.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.integration.project import Project

SLEEPER = """
import http.server, json, os, pathlib, sys, time, urllib.parse

HERE = pathlib.Path(__file__).parent
if (HERE / "broken").exists():
    sys.exit("cannot read the weights: no such file")
time.sleep(float(os.environ.get("START", "0")))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        self.send_response(200)
        if "stream" in asked:
            self.send_header("content-type", "text/plain")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for _ in range(int(asked["stream"])):
                self.wfile.write(b"2\\r\\na\\n\\r\\n")
                self.wfile.flush()
                time.sleep(0.5)
            self.wfile.write(b"0\\r\\n\\r\\n")
            return
        time.sleep(float(asked.get("s", "0")))
        data = json.dumps({
            "pid": os.getpid(), "revision": os.environ.get("K_REVISION", ""),
            "address": self.request.getsockname()[0],
            "headers": {k.lower(): v for k, v in self.headers.items()},
        }).encode()
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

Server(("0.0.0.0", 8080), Handler).serve_forever()
"""

IMAGE = "example/sleeper:dev"


def sleeper(start: float = 0.0, **more: Any) -> dict[str, Any]:
    """A component that runs the sleeper; `more` are its fields."""
    container: dict[str, Any] = {"name": "kserve-container", "image": IMAGE}
    if start:
        container["env"] = [{"name": "START", "value": str(start)}]
    return {"containers": [container], **more}


def service(
    name: str, predictor: dict[str, Any], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """An InferenceService of that predictor."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": annotations or {}},
        "spec": {"predictor": predictor},
    }


def write(folder: Path, *services: dict[str, Any], speed: float = 10, **config: Any) -> Path:
    """Write a project of these services, each in a file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sleeper.py").write_text(SLEEPER)
    for obj in services:
        (folder / f"{obj['metadata']['name']}.yaml").write_text(json.dumps(obj))
    settings = {
        "images": {IMAGE: {"context": ".", "command": ["python", "sleeper.py"]}},
        "autoscaling": {"speed": speed},
        **config,
    }
    (folder / "kserve-local.yaml").write_text(json.dumps(settings))
    return folder


class Load:
    """Requests to one service, from threads; each has its own connection.

    Args:
        host: Whom they name.
    """

    def __init__(self, project: Project, host: str) -> None:
        self._at = urlsplit(project.gateway)
        self._host = host
        self._pool = ThreadPoolExecutor(128)

    def ask(self, query: str = "", *, timeout: float = 60) -> tuple[int, Any]:
        """Send one request; return status and the answer, parsed if it is JSON."""
        connection = http.client.HTTPConnection(
            str(self._at.hostname), self._at.port, timeout=timeout
        )
        try:
            connection.request("POST", f"/{query}", b"{}", {"Host": self._host})
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, raw.decode(errors="replace")

    def start(self, query: str = "", *, timeout: float = 60) -> Future[tuple[int, Any]]:
        """Send one request in the background."""
        return self._pool.submit(self.ask, query, timeout=timeout)

    def burst(self, count: int, query: str = "") -> Sequence[tuple[int, Any]]:
        """Send so many at once and return all answers."""
        return [f.result() for f in [self.start(query) for _ in range(count)]]

    def keep(self, count: int, query: str) -> Callable[[], list[tuple[int, Any]]]:
        """Keep `count` requests in flight; call what it returns to end that and get the answers."""
        ended = threading.Event()

        def go_on() -> list[tuple[int, Any]]:
            answers = []
            while not ended.is_set():
                answers.append(self.ask(query))
            return answers

        running = [self._pool.submit(go_on) for _ in range(count)]

        def end() -> list[tuple[int, Any]]:
            ended.set()
            return [answer for future in running for answer in future.result()]

        return end

    def close(self) -> None:
        """Let all threads end."""
        self._pool.shutdown(cancel_futures=True)
