"""What the command line prints: tables, colours, envelopes."""

from __future__ import annotations

import sys

import pytest

from kserve_local.cli.output import code_of, table, use_color, wants_json, width


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
