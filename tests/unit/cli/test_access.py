"""Whose project it is: what another user started can be neither seen nor stopped, which is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kserve_local import settings
from kserve_local.cli.launch import stop_supervisor
from kserve_local.client.project import need_running
from kserve_local.errors import Forbidden, KServeLocalError, ServiceUnavailable
from kserve_local.supervisor import statedir


def test_another_users_project_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings.load(tmp_path, environ={"HOME": str(tmp_path)})
    with pytest.raises(ServiceUnavailable, match="is not running"):
        need_running(found)
    found.state.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != found.state)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    for ask in (lambda: need_running(found), lambda: stop_supervisor(found, grace=1.0)):
        with pytest.raises(Forbidden, match="belongs to "):
            ask()
    assert list(found.state.iterdir()) == []


@pytest.mark.parametrize("part", ["cache", "state"])
def test_a_folder_that_cannot_be_made_is_named_with_what_moves_it(
    tmp_path: Path, part: str
) -> None:
    """A home that cannot be written is no fault of the project folder."""
    project = tmp_path / "project"
    project.mkdir()
    (project / ".kserve-local" if part == "state" else tmp_path / "home").touch()
    environ = {"XDG_CACHE_HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(KServeLocalError) as caught:
        statedir.prepare(settings.load(project, environ=environ))
    words = ("cache", "XDG_CACHE_HOME") if part == "cache" else ("state folder", "project folder")
    assert f"cannot make the {words[0]}" in caught.value.message
    assert words[1] in caught.value.hint
