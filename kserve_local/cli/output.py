"""How the CLI talks: stdout is data, stderr is narration, errors name object, cause and way out.

The JSON envelope is UX.md section 3.3's; colours only add, every state has a word. Progress lines
are plain text, one a line, when stderr is no terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import click

from kserve_local.errors import ApiError, KServeLocalError

CATEGORY = {
    1: "INTERNAL",
    2: "USAGE",
    3: "VALIDATION",
    4: "SERVICE",
    5: "TIMEOUT",
    6: "PORT",
    7: "MISSING",
    8: "STORAGE",
    9: "MODEL",
    10: "THRESHOLD",
    11: "API",
}
RETRYABLE = frozenset({"TIMED_OUT", "TIMEOUT", "CONFLICT", "GONE", "QUEUE_FULL"})
"""Codes of what may go well the next time, with nothing changed. The API's own failures: by their
HTTP status (`report_error`)."""


def called() -> str:
    """Return the command named on the command line, empty without one; parsing may have failed."""
    from kserve_local.cli.main import ALIASES, COMMANDS

    found = (ALIASES.get(a, a) for a in sys.argv[1:])
    return next((name for name in found if name in COMMANDS), "")


def wants_json() -> bool:
    """Whether an envelope is asked for (read raw: parsing may have failed).

    `get -o json` is not: it prints the object, as kubectl does.
    """
    args = sys.argv[1:]
    if "--json" in args or os.environ.get("KSERVE_LOCAL_JSON", "").lower() in ("1", "true", "yes"):
        return True
    pairs = list(pairwise(args))
    form = ("-o", "json") in pairs or ("--output", "json") in pairs
    return (form or bool({"-ojson", "--output=json"} & set(args))) and called() != "get"


def use_color(choice: str | None = None) -> bool:
    """Whether to colour stderr: flag, then NO_COLOR/FORCE_COLOR/TERM, then the terminal."""
    if choice in ("always", "never"):
        return choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE"):
        return True
    return sys.stderr.isatty()


class Output:
    """One command's voice.

    Args:
        command: Name in the envelope.
        as_json: Print one envelope at the end instead of tables.
        quiet: No narration at all.
    """

    def __init__(
        self, command: str, *, as_json: bool = False, quiet: bool = False, color: str | None = None
    ) -> None:
        self.command = command
        self.as_json = as_json
        self.quiet = quiet
        self.color = use_color(color)
        self.names = 11
        self.started = time.monotonic()

    def fit(self, names: Iterable[str]) -> None:
        """Make the column of names wide enough for these."""
        self.names = max([self.names, *map(width, names)])

    def say(self, text: str = "", *, fg: str | None = None) -> None:
        """Narrate one line on stderr."""
        if not self.quiet:
            styled = click.style(text, fg=fg) if fg and self.color else text
            click.echo(styled, err=True, color=self.color)

    def step(self, mark: str, name: str, text: str, seconds: float | None = None) -> None:
        """Narrate one step: mark, name, what, how long, in the columns of UX.md section 3.5."""
        took = f"{seconds:.1f} s" if seconds is not None else ""
        line = f"  {mark} {padded(name, self.names)} {padded(text, 60)} {took:>7}".rstrip()
        self.say(line, fg={"✓": "green", "✗": "red", "!": "yellow"}.get(mark))

    def data(self, text: str) -> None:
        """Print data on stdout."""
        click.echo(text)

    def envelope(
        self,
        data: Any,
        *,
        status: str = "ok",
        warnings: Sequence[str] = (),
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Print the one JSON answer of this command."""
        click.echo(envelope_text(self.command, status, data, warnings, error))


def envelope_text(
    command: str,
    status: str,
    data: Any,
    warnings: Sequence[str] = (),
    error: Mapping[str, Any] | None = None,
) -> str:
    """Return UX.md section 3.3's envelope."""
    return json.dumps(
        {
            "schemaVersion": 1,
            "command": command,
            "status": status,
            "data": data,
            "warnings": list(warnings),
            "error": error,
        },
        ensure_ascii=False,
    )


def error_body(
    message: str,
    *,
    exit_code: int,
    code: str = "",
    details: Mapping[str, Any] | None = None,
    hint: str = "",
    retryable: bool = False,
) -> dict[str, Any]:
    """Return the `error` member of an envelope.

    Args:
        hint: As people read it. The commands in it that run as they stand become `actions`; all of
            it is in `details`, too, unless it is one such command.
        retryable: Whether it is, besides for `RETRYABLE` codes.
    """
    category = CATEGORY.get(exit_code, "INTERNAL")
    commands = commands_of(hint)
    told = {"hint": hint} if hint and commands != [hint] else {}
    return {
        "code": code or category,
        "category": category,
        "message": message,
        "retryable": retryable or (code or category) in RETRYABLE,
        "details": {**told, **(details or {})},
        "actions": [{"id": _action(command), "command": command} for command in commands],
    }


_PLACEHOLDER = re.compile(r"(?<![\w./-])[A-Z]{2,}(?![\w./-])|\.\.\.|[|<>();]")
_PROGRAMS = ("kserve-local ", "kubectl ", "kill ", "gcloud ", "aws ")


def commands_of(hint: str) -> list[str]:
    """Return the parts of a hint that are commands which run as they stand."""
    parts = (part.strip() for part in re.split(r"\n|\s{3,}| · ", hint))
    return [p for p in parts if p.startswith(_PROGRAMS) and not _PLACEHOLDER.search(p)]


def _action(command: str) -> str:
    """Return `show-logs` for `kserve-local logs ...`; other commands are called what they do."""
    program, word = command.split()[:2]
    if program != "kserve-local":
        return program
    shows = ("logs", "status", "events")
    return f"show-{word}" if word in shows else word


def code_of(reason: str) -> str:
    """Return `MODEL_LOAD_FAILED` for `ModelLoadFailed`."""
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(reason)).upper()


def report_error(error: BaseException, *, code: int | None = None) -> int:
    """Print an error for a person (or as an envelope) and return its exit code."""
    details: dict[str, Any] = {}
    retryable = False
    if isinstance(error, KServeLocalError):
        exit_code = error.exit_code if code is None else code
        name, message, hint = type(error).__name__, error.message, error.hint
        details = dict(error.details)
        retryable = isinstance(error, ApiError) and (error.code >= 500 or error.code == 429)
    elif isinstance(error, click.ClickException):
        exit_code, name, message, hint = code or 2, "UsageError", error.format_message(), ""
    else:
        exit_code, name, hint = code or 1, "Unexpected", ""
        message = f"{type(error).__name__}: {error}"
    if wants_json():
        body = error_body(
            message,
            exit_code=exit_code,
            code=code_of(name),
            details=details,
            hint=hint,
            retryable=retryable,
        )
        click.echo(envelope_text(called(), "error", None, (), body))
        return exit_code
    color = use_color()
    word = click.style("error:", fg="red", bold=True) if color else "error:"
    click.echo(f"{word} {message} (exit {exit_code})", err=True, color=color)
    for line in hint.splitlines():
        click.echo(f"  {line}", err=True)
    if exit_code == 1 and not isinstance(error, KServeLocalError):
        if os.environ.get("KSERVE_LOCAL_TRACEBACK"):
            import traceback

            traceback.print_exception(error)
        else:
            click.echo(
                "  this is a bug; KSERVE_LOCAL_TRACEBACK=1 shows where it happened", err=True
            )
    return exit_code


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters two, combining none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def padded(text: str, columns: int) -> str:
    """Return `text`, filled with blanks to that many columns."""
    return text + " " * max(0, columns - width(text))


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Return left-aligned columns, two blanks apart, as kubectl prints them."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(width(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "   ".join(padded(cell, w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
