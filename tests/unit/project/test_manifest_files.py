"""Which files of a project count, and what is said about those that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_local import settings
from kserve_local.errors import UsageError
from kserve_local.project.project_files import read_documents

MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: some-map}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder that may not be read, by root neither."""
    walk = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for folder in ("", "prod", "sub/locked"):
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
        (tmp_path / folder / "map.yaml").write_text(MAP)
    return tmp_path


def found(project: Path, config: str) -> list[str]:
    (project / settings.CONFIG_FILE).write_text(config)
    documents = read_documents(settings.load(project, environ={"HOME": str(project)}))
    return [str(Path(path).relative_to(project)) for path in documents]


def test_what_cannot_be_read_is_told_with_the_way_to_leave_it_out(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        found(project, "")
    assert 'locked" cannot be read: Permission denied' in caught.value.message
    assert caught.value.hint.endswith('ignore: ["sub/locked"]')
    assert found(project, 'ignore: ["sub/locked"]\n') == ["map.yaml", "prod/map.yaml"]


@pytest.mark.parametrize("pattern", ["sub/**", "sub", "*/locked"])
def test_an_ignored_folder_is_not_looked_into(project: Path, pattern: str) -> None:
    assert found(project, f'ignore: ["{pattern}", "prod/*"]\n') == ["map.yaml"]
