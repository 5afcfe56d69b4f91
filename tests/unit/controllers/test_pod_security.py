"""securityContext and imagePullPolicy of a Pod, as a backend that isolates is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_local.controllers import pod_containers
from kserve_local.controllers.environment import ConfigError
from kserve_local.controllers.pod_containers import pull_policy, security_of
from kserve_local.interfaces.backend import Security


def security(pod: dict[str, Any] | None, own: dict[str, Any] | None) -> Security:
    spec = {"securityContext": pod} if pod is not None else {}
    metadata = {"name": "p", "namespace": "ns", "uid": "u"}
    container = {"name": "c", "securityContext": own} if own is not None else {"name": "c"}
    return security_of({"metadata": metadata, "spec": spec}, container)


@pytest.mark.parametrize(
    ("pod", "own", "expected"),
    [
        (None, None, Security()),
        (
            {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4, 4]},
            None,
            Security(user=1000, group=2000, groups=(4, 3000)),
        ),
        # The container's own wins, also where it says 0 or false.
        (
            {"runAsUser": 1000, "runAsNonRoot": True},
            {"runAsUser": 0, "runAsNonRoot": False},
            Security(user=0),
        ),
        (
            None,
            {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"], "add": ["CAP_NET_BIND_SERVICE"]},
            },
            Security(
                privilege_escalation=False,
                read_only_root=True,
                add=("NET_BIND_SERVICE",),
                drop=("ALL",),
            ),
        ),
        (None, {"privileged": True}, Security(privileged=True)),
    ],
)
def test_security_contexts_fold(
    pod: dict[str, Any] | None, own: dict[str, Any] | None, expected: Security
) -> None:
    assert security(pod, own) == expected


def test_root_that_must_not_be_root_is_refused() -> None:
    with pytest.raises(ConfigError, match="runAsUser breaks non-root policy") as refused:
        security({"runAsNonRoot": True}, {"runAsUser": 0})
    assert '"p_ns(u)", container: c' in str(refused.value)


@pytest.mark.parametrize(
    ("image", "given", "expected"),
    [
        ("iris", None, "Always"),
        ("iris:latest", None, "Always"),
        ("localhost:5000/iris", None, "Always"),
        ("iris:v1", None, "IfNotPresent"),
        ("iris@sha256:abc", None, "IfNotPresent"),
        ("iris:latest", "Never", "Never"),
        ("iris:v1", "Always", "Always"),
    ],
)
def test_the_tag_says_whether_to_pull(image: str, given: str | None, expected: str) -> None:
    container = {"image": image, **({"imagePullPolicy": given} if given else {})}
    assert pull_policy(container) == expected


@pytest.mark.parametrize(
    ("pod", "own", "expected"),
    [
        (None, None, ""),
        ({"type": "RuntimeDefault"}, None, ""),
        ({"type": "Unconfined"}, None, "unconfined"),
        ({"type": "Unconfined"}, {"type": "RuntimeDefault"}, ""),
        (None, {"type": "Localhost", "localhostProfile": "own/p.json"}, '{"defaultAction": "x"}'),
    ],
)
def test_the_seccomp_profile_is_the_containers_or_the_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pod: Any, own: Any, expected: str
) -> None:
    monkeypatch.setattr(pod_containers, "SECCOMP_PROFILES", tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.json").write_text('{"defaultAction":"x"}')
    whole = {"spec": {"securityContext": {"seccompProfile": pod} if pod else {}}}
    container = {"securityContext": {"seccompProfile": own}} if own else {}
    assert pod_containers.seccomp_of(whole, container) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "gone.json",
            'cannot load seccomp profile "/var/lib/kubelet/seccomp/gone.json": open '
            "/var/lib/kubelet/seccomp/gone.json: no such file or directory",
        ),
        ("../x", "must be a path below"),
        ("/etc/passwd", "must be a path below"),
        ("", "localhostProfile must be set"),
    ],
)
def test_a_seccomp_profile_that_is_not_there_is_refused(name: str, said: str) -> None:
    """Not run without what was to confine it."""
    own = {"seccompProfile": {"type": "Localhost", "localhostProfile": name}}
    with pytest.raises(ConfigError, match=said):
        pod_containers.seccomp_of({"spec": {}}, {"securityContext": own})
