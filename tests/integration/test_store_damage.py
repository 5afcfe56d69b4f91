"""A database that cannot be trusted is reported in one line and left exactly as it was."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from kserve_local.api.meta import Key
from kserve_local.errors import ServiceUnavailable, StateDamaged, StateLocked
from kserve_local.store.store import open_store


def config_map(name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"payload": "x" * 500},
    }


async def filled(path: Path, count: int = 50) -> None:
    async with open_store(path) as store:
        await asyncio.gather(*(store.create(config_map(f"n{i}")) for i in range(count)))


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}


async def refused(path: Path) -> str:
    before = content(path.parent)
    with pytest.raises(StateDamaged) as caught:
        async with open_store(path):
            pass
    assert content(path.parent) == before
    message = caught.value.message
    assert "\n" not in message
    assert str(path) in message
    assert "untouched" in message
    return message


@pytest.mark.parametrize("where", [0, 16, 100, 4096])
async def test_damaged_structure_is_found(tmp_path: Path, where: int) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    data = bytearray(path.read_bytes())
    data[where : where + 64] = b"\xa5" * 64
    path.write_bytes(data)
    message = await refused(path)
    assert "damaged" in message or "newer" in message


@pytest.mark.parametrize("text", [b'"name":"n17"', b"xxxxxxxx", b'"uid":"'])
async def test_one_flipped_bit_in_an_object_is_found(tmp_path: Path, text: bytes) -> None:
    """It may still be a database and still be JSON."""
    path = tmp_path / "state.db"
    await filled(path)
    data = bytearray(path.read_bytes())
    data[data.rindex(text) + len(text) - 2] ^= 1
    path.write_bytes(data)
    assert "configmaps default/n" in await refused(path)


async def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert "move state.db" in await refused(path)


async def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("this is no database\n" * 100)
    await refused(path)
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    assert "not a database of kserve-local" in await refused(path)


async def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    message = await refused(path)
    assert "newer kserve-local (schema 99" in message
    assert "upgrade" in message


async def test_a_broken_object_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await filled(path)
    database = sqlite3.connect(path)
    database.execute("UPDATE objects SET body = '{\"kind\":' WHERE name = 'n7'")
    database.commit()
    database.close()
    assert "configmaps default/n7" in await refused(path)


async def test_damage_is_found_with_a_log_beside_the_file(tmp_path: Path) -> None:
    """After a kill the log must be replayed to judge the file; the original must not notice."""
    source, path = tmp_path / "a" / "state.db", tmp_path / "b" / "state.db"
    source.parent.mkdir()
    path.parent.mkdir()
    await filled(source)
    async with open_store(source) as store:
        await store.create(config_map("in-the-log"))
        for name in ("state.db", "state.db-wal"):
            shutil.copyfile(source.with_name(name), path.with_name(name))
    undamaged = content(path.parent)
    data = bytearray(undamaged["state.db"])
    data[data.rindex(b"xxxx")] = 0x5A
    path.write_bytes(data)
    await refused(path)
    path.write_bytes(undamaged["state.db"])
    async with open_store(path) as store:
        assert store.find(Key("configmaps", "default", "in-the-log")) is not None


async def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    """A process that dies right after making the file leaves it empty."""
    path = tmp_path / "state.db"
    path.touch()
    await filled(path, 1)


async def test_only_one_process_owns_the_database(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with open_store(path):
        with pytest.raises(StateLocked, match=f"process {os.getpid()}"):
            async with open_store(path):
                pass
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from kserve_local.store.store import open_store\n"
        "async def main():\n"
        "    async with open_store(Path(sys.argv[1])):\n"
        "        print('open', flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"open\n"
    with pytest.raises(StateLocked, match=f"process {other.pid}"):
        async with open_store(path):
            pass
    other.send_signal(signal.SIGKILL)
    await other.communicate()
    async with open_store(path):
        pass


async def test_a_full_disk_fails_writes_and_keeps_what_was_there(tmp_path: Path) -> None:
    """Readers and watchers never see a write that is not on disk; later writes work again."""
    path = tmp_path / "state.db"
    async with open_store(path) as store:
        await store.create(config_map("kept"))
        blocker = sqlite3.connect(path, isolation_level=None, timeout=0)
        blocker.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            *(store.create(config_map(f"lost{i}")) for i in range(3)), return_exceptions=True
        )
        assert {type(r) for r in results} == {ServiceUnavailable}
        assert [o["metadata"]["name"] for o in store.list("configmaps")] == ["kept"]
        blocker.execute("ROLLBACK")
        blocker.close()
        await store.create(config_map("lost0"))
    async with open_store(path) as store:
        names = [o["metadata"]["name"] for o in store.list("configmaps")]
    assert names == ["kept", "lost0"]
