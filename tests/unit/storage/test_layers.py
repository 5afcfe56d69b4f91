"""Layers upon each other: whiteouts, links, and members that must not be unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from kserve_local.errors import StorageError
from kserve_local.storage.archives import Bounds
from kserve_local.storage.http import Stop, Stopped
from kserve_local.storage.layers import unpack
from tests.fakes.images import Entry, hard_link, layer

SMALL = Bounds(files=20, size_bytes=1_000_000, ratio=10)


def unpacked(tmp_path: Path, *layers: Mapping[str, Entry], packed: bool = True) -> Path:
    """Return the folder that `/models` of an image of these layers is."""
    into = tmp_path / "files"
    into.mkdir()
    paths = []
    for number, entries in enumerate(layers):
        path = into / f"{number}.layer"
        path.write_bytes(layer(entries, packed=packed))
        paths.append(path)
    unpack(paths, "models", into, SMALL, Stop())
    return into


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


BASE: dict[str, Entry] = {"models": None, "models/a": b"1", "models/d/x": b"x", "models/d/y": b"y"}

# Each case: layers above BASE, and what is left of it.
UPPER: dict[str, tuple[list[dict[str, Entry]], dict[str, bytes]]] = {
    "nothing": ([{"etc/passwd": b"root"}], {"a": b"1", "d/x": b"x", "d/y": b"y"}),
    "replaced": ([{"models/a": b"2"}], {"a": b"2", "d/x": b"x", "d/y": b"y"}),
    "a file goes": ([{"models/.wh.a": b""}], {"d/x": b"x", "d/y": b"y"}),
    "a folder goes": ([{"models/.wh.d": b""}], {"a": b"1"}),
    "all goes": ([{".wh.models": b""}], {}),
    "all goes, opaque": ([{"models/.wh..wh..opq": b""}, {"models/b": b"3"}], {"b": b"3"}),
    # A whiteout is about the layers below, wherever it stands in its own.
    "gone and new": (
        [{"models/a": b"2", "models/.wh.a": b"", "models/d/z": b"z", "models/d/.wh..wh..opq": b""}],
        {"a": b"2", "d/z": b"z"},
    ),
    "a file for a folder": ([{"models/d": b"now a file"}], {"a": b"1", "d": b"now a file"}),
    "a folder for a file": (
        [{"models/a": None, "models/a/b": b"4"}],
        {"a/b": b"4", "d/x": b"x", "d/y": b"y"},
    ),
    "back again": (
        [{"models/.wh.d": b""}, {"models/d/x": b"new"}],
        {"a": b"1", "d/x": b"new"},
    ),
    "other names": (
        [{"./models/./a": b"5", "/models/b": b"6"}],
        {"a": b"5", "b": b"6", "d/x": b"x", "d/y": b"y"},
    ),
    "bookkeeping": ([{"models/.wh..wh.plnk": None}], {"a": b"1", "d/x": b"x", "d/y": b"y"}),
}


@pytest.mark.parametrize("case", UPPER)
@pytest.mark.parametrize("packed", [True, False])
def test_a_layer_changes_what_is_below(tmp_path: Path, case: str, packed: bool) -> None:
    above, expected = UPPER[case]
    assert files(unpacked(tmp_path, BASE, *above, packed=packed)) == expected


def test_the_rest_of_the_image_is_not_unpacked(tmp_path: Path) -> None:
    # Neither refused nor counted: it is somebody's operating system.
    system: dict[str, Entry] = {f"usr/{n}": b"" for n in range(SMALL.files + 1)}
    device = tarfile.TarInfo("dev/null")
    device.type = tarfile.CHRTYPE
    folder = unpacked(tmp_path, {**system, "dev/null": device, "bin": "/usr/bin", **BASE})
    assert {p.name for p in folder.iterdir()} == {"a", "d"}
    assert {p.name for p in tmp_path.iterdir()} == {"files"}


def test_an_image_without_the_folder_gives_nothing(tmp_path: Path) -> None:
    assert files(unpacked(tmp_path, {"model/a": b"1", "modelsx/b": b"2"})) == {}


def test_links_stay_links(tmp_path: Path) -> None:
    folder = unpacked(
        tmp_path,
        BASE,
        {"models/s/link": "../d/x", "models/hard": hard_link("models/hard", "models/a")},
        {"models/d/x": b"changed"},
    )
    assert (folder / "s" / "link").readlink() == Path("../d/x")
    assert (folder / "s" / "link").read_bytes() == b"changed"
    assert (folder / "hard").stat().st_ino == (folder / "a").stat().st_ino


def test_programs_stay_programs(tmp_path: Path) -> None:
    member = tarfile.TarInfo("models/run")
    member.mode = 0o4755
    folder = unpacked(tmp_path, {"models/run": member, "models/a": b""})
    assert [(folder / n).stat().st_mode & 0o7777 for n in ("run", "a")] == [0o755, 0o644]


def special(name: str, kind: bytes) -> dict[str, Entry]:
    member = tarfile.TarInfo(name)
    member.type = kind
    return {name: member}


UNSAFE: dict[str, tuple[dict[str, Entry], str]] = {
    "up": ({"models/../../out": b"x"}, "no name of a file"),
    "deep": ({"models/" + "a/" * 300 + "b": b"x"}, "no name of a file"),
    "absolute link": ({"models/l": "/etc/passwd"}, "leads out of the folder"),
    "link up": ({"models/d/l": "../../../x"}, "leads out of the folder"),
    "through a link": ({"models/l": "d", "models/l/x": b"x"}, "goes through a file or a link"),
    "through a file": ({"models/a": b"x", "models/a/x": b"x"}, "goes through a file or a link"),
    "hard link out": (
        {"etc/x": b"x", "models/h": hard_link("models/h", "etc/x")},
        "a link to what is not in /models",
    ),
    "hard link up": ({"models/h": hard_link("models/h", "../x")}, "no name of a file"),
    "a folder that is a link": ({"models": "data"}, "/models is no folder"),
    "pipe": (special("models/p", tarfile.FIFOTYPE), "a device or a pipe"),
    "device": (special("models/p", tarfile.BLKTYPE), "a device or a pipe"),
    "too many": ({f"models/{n}": b"" for n in range(21)}, "more than 20 members"),
    "too large": ({"models/a": bytes(2_000_000)}, "unpacks to"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_could_leave_the_folder_is_refused_and_leaves_nothing(
    tmp_path: Path, case: str
) -> None:
    entries, why = UNSAFE[case]
    with pytest.raises(StorageError, match=why) as caught:
        unpacked(tmp_path, entries)
    assert "the image" in caught.value.message
    assert "/models" in caught.value.hint
    assert {p.name for p in tmp_path.iterdir()} == {"files"}
    assert {p.suffix for p in (tmp_path / "files").iterdir()} <= {".layer"}


def test_a_folder_takes_the_place_of_a_lower_link(tmp_path: Path) -> None:
    """Nothing is written through it."""
    folder = unpacked(tmp_path, BASE, {"models/l": "d"}, {"models/l/y": b"new"})
    assert files(folder) == {"a": b"1", "d/x": b"x", "d/y": b"y", "l/y": b"new"}


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "files" / "0.layer"
    path.parent.mkdir()
    path.write_bytes(b"not a tar archive" * 100)
    with pytest.raises(StorageError, match="layer 1 of 1 of the image"):
        unpack([path], "models", path.parent, SMALL, Stop())
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    with pytest.raises(StorageError, match=r"zstd|layer 1 of 1"):
        unpack([path], "models", path.parent, SMALL, Stop())


def test_it_stops_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "files" / "0.layer"
    path.parent.mkdir()
    path.write_bytes(layer(BASE))
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        unpack([path], "models", path.parent, SMALL, stop)
