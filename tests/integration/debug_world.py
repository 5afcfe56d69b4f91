"""A project whose custom predictor is debugged, with limits that a breakpoint outlasts by far."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from tests.dap import DapClient
from tests.integration.project import Project, wait_until

MODEL = """
import argparse
import sys
import threading

import kserve


class Adder(kserve.Model):
    def load(self):
        self.ready = True

    def predict(self, payload, headers=None):
        total = sum(payload["instances"])
        return {"predictions": [total]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    model = Adder(parser.parse_args().model_name)
    model.load()
    kserve.ModelServer().start([model])
"""
FILE = "model.py"
LINE = MODEL.splitlines().index('        total = sum(payload["instances"])') + 1
BODY = {"instances": [1, 2, 3]}
LIMIT = 3
"""`spec.predictor.timeout`."""
WINDOW = 6
"""The autoscaler's stable window: the shortest that Knative takes."""


def probe() -> dict[str, Any]:
    """One that gives up at the first failure."""
    check = {"httpGet": {"path": "/v2/health/live", "port": 8080}}
    return {**check, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1}


def adder(name: str, *args: str, **more: Any) -> dict[str, Any]:
    """An InferenceService whose predictor is the model above."""
    container = {
        "name": "kserve-container",
        "image": "example/adder:dev",
        "args": [f"--model_name={name}", *args],
        "readinessProbe": probe(),
        "livenessProbe": probe(),
        "startupProbe": {**probe(), "failureThreshold": 60},
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": {"autoscaling.knative.dev/window": f"{WINDOW}s"},
        },
        "spec": {
            "predictor": {
                "minReplicas": 0, "maxReplicas": 3, "timeout": LIMIT, "containers": [container],
                **more,
            }
        },
    }  # fmt: skip


def write(folder: Path, *services: dict[str, Any]) -> Path:
    """Write a project of these services."""
    folder.mkdir(parents=True)
    (folder / FILE).write_text(MODEL)
    manifest = {"apiVersion": "v1", "kind": "List", "items": list(services)}
    (folder / "services.yaml").write_text(json.dumps(manifest))
    image = {"context": ".", "command": ["python", FILE]}
    config = {
        "images": {"example/adder:dev": image},
        "autoscaling": {"scaleToZeroGrace": "1s"},
    }
    (folder / "kserve-local.yaml").write_text(json.dumps(config))
    return folder


def begin(world: Project, name: str, *flags: str) -> dict[str, Any]:
    """Begin a session that stays; return what the command says of it."""
    return dict(world.json("debug", name, "--port", "auto", *flags))


@contextmanager
def attached(world: Project, name: str, *flags: str) -> Iterator[DapClient]:
    """Attach an IDE with a breakpoint in `predict`."""
    session = begin(world, name, *flags)
    client = DapClient(session["port"])
    try:
        client.attach(world.folder / FILE, LINE)
        yield client
    finally:
        client.close()
        world.run("debug", name, "--stop", check=None)


def predicting(world: Project, name: str, *, timeout: float = 60) -> Queue[tuple[int, Any]]:
    """Call the model; the answer comes into the queue."""
    answers: Queue[tuple[int, Any]] = Queue()

    def call() -> None:
        host = f"{name}.default.example.com"
        path = f"/v1/models/{name}:predict"
        answers.put(world.call(path, BODY, host=host, timeout=timeout))

    threading.Thread(target=call, name="predicting", daemon=True).start()
    return answers


def pods(world: Project, name: str) -> list[dict[str, Any]]:
    """Return the service's Pods."""
    selector = f"serving.kserve.io/inferenceservice={name}"
    done = world.run("get", "pods", "-l", selector, "-o", "json")
    return list(json.loads(done.stdout)["items"])


def restarts(pod: dict[str, Any]) -> int:
    """How often its container was started again."""
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def failed_probes(world: Project, name: str) -> list[str]:
    """Return the messages of the Events about probes of the service's Pods."""
    done = world.run("get", "events", "-o", "json")
    return [
        e["message"]
        for e in json.loads(done.stdout)["items"]
        if e["reason"] == "Unhealthy" and e["involvedObject"]["name"].startswith(f"{name}-")
    ]


def at_zero(world: Project, name: str) -> None:
    """Wait until the service has no Pod."""
    wait_until(lambda: not pods(world, name), step=0.3, why=f"{name} is not at zero")


class Command:
    """`kserve-local debug` in the foreground."""

    def __init__(self, world: Project, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kserve_local.cli.main", "debug", *args],
            cwd=world.folder, env={**os.environ, **world.env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, name="debug-stderr", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None  # a pipe was asked for
        self.lines.extend(iter(self.process.stderr.readline, ""))

    def said(self, text: str) -> str:
        """Wait for a line of narration that holds the text."""
        return str(
            wait_until(
                lambda: next((x for x in list(self.lines) if text in x), ""),
                timeout=30,
                why=f"{text!r} not in {self.lines}",
            )
        )

    def interrupt(self) -> int:
        """Press Ctrl-C and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def end(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()
        self._reader.join(10)
