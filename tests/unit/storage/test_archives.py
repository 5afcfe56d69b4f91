"""What archives may do: only make plain files, folders and links inside their folder."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kserve_local.errors import StorageError
from kserve_local.storage.archives import Bounds, kind_of, unpack
from kserve_local.storage.http import Stop, Stopped

SMALL = Bounds(files=50, size_bytes=100_000, ratio=1)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def tar(path: Path, *members: tarfile.TarInfo, body: bytes = b"data") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for info in members:
            plain = info.type == tarfile.REGTYPE
            info.size = len(body) if plain else 0
            archive.addfile(info, io.BytesIO(body) if plain else None)
    return path


def found(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def refused(archive: Path, why: str, bounds: Bounds = SMALL) -> None:
    """The archive is refused as a whole and its folder is as it was."""
    into = archive.parent / "into"
    into.mkdir(exist_ok=True)
    before = found(archive.parent)
    with pytest.raises(StorageError, match=why) as caught:
        unpack(archive, into, bounds, Stop())
    assert caught.value.message.startswith(
        "Failed to unpack archive file. The file format is not valid."
    )
    assert found(archive.parent) == before


names = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "link", "/", "c\0d", "ü"]), min_size=1, max_size=5
).map("/".join)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)


@given(st.lists(st.tuples(names, kinds, names), max_size=8))
@example([("a", tarfile.SYMTYPE, "a"), ("a/a/a", tarfile.SYMTYPE, "..")])
def test_no_tar_touches_anything_outside(members: list[tuple[str, bytes, str]]) -> None:
    """Whatever it holds: either all of it lies inside, or nothing is left."""
    with TemporaryDirectory() as place:
        root = Path(place)
        (root / "secret").write_text("keep")
        into = root / "deep" / "into"
        into.mkdir(parents=True)
        archive = into / "m.tar"
        try:
            tar(archive, *(member(*m) for m in members))
        except ValueError:
            return  # tarfile cannot write such a name either
        try:
            unpack(archive, into, SMALL, Stop())
        except StorageError:
            assert found(into) == {"m.tar"}
        real = os.path.realpath(into)
        for path in into.rglob("*"):
            assert os.path.realpath(path) == real or os.path.realpath(path).startswith(real + "/")
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        assert found(root) - {f"deep/into/{p}" for p in found(into)} == {
            "secret",
            "deep",
            "deep/into",
        }
        assert (root / "secret").read_text() == "keep"


@given(st.lists(st.tuples(names, st.sampled_from([0, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO]))))
def test_no_zip_touches_anything_outside(members: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as place:
        into = Path(place) / "into"
        into.mkdir()
        archive = into / "m.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for index, (name, kind) in enumerate(members):
                info = zipfile.ZipInfo(f"{name}{index}")
                info.external_attr = (kind | 0o644) << 16
                with warnings.catch_warnings(action="ignore"):  # the same name twice
                    packed.writestr(info, "../../secret")
        try:
            unpack(archive, into, SMALL, Stop())
        except StorageError:
            assert found(into) == {"m.zip"}
        real = os.path.realpath(into)
        for path in into.rglob("*"):
            assert os.path.realpath(path).startswith(real + "/")
        assert {p.name for p in Path(place).iterdir()} == {"into"}


@given(st.binary(max_size=2000), st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.bz2"]))
def test_arbitrary_bytes_are_refused_cleanly(body: bytes, suffix: str) -> None:
    with TemporaryDirectory() as place:
        archive = Path(place) / f"m{suffix}"
        archive.write_bytes(body)
        try:
            unpack(archive, Path(place), SMALL, Stop())
        except StorageError:
            assert found(Path(place)) == {archive.name}


def test_links_inside_are_kept(tmp_path: Path) -> None:
    """Symbolic ones in any order, hard ones to what came before."""
    archive = tar(
        tmp_path / "m.tar",
        member("latest", tarfile.SYMTYPE, "v1/model"),
        member("v1/model"),
        member("v1/same", tarfile.LNKTYPE, "v1/model"),
    )
    unpack(archive, tmp_path, SMALL, Stop())
    assert (tmp_path / "latest").read_bytes() == b"data"
    assert (tmp_path / "v1" / "same").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([member("l", tarfile.SYMTYPE, "/etc/passwd")], "leads out"),
        ([member("l", tarfile.SYMTYPE, "../x")], "leads out"),
        # Each harmless when read as text; together they climb.
        (
            [
                member("a/b/", tarfile.DIRTYPE),
                member("a/b/up", tarfile.SYMTYPE, "../.."),
                member("out", tarfile.SYMTYPE, "a/b/up/../x"),
            ],
            "leads out",
        ),
        ([member("l", tarfile.SYMTYPE, "."), member("l/file")], "a link and something else"),
        # The first leads nowhere until the second bends it upwards; the third would go there.
        (
            [
                member("a", tarfile.SYMTYPE, "b/.."),
                member("b", tarfile.SYMTYPE, "."),
                member("a/evil", tarfile.SYMTYPE, "x"),
            ],
            "goes through a link",
        ),
        ([member("h", tarfile.LNKTYPE, "../../etc/passwd")], "leaves the folder"),
        ([member("h", tarfile.LNKTYPE, "later"), member("later")], "not in the archive"),
        ([member("d", tarfile.CHRTYPE)], "a device or a pipe"),
        ([member("a"), member("a/b")], "a file and a folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, members: list[tarfile.TarInfo], why: str) -> None:
    refused(tar(tmp_path / "m.tar", *members), why)


def test_growth_is_bounded(tmp_path: Path) -> None:
    refused(tar(tmp_path / "m.tar.gz", member("a"), body=bytes(200_000)), "unpacks to more than")
    many = [member(str(i), tarfile.DIRTYPE) for i in range(51)]
    refused(tar(tmp_path / "n.tar", *many), "more than 50 members")


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    """A long name may claim any size; it is read into memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 10 * 2**30
    (tmp_path / "m.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    refused(tmp_path / "m.tar", "a header is too large")


def test_modes_are_plain(tmp_path: Path) -> None:
    """No set-user-id, no world-writable file."""
    info = member("tool")
    info.mode = 0o6777
    unpack(tar(tmp_path / "m.tar", info), tmp_path, SMALL, Stop())
    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) == 0o755


def test_a_stop_ends_it(tmp_path: Path) -> None:
    archive = tar(tmp_path / "m.tar", member("a"))
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        unpack(archive, tmp_path, SMALL, stop)
    assert found(tmp_path) == {"m.tar"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.zip", "zip"), ("A.TGZ", "tar"), ("a.tar.gz", "tar"), ("a.gz", ""), ("zip", "")],
)
def test_names_tell_what_is_an_archive(name: str, kind: str) -> None:
    assert kind_of(name) == kind
