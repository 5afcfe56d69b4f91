"""A real project under test: the command line as a user runs it, in a folder of its own.

Every process that a project starts carries the path of its state folder somewhere (argument,
environment or open file), so leftovers can be counted after `down`.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_models"
ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
IN_DOCKER = os.environ.get("KSERVE_LOCAL_TEST_BACKEND") == "docker"
"""Whether projects run all their Pods in Docker: the same suites, the other backend."""
of_processes = pytest.mark.skipif(IN_DOCKER, reason="about processes; a container has no such")
NO_DOCKER = "unix:///run/no-docker.sock"


def wait_until(
    what: Callable[[], Any], *, timeout: float = 60.0, step: float = 0.02, why: str = ""
) -> Any:
    """Return the first true value of `what()`; fail with `why` when none comes in time."""
    end = monotonic() + timeout
    while True:
        value = what()
        if value:
            return value
        if monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {why or what}")
        sleep(step)


def processes_of(folder: Path) -> dict[int, str]:
    """Return pid -> command of live processes (no zombies) that belong to a project's state."""
    needle = str(folder).encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z":
                continue
            command = (entry / "cmdline").read_bytes()
            if needle in command or needle in (entry / "environ").read_bytes():
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


@dataclass
class Project:
    """A project folder and the command line on it."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / ".kserve-local"

    @property
    def run_file(self) -> dict[str, Any]:
        """`run/supervisor.json`."""
        data: dict[str, Any] = json.loads((self.state / "run" / "supervisor.json").read_text())
        return data

    @property
    def gateway(self) -> str:
        """The gateway's URL."""
        return str(self.run_file["gateway"]["url"])

    def run(
        self, *args: str, check: int | None = 0, input: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `kserve-local ARGS` in the folder; `check` is the exit code that must come back."""
        done = subprocess.run(
            [sys.executable, "-m", "kserve_local.cli.main", *args],
            cwd=self.folder,
            env={**os.environ, **self.env},
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check is not None and done.returncode != check:
            log = self.state / "logs" / "supervisor.log"
            tail = log.read_text()[-4000:] if log.exists() else ""
            raise AssertionError(
                f"{' '.join(args)} ended with {done.returncode}, not {check}\n"
                f"stdout:\n{done.stdout}\nstderr:\n{done.stderr}\nsupervisor.log:\n{tail}"
            )
        return done

    def up(self, *args: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`up -d --wait` on free ports."""
        patience = 120.0
        if IN_DOCKER and "--timeout" not in args:
            # The first time the images of local source are built.
            args, patience = (*args, "--timeout", "600s"), 660.0
        ports = ("--port", "auto", "--api-port", "auto")
        return self.run("up", "-d", "--wait", *ports, *args, check=check, timeout=patience)

    def json(self, *args: str, check: int | None = 0) -> Any:
        """Run a command with `--json` and return the envelope's `data`."""
        done = self.run(*args, "--json", check=check)
        return json.loads(done.stdout)["data"]

    def call(
        self,
        path: str,
        body: Any = None,
        *,
        host: str = "",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> tuple[int, Any]:
        """Call the gateway; return status and the answer, parsed if it is JSON."""
        at = urlsplit(self.gateway)
        connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=timeout)
        send = {"Content-Type": "application/json", **(headers or {})}
        if host:
            send["Host"] = host
        try:
            data = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, data, send)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, raw.decode(errors="replace")

    def traced(
        self, path: str, body: Any, *, host: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, dict[str, Any]]:
        """Call the gateway; return status, the answer as it came, and the trace of its hops."""
        at = urlsplit(self.gateway)
        connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=60)
        send = {"Content-Type": "application/json", "x-kserve-local-trace": "1", **(headers or {})}
        if host:
            send["Host"] = host
        try:
            connection.request("POST", path, json.dumps(body), send)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, text, json.loads(answer.headers["x-kserve-local-trace"])
        finally:
            connection.close()

    def service(self, name: str) -> dict[str, Any]:
        """Return the service's entry of `status --json`."""
        found = [s for s in self.json("status")["services"] if s["name"] == name]
        assert found, f"no service {name}"
        return dict(found[0])

    def isvc(self, name: str) -> dict[str, Any]:
        """Return the InferenceService as the API has it."""
        done = self.run("get", "isvc", name, "-o", "json")
        return dict(json.loads(done.stdout))

    def leftovers(self) -> dict[int, str]:
        """Return live processes that still belong to this project."""
        return processes_of(self.folder)


@contextmanager
def project(folder: Path, *, env: Mapping[str, str] | None = None) -> Iterator[Project]:
    """Give a project folder (made if missing), and take everything down at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    # Whether an engine runs on the machine must change no test but those about Docker.
    alone = {"KSERVE_LOCAL_TRACEBACK": "1", "DOCKER_HOST": NO_DOCKER}
    if IN_DOCKER:
        alone |= {"KSERVE_LOCAL_BACKEND": "docker", "DOCKER_HOST": ENGINE}
    made = Project(folder, {**alone, **(env or {})})
    try:
        yield made
    finally:
        made.run("down", check=None)
        assert made.leftovers() == {}


def sample(name: str, into: Path) -> Path:
    """Copy a sample (trained if needed) and return the copy."""
    source = SAMPLES / name
    if not (source / "model").is_dir() and (source / "train.py").is_file():
        subprocess.run([sys.executable, str(source / "train.py")], check=True, capture_output=True)
    ignore = shutil.ignore_patterns(".kserve-local", "__pycache__")
    shutil.copytree(source, into, ignore=ignore, dirs_exist_ok=True)
    return into
