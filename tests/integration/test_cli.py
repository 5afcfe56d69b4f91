"""The commands on a running project, as a person or a script calls them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.project import Project, project, sample, wait_until

IRIS = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
V2 = {
    "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [6.8, 2.8, 4.8, 1.4] * 2}]
}
BAD = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: bad}
spec: {predictor: {model: {modelFormat: {name: sklearn}, storageUri: ./nothing}}}
"""
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: some-map}\ndata: {a: b}\n"


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose path has blanks and letters beyond ASCII, with one healthy service."""
    folder = sample("sklearn-iris", tmp_path_factory.mktemp("cli") / "mein Projekt é")
    with project(folder) as own:
        own.up()
        yield own


def envelope(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one JSON document on stdout; that there is no other is part of the contract."""
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schemaVersion"] == 1
    assert set(found) == {
        "schemaVersion", "command", "status", "data", "warnings", "error",
    }  # fmt: skip
    return found


# Answers


@pytest.mark.parametrize(
    "args",
    [
        ["status"],
        ["logs"],
        ["wait"],
        ["get", "isvc"],
        ["get", "isvc", "sklearn-iris"],
        ["events"],
        ["predict", "sklearn-iris", "@request.json"],
        ["validate"],
        ["kubeconfig"],
        ["completion", "bash"],
        ["version"],
        ["apply", "-f", "manifest.yaml"],
        ["up", "--dry-run"],
    ],
    ids=lambda args: " ".join(args),
)
def test_json_is_one_envelope_and_nothing_else(iris: Project, args: list[str]) -> None:
    for spelled in ([*args, "--json"], ["--json", *args]):
        found = envelope(iris.run(*spelled))
        assert found["command"] == args[0]
        assert (found["status"], found["error"]) == ("ok", None)
        assert found["data"] is not None


@pytest.mark.parametrize(
    ("args", "code", "category"),
    [
        (["status", "nobody"], 11, "API"),
        (["logs", "nobody"], 11, "API"),
        (["wait", "nobody"], 11, "API"),
        (["wait", "--for", "delete", "--timeout", "0.2s"], 5, "TIMEOUT"),
        (["get", "gizmos"], 11, "API"),
        (["get", "isvc", "nobody"], 11, "API"),
        (["delete", "isvc", "nobody"], 11, "API"),
        (["predict", "nobody", "{}"], 11, "API"),
        (["predict", "sklearn-iris", "nonsense"], 2, "USAGE"),
        (["up", "--port", "1"], 6, "PORT"),
        (["status", "--nonsense"], 2, "USAGE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_an_error_is_an_envelope_too(
    iris: Project, args: list[str], code: int, category: str
) -> None:
    found = envelope(iris.run(*args, "--json", check=code))
    assert (found["command"], found["status"], found["data"]) == (args[0], "error", None)
    assert found["error"]["category"] == category
    assert all(a["command"].startswith("kserve-local ") for a in found["error"]["actions"])
    plain = iris.run(*args, check=code)
    assert plain.stdout == ""
    assert plain.stderr.strip()


def test_a_taken_port_has_its_code(tmp_path: Path) -> None:
    """The supervisor finds out, in its own process; what it says keeps its kind on the way."""
    with (
        socket.create_server(("127.0.0.1", 0)) as holder,
        project(sample("sklearn-iris", tmp_path / "iris")) as own,
    ):
        port = str(holder.getsockname()[1])
        done = own.run("up", "-d", "--api-port", "auto", "--port", port, "--json", check=6)
        error = json.loads(done.stdout.splitlines()[-1])["error"]
        assert (error["code"], error["category"]) == ("PORT_TAKEN", "PORT")
        assert error["actions"][-1]["command"].startswith("kserve-local up --port ")
        assert "held by" in error["details"]["hint"]


def test_status_shows_what_is_called_and_how_it_stands(iris: Project) -> None:
    done = iris.run("status")
    header, row = done.stdout.splitlines()[:2]
    assert header.split() == [
        "NAME", "READY", "REPLICAS", "URL", "REV", "(TRAFFIC)", "MEM", "P95", "STARTED", "IN",
        "LAST", "ERROR",
    ]  # fmt: skip
    assert row.split()[:3] == ["sklearn-iris", "True", "1/1"]
    assert done.stderr == ""
    assert iris.run("ps").stdout.split()[:3] == done.stdout.split()[:3]
    service = iris.service("sklearn-iris")
    assert service["kind"] == "InferenceService"
    assert service["namespace"] == "default"
    (revision,) = service["revisions"]
    assert (revision["percent"], revision["replicas"]) == (100, 1)
    (pid,) = revision["pids"]
    os.kill(pid, 0)


def test_services_as_variables_of_a_shell(iris: Project) -> None:
    script = (
        'eval "$($0 -m kserve_local.cli.main $@)"; echo "$SKLEARN_IRIS_READY $SKLEARN_IRIS_PREDICT"'
    )
    url = iris.gateway.replace("127.0.0.1", "localhost")
    for args in (["status", "-o", "env"], ["get", "isvc", "sklearn-iris", "-o", "env"]):
        done = subprocess.run(
            ["sh", "-c", script, sys.executable, *args],
            cwd=iris.folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        path = "/serving/default/sklearn-iris/v1/models/sklearn-iris:predict"
        assert done.stdout == f"True {url}{path}\n"
        assert iris.call(path, IRIS)[0] == 200
    for args in (["get", "pods"], ["get", "isvc,pods"], ["get", "all"], ["get", "isvc", "-w"]):
        refused = iris.run(*args, "-o", "env", check=2)
        assert "-o env" in refused.stderr
        assert refused.stdout == ""


def test_restarts_show_when_asked_for_or_when_they_are_news(tmp_path: Path) -> None:
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        own.up()
        assert "RESTARTS" not in own.run("status").stdout
        header, row = own.run("status", "-o", "wide").stdout.splitlines()[:2]
        assert (header.split()[3], row.split()[3]) == ("RESTARTS", "0")
        (revision,) = own.service("sklearn-iris")["revisions"]
        os.kill(revision["pids"][0], signal.SIGKILL)
        wait_until(lambda: own.service("sklearn-iris")["restarts"] == 1)
        wait_until(lambda: own.service("sklearn-iris")["lastRestart"])
        header, row = own.run("status").stdout.splitlines()[:2]
        assert header.split()[3] == "RESTARTS"
        assert re.fullmatch(r"1 \(\d+s ago\)", " ".join(row.split()[3:6]))


# predict


def test_predict_takes_a_file_stdin_and_json(iris: Project) -> None:
    (iris.folder / "iris in.json").write_text(json.dumps(IRIS))
    want = {"predictions": [1, 1]}
    assert json.loads(iris.run("predict", "sklearn-iris", "@iris in.json").stdout) == want
    assert json.loads(iris.run("predict", "sklearn-iris", json.dumps(IRIS)).stdout) == want
    done = iris.run("predict", "sklearn-iris", "-", input=json.dumps(IRIS))
    assert json.loads(done.stdout) == want
    assert done.stderr == ""
    assert iris.json("predict", "sklearn-iris", json.dumps(IRIS))["body"] == want


def test_predict_sees_the_protocol_or_is_told(iris: Project) -> None:
    answer = iris.json("predict", "sklearn-iris", json.dumps(V2))
    assert answer["protocol"] == "v2"
    assert answer["body"]["outputs"][0]["data"] == [1, 1]
    failed = iris.run("predict", "sklearn-iris", json.dumps(IRIS), "--protocol", "v2", check=9)
    assert "answered 4" in failed.stderr
    assert failed.stdout == ""


def test_predict_says_what_is_behind_a_refusal(iris: Project) -> None:
    wrong = iris.run("predict", "sklearn-iris", "--model", "other", json.dumps(IRIS), check=9)
    assert "--model sklearn-iris" in wrong.stderr
    refused = iris.run("predict", "sklearn-iris", '{"instances": "text"}', check=9)
    assert "answered" in refused.stderr
    nobody = iris.run("predict", "sklearn-iri", "{}", check=11)
    assert "sklearn-iris" in nobody.stderr


# Objects


def test_get_prints_tables_yaml_json_and_names(iris: Project) -> None:
    table = iris.run("get", "isvc").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "URL", "READY"]
    assert table[1].split()[0] == "sklearn-iris"
    as_yaml = yaml.safe_load(iris.run("get", "inferenceservice/sklearn-iris", "-o", "yaml").stdout)
    as_json = json.loads(iris.run("get", "isvc", "sklearn-iris", "-o", "json").stdout)
    assert as_yaml == as_json
    assert as_json["kind"] == "InferenceService"
    name = iris.run("get", "isvc", "-o", "name").stdout
    assert name == "inferenceservice.serving.kserve.io/sklearn-iris\n"
    everywhere = iris.run("get", "cm", "-A").stdout.splitlines()
    assert everywhere[0].startswith("NAMESPACE")
    empty = iris.run("get", "secrets")
    assert (empty.stdout, empty.stderr) == ("", "No resources found in default namespace.\n")
    assert iris.run("get", "pods", "-o", "wide").stdout.split("\n")[0].endswith("GATES")


def test_apply_and_delete_take_files_folders_and_stdin(iris: Project, tmp_path: Path) -> None:
    assert iris.run("apply", "-f", "-", input=MAP).stdout == "configmap/some-map created\n"
    assert iris.run("apply", "-f", "-", input=MAP).stdout == "configmap/some-map unchanged\n"
    changed = iris.run("apply", "-f", "-", "--dry-run", input=MAP.replace("{a: b}", "{a: c}"))
    assert changed.stdout == "configmap/some-map configured (dry run)\n"
    stored = json.loads(iris.run("get", "cm", "some-map", "-o", "json").stdout)
    assert stored["data"] == {"a": "b"}
    (tmp_path / "one.yaml").write_text(MAP.replace("{a: b}", "{a: d}"))
    assert "configured" in iris.run("apply", "-f", str(tmp_path / "one.yaml")).stdout
    gone = iris.run("delete", "-f", str(tmp_path / "one.yaml"))
    assert gone.stdout == 'configmap "some-map" deleted\n'
    service = iris.run("apply", "-f", "manifest.yaml").stdout
    assert service.startswith("inferenceservice.serving.kserve.io/sklearn-iris ")
    iris.run("delete", "cm/some-map", check=11)
    iris.run("delete", "cm", "some-map", "--ignore-not-found")
    iris.run("apply", "-f", "-", input=MAP)
    iris.run("delete", "-f", "-", input=MAP)
    refused = iris.run("apply", "-f", "-", input=MAP.replace("some-map", "Some_Map"), check=3)
    assert "Some_Map" in refused.stderr
    iris.run("delete", "cm", check=2)


def test_yaml_from_stdin_is_checked_and_served_from_the_projects_folder(tmp_path: Path) -> None:
    """One base for the check and for the run, and no new Revision of the same YAML by another way.

    `-C` from elsewhere: the working directory does not count.
    """
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        own.up()
        text = (own.folder / "manifest.yaml").read_text()
        assert "./model" in text
        for args in (["apply", "-f", "-"], ["up", "-d", "--wait", "-f", "-"], ["validate", "-"]):
            done = subprocess.run(
                [sys.executable, "-m", "kserve_local.cli.main", "-C", "iris", *args],
                cwd=tmp_path, input=text, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert "does not exist" not in done.stderr + done.stdout
        own.run("up", "-d", "--wait")
        assert own.run("get", "revision", "-o", "name").stdout.count("revision") == 1
        assert own.run("predict", "sklearn-iris", "@request.json").returncode == 0


# Logs and events


def test_logs_are_filtered_and_cut(iris: Project) -> None:
    whole = iris.run("logs", "sklearn-iris").stdout
    assert "Successfully copied" in whole
    assert "Serving sklearn-iris" in whole
    last = iris.run("logs", "sklearn-iris", "-c", "kserve-container", "--tail", "1").stdout
    assert len(last.splitlines()) == 1
    found = iris.run("logs", "--grep", "Serving sklearn-iris").stdout.splitlines()
    assert len(found) == 1
    lines = iris.json("logs", "isvc/sklearn-iris", "--grep", "Serving sklearn")["lines"]
    assert [line["container"] for line in lines] == ["kserve-container"]
    assert iris.run("logs", "sklearn-iris", "--previous").stdout == ""
    assert iris.run("logs", "--since", "1h").stdout == whole
    own = iris.run("logs", "--revision", "1").stdout
    assert own == whole == iris.run("logs", "--revision", "sklearn-iris-predictor-00001").stdout
    nothing = iris.run("logs", "--revision", "2", check=11)
    assert "there are Pods of: sklearn-iris-predictor-00001" in nothing.stderr
    iris.run("logs", "--since", "yesterday", check=2)
    assert iris.run("logs", "--component", "predictor").stdout == whole
    assert iris.run("logs", "--component", "transformer").stdout == ""
    assert "Serving sklearn-iris" in iris.run("logs", "--level", "info").stdout
    assert iris.run("logs", "--level", "error").stdout == ""


def test_logs_that_are_too_old_are_left_out(iris: Project) -> None:
    """A file that was not written to since then holds nothing of interest; kubectl says so too."""
    (log,) = iris.state.glob("logs/*/kserve-container.log")
    with log.open("a") as file:
        file.write("2 minutes ago, says the file\n")
    now = time.time()
    os.utime(log, (now - 120, now - 120))
    shown = "2 minutes ago, says the file"
    for words in (["logs"], ["kubectl", "--", "logs", "-l", "component=predictor"]):
        if words[0] == "kubectl" and not shutil.which("kubectl"):
            continue
        assert shown in iris.run(*words, "--since", "3m").stdout
        assert shown not in iris.run(*words, "--since", "1m").stdout


def test_events_say_what_happened(iris: Project) -> None:
    lines = iris.run("events", "sklearn-iris").stdout.splitlines()
    assert any("InferenceServiceReady" in line for line in lines)
    assert iris.run("events", "nobody").stdout == ""


def start(own: Project, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kserve_local.cli.main", *args],
        cwd=own.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], number: int) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=30)


@pytest.mark.parametrize("command", ["logs", "events"])
def test_following_in_json_is_one_object_a_line(iris: Project, command: str) -> None:
    process = start(iris, command, "-F", "--json")
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        assert first["type"] in ("log", "event")
        assert first["seq"] == 1
        assert isinstance(first["ts"], float)
    finally:
        finish(process, signal.SIGINT)
    assert process.returncode == 130


def test_a_reader_that_goes_away_is_no_error(iris: Project) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m kserve_local.cli.main get cm -A -o yaml | head -1",
        shell=True, cwd=iris.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""


# A service that fails


def test_a_failing_service_is_told_everywhere(iris: Project) -> None:
    (iris.folder / "bad.yaml").write_text(BAD)
    try:
        up = iris.run("up", "-d", "--wait", check=4)
        assert "error: bad failed: ModelLoadFailed: Local path ./nothing does not" in up.stderr
        assert "does not exist" in up.stderr
        assert "kserve-local logs bad --tail 50" in up.stderr
        events = [json.loads(line) for line in iris.run(
            "up", "-d", "--wait", "--json", check=4).stdout.splitlines()]  # fmt: skip
        *told, last = events
        assert [e["seq"] for e in told] == list(range(1, len(told) + 1))
        assert {"step", "state"} <= {e["type"] for e in told}
        assert last["error"]["code"] == "MODEL_LOAD_FAILED"
        assert last["error"]["category"] == "SERVICE"
        assert last["error"]["details"]["service"] == "bad"
        assert any("does not exist" in line for line in last["error"]["details"]["log"])
        assert iris.run("status", "--exit-code", check=4).stdout
        assert iris.run("status", "sklearn-iris", "--exit-code").stdout
        failed = iris.run("wait", "bad", check=4)
        assert 'InferenceService "default/bad" failed: ModelLoadFailed: ' in failed.stderr
        iris.run("wait", "isvc/sklearn-iris")
        refused = iris.run("predict", "bad", "{}", check=9)
        assert "ModelLoadFailed" in refused.stderr
        # The other one serves on.
        assert iris.call("/v1/models/sklearn-iris:predict", IRIS)[0] == 200
    finally:
        (iris.folder / "bad.yaml").unlink()
    # The project is watched: with the file its service goes.
    iris.run("wait", "bad", "--for", "delete")
    assert "is not in" not in iris.run("up", "-d").stderr


# Kubernetes side, shell, machine


def test_the_kubeconfig_is_printed_or_named(iris: Project) -> None:
    path = Path(iris.run("kubeconfig", "--path").stdout.strip())
    assert path.stat().st_mode & 0o777 == 0o600
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(iris.run("kubeconfig").stdout)


def test_bash_really_completes(iris: Project, tmp_path: Path) -> None:
    """The script is sourced and its function called as bash does on Tab."""
    tool = tmp_path / "kserve-local"
    tool.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m kserve_local.cli.main \"$@\"\n")
    tool.chmod(0o755)
    script = tmp_path / "completion.bash"
    script.write_text(iris.run("completion", "bash").stdout)
    for words, wanted in (
        (["kserve-local", "st"], ["status"]),
        (["kserve-local", "status", "--exit"], ["--exit-code"]),
        (["kserve-local", "completion", ""], ["bash", "fish", "powershell", "zsh"]),
    ):
        spelled = " ".join(f"'{w}'" for w in words)
        program = (
            f"source '{script}'; COMP_WORDS=({spelled}); COMP_CWORD={len(words) - 1}; "
            "_kserve_local_completion kserve-local; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "-c", program],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert sorted(done.stdout.split()) == wanted, done.stderr


def test_doctor_knows_that_the_project_runs(iris: Project) -> None:
    levels = {c["name"]: c["level"] for c in iris.json("doctor")["checks"]}
    assert levels["ports"] == "ok"
    assert "fail" not in levels.values()


def test_a_running_project_is_reached_and_stopped_whatever_its_config_says(tmp_path: Path) -> None:
    """Else an edit of kserve-local.yaml would keep everything running that `down` should stop."""
    with project(sample("sklearn-iris", tmp_path / "iris")) as own:
        own.up()
        (own.folder / "kserve-local.yaml").write_text("gatway: {}\nimages: {a: {context: gone}}\n")
        for args in (
            ["status"], ["logs"], ["events"], ["get", "isvc"], ["kubeconfig"], ["wait"],
            ["predict", "sklearn-iris", "@request.json"], ["delete", "pods", "--all"], [],
        ):  # fmt: skip
            done = own.run(*args)
            assert 'warning: kserve-local.yaml: unknown key "gatway"' in done.stderr, args
            assert 'images."a".context' in done.stderr
        assert "gatway" in own.run("up", "-d", check=3).stderr
        assert "gatway" in own.run("apply", "-f", "manifest.yaml", check=3).stderr
        assert "✗ fail  config" in own.run("doctor", check=7).stdout
        assert "iris stopped" in own.run("down").stderr
        assert own.leftovers() == {}


def test_quiet_and_colour(iris: Project) -> None:
    assert iris.run("-q", "up", "-d", "--wait").stderr == ""
    coloured = iris.run("up", "-d", "--wait", "--color", "always").stderr
    assert "\x1b[" in coloured
    forced = Project(iris.folder, {"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert "\x1b[" not in forced.run("up", "-d", "--wait").stderr


def test_status_is_watched_until_interrupted(iris: Project) -> None:
    process = start(iris, "status", "--watch")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("NAME")
    assert process.stdout.readline().startswith("sklearn-iris")
    finish(process, signal.SIGINT)
    assert process.returncode == 130
    wait_until(lambda: process.poll() is not None)
