"""Which resource types exist: group/version/kind/plural, scope, short names, subresources. Pure
data.

Sources: KServe v0.20 CRDs (control-plane.md section 1), Knative Serving 1.21, Kubernetes 1.33,
Gateway API v1, KEDA 2.18.
"""

from __future__ import annotations

from dataclasses import dataclass

from kserve_local.api.meta import Key, Object, name_of, namespace_of
from kserve_local.errors import NotFound


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One kind that the store holds.

    Args:
        versions: Served versions, the storage version first.
        status: Has a status subresource: writes to the object leave `.status` alone and the other
            way round.
    """

    group: str
    versions: tuple[str, ...]
    kind: str
    plural: str
    singular: str
    namespaced: bool = True
    status: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`plural`, or `plural.group` outside the core group: what `Key.resource` and kubectl
        messages hold.
        """
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """`group/version` of the storage version, as in `apiVersion`."""
        return f"{self.group}/{self.versions[0]}" if self.group else self.versions[0]

    @property
    def custom(self) -> bool:
        """Defined by a CRD on a cluster: no strategic merge patch, PUT needs a resourceVersion."""
        return self.group in _CRD_GROUPS


_SERVING = "serving.kserve.io"
_KNATIVE = "serving.knative.dev"
_CRD_GROUPS = frozenset((_SERVING, _KNATIVE, "gateway.networking.k8s.io", "keda.sh"))

NAMESPACE = ResourceType(
    "", ("v1",), "Namespace", "namespaces", "namespace", namespaced=False, short_names=("ns",)
)
NODE = ResourceType("", ("v1",), "Node", "nodes", "node", namespaced=False, short_names=("no",))
SERVICE_ACCOUNT = ResourceType(
    "",
    ("v1",),
    "ServiceAccount",
    "serviceaccounts",
    "serviceaccount",
    status=False,
    short_names=("sa",),
)
SECRET = ResourceType("", ("v1",), "Secret", "secrets", "secret", status=False)
CONFIG_MAP = ResourceType(
    "", ("v1",), "ConfigMap", "configmaps", "configmap", status=False, short_names=("cm",)
)
PERSISTENT_VOLUME_CLAIM = ResourceType(
    "",
    ("v1",),
    "PersistentVolumeClaim",
    "persistentvolumeclaims",
    "persistentvolumeclaim",
    short_names=("pvc",),
)
EVENT = ResourceType("", ("v1",), "Event", "events", "event", status=False, short_names=("ev",))
POD = ResourceType("", ("v1",), "Pod", "pods", "pod", short_names=("po",), categories=("all",))
SERVICE = ResourceType(
    "", ("v1",), "Service", "services", "service", short_names=("svc",), categories=("all",)
)
DEPLOYMENT = ResourceType(
    "apps",
    ("v1",),
    "Deployment",
    "deployments",
    "deployment",
    short_names=("deploy",),
    categories=("all",),
)
HORIZONTAL_POD_AUTOSCALER = ResourceType(
    "autoscaling",
    ("v2",),
    "HorizontalPodAutoscaler",
    "horizontalpodautoscalers",
    "horizontalpodautoscaler",
    short_names=("hpa",),
    categories=("all",),
)
INGRESS = ResourceType(
    "networking.k8s.io", ("v1",), "Ingress", "ingresses", "ingress", short_names=("ing",)
)
HTTP_ROUTE = ResourceType(
    "gateway.networking.k8s.io",
    ("v1",),
    "HTTPRoute",
    "httproutes",
    "httproute",
    categories=("gateway-api",),
)
SCALED_OBJECT = ResourceType(
    "keda.sh",
    ("v1alpha1",),
    "ScaledObject",
    "scaledobjects",
    "scaledobject",
    short_names=("so",),
)
KNATIVE_SERVICE = ResourceType(
    _KNATIVE,
    ("v1",),
    "Service",
    "services",
    "service",
    short_names=("kservice", "ksvc"),
    categories=("all", "knative", "serving"),
)
REVISION = ResourceType(
    _KNATIVE,
    ("v1",),
    "Revision",
    "revisions",
    "revision",
    short_names=("rev",),
    categories=("all", "knative", "serving"),
)
POD_AUTOSCALER = ResourceType(
    "autoscaling.internal.knative.dev",
    ("v1alpha1",),
    "PodAutoscaler",
    "podautoscalers",
    "podautoscaler",
    short_names=("kpa", "pa"),
    categories=("knative-internal", "autoscaling"),
)
INFERENCE_SERVICE = ResourceType(
    _SERVING,
    ("v1beta1",),
    "InferenceService",
    "inferenceservices",
    "inferenceservice",
    short_names=("isvc",),
    categories=("all",),
)
SERVING_RUNTIME = ResourceType(
    _SERVING, ("v1alpha1",), "ServingRuntime", "servingruntimes", "servingruntime", status=False
)
CLUSTER_SERVING_RUNTIME = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "ClusterServingRuntime",
    "clusterservingruntimes",
    "clusterservingruntime",
    namespaced=False,
    status=False,
)
CLUSTER_STORAGE_CONTAINER = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "ClusterStorageContainer",
    "clusterstoragecontainers",
    "clusterstoragecontainer",
    namespaced=False,
    status=False,
)
INFERENCE_GRAPH = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "InferenceGraph",
    "inferencegraphs",
    "inferencegraph",
    short_names=("ig",),
    categories=("all",),
)
TRAINED_MODEL = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "TrainedModel",
    "trainedmodels",
    "trainedmodel",
    short_names=("tm",),
    categories=("all",),
)
LLM_INFERENCE_SERVICE = ResourceType(
    _SERVING,
    ("v1alpha2", "v1alpha1"),
    "LLMInferenceService",
    "llminferenceservices",
    "llminferenceservice",
    short_names=("llmisvc",),
    categories=("all",),
)
LLM_INFERENCE_SERVICE_CONFIG = ResourceType(
    _SERVING,
    ("v1alpha2", "v1alpha1"),
    "LLMInferenceServiceConfig",
    "llminferenceserviceconfigs",
    "llminferenceserviceconfig",
)
LOCAL_MODEL_CACHE = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "LocalModelCache",
    "localmodelcaches",
    "localmodelcache",
    namespaced=False,
)
LOCAL_MODEL_NAMESPACE_CACHE = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "LocalModelNamespaceCache",
    "localmodelnamespacecaches",
    "localmodelnamespacecache",
)
LOCAL_MODEL_NODE = ResourceType(
    _SERVING, ("v1alpha1",), "LocalModelNode", "localmodelnodes", "localmodelnode", namespaced=False
)
LOCAL_MODEL_NODE_GROUP = ResourceType(
    _SERVING,
    ("v1alpha1",),
    "LocalModelNodeGroup",
    "localmodelnodegroups",
    "localmodelnodegroup",
    namespaced=False,
    status=False,
)

ALL: tuple[ResourceType, ...] = (
    NAMESPACE,
    NODE,
    SERVICE_ACCOUNT,
    SECRET,
    CONFIG_MAP,
    PERSISTENT_VOLUME_CLAIM,
    EVENT,
    POD,
    SERVICE,
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    INGRESS,
    HTTP_ROUTE,
    SCALED_OBJECT,
    KNATIVE_SERVICE,
    REVISION,
    POD_AUTOSCALER,
    INFERENCE_SERVICE,
    SERVING_RUNTIME,
    CLUSTER_SERVING_RUNTIME,
    CLUSTER_STORAGE_CONTAINER,
    INFERENCE_GRAPH,
    TRAINED_MODEL,
    LLM_INFERENCE_SERVICE,
    LLM_INFERENCE_SERVICE_CONFIG,
    LOCAL_MODEL_CACHE,
    LOCAL_MODEL_NAMESPACE_CACHE,
    LOCAL_MODEL_NODE,
    LOCAL_MODEL_NODE_GROUP,
)

BY_ID: dict[str, ResourceType] = {r.id: r for r in ALL}
_BY_GVK = {(r.group, version, r.kind): r for r in ALL for version in r.versions}


def by_kind(api_version: str, kind: str) -> ResourceType:
    """Return the resource type of an object's `apiVersion` and `kind`.

    Raises:
        NotFound: No such type, in kubectl's words.
    """
    group, _, version = api_version.rpartition("/")
    found = _BY_GVK.get((group, version, kind))
    if found is None:
        raise NotFound(f'no matches for kind "{kind}" in version "{api_version}"')
    return found


def of(obj: Object) -> ResourceType:
    """Return the resource type of an object."""
    return by_kind(obj["apiVersion"], obj["kind"])


def key_of(obj: Object) -> Key:
    """Return the object's key."""
    kind = of(obj)
    return Key(kind.id, namespace_of(obj) if kind.namespaced else "", name_of(obj))
