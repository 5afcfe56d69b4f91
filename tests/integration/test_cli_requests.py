"""`requests`, `replay` and `diff` on a project: what was called, sent again, compared."""

from __future__ import annotations

import http.server
import json
import shlex
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kserve_local.client.project import REQUESTS
from tests.integration.project import Project, project, sample, wait_until

NAME = "sklearn-iris"
PATH = f"/v1/models/{NAME}:predict"
ROWS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
V2 = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with project(sample(NAME, tmp_path_factory.mktemp("requests") / "iris")) as own:
        (own.folder / "kserve-local.yaml").write_text(
            "requests: {redactHeaders: [x-tenant], redactFields: [password]}\n"
        )
        own.up()
        nothing = own.run("requests", NAME)
        assert (nothing.stdout, nothing.stderr) == ("", f"no calls yet of {NAME}\n")
        assert "no call of" in own.run("diff", NAME, check=11).stderr
        headers = {"x-request-id": "first-1", "x-tenant": "acme"}
        for _ in range(2):
            status, _answer = own.call(f"/serving/default/{NAME}{PATH}", ROWS, headers=headers)
            assert status == 200
        v2 = f"/serving/default/{NAME}/v2/models/{NAME}/infer"
        assert own.call(v2, V2, headers={"x-request-id": "second-2"})[0] == 200
        wait_until(lambda: len(own.json("requests", NAME)["requests"]) == 3)
        yield own


@contextmanager
def model(status: int, answer: object) -> Iterator[str]:
    """Serve other answers than the service's; yields the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_calls_are_listed_the_newest_last(iris: Project) -> None:
    lines = iris.run("requests", NAME).stdout.splitlines()
    assert lines[0].split() == ["TIME", "REV", "PATH", "ST", "MS", "BYTES", "ID"]
    assert [line.split()[1:4] for line in lines[1:]] == [
        ["00001", PATH, "200"],
        ["00001", PATH, "200"],
        ["00001", f"/v2/models/{NAME}/infer", "200"],
    ]
    assert "NAME" in iris.run("requests").stdout.splitlines()[0]
    [last] = iris.json("requests", NAME, "--last", "1")["requests"]
    assert (last["id"], last["component"], last["inner"]) == ("second-2", "predictor", False)


def test_one_call_is_shown_with_headers_and_bodies(iris: Project) -> None:
    shown = iris.run("requests", NAME, "first").stdout
    assert f"> POST {PATH}" in shown
    assert "> x-tenant: [redacted]" in shown
    assert json.dumps(ROWS) in shown
    assert '{"predictions": [1, 1]}' in shown
    call = iris.json("requests", NAME, "second-2")["request"]
    assert call["body"] == V2
    assert call["answer"]["outputs"][0]["data"] == [0]
    missing = iris.run("requests", NAME, "third", check=11)
    assert f'no recorded request of {NAME} has an id that begins with "third"' in missing.stderr


def test_a_call_is_a_curl_command(iris: Project) -> None:
    words = shlex.split(iris.run("requests", NAME, "first", "--curl").stdout)
    assert words[:3] == ["curl", "-sS", f"{iris.gateway}/serving/default/{NAME}{PATH}"]
    assert "acme" not in " ".join(words)
    assert json.loads(words[-1]) == ROWS
    if curl := shutil.which("curl"):
        done = subprocess.run([curl, *words[1:]], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == {"predictions": [1, 1]}
        wait_until(lambda: len(iris.json("requests", NAME)["requests"]) == 4)
    iris.run("requests", "--curl", check=2)
    iris.run("requests", NAME, "first", "--last", "1", check=2)


def test_distinct_calls_are_replayed_and_not_recorded_again(iris: Project) -> None:
    before = len(iris.json("requests", NAME)["requests"])
    data = iris.json("replay", NAME)
    assert {(r["path"], r["status"], r["answer"]) for r in data["replayed"]} == {
        (f"/v2/models/{NAME}/infer", 200, "same"),
        (PATH, 200, "same"),
    }
    assert len(data["replayed"]) == 2
    table = iris.run("replay", NAME, "second").stdout.splitlines()
    assert table[0].split() == ["PATH", "WAS", "NOW", "MS", "ANSWER", "ID"]
    assert table[1].split()[4:] == ["same", "second-2"]
    assert len(iris.json("replay", NAME, "--last", "1")["replayed"]) == 1
    assert len(iris.json("requests", NAME)["requests"]) == before


def test_a_call_with_a_redacted_field_is_left_out(iris: Project) -> None:
    body = {**ROWS, "parameters": {"password": "hush"}}
    iris.call(f"/serving/default/{NAME}{PATH}", body, headers={"x-request-id": "third-3"})
    call = wait_until(
        lambda: [c for c in iris.json("requests", NAME)["requests"] if c["id"] == "third-3"]
    )[0]
    assert call["unreplayable"] == "fields of its body are redacted: parameters.password"
    assert "hush" not in iris.run("requests", NAME, "third-3").stdout
    assert "left out 1 recorded call: fields of its body" in iris.run("diff", NAME).stderr
    assert "password" in iris.run("replay", NAME, "third-3", check=2).stderr


def test_answers_that_changed_are_listed_field_by_field(iris: Project) -> None:
    same = iris.run("diff", NAME, "--exit-code")
    assert (same.stdout, same.stderr.splitlines()[-1]) == ("", "0 of 2 answers changed")
    with model(200, {"predictions": [1, 2.5]}) as url:
        done = iris.run("diff", NAME, "--against", url, "--exit-code", check=10)
        assert "  predictions.1: 1 -> 2.5  (+1.5)" in done.stdout
        assert "2 of 2 answers changed" in done.stderr
        iris.run("diff", NAME, "--against", url)
        [changed] = [
            c for c in iris.json("diff", NAME, "--against", url)["changed"] if c["path"] == PATH
        ]
        assert changed["differences"] == [
            {"path": "predictions.1", "what": "changed", "before": 1, "after": 2.5, "delta": 1.5}
        ]
        within = iris.json("diff", NAME, "--against", url, "--tolerance", "2")["changed"]
        assert PATH not in [c["path"] for c in within]
        assert json.loads(iris.run("replay", NAME, "--against", url, "--json").stdout)


def test_a_model_that_answers_errors_is_exit_9(iris: Project) -> None:
    with model(500, {"error": "weights are gone"}) as url:
        failed = iris.run("replay", NAME, "--against", url, check=9)
        assert "2 of 2 replayed calls failed" in failed.stderr
        assert "weights are gone" in failed.stderr
        told = iris.run("diff", NAME, "--against", url).stdout
        assert "  status: 200 -> 500" in told
        assert "weights are gone" in told
    # Nobody listens there any more: nothing was compared.
    for command in ("replay", "diff"):
        nobody = iris.run(command, NAME, "--against", url, check=4)
        assert "none of 2 calls: no answer: [Errno 111]" in nobody.stderr


def test_a_revision_or_a_url_must_be_one(iris: Project) -> None:
    assert len(iris.json("replay", NAME, "--against", "1")["replayed"]) == 2
    assert 'no revision "00009"' in iris.run("diff", NAME, "--against", "00009", check=11).stderr
    assert "is no URL" in iris.run("diff", NAME, "--against", "ftp://x", check=2).stderr
    unknown = iris.run("replay", "nobody", check=11)
    assert 'inferenceservices.serving.kserve.io "nobody" not found' in unknown.stderr
    near = iris.run("requests", "sklearn-iri", check=11)
    assert f'did you mean "{NAME}"?' in near.stderr


def test_nobody_reads_calls_without_the_token(iris: Project) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = f"{iris.run_file['api']['url']}{REQUESTS}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, context=context, timeout=20)
    with refused.value as error:
        assert error.code == 401


def test_a_saved_redaction_holds_at_once_for_what_is_kept(iris: Project) -> None:
    assert iris.json("requests", NAME, "first")["request"]["body"] == ROWS
    (iris.folder / "kserve-local.yaml").write_text("requests: {redactFields: [instances]}\n")
    wait_until(lambda: iris.json("requests", NAME, "first")["request"]["body"] != ROWS)
    body = iris.json("requests", NAME, "first")["request"]["body"]
    assert body == {"instances": "[redacted]"}


def test_a_transformer_and_its_predictor_have_calls_of_their_own(tmp_path: Path) -> None:
    """And what a replay makes the transformer ask is not taken for traffic."""
    name = "iris-transformer"
    with project(sample(name, tmp_path / "pair")) as own:
        own.up()
        body = json.loads((own.folder / "request.json").read_text())
        path = f"/v1/models/{name}:predict"
        status, answer = own.call(f"/serving/default/{name}{path}", body)
        assert status == 200
        inner = wait_until(
            lambda: own.json("requests", name, "--component", "predictor")["requests"]
        )
        [outer] = own.json("requests", name)["requests"]
        assert (outer["component"], outer["inner"]) == ("transformer", False)
        assert [(c["component"], c["inner"]) for c in inner] == [("predictor", True)]
        whole = own.json("requests", name, outer["id"])["request"]
        assert (whole["body"], whole["answer"]) == (body, answer)
        assert own.json("requests", name, inner[0]["id"])["request"]["body"] != body
        [replayed] = own.json("replay", name)["replayed"]
        assert replayed["answer"] == "same"
        data = own.json("diff", name, "--against", "1")
        assert (data["compared"], data["changed"]) == (1, [])
        for component in ("transformer", "predictor"):
            again = own.json("requests", name, "--component", component)["requests"]
            assert len(again) == 1


def test_an_error_that_is_as_it_was_is_no_failure(iris: Project) -> None:
    status, _ = iris.call(f"/v1/models/{NAME}:predict", {"instances": "none"})
    assert status >= 400
    assert "same" in iris.run("replay", NAME).stdout
