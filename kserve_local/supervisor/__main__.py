"""`python -m kserve_local.supervisor`: what `kserve-local up` starts in a session of its own.

Answers on the file descriptor `--ready-fd` with one JSON line: `{"ready": true}` once everything
listens, or `{"error": {...}}`; then closes it. Its own log is stderr, a file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from kserve_local import log, settings
from kserve_local.errors import KServeLocalError


def _answer(fd: int, message: dict[str, Any]) -> None:
    if fd < 0:
        return
    try:
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)
    except OSError:
        # Whoever started us has gone; serving goes on.
        return


def main() -> int:
    """Run the supervisor until it is told to stop; return its exit code."""
    parser = argparse.ArgumentParser(prog="kserve_local.supervisor")
    parser.add_argument("--project", required=True, type=Path)
    parser.add_argument("--flags", default="{}", help="Settings fields as JSON.")
    parser.add_argument("--profile", default="")
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--warm", default="", help="Runtimes to have a zygote ready for.")
    args = parser.parse_args()
    log.configure(os.environ.get("KSERVE_LOCAL_LOG_LEVEL") or "INFO")
    answered = False

    def ready() -> None:
        nonlocal answered
        answered = True
        _answer(args.ready_fd, {"ready": True})

    if args.ready_fd >= 0:
        # Children must not hold it: whoever started us waits for its end.
        os.set_inheritable(args.ready_fd, False)
    try:
        flags = json.loads(args.flags)
        configured = settings.load(args.project, profile=args.profile, **flags)
        started_with = {
            "flags": flags,
            "profile": args.profile,
            "config": settings.fingerprint(args.project, profile=args.profile),
        }
        from kserve_local.supervisor.supervisor import run

        warm = tuple(filter(None, args.warm.split(",")))
        return run(configured, warm=warm, ready=ready, started_with=started_with)
    except Exception as caught:
        error = _ours(caught)
        if error is None:
            raise
        if not answered:
            body = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
            _answer(args.ready_fd, {"error": body})
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code


def _ours(error: BaseException) -> KServeLocalError | None:
    """Return the error that a user understands, also out of a task group's; None for a bug."""
    if isinstance(error, KServeLocalError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [_ours(inner) for inner in error.exceptions]
        if found and all(found):
            return found[0]
    return None


if __name__ == "__main__":
    sys.exit(main())
