"""A project whose code is saved while it is asked all the time, and what a save leads to.

The server answers with the constant in its source; `save` writes another one and asks for new Pods
as the dev loop does, through the API.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kserve_local import settings
from kserve_local.api import scheme
from kserve_local.api.names import CODE
from kserve_local.api.reloads import merge_patch
from kserve_local.cli.session import connected
from tests.integration.project import Project

IMAGE = "example/constant:dev"
SERVER = """
import http.server, signal, sys, threading

ANSWER = "{answer}"
{load}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        data = ANSWER.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""


def write(folder: Path, services: dict[str, dict[str, Any]], **config: Any) -> Path:
    """Write a project of these services (name -> metadata and spec)."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": name, "annotations": one.get("annotations", {})},
            "spec": one["spec"],
        }
        for name, one in services.items()
    ]
    (folder / "services.yaml").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    )
    images = {IMAGE: {"context": ".", "command": ["python", "server.py"]}}
    (folder / "kserve-local.yaml").write_text(json.dumps({"images": images, **config}))
    code(folder, "first")
    return folder


def constant(**more: Any) -> dict[str, Any]:
    """A predictor that runs the code."""
    return {"containers": [{"name": "kserve-container", "image": IMAGE}], **more}


def code(folder: Path, answer: str, load: str = "") -> None:
    """Save other code: its answer, and what it does at start."""
    (folder / "server.py").write_text(SERVER.format(answer=answer, load=load))


async def ask_for_pods(project: Project, deployment: str, digest: str) -> None:
    """Ask for new Pods of a Deployment, as a save does."""
    async with connected(settings.load(project.folder)) as client:
        patch = merge_patch(CODE, digest)
        await client.patch(scheme.DEPLOYMENT, deployment, patch, "default")


@dataclass
class Asked:
    """What the requests brought.

    Args:
        last: The newest answer.
        failures: What went wrong, in words.
    """

    last: str = ""
    count: int = 0
    failures: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, answer: str) -> None:
        """Wait until that is the newest answer."""
        async with asyncio.timeout(60):
            while self.last != answer:
                self._news.clear()
                await self._news.wait()

    async def until_news(self) -> None:
        """Wait for the next answer."""
        async with asyncio.timeout(60):
            self._news.clear()
            await self._news.wait()

    def take(self, answer: str) -> None:
        """Take an answer down."""
        self.last = answer
        self.count += 1
        self._news.set()


@asynccontextmanager
async def asking(project: Project, host: str, *, rate: float = 50.0) -> AsyncIterator[Asked]:
    """Send requests at a rate, whether or not earlier ones are answered, while the block lasts.

    All that were sent are answered at the end of it.
    """
    asked = Asked()
    at = urlsplit(project.gateway)
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: {host}\r\n"
    request = f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            try:
                writer.write(request)
                answer = await reader.read()
            finally:
                writer.close()
        except OSError as error:
            asked.failures.append(repr(error))
            return
        status, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " in status.partition(b"\r\n")[0]:
            asked.take(body.decode())
        else:
            asked.failures.append(answer.decode(errors="replace"))

    async with asyncio.TaskGroup() as requests:

        async def send() -> None:
            while True:
                requests.create_task(one())
                await asyncio.sleep(1 / rate)

        sender = asyncio.create_task(send())
        try:
            yield asked
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender
