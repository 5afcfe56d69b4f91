"""`logs --since`: what is known of when a line was written, and what is shown when nothing is."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kserve_local.apiserver.logs import FileLogs, LogOptions, last_moment
from kserve_local.store.store import open_store

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()


def clock(seconds: float) -> str:
    """Return the time so many seconds after noon as `logging` would write it, in UTC."""
    return datetime.fromtimestamp(NOON + seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%fZ")


def pod(begun: float = 0.0) -> dict[str, Any]:
    """Return a Pod whose container started so many seconds after noon."""
    started = datetime.fromtimestamp(NOON + begun, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    states = {"state": {"running": {"startedAt": started}}}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "status": {"containerStatuses": [{"name": "c", **states, "lastState": {}}]},
    }  # fmt: skip


def write(folder: Path, name: str, *lines: str, at: float) -> None:
    """Write a log that was last written to so many seconds after noon."""
    path = folder / "p" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    os.utime(path, (NOON + at, NOON + at))


async def read(folder: Path, since: float, **how: Any) -> list[str]:
    """Return the lines shown since so many seconds after noon."""
    async with open_store(folder / "state.db") as store:
        options = LogOptions("c", since=NOON + since, **how)
        chunks = FileLogs(store, folder).read(pod(), options)
        return b"".join([chunk async for chunk in chunks]).decode().splitlines()


@pytest.mark.parametrize(
    ("line", "latest"),
    [
        ("2026-01-31T12:00:00Z text", 1.0),
        ("2026-01-31 12:00:00.5Z text", 0.6),
        ("2026-01-31T12:00:00.123456789Z", 0.12345679),
        ("[2026-01-31 13:00:00 +0100] [7] [INFO] text", 1.0),
        ("2026-01-31 07:00:00,250-05:00 text", 0.251),
        ("2026-01-31 text", None),
        ("2026-13-31 12:00:00Z no such month", None),
        ("at 2026-01-31 12:00:00Z", None),
        ("text", None),
        ("", None),
    ],
)
def test_a_line_is_as_old_as_the_time_it_begins_with(line: str, latest: float | None) -> None:
    """At the latest: a second that is written without fractions may have been nearly over."""
    found = last_moment(line.encode())
    assert found == (None if latest is None else pytest.approx(NOON + latest))


def test_a_time_without_a_zone_is_local() -> None:
    local = datetime(2026, 1, 31, 12).timestamp()
    assert last_moment(b"2026-01-31 12:00:00,250 x") == pytest.approx(local + 0.251)


async def test_lines_before_one_that_is_too_old_are_left_out(tmp_path: Path) -> None:
    lines = ("first", f"{clock(1)} old", "its traceback", f"{clock(50)} new", "print")
    write(tmp_path, "c.log", *lines, at=60)
    assert await read(tmp_path, 0.5) == list(lines)
    # Nobody knows when the traceback was printed: rather too much than too little.
    assert await read(tmp_path, 30) == ["its traceback", f"{clock(50)} new", "print"]
    assert await read(tmp_path, 55) == ["print"]
    assert await read(tmp_path, 61) == []


async def test_lines_without_times_are_as_old_as_their_file(tmp_path: Path) -> None:
    write(tmp_path, "c.log.2", "a", at=10)
    write(tmp_path, "c.log.1", "b", at=20)
    write(tmp_path, "c.log", "c", at=30)
    assert await read(tmp_path, 5) == ["a", "b", "c"]
    assert await read(tmp_path, 15) == ["b", "c"]
    assert await read(tmp_path, 25) == ["c"]
    assert await read(tmp_path, 35) == []


async def test_a_time_at_which_nothing_was_written_is_not_believed(tmp_path: Path) -> None:
    """Data may begin with a time as well, and a zone may be missing."""
    write(tmp_path, "c.log", "one", f"{clock(-3600)},4.2,7", f"{clock(3600)} x", at=60)
    assert len(await read(tmp_path, 30)) == 3


async def test_the_end_is_cut_by_number_and_by_time(tmp_path: Path) -> None:
    write(tmp_path, "c.log", *(f"{clock(i)} line" for i in range(10)), at=10)
    assert len(await read(tmp_path, 5, tail_lines=2)) == 2
    assert len(await read(tmp_path, 7.9, tail_lines=8)) == 2
    assert len(await read(tmp_path, 5, previous=False)) == 5


async def test_the_run_before_is_cut_too(tmp_path: Path) -> None:
    write(tmp_path, "c.previous.log", f"{clock(1)} old", f"{clock(9)} last words", at=10)
    assert await read(tmp_path, 5, previous=True) == [f"{clock(9)} last words"]
