"""Sources on this machine: used where they are; an archive that is all there is gets unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kserve_local.errors import StorageError
from tests.integration.storage_world import World, content


def packed(path: Path, **files: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


async def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("a")
    world = World(tmp_path)
    for uri in ("./model", f"file://{tmp_path}/model", str(tmp_path / "model")):
        assert (await world.fetch(uri)).path == tmp_path / "model"


@pytest.mark.parametrize("where", ["m.zip", "folder/m.zip"])
async def test_an_archive_alone_is_unpacked_once(tmp_path: Path, where: str) -> None:
    """As KServe does with `file://`, also when it is all that a folder holds."""
    archive = packed(tmp_path / where, a="one")
    world = World(tmp_path)
    uri = where.partition("/")[0]
    first = await world.fetch(uri)
    assert content(first.path) == {"a": b"one"}
    assert archive.is_file()
    assert (await world.fetch(uri)).path == first.path
    packed(archive, a="another")
    assert content((await world.fetch(uri)).path) == {"a": b"another"}


async def test_a_mirrored_archive_is_unpacked_and_a_claimed_one_is_not(tmp_path: Path) -> None:
    packed(tmp_path / "mirror" / "m.zip", a="one")
    world = World(
        tmp_path,
        mirrors={"gs://b/": tmp_path / "mirror"},
        claims={"disk": tmp_path / "mirror"},
        offline=True,
    )
    assert content((await world.fetch("gs://b/m.zip")).path) == {"a": b"one"}
    assert [p.name for p in (await world.fetch("pvc://disk/m.zip")).path.iterdir()] == ["m.zip"]


async def test_a_broken_archive_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(b"no zip")
    world = World(tmp_path)
    with pytest.raises(StorageError, match="The file format is not valid"):
        await world.fetch("./m.zip")
    assert world.halves == []
    assert not list(world.cache.glob("models/*/snapshots/*"))
