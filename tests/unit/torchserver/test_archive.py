"""Model archives: unpacked safely, or refused with what is wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelserver.errors import LoadError
from torchserver.archive import MANIFEST, Unpacked, _check_names, open_archive

TEXT = json.dumps({"model": {"modelName": "net", "handler": "h.py", "serializedFile": "w.pt"}})


@pytest.fixture
def unpacked(tmp_path: Path) -> Iterator[Unpacked]:
    made = Unpacked(tmp_path)
    yield made
    made.close()


def mar(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_is_unpacked_and_removed_again(tmp_path: Path, unpacked: Unpacked) -> None:
    path = mar(tmp_path / "a.mar", **{MANIFEST: TEXT, "w.pt": "weights"})
    archive = open_archive(path, unpacked)
    assert archive.entry("modelName") == "net"
    weights = archive.file("serializedFile")
    assert weights is not None
    assert weights.read_text() == "weights"
    assert archive.file("modelFile") is None
    unpacked.close()
    assert not archive.folder.exists()


def test_a_tgz_with_a_folder_inside_is_the_same(tmp_path: Path, unpacked: Unpacked) -> None:
    path = tmp_path / "net.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in ((f"net/{MANIFEST}", TEXT), ("net/w.pt", "weights")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    assert open_archive(path, unpacked).file("serializedFile") is not None


def test_a_folder_is_taken_as_it_is(tmp_path: Path, unpacked: Unpacked) -> None:
    (tmp_path / "net" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "net" / MANIFEST).write_text(TEXT)
    assert open_archive(tmp_path / "net", unpacked).folder == tmp_path / "net"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"w.pt": ""}, f"no {MANIFEST} in it"),
        ({MANIFEST: "{"}, f"{MANIFEST} cannot be read"),
        ({MANIFEST: "[]"}, 'has no object "model"'),
        ({MANIFEST: TEXT, "../evil.py": ""}, "'../evil.py' points outside the archive"),
        ({MANIFEST: TEXT, "/etc/evil": ""}, "'/etc/evil' points outside the archive"),
    ],
)
def test_a_bad_archive_says_what_is_wrong(
    tmp_path: Path, unpacked: Unpacked, members: dict[str, str], words: str
) -> None:
    with pytest.raises(LoadError, match=r"a\.mar") as caught:
        open_archive(mar(tmp_path / "a.mar", **members), unpacked)
    assert words in str(caught.value)
    assert not (tmp_path / "evil.py").exists()


def test_links_are_refused(tmp_path: Path, unpacked: Unpacked) -> None:
    path = tmp_path / "a.mar"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("w.pt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(LoadError, match=r"member 'w\.pt' is a link"):
        open_archive(path, unpacked)


def test_a_truncated_archive_and_other_files_are_told_apart(
    tmp_path: Path, unpacked: Unpacked
) -> None:
    whole = mar(tmp_path / "a.mar", **{MANIFEST: TEXT, "w.pt": "x" * 1000}).read_bytes()
    (tmp_path / "a.mar").write_bytes(whole[:500])
    with pytest.raises(LoadError, match="or it is truncated"):
        open_archive(tmp_path / "a.mar", unpacked)
    # A broken member behind a whole directory.
    (tmp_path / "a.mar").write_bytes(whole.replace(b"x" * 1000, b"y" * 1000))
    with pytest.raises(LoadError, match="cannot be unpacked: Bad CRC"):
        open_archive(tmp_path / "a.mar", unpacked)


def test_a_file_named_but_missing_is_named(tmp_path: Path, unpacked: Unpacked) -> None:
    archive = open_archive(mar(tmp_path / "a.mar", **{MANIFEST: TEXT}), unpacked)
    with pytest.raises(LoadError, match=r"serializedFile 'w\.pt' is not in the archive"):
        archive.file("serializedFile")


def test_an_entry_cannot_reach_outside(tmp_path: Path, unpacked: Unpacked) -> None:
    (tmp_path / "secret").write_text("x")
    text = json.dumps({"model": {"serializedFile": "../../secret"}})
    archive = open_archive(mar(tmp_path / "a.mar", **{MANIFEST: text}), unpacked)
    with pytest.raises(LoadError, match="is not in the archive"):
        archive.file("serializedFile")


def test_folders_of_killed_servers_are_removed_those_of_live_ones_stay(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from torchserver.archive import Unpacked;"
        "print(Unpacked(Path(sys.argv[1])).folder(), flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False
    )
    abandoned = Path(killed.stdout.strip()).parent
    assert abandoned.is_dir()
    alive, other = Unpacked(tmp_path), Unpacked(tmp_path)
    folder = alive.folder()
    other.folder()
    assert not abandoned.exists()
    assert folder.is_dir()
    alive.close()
    other.close()
    assert [p for p in os.listdir(tmp_path) if p.startswith("torchserver-")] == []


@given(st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\", "/", "b\\..\\.."])))
def test_no_accepted_name_leaves_the_folder(parts: list[str]) -> None:
    name = "/".join(parts)
    try:
        _check_names("a.mar", [name])
    except LoadError:
        return
    base = os.path.normpath("/base/folder")
    landed = os.path.normpath(os.path.join(base, name.replace("\\", "/")))
    assert landed == base or landed.startswith(base + "/")
