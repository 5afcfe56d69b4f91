"""A process that fetches one URI: `CACHE URI`; prints the folder and the bytes transferred."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from kserve_local.interfaces.storage import StorageRequest
from kserve_local.storage.initializer import Initializer


async def main() -> None:
    cache, uri = Path(sys.argv[1]), sys.argv[2]
    initializer = Initializer(cache=cache, project=cache, env=os.environ)
    fetched = await initializer.fetch(StorageRequest(uri), lambda progress: None)
    sys.stdout.write(f"{fetched.path}\n{fetched.transferred_bytes}\n")


asyncio.run(main())
