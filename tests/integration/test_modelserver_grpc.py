"""gRPC of real server processes: clients that people use, a port that is taken, drain, workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import joblib
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest, ServerReadyRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from sklearn.datasets import load_iris
from sklearn.svm import SVC

from modelserver import grpc_discovery as discovery
from tests.conformance import run as conformance

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ROWS = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]])

# A model whose call takes as long as the request says.
SLOW = """
import sys, time
import numpy as np
from modelserver.cli import make_parser
from modelserver.model import InferOutput, InferResponse, Model
from modelserver.serve import serve

class Slow(Model):
    def predict(self, request):
        time.sleep(float(request.inputs[0].as_numpy()[0]))
        return InferResponse(self.name, [InferOutput.of("y", np.array([1.0]))])

args, _ = make_parser().parse_known_args()
sys.exit(serve(args, lambda: ([Slow("slow")], None)))
"""


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the iris SVC."""
    folder = tmp_path_factory.mktemp("iris")
    x, y = load_iris(return_X_y=True)
    joblib.dump(SVC(gamma=1.0).fit(x, y), folder / "model.joblib")
    return folder


class Process:
    """A server process, its ports and its output."""

    def __init__(self, command: list[str], log: Path, grpc_port: int | None = None) -> None:
        self.http_port, self.grpc_port = conformance.free_port(), grpc_port
        self.log = log
        command = [sys.executable, *command, f"--http_port={self.http_port}"]
        if grpc_port is None:
            self.grpc_port = conformance.free_port()
            command.append(f"--grpc_port={self.grpc_port}")
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
            )

    def ready(self) -> Process:
        conformance.wait_ready(f"http://127.0.0.1:{self.http_port}", self.process, self.log)
        return self

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(40)


@contextlib.contextmanager
def server(log: Path, *command: str) -> Iterator[Process]:
    """Run a server while the block is open."""
    process = Process(list(command), log)
    try:
        yield process.ready()
    finally:
        process.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def served(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An sklearnserver of the iris SVC."""
    log = tmp_path_factory.mktemp("served") / "log"
    arguments = ["--model_name=iris", f"--model_dir={iris}"]
    with server(log, "-m", "sklearnserver", *arguments) as process:
        yield process


@contextlib.contextmanager
def stub(address: str) -> Iterator[Any]:
    """Call a server by the SDK's generated stub."""
    # Its own connection: calls to one address share one otherwise.
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    with grpc.insecure_channel(address, options) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("binary", [False, True])
async def test_the_sdks_client(served: Process, binary: bool) -> None:
    tensor = InferInput("x", [2, 4], "FP64")
    tensor.set_data_from_numpy(ROWS, binary_data=binary)
    async with InferenceGRPCClient(served.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("iris")
        answer = await client.infer(InferRequest("iris", [tensor], request_id="a"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.infer(InferRequest("nope", [tensor]))
    assert answer.id == "a"
    assert answer.outputs[0].as_numpy().tolist() == [1, 1]
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    assert error.value.details() == "Model with name nope does not exist."
    assert ("x-kserve-local-models", "iris") in tuple(error.value.trailing_metadata() or ())


async def test_health_and_reflection_are_answered(served: Process) -> None:
    check = discovery.message("grpc.health.v1.HealthCheckRequest")
    state = discovery.message("grpc.health.v1.HealthCheckResponse")
    async with grpc.aio.insecure_channel(served.address) as channel:
        ask = channel.unary_unary(
            f"/{discovery.HEALTH}/Check", check.SerializeToString, state.FromString
        )
        for service in ("", "inference.GRPCInferenceService", "iris"):
            assert (await ask(check(service=service), timeout=20)).status == discovery.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask(check(service="nope"), timeout=20)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream(
            f"/{discovery.HEALTH}/Watch", check.SerializeToString, state.FromString
        )
        call = watch(check(service="nope"), timeout=20)
        assert (await call.read()).status == discovery.SERVICE_UNKNOWN
        call.cancel()
        asked = discovery.message("grpc.reflection.v1.ServerReflectionRequest")
        told = discovery.message("grpc.reflection.v1.ServerReflectionResponse")
        info = channel.stream_stream(
            f"/{discovery.REFLECTION}/ServerReflectionInfo",
            asked.SerializeToString,
            told.FromString,
        )
        questions = [
            asked(list_services="*"),
            asked(file_containing_symbol="inference.GRPCInferenceService"),
        ]
        answers = [a async for a in info(iter(questions), timeout=20)]
    names = [s.name for s in answers[0].list_services_response.service]
    assert names == ["inference.GRPCInferenceService", discovery.HEALTH, discovery.REFLECTION]
    file = FileDescriptorProto.FromString(
        answers[1].file_descriptor_response.file_descriptor_proto[0]
    )
    assert file.service[0].method[5].name == "ModelInfer"


# In a process of its own: it registers the names of the messages, as the SDK does.
TRITON = """
import sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("iris")
assert client.get_server_metadata().name == "kserve"
assert client.get_model_metadata("iris").name == "iris"
x = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]], np.float32)
tensor = triton.InferInput("x", list(x.shape), "FP32")
tensor.set_data_from_numpy(x)
answer = client.infer("iris", [tensor], outputs=[triton.InferRequestedOutput("output-0")])
assert answer.as_numpy("output-0").tolist() == [1, 1]
try:
    client.infer("iris", [tensor], outputs=[triton.InferRequestedOutput("other")])
except triton.InferenceServerException as error:
    assert "Unexpected inference output 'other'" in error.message(), error
print("fine")
"""


def test_tritonclient(served: Process) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRITON, served.address], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_calls_count_in_the_metrics_and_the_latency_log(served: Process) -> None:
    request = iris_request()
    with stub(served.address) as call:
        call.ModelInfer(request, metadata=(("x-request-id", "from-grpc"),))
    text = http_text(served, "/metrics")
    assert 'request_predict_seconds_count{model_name="iris"}' in text
    deadline = time.monotonic() + 10
    while "requestId: from-grpc," not in served.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def http_text(process: Process, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{process.http_port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def iris_request() -> ModelInferRequest:
    request = ModelInferRequest(model_name="iris")
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[1, 4])
    tensor.contents.fp64_contents.extend([6.8, 2.8, 4.8, 1.4])
    return request


def slow_request(seconds: float) -> ModelInferRequest:
    request = ModelInferRequest(model_name="slow")
    tensor = request.inputs.add(name="x", datatype="FP64", shape=[1])
    tensor.contents.fp64_contents.append(seconds)
    return request


async def test_calls_that_wait_together_are_answered_each(served: Process) -> None:
    """They share the model's calls with one another; each gets its own rows."""
    x, y = load_iris(return_X_y=True)
    wanted = SVC(gamma=1.0).fit(x, y).predict(x).tolist()
    async with InferenceGRPCClient(served.address) as client:

        async def one(row: Any) -> int:
            tensor = InferInput("x", [1, 4], "FP64")
            tensor.set_data_from_numpy(row.reshape(1, 4))
            answer = await client.infer(InferRequest("iris", [tensor]))
            return int(answer.outputs[0].as_numpy()[0])

        assert await asyncio.gather(*map(one, x)) == wanted


def test_open_calls_finish_before_the_server_ends(tmp_path: Path) -> None:
    """SIGTERM: no new calls, the open one is answered, exit 0."""
    (tmp_path / "slow.py").write_text(SLOW)
    with server(tmp_path / "log", str(tmp_path / "slow.py")) as process:
        with stub(process.address) as call:
            # What is known to take long runs in a thread, and the server goes on listening.
            call.ModelInfer(slow_request(0.1))
            answer = call.ModelInfer.future(slow_request(1.5))
            time.sleep(0.4)
            process.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with stub(process.address) as late, pytest.raises(grpc.RpcError) as error:
                late.ServerReady(ServerReadyRequest())
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert list(answer.result(10).outputs[0].contents.fp64_contents) == [1.0]
        assert process.process.wait(10) == 0


def test_a_client_that_leaves_takes_its_waiting_call_along(tmp_path: Path) -> None:
    """Cancelled before its turn: the model never sees it."""
    (tmp_path / "slow.py").write_text(SLOW)
    with (
        server(tmp_path / "log", str(tmp_path / "slow.py")) as process,
        stub(process.address) as call,
    ):
        running = call.ModelInfer.future(slow_request(0.6))
        time.sleep(0.2)
        waiting = call.ModelInfer.future(slow_request(20))
        time.sleep(0.1)
        waiting.cancel()
        running.result(10)
        started = time.monotonic()
        call.ModelInfer(slow_request(0.0))
        assert time.monotonic() - started < 5


def test_several_workers_share_the_port(iris: Path, tmp_path: Path) -> None:
    """Each connection belongs to one of them; stopping the parent stops all."""
    arguments = ["--model_name=iris", f"--model_dir={iris}", "--workers=2"]
    with server(tmp_path / "log", "-m", "sklearnserver", *arguments) as process:
        for _ in range(8):
            with stub(process.address) as call:
                assert call.ModelInfer(iris_request()).outputs[0].contents.int64_contents == [1]
        assert process.stop() == 0
        with pytest.raises(OSError, match=r".*"):
            socket.create_connection(("127.0.0.1", process.grpc_port or 0), 1).close()


def test_a_port_that_was_asked_for_and_is_taken_ends_the_start(iris: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        arguments = ["-m", "sklearnserver", f"--model_dir={iris}", f"--grpc_port={port}"]
        process = Process(arguments, tmp_path / "log", grpc_port=port)
        assert process.process.wait(60) == 1
    assert (
        f"cannot listen on 127.0.0.1:{port} for gRPC: Address already in use"
        in (tmp_path / "log").read_text()
    )


def test_two_servers_do_not_share_a_port_unnoticed(served: Process, iris: Path, tmp_path: Path):
    """grpcio's default would let the kernel deal out connections between strangers."""
    arguments = ["-m", "sklearnserver", f"--model_dir={iris}", f"--grpc_port={served.grpc_port}"]
    process = Process(arguments, tmp_path / "log", grpc_port=served.grpc_port)
    assert process.process.wait(60) == 1


# Stands before grpcio on the path.
NO_GRPC = "raise ImportError(\"No module named 'grpc'\")\n"


@pytest.mark.parametrize("argument", ["--enable_grpc=false", None])
def test_without_grpc_there_is_rest(iris: Path, tmp_path: Path, argument: str | None) -> None:
    """Switched off, or not installed; the latter is said once."""
    command = ["-m", "sklearnserver", "--model_name=iris", f"--model_dir={iris}"]
    if argument is None:
        (tmp_path / "grpc.py").write_text(NO_GRPC)
        code = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sklearnserver.server as s; "
            "sys.exit(s.main())"
        )
        command = ["-c", code, *command[2:]]
    else:
        command.append(argument)
    with server(tmp_path / "log", *command) as process:
        assert '"name":"iris","ready":true' in http_text(process, "/v2/models/iris/ready")
        with pytest.raises(OSError, match=r".*"):
            socket.create_connection(("127.0.0.1", process.grpc_port or 0), 1).close()
        log = (tmp_path / "log").read_text()
    assert log.count("gRPC is not served") == (argument is None)


def test_message_limits(iris: Path, tmp_path: Path) -> None:
    arguments = [f"--model_dir={iris}", "--grpc_max_receive_message_length=1000"]
    with (
        server(tmp_path / "log", "-m", "sklearnserver", *arguments) as process,
        stub(process.address) as call,
        pytest.raises(grpc.RpcError) as error,
    ):
        call.ModelInfer(ModelInferRequest(model_name="m", raw_input_contents=[bytes(2000)]))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_importing_the_server_starts_no_thread() -> None:
    """What a zygote does before it forks."""
    code = (
        "import os, modelserver.warm as w; w.warm(); import sys; assert 'grpc' in sys.modules;"
        "print(len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "1\n", done.stderr
