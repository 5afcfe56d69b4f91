"""Model server processes: recorded answers, starts that fail, signals, slow models, forks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.svm import SVC

from tests.conformance import run as conformance

IRIS = {
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [6.8, 2.8, 4.8, 1.4]}]
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the iris SVC."""
    folder = tmp_path_factory.mktemp("iris")
    x, y = load_iris(return_X_y=True)
    joblib.dump(SVC(gamma=1.0).fit(x, y), folder / "model.joblib")
    return folder


class Process:
    """A server process and its output."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self.port = conformance.free_port()
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, f"--http_port={self.port}"],
                env={**ENVIRONMENT, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> Process:
        conformance.wait_ready(f"http://127.0.0.1:{self.port}", self.process, self.log)
        return self

    def call(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def server(*command: str, log: Path, **environment: str) -> Iterator[Process]:
    """Run a server while the block is open."""
    process = Process(list(command), log, **environment)
    try:
        yield process.ready()
    finally:
        process.stop(signal.SIGKILL)


def test_recorded_answers_of_kserve_match(tmp_path: Path) -> None:
    """Every tenth case, and all that change state; `make conformance` has the rest."""
    names = ("sklearn-iris", "sklearn-repo", "echo")
    expected = {name: conformance.EXPECTED[name] for name in names}
    cases = conformance.load_cases(conformance.corpus_folder(), expected)
    seen: dict[str, int] = {}
    picked = []
    for case in cases:
        seen[case["family"]] = seen.get(case["family"], -1) + 1
        if "sequence" in case or seen[case["family"]] % 10 == 0:
            picked.append(case)
    conformance.train(tmp_path / "models")
    with conformance.servers(tmp_path / "models", tmp_path, names) as targets:
        outcome = conformance.replay(picked, targets)
    wrong = [(c["id"], found) for c, found in outcome.problems if not c.get("advisory")]
    assert wrong == []
    assert outcome.passed > 80


def test_a_corpus_that_lost_cases_is_no_judge(tmp_path: Path) -> None:
    """Fewer cases than known, or none, must not look like success."""
    with pytest.raises(conformance.TooFewCases):
        conformance.load_cases(tmp_path)
    lines = (conformance.HERE / "oip_rest.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if '"v2-id-001"' not in line]
    (tmp_path / "oip_rest.jsonl").write_text("\n".join(kept), encoding="utf-8")
    with pytest.raises(conformance.TooFewCases, match="echo"):
        conformance.load_cases(tmp_path)


def _several(folder: Path) -> None:
    for name in ("a.pkl", "b.pkl"):
        (folder / name).write_bytes(pickle.dumps(None))


def _unreadable(folder: Path) -> None:
    (folder / "model.joblib").write_bytes(b"not a pickle")


def _missing_package(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"cno_such_package\nThing\n.")


def _broken_sub_directory(folder: Path) -> None:
    (folder / "one").mkdir()


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (_several, "More than one model file is detected, Only one is allowed within model_dir: ["),
        (_unreadable, "could not be loaded"),
        (_missing_package, "No module named 'no_such_package'"),
        (_broken_sub_directory, "Missing Model File"),
    ],
    ids=["no folder", "several files", "unreadable", "missing package", "empty sub-directory"],
)
def test_a_model_that_does_not_load_ends_the_start_with_1(
    prepare: object, text: str, tmp_path: Path
) -> None:
    """And the log says why, which becomes the Pod's status."""
    folder = tmp_path / "model"
    folder.mkdir()
    assert callable(prepare)
    prepare(folder)
    process = Process(["-m", "sklearnserver", f"--model_dir={folder}"], tmp_path / "log")
    assert process.process.wait(60) == 1
    assert text in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "arguments", [[], ["--model_dir=x", "--http_port=many"], ["--model_dir=x", "--enable_grpc=so"]]
)
def test_bad_arguments_are_exit_2(arguments: list[str]) -> None:
    """As any argparse program; unknown arguments, though, are ignored."""
    command = [sys.executable, "-m", "sklearnserver", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: sklearnserver" in done.stderr


def test_a_taken_port_is_exit_1_before_the_model_is_loaded(iris: Path, tmp_path: Path) -> None:
    """The log names address and port."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "sklearnserver", f"--model_dir={iris}", f"--http_port={port}"],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "Loading model" not in done.stderr


def test_a_folder_without_models_is_a_server_without_models(tmp_path: Path) -> None:
    """It says that it is ready, as KServe does."""
    (tmp_path / "models").mkdir()
    command = ("-m", "sklearnserver", f"--model_dir={tmp_path / 'models'}", "--no_such_argument=1")
    with server(*command, log=tmp_path / "log") as process:
        assert process.call("GET", "/v1/models") == (200, {"models": []})
        assert process.call("GET", "/v2/health/ready") == (200, {"ready": True})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_end_the_server_with_0(number: int, iris: Path, tmp_path: Path) -> None:
    """Also with an idle keep-alive connection open."""
    command = ("-m", "sklearnserver", "--model_name=iris", f"--model_dir={iris}")
    with server(*command, log=tmp_path / "log") as process:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
            assert process.stop(number) == 0


SLOW = """
import sys, time
from modelserver.cli import make_parser
from modelserver.model import InferOutput, InferResponse, Model
from modelserver.serve import serve
import numpy as np

class Slow(Model):
    def predict(self, request):
        open(request.parameters["until"] + ".begun", "w").close()
        while not __import__("os").path.exists(request.parameters["until"]):
            time.sleep(0.005)
        return InferResponse(self.name, [InferOutput.of("y", np.array([1]))], request.id)

class Later(Model):
    async def predict(self, request):
        import asyncio
        await asyncio.sleep(0)
        return InferResponse(self.name, [InferOutput.of("y", np.array([2]))], request.id)

    async def predict_v1(self, payload, headers):
        async def chunks():
            for i in range(3):
                yield f"chunk-{i}"
        return chunks()

def models():
    made = [Slow("slow"), Later("later")]
    return made, None

sys.exit(serve(make_parser().parse_known_args()[0], models))
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Process]:
    """A server whose model `slow` answers once a file exists."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    with server(str(script), log=tmp_path / "slow.log") as process:
        yield process


def ask_slow(process: Process, until: Path, found: list[tuple[int, object]]) -> threading.Thread:
    body = {"id": "s", "parameters": {"until": str(until)}, "inputs": []}
    thread = threading.Thread(
        target=lambda: found.append(process.call("POST", "/v2/models/slow/infer", body))
    )
    thread.start()
    return thread


def busy(until: Path, found: list[tuple[int, object]]) -> None:
    """Wait until the slow request has reached the model; nothing is answered yet."""
    deadline = time.monotonic() + 20
    while not Path(f"{until}.begun").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not found


def test_health_is_answered_while_a_slow_prediction_runs(slow: Process, tmp_path: Path) -> None:
    """Or the node agent would restart a Pod that is merely at work."""
    found: list[tuple[int, object]] = []
    thread = ask_slow(slow, tmp_path / "go", found)
    busy(tmp_path / "go", found)
    assert slow.call("GET", "/v2/health/live") == (200, {"live": True})
    assert not found
    (tmp_path / "go").touch()
    thread.join(30)
    assert found[0][0] == 200


def test_open_requests_are_answered_after_sigterm(slow: Process, tmp_path: Path) -> None:
    """New connections are refused at once, the process ends when the last answer is out."""
    found: list[tuple[int, object]] = []
    thread = ask_slow(slow, tmp_path / "go", found)
    busy(tmp_path / "go", found)
    slow.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", slow.port)) != 0:
                break
    else:
        raise AssertionError("the port still accepts")
    assert slow.process.poll() is None
    (tmp_path / "go").touch()
    thread.join(30)
    assert found[0][0] == 200
    assert slow.process.wait(30) == 0


def test_coroutine_models_and_streams(slow: Process) -> None:
    """Both run as tasks."""
    status, body = slow.call("POST", "/v2/models/later/infer", {"inputs": []})
    assert status == 200
    assert isinstance(body, dict)
    assert body["outputs"][0]["data"] == [2]
    connection = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/models/later:predict", b"{}")
        answer = connection.getresponse()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.read() == b"chunk-0chunk-1chunk-2"


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_share_the_port_and_are_replaced(iris: Path, tmp_path: Path) -> None:
    """`--workers=2`: a dead one is replaced, SIGTERM ends all."""
    command = ("-m", "sklearnserver", "--model_name=m", f"--model_dir={iris}", "--workers=2")
    with server(*command, log=tmp_path / "log") as process:
        before = children(process.process.pid)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            now = children(process.process.pid)
            if len(now) == 2 and before[0] not in now:
                break
            time.sleep(0.005)
        assert before[0] not in now
        assert process.call("POST", "/v2/models/m/infer", IRIS)[0] == 200
        assert process.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in {*before, *now})


BOOSTERS = conformance.HERE / "models" / "boosters"


@pytest.mark.parametrize(
    ("framework", "shape"), [("sklearn", [1]), ("xgboost", [1, 3]), ("lightgbm", [1, 3])]
)
def test_predictiveserver_is_the_framework_server(
    framework: str, shape: list[int], iris: Path, tmp_path: Path
) -> None:
    """Same arguments, same answers."""
    folders = {"sklearn": iris, "xgboost": BOOSTERS / "xgb-iris", "lightgbm": BOOSTERS / "lgb-iris"}
    folder = folders[framework]
    command = ("-m", "predictiveserver", f"--framework={framework}", f"--model_dir={folder}")
    with server(*command, "--model_name=m", "--nthread=1", log=tmp_path / "log") as process:
        status, body = process.call("POST", "/v2/models/m/infer", IRIS)
        assert status == 200
        assert isinstance(body, dict)
        assert body["outputs"][0]["shape"] == shape


@pytest.mark.parametrize("name", ["sklearnserver", "xgbserver", "lgbserver", "predictiveserver"])
def test_a_warm_parent_can_be_forked(name: str) -> None:
    """One thread, no socket, no running loop: what a zygote needs before it forks."""
    code = f"""
import asyncio, os
from {name} import warm
warm.warm()
print(len(os.listdir("/proc/self/task")))
links = []
for number in os.listdir("/proc/self/fd"):
    try:
        links.append(os.readlink(f"/proc/self/fd/{{number}}"))
    except OSError:
        pass
print(sum(link.startswith("socket:") or "eventpoll" in link for link in links))
"""
    limited = {**ENVIRONMENT, "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "0"]
