"""Which of a container's processes a debugger goes to, and where one stands."""

from __future__ import annotations

from kserve_local.backends.control import Frame, Interpreter
from kserve_local.supervisor.debug_target import serving, where


def process(pid: int, parent: int = 0, *stack: Frame) -> Interpreter:
    threads = [("MainThread", list(stack))]
    return Interpreter(pid, "3.11", {"__main__": "/app/model.py"}, threads, parent)


def test_a_single_process_serves() -> None:
    assert serving([process(7)]).pid == 7


def test_workers_serve_and_not_who_started_them() -> None:
    assert serving([process(9, 7), process(8, 7), process(7)]).pid == 8


def test_a_helper_of_the_server_does_not_serve() -> None:
    assert serving([process(7), process(8, 7)]).pid == 7


def test_where_it_stands_is_the_users_own_innermost_call() -> None:
    """Beneath the debugger's frames, wherever debugpy is installed."""
    stack = (
        Frame("model.py", 20, "<module>", True),
        Frame("/usr/lib/python3.11/asyncio/runners.py", 1, "run", False),
        Frame("model.py", 12, "predict", True),
        Frame(".venv/lib/site-packages/debugpy/_vendored/pydevd/pydevd.py", 5, "wait", True),
    )
    found = where(process(7, 0, *stack))
    assert found is not None
    assert (found.file, found.line, found.function) == ("model.py", 12, "predict")


def test_a_process_that_runs_stands_nowhere() -> None:
    assert where(process(7, 0, Frame("model.py", 12, "predict", True))) is None
