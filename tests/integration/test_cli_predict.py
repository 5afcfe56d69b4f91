"""`predict` with more than one call, other encodings, and as a program to copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.project import Project, of_processes, project, sample, wait_until

NAME = "sklearn-iris"
ROWS = [6.8, 2.8, 4.8, 1.4, 6.0, 3.4, 4.5, 1.6]
V2 = json.dumps(
    {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": ROWS}]}
)  # fmt: skip
ANSWER = {"predictions": [1, 1]}


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with project(sample(NAME, tmp_path_factory.mktemp("predict") / "iris")) as own:
        manifest = own.folder / "manifest.yaml"
        text = manifest.read_text()
        noted = 'metadata:\n  annotations: {serving.kserve.io/enable-tag-routing: "true"}\n'
        assert "metadata:\n" in text
        manifest.write_text(text.replace("metadata:\n", noted, 1))
        own.up()
        yield own


def test_repeated_calls_are_counted_and_timed(iris: Project) -> None:
    done = iris.run("predict", NAME, "@request.json", "--repeat", "3")
    assert json.loads(done.stdout) == ANSWER
    assert done.stderr.startswith("3 calls: 3 x 200; min ")
    data = iris.json("predict", NAME, "@request.json", "--repeat", "2")
    assert (data["repeat"]["count"], data["repeat"]["statuses"]) == (2, {"200": 2})
    assert 0 < data["repeat"]["seconds"]["min"] <= data["repeat"]["seconds"]["max"]
    failed = iris.run("predict", NAME, '{"instances": "x"}', "--repeat", "2", check=9)
    assert "2 of 2 calls failed" in failed.stderr
    iris.run("predict", NAME, "{}", "--repeat", "0", check=2)


def test_a_call_is_found_in_the_logs_by_its_id(iris: Project) -> None:
    done = iris.run("predict", NAME, "@request.json", "-v")
    label, _, request = done.stderr.strip().partition(": ")
    assert label == "x-request-id"
    other = iris.json("predict", NAME, "@request.json")["requestId"]
    lines = wait_until(lambda: iris.json("logs", "--request", other)["lines"], timeout=10, step=0.1)
    assert [f"requestId: {other}," in line["line"] for line in lines] == [True]
    found = iris.run("logs", NAME, "--request", request, "--since", "1m", "--tail", "50")
    assert found.stdout.count("\n") == 1
    assert f"requestId: {request}," in found.stdout
    nothing = iris.run("logs", "--request", request[:8])
    assert (nothing.stdout, nothing.stderr) == ("", f'no line names request "{request[:8]}"\n')
    ids = iris.json("predict", NAME, "@request.json", "--repeat", "3")["repeat"]["requestIds"]
    assert len(set(ids)) == 3
    failed = iris.run("predict", NAME, '{"instances": "x"}', "--json", check=9)
    assert json.loads(failed.stdout)["error"]["details"]["requestId"]


@of_processes
def test_a_call_that_waits_for_a_start_says_so_on_stderr(tmp_path: Path) -> None:
    folder = sample("custom-model", tmp_path / "slow")
    code = (folder / "model.py").read_text()
    waits = "    import time, pathlib\n    while not pathlib.Path('go').exists():\n"
    waits += "        time.sleep(0.05)\n    model.load()\n"
    assert code.count("    model.load()\n") == 1
    (folder / "model.py").write_text(code.replace("    model.load()\n", waits))
    body = '{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
    with project(folder) as own:
        own.run("up", "-d", "--port", "auto", "--api-port", "auto")
        command = [sys.executable, "-m", "kserve_local.cli.main", "predict", "custom-model", body]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        told, quiet, machine = (
            subprocess.Popen([*command, *flags], cwd=folder, **streams)  # type: ignore[call-overload]
            for flags in ((), ("-q",), ("--json",))
        )
        assert told.stderr.readline().startswith("waiting for custom-model: predictor rev 00001")
        (folder / "go").touch()
        assert json.loads(told.communicate(timeout=60)[0]) == {"predictions": ["setosa"]}
        assert quiet.communicate(timeout=60) == ('{"predictions":["setosa"]}\n', "")
        assert machine.communicate(timeout=60)[1] == ""


def test_binary_tensors_give_the_same_values(iris: Project) -> None:
    plain = iris.json("predict", NAME, V2)["body"]["outputs"]
    binary = iris.json("predict", NAME, V2, "--binary")["body"]["outputs"]
    assert [t["data"] for t in binary] == [t["data"] for t in plain] == [[1, 1]]
    iris.run("predict", NAME, "@request.json", "--binary", check=2)


def test_the_same_call_over_grpc(iris: Project) -> None:
    found = iris.json("predict", NAME, V2, "--protocol", "grpc")
    assert (found["protocol"], found["status"]) == ("grpc", 200)
    (output,) = found["body"]["outputs"]
    assert output == {"name": "output-0", "datatype": "INT64", "shape": [2], "data": [1, 1]}
    wrong = V2.replace("[2, 4]", "[1, 8]")
    said = iris.run("predict", NAME, wrong, "--protocol", "grpc", check=9).stderr
    assert "answered 400: INVALID_ARGUMENT: X has 8 features" in said
    said = iris.run("predict", "nope", V2, "--protocol", "grpc", check=11).stderr
    assert 'inferenceservices.serving.kserve.io "nope" not found' in said
    printed = iris.run("predict", NAME, V2, "--protocol", "grpc", "--print-curl").stdout
    assert "-authority sklearn-iris.default.localhost" in printed
    assert printed.endswith("inference.GRPCInferenceService/ModelInfer\n")
    iris.run("predict", NAME, "@request.json", "--protocol", "grpc", check=2)


def test_the_answer_goes_to_a_file(iris: Project, tmp_path: Path) -> None:
    done = iris.run("predict", NAME, "@request.json", "--save", str(tmp_path / "a.json"))
    assert done.stdout == ""
    assert json.loads((tmp_path / "a.json").read_text()) == ANSWER
    iris.run("predict", NAME, "@request.json", "--save", str(tmp_path / "no" / "a"), check=2)


@pytest.mark.parametrize("data", ["@request.json", "-", json.dumps({"instances": [ROWS[:4]] * 2})])
def test_what_is_printed_makes_the_same_call(iris: Project, data: str) -> None:
    content = (iris.folder / "request.json").read_text()
    python = iris.run("predict", NAME, data, "--print-python", input=content).stdout
    curl = iris.run("predict", NAME, data, "--print-curl", input=content).stdout
    (iris.folder / "call.py").write_text(python)
    commands = [[sys.executable, "call.py"]]
    if shutil.which("curl"):
        commands.append(["sh", "-c", curl])
    for command in commands:
        done = subprocess.run(
            command, cwd=iris.folder, input=content, capture_output=True, text=True, check=True,
            env={**os.environ, "no_proxy": "*"},
        )  # fmt: skip
        assert json.loads(done.stdout) == ANSWER
    assert "curl" in iris.json("predict", NAME, "@request.json", "--print-curl")["print"]
    iris.run("predict", NAME, V2, "--binary", "--print-curl", check=2)


def test_a_revision_is_asked_by_name_number_or_tag(iris: Project) -> None:
    first = f"{NAME}-predictor-00001"
    for word in (first, "1", "latest"):
        done = iris.run("predict", NAME, "@request.json", "--revision", word)
        assert json.loads(done.stdout) == ANSWER
    printed = iris.run("predict", NAME, "@request.json", "--revision", "1", "--print-curl").stdout
    assert f"Host: latest-{NAME}-predictor.default.localhost" in printed
    wrong = iris.run("predict", NAME, "@request.json", "--revision", "7", check=11)
    assert f"it has: {first}" in wrong.stderr
    nobody = iris.run("predict", "nobody", "{}", "--revision", "1", check=11)
    assert '"nobody" not found' in nobody.stderr
