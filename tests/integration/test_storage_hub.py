"""`hf://` against a stand-in of the Hugging Face Hub, with and without faults in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_local.errors import StorageError
from tests.fakes.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.fakes.file_server import HubServer, Repository
from tests.integration.storage_world import World, content

BIG = os.urandom(2 * 1024 * 1024)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    try:
        files = {"config.json": b"{}", "onnx/model.bin": BIG, ".gitattributes": b"*.bin lfs"}
        server.repositories["owner/tiny"] = Repository(files, large=("onnx/model.bin",))
        yield server
    finally:
        server.close()


@pytest.fixture
def proxy(hub: HubServer) -> Iterator[FaultProxy]:
    with fault_proxy(hub.url) as found:
        yield found


@pytest.fixture
def world(tmp_path: Path, proxy: FaultProxy) -> World:
    return World(tmp_path, env={"HF_ENDPOINT": proxy.url})


async def test_a_snapshot_arrives_and_is_not_fetched_twice(
    hub: HubServer, world: World, proxy: FaultProxy
) -> None:
    fetched = await world.fetch("hf://owner/tiny")
    assert content(fetched.path) == hub.repositories["owner/tiny"].files
    proxy.forget()
    again = await world.fetch("hf://owner/tiny")
    assert (again.path, again.transferred_bytes, len(proxy.seen)) == (fetched.path, 0, 1)


async def test_a_revision_is_asked_for(hub: HubServer, world: World) -> None:
    hub.repositories["owner/tiny"].revisions = ("main", "v1.0")
    await world.fetch("hf://owner/tiny:v1.0")
    assert hub.seen[0][0] == "/api/models/owner/tiny/revision/v1.0?blobs=true"
    with pytest.raises(StorageError, match=r"404 Client Error\. Revision Not Found for url: "):
        await world.fetch("hf://owner/tiny:v2")


async def test_a_token_goes_to_the_hub_and_nowhere_else(hub: HubServer, world: World) -> None:
    """Large files are redirected to other hosts, which refuse a second login."""
    hub.repositories["owner/tiny"].token = "hf_secret"
    fetched = await world.fetch("hf://owner/tiny", {"HF_TOKEN": "hf_secret"})
    assert content(fetched.path)["onnx/model.bin"] == BIG
    elsewhere = [headers for path, headers in hub.seen if path.startswith("/cdn/")]
    assert elsewhere
    assert all("authorization" not in headers for headers in elsewhere)


async def test_the_login_of_the_user_is_used(hub: HubServer, world: World) -> None:
    hub.repositories["owner/tiny"].token = "hf_mine"
    path = world.folder / ".cache" / "huggingface" / "token"
    path.parent.mkdir(parents=True)
    path.write_text("hf_mine\n")
    assert (await world.fetch("hf://owner/tiny")).transferred_bytes > len(BIG)


@pytest.mark.parametrize(
    ("uri", "env", "words", "hint"),
    [
        ("hf://owner/nope", {}, "401 Client Error. Repository Not Found for url: ", "HF_TOKEN"),
        ("hf://owner/gated", {}, "403 Client Error. Cannot access gated repo", "conditions"),
    ],
)
async def test_a_refusal_is_said_at_once(
    hub: HubServer,
    world: World,
    proxy: FaultProxy,
    uri: str,
    env: dict[str, str],
    words: str,
    hint: str,
) -> None:
    hub.repositories["owner/gated"] = Repository({"a": b"a"}, token="x", gated=True)
    with pytest.raises(StorageError) as caught:
        await world.fetch(uri, env)
    assert caught.value.message.startswith(words)
    assert hint in caught.value.hint
    assert len(proxy.seen) == 1


async def test_plain_404_is_a_missing_repository(world: World, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault(status=404))
    with pytest.raises(StorageError, match=r"404 Client Error\. Repository Not Found"):
        await world.fetch("hf://owner/tiny")


@pytest.mark.parametrize(
    "uri", ["hf://owner", "hf://owner/", "hf:///m", "hf://a/b/c", "hf://owner/:v1", "hf://"]
)
async def test_a_wrong_uri_is_said_as_kserve_says_it(world: World, uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        await world.fetch(uri)
    assert caught.value.message == (
        f"Invalid Hugging Face URI format. Expected 'hf://owner/model[:revision]', got '{uri}'"
    )


async def test_busy_then_fine(world: World, proxy: FaultProxy) -> None:
    proxy.faults += [
        Fault(match="/api/", status=429, headers={"Retry-After": "0"}),
        Fault(match="/resolve/", status=500, times=2),
    ]
    assert len(content((await world.fetch("hf://owner/tiny")).path)) == 3


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_broken_transfer_is_made_whole(
    hub: HubServer, world: World, proxy: FaultProxy, how: str
) -> None:
    """A file kept in git itself: its blob id is checked."""
    hub.repositories["owner/plain"] = Repository({"model.bin": BIG})
    proxy.faults.append(Fault(match="/resolve/", **{how: 1_500_000}))
    fetched = await world.fetch("hf://owner/plain")
    assert content(fetched.path) == {"model.bin": BIG}
    ranges = [s.headers.get("range") for s in proxy.seen if "/resolve/" in s.path]
    assert ranges == [None, "bytes=1500000-"]


async def test_wrong_bytes_are_fetched_again(
    hub: HubServer, world: World, proxy: FaultProxy
) -> None:
    hub.repositories["owner/plain"] = Repository({"config.json": b"{}"})
    proxy.faults.append(Fault(match="/resolve/", flip=True))
    assert content((await world.fetch("hf://owner/plain")).path) == {"config.json": b"{}"}


async def test_a_new_commit_transfers_what_changed(hub: HubServer, world: World) -> None:
    await world.fetch("hf://owner/tiny")
    hub.repositories["owner/tiny"].files["config.json"] = b'{"new": 1}'
    fetched = await world.fetch("hf://owner/tiny")
    assert content(fetched.path)["config.json"] == b'{"new": 1}'
    assert fetched.transferred_bytes == len(b'{"new": 1}')


async def test_the_hubs_own_offline_switch_is_honoured(
    hub: HubServer, world: World, proxy: FaultProxy
) -> None:
    with pytest.raises(StorageError, match="offline mode is on"):
        await world.fetch("hf://owner/tiny", {"HF_HUB_OFFLINE": "1"})
    await world.fetch("hf://owner/tiny")
    proxy.forget()
    assert (await world.fetch("hf://owner/tiny", {"HF_HUB_OFFLINE": "1"})).cached
    assert proxy.seen == []


async def test_filters_pick_files(world: World) -> None:
    fetched = await world.fetch("hf://owner/tiny", {"STORAGE_ALLOW_PATTERNS": "*.json"})
    assert content(fetched.path) == {"config.json": b"{}"}
