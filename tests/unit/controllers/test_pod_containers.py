"""Probes, ports, limits of containers, with Kubernetes' and KServe's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_local.controllers.environment import ConfigError
from kserve_local.controllers.pod_containers import (
    grace_of,
    limit_of,
    list_files,
    ports_of,
    probe_of,
    readiness_of,
    replica_spec,
)
from kserve_local.interfaces.backend import Probe

PORTS = (("http", 8080), ("grpc", 9000))


def test_a_serving_container_without_ports_has_8080() -> None:
    assert ports_of({"name": "kserve-container"}) == (("", 8080),)
    assert ports_of({"name": "sidecar"}) == ()
    named = {"name": "x", "ports": [{"name": "h2c", "containerPort": 9000}]}
    assert ports_of(named) == (("h2c", 9000),)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"httpGet": {"path": "/ready", "port": "grpc"}},
            Probe("http", port=9000, path="/ready"),
        ),
        ({"httpGet": {"scheme": "HTTPS", "port": 1}}, Probe("http", port=1, scheme="https")),
        ({"tcpSocket": {"port": 0}}, Probe("tcp", port=8080)),
        ({"tcpSocket": {}}, Probe("tcp", port=8080)),
        ({"exec": {"command": ["true"]}}, Probe("exec", command=("true",))),
        ({"grpc": {"port": 9000, "service": "s"}}, Probe("grpc", port=9000, service="s")),
        (
            {"tcpSocket": {"port": 1}, "periodSeconds": 5, "failureThreshold": 1},
            Probe("tcp", port=1, period=5.0, failure_threshold=1),
        ),
    ],
)
def test_probes_have_kubernetes_defaults(given: dict[str, Any], expected: Probe) -> None:
    assert probe_of(given, PORTS) == expected


def test_a_named_port_must_exist() -> None:
    with pytest.raises(ConfigError, match='"metrics"'):
        probe_of({"tcpSocket": {"port": "metrics"}}, PORTS)


def test_a_serving_container_is_ready_when_its_port_accepts() -> None:
    """KServe's and Knative's default."""
    assert readiness_of({"name": "kserve-container"}, PORTS) == Probe("tcp", port=8080)
    assert readiness_of({"name": "sidecar"}, PORTS) is None
    assert probe_of(None, PORTS) is None


def test_limits_are_cores_and_bytes() -> None:
    container = {"resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}
    assert limit_of(container, "cpu") == 0.5
    assert limit_of(container, "memory") == 2**30
    assert limit_of({}, "cpu") is None


def test_the_grace_of_the_deletion_wins() -> None:
    spec = {"terminationGracePeriodSeconds": 60}
    assert grace_of({"spec": spec}) == 60.0
    assert grace_of({"metadata": {"deletionGracePeriodSeconds": 0}, "spec": spec}) == 0.0
    assert grace_of({}) == 30.0


def test_model_files_are_listed_three_levels_deep(tmp_path: Path) -> None:
    (tmp_path / "iris" / "1" / "deep").mkdir(parents=True)
    (tmp_path / "iris" / "1" / "model.onnx").touch()
    (tmp_path / "iris" / "1" / "deep" / "x").touch()
    (tmp_path / "top").touch()
    assert list_files(tmp_path) == {"iris/1/model.onnx", "top"}


def test_hostname_and_subdomain_go_to_the_backend() -> None:
    pod = {
        "metadata": {"name": "iris-0", "namespace": "ns", "uid": "u"},
        "spec": {"hostname": "head", "subdomain": "ring"},
    }
    spec = replica_spec(pod, (), ip="", resolve=())
    assert (spec.hostname, spec.domain) == ("head", "ring.ns.svc.cluster.local")
    plain = replica_spec({**pod, "spec": {}}, (), ip="", resolve=())
    assert (plain.hostname, plain.domain) == ("", "")
