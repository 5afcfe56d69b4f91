"""The init container's log: what it says of a fetch, and that it says it once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kserve_local.controllers import init_containers
from kserve_local.controllers.init_containers import Fetches, fetch_all
from kserve_local.interfaces.storage import Fetched, Progress, StorageRequest


class Storage:
    """A source that reports what it is told to."""

    def __init__(self, *said: str) -> None:
        self.said = said

    async def fetch(self, request: StorageRequest, report: Callable[[Progress], None]) -> Fetched:
        for text in self.said:
            report(Progress(phase="Downloading", message=text))
        return Fetched(request.base, cached=True)

    async def close(self) -> None:
        """Nothing is open."""


async def logged(folder: Path, *said: str) -> list[str]:
    path = folder / "log"
    fetches = Fetches((("s3://b/m", "/mnt/models"),), {}, folder)
    await fetch_all(fetches, Storage(*said), log_path=path, event=lambda text: None)
    return [line.split(" ", 2)[2] for line in path.read_text().splitlines()][1:-1]


async def test_the_last_word_is_written_however_soon_it_comes(tmp_path: Path) -> None:
    """That the cached copy could not be compared is reported a moment before the end."""
    warning = "s3://b/m cannot be reached; using the cached copy, unchecked"
    assert await logged(tmp_path, "Checking s3://b/m", "asking", warning) == [
        "Checking s3://b/m",
        warning,
    ]


async def test_what_stands_there_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait is reported again and again, but "next try in 4.0 s" is true once."""
    monkeypatch.setattr(init_containers, "_LINE_EVERY", 0.0)
    said = ["refused; next try in 4.0 s"] * 4 + ["refused; next try in 8.0 s"]
    assert await logged(tmp_path, *said) == [said[0], said[-1]]
