"""Engines that are not there, refuse, or hang; and what they say of themselves."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import warnings
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
import requests

from kserve_local.api.headlines import headline
from kserve_local.backends import docker_engine
from kserve_local.backends.docker_engine import Engine, _ours
from kserve_local.errors import (
    AlreadyExists,
    Conflict,
    KServeLocalError,
    Missing,
    NotFound,
    PortTaken,
    ServiceUnavailable,
    TimedOut,
)


@pytest.mark.parametrize("is_left_over", [False, True], ids=["none", "left over"])
async def test_nobody_at_the_socket_is_told_and_leaves_nothing_open(
    tmp_path: Path, is_left_over: bool
):
    path = tmp_path / "docker.sock"
    if is_left_over:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
    words = "connection refused" if is_left_over else "its socket does not exist"
    gc.collect()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(Missing, match=words) as error:
            await Engine.connect({"DOCKER_HOST": f"unix://{path}"})
        del error
        gc.collect()
    assert [str(w.message) for w in seen if w.category is ResourceWarning] == []


# What real engines said: status and message of their answers.
REFUSALS = [
    (
        500,
        "failed to create shim: write /run/x: no space left on device: unknown",
        ServiceUnavailable,
        "the Docker engine's disk is full: failed to create shim",
        "docker system df",
    ),
    (
        500,
        "driver failed programming external connectivity on endpoint x: Bind for "
        "127.0.0.1:8080 failed: port is already allocated",
        PortTaken,
        "Bind for 127.0.0.1:8080 failed",
        "",
    ),
    (404, "No such container: x", NotFound, "^No such container: x$", ""),
    (
        409,
        'Conflict. The container name "/x" is already in use by container "y"',
        AlreadyExists,
        "is already in use",
        "",
    ),
    (409, "Container x is not running", Conflict, "is not running", ""),
    (500, "something else", KServeLocalError, "^something else$", ""),
]


@asynccontextmanager
async def engine_that(answer: Callable[[str], tuple[int, bytes] | None], path: Path):
    """Serve an engine's API on a socket; None: the call is not answered."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                found = answer(line.split()[1].decode())
                if found is None:
                    await asyncio.sleep(30)
                    break
                status, body = found
                head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    engine = await Engine.connect({"DOCKER_HOST": f"unix://{path}"})
    try:
        yield engine
    finally:
        await engine.close()
        server.close()


def well(path: str) -> tuple[int, bytes] | None:
    if path.endswith("/_ping"):
        return 200, b"OK"
    if path.endswith("/version"):
        return 200, b'{"ApiVersion": "1.41", "Version": "20.10"}'
    if path.endswith("/info"):
        return 200, b"{}"
    return None


@pytest.mark.parametrize(
    ("status", "message", "kind", "words", "hint"), REFUSALS, ids=[r[1][:20] for r in REFUSALS]
)
async def test_what_an_engine_refuses_is_said_in_our_terms(
    tmp_path: Path, status: int, message: str, kind: type[KServeLocalError], words: str, hint: str
):
    def answer(path: str) -> tuple[int, bytes] | None:
        return well(path) or (status, json.dumps({"message": message}).encode())

    async with engine_that(answer, tmp_path / "s") as engine:
        with pytest.raises(kind, match=words) as raised:
            await engine.call("start", "x")
    assert type(raised.value) is kind
    assert hint in (raised.value.hint or "")


async def test_an_engine_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(docker_engine, "TIMEOUT", 1)
    async with engine_that(well, tmp_path / "s") as engine:
        with pytest.raises(TimedOut, match="did not answer within 1 s"):
            await engine.call("inspect_container", "x")


@pytest.mark.parametrize(
    ("info", "is_rootless", "is_podman"),
    [
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, False, False),
        ({"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}, True, False),
        ({"OperatingSystem": "Docker Desktop"}, True, False),
        # Podman 4.3 names no option.
        ({"SecurityOptions": [], "Rootless": False, "BuildahVersion": "1.28.2"}, False, True),
        ({"SecurityOptions": [], "Rootless": True, "BuildahVersion": "1.28.2"}, True, True),
    ],
)
def test_an_engine_is_known_by_what_it_says(
    info: dict[str, Any], is_rootless: bool, is_podman: bool
) -> None:
    engine = Engine(docker.APIClient(version="1.41"), info)
    assert (engine.is_rootless, engine.is_podman) == (is_rootless, is_podman)


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (
            409,
            'Conflict. The container name "/a" is already in use by container "1".',
            AlreadyExists,
        ),
        (409, "You cannot remove a running container", Conflict),
        # Podman's.
        (500, 'the container name "a" is already in use by 1. You have to remove', AlreadyExists),
        (500, "container 1 has dependent containers which must be removed before it: 2", Conflict),
        (500, "runc create failed", KServeLocalError),
    ],
)
def test_an_engines_refusal_becomes_ours(
    code: int, words: str, kind: type[KServeLocalError]
) -> None:
    response = requests.Response()
    response.status_code = code
    error = docker.errors.APIError("refused", response=response, explanation=words)
    assert type(_ours(error)) is kind


@pytest.mark.parametrize(
    ("info", "has_cgroups"),
    [
        ({"CgroupDriver": "cgroupfs", "CgroupVersion": "1"}, True),
        # Docker's rootless engine on cgroup v1, and Podman's.
        ({"CgroupDriver": "none", "CgroupVersion": "1"}, False),
        ({"CgroupDriver": "cgroupfs", "CgroupVersion": "1", "Rootless": True}, False),
        ({"CgroupDriver": "systemd", "CgroupVersion": "2", "Rootless": True}, True),
    ],
)
def test_figures_are_those_of_a_container_where_it_has_a_cgroup(
    info: dict[str, Any], has_cgroups: bool
) -> None:
    assert Engine(docker.APIClient(version="1.41"), info).has_cgroups is has_cgroups


def test_a_failed_build_names_the_step_and_ends_with_the_line_that_says_most() -> None:
    step = "Step 4/9 : RUN pip install     -r requirements.txt"
    error = "The command '/bin/sh -c pip install -r requirements.txt' returned a non-zero code: 1"
    output = [
        "ERROR: Could not find a version that satisfies the requirement nope==1",
        "ERROR: No matching distribution found for nope==1",
        "[notice] A new release of pip is available: 24.0 -> 25.3",
    ]
    told = docker_engine.failed_build("a:b", step, output, error)
    first, *rest = told.splitlines()
    assert first == (
        "cannot build image a:b: Step 4/9 : RUN pip install -r requirements.txt returned a "
        "non-zero code: 1"
    )
    assert rest == output[:2]
    assert headline(told) == "ERROR: No matching distribution found for nope==1"
    # Without output, and where the builder itself says why.
    told = docker_engine.failed_build("a:b", "Step 2/9 : RUN false", [], "The command '/bin/sh -c "
                                      "false' returned a non-zero code: 1")  # fmt: skip
    assert told.splitlines() == [
        "cannot build image a:b: Step 2/9 : RUN false", "it returned a non-zero code: 1",
    ]  # fmt: skip
    told = docker_engine.failed_build("a:b", "Step 3/9 : COPY x y", [], "COPY failed: no x")
    assert told.splitlines() == ["cannot build image a:b: Step 3/9 : COPY x y", "COPY failed: no x"]
    # BuildKit's and Podman's words have the instruction in them.
    for error in (
        'ERROR: failed to solve: process "/bin/sh -c make" did not complete successfully: '
        "exit code: 2",
        'building at STEP "RUN make": while running runtime: exit status 2',
    ):
        told = docker_engine.failed_build("a:b", "", ["make: no rule", "-----"], error)
        assert told == f"cannot build image a:b: {error}\nmake: no rule"
    long = docker_engine.failed_build("a:b", "Step 1/1 : RUN " + "x" * 500, ["no"], "exit code: 1")
    assert max(map(len, long.splitlines())) < 200
