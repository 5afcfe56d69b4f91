"""What is shown of the built-in sink while the gateway goes on writing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kserve_local.gateway.payload_file import FILE, Event, PayloadFile
from kserve_local.supervisor.payloads import Tail


def add(sink: PayloadFile, number: int, service: str = "iris") -> None:
    attributes = {"id": str(number), "inferenceservicename": service}
    sink.add([Event("http://t", attributes, "", b"x" * 50)])


def ids(lines: list[bytes]) -> list[int]:
    return [int(json.loads(line)["id"]) for line in lines]


def anything(event: dict[str, Any]) -> bool:
    return True


def test_without_events_there_is_nothing(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "payloads")
    assert tail.newest(anything, 10) == []
    assert tail.more(anything) == []


def test_the_newest_of_both_files_and_what_comes_after(tmp_path: Path) -> None:
    """Through a file that is moved aside nothing is lost and nothing comes twice."""
    sink = PayloadFile(tmp_path / "payloads", limit=4000)
    for number in range(30):
        add(sink, number)
    tail = Tail(tmp_path / "payloads")
    assert ids(tail.newest(anything, 25)) == list(range(5, 30))
    seen: list[int] = []
    for number in range(30, 90):
        add(sink, number)
        if number % 7 == 0:
            seen += ids(tail.more(anything))
    seen += ids(tail.more(anything))
    assert seen == list(range(30, 90))


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    sink = PayloadFile(tmp_path)
    tail = Tail(tmp_path)
    add(sink, 1)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"id": "2"')
        file.flush()
        assert ids(tail.newest(anything, 10)) == [1]
        file.write(b"}\nnot json\n")
    assert ids(tail.more(anything)) == [2]


def test_only_what_is_wanted(tmp_path: Path) -> None:
    sink = PayloadFile(tmp_path)
    for number, service in enumerate(["iris", "other", "iris"]):
        add(sink, number, service)
    found = Tail(tmp_path).newest(lambda e: e["inferenceservicename"] == "iris", 10)
    assert ids(found) == [0, 2]
    assert Tail(tmp_path).newest(anything, 0) == []
