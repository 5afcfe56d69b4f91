"""What the command line prints: tables, colours, envelopes."""

from __future__ import annotations

import json
import sys

import click
import pytest

from kserve_local import errors
from kserve_local.cli.output import (
    code_of,
    commands_of,
    report_error,
    table,
    use_color,
    wants_json,
    width,
)


def test_a_column_counts_wide_characters_twice_and_accents_not_at_all() -> None:
    assert width("日本") == 4
    assert width("é") == 1
    text = table([["日本", "x"], ["abcdef", "y"]], ("NAME", "B"))
    ends = [line.rindex(c) for line, c in zip(text.splitlines(), "Bxy", strict=True)]
    assert ends == [9, 7, 9]


def test_colour_is_the_flags_then_the_environments_then_the_terminals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert use_color("always") is True
    assert use_color() is False
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert use_color() is True
    monkeypatch.setenv("NO_COLOR", "1")
    assert use_color() is False
    assert use_color("always") is True


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["status", "--json"], True),
        (["--json", "status"], True),
        (["status", "-o", "json"], True),
        (["get", "isvc", "-o", "json"], False),
        (["get", "isvc", "-o", "json", "--json"], True),
        (["status"], False),
    ],
)
def test_json_is_read_off_the_raw_arguments(
    args: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KSERVE_LOCAL_JSON", raising=False)
    monkeypatch.setattr(sys, "argv", ["kserve-local", *args])
    assert wants_json() is expected


def test_a_reason_becomes_an_error_code() -> None:
    assert code_of("ModelLoadFailed") == "MODEL_LOAD_FAILED"


def body_of(error: Exception, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    report_error(error)
    found: dict[str, object] = json.loads(capsys.readouterr().out)["error"]
    return found


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kserve-local", "status", "--json"])


@pytest.mark.usefixtures("as_json")
@pytest.mark.parametrize(
    ("error", "code", "category", "retryable"),
    [
        (errors.NotFound("x"), "NOT_FOUND", "API", False),
        (errors.AlreadyExists("x"), "ALREADY_EXISTS", "API", False),
        (errors.Conflict("x"), "CONFLICT", "API", True),
        (errors.ApiError("x", code=500), "API_ERROR", "API", True),
        (errors.ApiError("x", code=451), "API_ERROR", "API", False),
        (errors.TimedOut("x"), "TIMED_OUT", "TIMEOUT", True),
        (errors.PortTaken("x"), "PORT_TAKEN", "PORT", False),
        (errors.UsageError("x"), "USAGE_ERROR", "USAGE", False),
        (click.UsageError("x"), "USAGE_ERROR", "USAGE", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_has_one_code_and_says_whether_to_try_again(
    error: Exception,
    code: str,
    category: str,
    retryable: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = body_of(error, capsys)
    assert (body["code"], body["category"], body["retryable"]) == (code, category, retryable)


@pytest.mark.parametrize(
    ("hint", "commands"),
    [
        ("", []),
        ("kserve-local up", ["kserve-local up"]),
        ("kserve-local -C /srv/A/B logs x -F", ["kserve-local -C /srv/A/B logs x -F"]),
        (
            "kserve-local status   ·   kserve-local down",
            ["kserve-local status", "kserve-local down"],
        ),
        (
            "held by   pid 41  python   (ana)\ndo one    kill 41   ·   kserve-local up --port 1",
            ["kill 41", "kserve-local up --port 1"],
        ),
        ("kserve-local predict NAME @request.json   (or '-' for stdin)", []),
        ("kserve-local delete isvc NAME | --all", []),
        ("kserve-local predict iris --model x ...", []),
        ("check the network", []),
    ],
)
def test_only_what_runs_as_it_stands_is_an_action(hint: str, commands: list[str]) -> None:
    assert commands_of(hint) == commands


@pytest.mark.usefixtures("as_json")
def test_prose_is_a_detail_beside_the_errors_own(capsys: pytest.CaptureFixture[str]) -> None:
    body = body_of(errors.NotFound("x", hint="look around", details={"name": "a"}), capsys)
    assert body["actions"] == []
    assert body["details"] == {"hint": "look around", "name": "a"}
    body = body_of(errors.NotFound("x", hint="kserve-local logs a"), capsys)
    assert body["actions"] == [{"id": "show-logs", "command": "kserve-local logs a"}]
    assert body["details"] == {}


def test_another_processes_error_keeps_its_kind() -> None:
    error = errors.from_exit_code(6, "port 1 is in use", hint="kill 2")
    assert (type(error), error.exit_code, error.hint) == (errors.PortTaken, 6, "kill 2")
    assert type(errors.from_exit_code(1, "x")) is errors.KServeLocalError
    assert errors.from_exit_code(11, "x").exit_code == 11
