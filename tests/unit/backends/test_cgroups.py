"""Delegated cgroups, against a folder that looks like one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kserve_local.backends import cgroups


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup tree with one delegated scope that holds this process."""
    scope = tmp_path / "user.slice" / "x.scope"
    scope.mkdir(parents=True)
    (scope / "cgroup.controllers").write_text("cpu memory pids\n")
    (scope / "cgroup.procs").write_text("11\n12\n")
    (tmp_path / "self").write_text("0::/user.slice/x.scope\n")
    marks = {os.fspath(scope): b"1"}

    def getxattr(path: Path, name: str) -> bytes:
        try:
            return marks[os.fspath(path)]
        except KeyError:
            raise OSError(61, "no such attribute") from None

    monkeypatch.setattr(os, "getxattr", getxattr, raising=False)
    return tmp_path


def test_a_delegated_scope_is_found(root: Path):
    assert cgroups.delegated(root, root / "self") == root / "user.slice" / "x.scope"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "self").write_text("1:name=systemd:/\n0::/user.slice/x.scope\n"),
        lambda root: (root / "self").write_text("0::/user.slice\n"),
        lambda root: (root / "self").unlink(),
        lambda root: (root / "user.slice/x.scope/cgroup.controllers").write_text("cpu\n"),
    ],
)
def test_anything_less_is_not_used(root: Path, change):
    change(root)
    assert cgroups.delegated(root, root / "self") is None


def test_a_container_gets_a_limited_leaf(root: Path):
    scope = root / "user.slice" / "x.scope"
    made = cgroups.Cgroups(scope)
    assert (scope / "cgroup.subtree_control").read_text() == "+memory"
    assert (scope / "kserve-local-supervisor" / "cgroup.procs").read_text() == "12"
    assert made.make("t", None) is None
    leaf = made.make("t", 1024)
    assert leaf == scope / "kserve-local-t"
    assert (leaf / "memory.max").read_text() == "1024"
    assert (leaf / "memory.oom.group").read_text() == "1"
    assert not cgroups.was_oom_killed(leaf)
    (leaf / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert cgroups.was_oom_killed(leaf)


def test_without_delegation_nothing_is_made(tmp_path: Path):
    assert cgroups.Cgroups(None).make("t", 1024) is None
    assert cgroups.Cgroups(tmp_path / "gone").make("t", 1024) is None
