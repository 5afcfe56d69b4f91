"""Which files a program is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_local.devloop.code_files import CodeFolder, entry_of, imported

FILES = {
    "model.py": "import helper\nfrom pkg import clean\nfrom pkg.deep import thing as t\n",
    "helper.py": "def f():\n    import lazy\n",
    "lazy.py": "",
    "train.py": "import helper\n",
    "pkg/__init__.py": "",
    "pkg/clean.py": "from . import words\nfrom .deep import thing\n",
    "pkg/words.py": "",
    "pkg/deep/__init__.py": "",
    "pkg/deep/thing.py": "from ..other import x\n",
    "pkg/other.py": "",
    "pkg/unused.py": "",
    "plugin.py": "",
    "broken.py": "def (",
}


@pytest.mark.parametrize(
    ("argv", "entry"),
    [
        (("model.py", "--model_name", "x"), "model.py"),
        (("-u", "./model.py"), "model.py"),
        (("-m", "pkg.clean"), "pkg/clean.py"),
        (("-c", "print(1)"), None),
        (("other.py",), None),
        ((), None),
    ],
)
def test_the_entry_file_is_found(argv: tuple[str, ...], entry: str | None):
    assert entry_of(argv, FILES) == entry


def test_what_is_imported_at_any_depth_counts_and_nothing_else():
    assert imported("model.py", FILES) == {
        "model.py", "helper.py", "lazy.py", "pkg/__init__.py", "pkg/clean.py", "pkg/words.py",
        "pkg/deep/__init__.py", "pkg/deep/thing.py", "pkg/other.py",
    }  # fmt: skip


def test_a_module_named_in_a_string_counts():
    files = {**FILES, "model.py": "import importlib\nm = importlib.import_module('plugin')\n"}
    assert imported("model.py", files) == {"model.py", "plugin.py"}


def test_without_an_entry_all_files_count():
    assert imported(None, FILES) == set(FILES)


def test_a_broken_file_imports_nothing_and_is_part_all_the_same():
    files = {"model.py": "import broken\n", "broken.py": "def ("}
    assert imported("model.py", files) == {"model.py", "broken.py"}


def test_a_folder_is_read_without_environments_and_what_is_no_text(tmp_path: Path):
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# \xff\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_text("b = 1\n")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    (tmp_path / "venv" / "c.py").write_text("")
    folder = CodeFolder(tmp_path)
    assert folder.read() == {"a.py": "a = 1\n", "sub/b.py": "b = 1\n"}
    (tmp_path / "a.py").write_text("a = 22\n")
    assert folder.read()["a.py"] == "a = 22\n"
