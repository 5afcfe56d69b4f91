"""Snapshots of model files: whole, undisturbed, shared, and gone when nobody uses them."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import pytest

from kserve_local.errors import StorageError
from kserve_local.storage import listings, snapshots
from kserve_local.storage.listings import digest_of, listing
from kserve_local.storage.snapshots import Snapshots, name_of


class World:
    """Snapshots with a model of two files, written a while ago."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        self.made = Snapshots(folder / ".kserve-local" / "models")
        self.told: list[str] = []
        self.stop = threading.Event()
        self.write("a", "one")
        self.write("deep/b", "two")

    def write(self, name: str, text: str, *, ago: float = 60.0) -> Path:
        path = self.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        then = time() - ago
        os.utime(path, (then, then))
        return path

    def take(self, source: Path | None = None, holder: str = "pod") -> Path:
        made = self.made.take(source or self.model, holder, self.told.append, self.stop)
        assert made is not None
        return made

    @property
    def left(self) -> list[Path]:
        return sorted(self.made.root.iterdir())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def content(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


def test_a_snapshot_reads_like_the_original_and_cannot_be_written(world: World) -> None:
    (world.model / "empty").mkdir()
    (world.model / "run.sh").write_text("")
    (world.model / "run.sh").chmod(0o700)
    os.utime(world.model / "run.sh", (1, 1))
    made = world.take()
    assert content(made) == {"a": "one", "deep/b": "two", "run.sh": ""}
    assert (made / "empty").is_dir()
    for path in (made, *made.rglob("*")):
        assert not path.stat().st_mode & 0o222
        original = world.model / path.relative_to(made)
        if path.is_file():
            assert path.stat().st_mtime_ns == original.stat().st_mtime_ns
    assert (made / "run.sh").stat().st_mode & 0o111
    assert world.told == []


def test_one_file_is_a_folder_with_that_file(world: World) -> None:
    made = world.take(world.model / "a")
    assert content(made) == {"a": "one"}


def test_what_did_not_change_is_copied_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.take(holder="one")
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "_copied", None)
        assert world.take(holder="two") == first
    world.write("a", "other")
    second = world.take(holder="two")
    assert second != first
    assert (content(first)["a"], content(second)["a"]) == ("one", "other")


def test_the_same_files_at_another_place_are_another_snapshot(world: World) -> None:
    other = world.model.with_name("other")
    shutil.copytree(world.model, other)
    assert world.take(other) != world.take()


def test_replicas_that_start_together_make_one_copy(world: World) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(world.take(holder=str(n))))
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert world.left == [found[0]]


def test_a_replica_is_not_disturbed_by_an_overwrite_in_place(world: World) -> None:
    import mmap

    made = world.take()
    with (made / "a").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        with (world.model / "a").open("r+") as original:
            original.write("XXX")
            original.truncate(1)
        assert view[:] == b"one"


def changing(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any], times: int = 1
) -> list[int]:
    """Let something happen while a copy is made, the first times; return the copies made."""
    copied = Snapshots._copied
    done: list[int] = []

    def slow(self: Snapshots, source: Path, files: Any) -> Path:
        made = copied(self, source, files)
        done.append(len(done))
        if len(done) <= times:
            change()
        return made

    monkeypatch.setattr(Snapshots, "_copied", slow)
    return done


def test_a_write_while_copying_starts_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = changing(monkeypatch, lambda: world.write("a", "new", ago=30))
    made = world.take()
    assert content(made) == {"a": "new", "deep/b": "two"}
    assert len(copies) == 2
    assert world.left == [made]


def test_a_file_that_vanishes_while_copying_starts_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([True])

    def vanishing(path: Path) -> Any:
        files = listing(path)
        if next(seen, False):
            (world.model / "a").unlink()
        return files

    monkeypatch.setattr(snapshots, "listing", vanishing)
    made = world.take()
    assert content(made) == {"deep/b": "two"}
    assert world.left == [made]


def test_a_trainer_that_writes_for_a_second_is_waited_for(world: World) -> None:
    """Two files belong together; each moment in between is torn."""
    begun = threading.Event()

    def train() -> None:
        for step in range(20):
            for name in ("a", "deep/b"):
                (world.model / name).write_text(f"{step}")
                begun.set()
                sleep(0.025)

    trainer = threading.Thread(target=train)
    trainer.start()
    begun.wait()
    made = world.take()
    trainer.join()
    assert content(made) == {"a": "19", "deep/b": "19"}
    assert [line for line in world.told if "waiting until it is complete" in line] == world.told


def test_one_who_never_stops_writing_is_not_waited_for_forever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.made.patience = 0.5
    copies = changing(monkeypatch, lambda: world.write("a", str(monotonic())), times=10**6)
    made = world.take()
    assert copies
    assert "the model may be incomplete" in world.told[-1]
    assert world.left == [made]
    # It may be torn, so nobody else is given it.
    assert made.name != name_of(world.model, listing(world.model) or ())


def test_nobody_waits_any_more(world: World) -> None:
    world.stop.set()
    with pytest.raises(StorageError, match="nobody waits"):
        world.made.take(world.model, "pod", world.told.append, world.stop)


def test_blocks_are_shared_where_the_file_system_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size does not matter then."""

    def clone(target: int, request: int, source: int) -> None:
        assert request == 0x40049409
        os.write(target, os.pread(source, 100, 0))

    monkeypatch.setattr("fcntl.ioctl", clone)
    monkeypatch.setattr(snapshots, "MAX_COPIED", 3)
    assert content(world.take()) == {"a": "one", "deep/b": "two"}


@pytest.mark.parametrize(
    "error", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM]
)
def test_without_shared_blocks_bytes_are_copied_up_to_a_limit(
    world: World, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.ioctl", refuse)
    monkeypatch.setattr(snapshots, "MAX_COPIED", 6)
    assert content(world.take()) == {"a": "one", "deep/b": "two"}
    world.write("a", "more")
    assert world.made.take(world.model, "pod", world.told.append, world.stop) is None
    assert "is used where it lies" in world.told[-1]
    assert len(world.left) == 1


def test_links_are_followed_and_what_is_no_file_is_left_out(world: World) -> None:
    beside = world.model.with_name("blobs")
    beside.mkdir()
    (beside / "weights").write_text("three")
    (world.model / "c").symlink_to("../blobs/weights")
    (world.model / "folder").symlink_to(beside)
    (world.model / "nowhere").symlink_to("missing")
    (world.model / "round").symlink_to(world.model)
    os.mkfifo(world.model / "pipe")
    os.utime(beside / "weights", (1, 1))
    made = world.take()
    assert content(made) == {
        "a": "one", "deep/b": "two", "c": "three", "folder/weights": "three",
    }  # fmt: skip
    assert not any(p.is_symlink() for p in made.rglob("*"))
    (beside / "weights").write_text("other")
    assert content(world.take())["c"] == "other"


def test_a_project_with_its_own_state_in_it(world: World, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("")
    made = world.take(tmp_path)
    assert content(made) == {"model/a": "one", "model/deep/b": "two"}
    elsewhere = Snapshots(tmp_path / "state" / "models")
    assert elsewhere.take(tmp_path, "pod", world.told.append, world.stop) is None
    assert "holds the state" in world.told[-1]


def test_more_files_than_can_be_watched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MAX_FILES", 2)
    assert listing(world.model) is None
    assert world.made.take(world.model, "pod", world.told.append, world.stop) is None
    assert "files and is used where it lies" in world.told[-1]


def test_a_file_that_cannot_be_read_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def guarded(self: Path, *args: Any, **more: Any) -> Any:
        if self == world.model / "deep/b":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *args, **more)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(StorageError) as raised:
        world.take()
    assert str(raised.value) == f'"{world.model}/deep/b" cannot be copied: Permission denied'
    assert raised.value.hint.startswith("make it readable")
    assert world.left == []


def test_a_full_disk_leaves_nothing_half_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(StorageError, match="No space left on device") as raised:
        world.take()
    assert raised.value.hint == "free some space"
    assert world.left == []


def test_a_snapshot_goes_with_the_last_pod_that_uses_it(world: World) -> None:
    old = world.take(holder="one")
    assert world.take(holder="two") == old
    world.write("a", "new")
    new = world.take(holder="three")
    world.made.collect({"two", "three"}, ())
    assert world.left == sorted([old, new])
    world.made.collect({"three"}, {"one", "two", "three"})
    assert world.left == [new]
    # Nothing runs, but it may again: what is newest is there for the next start.
    world.made.collect((), {"three"})
    assert world.take(holder="four") == new
    world.made.collect((), ())
    assert world.left == []


def test_a_later_supervisor_keeps_what_pods_use_and_nothing_else(world: World) -> None:
    old = world.take()
    world.write("a", "new")
    new = world.take()
    (world.made.root / ".partial-1" / "x").mkdir(parents=True)
    later = Snapshots(world.made.root)
    later.clean()
    later.meet("pod", [new, world.model])
    later.collect({"pod"}, ())
    assert world.left == [new]
    assert not old.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.write("a", "two", ago=59),
        lambda w: w.write("a", "longer"),
        lambda w: w.write("c", ""),
        lambda w: (w.model / "a").unlink(),
        lambda w: (w.model / "a").rename(w.model / "d"),
        lambda w: (w.model / "empty").mkdir(),
        lambda w: os.replace(shutil.copy2(w.model / "a", w.model / "x"), w.model / "a"),
    ],
)
def test_a_digest_tells_of_every_kind_of_write(
    world: World, change: Callable[[World], Any]
) -> None:
    before = digest_of(listing(world.model) or ())
    assert before == digest_of(listing(world.model) or ())
    change(world)
    after = digest_of(listing(world.model) or ())
    assert before != after
    assert len(after) == 16


def test_listing_what_is_not_there(world: World) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        listing(world.model / "nothing")
