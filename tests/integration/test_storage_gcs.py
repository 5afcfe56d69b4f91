"""`gs://` against a Google Cloud Storage emulator, with and without faults in between."""

from __future__ import annotations

import base64
import gzip
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from kserve_local.errors import StorageError
from tests.fakes.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.fakes.file_server import FileServer, WebFile, serving
from tests.integration.storage_world import World, content, gcs_server

BIG = os.urandom(2 * 1024 * 1024)


def post(url: str, body: bytes, content_type: str) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": content_type})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        answer.read()


class Bucket:
    """A bucket of one test, behind a proxy."""

    def __init__(self, url: str, proxy: FaultProxy) -> None:
        self.url = url
        self.proxy = proxy
        self.name = f"b-{uuid4().hex[:12]}"
        self.env = {"STORAGE_EMULATOR_HOST": proxy.url}
        body = json.dumps({"name": self.name}).encode()
        post(f"{url}/storage/v1/b?project=p", body, "application/json")

    def add(self, name: str, body: bytes) -> None:
        upload = f"{self.url}/upload/storage/v1/b/{self.name}/o?uploadType=media&name="
        post(upload + quote(name, safe=""), body, "application/octet-stream")

    def uri(self, path: str) -> str:
        return f"gs://{self.name}/{path}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with gcs_server() as url:
        yield url


@pytest.fixture
def bucket(server: str) -> Iterator[Bucket]:
    with fault_proxy(server) as proxy:
        yield Bucket(server, proxy)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_all_objects_below_a_path_arrive(bucket: Bucket, world: World) -> None:
    """Below the folder, not beside it."""
    bucket.add("m/1/model.bin", b"one")
    bucket.add("m/a b+ü.txt", b"two")
    bucket.add("m2/no", b"three")
    fetched = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(fetched.path) == {"1/model.bin": b"one", "a b+ü.txt": b"two"}
    again = await world.fetch(bucket.uri("m"), bucket.env)
    assert (again.path, again.transferred_bytes) == (fetched.path, 0)


async def test_an_object_of_that_name_is_a_single_file(bucket: Bucket, world: World) -> None:
    bucket.add("m/model.bin", b"one")
    fetched = await world.fetch(bucket.uri("m/model.bin"), bucket.env)
    assert content(fetched.path) == {"model.bin": b"one"}


async def test_nothing_there_is_said_as_kserve_says_it(bucket: Bucket, world: World) -> None:
    with pytest.raises(StorageError) as caught:
        await world.fetch(bucket.uri("none"), bucket.env)
    expected = f"Failed to fetch model. No model found in {bucket.uri('none')}."
    assert caught.value.message == expected


async def test_a_missing_bucket_is_said_at_once(bucket: Bucket, world: World) -> None:
    with pytest.raises(StorageError, match=r"^404 GET .*/storage/v1/b/no-such/o: "):
        await world.fetch("gs://no-such/m", bucket.env)
    assert len(bucket.proxy.seen) == 1


async def test_denied_is_said_at_once(bucket: Bucket, world: World) -> None:
    error = {"error": {"code": 403, "message": "anonymous caller does not have access"}}
    body = json.dumps(error).encode()
    bucket.proxy.faults.append(Fault(times=9, status=403, body=body))
    with pytest.raises(StorageError) as caught:
        await world.fetch(bucket.uri("m"), bucket.env)
    assert caught.value.message.startswith("403 GET ")
    assert caught.value.message.endswith("anonymous caller does not have access")
    assert "anonymous access may not read bucket" in caught.value.hint
    assert len(bucket.proxy.seen) == 1


async def test_busy_then_fine(bucket: Bucket, world: World) -> None:
    bucket.add("m/a", b"a")
    bucket.proxy.faults += [
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(match="alt=media", status=503),
    ]
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"a"}


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_broken_transfer_is_made_whole(bucket: Bucket, world: World, how: str) -> None:
    bucket.add("m/big", BIG)
    bucket.proxy.faults.append(Fault(match="alt=media", **{how: 1_500_000}))
    fetched = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(fetched.path) == {"big": BIG}
    media = [s for s in bucket.proxy.seen if "alt=media" in s.path]
    assert [s.headers.get("range") for s in media] == [None, "bytes=1500000-"]


async def test_wrong_bytes_are_fetched_again(bucket: Bucket, world: World) -> None:
    bucket.add("m/a", b"0123456789")
    bucket.proxy.faults.append(Fault(match="alt=media", flip=True))
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"0123456789"}


async def test_an_object_stored_compressed_arrives_plain(bucket: Bucket, world: World) -> None:
    """`contentEncoding: gzip`: checked as it is stored, unpacked as the library does."""
    packed = gzip.compress(b"plain")
    bucket.add("m/a", packed)
    item = {"name": "m/a", "size": str(len(packed)), "contentEncoding": "gzip", "etag": "e"}
    listing = json.dumps({"items": [item]}).encode()
    bucket.proxy.faults += [
        Fault(match="prefix=", status=200, body=listing),
        Fault(match="alt=media", status=200, body=packed),
    ]
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"plain"}
    assert bucket.proxy.seen[-1].headers["accept-encoding"] == "gzip"


async def test_a_service_account_signs_for_a_token(
    bucket: Bucket, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a Secret, as KServe mounts it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    bucket.add("m/a", b"a")
    monkeypatch.setattr("kserve_local.storage.gcs._ENDPOINT", bucket.proxy.url)
    with serving(FileServer()) as tokens:
        token = json.dumps({"access_token": "T0", "expires_in": 3600}).encode()
        tokens.files["/token"] = WebFile(token)
        account = {
            "type": "service_account",
            "client_email": "robot@project",
            "private_key": pem,
            "token_uri": f"{tokens.url}/token",
        }
        path = world.folder / "key.json"
        path.write_text(json.dumps(account))
        env = {"GOOGLE_APPLICATION_CREDENTIALS": str(path)}
        assert content((await world.fetch(bucket.uri("m"), env)).path) == {"a": b"a"}
        assert {s.headers.get("authorization") for s in bucket.proxy.seen} == {"Bearer T0"}
        assert len(tokens.posted) == 1
        signed = parse_qs(tokens.posted[0].decode())["assertion"][0]
        text, _, signature = signed.rpartition(".")
        key.public_key().verify(unpadded(signature), text.encode(), PKCS1v15(), SHA256())
        claims = json.loads(unpadded(text.partition(".")[2]))
        assert claims["iss"] == "robot@project"
        assert claims["aud"] == account["token_uri"]
        assert claims["scope"].endswith("/devstorage.read_only")
        tokens.files["/token"] = WebFile(b'{"error": "invalid_grant"}', status=400)
        with pytest.raises(StorageError, match="robot@project: 400 invalid_grant"):
            await world.fetch(bucket.uri("m"), env)


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def test_a_credentials_file_that_is_missing_is_named(world: World) -> None:
    env = {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"}
    with pytest.raises(StorageError, match=r"File /nowhere/key\.json was not found\."):
        await world.fetch("gs://b/m", env)
