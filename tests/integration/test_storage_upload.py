"""Objects that loggers write, against moto's S3 server and a Google Cloud Storage emulator."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kserve_local.errors import StorageError
from kserve_local.storage.http import Limits
from kserve_local.storage.upload import upload
from tests.integration.storage_world import KEYS, gcs_server, s3_server

FAST = Limits(connect=1.0, attempts=1)


def put(uri: str, data: bytes = b"{}", env: dict[str, str] | None = None, **more: Any) -> str:
    given: dict[str, Any] = {"mirrors": {}, "offline": False, "limits": FAST, **more}
    return upload(uri, data, user_env={"HOME": "/nonexistent"}, env=env or {}, **given)


def test_s3_with_the_keys_of_the_agent() -> None:
    body = os.urandom(100_000)
    with s3_server() as (url, client):
        client.create_bucket(Bucket="logs")
        uri = "s3://logs/a b/default/iris/predictor/daily/id-request.json"
        assert put(uri, body, {**KEYS, "AWS_ENDPOINT_URL": url}) == uri
        found = client.get_object(Bucket="logs", Key=uri.removeprefix("s3://logs/"))
        assert found["Body"].read() == body


def test_a_bucket_that_is_not_there_is_told_in_botocores_words() -> None:
    with s3_server() as (url, _), pytest.raises(StorageError) as error:
        put("s3://none-such/x", env={**KEYS, "AWS_ENDPOINT_URL": url})
    assert "(NoSuchBucket) when calling the PutObject operation" in error.value.message


def test_google_cloud_storage() -> None:
    with gcs_server() as url:
        body = urllib.request.Request(
            f"{url}/storage/v1/b", b'{"name": "logs"}', {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(body, timeout=10).close()
        put("gs://logs/default/iris/id-request.csv", b"a,b\n", {"STORAGE_EMULATOR_HOST": url})
        name = quote("default/iris/id-request.csv", safe="")
        with urllib.request.urlopen(
            f"{url}/storage/v1/b/logs/o/{name}?alt=media", timeout=10
        ) as answer:
            assert answer.read() == b"a,b\n"


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
def test_a_mirror_gets_the_object_as_a_file(scheme: str, tmp_path: Path) -> None:
    where = put(f"{scheme}://b/x/y.json", b"1", mirrors={f"{scheme}://b/": tmp_path})
    assert where == str(tmp_path / "x" / "y.json")
    assert (tmp_path / "x" / "y.json").read_bytes() == b"1"
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["y.json"]


@pytest.mark.parametrize("name", ["../../x", "a/../../../x", "a/../x"])
def test_a_uri_cannot_leave_its_mirror(name: str, tmp_path: Path) -> None:
    """Nor does it go to the real bucket then. The end of the name is a client's `Ce-Id`."""
    with s3_server() as (url, client):
        client.create_bucket(Bucket="confined")
        with pytest.raises(StorageError, match=r'".." in an object'):
            put(
                f"s3://confined/pre/{name}",
                env={**KEYS, "AWS_ENDPOINT_URL": url},
                mirrors={"s3://confined/": tmp_path / "in"},
            )
        assert "Contents" not in client.list_objects_v2(Bucket="confined")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "more", "text"),
    [
        ("abfs://c@a/x", {}, "nothing here writes abfs://"),
        ("s3://b/x", {"offline": True}, "offline"),
        ("s3://b/x", {"env": {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}}, "refused"),
    ],
)
def test_what_is_not_written_names_the_way_out(uri: str, more: Any, text: str) -> None:
    with pytest.raises(StorageError) as error:
        put(uri, **more)
    assert text in error.value.message
    assert "mirrors" in error.value.hint
