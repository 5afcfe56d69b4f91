"""The next step for each way a container is known to end. Texts are what libraries really print."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kserve_local.controllers.pod_faults import (
    Ended,
    diagnose,
    exited,
    is_address_taken,
    killed_by,
    tail,
    wanted_address,
)

FAILED = Ended("Error", 1, image="kserve/sklearnserver:v0.20.0")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("ModuleNotFoundError: No module named 'catboost.core'", "provides `catboost`"),
        (
            "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8080): "
            "address already in use",
            "the port it wants to listen on is taken",
        ),
        ("server: error: unrecognized arguments: --foo 1", "`--foo 1`"),
        ("error: argument --http_port: invalid int value: 'x'", "invalid int value: 'x'"),
        (
            "error: the following arguments are required: --model_dir",
            "the following arguments are required: --model_dir",
        ),
        ("MemoryError", "raise resources.limits.memory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "limits.memory"),
        (
            "RuntimeError: More than one model file is detected, Only one is allowed within "
            "model_dir: ['a', 'b']",
            "several model files",
        ),
        ("_pickle.UnpicklingError: invalid load key, 'x'.", "cannot be unpickled"),
        (
            "ValueError: node array from the pickle has an incompatible dtype:",
            "cannot be unpickled",
        ),
        ("EOFError\nmodel file /m/model.joblib could not be loaded: EOFError: ", "damaged"),
        ("AttributeError: Can't get attribute 'Net' on <module '__main__'>", "unpickled"),
        ("python: can't open file '/p/model.py': [Errno 2]", "there is no file /p/model.py"),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/mnt/models/vocab.txt'",
            "/mnt/models/vocab.txt does not exist",
        ),
        ("PermissionError: [Errno 13] Permission denied: '/data/x'", "may not use /data/x"),
        ("SyntaxError: invalid syntax", "does not compile"),
        ("ImportError: cannot import name 'Model' from 'kserve' (x)", "`kserve` is there"),
    ],
)
def test_known_logs_have_a_next_step(log: str, said: str) -> None:
    assert said in diagnose(FAILED, f"INFO starting\n{log}\n")


def test_a_missing_package_of_local_source_names_the_image() -> None:
    step = diagnose(
        Ended("Error", 1, image="my/fraud:dev", source=True), "No module named 'catboost'"
    )
    assert 'images."my/fraud:dev".requirements' in step


def test_a_command_that_is_not_there_names_the_images_entry() -> None:
    log = 'kserve-local: exec: "/opt/py/bin/python": no such file or directory'
    step = diagnose(Ended("ContainerCannotRun", 127, image="my/fraud:dev", source=True), log)
    assert step.startswith('kserve-local.yaml, images."my/fraud:dev".command: /opt/py/bin/python')
    assert "write `python` for the project's own interpreter" in step
    own = Ended("ContainerCannotRun", 127, image="my/fraud:dev", source=True, own_command=True)
    assert "kserve-local.yaml" not in diagnose(own, log)


def test_out_of_memory_names_the_limit() -> None:
    step = diagnose(Ended("OOMKilled", 137, memory_limit_bytes=512 << 20), "")
    assert step.endswith("raise resources.limits.memory (now 512 Mi)")


def test_a_taken_port_names_its_holder() -> None:
    step = diagnose(Ended("Error", 1, holder="pid 7 (nginx)"), "Address already in use")
    assert "held by pid 7 (nginx)" in step


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Ended("Completed", 0), "must keep running"),
        (Ended("ContainerCannotRun", 127), "command cannot be run"),
        (Ended("Error", 137), "killed it"),
        (Ended("Error", 134, signal=6), "aborted itself"),
        (Ended("Error", 139, signal=11), "PYTHONFAULTHANDLER=1"),
        (Ended("Error", 132, signal=4), "this CPU lacks"),
        (Ended("Error", 143, signal=15), "SIGTERM"),
        (Ended("Error", 140, signal=12), "read its log"),
        (Ended("Error", 1), "read its log"),
    ],
)
def test_without_a_telling_log_the_exit_code_speaks(ended: Ended, said: str) -> None:
    assert said in diagnose(ended, "nothing special")


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Ended("Error", 134, signal=6), "killed by SIGABRT"),
        (Ended("Error", 139, signal=11), "killed by SIGSEGV"),
        (Ended("Error", 134), "exit code 134, as of a process killed by SIGABRT"),
        (Ended("OOMKilled", 137, signal=9), "OOMKilled (exit code 137)"),
        (
            Ended("OOMKilled", 137, memory_limit_bytes=400 * 2**20),
            "OOMKilled (exit code 137), limit 400Mi",
        ),
        (Ended("Error", 1), ""),
        (Ended("Error", 128), ""),
        (Ended("Error", 255), ""),
        (Ended("Completed", 0), ""),
        (Ended("Unknown", None), ""),
    ],
)
def test_a_signal_is_told_in_words(ended: Ended, said: str) -> None:
    assert killed_by(ended) == said


ACCESS = '2026-11-29 10:00:00.1 7 uvicorn.access INFO [x.py:send():1] "GET /error HTTP/1.1" 500'
TRACE = "Traceback (most recent call last):\n  File x\n    raise Halt"


@pytest.mark.parametrize(
    ("ended", "log", "said"),
    [
        (Ended("Error", 3), ACCESS, "ended with exit code 3"),
        (Ended("Error", 3), "ValueError: bad\n" + ACCESS, "ended with exit code 3"),
        (Ended("Error", 3), "", "ended with exit code 3"),
        (Ended("Completed", 0), ACCESS, "ended with exit code 0"),
        (
            Ended("Error", 3),
            "no more info",
            'ended with exit code 3; its last line: "no more info"',
        ),
        (Ended("Error", 1), ACCESS + "\nValueError: bad", ""),
        (Ended("Error", 1), f"{TRACE}\nmy.Halt: stop", ""),
        (Ended("Error", 1), f"{TRACE}\nmy.Halt", ""),
        (Ended("Error", 2), "usage: x\n  [--y]\nx: error: bad", ""),
        (
            Ended("Error", 1),
            "2026-11-29 modelserver.serve ERROR [serve.py:_load():1] no licence",
            "",
        ),
        (Ended("Error", 137, signal=9), ACCESS, ""),
        (Ended("OOMKilled", 137), ACCESS, ""),
        (Ended("Unknown", None), "", ""),
    ],
)
def test_a_log_that_does_not_say_why_it_ended_is_completed(
    ended: Ended, log: str, said: str
) -> None:
    """The line below which nothing else stands is what every summary shows."""
    assert exited(ended, log) == said


@pytest.mark.parametrize(
    ("log", "address"),
    [
        ("bind on address ('127.64.0.3', 8080): address already in use", ("127.64.0.3", 8080)),
        ("listen tcp 0.0.0.0:9000: bind: address already in use", ("0.0.0.0", 9000)),
        ("OSError: [Errno 98] Address already in use", None),
        ("listening on 0.0.0.0:9000", None),
    ],
)
def test_the_wanted_address_is_read_off_the_log(log: str, address: tuple[str, int] | None) -> None:
    assert wanted_address(log) == address
    assert is_address_taken(log) is ("in use" in log)


def test_the_tail_is_whole_last_lines_within_its_bounds() -> None:
    lines = [f"line {n}" for n in range(100)]
    assert tail("\n".join(lines)).splitlines() == lines[-20:]
    assert tail("x" * 5000 + "\nlast\n\n") == "last"
    assert len(tail("x" * 5000)) == 2048
    assert tail("") == ""


def test_what_was_killed_from_here_gets_no_hint_about_memory() -> None:
    killed = Ended("Error", 137, signal=9)
    assert "limits.memory" in diagnose(killed, "")
    probed = diagnose(replace(killed, killed_for="its liveness probe failed"), "")
    assert "limits.memory" not in probed
    assert "startupProbe" in probed
    # One that heeds SIGTERM ends as if by itself.
    ended = Ended("Completed", 0, killed_for="its liveness probe failed")
    assert "by itself" not in diagnose(ended, "")
    assert diagnose(replace(killed, killed_for="the Pod's sandbox ended"), "") == ""
