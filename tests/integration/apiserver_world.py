"""A running API server with KServe's built-in objects, for the tests that talk to one."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kserve_local.api.builtin import builtin_objects
from kserve_local.apiserver.app import create_app, json_route
from kserve_local.apiserver.logs import FileLogs
from kserve_local.apiserver.serve import serving
from kserve_local.apiserver.watch import OpenStreams
from kserve_local.client import kubeconfig
from kserve_local.client.client import Client
from kserve_local.errors import AlreadyExists, ServiceUnavailable
from kserve_local.store.store import Store, open_store
from kserve_local.supervisor import certificates

TOKEN = "secret-token"


@dataclass
class World:
    """A running API server."""

    store: Store
    client: Client
    warnings: list[str]
    folder: Path
    access: kubeconfig.Access

    async def raw(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Send a request as written; return status, headers and body."""
        port = int(self.access.server.rpartition(":")[2])
        context = ssl.create_default_context(cadata=self.access.ca)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        text = head.replace("\n", "\r\n") + f"\r\nConnection: close\r\n{length}\r\n"
        writer.write(text.encode() + body)
        data = await reader.read()
        writer.close()
        top, _, rest = data.partition(b"\r\n\r\n")
        status, *lines = top.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, rest


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[World]:
    """Serve in `tmp_path`, which afterwards holds `kubeconfig` and `state.db`."""

    async def whoami(_request: object) -> object:
        return {"hello": "you"}

    async def failing(_request: object) -> object:
        raise ServiceUnavailable("not now")

    async with open_store(tmp_path / "state.db") as store:
        for obj in builtin_objects():
            with suppress(AlreadyExists):  # a Namespace brings its default ServiceAccount along
                await store.create(obj)
        certs = certificates.ensure(tmp_path / "certificates")
        sock = socket.create_server(("127.0.0.1", 0))
        server = f"https://127.0.0.1:{sock.getsockname()[1]}"
        access = kubeconfig.Access(server, certs.ca.read_text(), TOKEN)
        kubeconfig.write(tmp_path / "kubeconfig", access)
        streams = OpenStreams()
        app = create_app(
            store,
            token=TOKEN,
            log_reader=FileLogs(store, tmp_path / "logs"),
            extra_routes=[
                json_route("/apis/kserve-local.dev/v1/who", whoami, "GET"),
                json_route("/apis/kserve-local.dev/v1/fail", failing, "POST"),
            ],
            streams=streams,
        )
        warnings: list[str] = []
        async with (
            serving(app, sock, certificate=certs.certificate, key=certs.key, streams=streams),
            Client.from_kubeconfig(tmp_path / "kubeconfig", on_warning=warnings.append) as client,
        ):
            yield World(store, client, warnings, tmp_path, access)
