"""`-o env`: what a script evaluates."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from kserve_local.cli.shell_variables import variables
from kserve_local.errors import UsageError

GATEWAY = "http://127.0.0.1:8080"


def service(name: str, namespace: str = "default", *, v2: bool = False, **status: Any) -> Any:
    model = {"protocolVersion": "v2"} if v2 else {}
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": {"model": model}},
        "status": status,
    }


def evaluated(text: str) -> dict[str, str]:
    """Return what a shell makes of it."""
    shell = subprocess.run(
        ["sh", "-c", 'set -a; eval "$1"; env -0', "sh", text],
        env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pairs = (line.partition("=") for line in shell.stdout.split("\0") if line)
    return {k: v for k, _, v in pairs if k not in ("PATH", "PWD", "_", "SHLVL", "OLDPWD")}


def test_a_service_is_its_addresses_and_whether_it_is_ready() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    iris = service("sklearn-iris", url="http://sklearn-iris.default.example.com", **ready)
    base = "http://localhost:8080/serving/default"
    assert evaluated(variables(GATEWAY, [iris, service("2nd", v2=True)], "default")) == {
        "KSERVE_LOCAL_GATEWAY": "http://localhost:8080",
        "SKLEARN_IRIS_URL": f"{base}/sklearn-iris",
        "SKLEARN_IRIS_PREDICT": f"{base}/sklearn-iris/v1/models/sklearn-iris:predict",
        "SKLEARN_IRIS_HOST": "sklearn-iris.default.example.com",
        "SKLEARN_IRIS_READY": "True",
        "_2ND_URL": f"{base}/2nd",
        "_2ND_PREDICT": f"{base}/2nd/v2/models/2nd/infer",
        "_2ND_HOST": "",
        "_2ND_READY": "Unknown",
    }


def test_values_are_quoted_for_the_shell() -> None:
    odd = service("a", url="http://$(echo no) 'x'; y")
    assert evaluated(variables(GATEWAY, [odd], "default"))["A_HOST"] == "$(echo no) 'x'; y"


def test_services_of_other_namespaces_begin_with_it() -> None:
    text = variables(GATEWAY, [service("a"), service("a", "team-b")], "default")
    found = evaluated(text)
    assert found["A_URL"].endswith("/serving/default/a")
    assert found["TEAM_B_A_URL"].endswith("/serving/team-b/a")


def test_two_services_never_share_a_variable() -> None:
    alike = [service("a-b"), service("b", "a")]
    with pytest.raises(UsageError, match="default/a-b and a/b would both be A_B_URL"):
        variables(GATEWAY, alike, "default")
    names = ("a", "a-url", "a-host", "a-ready", "a-predict")
    lines = variables(GATEWAY, map(service, names), "default").splitlines()
    assert len({line.partition("=")[0] for line in lines}) == 1 + 4 * len(names)
