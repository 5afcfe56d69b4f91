"""What is saved in `bench_reload.py`: one small sklearn model behind three servers.

Each of them loads the same joblib file when it starts, and a method answers a constant. The peers
live in a virtual environment of their own, below the user's cache, which is made once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from tests.soak.steady import Call

PEERS = ("bentoml==1.4.39", "fastapi", "uvicorn[standard]")
PATIENCE = 90.0
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()
IMAGE = "example/constant:dev"
OURS = """\
import argparse
import joblib
import kserve


class Constant(kserve.Model):
    def load(self):
        self.model = joblib.load("{model}")
        self.ready = True
        return self.ready

    def predict(self, payload, headers=None):
        return {{"predictions": [{number} for _ in self.model.predict(payload["instances"])]}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    args, _ = parser.parse_known_args()
    model = Constant(args.model_name)
    model.load()
    kserve.ModelServer().start([model])
"""
UVICORN = """\
import joblib
from fastapi import FastAPI, Request

app = FastAPI()
model = joblib.load("{model}")


@app.post("/predict")
async def predict(request: Request):
    payload = await request.json()
    return {{"predictions": [{number} for _ in model.predict(payload["instances"])]}}
"""
BENTOML = """\
import bentoml
import joblib


@bentoml.service(workers=1)
class Constant:
    def __init__(self):
        self.model = joblib.load("{model}")

    @bentoml.api(route="/predict")
    def predict(self, instances: list[list[float]]) -> dict:
        return {{"predictions": [{number} for _ in self.model.predict(instances)]}}
"""


class NoPeers(Exception):
    """The peers' environment cannot be made."""


class Server(Protocol):
    """A server that runs, and the file that is edited."""

    file: Path
    port: int
    call: Call

    def text(self, number: int) -> str:
        """Return the file's content with a constant."""

    def stop(self) -> None:
        """End it, with all its processes."""


def interpreter() -> Path:
    """Return the Python that has the peers, made if it is not there.

    Raises:
        NoPeers: They cannot be installed.
    """
    wanted = (
        *PEERS,
        *(f"{n}=={importlib.metadata.version(n)}" for n in ("scikit-learn", "joblib")),
    )
    named = hashlib.sha256(repr((wanted, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "kserve-local-bench" / f"reload-{named}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    # Their own versions: constraints.txt is about ours.
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *wanted]
    for command in ([sys.executable, "-m", "venv", str(folder)], install):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        if done.returncode:
            raise NoPeers(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
    complete.touch()
    return python


class Peer:
    """A server of another project that restarts when its file is saved."""

    def __init__(
        self, folder: Path, name: str, template: str, command: Sequence[str], model: Path
    ) -> None:
        folder.mkdir()
        self.file = folder / name
        self.call = Call("/predict", BODY)
        self._template, self._model = template, model
        self.file.write_text(self.text(0))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        environment: Mapping[str, str] = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "BENTOML_HOME": str(folder.with_suffix(".home")),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        # Beside the folder: what a server writes into the one it watches restarts it for ever.
        self._log = folder.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = psutil.Popen(
                [*command, "--reload", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE
        while not self._listens():
            if time.monotonic() > end or self._process.poll() is not None:
                self.stop()
                raise NoPeers(
                    f"{' '.join(command)} does not serve:\n{self._log.read_text()[-2000:]}"
                )
            time.sleep(0.05)

    def text(self, number: int) -> str:
        """Return the file's content with a constant."""
        return self._template.format(model=self._model, number=number)

    def stop(self) -> None:
        """End it, with all its processes."""
        family: list[psutil.Process] = [self._process]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += self._process.children(recursive=True)
            self._process.terminate()
        psutil.wait_procs(family, timeout=5)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


def bentoml(folder: Path, python: Path, model: Path) -> Peer:
    """Start `bentoml serve --reload`."""
    command = (str(python), "-m", "bentoml", "serve", "service:Constant")
    return Peer(folder, "service.py", BENTOML, command, model)


def uvicorn(folder: Path, python: Path, model: Path) -> Peer:
    """Start `uvicorn --reload` on a FastAPI app."""
    command = (str(python), "-m", "uvicorn", "app:app", "--log-level", "warning")
    return Peer(folder, "app.py", UVICORN, command, model)


class KServeLocal:
    """A project with a custom predictor, up as a user has it."""

    def __init__(self, folder: Path, model: Path) -> None:
        folder.mkdir()
        self.folder, self._model = folder, model
        self.file = folder / "model.py"
        self.file.write_text(self.text(0))
        images = {IMAGE: {"context": ".", "command": ["python", "model.py"]}}
        (folder / "kserve-local.yaml").write_text(json.dumps({"images": images}))
        container = {"name": "kserve-container", "image": IMAGE, "args": ["--model_name=constant"]}
        service = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "constant"},
            "spec": {"predictor": {"containers": [container]}},
        }
        (folder / "service.json").write_text(json.dumps(service))
        try:
            self._run("up", "-d", "--wait", "--port", "auto", "--api-port", "auto")
        except BaseException:
            self.stop()
            raise
        state = json.loads((folder / ".kserve-local" / "run" / "supervisor.json").read_text())
        self.port = int(state["gateway"]["url"].rpartition(":")[2])
        self.call = Call("/v1/models/constant:predict", BODY)

    def text(self, number: int) -> str:
        """Return the file's content with a constant."""
        return OURS.format(model=self._model, number=number)

    def stop(self) -> None:
        """Take the project down."""
        self._run("down", "--volumes")

    def _run(self, *args: str) -> None:
        tool = [sys.executable, "-m", "kserve_local.cli.main", "-q", *args]
        done = subprocess.run(tool, cwd=self.folder, check=False, capture_output=True, text=True)
        if done.returncode:
            log = self.folder / ".kserve-local" / "logs" / "supervisor.log"
            tail = log.read_text()[-4000:] if log.exists() else ""
            raise RuntimeError(
                f"{' '.join(args)} ended with {done.returncode}:\n{done.stderr}\n{tail}"
            )
