"""Starting a supervisor in a session of its own, and ending everything a project started."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kserve_local import procs
from kserve_local.client.project import read_run_file
from kserve_local.errors import KServeLocalError, TimedOut
from kserve_local.settings import Settings

START_TIMEOUT = 60.0


def start_supervisor(
    settings: Settings, flags: Mapping[str, Any], *, profile: str, warm: Sequence[str]
) -> None:
    """Start the supervisor and return once it listens.

    Args:
        flags: `Settings` fields that the command line gave.
        warm: Runtimes to have zygotes for.

    Raises:
        KServeLocalError: It did not start; message and exit code are the supervisor's own.
        TimedOut: It neither listens nor fails.
    """
    from kserve_local.supervisor import statedir

    statedir.prepare(settings)
    log = settings.log_dir / "supervisor.log"
    _rotate(log, settings)
    reading, writing = os.pipe()
    argv = [sys.executable, "-P", "-m", "kserve_local.supervisor"]
    argv += ["--project", str(settings.project), "--flags", json.dumps(flags)]
    argv += ["--profile", profile, "--ready-fd", str(writing), "--warm", ",".join(warm)]
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writing],
            start_new_session=True,
            cwd=settings.project,
        )
    os.close(writing)
    try:
        answer = _answer(reading, START_TIMEOUT)
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        os.close(reading)
    if answer is None:
        code = child.wait()
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise KServeLocalError(
            f"the supervisor ended with {code} before it listened", hint="\n".join(tail)
        )
    if "error" in answer:
        child.wait()
        body = answer["error"]
        error = KServeLocalError(body["message"], hint=body.get("hint", ""))
        error.exit_code = int(body.get("exit_code", 1))
        raise error
    # It lives on by itself; without this the interpreter warns of a child nobody waited for.
    child.returncode = 0


def _rotate(log: Any, settings: Settings) -> None:
    if log.exists() and log.stat().st_size > settings.log_max_bytes:
        log.replace(log.with_suffix(".log.1"))


def _answer(descriptor: int, timeout: float) -> dict[str, Any] | None:
    """Return the supervisor's one line, None if it closed the pipe without."""
    end = time.monotonic() + timeout
    text = b""
    while b"\n" not in text:
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimedOut(
                f"the supervisor neither listens nor fails after {timeout:g} s",
                hint="see .kserve-local/logs/supervisor.log",
            )
        more = os.read(descriptor, 65536)
        if not more:
            return None
        text += more
    answer: dict[str, Any] = json.loads(text)
    return answer


def stop_supervisor(settings: Settings, *, grace: float, kill: bool = False) -> bool:
    """Stop the project's supervisor if one runs, and whatever an earlier one left behind.

    Args:
        grace: Seconds the supervisor has to take everything down.
        kill: End everything at once.

    Returns:
        Whether there was anything to stop.
    """
    running = read_run_file(settings)
    found = False
    if running is not None and running.alive:
        found = True
        procs.send_signal(running.identity, signal.SIGKILL if kill else signal.SIGTERM)
        end = time.monotonic() + grace
        while running.alive and time.monotonic() < end:
            time.sleep(0.01)
        if running.alive:
            procs.send_signal(running.identity, signal.SIGKILL)
            while running.alive:
                time.sleep(0.005)
    return sweep(settings, kill=kill) or found


def sweep(settings: Settings, *, kill: bool = False) -> bool:
    """End gateway, replicas and zygotes that outlived their supervisor; True if there were any."""
    from kserve_local.supervisor.leftovers import has_leftovers, remove

    if not has_leftovers(settings):
        return False
    remove(settings, grace=0.0 if kill else 5.0)
    return True
