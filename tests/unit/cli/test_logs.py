"""How `logs` judges lines."""

from __future__ import annotations

import pytest

from kserve_local.cli.logs import LEVELS, _Printer, naming, rank_of


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        ("2026-01-01 10:00:00.001 7 root INFO [serve.py:run():1] no ERROR in it", 20),
        ("WARNING: deprecated", 30),
        ("[WARN] x", 30),
        ("CRITICAL x", 50),
        ("Traceback (most recent call last):", None),
        ("an error, in prose", None),
        ("MYERROR", None),
    ],
)
def test_a_lines_level_is_the_first_one_it_names(line: str, rank: int | None) -> None:
    assert rank_of(line) == rank


def test_what_has_no_level_goes_with_the_line_before(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _Printer(False, "", LEVELS["error"], keep=True)
    printer.prefixed = False
    for line in ("starting", "a INFO x", "  more", "b ERROR y", "Traceback", "c INFO z"):
        printer.line("iris", "c", line)
    printer.line("other", "c", "of another container")
    assert capsys.readouterr().out.splitlines() == ["b ERROR y", "Traceback"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("requestId: r-1, preprocess_ms: 0.1", True),
        ("request r-1 failed", True),
        ("[r-1]", True),
        ("failed: r-1.", True),
        ('{"x-request-id":"r-1"}', True),
        ("id=r-1", True),
        ("requestId: r-12, ", False),
        ("requestId: pr-1, ", False),
        ("requestId: r-1-2, ", False),
        ("requestId: r-1.5, ", False),
        ("requestId: 0.r-1, ", False),
        ("requestId: N.A., ", False),
    ],
)
def test_a_request_is_found_by_its_whole_id(line: str, found: bool) -> None:
    assert bool(naming("r-1").search(line)) is found


def test_an_id_is_no_pattern() -> None:
    assert naming("a.c").search("id a.c")
    assert not naming("a.c").search("id abc")
    assert naming("(x)").search("id (x) y")
