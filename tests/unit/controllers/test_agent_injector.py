"""The agent in a Pod: as KServe's webhook puts it there, and as the node agent plays it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest

from kserve_local.api import builtin
from kserve_local.api.config import parse
from kserve_local.api.meta import Object
from kserve_local.controllers import pod_state
from kserve_local.controllers.agent_injector import agent_args, agent_of
from kserve_local.controllers.endpoints import endpoint_of
from kserve_local.controllers.pod_containers import all_containers, played_sidecars
from kserve_local.controllers.pod_mutators import mutate
from kserve_local.controllers.pod_plan import Seen, plan_pod
from kserve_local.controllers.podspec import batcher_annotations, logger_annotations
from kserve_local.gateway.agent_settings import read_args
from kserve_local.interfaces.backend import ContainerStatus, ReplicaStatus

NOW = 1_000_000.0
INTERNAL = "internal.serving.kserve.io/"


def pod_of(
    logger: dict[str, Any] | None = None, batcher: dict[str, Any] | None = None, **annotations: str
) -> Object:
    return {
        "kind": "Pod",
        "metadata": {
            "generateName": "iris-predictor-",
            "name": "iris-predictor-x1",
            "namespace": "default",
            "uid": "u1",
            "labels": {"serving.kserve.io/inferenceservice": "iris", "component": "predictor"},
            "annotations": {
                **annotations,
                **logger_annotations(logger),
                **batcher_annotations(batcher),
            },
        },
        "spec": {
            "containers": [
                {
                    "name": "kserve-container",
                    "image": "i",
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {
                        "httpGet": {"port": 8080, "path": "/ready", "scheme": "HTTP"},
                        "successThreshold": 1,
                        "timeoutSeconds": 2,
                        "initialDelaySeconds": 0,
                    },
                    "securityContext": {"runAsNonRoot": True},
                }
            ]
        },
        "status": {},
    }


def mutated(pod: Object, *, config: dict[str, Any] | None = None, **objects: list[Object]) -> Any:
    shipped = copy.deepcopy(builtin.config_map())
    for key, fields in (config or {}).items():
        shipped["data"][key] = json.dumps({**json.loads(shipped["data"][key]), **fields})

    def lookup(resource: str, namespace: str | None) -> Sequence[Object]:
        return objects.get(resource.partition(".")[0], [])

    return mutate(pod, config=parse(shipped), lookup=lookup)


def service(logger: dict[str, Any]) -> Object:
    return {
        "metadata": {"name": "iris", "namespace": "default"},
        "spec": {"predictor": {"logger": logger}},
    }


def test_a_pod_without_logger_and_batcher_has_no_agent() -> None:
    pod = mutated(pod_of())
    assert [c["name"] for c in pod["spec"]["containers"]] == ["kserve-container"]
    assert agent_of(pod) is None
    assert agent_args(pod) == ()


def test_the_container_is_the_webhooks() -> None:
    pod = mutated(
        pod_of(
            {"mode": "all", "url": "http://sink", "metadataHeaders": ["X-A", "X-B"]},
            {"maxBatchSize": 8, "maxLatency": 250},
        )
    )
    agent = pod["spec"]["containers"][1]
    assert agent == {
        "name": "agent",
        "image": "kserve/agent:latest",
        "args": [
            *("--enable-batcher", "--max-batchsize", "8", "--max-latency", "250"),
            *("--log-url", "http://sink", "--source-uri", "", "--log-mode", "all"),
            *("--inference-service", "iris", "--namespace", "default", "--endpoint", ""),
            *("--component", "predictor", "--metadata-headers", "X-A,X-B"),
            *("--logger-tls-skip-verify", "false", "--component-port", "8080"),
        ],
        "ports": [{"name": "agent-port", "containerPort": 9081, "protocol": "TCP"}],
        "env": [
            {
                "name": "SERVING_READINESS_PROBE",
                "value": '{"httpGet":{"path":"/ready","port":8080,"scheme":"HTTP"},'
                '"timeoutSeconds":2,"successThreshold":1}',
            }
        ],
        "resources": {
            "limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "100m", "memory": "100Mi"},
        },
        "readinessProbe": {
            "httpGet": {
                "path": "/ready",
                "port": 9081,
                "scheme": "HTTP",
                "httpHeaders": [{"name": "K-Network-Probe", "value": "queue"}],
            }
        },
        "securityContext": {"runAsNonRoot": True},
    }


def test_defaults_of_the_config_are_in_the_arguments() -> None:
    """The URL is; the batcher's sizes are not, the agent has the same ones."""
    pod = mutated(pod_of({"mode": "request"}, {}))
    args = list(agent_args(pod))
    assert args[:3] == ["--enable-batcher", "--log-url", "http://default-broker"]
    settings = read_args(args)
    assert settings.batcher is not None
    assert (settings.batcher.max_size, settings.batcher.max_latency) == (32, 5.0)
    assert settings.logger is not None
    assert settings.logger.mode == "request"


STORAGE = {"path": "daily", "parameters": {"format": "csv"}, "key": "k"}


@pytest.mark.parametrize(
    ("logger", "config", "args"),
    [
        (
            {"mode": "all", "storage": STORAGE, "batchSize": 5, "batchInterval": "10s"},
            {},
            [
                *("--log-store-path", "daily", "--log-store-format", "csv"),
                *("--log-batch-size", "5", "--log-batch-interval", "10s"),
            ],
        ),
        ({"mode": "all", "marshallerUrl": "http://m"}, {}, ["--log-marshaller-url", "http://m"]),
        # A predictor's logger replaces the storage of the config, also by none.
        ({"mode": "all"}, {"storage": STORAGE, "batchSize": 3}, ["--log-batch-size", "3"]),
        (None, {"storage": STORAGE}, ["--log-store-path", "daily", "--log-store-format", "csv"]),
        (
            {"mode": "all"},
            {"caCertFile": "ca.crt", "tlsSkipVerify": True},
            ["--logger-ca-cert-file", "ca.crt", "--logger-tls-skip-verify", "true"],
        ),
    ],
)
def test_what_the_predictors_logger_adds(
    logger: dict[str, Any] | None, config: dict[str, Any], args: list[str]
) -> None:
    """Also for a transformer's Pod: the webhook looks at the predictor."""
    services = [service(logger)] if logger else []
    pod = mutated(pod_of({"mode": "all"}), config={"logger": config}, inferenceservices=services)
    found = list(agent_args(pod))
    start = found.index("--component") + 2
    tail = found[start:]
    assert tail[: len(args)] == args
    rest = tail[len(args) :]
    assert rest[-2:] == ["--component-port", "8080"]


def test_metadata_annotations_are_those_that_exist() -> None:
    pod = mutated(pod_of({"mode": "all", "metadataAnnotations": ["team", "none"]}, team="ml"))
    args = agent_args(pod)
    assert args[args.index("--metadata-annotations") + 1] == "team=ml"


def test_a_certificate_bundle_is_mounted() -> None:
    pod = mutated(pod_of({"mode": "all"}), config={"logger": {"caBundle": "bundle"}})
    assert pod["spec"]["volumes"] == [
        {"name": "agent-ca-bundle", "configMap": {"name": "bundle", "optional": True}}
    ]
    agent = agent_of(pod)
    assert agent is not None
    assert agent["volumeMounts"] == [
        {"name": "agent-ca-bundle", "mountPath": "/etc/tls/logger", "readOnly": True}
    ]


def test_credentials_of_the_loggers_account() -> None:
    """With storage the agent gets what `logger-sa` has, beside the Pod's own account's."""
    secret = {
        "metadata": {"name": "s3", "namespace": "default"},
        "data": {"AWS_ACCESS_KEY_ID": "aWQ=", "AWS_SECRET_ACCESS_KEY": "c2VjcmV0"},
    }
    account = {"metadata": {"name": "logger-sa"}, "secrets": [{"name": "s3"}]}
    pod = mutated(
        pod_of({"mode": "all", "url": "s3://b/p"}),
        inferenceservices=[service({"mode": "all", "storage": STORAGE})],
        serviceaccounts=[account],
        secrets=[secret],
    )
    agent = agent_of(pod)
    assert agent is not None
    names = [e["name"] for e in agent["env"]]
    assert names == ["SERVING_READINESS_PROBE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]


def test_the_transformers_port_and_probe_in_a_collocated_pod() -> None:
    pod = pod_of(None, {})
    pod["spec"]["containers"].append(
        {
            "name": "transformer-container",
            "ports": [{"containerPort": 8085}],
            "readinessProbe": {"tcpSocket": {"port": 8085}},
        }
    )
    pod = mutated(pod)
    assert agent_args(pod)[-2:] == ("--component-port", "8085")
    agent = agent_of(pod)
    assert agent is not None
    assert agent["env"][0]["value"] == '{"tcpSocket":{"port":8085}}'
    assert agent["readinessProbe"]["httpGet"]["path"] == "/"


def test_modelcars_stand_behind_it() -> None:
    """The webhook puts them in last."""
    pod = mutated(pod_of(None, {}, **{f"{INTERNAL}storage-initializer-sourceuri": "oci://r/i:1"}))
    names = [c["name"] for c in pod["spec"]["containers"]]
    assert names == ["kserve-container", "agent", "modelcar"]


# Played


def status_of(pod: Object, *containers: ContainerStatus, now: float = NOW) -> Any:
    replica = (
        ReplicaStatus("u1", "default", "iris", "127.64.8.2", containers) if containers else None
    )
    plan = plan_pod(pod, Seen(host_ip="127.0.0.1", replica=replica), now)
    return plan.status


def running(*, ready: bool) -> ContainerStatus:
    return ContainerStatus("kserve-container", "running", pid=7, started_at=NOW, ready=ready)


def test_no_process_runs_for_it() -> None:
    pod = mutated(pod_of(None, {}))
    assert [c["name"] for c in all_containers(pod)] == ["kserve-container"]
    assert played_sidecars(pod) == ("agent",)
    assert pod_state.serving_container(pod["spec"])["name"] == "kserve-container"


def test_a_users_container_of_that_name_is_none() -> None:
    pod = pod_of()
    pod["spec"]["containers"].append({"name": "agent", "image": "mine"})
    assert len(all_containers(pod)) == 2


def test_it_runs_with_the_serving_container_and_is_ready_with_it() -> None:
    pod = mutated(pod_of(None, {}))
    assert status_of(pod)["containerStatuses"][1]["state"] == {
        "waiting": {"reason": "ContainerCreating"}
    }
    pod["status"] = status = status_of(pod, running(ready=False))
    agent = status["containerStatuses"][1]
    assert "running" in agent["state"]
    assert not agent["ready"]
    status = status_of(pod, running(ready=True))
    assert [c["ready"] for c in status["containerStatuses"]] == [True, True]
    assert status["containerStatuses"][1]["imageID"] == "kserve-local://agent"
    assert status["phase"] == "Running"


def test_it_stays_when_the_serving_container_is_restarted() -> None:
    """Not ready meanwhile, and not started anew."""
    pod = mutated(pod_of(None, {}))
    pod["status"] = status_of(pod, running(ready=True))
    end = ContainerStatus(
        "kserve-container", "terminated", pid=7, finished_at=NOW + 9, exit_code=1, reason="Error"
    )
    status = status_of(pod, end, now=NOW + 9)
    agent = status["containerStatuses"][1]
    assert agent["state"] == pod["status"]["containerStatuses"][1]["state"]
    assert not agent["ready"]
    assert agent["restartCount"] == 0


def test_the_route_says_what_the_agent_does() -> None:
    """To the container's own port: what stands between is in the gateway."""
    pod = mutated(pod_of(None, {}))
    pod["status"] = {"podIP": "127.64.8.2"}
    endpoint = endpoint_of(pod)
    assert endpoint.port == 8080
    assert endpoint.agent == agent_args(pod)
