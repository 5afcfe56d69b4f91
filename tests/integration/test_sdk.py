"""The kserve SDK on a running project: the recipe of docs/compatibility.md, word for word."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.project import ROOT, Project, project, sample


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("sdk") / "project")
    with project(folder) as place:
        place.up()
        yield place


def run(place: Project, code: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: the SDK's imports warn, and stay.
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def recipe() -> str:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    (found,) = re.findall(r"```python\n(from kserve import .*?)```", text, re.DOTALL)
    return str(found)


def test_the_recipe_of_the_docs_works(iris: Project) -> None:
    """Create, wait, change, read and delete, with whichever kubernetes client is installed."""
    done = run(iris, recipe())
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "30"
    names = [s["name"] for s in iris.json("status")["services"]]
    assert "from-sdk" not in names


def test_the_sdks_create_takes_no_dictionary(iris: Project) -> None:
    """Nothing of ours: it fails before anything is sent. The docs say so."""
    make = recipe().partition("kserve.api_instance")[0]
    make += "kserve.create(service, namespace='default')\n"
    done = run(iris, make)
    assert done.returncode == 1
    assert "'dict' object has no attribute 'api_version'" in done.stderr


def test_the_kubeconfig_is_where_the_recipe_looks(iris: Project) -> None:
    assert Path(".kserve-local/kubeconfig") == iris.state.relative_to(iris.folder) / "kubeconfig"


# Both register the names of the protocol's messages, so each has a process of its own.
SDK_OVER_GRPC = """
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def main(address, host):
    options = [("grpc.default_authority", host)] if host else []
    async with InferenceGRPCClient(address, channel_args=options) as client:
        assert await client.is_server_ready()
        assert await client.is_model_ready("sklearn-iris")
        for binary in (False, True):
            tensor = InferInput("x", [2, 4], "FP64")
            rows = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]])
            tensor.set_data_from_numpy(rows, binary_data=binary)
            answer = await client.infer(InferRequest("sklearn-iris", [tensor]))
            print(answer.outputs[0].as_numpy().tolist())

asyncio.run(main(*sys.argv[1:]))
"""
TRITON_OVER_GRPC = """
import sys
import numpy as np
import tritonclient.grpc as triton

address, host = sys.argv[1:]
options = [("grpc.default_authority", host)] if host else None
client = triton.InferenceServerClient(address, channel_args=options)
assert client.is_server_live() and client.is_model_ready("sklearn-iris")
x = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]], np.float32)
tensor = triton.InferInput("x", list(x.shape), "FP32")
tensor.set_data_from_numpy(x)
for _ in range(2):
    print(client.infer("sklearn-iris", [tensor]).as_numpy("output-0").tolist())
"""


@pytest.mark.parametrize("host", ["sklearn-iris.default.example.com", ""], ids=["host", "alone"])
@pytest.mark.parametrize("code", [SDK_OVER_GRPC, TRITON_OVER_GRPC], ids=["kserve", "triton"])
def test_grpc_clients_through_the_gateway(iris: Project, code: str, host: str) -> None:
    """By the service's host, and with one service by the gateway's address alone."""
    address = iris.gateway.removeprefix("http://")
    done = subprocess.run(
        [sys.executable, "-c", code, address, host],
        cwd=iris.folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[1, 1]", "[1, 1]"]
