"""Environment and command line of a container, as kubelet resolves them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kserve_local.api.meta import Object
from kserve_local.controllers.environment import (
    ConfigError,
    NodeFacts,
    Sources,
    expand,
    resolve_command,
    resolve_env,
)

NODE = NodeFacts("kserve-local", "127.0.0.1", "127.64.8.2", cpu=4.0, memory_bytes=8 << 30)
SECRET = {
    "metadata": {"name": "creds"},
    "data": {"user": base64.b64encode(b"ann").decode(), "no name": "eA=="},
}
CONFIG = {"metadata": {"name": "conf"}, "data": {"LEVEL": "debug"}}


def sources() -> Sources:
    return Sources(
        secret={"creds": SECRET}.get,
        config_map={"conf": CONFIG}.get,
    )


def pod_with(**container: Any) -> tuple[Object, dict[str, Any]]:
    full = {"name": "kserve-container", **container}
    pod = {
        "metadata": {
            "name": "iris",
            "namespace": "default",
            "uid": "u1",
            "labels": {"app": "x"},
            "annotations": {"a/b": "c"},
        },
        "spec": {"containers": [full]},
    }
    return pod, full


def env_of(**container: Any) -> dict[str, str]:
    pod, full = pod_with(**container)
    return resolve_env(pod, full, sources(), NODE)


def variable(source: str, **reference: Any) -> dict[str, Any]:
    return {"name": "X", "valueFrom": {source: reference}}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (variable("secretKeyRef", name="creds", key="user"), "ann"),
        (variable("configMapKeyRef", name="conf", key="LEVEL"), "debug"),
        (variable("fieldRef", fieldPath="metadata.name"), "iris"),
        (variable("fieldRef", fieldPath="metadata.labels['app']"), "x"),
        (variable("fieldRef", fieldPath="metadata.annotations['a/b']"), "c"),
        (variable("fieldRef", fieldPath="status.podIP"), "127.64.8.2"),
        (variable("fieldRef", fieldPath="spec.nodeName"), "kserve-local"),
        (variable("resourceFieldRef", resource="limits.cpu"), "4"),
        (variable("resourceFieldRef", resource="limits.memory", divisor="1Mi"), "8192"),
    ],
)
def test_references_are_read(entry: dict[str, Any], value: str) -> None:
    assert env_of(env=[entry]) == {"X": value}


def test_a_limit_is_rounded_up_to_the_divisor() -> None:
    reference = variable("resourceFieldRef", resource="limits.cpu")
    assert env_of(env=[reference], resources={"limits": {"cpu": "1500m"}}) == {"X": "2"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (variable("secretKeyRef", name="nope", key="k"), 'secret "nope" not found'),
        (
            variable("secretKeyRef", name="creds", key="k"),
            "couldn't find key k in Secret default/creds",
        ),
        (variable("configMapKeyRef", name="nope", key="k"), 'configmap "nope" not found'),
        (
            variable("configMapKeyRef", name="conf", key="k"),
            "couldn't find key k in ConfigMap default/conf",
        ),
        (variable("fieldRef", fieldPath="spec.foo"), "unsupported fieldPath: spec.foo"),
    ],
)
def test_what_is_missing_is_said_in_kubelets_words(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        env_of(env=[entry])
    assert str(refused.value) == message


def test_optional_references_may_be_missing() -> None:
    entries = [
        variable("secretKeyRef", name="nope", key="k", optional=True),
        variable("configMapKeyRef", name="conf", key="k", optional=True),
    ]
    whole = [{"secretRef": {"name": "nope", "optional": True}}]
    assert env_of(env=entries, envFrom=whole) == {}


def test_env_wins_over_env_from_and_bad_names_are_skipped() -> None:
    whole = [{"prefix": "P_", "secretRef": {"name": "creds"}}, {"configMapRef": {"name": "conf"}}]
    found = env_of(envFrom=whole, env=[{"name": "LEVEL", "value": "info"}])
    assert found == {"P_user": "ann", "LEVEL": "info"}


def test_a_missing_whole_source_is_an_error() -> None:
    with pytest.raises(ConfigError, match='configmap "nope" not found'):
        env_of(envFrom=[{"configMapRef": {"name": "nope"}}])


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(A)/x", "1/x"),
        ("$$(A)", "$(A)"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$A $", "$A $"),
        ("$(A)$(A)", "11"),
    ],
)
def test_variables_expand_as_in_kubernetes(text: str, result: str) -> None:
    assert expand(text, {"A": "1"}) == result


def test_only_what_is_defined_before_is_expanded() -> None:
    entries = [
        {"name": "A", "value": "$(B)"},
        {"name": "B", "value": "2"},
        {"name": "C", "value": "$(B)"},
    ]
    assert env_of(env=entries) == {"A": "$(B)", "B": "2", "C": "2"}


def test_command_and_args_are_expanded() -> None:
    container = {"command": ["run", "$(X)"], "args": ["--name=$(X)"]}
    assert resolve_command(container, {"X": "y"}) == (("run", "y"), ("--name=y",))
