"""Carries a change of code to all Python processes of a container, and back what they say of it.

Each is asked on its control socket (`control`; the other side is `podlauncher.swap`). What it
answers is the user's own program's word: bounded, and nothing but text to show.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kserve_local.backends import control
from kserve_local.interfaces.code import CodeChange, CodeVerdict

_WITHIN = 2.0
_MAX_REQUEST = 8 * 2**20 - 1
"""What a process reads at most."""
_MAX_REASON = 500
_ROUNDS = 10
_AT_ONCE = 32
NO_PYTHON = "it is no Python program that can be asked"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one process says; `refused` empty: it does as it was asked."""

    refused: str = ""
    functions: int = 0


async def check(folder: Path | None, change: CodeChange) -> CodeVerdict:
    """Ask the processes that have sockets in `folder` whether they can take the change.

    See `Backend.check_code`.
    """
    return await _ask_all(folder, "check", change)


async def commit(folder: Path | None, change: CodeChange) -> CodeVerdict:
    """Put the change into the processes that have sockets in `folder`.

    See `Backend.commit_code`.
    """
    return await _ask_all(folder, "commit", change)


async def _ask_all(
    folder: Path | None, what: Literal["check", "commit"], change: CodeChange
) -> CodeVerdict:
    if folder is None:
        return CodeVerdict(refused=NO_PYTHON)
    content = {"id": change.id, "before": dict(change.before), "after": dict(change.after)}
    request = json.dumps({"id": 1, "do": what, "change": content}).encode()
    if len(request) > _MAX_REQUEST:
        return CodeVerdict(refused=f"{len(request)} bytes of code are too many to send")
    turns = asyncio.Semaphore(_AT_ONCE)
    asked: set[str] = set()
    answers: list[_Answer] = []
    # A worker that was forked while its parent was asked has what its parent had before.
    for _ in range(_ROUNDS):
        names = await asyncio.to_thread(control.sockets, folder)
        if len(names) == control.MAX_SOCKETS:
            return CodeVerdict(refused=f"it has {len(names)} processes or more")
        new = [name for name in names if name not in asked]
        if not new:
            break
        asked.update(new)
        found = await asyncio.gather(*(_ask(folder, name, request, turns) for name in new))
        answers += [answer for answer in found if answer is not None]
    return verdict(answers)


def verdict(answers: Sequence[_Answer]) -> CodeVerdict:
    """Return what all processes together say: one that refuses refuses for all. Pure."""
    if not answers:
        return CodeVerdict(refused=NO_PYTHON)
    return CodeVerdict(
        refused=next((answer.refused for answer in answers if answer.refused), ""),
        processes=len(answers),
        functions=sum(answer.functions for answer in answers),
    )


async def _ask(folder: Path, name: str, request: bytes, turns: asyncio.Semaphore) -> _Answer | None:
    """Ask one process; None: it is gone."""
    process = f"process {name.partition('.')[0]}"
    try:
        async with turns:
            line = await control.ask(folder, name, request, within=_WITHIN)
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    except TimeoutError:
        return _Answer(f"{process} does not answer within {_WITHIN:g} s")
    except (OSError, ValueError) as error:
        return _Answer(f"{process} cannot be asked: {error}")
    if not line:
        return None
    return parse(line, process)


def parse(line: bytes, process: str) -> _Answer:
    """Return what a line of a process says. Pure."""
    try:
        found = json.loads(line)
        if "error" in found:
            return _Answer(f"{process} cannot take it: {str(found['error'])[:_MAX_REASON]}")
        return _Answer(str(found["refused"])[:_MAX_REASON], int(found["functions"]))
    except (ValueError, TypeError, KeyError):
        return _Answer(f"{process} gives no answer that can be read")
