"""Model images from a registry over HTTP: tokens, platforms, the cache, and what goes wrong."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_local.errors import NotFound, StorageError
from kserve_local.interfaces.backend import Login
from kserve_local.interfaces.storage import EngineImage, Fetched, StorageRequest
from kserve_local.storage import oci
from kserve_local.storage.http import Stop
from tests.fakes.file_server import serving
from tests.fakes.images import Image, RegistryServer, digest_of, layer
from tests.integration.storage_world import World, content

MODEL = Image((layer({"etc/os": b"debian"}), layer({"models": None, "models/model.bin": b"one"})))
NEWER = Image((MODEL.layers[0], layer({"models": None, "models/model.bin": b"two"})))
OTHER = dataclasses.replace(NEWER, architecture="s390x")
LOGIN = Login("ana", "s3cret")


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with serving(RegistryServer()) as server:
        assert isinstance(server, RegistryServer)
        yield server


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return World(tmp_path)


async def fetch(world: World, uri: str, *logins: Login, pull: str | None = None) -> Fetched:
    request = StorageRequest(uri, logins=logins, pull=pull)  # type: ignore[arg-type]  # a literal
    async with asyncio.timeout(30):
        return await world.initializer.fetch(request, world.note)


async def test_the_folder_models_of_an_image_is_the_model(
    registry: RegistryServer, world: World
) -> None:
    registry.add("team/iris", "v1", MODEL)
    fetched = await world.fetch(f"oci://{registry.name}/team/iris:v1")
    assert content(fetched.path) == {"model.bin": b"one"}
    assert fetched.path.stat().st_mode & 0o222 == 0
    assert fetched.transferred_bytes == sum(map(len, MODEL.layers))
    again = await world.fetch(f"oci://{registry.name}/team/iris:v1")
    assert (again.path, again.cached) == (fetched.path, True)
    assert len(registry.blobs_seen) == 2


async def test_a_tag_that_moved_is_fetched_anew(registry: RegistryServer, world: World) -> None:
    uri = f"oci://{registry.name}/iris"
    registry.add("iris", "latest", MODEL)
    first = await world.fetch(uri)
    registry.add("iris", "latest", NEWER)
    second = await world.fetch(uri)
    assert content(second.path) == {"model.bin": b"two"}
    assert content(first.path) == {"model.bin": b"one"}
    fixed = f"{uri}@{digest_of(MODEL.manifest)}"
    assert content((await world.fetch(fixed)).path) == {"model.bin": b"one"}


async def test_of_an_index_this_machine_s_image_is_taken(
    registry: RegistryServer, world: World
) -> None:
    registry.add("iris", "v1", OTHER, MODEL)
    fetched = await world.fetch(f"oci://{registry.name}/iris:v1")
    assert content(fetched.path) == {"model.bin": b"one"}
    registry.add("iris", "v2", OTHER, dataclasses.replace(OTHER, architecture="arm64"))
    with pytest.raises(StorageError) as caught:
        await world.fetch(f"oci://{registry.name}/iris:v2")
    assert caught.value.message.endswith(
        "is not there for linux/amd64; it has linux/arm64, linux/s390x."
    )


@pytest.mark.parametrize("basic", [False, True])
async def test_logins_are_tried_in_order(
    registry: RegistryServer, world: World, basic: bool
) -> None:
    registry.login, registry.basic = "ana:s3cret", basic
    registry.add("iris", "v1", MODEL)
    uri = f"oci://{registry.name}/iris:v1"
    for logins in ((), (Login("ana", "wrong"),)):
        with pytest.raises(StorageError, match="refuses it") as caught:
            await fetch(world, uri, *logins)
        assert f"docker login {registry.name}" in caught.value.hint
        assert "imagePullSecrets" in caught.value.hint
    assert "wrong" not in caught.value.hint
    fetched = await fetch(world, uri, Login("eve", "x"), LOGIN)
    assert content(fetched.path) == {"model.bin": b"one"}
    assert (await fetch(world, uri, LOGIN)).cached
    # Cached, and still not for everybody.
    with pytest.raises(StorageError, match="refuses it"):
        await fetch(world, uri)


@pytest.mark.parametrize("helper", [False, True])
async def test_the_user_s_own_logins_are_used(
    registry: RegistryServer, tmp_path: Path, helper: bool
) -> None:
    registry.login = "ana:s3cret"
    registry.add("iris", "v1", MODEL)
    (tmp_path / ".docker").mkdir()
    auths = {registry.name: {"auth": base64.b64encode(b"ana:s3cret").decode()}}
    config = {"credsStore": "box"} if helper else {"auths": auths}
    (tmp_path / ".docker" / "config.json").write_text(json.dumps(config))
    program = tmp_path / "bin" / "docker-credential-box"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nread -r name\n[ "$1 $name" = "get {registry.name}" ] || exit 1\n'
        'echo \'{"Username": "ana", "Secret": "s3cret"}\'\n'
    )
    program.chmod(0o755)
    world = World(tmp_path, env={"PATH": f"{program.parent}:/usr/bin:/bin"})
    await world.fetch(f"oci://{registry.name}/iris:v1")


async def test_a_mounted_pull_secret_is_used(registry: RegistryServer, world: World) -> None:
    """As KServe mounts it for `oci+fetch://`."""
    registry.login = "ana:s3cret"
    registry.add("iris", "v1", MODEL)
    config = world.folder / "config.json"
    auths = {registry.name: {"username": "ana", "password": "s3cret"}}
    config.write_text(json.dumps({"auths": auths}))
    uri = f"oci://{registry.name}/iris:v1"
    await world.fetch(uri, {"KSERVE_OCI_DOCKER_CONFIG": str(config)})


async def test_a_token_that_expired_is_renewed(registry: RegistryServer, world: World) -> None:
    registry.login = "ana:s3cret"
    registry.add("iris", "v1", MODEL)
    source = oci.OciSource(
        f"oci://{registry.name}/iris:v1",
        {"HOME": str(world.folder)},
        world.initializer._limits,  # type: ignore[arg-type]  # set by World
        Stop(),
        (LOGIN,),
    )
    files = source.listing(print).files
    for _ in range(3):
        registry.expire()
        source.open(files[0], 0).close()
    source.close()
    assert registry.tokens == 4


async def test_what_a_registry_has_not_is_told(registry: RegistryServer, world: World) -> None:
    registry.add("iris", "v1", MODEL)
    with pytest.raises(StorageError, match=r'not found: .* has no "v2" of iris') as caught:
        await world.fetch(f"oci://{registry.name}/iris:v2")
    assert "check name and tag" in caught.value.hint
    for wrong in ("Iris:v1", "iris:", "iris@sha256:1", "iris:v1@x", ""):
        with pytest.raises(StorageError, match="is no image name"):
            await world.fetch(f"oci://{registry.name}/{wrong}")
    for wrong in ("[::1/iris", "a b.c/iris", "registry:port/iris", "../iris"):
        with pytest.raises(StorageError, match="is no image name"):
            await world.fetch(f"oci://{wrong}")


async def test_an_image_without_a_model_is_told_each_time_and_fetched_once(
    registry: RegistryServer, world: World
) -> None:
    registry.add("iris", "v1", Image((layer({"model/a": b""}), layer({"models": None}))))
    for _ in range(2):
        with pytest.raises(StorageError, match="has no folder /models, or nothing is in it"):
            await world.fetch(f"oci://{registry.name}/iris:v1")
    assert len(registry.blobs_seen) == 2


async def test_wrong_bytes_are_not_taken(registry: RegistryServer, world: World) -> None:
    registry.add("iris", "v1", MODEL)
    _, second = map(digest_of, MODEL.layers)
    blobs = registry.repositories["iris"].blobs
    blobs[second] = bytes(len(blobs[second]))
    with pytest.raises(StorageError, match="another checksum"):
        await world.fetch(f"oci://{registry.name}/iris:v1")
    registry.repositories["iris"].tags[digest_of(MODEL.manifest)] = NEWER.manifest
    with pytest.raises(StorageError, match="gives another manifest"):
        await world.fetch(f"oci://{registry.name}/iris@{digest_of(MODEL.manifest)}")


async def test_without_a_registry_the_cached_copy_is_used(
    registry: RegistryServer, tmp_path: Path, world: World
) -> None:
    registry.add("iris", "v1", MODEL)
    uri = f"oci://{registry.name}/iris:v1"
    with pytest.raises(StorageError, match="not cached, and offline mode is on"):
        await World(tmp_path, offline=True).fetch(uri)
    await world.fetch(uri)
    before = len(registry.seen)
    assert content((await World(tmp_path, offline=True).fetch(uri)).path) == {"model.bin": b"one"}
    assert len(registry.seen) == before
    registry.close()
    assert (await world.fetch(uri)).cached
    assert "cannot be reached" in world.progress[-1].message


async def test_plain_http_is_for_this_machine_alone(world: World) -> None:
    """Without TLS a name elsewhere is not even asked, unless it is said to be insecure."""
    image = "registry.invalid:1/iris:v1"
    with pytest.raises(StorageError, match="cannot be resolved"):
        await world.fetch(f"oci://{image}")
    limits = world.initializer._limits
    assert limits is not None
    lenient = {"KSERVE_OCI_INSECURE_REGISTRY": "true"}
    for env, registry, expected in (
        ({}, "127.0.0.1:5000", True),
        ({}, "localhost:5000", True),
        ({}, "[::1]:5000", True),
        ({}, "registry:5000", False),
        (lenient, "registry:5000", True),
    ):
        source = oci.OciSource(
            f"oci://{registry}/iris",
            env,
            limits,
            Stop(),
        )
        assert source._lenient is expected, registry


class Engine:
    """A container engine's images, by name."""

    def __init__(self, **images: tuple[EngineImage, bytes]) -> None:
        self.images = {name.replace("__", "/"): image for name, image in images.items()}
        self.exports = 0

    def find(self, image: str) -> EngineImage | None:
        found = self.images.get(image)
        return found[0] if found else None

    def export(self, id: str, folder: str, into: Path, check: object) -> None:
        assert folder == "models"
        self.exports += 1
        for image, archive in self.images.values():
            if image.id == id and archive:
                into.write_bytes(archive)
                return
        raise NotFound("no such folder")


LOCAL = layer({"models": None, "models/model.bin": b"local"}, packed=False)
MADE_HERE = EngineImage("sha256:" + "a" * 64, frozenset())


async def test_what_was_built_here_is_taken_at_once(tmp_path: Path) -> None:
    engine = Engine(iris=(MADE_HERE, LOCAL), none=(EngineImage("sha256:b", frozenset()), b""))
    world = World(tmp_path, images=engine)
    for _ in range(2):
        assert content((await world.fetch("oci://iris")).path) == {"model.bin": b"local"}
    assert engine.exports == 1
    with pytest.raises(StorageError, match="Image none has no folder /models"):
        await world.fetch("oci://none")
    rebuilt = EngineImage("sha256:" + "c" * 64, frozenset())
    engine.images["iris"] = (rebuilt, layer({"models/new": b"1"}, packed=False))
    assert content((await world.fetch("oci://iris")).path) == {"new": b"1"}
    engine.images["iris"] = (MADE_HERE, LOCAL)
    assert content((await world.fetch("oci://iris")).path) == {"model.bin": b"local"}
    assert engine.exports == 3


async def test_latest_is_compared_with_the_registry(
    registry: RegistryServer, tmp_path: Path
) -> None:
    registry.add("iris", "latest", MODEL)
    image, uri = f"{registry.name}/iris", f"oci://{registry.name}/iris"
    engine = Engine()
    pulled = EngineImage("sha256:1", frozenset({digest_of(MODEL.manifest)}))
    engine.images[image] = (pulled, LOCAL)
    world = World(tmp_path, images=engine)
    # The same there: no layer is fetched that the engine has.
    assert content((await fetch(world, uri)).path) == {"model.bin": b"local"}
    assert registry.blobs_seen == []
    registry.add("iris", "latest", NEWER)
    assert content((await fetch(world, uri, pull="IfNotPresent")).path) == {"model.bin": b"local"}
    assert content((await fetch(world, uri)).path) == {"model.bin": b"two"}
    registry.close()
    assert content((await fetch(world, uri)).path) == {"model.bin": b"local"}
    assert "using the one that the container engine has" in world.progress[-1].message


async def test_offline_the_engine_has_it(tmp_path: Path) -> None:
    pulled = EngineImage("sha256:1", frozenset({"sha256:2"}))
    engine = Engine()
    engine.images["registry.invalid/iris"] = (pulled, LOCAL)
    world = World(tmp_path, images=engine, offline=True)
    assert content((await world.fetch("oci://registry.invalid/iris")).path) == {
        "model.bin": b"local"
    }


async def test_asking_downloads_nothing(registry: RegistryServer, world: World) -> None:
    registry.add("iris", "v1", MODEL)
    uri = f"oci://{registry.name}/iris:v1"
    assert await world.initializer.check(StorageRequest(uri))
    assert not world.cache.exists()
    with pytest.raises(StorageError, match="not found"):
        await world.initializer.check(StorageRequest(f"oci://{registry.name}/iris:v2"))
