"""The shared cache: one download a URI over tasks and processes, resumed after a kill, whole or
not there.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.errors import StorageError
from kserve_local.storage import download
from tests.fakes.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.fakes.file_server import FileServer, HubServer, Repository, WebFile
from tests.integration.project import wait_until
from tests.integration.storage_world import World, content

BIG = os.urandom(3 * 1024 * 1024)
FETCHER = Path(__file__).with_name("storage_fetcher.py")


@pytest.fixture
def server() -> Iterator[FileServer]:
    found = FileServer()
    found.files["/m.bin"] = WebFile(BIG)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def proxy(server: FileServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as found:
        yield found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def fetcher(world: World, uri: str) -> asyncio.subprocess.Process:
    """Start another process on the same cache."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(FETCHER),
        str(world.cache),
        uri,
        env={"HOME": str(world.folder), "PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
    )


def written(world: World, size: int) -> bool:
    """Return whether a download has so many bytes on disk."""
    parts = world.cache.glob("models/*/partial/parts/*")
    return size in [part.stat().st_size for part in parts]


async def test_tasks_share_one_download(world: World, proxy: FaultProxy) -> None:
    proxy.faults += [Fault(times=1), Fault(stall=1_000_000)]
    fetched = await asyncio.gather(*(world.fetch(f"{proxy.url}/m.bin") for _ in range(5)))
    assert len({f.path for f in fetched}) == 1
    assert sorted(f.transferred_bytes for f in fetched) == [0, 0, 0, 0, len(BIG)]
    assert any("Waiting for another download" in p.message for p in world.progress)


async def test_processes_share_one_download(world: World, proxy: FaultProxy) -> None:
    proxy.faults += [Fault(times=1), Fault(stall=1_000_000, match="m.bin")]
    processes = [await fetcher(world, f"{proxy.url}/m.bin") for _ in range(2)]
    await asyncio.to_thread(wait_until, lambda: written(world, 1_000_000), why="one began")
    mine = asyncio.create_task(world.fetch(f"{proxy.url}/m.bin"))
    await asyncio.to_thread(
        wait_until,
        lambda: any("Waiting for another" in p.message for p in world.progress),
        why="the second one waits",
    )
    # The first process holds the lock and hangs: without it another goes on where it was.
    processes[0].kill()
    processes[1].kill()
    for process in processes:
        await process.communicate()
    assert (await mine).transferred_bytes == len(BIG) - 1_000_000
    assert content((await mine).path) == {"m.bin": BIG}


async def test_a_killed_download_is_resumed_by_the_next_process(
    world: World, proxy: FaultProxy
) -> None:
    """kill -9 in the middle: the bytes that were written are not fetched again."""
    proxy.faults += [Fault(times=1), Fault(stall=2_000_000, match="m.bin")]
    process = await fetcher(world, f"{proxy.url}/m.bin")
    await asyncio.to_thread(wait_until, lambda: written(world, 2_000_000), why="that much came")
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert not list(world.cache.glob("models/*/snapshots/*"))
    again = await fetcher(world, f"{proxy.url}/m.bin")
    out, _ = await again.communicate()
    path, transferred = out.decode().split()
    assert int(transferred) == len(BIG) - 2_000_000
    assert content(Path(path)) == {"m.bin": BIG}
    assert world.halves == []


async def test_a_cancelled_fetch_ends_at_once_and_is_resumed(
    world: World, proxy: FaultProxy
) -> None:
    proxy.faults += [Fault(times=1), Fault(stall=2_000_000)]
    task = asyncio.create_task(world.fetch(f"{proxy.url}/m.bin"))
    await asyncio.to_thread(
        wait_until, lambda: any(p.done == 2_000_000 for p in world.progress), why="it is on its way"
    )
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    fetched = await world.fetch(f"{proxy.url}/m.bin")
    assert fetched.transferred_bytes == len(BIG) - 2_000_000
    assert content(fetched.path) == {"m.bin": BIG}


async def test_a_full_disk_is_said_and_gives_back_its_space(
    world: World, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            await world.fetch(f"{proxy.url}/m.bin")
    assert "storage.cacheDir" in caught.value.hint
    assert world.halves == []
    assert content((await world.fetch(f"{proxy.url}/m.bin")).path) == {"m.bin": BIG}


async def test_what_cannot_fit_is_refused_before_it_is_fetched(
    world: World, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1024

    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"No space left on device: .* needs 0\.00 GiB"):
        await world.fetch(f"{proxy.url}/m.bin")
    assert proxy.sent <= len(BIG)
    assert len(proxy.seen) == 1


async def test_a_lost_entry_is_fetched_anew(world: World, proxy: FaultProxy) -> None:
    """Whatever a person or a crash does to the books."""
    first = await world.fetch(f"{proxy.url}/m.bin")
    (books,) = world.cache.glob("models/*/entry.json")
    for broken in (
        "",
        "[]",
        "{}",
        json.dumps({"uri": 1, "snapshot": "x", "tags": [], "readers": 1}),
    ):
        books.write_text(broken)
        again = await world.fetch(f"{proxy.url}/m.bin")
        assert (again.path, content(again.path)) == (first.path, {"m.bin": BIG})


async def test_files_are_fetched_side_by_side_within_the_limit(world: World) -> None:
    """Four at a time (`Limits.parallel` of these tests)."""
    hub = HubServer()
    files = {f"{i}.bin": bytes([i]) * 100 for i in range(9)}
    hub.repositories["o/m"] = Repository(files)
    try:
        with fault_proxy(hub.url) as proxy:
            proxy.faults.append(Fault(match="/resolve/", times=4, stall=50))
            task = asyncio.create_task(world.fetch("hf://o/m", {"HF_ENDPOINT": proxy.url}))
            seen: Any = lambda: len(proxy.paths("/resolve/"))  # noqa: E731  # read twice
            await asyncio.to_thread(wait_until, lambda: seen() == 4, why="four at a time")
            assert content((await task).path) == files
            assert seen() == 13
    finally:
        hub.close()


async def test_progress_comes_at_most_four_times_a_second(world: World, proxy: FaultProxy) -> None:
    proxy.faults += [Fault(times=1), Fault(stall=1_000_000)]
    started = asyncio.get_running_loop().time()
    await world.fetch(f"{proxy.url}/m.bin")
    took = asyncio.get_running_loop().time() - started
    assert 1 <= len(world.progress) <= took / 0.25 + 1
