"""`http(s)://` against a plain file server: kinds of content, headers, redirects, proxies."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_local.errors import StorageError
from kserve_local.storage.archives import Bounds
from tests.fakes.fault_proxy import Fault, fault_proxy
from tests.fakes.file_server import FileServer, WebFile
from tests.integration.storage_world import World, content

BIG = os.urandom(2 * 1024 * 1024)


@pytest.fixture
def server() -> Iterator[FileServer]:
    found = FileServer()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return packed.getvalue()


def tarred(mode: str, **files: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return packed.getvalue()


async def test_a_file_arrives_and_is_not_fetched_twice(server: FileServer, world: World) -> None:
    server.files["/m/model.joblib"] = WebFile(b"one")
    uri = f"{server.url}/m/model.joblib"
    first = await world.fetch(uri)
    assert content(first.path) == {"model.joblib": b"one"}
    again = await world.fetch(uri)
    assert (again.path, again.cached, again.transferred_bytes) == (first.path, True, 0)
    server.files["/m/model.joblib"] = WebFile(b"two")
    assert content((await world.fetch(uri)).path) == {"model.joblib": b"two"}
    assert content(first.path) == {"model.joblib": b"one"}


async def test_without_any_validator_the_bytes_decide(server: FileServer, world: World) -> None:
    server.files["/model.bin"] = WebFile(b"one", etag="")
    first = await world.fetch(f"{server.url}/model.bin")
    again = await world.fetch(f"{server.url}/model.bin")
    assert (again.path, again.transferred_bytes) == (first.path, 3)
    server.files["/model.bin"] = WebFile(b"two", etag="")
    assert content((await world.fetch(f"{server.url}/model.bin")).path) == {"model.bin": b"two"}


@pytest.mark.parametrize(
    ("name", "body", "content_type"),
    [
        ("m.zip", zipped(**{"d/a": b"1"}), "application/zip"),
        ("m.tar", tarred("w", **{"d/a": b"1"}), "application/x-tar"),
        ("m.tar.gz", tarred("w:gz", **{"d/a": b"1"}), "application/gzip"),
        ("m.tgz", tarred("w:gz", **{"d/a": b"1"}), "application/x-gzip"),
        ("m.tar.xz", tarred("w:xz", **{"d/a": b"1"}), "application/x-tar"),
        ("get?name=m.zip", zipped(**{"d/a": b"1"}), "application/zip"),
    ],
    ids=["zip", "tar", "tar.gz", "tgz", "tar.xz", "zip by its content"],
)
async def test_archives_are_unpacked(
    server: FileServer, world: World, name: str, body: bytes, content_type: str
) -> None:
    server.files[f"/{name}"] = WebFile(body, content_type)
    fetched = await world.fetch(f"{server.url}/{name}")
    assert content(fetched.path) == {"d/a": b"1"}


async def test_a_compressed_file_keeps_kserves_odd_name(server: FileServer, world: World) -> None:
    server.files["/model.json.gz"] = WebFile(gzip.compress(b"{}"))
    fetched = await world.fetch(f"{server.url}/model.json.gz")
    assert content(fetched.path) == {"model.json.gz.tar": b"{}"}


async def test_the_content_type_must_be_the_one_kserve_wants(
    server: FileServer, world: World
) -> None:
    server.files["/model.json"] = WebFile(b"{}", "application/json")
    server.files["/model.zip"] = WebFile(zipped(a=b"1"), "text/html")
    server.files["/model.tar"] = WebFile(tarred("w", a=b"1"), "text/html")
    with pytest.raises(StorageError) as caught:
        await world.fetch(f"{server.url}/model.json")
    assert caught.value.message == (
        f"URI: {server.url}/model.json did not respond with 'Content-Type': "
        "'application/octet-stream'"
    )
    for name, types in (
        ("zip", "application/x-zip-compressed, application/zip, application/zip-compressed"),
        ("tar", "application/x-tar, application/x-gtar, application/x-gzip, application/gzip"),
    ):
        with pytest.raises(StorageError) as caught:
            await world.fetch(f"{server.url}/model.{name}")
        assert caught.value.message == (
            f"URI: {server.url}/model.{name} did not respond with any of following "
            f"'Content-Type': {types}"
        )


async def test_refusals_are_said_as_kserve_says_them(server: FileServer, world: World) -> None:
    server.files["/denied.bin"] = WebFile(b"", status=403)
    for name, status in (("none.bin", 404), ("denied.bin", 403)):
        before = len(server.seen)
        with pytest.raises(StorageError) as caught:
            await world.fetch(f"{server.url}/{name}")
        expected = f"URI: {server.url}/{name} returned a {status} response code."
        assert caught.value.message == expected
        assert len(server.seen) == before + 1
    with pytest.raises(StorageError, match="No filename contained in URI"):
        await world.fetch(f"{server.url}/folder/")


async def test_headers_of_a_secret_go_to_their_host_only(server: FileServer, world: World) -> None:
    """A redirect to another host does not take them along."""
    server.files["/m.bin"] = WebFile(b"", status=302, needs=("X-Key", "s3cret"))
    server.files["/m.bin"].headers["Location"] = f"http://localhost:{server.port}/real.bin"
    server.files["/real.bin"] = WebFile(b"one")
    env = {"127.0.0.1-headers": '{"X-Key": "s3cret"}'}
    assert content((await world.fetch(f"{server.url}/m.bin", env)).path) == {"m.bin": b"one"}
    assert all("x-key" not in headers for path, headers in server.seen if path == "/real.bin")
    with pytest.raises(StorageError, match="returned a 403"):
        await world.fetch(f"{server.url}/m.bin")
    with pytest.raises(StorageError, match="are no JSON object") as caught:
        await world.fetch(f"{server.url}/m.bin", {"127.0.0.1-headers": "s3cret"})
    assert "s3cret" not in caught.value.message + caught.value.hint


async def test_a_password_in_the_uri_is_used_and_not_shown(
    server: FileServer, world: World
) -> None:
    server.files["/m.bin"] = WebFile(b"one", needs=("Authorization", "Basic dXNlcjpwdw=="))
    fetched = await world.fetch(f"http://user:pw@127.0.0.1:{server.port}/m.bin")
    assert content(fetched.path) == {"m.bin": b"one"}
    with pytest.raises(StorageError) as caught:
        await world.fetch(f"http://user:pw@127.0.0.1:{server.port}/none.bin")
    assert "pw@" not in caught.value.message
    written = [p.read_text() for p in world.cache.rglob("entry.json")]
    assert written
    assert not any("pw@" in text for text in (*written, *(p.message for p in world.progress)))


async def test_endless_redirects_end(server: FileServer, world: World) -> None:
    server.files["/m.bin"] = WebFile(b"", status=302, headers={"Location": "/m.bin"})
    with pytest.raises(StorageError, match="more than 10 redirects"):
        await world.fetch(f"{server.url}/m.bin")


async def test_the_proxy_of_the_environment_is_used(server: FileServer, world: World) -> None:
    """The name is resolved by the proxy, which gets the whole address."""
    server.files["http://models.example/m.bin"] = WebFile(b"one")
    proxied = {"http_proxy": server.url}
    fetched = await world.fetch("http://models.example/m.bin", proxied)
    assert content(fetched.path) == {"m.bin": b"one"}
    server.files["/direct.bin"] = WebFile(b"two")
    skip = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    assert (await world.fetch(f"{server.url}/direct.bin", skip)).transferred_bytes == 3


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_broken_transfer_goes_on_where_it_ended(
    server: FileServer, world: World, how: str
) -> None:
    server.files["/m.bin"] = WebFile(BIG)
    with fault_proxy(server.url) as proxy:
        proxy.faults += [Fault(times=1), Fault(**{how: 1_500_000})]
        fetched = await world.fetch(f"{proxy.url}/m.bin")
        assert content(fetched.path) == {"m.bin": BIG}
        assert proxy.seen[2].headers["range"] == "bytes=1500000-"
        assert proxy.seen[2].headers["if-range"] == server.files["/m.bin"].tag


async def test_a_server_without_ranges_is_read_from_the_start(
    server: FileServer, world: World
) -> None:
    server.files["/m.bin"] = WebFile(BIG, ranges=False)
    with fault_proxy(server.url) as proxy:
        proxy.faults += [Fault(times=1), Fault(cut=1_500_000)]
        fetched = await world.fetch(f"{proxy.url}/m.bin")
    assert content(fetched.path) == {"m.bin": BIG}
    assert fetched.transferred_bytes == len(BIG) + 1_500_000


async def test_a_file_that_changes_on_the_way_is_read_anew(
    server: FileServer, world: World
) -> None:
    """No mix of two versions."""
    server.files["/m.bin"] = WebFile(BIG)
    with fault_proxy(server.url) as proxy:
        proxy.faults += [
            Fault(times=1),
            Fault(cut=1_500_000),
            Fault(status=200, headers={"ETag": '"other"'}, body=b"x" * 10),
        ]
        fetched = await world.fetch(f"{proxy.url}/m.bin")
    assert content(fetched.path) == {"m.bin": BIG}
    assert len(proxy.seen) == 5


@pytest.mark.parametrize(
    ("name", "why"),
    [("../out", "leaves the folder"), ("/abs", "no relative name"), ("a/../../b", "leaves")],
)
async def test_an_archive_that_leads_out_is_refused_and_leaves_nothing(
    server: FileServer, world: World, name: str, why: str
) -> None:
    server.files["/m.zip"] = WebFile(zipped(**{"fine": b"1", name: b"2"}), "application/zip")
    with pytest.raises(StorageError, match=why) as caught:
        await world.fetch(f"{server.url}/m.zip")
    assert caught.value.message.startswith(
        "Failed to unpack archive file. The file format is not valid."
    )
    assert not list(world.cache.glob("models/*/snapshots/*"))
    assert {p.name for p in world.folder.iterdir()} <= {"cache"}


async def test_a_bomb_is_refused(server: FileServer, tmp_path: Path) -> None:
    bounds = Bounds(files=10, size_bytes=1_000_000, ratio=10)
    world = World(tmp_path, unpacking=bounds)
    bomb = zipped(a=bytes(50_000_000))
    server.files["/m.zip"] = WebFile(bomb, "application/zip")
    with pytest.raises(StorageError, match="unpacks to more than"):
        await world.fetch(f"{server.url}/m.zip")
    many = zipped(**{f"{i}": b"" for i in range(11)})
    server.files["/n.zip"] = WebFile(many, "application/zip")
    with pytest.raises(StorageError, match="more than 10 members"):
        await world.fetch(f"{server.url}/n.zip")


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("hdfs://user/me/model", "HDFS"),
        ("webhdfs://user/me/model", "WebHDFS"),
        ("modelscope://owner/model", "ModelScope"),
        ("https://acc.blob.core.windows.net/c/m", "Azure Storage"),
        ("https://example.com/owner/model.git", "a git repository"),
    ],
)
async def test_what_is_not_there_yet_names_the_way_out(world: World, uri: str, what: str) -> None:
    with pytest.raises(StorageError, match=f"{what} is not there yet") as caught:
        await world.fetch(uri)
    assert "storage: {mirrors:" in caught.value.hint


async def test_an_unknown_scheme_names_the_known_ones(world: World) -> None:
    with pytest.raises(
        StorageError, match="known schemes: file, gs, hf, http, https, oci, pvc, s3"
    ):
        await world.fetch("s4://b/m")
