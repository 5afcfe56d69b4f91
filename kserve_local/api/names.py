"""Every annotation, label, environment variable and well-known name that KServe, Knative or we
attach meaning to, each with its source.

Pure data. Upstream's spelling is kept letter for letter (pkg/constants/constants.go of KServe
v0.20; serving and autoscaling register.go of Knative Serving 1.21; control-plane.md).
"""

from __future__ import annotations

KSERVE_GROUP = "serving.kserve.io"
KNATIVE_GROUP = "serving.knative.dev"
INTERNAL = "internal.serving.kserve.io"
KSERVE_NAMESPACE = "kserve"
CONFIG_MAP = "inferenceservice-config"

# Containers and paths (control-plane.md 2.4, 3.5, 4.4, 7.2, 8.1).
PREDICTOR_CONTAINER = "kserve-container"
TRANSFORMER_CONTAINER = "transformer-container"
WORKER_CONTAINER = "worker-container"
STORAGE_INITIALIZER = "storage-initializer"
AGENT_CONTAINER = "agent"
MODEL_DIR = "/mnt/models"
CONFIG_DIR = "/mnt/configs"
DEFAULT_PORT = 8080

# Annotations a user writes on an InferenceService or a runtime.
DEPLOYMENT_MODE = f"{KSERVE_GROUP}/deploymentMode"
AUTOSCALER_CLASS = f"{KSERVE_GROUP}/autoscalerClass"
STOP = f"{KSERVE_GROUP}/stop"
SERVER_TYPE = f"{KSERVE_GROUP}/server-type"
STORAGE_SECRET_NAME = f"{KSERVE_GROUP}/storageSecretName"
STORAGE_READONLY = "storage.kserve.io/readonly"
ENABLE_TAG_ROUTING = f"{KSERVE_GROUP}/enable-tag-routing"
DISABLE_AUTO_UPDATE = f"{KSERVE_GROUP}/disable-auto-update"
DISABLE_LOCAL_MODEL = f"{KSERVE_GROUP}/disable-localmodel"
NODE_GROUP = f"{KSERVE_GROUP}/nodegroup"
GPU_RESOURCE_TYPES = f"{KSERVE_GROUP}/gpu-resource-types"
ENABLE_METRIC_AGGREGATION = f"{KSERVE_GROUP}/enable-metric-aggregation"
ENABLE_PROMETHEUS_SCRAPING = f"{KSERVE_GROUP}/enable-prometheus-scraping"
EXECUTOR_BACKEND = "multinode/executor-backend"
ROUTING_GROUP = f"{KSERVE_GROUP}/routing-group"
MODEL_FORMAT = "modelFormat"

# Labels on pods and workloads (control-plane.md 4.5).
ISVC_LABEL = f"{KSERVE_GROUP}/inferenceservice"
GRAPH_LABEL = f"{KSERVE_GROUP}/inferencegraph"
KIND_LABEL = f"{KSERVE_GROUP}/kind"
COMPONENT_LABEL = "component"
APP_LABEL = "app"
GENERATION_LABEL = "isvc.generation"
MODEL_CLASS = "modelClass"
SERVICE_ENVELOPE = "serviceEnvelope"

# Internal annotations and labels that KServe's controller writes (control-plane.md 4.5, 7.8).
SOURCE_URI = f"{INTERNAL}/storage-initializer-sourceuri"
STORAGE_CONTAINER_NAME = f"{INTERNAL}/storage-container-name"
STORAGE_SPEC = f"{INTERNAL}/storage-spec"
STORAGE_SPEC_KEY = f"{INTERNAL}/storage-spec-key"
STORAGE_SPEC_PARAM = f"{INTERNAL}/storage-spec-param"
LOGGER = f"{INTERNAL}/logger"
LOGGER_SINK_URL = f"{INTERNAL}/logger-sink-url"
LOGGER_MODE = f"{INTERNAL}/logger-mode"
LOGGER_METADATA_HEADERS = f"{INTERNAL}/logger-metadata-headers"
LOGGER_METADATA_ANNOTATIONS = f"{INTERNAL}/logger-metadata-annotations"
BATCHER = f"{INTERNAL}/batcher"
BATCHER_MAX_BATCH_SIZE = f"{INTERNAL}/batcher-max-batchsize"
BATCHER_MAX_LATENCY = f"{INTERNAL}/batcher-max-latency"
AGENT = f"{INTERNAL}/agent"
AGENT_CONFIG_VOLUME = f"{INTERNAL}/configVolumeName"
AGENT_CONFIG_PATH = f"{INTERNAL}/configMountPath"
AGENT_MODEL_DIR = f"{INTERNAL}/modelDir"
CONFIDENTIAL_ENABLED = f"{INTERNAL}/confidential-enabled"
CONFIDENTIAL_RESOURCE_ID = f"{INTERNAL}/confidential-resource-id"
LOCAL_MODEL = f"{INTERNAL}/localmodel"
LOCAL_MODEL_NAMESPACE = f"{INTERNAL}/localmodel-namespace"
LOCAL_MODEL_SOURCE_URI = f"{INTERNAL}/localmodel-sourceuri"
LOCAL_MODEL_PVC_NAME = f"{INTERNAL}/localmodel-pvc-name"

# Environment variables (control-plane.md 3.4, 3.5, 7.2).
ISVC_NAME_ENV = "INFERENCE_SERVICE_NAME"
STORAGE_URI_ENV = "STORAGE_URI"
PROTOCOL_ENV = "PROTOCOL"
MULTI_MODEL_ENV = "MULTI_MODEL_SERVER"

# Knative (traffic.md 1.9, 1.10; control-plane.md 2.7, 6.1).
AUTOSCALING = "autoscaling.knative.dev"
KPA_CLASS = "kpa.autoscaling.knative.dev"
HPA_CLASS = "hpa.autoscaling.knative.dev"
AUTOSCALING_CLASS = f"{AUTOSCALING}/class"
AUTOSCALING_METRIC = f"{AUTOSCALING}/metric"
AUTOSCALING_TARGET = f"{AUTOSCALING}/target"
MIN_SCALE = f"{AUTOSCALING}/min-scale"
MAX_SCALE = f"{AUTOSCALING}/max-scale"
INITIAL_SCALE = f"{AUTOSCALING}/initial-scale"
ACTIVATION_SCALE = f"{AUTOSCALING}/activation-scale"
ROLLOUT_DURATION = f"{KNATIVE_GROUP}/rollout-duration"
PROGRESS_DEADLINE = f"{KNATIVE_GROUP}/progress-deadline"
ROLLOUT_DURATIONS = (ROLLOUT_DURATION, f"{KNATIVE_GROUP}/rolloutDuration")
"""Spellings that Knative reads on its own Service, the first wins; KServe passes on only that."""
KNATIVE_VISIBILITY = "networking.knative.dev/visibility"
STANDARD_VISIBILITY = "networking.kserve.io/visibility"
REVISION_LABEL = f"{KNATIVE_GROUP}/revision"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# Ours.
LOCAL_PREFIX = "kserve-local.dev"
LOCAL_ONLY = f"{LOCAL_PREFIX}/local-only"
PORTS = f"{LOCAL_PREFIX}/ports"
"""Of a Pod without an address of its own: JSON of the port it names -> the port listened on."""
EMPTY_MODEL = f"{LOCAL_PREFIX}/empty-model"
"""Of a Pod: storageUris that hold no file, one a line."""
STAND_IN = f"{LOCAL_PREFIX}/stand-in"
"""Of a Pod: which server of ours runs in the place of which image."""
BACKEND = f"{LOCAL_PREFIX}/backend"
DEVICES = f"{LOCAL_PREFIX}/devices"
"""Of a Pod: ids of the GPUs it was given, with commas."""
MANIFEST = f"{LOCAL_PREFIX}/manifest"
START = f"{LOCAL_PREFIX}/start"
"""Of a Pod: how long each phase of its start took (`api.start_phases`)."""
SCALE = f"{LOCAL_PREFIX}/scale"
"""Of a PodAutoscaler: the number of Pods that `kserve-local scale` asked for."""
EVICTED = f"{LOCAL_PREFIX}/evicted"
"""Of a PodAutoscaler beside `SCALE`: that no user but the memory budget brought it to zero, why."""
CODE = f"{LOCAL_PREFIX}/code"
"""Of a Deployment's Pod template, so of its Pods: digest of the user's code they were started for.
Another digest starts new Pods behind the old ones, and is no Revision."""
MODEL = f"{LOCAL_PREFIX}/model"
"""There too: the same of the files of a local storageUri."""
NODE_NAME = "kserve-local"

KNATIVE_MODE = "Knative"
STANDARD_MODE = "Standard"
MODEL_MESH_MODE = "ModelMesh"
LEGACY_MODES = {"Serverless": KNATIVE_MODE, "RawDeployment": STANDARD_MODE}
MODES = (KNATIVE_MODE, STANDARD_MODE, MODEL_MESH_MODE)


def cluster_hosts(service: str, namespace: str) -> tuple[str, str, str]:
    """Return the hosts of a Service inside the cluster, the shortest first."""
    short = f"{service}.{namespace}".lower()
    return short, f"{short}.svc", f"{short}.svc.cluster.local"


def predictor_name(isvc: str, variant: str = "") -> str:
    """Return the predictor workload's name, e.g. `iris-predictor` (control-plane.md 4.1)."""
    return f"{isvc}-{variant}-predictor" if variant else f"{isvc}-predictor"


def component_name(isvc: str, component: str, variant: str = "") -> str:
    """Return the name of a component's workload; `variant` is a predictor's only."""
    return predictor_name(isvc, variant) if component == "predictor" else f"{isvc}-{component}"
