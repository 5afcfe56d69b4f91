"""`kserve-local simulate` as it is typed: inputs, tables, JSON, pictures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kserve_local.cli.main import cli
from kserve_local.errors import Invalid, KServeLocalError, NotFound, UsageError

ISVC = """apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: iris}
spec:
  predictor:
    minReplicas: 0
    scaleTarget: 2
    model: {modelFormat: {name: sklearn}, storageUri: "gs://bucket/model"}
"""
LOAD = ("--rate", "step(0:10,1m:0)", "--duration", "3m", "--service-time", "exp(500ms)")
COLD = ("--cold-start", "3s")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with one service."""
    (tmp_path / "isvc.yaml").write_text(ISVC)
    return tmp_path


def run(folder: Path, *args: str) -> str:
    """Run the command in a project and return what it printed on stdout."""
    done = CliRunner().invoke(cli, ["-C", str(folder), "simulate", *args], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def data(folder: Path, *args: str) -> dict[str, Any]:
    envelope = json.loads(run(folder, *args, "--json"))
    assert envelope["command"] == "simulate"
    assert envelope["status"] == "ok"
    found: dict[str, Any] = envelope["data"]
    return found


def test_a_run_is_figures_and_why_replicas_changed(project: Path) -> None:
    out = run(project, "iris", *LOAD, *COLD)
    assert [line.split()[0] for line in out.splitlines()[:5]] == [
        "REQUESTS", "ANSWERED", "LATENCY", "REPLICAS", "USED",
    ]  # fmt: skip
    assert "TIME      REPLICAS   READY   WHY" in out
    assert "1 -> 0     0       ScaledToZero: no traffic" in out


def test_the_rows_of_why_can_be_cut(project: Path) -> None:
    cut = run(project, "iris", *LOAD, *COLD, "--steps", "1")
    everything = run(project, "iris", *LOAD, *COLD, "--steps", "all")
    assert cut.count(" -> ") == 1
    assert everything.count(" -> ") > 2


def test_json_has_the_steps_and_a_timeline(project: Path) -> None:
    found = data(project, "iris", *LOAD, *COLD, "--from-zero")
    assert found["service"] == "default/iris predictor"
    (only,) = found["runs"]
    assert only["codes"] == {"200": only["requests"]}
    assert only["coldStarts"] == 1
    assert only["steps"][0]["from"] == 0
    assert only["steps"][-1]["reason"] == "ScaledToZero"
    assert len(only["timeline"]["requestsPerSecond"]) == 180


def test_a_sweep_runs_every_combination_on_the_same_requests(project: Path) -> None:
    sweep = ("--sweep", "scaleTarget=1,5", "--sweep", "cold-start=1s,uniform(1s,9s)")
    runs = data(project, "iris", *LOAD, *sweep)["runs"]
    assert [tuple(r["settings"].values()) for r in runs] == [
        ("1", "1s"), ("1", "uniform(1s,9s)"), ("5", "1s"), ("5", "uniform(1s,9s)"),
    ]  # fmt: skip
    assert len({r["requests"] for r in runs}) == 1
    out = run(project, "iris", *LOAD, *sweep).splitlines()
    assert out[0].split()[:4] == ["SCALETARGET", "COLD-START", "ANSWERED", "ERRORS"]
    assert len(out) == 5


def test_a_trace_has_its_own_times(project: Path) -> None:
    (project / "trace.csv").write_text("timestamp,service_time\n0,0.1\n1,0.3\n")
    found = data(project, "iris", "--trace", str(project / "trace.csv"), *COLD)["runs"][0]
    assert (found["requests"], found["latency"]["max"]) == (2, 0.3)


def test_without_files_kserve_s_defaults_are_simulated(tmp_path: Path) -> None:
    found = data(tmp_path, *LOAD, *COLD)
    assert found["service"] == ""
    assert found["runs"][0]["ready"] == {"mean": 1.0, "min": 1, "max": 1}


def test_the_cluster_s_config_in_the_files_counts(project: Path) -> None:
    (project / "config.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\n"
        "metadata: {name: config-autoscaler, namespace: knative-serving}\n"
        'data: {enable-scale-to-zero: "false"}\n'
    )
    assert data(project, "iris", *LOAD, *COLD)["runs"][0]["ready"]["min"] == 1


@pytest.mark.parametrize("name", ["run.svg", "run.png"])
def test_a_picture_is_written(project: Path, name: str) -> None:
    path = project / name
    run(project, "iris", *LOAD, *COLD, "--plot", str(path))
    assert path.read_bytes().startswith(b"<svg" if name.endswith("svg") else b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "error", "why"),
    [
        (COLD, UsageError, r"--trace FILE or --rate EXPR is needed"),
        (("--rate", "1", "--trace", "x", *COLD), UsageError, "leave no room for each other"),
        (LOAD, UsageError, "--cold-start is needed"),
        ((*LOAD[:4], *COLD), UsageError, "how long a request takes"),
        ((*LOAD[2:], "--rate", "fast", *COLD), UsageError, '--rate "fast"'),
        ((*LOAD[:4], "--service-time", "slow", *COLD), UsageError, '--service-time "slow"'),
        ((*LOAD, "--cold-start", "slow"), UsageError, '--cold-start "slow"'),
        ((*LOAD, *COLD, "--duration", "0s"), UsageError, "--duration"),
        ((*LOAD, *COLD, "--plot", "run.gif"), UsageError, r"write FILE\.svg or FILE\.png"),
        ((*LOAD, *COLD, "--plot", "/no/where.svg"), UsageError, "cannot be written"),
        ((*LOAD, *COLD, "--sweep", "scaleTarget"), UsageError, "--sweep scaleTarget=1,5,10"),
        ((*LOAD, *COLD, "--sweep", "scaleTarget=1,"), UsageError, "write KEY=A,B,C"),
        ((*LOAD, *COLD, "--sweep", "target=1", "--sweep", "target=2"), UsageError, "there twice"),
        ((*LOAD, *COLD, "--sweep", "scaletarget=1"), UsageError, 'did you mean "scaleTarget"'),
        ((*LOAD, *COLD, "--sweep", "coldstart=1"), UsageError, 'did you mean "cold-start"'),
        ((*LOAD, *COLD, "--sweep", "window=1s"), Invalid, "6s"),
        ((*LOAD, *COLD, "--sweep", "stable-window=x"), Invalid, "stable-window"),
        ((*LOAD, *COLD, "--from-zero", "--sweep", "minReplicas=1"), UsageError, "--from-zero"),
        ((*LOAD, *COLD, "--plot", "a.svg", "--sweep", "target=1,2"), UsageError, "one run"),
        ((*LOAD, *COLD, "--component", "transformer"), NotFound, "no transformer"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_names_the_option(
    project: Path, args: tuple[str, ...], error: type[KServeLocalError], why: str
) -> None:
    with pytest.raises(error, match=why):
        run(project, "iris", *args)


def test_a_service_that_is_not_there_is_told_with_those_that_are(project: Path) -> None:
    with pytest.raises(NotFound, match="there are: iris"):
        run(project, "mnist", *LOAD, *COLD)


def test_yaml_that_a_cluster_would_refuse_is_told(project: Path) -> None:
    (project / "isvc.yaml").write_text(ISVC.replace("scaleTarget: 2", "scaleTarget: many"))
    with pytest.raises(Invalid, match=r"isvc\.yaml:7"):
        run(project, "iris", *LOAD, *COLD)
