"""`s3://` against moto's S3 server, with and without faults in between."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from kserve_local.errors import StorageError
from tests.fakes.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.integration.storage_world import KEYS, World, content, s3_server

BIG = os.urandom(3 * 1024 * 1024)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Any]]:
    with s3_server() as found:
        yield found


class Bucket:
    """A bucket of one test, behind a proxy."""

    def __init__(self, client: Any, proxy: FaultProxy) -> None:
        self.client = client
        self.proxy = proxy
        self.name = f"b-{uuid4().hex[:12]}"
        client.create_bucket(Bucket=self.name)
        self.env = {**KEYS, "AWS_ENDPOINT_URL": proxy.url}

    def put(self, **files: bytes) -> None:
        for key, body in files.items():
            self.add(key, body)

    def add(self, key: str, body: bytes, **options: Any) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body, **options)

    def uri(self, prefix: str) -> str:
        return f"s3://{self.name}/{prefix}"


@pytest.fixture
def bucket(server: tuple[str, Any]) -> Iterator[Bucket]:
    url, client = server
    with fault_proxy(url) as proxy:
        yield Bucket(client, proxy)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_all_objects_under_a_prefix_arrive_without_it(bucket: Bucket, world: World) -> None:
    """Folder markers and empty objects do not count, odd names do."""
    bucket.add("m/1/model.bin", b"one")
    bucket.add("m/1/a b+c%20ü.txt", b"two")
    bucket.add("m/1/", b"")
    bucket.add("m/empty", b"")
    fetched = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(fetched.path) == {"1/model.bin": b"one", "1/a b+c%20ü.txt": b"two"}
    assert (fetched.cached, fetched.transferred_bytes) == (False, 6)


async def test_a_prefix_is_no_folder_name(bucket: Bucket, world: World) -> None:
    """As in KServe: `m` takes `model2/x` too, under what follows the prefix."""
    bucket.put(**{"model/x": b"1", "model2/x": b"2"})
    fetched = await world.fetch(bucket.uri("model"), bucket.env)
    assert content(fetched.path) == {"x": b"1", "2/x": b"2"}


async def test_an_exact_key_is_a_single_file(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/model.bin": b"one", "m/model.bin.sig": b"two"})
    fetched = await world.fetch(bucket.uri("m/model.bin"), bucket.env)
    assert content(fetched.path) == {"model.bin": b"one"}


def page(keys: list[str], *, more: str = "") -> bytes:
    """Return a listing as S3 writes it."""
    items = "".join(f"<Contents><Key>{k}</Key><Size>1</Size></Contents>" for k in keys)
    truncated = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{truncated}{items}"
        "</ListBucketResult>"
    ).encode()


async def test_more_objects_than_a_page_holds_all_arrive(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a": b"a", "m/b": b"b"})
    bucket.proxy.faults += [
        Fault(match="list-type", status=200, body=page(["m/a"], more="next+one/=")),
        Fault(match="continuation-token=next%2Bone", status=200, body=page(["m/b"])),
    ]
    fetched = await world.fetch(bucket.uri("m/"), bucket.env)
    assert content(fetched.path) == {"a": b"a", "b": b"b"}


async def test_a_key_that_leads_out_is_refused(bucket: Bucket, world: World) -> None:
    bucket.proxy.faults.append(Fault(status=200, body=page(["m/../../../etc/x"])))
    with pytest.raises(StorageError, match="has a name that cannot be a file"):
        await world.fetch(bucket.uri("m/"), bucket.env)


async def test_what_is_no_s3_server_is_named(bucket: Bucket, world: World) -> None:
    bucket.proxy.faults.append(Fault(status=200, body=b"<html>hello"))
    with pytest.raises(StorageError, match="answers no S3 listing"):
        await world.fetch(bucket.uri("m/"), bucket.env)


async def test_the_region_that_a_bucket_is_in_is_found(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a": b"a"})
    moved = {"x-amz-bucket-region": "eu-west-3"}
    bucket.proxy.faults.append(Fault(status=301, headers=moved))
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"a"}
    assert "/eu-west-3/s3/" in bucket.proxy.seen[-1].headers["authorization"]


async def test_a_single_archive_is_unpacked(bucket: Bucket, world: World) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("model/weights.bin")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"1234"))
    bucket.add("m/model.tar.gz", packed.getvalue())
    fetched = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(fetched.path) == {"model/weights.bin": b"1234"}
    assert (await world.fetch(bucket.uri("m"), bucket.env)).cached


async def test_filters_pick_files(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a.bin": b"a", "m/b.txt": b"b", "m/c.bin": b"c"})
    env = {**bucket.env, "STORAGE_ALLOW_PATTERNS": '["*.bin"]', "STORAGE_IGNORE_PATTERNS": "c.*"}
    assert content((await world.fetch(bucket.uri("m"), env)).path) == {"a.bin": b"a"}
    everything = await world.fetch(bucket.uri("m"), bucket.env)
    assert len(content(everything.path)) == 3


async def test_a_second_use_transfers_nothing(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a": b"a", "m/b": b"b"})
    first = await world.fetch(bucket.uri("m"), bucket.env)
    bucket.proxy.forget()
    second = await world.fetch(bucket.uri("m"), bucket.env)
    assert (second.path, second.cached, second.transferred_bytes) == (first.path, True, 0)
    assert [seen.path.partition("?")[0] for seen in bucket.proxy.seen] == [f"/{bucket.name}/"]


async def test_a_change_transfers_what_changed_and_keeps_the_old_folder(
    bucket: Bucket, world: World
) -> None:
    """Replicas may still read the old content."""
    bucket.put(**{"m/a": b"a", "m/b": b"b"})
    first = await world.fetch(bucket.uri("m"), bucket.env)
    bucket.add("m/b", b"changed")
    second = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(second.path) == {"a": b"a", "b": b"changed"}
    assert content(first.path) == {"a": b"a", "b": b"b"}
    assert second.transferred_bytes == len(b"changed")
    assert (second.path / "a").stat().st_ino == (first.path / "a").stat().st_ino


async def test_content_is_read_only(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/d/a": b"a"})
    path = (await world.fetch(bucket.uri("m"), bucket.env)).path
    modes = {p.stat().st_mode & 0o222 for p in (path, path / "d", path / "d" / "a")}
    assert modes == {0}


async def test_no_object_is_said_as_kserve_says_it(bucket: Bucket, world: World) -> None:
    with pytest.raises(StorageError) as caught:
        await world.fetch(bucket.uri("none/here"), bucket.env)
    assert caught.value.message == "Failed to fetch model. No model found in none/here."
    assert bucket.name in caught.value.hint


async def test_a_missing_bucket_is_said_at_once(bucket: Bucket, world: World) -> None:
    """404: botocore's text, one request."""
    with pytest.raises(StorageError) as caught:
        await world.fetch("s3://no-such-bucket-here/m", bucket.env)
    assert caught.value.message == (
        "An error occurred (NoSuchBucket) when calling the ListObjects operation: "
        "The specified bucket does not exist"
    )
    assert len(bucket.proxy.seen) == 1


DENIED = Fault(
    status=403,
    headers={"Content-Type": "application/xml"},
    body=b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
)


async def test_denied_is_said_at_once_with_who_asked(bucket: Bucket, world: World) -> None:
    """403: one request, no retry, and no secret in the text."""
    bucket.proxy.faults.append(Fault(**{**vars(DENIED), "times": 9}))
    with pytest.raises(StorageError) as caught:
        await world.fetch(bucket.uri("m"), bucket.env)
    assert caught.value.message == (
        "An error occurred (AccessDenied) when calling the ListObjects operation: Access Denied"
    )
    assert KEYS["AWS_ACCESS_KEY_ID"] in caught.value.hint
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in caught.value.message + caught.value.hint
    assert len(bucket.proxy.seen) == 1
    assert world.halves == []


async def test_one_denied_object_fails_all_and_leaves_nothing(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a": b"a", "m/secret": b"b"})
    bucket.proxy.faults.append(Fault(**{**vars(DENIED), "match": "/m/secret", "times": 9}))
    with pytest.raises(StorageError, match="Failed to download 1 files: secret: An error occurred"):
        await world.fetch(bucket.uri("m"), bucket.env)
    assert not list(world.cache.glob("models/*/snapshots/*"))


async def test_a_real_refusal_without_credentials_names_the_way_out(
    bucket: Bucket, world: World
) -> None:
    """moto refuses unsigned requests for private objects itself."""
    bucket.put(**{"m/a": b"a"})
    with pytest.raises(StorageError) as caught:
        await world.fetch(bucket.uri("m"), {"AWS_ENDPOINT_URL": bucket.proxy.url})
    assert "no AWS credentials were found" in caught.value.hint


async def test_anonymous_requests_are_not_signed(bucket: Bucket, world: World) -> None:
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    bucket.add("m/a", b"a", ACL="public-read")
    env = {**bucket.env, "awsAnonymousCredential": "true"}
    assert content((await world.fetch(bucket.uri("m"), env)).path) == {"a": b"a"}
    assert not any("authorization" in seen.headers for seen in bucket.proxy.seen)


async def test_too_many_requests_waits_as_asked(bucket: Bucket, world: World) -> None:
    """429 with Retry-After: waited for, then all is well."""
    bucket.put(**{"m/a": b"a"})
    bucket.proxy.faults.append(Fault(match="/m/a", status=429, headers={"Retry-After": "1"}))
    started = time.monotonic()
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"a"}
    assert time.monotonic() - started >= 1.0
    assert any("429" in p.message for p in world.progress)


async def test_a_wait_that_is_too_long_is_not_waited_for(bucket: Bucket, world: World) -> None:
    bucket.proxy.faults.append(Fault(times=9, status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(StorageError, match="429 Too Many Requests, it asks to wait 3600 s"):
        await world.fetch(bucket.uri("m"), bucket.env)
    assert len(bucket.proxy.seen) == 1


async def test_server_errors_are_tried_again_and_then_told(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a": b"a"})
    bucket.proxy.faults.append(Fault(times=2, status=503))
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"a"}
    bucket.proxy.faults.append(Fault(match="other", times=99, status=503))
    with pytest.raises(StorageError, match="503 Service Unavailable"):
        await world.fetch(bucket.uri("other"), bucket.env)


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_a_broken_transfer_goes_on_where_it_ended(
    bucket: Bucket, world: World, how: str
) -> None:
    """Truncated or silent: continued with Range, no byte twice, none missing."""
    bucket.add("m/big", BIG)
    bucket.proxy.faults.append(Fault(match="/m/big", **{how: 2_000_000}))
    fetched = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(fetched.path) == {"big": BIG}
    ranges = [s.headers.get("range") for s in bucket.proxy.seen if "/m/big" in s.path]
    assert ranges == [None, "bytes=2000000-"]
    assert fetched.transferred_bytes == len(BIG)


async def test_a_body_that_stays_short_is_never_accepted(bucket: Bucket, world: World) -> None:
    bucket.add("m/a", b"0123456789")
    bucket.proxy.faults.append(Fault(match="/m/a", times=99, cut=0))
    with pytest.raises(StorageError, match="the connection ended 10 bytes early"):
        await world.fetch(bucket.uri("m"), bucket.env)
    assert not list(world.cache.glob("models/*/snapshots/*"))


async def test_wrong_bytes_are_fetched_again(bucket: Bucket, world: World) -> None:
    """The ETag of a simple object is its MD5."""
    bucket.add("m/a", b"0123456789")
    bucket.proxy.faults.append(Fault(match="/m/a", flip=True))
    assert content((await world.fetch(bucket.uri("m"), bucket.env)).path) == {"a": b"0123456789"}
    bucket.add("n/a", b"0123456789")
    bucket.proxy.faults.append(Fault(match="/n/a", flip=True, times=99))
    with pytest.raises(StorageError, match="another checksum than its source says"):
        await world.fetch(bucket.uri("n"), bucket.env)


async def test_the_next_fetch_uses_what_a_failed_one_got(bucket: Bucket, world: World) -> None:
    bucket.add("m/big", BIG)
    bucket.proxy.faults += [
        Fault(match="/m/big", cut=2_000_000),
        Fault(match="/m/big", times=3, status=503),
    ]
    with pytest.raises(StorageError, match="503"):
        await world.fetch(bucket.uri("m"), bucket.env)
    fetched = await world.fetch(bucket.uri("m"), bucket.env)
    assert content(fetched.path) == {"big": BIG}
    assert fetched.transferred_bytes == len(BIG) - 2_000_000
    assert world.halves == []


async def test_a_source_out_of_reach_serves_what_is_cached(bucket: Bucket, world: World) -> None:
    bucket.put(**{"m/a": b"a"})
    first = await world.fetch(bucket.uri("m"), bucket.env)
    bucket.proxy.close()
    again = await world.fetch(bucket.uri("m"), bucket.env)
    assert (again.path, again.cached) == (first.path, True)
    assert "cannot be reached" in world.progress[-1].message
    with pytest.raises(StorageError, match="Connection refused"):
        await world.fetch(bucket.uri("other"), bucket.env)


async def test_offline_asks_nobody(bucket: Bucket, world: World, tmp_path: Path) -> None:
    bucket.put(**{"m/a": b"a"})
    first = await world.fetch(bucket.uri("m"), bucket.env)
    bucket.proxy.forget()
    offline = World(tmp_path, offline=True)
    assert (await offline.fetch(bucket.uri("m"), bucket.env)).path == first.path
    with pytest.raises(StorageError, match="is not cached, and offline mode is on"):
        await offline.fetch(bucket.uri("other"), bucket.env)
    elsewhere = {**bucket.env, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match=r"is not cached from http://127.0.0.1:9 \(but from"):
        await offline.fetch(bucket.uri("m"), elsewhere)
    assert bucket.proxy.seen == []


async def test_credentials_that_cannot_read_get_nothing_from_the_cache(
    bucket: Bucket, world: World, tmp_path: Path
) -> None:
    """The content is shared, the right to it is proved by each: listing is not enough."""
    bucket.put(**{"m/a": b"a"})
    await world.fetch(bucket.uri("m"), bucket.env)
    other = {**bucket.env, "AWS_ACCESS_KEY_ID": "AKIAOTHER"}
    bucket.proxy.faults.append(Fault(**{**vars(DENIED), "match": "/m/a"}))
    with pytest.raises(StorageError, match="AccessDenied"):
        await world.fetch(bucket.uri("m"), other)
    with pytest.raises(StorageError, match="these credentials have never read it"):
        await World(tmp_path, offline=True).fetch(bucket.uri("m"), other)
    bucket.proxy.forget()
    proved = await world.fetch(bucket.uri("m"), other)
    assert proved.cached
    assert bucket.proxy.seen[-1].headers["range"] == "bytes=0-0"
    assert (await World(tmp_path, offline=True).fetch(bucket.uri("m"), other)).cached


async def test_an_empty_file_needs_no_proof(bucket: Bucket, world: World) -> None:
    """It has no byte to read: S3 answers a range of it with 416 (moto does not)."""
    bucket.put(**{"m/a": b"a", "m/__init__.py": b""})
    await world.fetch(bucket.uri("m"), bucket.env)
    bucket.proxy.forget()
    other = {**bucket.env, "AWS_ACCESS_KEY_ID": "AKIAOTHER"}
    assert (await world.fetch(bucket.uri("m"), other)).cached
    ranged = [seen.path for seen in bucket.proxy.seen if "range" in seen.headers]
    assert [path.rpartition("/")[2] for path in ranged] == ["a"]


async def test_progress_tells_bytes_total_and_rate(bucket: Bucket, world: World) -> None:
    bucket.add("m/big", BIG)
    bucket.proxy.faults += [Fault(match="/m/big", stall=1_000_000), Fault(match="/m/big", stall=9)]
    await world.fetch(bucket.uri("m"), bucket.env)
    some = [p for p in world.progress if p.done]
    assert some
    assert some[0].total == len(BIG)
    assert any(p.rate for p in some)


async def test_a_profile_of_the_user_is_used(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "config").write_text(
        f"[profile lab]\nregion = eu-west-3\nendpoint_url = {bucket.proxy.url}\n"
    )
    (folder / "credentials").write_text(
        "[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = s\n"
    )
    bucket.put(**{"m/a": b"a"})
    world = World(tmp_path, env={"AWS_PROFILE": "lab"})
    await world.fetch(bucket.uri("m"))
    signed = bucket.proxy.seen[0].headers["authorization"]
    assert "Credential=AKIALAB/" in signed
    assert "/eu-west-3/s3/" in signed
    with pytest.raises(StorageError, match=r"The config profile \(nope\) could not be found"):
        await World(tmp_path, env={"AWS_PROFILE": "nope"}).fetch(bucket.uri("m"))
