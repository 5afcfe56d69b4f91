"""Attacks on the Kubernetes API: bombs, wrong types, lost updates, addresses that are not ours."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import ssl
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kserve_local.api.meta import Key
from kserve_local.apiserver import protocol
from kserve_local.store.store import open_store
from tests.integration.apiserver_world import TOKEN, World, running

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def send(
    world: World, method: str, path: str, body: Any = None, kind: str = "application/json"
) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}"
    status, _, answer = await world.raw(f"{head}\nContent-Type: {kind}", data)
    return status, json.loads(answer)


@pytest.mark.parametrize(
    "metadata",
    [
        {"ownerReferences": "x"},
        {"ownerReferences": [1]},
        {"ownerReferences": [{"uid": ["a"]}]},
        {"managedFields": "x"},
        {"managedFields": [{"fieldsV1": 1}]},
        {"generateName": 5},
    ],
)
async def test_metadata_of_a_wrong_type_is_refused_and_stops_nobody(
    world: World, metadata: dict[str, Any]
) -> None:
    name = {} if "generateName" in metadata else {"name": "bad"}
    status, answer = await send(world, "POST", MAPS, {"metadata": {**name, **metadata}})
    assert status in (400, 422), answer
    status, _ = await send(world, "POST", MAPS, {"metadata": {"name": "good"}})
    assert status == 201
    status, answer = await send(
        world, "PATCH", f"{MAPS}/good", {"metadata": metadata}, "application/merge-patch+json"
    )
    assert status in (200, 400, 422), answer
    status, answer = await send(world, "GET", MAPS)
    assert [i["metadata"]["name"] for i in answer["items"]] == ["good"]


async def test_a_store_with_owner_references_of_a_wrong_type_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with open_store(path) as store:
        await store.create(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "d"}}
        )
    with sqlite3.connect(path) as database:
        (body,) = database.execute("SELECT body FROM objects").fetchone()
        obj = json.loads(body)
        obj["metadata"]["ownerReferences"] = ["x", {"uid": [1]}]
        body = json.dumps(obj).encode()
        database.execute("UPDATE objects SET body = ?, checksum = ?", (body, zlib.crc32(body)))
    database.close()
    key = Key("configmaps", "d", "a")
    async with open_store(path) as store:
        assert store.find(key) is not None
        await store.delete(key)
        assert store.find(key) is None


async def test_an_observer_that_fails_keeps_no_writer_waiting(tmp_path: Path) -> None:
    async with open_store(tmp_path / "state.db") as store:

        def fail(_: object) -> None:
            raise ValueError("an observer's own fault")

        store.on_commit(fail)
        for name in ("a", "b"):
            metadata = {"name": name, "namespace": "d"}
            await store.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        assert store.count("configmaps") == 2


async def test_a_json_patch_cannot_double_itself_out_of_memory(world: World) -> None:
    await send(world, "POST", MAPS, {"metadata": {"name": "a"}})
    patch = [{"op": "add", "path": "/x", "value": ["a" * 10]}]
    patch += [{"op": "copy", "from": "/x", "path": "/x/-"}] * 40
    status, answer = await send(world, "PATCH", f"{MAPS}/a", patch, "application/json-patch+json")
    assert (status, answer["reason"]) == (413, "RequestEntityTooLarge")
    patch = [{"op": "test", "path": "/kind", "value": "ConfigMap"}] * 10_001
    status, _ = await send(world, "PATCH", f"{MAPS}/a", patch, "application/json-patch+json")
    assert status == 413


async def test_yaml_aliases_cannot_grow_without_bound(world: World) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    body = "\n".join(lines).encode()
    status, answer = await send(world, "POST", MAPS, body, "application/yaml")
    assert status == 400
    assert "excessive aliasing" in answer["message"]
    body = b"metadata: {name: c, annotations: &a {k: *a}}"
    assert (await send(world, "POST", MAPS, body, "application/yaml"))[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{MAPS}?watch=1&resourceVersion=%C2%B2", None),
        ("GET", f"{MAPS}?watch=1&resourceVersion={'9' * 5000}", None),
        ("DELETE", f"{MAPS}/a", {"preconditions": [1]}),
        ("DELETE", f"{MAPS}/a", {"preconditions": {"resourceVersion": "x"}}),
        ("DELETE", f"{MAPS}/a", {"gracePeriodSeconds": "inf"}),
    ],
)
async def test_a_number_that_is_none_is_the_callers_fault(
    world: World, method: str, path: str, body: Any
) -> None:
    await send(world, "POST", MAPS, {"metadata": {"name": "a"}})
    status, answer = await send(world, method, path, body)
    assert status in (400, 422), answer
    assert (await send(world, "GET", f"{MAPS}/a"))[0] == 200


DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


async def make_deployment(world: World) -> dict[str, Any]:
    labels = {"app": "d"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    status, made = await send(world, "POST", DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": spec})
    assert status == 201, made
    return made


@pytest.mark.parametrize("subresource", ["scale", "status"])
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_a_stale_resource_version_is_a_conflict_at_subresources_too(
    world: World, subresource: str, method: str
) -> None:
    made = await make_deployment(world)
    old = made["metadata"]["resourceVersion"]
    merge = "application/merge-patch+json"
    path = f"{DEPLOYMENTS}/d"
    status, _ = await send(world, "PATCH", path, {"spec": {"paused": True}}, merge)
    assert status == 200
    wish = {"spec": {"replicas": 5}} if subresource == "scale" else {"status": {"replicas": 5}}
    body: dict[str, Any] = {"metadata": {"name": "d", "resourceVersion": old}, **wish}
    if method == "PUT" and subresource == "scale":
        body |= {"apiVersion": "autoscaling/v1", "kind": "Scale"}
    kind = merge if method == "PATCH" else "application/json"
    status, answer = await send(world, method, f"{path}/{subresource}", body, kind)
    assert status == 409, answer
    del body["metadata"]["resourceVersion"]
    status, answer = await send(world, method, f"{path}/{subresource}", body, kind)
    assert status == 200, answer


@pytest.mark.parametrize(
    "host", ["[::1]evil.example", "[::1]:x", "localhost.evil.example", "127.0.0.1@evil.example"]
)
async def test_a_host_that_only_begins_like_ours_is_refused(world: World, host: str) -> None:
    head = f"GET /api HTTP/1.1\nHost: {host}\nAuthorization: Bearer {TOKEN}"
    assert (await world.raw(head))[0] == 403


@pytest.mark.parametrize("path", ["//healthz", "/healthz/../api", "/healthz%2f..%2fapi", "/x"])
async def test_no_path_comes_around_the_token(world: World, path: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        assert (await world.raw(f"{method} {path} HTTP/1.1\nHost: localhost"))[0] == 401


async def connect(world: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(world.access.server.rpartition(":")[2])
    context = ssl.create_default_context(cadata=world.access.ca)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /api HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"GET /",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
)
async def test_a_head_without_end_is_cut(world: World, begin: bytes) -> None:
    reader, writer = await connect(world)
    writer.write(begin)
    try:
        for _ in range(64):  # 16 times what may be there
            writer.write(b"a" * 64 * 1024)
            await writer.drain()
    except ConnectionError:
        pass
    await read_to_end(reader)  # the connection is ended, whatever the answer
    writer.close()
    assert (await world.raw("GET /healthz HTTP/1.1\nHost: localhost"))[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /api HTTP/1.1\r\nHost: "])
async def test_a_head_that_never_comes_is_not_waited_for(
    world: World, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.1)
    reader, writer = await connect(world)
    writer.write(sent)
    assert await read_to_end(reader) == b""
    writer.close()


async def test_the_next_request_of_a_connection_has_its_own_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.2)
    reader, writer = await connect(world)
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(3):
        writer.write(request)
        async with asyncio.timeout(20):
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"ok"
        await asyncio.sleep(0.3)  # longer than a head may take: idle is no head
    writer.write(request[:20])
    assert await read_to_end(reader) == b""
    writer.close()
