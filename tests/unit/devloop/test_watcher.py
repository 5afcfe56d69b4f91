"""Saves as batches: what is told, what is not, and what is watched."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kserve_local.devloop import watcher
from kserve_local.devloop.watcher import Watcher, Watching, folders_of, is_ignored, must_poll


class Heard:
    """The batches of a watcher, the first (which says that watching has begun) taken away."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[frozenset[Path]] = asyncio.Queue()

    async def next(self) -> frozenset[Path]:
        return await asyncio.wait_for(self.queue.get(), 20)

    async def until(self, *paths: Path) -> None:
        """Return once all of these were named."""
        left = set(paths)
        while left:
            batch = await self.next()
            if not batch:
                return  # everything is compared, these among them
            left -= batch


@asynccontextmanager
async def watched(watching: Watching) -> AsyncIterator[Heard]:
    heard = Heard()
    task = asyncio.create_task(Watcher(lambda: watching, heard.queue.put_nowait).run())
    try:
        assert await heard.next() == frozenset()
        yield heard
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text("a = 1\n")
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize("poll", ["never", 0.05])
async def test_a_save_is_told_however_it_is_made(project: Path, poll: str | float):
    file = project / "model.py"
    async with watched(Watching(project, frozenset({project}), poll=poll)) as heard:
        file.write_text("a = 22\n")
        await heard.until(file)
        # As most editors do: a new file takes the place of the old one.
        other = project / ".model.py.swp"
        other.write_text("a = 333\n")
        other.replace(file)
        await heard.until(file)
        file.unlink()
        await heard.until(file)


async def test_files_of_editors_and_ignored_ones_are_not_told(project: Path):
    watching = Watching(project, frozenset({project}), ignore=("**/*.ipynb", "data/**"))
    (project / "data").mkdir()
    async with watched(watching) as heard:
        for name in (".model.py.swp", "model.py~", "4913", ".#model.py", "x.ipynb", "data/big"):
            (project / name).write_text("x")
        (project / "model.py").write_text("b = 1\n")
        batch = await heard.next()
        assert batch == {project / "model.py"}


async def test_a_new_folder_is_watched_and_what_came_with_it_is_looked_for(project: Path):
    async with watched(Watching(project, frozenset({project}))) as heard:
        (project / "new").mkdir()
        (project / "new" / "x.py").write_text("1")
        while await heard.next():
            pass  # an empty batch: everything is compared
        (project / "new" / "x.py").write_text("2")
        await heard.until(project / "new" / "x.py")
        shutil.rmtree(project / "new")
        await heard.until(project / "new")


async def test_a_single_file_is_watched_alone(
    project: Path, tmp_path_factory: pytest.TempPathFactory
):
    outside = tmp_path_factory.mktemp("outside")
    file, beside = outside / "isvc.yaml", outside / "other.yaml"
    file.write_text("a: 1")
    async with watched(Watching(project, frozenset({file}))) as heard:
        beside.write_text("x")
        file.write_text("a: 2")
        assert await heard.next() == {file}


async def test_other_roots_are_watched_after_look_again(project: Path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    roots = {project}
    heard = Heard()
    one = Watcher(lambda: Watching(project, frozenset(roots)), heard.queue.put_nowait)
    task = asyncio.create_task(one.run())
    assert await heard.next() == frozenset()
    roots.add(outside)
    one.look_again()
    assert await heard.next() == frozenset()
    (outside / "x.py").write_text("1")
    await heard.until(outside / "x.py")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_where_no_watches_are_left_the_files_are_looked_at(project: Path, monkeypatch):
    import watchfiles

    real = watchfiles.awatch

    async def full(*paths, force_polling, **rest):
        if not force_polling:
            raise OSError(28, "no space left on device")
        async for changes in real(*paths, force_polling=force_polling, **rest):
            yield changes

    monkeypatch.setattr(watchfiles, "awatch", full)
    monkeypatch.setattr(watcher, "_POLL_MS", 50)
    heard = Heard()
    one = Watcher(lambda: Watching(project, frozenset({project})), heard.queue.put_nowait)
    task = asyncio.create_task(one.run())
    assert await heard.next() == frozenset()
    assert one.polls
    (project / "model.py").write_text("looked at")
    await heard.until(project / "model.py")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_environments_state_and_hidden_folders_are_not_watched(project: Path):
    for name in (".git", ".kserve-local/logs", "env", "node_modules/a", "src/pkg", "__pycache__"):
        (project / name).mkdir(parents=True)
    (project / "env" / "pyvenv.cfg").write_text("home = /usr")
    found = {
        os.path.relpath(f, project) for f in folders_of(Watching(project, frozenset({project})))
    }
    assert found == {".", "sub", "src", "src/pkg"}


@pytest.mark.parametrize(
    ("pattern", "path", "ignored"),
    [
        ("**/*.ipynb", "a/b.ipynb", True),
        ("**/*.ipynb", "b.ipynb", True),
        ("*.csv", "b.csv", True),
        ("data/**", "data/x", True),
        ("data/**", "src/data.py", False),
        ("**/__pycache__/**", "a/__pycache__/x", True),
    ],
)
def test_patterns_cover_what_they_say(pattern: str, path: str, ignored: bool):
    assert is_ignored(Path("/p") / path, Path("/p"), (pattern,)) is ignored


MOUNTS = "/dev/sda / ext4 rw 0 0\nserver:/x /mnt/x nfs4 rw 0 0\nC: /mnt/my\\040c 9p rw 0 0\n"


@pytest.mark.parametrize(
    ("path", "poll"), [("/home/me", False), ("/mnt/x/project", True), ("/mnt/my c/p", True)]
)
def test_network_mounts_are_looked_at(path: str, poll: bool):
    assert must_poll(Path(path), MOUNTS) is poll


async def test_a_checkout_of_hundreds_of_files_is_told_in_few_batches(project: Path):
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def run(*args: str) -> None:
        subprocess.run([*git, *args], check=True, capture_output=True)

    names = [project / f"m{n:03}.py" for n in range(300)]
    run("init", "-b", "one")
    for path in names:
        path.write_text("one\n")
    run("add", ".")
    run("commit", "-m", "one")
    run("checkout", "-b", "two")
    for path in names:
        path.write_text("two and more\n")
    run("commit", "-am", "two")
    async with watched(Watching(project, frozenset({project}))) as heard:
        await asyncio.to_thread(run, "checkout", "one")
        await heard.until(*names)
