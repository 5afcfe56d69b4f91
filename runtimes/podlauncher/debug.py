"""Lets a debugger into this process when it is asked to, and out again.

debugpy comes from the program's own environment, else from the folders that the request names.
Its adapter is a process of its own that ends with this one: when a client vanishes, the adapter
lets go of the program. Breakpoints reach the threads that run already, an event loop's among them.
Between two clients nothing is traced, so the program is as fast as before; tracing is what debugpy
costs before Python 3.12, a breakpoint set or not.

The thread that asks (`control`) is kept out of sight: it is never stopped, and goes on answering.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

_NOT_ADAPTERS = ("KSERVE_LOCAL_CONTROL", "KSERVE_LOCAL_RUN_FILE", "KSERVE_LOCAL_SOURCE")
_NO_VALIDATION = "PYDEVD_DISABLE_FILE_VALIDATION"

_port = 0
_pid = 0


class Unavailable(Exception):
    """debugpy cannot be used here; the message says what helps."""


def attach(path: Sequence[str], host: str) -> int:
    """Let debuggers in and return the port on which the adapter takes one at a time.

    Args:
        path: Folders that hold a debugpy, for a program whose environment has none.
        host: Where the adapter listens.

    Raises:
        Unavailable: debugpy cannot be imported, or does not work here.
    """
    global _port, _pid
    if _port and _pid == os.getpid():
        _trace()
        return _port
    if _pid:
        raise Unavailable(
            f"process {os.getpid()} was forked from one with a debugger in it, and takes none; "
            "restart it first"
        )
    debugpy = _debugpy(path)
    current = threading.current_thread()
    # pydevd passes over threads with these two: neither traced nor stopped nor listed.
    current.pydev_do_not_trace = current.is_pydev_daemon_thread = True  # type: ignore[attr-defined]
    # The adapter is no process of the program, and must not be asked as one.
    env = {name: value for name, value in os.environ.items() if name not in _NOT_ADAPTERS}
    try:
        debugpy.configure(subProcess=False, pythonEnv=env)
        _, port = debugpy.listen((host, 0))
    except Exception as error:
        raise Unavailable(f"debugpy {debugpy.__version__} does not start: {error}") from error
    _port, _pid = int(port), os.getpid()
    return _port


def detach() -> None:
    """Trace nothing until the next `attach`; the adapter stays."""
    if _port and _pid == os.getpid():
        _untrace()


def after_fork() -> None:
    """In a fork: its parent's debugger does not see it, so a breakpoint would stop it for good."""
    if _port and _pid != os.getpid():
        _untrace(others=False)


def _debugpy(path: Sequence[str]) -> Any:
    before = os.environ.get(_NO_VALIDATION)
    # Or it warns on stderr of frozen modules, which are none of the user's.
    os.environ[_NO_VALIDATION] = "1"
    try:
        return importlib.import_module("debugpy")
    except ImportError:
        sys.path.extend(path)
        importlib.invalidate_caches()
        try:
            return importlib.import_module("debugpy")
        except ImportError as error:
            raise Unavailable(
                f"{sys.executable} has no debugpy ({error}): install it there "
                "(pip install debugpy), or beside kserve-local (pip install 'kserve-local[debug]')"
            ) from None
        finally:
            for folder in path:
                sys.path.remove(folder)
    finally:
        if before is None:
            del os.environ[_NO_VALIDATION]
        else:
            os.environ[_NO_VALIDATION] = before


def _trace() -> None:
    debugger = _pydevd("pydevd").get_global_debugger()
    debugger.patch_threads()
    debugger.enable_tracing(debugger.trace_dispatch, apply_to_all_threads=True)


def _untrace(*, others: bool = True) -> None:
    """Take the trace function off this thread, off those that start from now on, and off all."""
    if _pydevd("_pydevd_bundle.pydevd_constants").PYDEVD_USE_SYS_MONITORING:
        _pydevd("_pydevd_bundle.pydevd_sys_monitoring").stop_monitoring(all_threads=True)
        return
    tracing = _pydevd("pydevd_tracing")
    _pydevd("_pydev_bundle.pydev_monkey").undo_patch_thread_modules()
    threading.settrace(None)

    def leave(frame: Any, event: str, argument: Any) -> None:
        tracing.SetTrace(None)

    tracing.SetTrace(None)
    if others:
        # A thread's trace function can only be taken off by itself: at its next call it does so.
        tracing.set_trace_to_threads(leave)


def _pydevd(name: str) -> Any:
    """Return a module of the debugger that debugpy has brought along."""
    return importlib.import_module(name)
