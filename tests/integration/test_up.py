"""The life of a project: up, again, beside another, stopped, killed; nothing may be left of it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import termios
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kserve_local import settings
from tests.integration.project import IN_DOCKER, Project, of_processes, project, sample, wait_until

IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
CALL = "/v1/models/sklearn-iris:predict"
SLOW = '''"""A server that takes its time: asleep for as many seconds as the request says."""
import asyncio, json, signal, sys, os

# As the first process of a container it would ignore the signal.
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))

async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    length = next((int(l.split(b":")[1]) for l in head.split(b"\\r\\n")
                   if l.lower().startswith(b"content-length")), 0)
    body = await reader.readexactly(length)
    if body:
        print("asked", flush=True)
        await asyncio.sleep(json.loads(body)["seconds"])
    answer = b'{"done": true}'
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(answer) + answer)
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "", int(os.environ.get("PORT", "8080")))
    await server.serve_forever()

asyncio.run(main())
'''
SLOW_YAML = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: slow}
spec:
  predictor:
    containers:
      - {name: kserve-container, image: "my/slow:1", ports: [{containerPort: 8080}]}
"""
SLOW_CONFIG = "images: {'my/slow:1': {context: ., command: [python, server.py]}}\n"


@pytest.fixture
def iris(tmp_path: Path) -> Iterator[Project]:
    """The iris sample in a folder of its own, not running."""
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        yield own


def was_asked(own: Project) -> bool:
    """Whether the slow server has a request."""
    logs = (own.state / "logs").glob("slow-*/kserve-container.log")
    return any("asked" in log.read_text() for log in logs)


def runtime_of(own: Project) -> Path:
    return settings.runtime_folder(own.state, os.environ)


def lease_of(own: Project) -> list[Path]:
    """Return the address leases of the project on this machine."""
    folder = settings.load(own.folder).cache
    return [
        p for p in folder.rglob("*.json")
        if p.parent.name != "models" and str(own.state) in p.read_text(errors="replace")
    ]  # fmt: skip


def assert_clean(own: Project) -> None:
    """Nothing of the project is alive, listens, or lies outside its state folder."""
    assert own.leftovers() == {}
    assert not runtime_of(own).exists()
    assert lease_of(own) == []


def start(own: Project, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kserve_local.cli.main", *args],
        cwd=own.folder,
        env={**os.environ, **own.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return what the process said up to the line that holds `text`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"never said {text!r}: {''.join(lines)}")


def follow(own: Project, *args: str) -> subprocess.Popen[str]:
    """Start `up` in the foreground and return once it follows."""
    process = start(own, "up", "--port", "auto", "--api-port", "auto", *args)
    read_until(process, "following")
    return process


# Up, and up again


def test_up_twice_keeps_the_supervisor_and_conflicting_flags_are_refused(iris: Project) -> None:
    first = iris.up()
    assert "Ready in" in first.stderr
    assert first.stdout == ""
    before = iris.run_file
    pids = iris.service("sklearn-iris")["revisions"][0]["pids"]
    iris.run("up", "-d", "--wait")
    iris.run("up", "-d", "--wait", "--port", str(urlsplit(iris.gateway).port))
    assert iris.run_file == before
    refused = iris.run("up", "-d", "--port", "1", check=6)
    assert "already runs with --port" in refused.stderr
    iris.run("up", "-d", "--api-port", "1", check=6)
    assert iris.service("sklearn-iris")["revisions"][0]["pids"] == pids
    # Broken YAML changes nothing of what runs.
    (iris.folder / "broken.yaml").write_text(
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: A_B}\n"
    )
    iris.run("up", "-d", check=3)
    assert iris.call(CALL, IRIS) == (200, {"predictions": [1, 1]})
    iris.run("down")
    assert iris.run("down").stderr.endswith("was not running\n")
    assert_clean(iris)


def test_what_a_running_supervisor_did_not_read_is_told(iris: Project) -> None:
    iris.up()
    refused = iris.run("up", "-d", "--offline", check=6).stderr
    assert "already runs without --offline" in refused
    assert "kserve-local up --offline" in refused
    (iris.folder / "kserve-local.yaml").write_text(
        "storage: {mirrors: {'gs://bucket/': ./model}}\nprofiles: {ci: {name: ci}}\n"
    )
    assert "without a profile" in iris.run("up", "-d", "-p", "ci", check=6).stderr
    again = iris.run("up", "-d", "--wait")
    assert "kserve-local.yaml: storage changed since the project started" in again.stderr
    told = json.loads(iris.run("up", "-d", "--wait", "--json").stdout.splitlines()[-1])
    assert any("storage changed" in warning for warning in told["warnings"])
    iris.run("down")
    assert "changed since" not in iris.up("--offline", "-p", "ci").stderr
    assert "changed since" not in iris.up("--offline").stderr


def test_an_edited_model_that_is_not_served_yet_is_told(iris: Project) -> None:
    (iris.folder / "kserve-local.yaml").write_text("watch: {enabled: false}\n")
    iris.up()
    assert "changed after" not in iris.up().stderr
    model = next(p for p in (iris.folder / "model").iterdir() if p.is_file())
    os.utime(model, (time.time() + 5, time.time() + 5))
    expected = f"{model.relative_to(iris.folder)} changed after Pod"
    assert expected in iris.up().stderr
    assert expected in iris.run("status").stdout
    pod = iris.service("sklearn-iris")["revisions"][0]["pods"][0]
    assert f"kserve-local delete pod {pod}" in iris.run("status").stdout


def test_two_starts_at_once_make_one_supervisor(iris: Project) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: iris.up(check=None), range(3)))
    assert [d.returncode for d in done] == [0, 0, 0], [d.stderr for d in done]
    supervisors = [c for c in iris.leftovers().values() if "kserve_local.supervisor" in c]
    assert len(supervisors) == 1
    iris.run("down")
    assert_clean(iris)


def test_two_projects_run_side_by_side(iris: Project, tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "zwei ü")) as other:
        iris.up()
        other.up()
        assert iris.gateway != other.gateway
        assert iris.call(CALL, IRIS)[0] == other.call(CALL, IRIS)[0] == 200
        iris.run("down")
        assert_clean(iris)
        assert other.call(CALL, IRIS)[0] == 200


def test_up_takes_stdin_and_makes_the_namespace(tmp_path: Path) -> None:
    source = sample("sklearn-iris", tmp_path / "source")
    manifest = (source / "manifest.yaml").read_text()
    with project(tmp_path / "empty") as own:
        shutil.copytree(source / "model", own.folder / "model")
        done = own.run(
            "up", "-d", "--wait", "--port", "auto", "--api-port", "auto", "-f", "-", "-n", "team",
            input=manifest,
        )  # fmt: skip
        assert "Ready in" in done.stderr
        assert own.call("/serving/team/sklearn-iris" + CALL, IRIS)[0] == 200
        assert json.loads(own.run("predict", "sklearn-iris", "-n", "team", json.dumps(IRIS)).stdout)


def test_json_is_one_event_a_line_and_then_the_envelope(iris: Project) -> None:
    done = iris.up("--json")
    assert done.stderr == ""
    *events, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert {e["type"] for e in events} <= {
        "step", "state", "log", "download", "reload", "problem",
    }  # fmt: skip
    assert (last["command"], last["status"]) == ("up", "ok")
    (service,) = last["data"]["services"]
    assert (service["state"], last["data"]["gateway"]) == ("Ready", iris.gateway)


def test_detached_without_wait_returns_before_ready(iris: Project) -> None:
    manifest = iris.folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("./model", "http://127.0.0.1:9/model.joblib"))
    done = iris.run("up", "-d", "--port", "auto", "--api-port", "auto")
    assert "Ready in" not in done.stderr
    assert "kserve-local predict" in done.stderr
    # The ports were chosen here: nobody else could know them.
    assert f"Gateway       http://localhost:{urlsplit(iris.gateway).port}\n" in done.stderr
    assert f"REST  http://localhost:{urlsplit(iris.gateway).port}{CALL}\n" in done.stderr
    assert f"host  sklearn-iris.default.localhost:{urlsplit(iris.gateway).port}\n" in done.stderr
    started = json.loads(iris.run("up", "-d", "--json").stdout.splitlines()[-1])
    assert started["data"]["services"][0]["urls"]["rest"].endswith(CALL)
    iris.run("status")


def test_services_of_one_name_are_told_with_their_namespaces(iris: Project) -> None:
    manifest = (iris.folder / "manifest.yaml").read_text()
    for namespace in ("one", "two"):
        own = manifest.replace("  name: sklearn-iris\n", f"  name: a\n  namespace: {namespace}\n")
        assert own != manifest
        (iris.folder / f"{namespace}.yaml").write_text(own.replace("./model", "./missing"))
    done = iris.up(check=4)
    assert "✗ one/a" in done.stderr
    assert "error: one/a, two/a failed (exit 4)\n  one/a: ModelLoadFailed" in done.stderr
    assert "kserve-local logs a -n one --tail 50" in done.stderr
    assert "✓ sklearn-iris Ready" in done.stderr


def test_a_failure_of_yesterday_does_not_count_today(iris: Project) -> None:
    """The state survives `down`; the mended project must not be judged by its old status."""
    model = iris.folder / "model"
    model.rename(iris.folder / "aside")
    iris.up(check=4)
    iris.run("down")
    (iris.folder / "aside").rename(model)
    assert "Ready in" in iris.up().stderr
    assert iris.call(CALL, IRIS)[0] == 200


def test_a_model_that_is_gone_after_a_restart_is_told_everywhere(iris: Project) -> None:
    """On a cluster the service stays Ready, and a request waits until its time is over."""
    iris.up()
    iris.run("down")
    (iris.folder / "model").rename(iris.folder / "aside")
    iris.up(check=4)
    why = "ModelLoadFailed: Local path ./model does not exist."
    shown = iris.run("status", "--exit-code", check=4).stdout
    assert "sklearn-iris   False   0/1" in shown
    assert why in shown
    conditions = {c["type"]: c["status"] for c in iris.isvc("sklearn-iris")["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert why in iris.run("wait", check=4).stderr
    begun = time.monotonic()
    refused = iris.run("predict", "sklearn-iris", json.dumps(IRIS), check=9)
    assert time.monotonic() - begun < 30
    assert f'answered 503: {{"error":"{why}' in refused.stderr
    (iris.folder / "aside").rename(iris.folder / "model")
    done = iris.up()
    assert "✗" not in done.stderr
    assert iris.call(CALL, IRIS)[0] == 200
    iris.run("status", "--exit-code")


EXITS = """import os, time
print('2026-01-01 INFO: 127.0.0.1 - "GET /v1/models HTTP/1.1" 200 OK', flush=True)
os._exit(3)
"""


def test_a_server_that_exits_is_told_by_its_exit_code(tmp_path: Path) -> None:
    """Not by what it logged last in the course of its work."""
    with project(tmp_path / "slow") as own:
        (own.folder / "server.py").write_text(EXITS)
        (own.folder / "isvc.yaml").write_text(SLOW_YAML)
        (own.folder / "kserve-local.yaml").write_text(SLOW_CONFIG)
        said = own.up(check=4).stderr
        assert "error: slow failed: ModelLoadFailed: ended with exit code 3 (exit 4)" in said
        assert "ModelLoadFailed: ended with exit code 3" in own.run("status").stdout
        assert "is not Ready: ModelLoadFailed: ended with exit code 3" in (
            own.run("predict", "slow", "{}", check=9).stderr
        )


def test_failures_that_only_events_tell_end_the_wait(iris: Project) -> None:
    """Conditions stay Unknown for them, on a cluster too; nobody waits a minute to hear so."""
    manifest = (iris.folder / "manifest.yaml").read_text()
    for name, uri in (("odd", "foo://bucket/model"), ("climb", "pvc://claim/../model")):
        text = manifest.replace("./model", uri).replace("sklearn-iris", name)
        (iris.folder / f"{name}.yaml").write_text(text)
    (iris.folder / "kserve-local.yaml").write_text("storage: {claims: {claim: ./model}}\n")
    for _ in range(2):
        done = iris.up("--timeout", "600s", check=4)
        assert "StorageURI not supported" in done.stderr
        assert "must not contain '..'" in done.stderr
        assert "error: climb, odd failed (exit 4)\n  climb: " in done.stderr
        assert "\n  odd: InternalError: StorageURI not supported" in done.stderr
        assert iris.call(CALL, IRIS)[0] == 200
        iris.run("down")


def test_a_model_of_another_format_is_told_by_up_status_and_predict(iris: Project) -> None:
    """The server is Ready without a model and answers 404, as on a cluster."""
    manifest = iris.folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("name: sklearn\n", "name: xgboost\n"))
    said = "storageUri ./model holds no .bst, .json or .ubj file"
    assert said in iris.up().stderr
    assert said in iris.run("status").stdout
    refused = iris.run("predict", "sklearn-iris", json.dumps(IRIS), check=9)
    assert "sklearn-iris serves no model\n  kserve-local status sklearn-iris" in refused.stderr


def test_a_service_whose_pod_may_not_be_made_fails_with_the_reason(iris: Project) -> None:
    manifest = (iris.folder / "manifest.yaml").read_text()
    nobody = manifest.replace("predictor:\n", "predictor:\n    serviceAccountName: nobody\n")
    assert nobody != manifest
    (iris.folder / "manifest.yaml").write_text(nobody)
    done = iris.up(check=4)
    assert "✗ sklearn-iris RevisionFailed" in done.stderr
    last = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert last.startswith('error: sklearn-iris failed: RevisionFailed: pods "sklearn-iris-')
    assert last.endswith('serviceaccount "nobody" not found (exit 4)')


def test_a_spec_that_cannot_be_carried_out_fails_beside_the_revision_that_serves(
    iris: Project,
) -> None:
    manifest = iris.folder / "manifest.yaml"
    good = manifest.read_text()
    iris.up()
    manifest.write_text(good.replace("./model", "foo://bucket/model"))
    done = iris.up(check=4)
    assert "StorageURI not supported" in done.stderr
    assert "Ready in" not in done.stderr
    assert "✓ sklearn-iris" not in done.stderr
    assert "Loading model" not in done.stderr  # the log of the one that serves
    assert "StorageURI not supported" in iris.run("wait", check=4).stderr
    shown = iris.run("status").stdout
    assert "True" in shown
    assert "InternalError: StorageURI not supported" in shown
    assert iris.service("sklearn-iris")["reason"] == "InternalError"
    assert iris.call(CALL, IRIS)[0] == 200
    manifest.write_text(good)
    assert "Ready in" in iris.up().stderr
    assert iris.service("sklearn-iris")["reason"] == ""


def test_up_waits_for_the_revision_of_the_changed_spec(iris: Project) -> None:
    """Ready is the old revision's for a moment; the supervisor tells when it is the new one's."""
    manifest = iris.folder / "manifest.yaml"
    text = manifest.read_text()
    iris.up()
    for minimum in (2, 1, 2):
        manifest.write_text(text.replace("predictor:", f"predictor:\n    minReplicas: {minimum}"))
        iris.up()
        predictor = iris.isvc("sklearn-iris")["status"]["components"]["predictor"]
        assert predictor["latestCreatedRevision"] == predictor["latestReadyRevision"]
        assert iris.isvc("sklearn-iris")["spec"]["predictor"]["minReplicas"] == minimum
        newest = predictor["latestReadyRevision"]
        served = {r["name"]: r["replicas"] for r in iris.service("sklearn-iris")["revisions"]}
        assert served[newest] >= 1


def test_who_is_late_is_named_with_exit_5(tmp_path: Path) -> None:
    with project(tmp_path / "late") as own:
        (own.folder / "server.py").write_text("import time\ntime.sleep(600)\n")
        (own.folder / "isvc.yaml").write_text(SLOW_YAML)
        (own.folder / "kserve-local.yaml").write_text(SLOW_CONFIG)
        done = own.up("--timeout", "2s", check=5)
        assert "error: not Ready after" in done.stderr
        assert ": slow (exit 5)" in done.stderr
        last = json.loads(own.up("--timeout", "0.5s", "--json", check=5).stdout.splitlines()[-1])
        assert last["error"]["category"] == "TIMEOUT"
        assert last["error"]["details"]["late"] == ["slow"]


# What cannot start leaves nothing


@pytest.mark.parametrize(("flag", "other"), [("--port", "--api-port"), ("--api-port", "--port")])
def test_a_taken_port_names_its_holder(iris: Project, flag: str, other: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = iris.run("up", "-d", flag, str(port), other, "auto", check=6)
    assert f"error: port {port} is in use (exit 6)" in done.stderr
    assert f"pid {os.getpid()} " in done.stderr
    assert "(user " in done.stderr
    assert f"kserve-local up {flag} {port + 1}" in done.stderr
    assert not iris.state.exists()
    assert_clean(iris)


def test_invalid_yaml_is_refused_before_anything_starts(iris: Project) -> None:
    manifest = iris.folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("name: sklearn-iris", "name: Sklearn_Iris"))
    done = iris.up(check=3)
    assert "manifest.yaml:" in done.stderr
    assert not iris.state.exists()
    assert_clean(iris)


DEAF = """import http.server, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("", 8080), http.server.BaseHTTPRequestHandler).serve_forever()
"""
DEAF_YAML = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: deaf}
spec:
  predictor:
    terminationGracePeriodSeconds: 7
    containers: [{name: kserve-container, image: "my/deaf:dev"}]
"""


@of_processes
def test_down_says_what_it_waits_for_when_that_takes_long(tmp_path: Path) -> None:
    """An application that ignores SIGTERM holds it up for its whole grace."""
    with project(tmp_path / "deaf") as own:
        (own.folder / "deaf.py").write_text(DEAF)
        (own.folder / "deaf.yaml").write_text(DEAF_YAML)
        config = 'images: {"my/deaf:dev": {context: ., command: [python, deaf.py]}}\n'
        (own.folder / "kserve-local.yaml").write_text(config)
        own.up()
        [pod] = own.service("deaf")["revisions"][0]["pods"]
        told = own.run("down").stderr.splitlines()
        assert told == [
            f"waiting for {pod} (up to 7 s) to end; after 40 s in all it is killed",
            "deaf stopped",
        ]


def test_a_damaged_database_is_one_clear_line_and_left_alone(iris: Project) -> None:
    iris.up()
    iris.run("down")
    database = iris.state / "state.db"
    damaged = b"this is no database at all" * 200
    database.write_bytes(damaged)
    done = iris.up(check=1)
    assert "state.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert database.read_bytes() == damaged
    assert_clean(iris)
    iris.run("down", "--volumes")
    assert not iris.state.exists()
    iris.up()


def test_a_folder_without_room_for_state_is_said(iris: Project) -> None:
    iris.state.write_text("in the way")
    done = iris.up(check=1)
    assert "cannot make the state folder" in done.stderr
    assert "this is a bug" not in done.stderr
    iris.state.unlink()


# Stopping


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_to_up_in_the_foreground_drains_and_stops(
    tmp_path: Path, number: int, code: int
) -> None:
    """A request in flight gets its answer although the signal came first."""
    with project(tmp_path / "slow") as own:
        (own.folder / "server.py").write_text(SLOW)
        (own.folder / "isvc.yaml").write_text(SLOW_YAML)
        (own.folder / "kserve-local.yaml").write_text(SLOW_CONFIG)
        process = follow(own)
        path = "/serving/default/slow/work"
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(own.call, path, {"seconds": 2})
            wait_until(lambda: was_asked(own))
            process.send_signal(number)
            assert answer.result(timeout=60) == (200, {"done": True})
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert "stopping; Ctrl-C again kills" in said
        assert_clean(own)


def test_a_closed_terminal_stops_everything_unless_nohup_was_asked_for(iris: Project) -> None:
    """Whatever is still said cannot be written any more."""
    command = [sys.executable, "-m", "kserve_local.cli.main", "up"]
    ports = ["--port", "auto", "--api-port", "auto"]
    terminal, own = os.openpty()
    shell = subprocess.Popen(
        [*command, *ports], cwd=iris.folder, env={**os.environ, **iris.env},
        stdin=own, stdout=own, stderr=own, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(own)
    said = b""
    while b"following" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    assert shell.wait(timeout=60) == 129
    assert_clean(iris)
    kept = subprocess.Popen(
        ["nohup", *command, *ports], cwd=iris.folder, env={**os.environ, **iris.env},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    read_until(kept, "following")
    kept.send_signal(signal.SIGHUP)
    assert iris.call(CALL, IRIS)[0] == 200
    kept.send_signal(signal.SIGINT)
    kept.communicate(timeout=60)
    assert kept.returncode == 130


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    with project(tmp_path / "slow") as own:
        (own.folder / "server.py").write_text(SLOW)
        (own.folder / "isvc.yaml").write_text(SLOW_YAML)
        (own.folder / "kserve-local.yaml").write_text(SLOW_CONFIG)
        process = follow(own)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(own.call, "/serving/default/slow/work", {"seconds": 600})
            wait_until(lambda: was_asked(own))
            process.send_signal(signal.SIGINT)
            read_until(process, "stopping")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
            with pytest.raises((OSError, http.client.HTTPException)):
                answer.result(timeout=60)
        assert process.returncode == 130
        assert "killing" in said
        assert_clean(own)


@pytest.mark.parametrize("detach", [(), ("-d",)], ids=["foreground", "detached"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_ctrl_c_while_it_starts_leaves_nothing(
    iris: Project, early: bool, detach: tuple[str, ...]
) -> None:
    """Whether the supervisor's process is there yet or not."""
    process = start(iris, "up", *detach, "--port", "auto", "--api-port", "auto")
    if early:
        wait_until(runtime_of(iris).exists)
    else:
        wait_until(lambda: any("supervisor" in c for c in iris.leftovers().values()))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert_clean(iris)


# Killed


def kill(own: Project, what: str) -> None:
    """`kill -9` one kind of the project's processes."""
    pids = {
        "supervisor": [own.run_file["pid"]],
        "gateway": [own.run_file["gateway"]["pid"]],
        "zygote": [p for p, c in own.leftovers().items() if " zygote " in c],
        "replica": [p for p, c in own.leftovers().items() if "sklearnserver" in c and
                    " zygote " not in c and "supervisor" not in c],
    }[what]  # fmt: skip
    assert pids, what
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "killed",
    [
        ("supervisor",),
        ("supervisor", "gateway"),
        pytest.param(("supervisor", "zygote", "replica"), marks=of_processes),
        pytest.param(("supervisor", "gateway", "zygote", "replica"), marks=of_processes),
    ],
    ids="-".join,
)
def test_down_after_kills_leaves_nothing(iris: Project, killed: tuple[str, ...]) -> None:
    iris.up()
    for what in killed:
        kill(iris, what)
    said = iris.run("status", check=4).stderr
    assert ("is not running" if "gateway" in killed else "still serves") in said
    iris.run("down")
    assert_clean(iris)


def test_a_change_that_is_refused_stops_nothing_that_a_killed_supervisor_left(
    iris: Project,
) -> None:
    fixed = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fixed}\nimmutable: true\n"
    (iris.folder / "fixed.yaml").write_text(fixed + "data: {a: one}\n")
    iris.up()
    kill(iris, "supervisor")
    (iris.folder / "fixed.yaml").write_text(fixed + "data: {a: two}\n")
    said = iris.up(check=3).stderr
    assert 'ConfigMap "fixed" is invalid' in said
    assert "what ran before goes on as it was" in said
    assert iris.call(CALL, IRIS)[0] == 200
    (iris.folder / "fixed.yaml").unlink()
    iris.up()
    assert iris.call(CALL, IRIS)[0] == 200


def test_a_new_supervisor_adopts_what_a_killed_one_left(iris: Project) -> None:
    iris.up()
    port = urlsplit(iris.gateway).port
    before = iris.run_file
    pids = iris.service("sklearn-iris")["revisions"][0]["pids"]
    kill(iris, "supervisor")
    assert iris.call(CALL, IRIS)[0] == 200
    gateway = f"{before['gateway']['url']} (pid {before['gateway']['pid']}) still serves"
    told = iris.run("status", check=4).stderr
    assert f"is gone; its gateway at {gateway}" in told
    assert "kserve-local up     takes over" in told
    assert "kserve-local down   stops" in told
    assert gateway in iris.run().stdout
    levels = {c["name"]: c["level"] for c in iris.json("doctor")["checks"]}
    assert levels["ports"] == "warn"
    assert json.loads(iris.run("predict", "sklearn-iris", json.dumps(IRIS)).stdout)
    iris.run("up", "-d", "--wait")  # with the flags of the one that was killed
    assert iris.run_file["gateway"] == before["gateway"]
    assert iris.run_file["api"] == before["api"]
    assert iris.run_file["pid"] != before["pid"]
    assert iris.service("sklearn-iris")["revisions"][0]["pids"] == pids
    kill(iris, "supervisor")
    iris.run("up", "-d", "--wait", "--port", str(port), "--api-port", "auto")
    assert iris.run_file["gateway"] == before["gateway"]
    assert iris.service("sklearn-iris")["revisions"][0]["pids"] == pids


def test_a_start_that_fails_leaves_alone_what_serves(iris: Project) -> None:
    """Adopting went wrong; the replicas of the killed supervisor must serve on."""
    iris.up()
    kill(iris, "supervisor")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        iris.run("up", "-d", "--port", "auto", "--api-port", str(port), check=6)
    assert iris.call(CALL, IRIS)[0] == 200
    iris.run("up", "-d", "--wait", "--port", "auto", "--api-port", "auto")
    assert iris.call(CALL, IRIS)[0] == 200


def test_a_supervisor_that_dies_is_told_to_who_follows(iris: Project) -> None:
    process = follow(iris)
    kill(iris, "supervisor")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "what was serving still serves" in said
    assert iris.call(CALL, IRIS)[0] == 200


def test_everything_ends_with_its_state_folder(iris: Project) -> None:
    iris.up()
    shutil.rmtree(iris.state)
    wait_until(lambda: iris.leftovers() == {}, timeout=60, why="processes outlive the state folder")


def test_down_deletes_state_only_when_told(iris: Project) -> None:
    iris.up()
    iris.run("down")
    assert sqlite3.connect(iris.state / "state.db").execute("pragma integrity_check").fetchone()
    iris.run("down", "--volumes")
    assert not iris.state.exists()
    assert (iris.folder / "model").is_dir()


def test_idle_is_idle(iris: Project) -> None:
    """CPU of supervisor and gateway with one Ready service and nobody calling."""
    iris.up()
    pids = [iris.run_file["pid"], iris.run_file["gateway"]["pid"]]

    def seconds() -> float:
        fields = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in pids]
        return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")

    threading.Event().wait(1.0)
    begun, used = time.monotonic(), seconds()
    threading.Event().wait(5.0)
    share = (seconds() - used) / (time.monotonic() - begun)
    assert share < 0.05, f"{share:.1%} of a core"


def test_up_again_after_a_mend_does_not_wait_for_the_back_off(tmp_path: Path) -> None:
    """The model that was missing is there now; the YAML has not changed."""
    with project(sample("sklearn-iris", tmp_path / "p")) as p:
        model = p.folder / "model"
        away = model.rename(tmp_path / "away")
        p.up(check=4)
        wait_until(
            lambda: "CrashLoopBackOff" in p.run("get", "pods").stdout, why="no back-off was seen"
        )
        away.rename(model)
        p.up()
        assert p.service("sklearn-iris")["ready"] is True


def test_up_right_after_a_mend_does_not_report_what_was_before(iris: Project) -> None:
    """The container has just failed and is not in a back-off yet; its failure is no news."""
    extra = iris.folder / "model" / "b.joblib"
    shutil.copy(iris.folder / "model" / "model.joblib", extra)
    iris.up(check=4)
    # Without a change it fails again, and that is told.
    assert "✗ sklearn-iris ModelLoadFailed" in iris.run("up", "-d", "--wait", check=4).stderr
    extra.unlink()
    done = iris.run("up", "-d", "--wait")
    assert "✗" not in done.stderr
    assert "Ready in" in done.stderr
    assert iris.call(CALL, IRIS)[0] == 200


def test_validate_reads_what_up_reads(tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "p")) as p:
        (p.folder / "broken.yaml").write_text(
            "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nspec: 1\n"
        )
        p.run("validate", check=3)
        (p.folder / "kserve-local.yaml").write_text("resources: [manifest.yaml]\n")
        p.run("validate")
        (p.folder / "kserve-local.yaml").write_text("ignore: [broken.yaml]\n")
        p.run("validate")


def test_a_local_model_that_is_not_there_is_a_warning_before_anything_runs(iris: Project) -> None:
    (iris.folder / "model").rename(iris.folder / "aside")
    told = iris.run("validate").stdout
    assert 'storageUri ./model: "' in told
    assert "does not exist" in told
    (iris.folder / "model").mkdir()
    done = iris.up()
    assert "holds no files" in done.stderr
    assert "holds no files: there is no model to serve" in iris.run("status").stdout


def test_what_can_never_be_ready_fails_at_once(iris: Project) -> None:
    """And a refusal that is tried again every few seconds stays the same refusal."""
    (iris.folder / "more.yaml").write_text(
        """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: tr}
spec:
  predictor: {model: {modelFormat: {name: sklearn}, storageUri: ./model}}
  transformer: {containers: [{name: kserve-container, image: foo/bar}]}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: climb}
spec: {predictor: {model: {modelFormat: {name: sklearn}, storageUri: "pvc://claim/../x"}}}
"""
    )
    (iris.folder / "kserve-local.yaml").write_text("storage: {claims: {claim: ./model}}\n")
    done = iris.up("--timeout", "600s", check=4)
    # An engine may have the image, or get it; without one nothing can.
    why = 'Failed to pull image "foo/bar"' if IN_DOCKER else 'image "foo/bar" cannot run here'
    assert why in done.stderr
    assert "transformer rev 00001" in done.stderr
    assert "error: climb, tr failed (exit 4)" in done.stderr
    assert done.stderr.count("✓ sklearn-iris") == 1
    # The entry of a service whose transformer does not run must not answer without it.
    predict = "/v1/models/tr:predict"
    status, body = iris.call(predict, IRIS, host="tr.default.example.com")
    assert (status, "foo/bar" in str(body)) == (503, True)
    assert iris.call(predict, IRIS, host="tr-predictor.default.example.com")[0] == 200
    seen = set()
    for _ in range(30):
        seen.add(iris.service("climb")["message"])
        time.sleep(0.1)
    assert {m for m in seen if "must not contain" in m} == seen


def test_a_kserve_object_without_its_version_is_no_stranger(iris: Project) -> None:
    (iris.folder / "slip.yaml").write_text("kind: InferenceService\nspec: {predictor: {}}\n")
    assert "slip.yaml:1:1 error" in iris.run("validate", check=3).stdout


def test_fresh_forgets_earlier_runs_and_needs_a_stopped_project(iris: Project) -> None:
    iris.up()
    assert "--fresh needs it stopped" in iris.up("--fresh", check=6).stderr
    before = iris.isvc("sklearn-iris")["metadata"]["uid"]
    iris.run("down")
    iris.up()
    assert iris.isvc("sklearn-iris")["metadata"]["uid"] == before
    iris.run("down")
    iris.up("--fresh")
    assert iris.isvc("sklearn-iris")["metadata"]["uid"] != before


def test_the_bundle_explains_and_holds_no_secret(iris: Project) -> None:
    iris.up()
    iris.run("doctor", "--bundle", "report.tar.gz", check=None)
    path = iris.folder / "report.tar.gz"
    assert path.stat().st_mode & 0o077 == 0
    with tarfile.open(path) as archive:
        held = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
    assert b"sklearn-iris" in held["kserve-local/status.json"]
    assert b"InferenceServiceReady" in held["kserve-local/events.json"]
    assert any(name.endswith("kserve-container.log") for name in held)
    token = (iris.state / "run" / "token").read_bytes().strip()
    assert not any(token in content for content in held.values())
    iris.run("down")
    iris.run("doctor", "--bundle", "report.tar.gz", check=None)
    with tarfile.open(path) as archive:
        assert "kserve-local/logs/supervisor.log" in archive.getnames()
    assert "cannot write" in iris.run("doctor", "--bundle", "/nowhere/x", check=2).stderr
