"""Starting a supervisor in a session of its own, and ending everything a project started."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kserve_local import procs
from kserve_local.cli.interrupts import Hear
from kserve_local.client.project import find_running
from kserve_local.errors import KServeLocalError, TimedOut, from_exit_code
from kserve_local.settings import Settings

START_TIMEOUT = 60.0
_TOLD_AFTER = 5.0
"""Seconds of silence while a project stops; most are down long before."""


def start_supervisor(
    settings: Settings,
    flags: Mapping[str, Any],
    *,
    profile: str,
    warm: Sequence[str],
    hear: Hear,
) -> bool:
    """Start the supervisor and return once it listens; False if another command just did.

    Args:
        flags: `Settings` fields that the command line gave.
        warm: Runtimes to have zygotes for.
        hear: Ctrl-C is held back by the caller, and heard while this waits.

    Raises:
        KServeLocalError: It did not start, and nothing is left of it; message and exit code are
            the supervisor's own.
        TimedOut: It neither listens nor fails.
    """
    from kserve_local.supervisor import statedir
    from kserve_local.supervisor.leftovers import has_survivors

    fresh = not settings.state.exists()
    statedir.prepare(settings)
    _let_go_of_copy(settings)
    with contextlib.ExitStack() as alone:
        with hear():
            alone.enter_context(statedir.changing(settings, patience=START_TIMEOUT))
        if find_running(settings) is not None:
            return False
        try:
            _start(settings, flags, profile=profile, warm=warm, hear=hear)
        except BaseException as error:
            # The one place that tidies up after a start; what an earlier supervisor left serving
            # keeps its sockets.
            if not has_survivors(settings):
                statedir.remove_runtime(settings)
            if fresh and isinstance(error, KServeLocalError):
                shutil.rmtree(settings.state, ignore_errors=True)
            raise
    return True


def _let_go_of_copy(settings: Settings) -> None:
    """Forget what run files say that were copied with the folder: it is another project's.

    Else it would be adopted here, or ended.
    """
    from kserve_local.client.project import copied_from

    if copied_from(settings) is not None:
        from kserve_local.supervisor.remains import forget_copy

        forget_copy(settings)


def _start(
    settings: Settings, flags: Mapping[str, Any], *, profile: str, warm: Sequence[str], hear: Hear
) -> None:
    log = settings.log_dir / "supervisor.log"
    _rotate(log, settings)
    begun = log.stat().st_size if log.exists() else 0
    reading, writing = os.pipe()
    argv = [sys.executable, "-P", "-m", "kserve_local.supervisor"]
    argv += ["--project", str(settings.project), "--flags", json.dumps(flags)]
    argv += ["--profile", profile, "--ready-fd", str(writing), "--warm", ",".join(warm)]
    try:
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
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        # What talks to it takes a while to import; it takes longer to start.
        importlib.import_module("kserve_local.client.client")
        importlib.import_module("kserve_local.cli.progress")
        with hear():
            answer = _answer(reading, START_TIMEOUT, log)
    except BaseException:
        _end(child, hear)
        raise
    finally:
        os.close(reading)
    if answer is None:
        code = child.wait()
        tail = log.read_bytes()[begun:].decode(errors="replace").splitlines()[-15:]
        sweep(settings, kill=True)
        raise KServeLocalError(
            f"the supervisor ended with {code} before it listened", hint="\n".join(tail)
        )
    if "error" in answer:
        child.wait()
        body = answer["error"]
        code = int(body.get("exit_code", 1))
        raise from_exit_code(code, body["message"], hint=body.get("hint", ""))
    # It lives on by itself; without this the interpreter warns of a child nobody waited for.
    child.returncode = 0


def _end(child: subprocess.Popen[bytes], hear: Hear) -> None:
    """End a supervisor that is still starting; it takes down what it has started."""
    child.terminate()
    try:
        with hear():
            child.wait(30.0)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def _rotate(log: Any, settings: Settings) -> None:
    if log.exists() and log.stat().st_size > settings.log_max_bytes:
        log.replace(log.with_suffix(".log.1"))


def _answer(descriptor: int, timeout: float, log: Path) -> dict[str, Any] | None:
    """Return the supervisor's one line, None if it closed the pipe without."""
    end = time.monotonic() + timeout
    text = b""
    while b"\n" not in text:
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimedOut(
                f"the supervisor neither listens nor fails after {timeout:g} s",
                hint=f"see {log}",
            )
        more = os.read(descriptor, 65536)
        if not more:
            return None
        text += more
    answer: dict[str, Any] = json.loads(text)
    return answer


def _silent(text: str) -> None:
    """Say nothing."""


def stop_supervisor(
    settings: Settings, *, grace: float, kill: bool = False, say: Callable[[str], None] = _silent
) -> bool:
    """Stop the project's supervisor if one runs, and whatever an earlier one left behind.

    Args:
        grace: Seconds the supervisor has to take everything down.
        say: Is told what it waits for, where that takes long.
        kill: End everything at once.

    Returns:
        Whether there was anything to stop.

    Raises:
        Forbidden: The project is another user's.
    """
    from kserve_local.client.project import check_access
    from kserve_local.supervisor import statedir

    check_access(settings)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    _let_go_of_copy(settings)
    if kill:
        return _stop(settings, grace, kill=True, say=say)
    with statedir.changing(settings, patience=START_TIMEOUT + grace):
        return _stop(settings, grace, kill=False, say=say)


def _stop(settings: Settings, grace: float, *, kill: bool, say: Callable[[str], None]) -> bool:
    from kserve_local.supervisor import statedir
    from kserve_local.supervisor.leftovers import left_to_end

    supervisor = statedir.owner(settings)
    if supervisor is not None:
        procs.send_signal(supervisor, signal.SIGKILL if kill else signal.SIGTERM)
        begun = time.monotonic()
        told, look = "", begun + _TOLD_AFTER
        while procs.alive(supervisor) and time.monotonic() < begun + grace:
            time.sleep(0.01)
            if time.monotonic() >= look:
                look += _TOLD_AFTER
                waits = left_to_end(settings)
                if waits and waits != told:
                    told = waits
                    say(f"waiting for {waits} to end; after {grace:g} s in all it is killed")
        if procs.alive(supervisor):
            procs.send_signal(supervisor, signal.SIGKILL)
            while procs.alive(supervisor):
                time.sleep(0.005)
            kill = True
    return sweep(settings, kill=kill) or supervisor is not None


def sweep(settings: Settings, *, kill: bool = False) -> bool:
    """End gateway, replicas and zygotes that outlived their supervisor; True if there were any."""
    from kserve_local.supervisor.leftovers import has_leftovers, remove

    if not has_leftovers(settings):
        return False
    remove(settings, grace=0.0 if kill else 5.0)
    return True
