"""The storage initializer under test against real servers: short timeouts, everything counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from kserve_local.interfaces.backend import Progress
from kserve_local.interfaces.storage import Fetched, StorageRequest
from kserve_local.storage.archives import Bounds
from kserve_local.storage.http import Limits
from kserve_local.storage.initializer import Initializer

QUICK = Limits(connect=5.0, stall=1.0, attempts=3, first_wait=0.01, longest_wait=2.0, parallel=4)
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}


class World:
    """One user's initializer with a cache of its own."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.progress: list[Progress] = []
        # No HOME of the person who runs the tests: no login of theirs is used.
        env = {"HOME": str(folder), **options.pop("env", {})}
        self.initializer = Initializer(
            cache=self.cache,
            project=folder,
            env=env,
            limits=options.pop("limits", QUICK),
            unpacking=options.pop("unpacking", Bounds()),
            **options,
        )

    async def fetch(self, uri: str, env: Mapping[str, str] | None = None) -> Fetched:
        """Fetch with the environment that KServe would give."""
        async with asyncio.timeout(30):
            return await self.initializer.fetch(StorageRequest(uri, env or {}), self.note)

    def note(self, progress: Progress) -> None:
        """Take a progress report."""
        self.progress.append(progress)

    @property
    def halves(self) -> list[Path]:
        """Return what half-done downloads left behind."""
        return [p for p in self.cache.glob("models/*/partial/**/*") if p.is_file()]


def content(path: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of a folder."""
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


@contextmanager
def s3_server() -> Iterator[tuple[str, Any]]:
    """Give moto's S3 server: its URL, and a client that fills it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        yield url, client
        client.close()
    finally:
        server.stop()


@contextmanager
def gcs_server() -> Iterator[str]:
    """Give the URL of a Google Cloud Storage emulator."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=None)
    server.start()
    try:
        yield f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
    finally:
        server.stop()
