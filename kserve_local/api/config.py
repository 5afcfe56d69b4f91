"""The ConfigMap `inferenceservice-config` as one frozen value.

Reads the ConfigMap's `data`, whose values are JSON texts; writes nothing. Keys, shipped values,
what an absent key means and the error texts are KServe's (pkg/apis/serving/v1beta1/configmap.go;
control-plane.md section 12). The shipped values are in `manifests/inferenceservice-config.yaml`;
the defaults below are what KServe assumes when a key is missing from a ConfigMap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from kserve_local.api import names
from kserve_local.api.meta import Object
from kserve_local.errors import Invalid

_ANNOTATIONS_DISALLOWED = (
    names.MIN_SCALE,
    names.MAX_SCALE,
    names.SOURCE_URI,
    names.LAST_APPLIED,
    names.MODEL_FORMAT,
)
_LABELS_DISALLOWED = (names.KNATIVE_VISIBILITY,)
GPU_RESOURCE_TYPES = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "habana.ai/gaudi")


@dataclass(frozen=True, slots=True)
class ContainerResources:
    """Image and resource quantities (as texts) of a container that KServe injects."""

    image: str = ""
    cpu_request: str = ""
    cpu_limit: str = ""
    memory_request: str = ""
    memory_limit: str = ""

    def resources(self) -> dict[str, dict[str, str]]:
        """Return `resources` of a container, quantities that are not set left out."""
        return {
            "limits": _given(cpu=self.cpu_limit, memory=self.memory_limit),
            "requests": _given(cpu=self.cpu_request, memory=self.memory_request),
        }


@dataclass(frozen=True, slots=True)
class StorageInitializerConfig:
    """Key `storageInitializer`. `oci_mode` is the effective mode, empty for off (7.4)."""

    container: ContainerResources = field(default_factory=ContainerResources)
    ca_bundle_config_map: str = ""
    ca_bundle_mount_path: str = "/etc/ssl/custom-certs"
    oci_mode: str = ""
    oci_insecure_registry: bool = False
    modelcar_uid: int | None = None
    modelcar_cpu: str = "10m"
    modelcar_memory: str = "15Mi"


@dataclass(frozen=True, slots=True)
class CredentialsConfig:
    """Key `credentials`. `s3` holds the config's own field names (`s3Endpoint`, ...)."""

    storage_spec_secret: str = "storage-config"
    storage_secret_annotation: str = names.STORAGE_SECRET_NAME
    gcs_credential_file: str = "gcloud-application-credentials.json"
    s3_access_key_id_name: str = "awsAccessKeyID"
    s3_secret_access_key_name: str = "awsSecretAccessKey"
    s3: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """Key `ingress` (control-plane.md 4.2)."""

    ingress_gateway: str = ""
    kserve_gateway: str = ""
    local_gateway: str = ""
    local_gateway_service: str = ""
    domain: str = "example.com"
    additional_domains: tuple[str, ...] = ()
    ingress_class: str = "istio"
    domain_template: str = "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}"
    url_scheme: str = "http"
    path_template: str = ""
    enable_gateway_api: bool = False
    disable_istio_virtual_host: bool = False
    disable_ingress_creation: bool = False
    disable_http_route_timeout: bool = False


@dataclass(frozen=True, slots=True)
class LoggerConfig:
    """Key `logger`; what the agent gets when the service says nothing else."""

    default_url: str = ""
    ca_bundle: str = ""
    ca_cert_file: str = ""
    tls_skip_verify: bool = False
    marshaller_url: str = ""
    batch_size: int = 0
    batch_interval: str = ""
    storage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LocalModelConfig:
    """Key `localModel` (control-plane.md 7.8)."""

    enabled: bool = False
    job_namespace: str = "kserve-localmodel-jobs"
    fs_group: int = 1000
    job_ttl: int = 3600
    reconcile_seconds: int = 60
    disable_volume_management: bool = False


@dataclass(frozen=True, slots=True)
class InferenceServiceConfig:
    """The whole ConfigMap.

    Args:
        default_deployment_mode: `Knative`, `Standard` or `ModelMesh`, aliases resolved.
        max_surge / max_unavailable: `deploy.deploymentRolloutStrategy`, empty when not given.
        resource: Requests and limits for custom containers; empty texts leave them unbounded.
        annotations_disallowed / labels_disallowed: What is not passed on to pods.
        auto_mount_service_account_token: False also when key `security` is absent.
        gpu_resource_types: Resource names that count as GPUs.
        scale_up_window / scale_down_window: Stabilization seconds that KEDA gets, as written.
        metric_scaler_endpoint: Where KEDA asks for metrics of Pods.
    """

    default_deployment_mode: str = names.KNATIVE_MODE
    max_surge: str = ""
    max_unavailable: str = ""
    resource: ContainerResources = field(default_factory=ContainerResources)
    annotations_disallowed: frozenset[str] = frozenset(_ANNOTATIONS_DISALLOWED)
    labels_disallowed: frozenset[str] = frozenset(_LABELS_DISALLOWED)
    art_image: str = ""
    art_version: str = "latest"
    storage_initializer: StorageInitializerConfig = field(default_factory=StorageInitializerConfig)
    credentials: CredentialsConfig = field(default_factory=CredentialsConfig)
    ingress: IngressConfig = field(default_factory=IngressConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    agent: ContainerResources = field(default_factory=ContainerResources)
    router: ContainerResources = field(default_factory=ContainerResources)
    router_headers: tuple[str, ...] = ()
    router_propagates: bool = False
    router_pull_policy: str = ""
    router_pull_secrets: tuple[str, ...] = ()
    batcher_max_batch_size: int = 32
    batcher_max_latency: int = 5000
    metric_aggregation: str = "false"
    prometheus_scraping: str = "false"
    local_model: LocalModelConfig = field(default_factory=LocalModelConfig)
    auto_mount_service_account_token: bool = False
    service_cluster_ip_none: bool = False
    gpu_resource_types: tuple[str, ...] = GPU_RESOURCE_TYPES
    scale_up_window: str = ""
    scale_down_window: str = ""
    metric_scaler_endpoint: str = ""

    def deployment_mode(self, annotation: str | None, status_mode: str = "") -> str:
        """Return the mode in force: status, then a known annotation value, then the default.

        Source: control-plane.md 2.6.
        """
        if status_mode:
            return normal_mode(status_mode)
        mode = normal_mode(annotation or "")
        return mode if mode in names.MODES else self.default_deployment_mode


def normal_mode(mode: str) -> str:
    """Return the mode's current name: `Serverless` is `Knative`, `RawDeployment` `Standard`."""
    return names.LEGACY_MODES.get(mode, mode)


def parse(configmap: Object | None) -> InferenceServiceConfig:
    """Return the settings that the ConfigMap holds; without one, those that KServe ships.

    Cheap when the ConfigMap's content was parsed before, so callers may pass the newest object
    each time.

    Raises:
        Invalid: A key's JSON is broken or a required field is missing, in KServe's words.
    """
    if configmap is None:
        from kserve_local.api.builtin import config_map  # builtin reads files; only when needed

        configmap = config_map()
    return _parse(tuple(sorted((configmap.get("data") or {}).items())))


# The content is the key, not the resourceVersion: right for any caller, and hashing ten texts
# whose hashes Python keeps costs a microsecond.
@lru_cache(maxsize=16)
def _parse(data: tuple[tuple[str, str], ...]) -> InferenceServiceConfig:
    keys = {key: _json(key, text) for key, text in data if not key.startswith("_")}
    deploy = keys.get("deploy")
    mode = names.KNATIVE_MODE
    if deploy is not None:
        if not deploy.get("defaultDeploymentMode"):
            raise Invalid("invalid deploy config, defaultDeploymentMode is required")
        mode = normal_mode(deploy["defaultDeploymentMode"])
        if mode not in names.MODES:
            raise Invalid(
                "invalid deployment mode. Supported modes are Knative, Standard and ModelMesh"
            )
    rollout = _dict((deploy or {}).get("deploymentRolloutStrategy")).get("defaultRollout") or {}
    service = keys.get("inferenceService") or {}
    logger = keys.get("logger") or {}
    batcher = keys.get("batcher") or {}
    local = keys.get("localModel") or {}
    router = keys.get("router") or {}
    metrics = keys.get("metricsAggregator") or {}
    art = _dict((keys.get("explainers") or {}).get("art"))
    scaler = keys.get("autoscaler") or {}
    collector = keys.get("opentelemetryCollector") or {}
    return InferenceServiceConfig(
        default_deployment_mode=mode,
        max_surge=str(rollout.get("maxSurge") or ""),
        max_unavailable=str(rollout.get("maxUnavailable") or ""),
        resource=_container(_dict(service.get("resource"))),
        annotations_disallowed=frozenset(
            (*_ANNOTATIONS_DISALLOWED, *(service.get("serviceAnnotationDisallowedList") or ()))
        ),
        labels_disallowed=frozenset(
            (*_LABELS_DISALLOWED, *(service.get("serviceLabelDisallowedList") or ()))
        ),
        art_image=art.get("image") or "",
        art_version=art.get("defaultImageVersion") or "latest",
        storage_initializer=_storage_initializer(keys.get("storageInitializer") or {}),
        credentials=_credentials(keys.get("credentials") or {}),
        ingress=_ingress(keys.get("ingress")),
        logger=LoggerConfig(
            default_url=logger.get("defaultUrl") or "",
            ca_bundle=logger.get("caBundle") or "",
            ca_cert_file=logger.get("caCertFile") or "",
            tls_skip_verify=bool(logger.get("tlsSkipVerify")),
            marshaller_url=logger.get("marshallerUrl") or "",
            batch_size=_integer("logger.batchSize", logger.get("batchSize"), 0),
            batch_interval=str(logger.get("batchInterval") or ""),
            storage=_dict(logger.get("storage")) or None,
        ),
        agent=_container(keys.get("agent") or {}),
        router=_container(router),
        router_headers=tuple(_dict(router.get("headers")).get("propagate") or ()),
        router_propagates="propagate" in _dict(router.get("headers")),
        router_pull_policy=str(router.get("imagePullPolicy") or ""),
        router_pull_secrets=tuple(router.get("imagePullSecrets") or ()),
        batcher_max_batch_size=_integer("batcher.maxBatchSize", batcher.get("maxBatchSize"), 32),
        batcher_max_latency=_integer("batcher.maxLatency", batcher.get("maxLatency"), 5000),
        metric_aggregation=str(metrics.get("enableMetricAggregation") or "false"),
        prometheus_scraping=str(metrics.get("enablePrometheusScraping") or "false"),
        local_model=LocalModelConfig(
            enabled=bool(local.get("enabled")),
            job_namespace=local.get("jobNamespace") or "kserve-localmodel-jobs",
            fs_group=_integer("localModel.fsGroup", local.get("fsGroup"), 1000),
            job_ttl=_integer(
                "localModel.jobTTLSecondsAfterFinished",
                local.get("jobTTLSecondsAfterFinished"),
                3600,
            ),
            reconcile_seconds=_integer(
                "localModel.reconcilationFrequencyInSecs",
                local.get("reconcilationFrequencyInSecs"),
                60,
            ),
            disable_volume_management=bool(local.get("disableVolumeManagement")),
        ),
        auto_mount_service_account_token=bool(
            (keys.get("security") or {}).get("autoMountServiceAccountToken", False)
        ),
        service_cluster_ip_none=bool((keys.get("service") or {}).get("serviceClusterIPNone")),
        gpu_resource_types=(
            *GPU_RESOURCE_TYPES,
            *((keys.get("multiNode") or {}).get("customGPUResourceTypeList") or ()),
        ),
        scale_up_window=str(scaler.get("scaleUpStabilizationWindowSeconds") or ""),
        scale_down_window=str(scaler.get("scaleDownStabilizationWindowSeconds") or ""),
        metric_scaler_endpoint=str(collector.get("metricScalerEndpoint") or ""),
    )


def _json(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Invalid(
            f'ConfigMap "{names.KSERVE_NAMESPACE}/{names.CONFIG_MAP}": data.{key} is no JSON: '
            f"{error}"
        ) from error
    if not isinstance(value, dict):
        raise Invalid(
            f'ConfigMap "{names.KSERVE_NAMESPACE}/{names.CONFIG_MAP}": data.{key} must hold a '
            "JSON object"
        )
    return value


def _integer(key: str, value: object, default: int) -> int:
    """Return an integer that JSON may hold as a number or as a text; 0 and absent: the default."""
    try:
        return int(str(value)) or default if value not in (None, "") else default
    except ValueError:
        raise Invalid(
            f'ConfigMap "{names.KSERVE_NAMESPACE}/{names.CONFIG_MAP}": data.{key} must be an '
            f"integer, not {value!r}"
        ) from None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _given(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _container(value: Mapping[str, Any]) -> ContainerResources:
    return ContainerResources(
        image=str(value.get("image") or ""),
        cpu_request=str(value.get("cpuRequest") or ""),
        cpu_limit=str(value.get("cpuLimit") or ""),
        memory_request=str(value.get("memoryRequest") or ""),
        memory_limit=str(value.get("memoryLimit") or ""),
    )


def _storage_initializer(value: Mapping[str, Any]) -> StorageInitializerConfig:
    mode = value.get("ociModelMode") or ""
    if not mode and (value.get("enableModelcar") or value.get("enableOciModelSupport")):
        mode = "modelcar"
    return StorageInitializerConfig(
        container=_container(value),
        ca_bundle_config_map=value.get("caBundleConfigMapName") or "",
        ca_bundle_mount_path=value.get("caBundleVolumeMountPath") or "/etc/ssl/custom-certs",
        oci_mode=mode,
        oci_insecure_registry=bool(value.get("ociInsecureRegistry")),
        modelcar_uid=None
        if value.get("uidModelcar") is None
        else _integer("storageInitializer.uidModelcar", value["uidModelcar"], 0),
        modelcar_cpu=value.get("cpuModelcar") or "10m",
        modelcar_memory=value.get("memoryModelcar") or "15Mi",
    )


def _credentials(value: Mapping[str, Any]) -> CredentialsConfig:
    s3 = _dict(value.get("s3"))
    return CredentialsConfig(
        storage_spec_secret=value.get("storageSpecSecretName") or "storage-config",
        storage_secret_annotation=value.get("storageSecretNameAnnotation")
        or names.STORAGE_SECRET_NAME,
        gcs_credential_file=_dict(value.get("gcs")).get("gcsCredentialFileName")
        or "gcloud-application-credentials.json",
        s3_access_key_id_name=s3.get("s3AccessKeyIDName") or "awsAccessKeyID",
        s3_secret_access_key_name=s3.get("s3SecretAccessKeyName") or "awsSecretAccessKey",
        s3={k: str(v) for k, v in s3.items() if v not in (None, "")},
    )


def _ingress(value: Mapping[str, Any] | None) -> IngressConfig:
    if value is None:
        return IngressConfig()
    if not value.get("ingressGateway"):
        raise Invalid("invalid ingress config - ingressGateway is required")
    if value.get("pathTemplate") and not value.get("ingressDomain"):
        raise Invalid("invalid ingress config - ingressDomain is required if pathTemplate is given")
    gateway = value.get("kserveIngressGateway") or ""
    if value.get("enableGatewayApi") and gateway.count("/") != 1:
        raise Invalid(
            "invalid ingress config - kserveIngressGateway should be in the format "
            "<namespace>/<name>"
        )
    return IngressConfig(
        ingress_gateway=value["ingressGateway"],
        kserve_gateway=gateway,
        local_gateway=value.get("localGateway") or "",
        local_gateway_service=value.get("localGatewayService") or "",
        domain=value.get("ingressDomain") or "example.com",
        additional_domains=tuple(value.get("additionalIngressDomains") or ()),
        ingress_class=value.get("ingressClassName") or "istio",
        domain_template=value.get("domainTemplate") or IngressConfig().domain_template,
        url_scheme=value.get("urlScheme") or "http",
        path_template=value.get("pathTemplate") or "",
        enable_gateway_api=bool(value.get("enableGatewayApi")),
        disable_istio_virtual_host=bool(value.get("disableIstioVirtualHost")),
        disable_ingress_creation=bool(value.get("disableIngressCreation")),
        disable_http_route_timeout=bool(value.get("disableHTTPRouteTimeout")),
    )
