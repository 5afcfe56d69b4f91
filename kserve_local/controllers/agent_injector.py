"""KServe's agent sidecar: put into a Pod by the webhook, and found in one again. Pure.

Arguments, environment, probe and their order are KServe v0.20's
(pkg/webhook/admission/pod/agent_injector.go; control-plane.md 8.1 to 8.3), so that the Pod shows
what it shows on a cluster. No process runs for the container: the gateway does its work, by these
arguments (`gateway.agent`). The agent of multi-model serving is not there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from kserve_local.api import names
from kserve_local.api.config import InferenceServiceConfig
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of
from kserve_local.controllers.credentials import Credentials
from kserve_local.controllers.oci_models import MODELCAR

AGENT_PORT = 9081
PORT_NAME = "agent-port"
CA_VOLUME = "agent-ca-bundle"
CA_MOUNT = "/etc/tls/logger"
LOGGER_ACCOUNT = "logger-sa"

Of = Callable[[str], Credentials]
"""`of(service_account)`: the credentials that this account of the namespace gives."""

# Go's order of fields, for what is handed on as JSON.
_PROBE_FIELDS = (
    "httpGet",
    "tcpSocket",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
)
_ACTION_FIELDS = ("path", "port", "host", "scheme", "httpHeaders")


def inject(
    pod: Object, isvc: Object | None, config: InferenceServiceConfig, credentials: Of
) -> None:
    """Put the agent into a Pod that asks for a logger or a batcher.

    Args:
        pod: Changed in place.
        isvc: The InferenceService, None when it is gone.

    Raises:
        Forbidden: A Secret of the service account does not exist.
    """
    annotations = annotations_of(pod)
    spec: dict[str, Any] = pod["spec"]
    logs = names.LOGGER in annotations
    if not logs and names.BATCHER not in annotations:
        return
    if any(c.get("name") == names.AGENT_CONTAINER for c in spec["containers"]):
        return
    logger = _Logger(isvc, config)
    args = _batcher_args(annotations)
    if logs:
        args += _logger_args(pod, logger, config)
    args += ["--component-port", str(_component_port(spec))]
    probe, path = _readiness(spec)
    container: dict[str, Any] = {
        "name": names.AGENT_CONTAINER,
        "image": config.agent.image,
        "args": args,
        "ports": [{"name": PORT_NAME, "containerPort": AGENT_PORT, "protocol": "TCP"}],
        "env": [{"name": "SERVING_READINESS_PROBE", "value": probe}] if probe else [],
        "resources": config.agent.resources(),
        "readinessProbe": {
            "httpGet": {
                "path": path,
                "port": AGENT_PORT,
                "scheme": "HTTP",
                "httpHeaders": [{"name": "K-Network-Probe", "value": "queue"}],
            }
        },
    }
    security = spec["containers"][0].get("securityContext")
    if security is not None:
        container["securityContext"] = copy.deepcopy(security)
    if logs and config.logger.ca_bundle:
        volume = {"name": CA_VOLUME}
        bundle = {"name": config.logger.ca_bundle, "optional": True}
        spec.setdefault("volumes", []).append({**volume, "configMap": bundle})
        mount = {**volume, "mountPath": CA_MOUNT, "readOnly": True}
        container.setdefault("volumeMounts", []).append(mount)
    accounts = [str(spec.get("serviceAccountName") or "default")]
    if logs and logger.storage is not None:
        accounts.append(str(logger.storage.get("serviceAccountName") or LOGGER_ACCOUNT))
    for account in accounts:
        _apply(spec, container, credentials(account))
    if not container["env"]:
        del container["env"]
    # Modelcars come after it.
    cars = (n for n, c in enumerate(spec["containers"]) if str(c.get("name")).startswith(MODELCAR))
    at = next(cars, len(spec["containers"]))
    spec["containers"] = [*spec["containers"][:at], container, *spec["containers"][at:]]


class _Logger:
    """What the predictor's logger says beside the Pod's annotations, also for other components."""

    def __init__(self, isvc: Object | None, config: InferenceServiceConfig) -> None:
        given = config.logger
        self.storage: Mapping[str, Any] | None = given.storage
        self.marshaller = given.marshaller_url
        self.batch_size = given.batch_size
        self.batch_interval = given.batch_interval
        predictor = ((isvc or {}).get("spec") or {}).get("predictor") or {}
        own: Mapping[str, Any] | None = predictor.get("logger")
        if own is not None:
            self.storage = own.get("storage")
            self.marshaller = own.get("marshallerUrl") or self.marshaller
            self.batch_size = own.get("batchSize") or self.batch_size
            self.batch_interval = own.get("batchInterval") or self.batch_interval


def _batcher_args(annotations: Mapping[str, str]) -> list[str]:
    if names.BATCHER not in annotations:
        return []
    args = ["--enable-batcher"]
    for flag, annotation in (
        ("--max-batchsize", names.BATCHER_MAX_BATCH_SIZE),
        ("--max-latency", names.BATCHER_MAX_LATENCY),
    ):
        if annotation in annotations:
            args += [flag, annotations[annotation]]
    return args


def _logger_args(pod: Object, logger: _Logger, config: InferenceServiceConfig) -> list[str]:
    annotations, labels = annotations_of(pod), labels_of(pod)
    args = [
        *("--log-url", annotations.get(names.LOGGER_SINK_URL) or config.logger.default_url),
        # On a cluster a name made from generateName is not there yet at admission.
        *("--source-uri", "" if pod["metadata"].get("generateName") else name_of(pod)),
        *("--log-mode", annotations.get(names.LOGGER_MODE, "all")),
        *("--inference-service", labels.get(names.ISVC_LABEL, "")),
        *("--namespace", namespace_of(pod)),
        *("--endpoint", labels.get("endpoint", "")),
        *("--component", labels.get(names.COMPONENT_LABEL, "")),
    ]
    storage = logger.storage or {}
    optional = (
        ("--log-store-path", storage.get("path")),
        ("--log-store-format", (storage.get("parameters") or {}).get("format")),
        ("--log-marshaller-url", logger.marshaller),
        ("--log-batch-size", logger.batch_size),
        ("--log-batch-interval", logger.batch_interval),
        ("--metadata-headers", annotations.get(names.LOGGER_METADATA_HEADERS)),
    )
    for flag, value in optional:
        if value:
            args += [flag, str(value)]
    wanted = annotations.get(names.LOGGER_METADATA_ANNOTATIONS)
    if wanted is not None:
        pairs = [f"{k}={annotations[k]}" for k in wanted.split(",") if k in annotations]
        args += ["--metadata-annotations", ",".join(pairs)]
    if config.logger.ca_cert_file:
        args += ["--logger-ca-cert-file", config.logger.ca_cert_file]
    return [*args, "--logger-tls-skip-verify", str(config.logger.tls_skip_verify).lower()]


def _component_port(spec: Mapping[str, Any]) -> int:
    """Return the port behind the agent: the transformer's where one is in the Pod."""
    containers = {c.get("name"): c for c in spec["containers"]}
    found = containers.get(names.TRANSFORMER_CONTAINER) or containers.get(
        names.PREDICTOR_CONTAINER, {}
    )
    ports = found.get("ports") or ()
    return int(ports[0]["containerPort"]) if ports else names.DEFAULT_PORT


def _readiness(spec: Mapping[str, Any]) -> tuple[str, str]:
    """Return the probe that the agent makes for its component, and the path it is asked at."""
    containers = {c.get("name"): c for c in spec["containers"]}
    found = containers.get(names.TRANSFORMER_CONTAINER) or spec["containers"][0]
    probe: Mapping[str, Any] = found.get("readinessProbe") or {}
    if not (probe.get("httpGet") or probe.get("tcpSocket")):
        return "", "/"
    ordered: dict[str, Any] = {}
    for field in _PROBE_FIELDS:
        value = probe.get(field)
        if isinstance(value, Mapping):
            ordered[field] = {k: value[k] for k in _ACTION_FIELDS if value.get(k) is not None}
        elif value:
            ordered[field] = value
    path = str((probe.get("httpGet") or {}).get("path") or "/")
    return json.dumps(ordered, separators=(",", ":")), path


def _apply(spec: dict[str, Any], container: dict[str, Any], found: Credentials) -> None:
    for owner, field, items, key in (
        (container, "env", found.env, "name"),
        (spec, "volumes", found.volumes, "name"),
        (container, "volumeMounts", found.mounts, "mountPath"),
    ):
        present = owner.setdefault(field, []) if items else owner.get(field) or []
        for item in items:
            if all(other.get(key) != item[key] for other in present):
                present.append(dict(item))


# In a Pod that has one


def agent_of(pod: Object) -> Mapping[str, Any] | None:
    """Return the Pod's agent, None if it has none that the gateway stands for."""
    for container in (pod.get("spec") or {}).get("containers") or ():
        if container.get("name") != names.AGENT_CONTAINER:
            continue
        ports = [p.get("containerPort") for p in container.get("ports") or ()]
        if AGENT_PORT in ports and "--component-port" in (container.get("args") or ()):
            found: Mapping[str, Any] = container
            return found
    return None


def agent_args(pod: Object) -> tuple[str, ...]:
    """Return the arguments of the Pod's agent, none if it has none."""
    agent = agent_of(pod)
    return tuple(str(arg) for arg in agent["args"]) if agent is not None else ()
