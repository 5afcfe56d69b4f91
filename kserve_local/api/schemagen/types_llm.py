"""Tables of LLMInferenceService and LLMInferenceServiceConfig, v1alpha1 and v1alpha2.

Source: KServe v0.20. A Config holds the same spec, but its PodSpecs, routes and pools come without
string checks and CEL rules, because a Config may hold Go templates there (`Relaxed.` types, made in
`compile.py` before these tables are read).
"""

KINDS = {
    "serving.kserve.io/v1alpha2/LLMInferenceService": "LLMInferenceService",
    "serving.kserve.io/v1alpha1/LLMInferenceService": "LLMInferenceServiceV1alpha1",
    "serving.kserve.io/v1alpha2/LLMInferenceServiceConfig": "LLMInferenceServiceConfig",
    "serving.kserve.io/v1alpha1/LLMInferenceServiceConfig": "LLMInferenceServiceConfigV1alpha1",
}

PATTERNS = {
    "route-group": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
    "variant-cost": r"^\d+(\.\d+)?$",
}

_IDLE_NEEDS_MIN = "minReplicas is required when idleReplicaCount is set"
_IDLE_BELOW_MIN = (
    "idleReplicaCount must be less than minReplicas; idleReplicaCount defines the replica floor"
    " when no triggers are active"
)
_MODIFIERS = " && ".join(
    f"size(self.keda.advanced.scalingModifiers.{field}) == 0"
    for field in ("formula", "target", "activationTarget", "metricType")
)

RULES = {
    "replicas-or-scaling": [
        (
            "!(has(self.replicas) && has(self.scaling))",
            "replicas and scaling are mutually exclusive; use scaling for autoscaled deployments or"
            " replicas for static deployments",
        )
    ],
    "scaling": [
        (
            "has(self.wva) || has(self.keda)",
            "either wva or keda must be specified when scaling is configured",
        ),
        ("!(has(self.wva) && has(self.keda))", "wva and keda are mutually exclusive"),
        (
            "!has(self.keda) || size(self.keda.triggers) > 0",
            "at least one trigger is required when using direct KEDA scaling",
        ),
        (
            "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas cannot exceed maxReplicas",
        ),
        (
            "!has(self.wva) || !has(self.wva.keda) || !has(self.wva.keda.idleReplicaCount) ||"
            " has(self.minReplicas)",
            _IDLE_NEEDS_MIN,
        ),
        (
            "!has(self.wva) || !has(self.wva.keda) || !has(self.wva.keda.idleReplicaCount) ||"
            " !has(self.minReplicas) || self.wva.keda.idleReplicaCount < self.minReplicas",
            _IDLE_BELOW_MIN,
        ),
        (
            "!has(self.keda) || !has(self.keda.idleReplicaCount) || has(self.minReplicas)",
            _IDLE_NEEDS_MIN,
        ),
        (
            "!has(self.keda) || !has(self.keda.idleReplicaCount) || !has(self.minReplicas) ||"
            " self.keda.idleReplicaCount < self.minReplicas",
            _IDLE_BELOW_MIN,
        ),
    ],
    "wva": [
        (
            f"!has(self.keda) || !has(self.keda.advanced) || ({_MODIFIERS})",
            "scalingModifiers must not be set; WVA controls the scaling metric formula and logic",
        ),
        (
            "!(has(self.hpa) && has(self.keda))",
            "hpa and keda are mutually exclusive; choose one actuator backend",
        ),
        (
            "has(self.hpa) || has(self.keda)",
            "either hpa or keda must be specified as the actuator backend",
        ),
    ],
}

SHARED = """
WVAHPA
  behavior HorizontalPodAutoscalerBehavior
WVAScaling cel(wva)
  hpa WVAHPA
  keda KEDAScaling
  variantCost string ="10.0" pattern(variant-cost)
ScalingSpec cel(scaling)
  keda KEDADirectScaling
  maxReplicas! int32 1..
  minReplicas int32 =1 1..
  wva WVAScaling
ParallelismSpec
  data int32 1..
  dataLocal int32 1..
  dataRPCPort int32 1..65535
  expert bool
  pipeline int32 1..
  tensor int32 1..
LoRASpec
  adapters any
  maxAdapters int32 1..
  maxCpuAdapters int32 1..
  maxRank int32 1..
LLMModelSpecV1alpha1
  criticality string enum(Critical|Standard|Sheddable)
  lora LoRASpec
  name string
  uri! string
LLMModelSpec
  ...LLMModelSpecV1alpha1 -criticality
  confidential Confidential
OffloadEmptyDir
  size! quantity
OffloadClaim
  name! string
  path string
OffloadVolume
  ref OffloadClaim
  spec PersistentVolumeClaimSpec
OffloadFileSystem
  emptyDir OffloadEmptyDir
  pvc OffloadVolume
OffloadTier
  fileSystem OffloadFileSystem
KVCacheOffloading
  cpu! quantity
  evictionPolicy string ="lru" enum(lru|arc)
  secondary [OffloadTier]
LLMRolloutStrategy
  maxSurge int-or-string
  maxUnavailable int-or-string
StorageInitializerSpec
  enabled bool
TracingSpec
  exporter string
  exporterEndpoint string
  sampler string
  samplerArg string
SchedulerConfig
  inline object preserve
  ref ConfigMapKeySelector
LLMIngressReference
  name ObjectName
  namespace NamespaceName
LLMGatewayReference
  ...LLMIngressReference
  sectionName SectionName
LLMGatewayRoutes
  refs [LLMGatewayReference]
LLMIngress
  refs [LLMIngressReference]

LLMGatewayStatus
  ...GatewayObjectReference
  httpRoutes [GatewayObjectReference] atomic
  listeners [SectionName] atomic
LLMSchedulerStatus
  inferencePool GatewayObjectReference
  service GatewayObjectReference
LLMRouterStatusV1alpha1
  gateways [LLMGatewayStatus] atomic
  scheduler LLMSchedulerStatus
LLMGroupMember
  backendRef BackendObjectReference
  name! string
  stopped bool
  weight! int32
LLMGroupStatus
  members [LLMGroupMember] map(name)
  name! string
LLMRouterStatus
  ...LLMRouterStatusV1alpha1
  group LLMGroupStatus
LLMAddressModel
  name! string
LLMAddress
  ...Addressable
  models [LLMAddressModel]
  origin GatewayObjectReference
AppliedConfig
  name! ObjectName
  namespace! NamespaceName
  source! string enum(Preset|UserRef)
LLMWorkloadReference one
  apiGroup string
  kind! string
  name! string
  readyReplicas int32
LLMWorkloadsStatus
  prefill LLMWorkloadReference
  primary LLMWorkloadReference
  scheduler LLMWorkloadReference
  service TypedLocalObjectReference
LLMInferenceServiceStatusV1alpha1
  ...KnativeStatus
  address Addressable
  addresses [Addressable]
  router LLMRouterStatusV1alpha1
  url string
LLMInferenceServiceStatus
  ...KnativeStatus
  address Addressable
  addresses [LLMAddress] atomic
  appliedConfigs [AppliedConfig] atomic
  router LLMRouterStatus
  url string
  workloads LLMWorkloadsStatus
ConfigUser
  name ObjectName
  namespace NamespaceName
"""


def spec_tables(name: str, *, relaxed: bool, old: bool) -> str:
    """Return the tables of one spec: its types end in `name`.

    Args:
        relaxed: Use the `Relaxed.` copies of embedded types, as LLMInferenceServiceConfig does.
        old: v1alpha1: criticality, the old InferencePool, no KV cache offloading.
    """
    pre = "Relaxed." if relaxed else ""
    offload = "" if old else "kvCacheOffloading KVCacheOffloading"
    return f"""
{name}PodSpec
  ...{pre}KeyedPodSpec containers?
{name}HTTPRoute
  refs [LocalObjectReference]
  spec {pre}HTTPRouteSpec
{name}Route
  group string len(1..63) pattern(route-group)
  http {name}HTTPRoute
  weight int32 0..1000000
{name}Pool
  ref LocalObjectReference
  spec {pre}{"Old" if old else ""}InferencePoolSpec
{name}Tokenizer
  template {pre}KeyedPodSpec
{name}Scheduler
  annotations {{string}}
  config SchedulerConfig
  labels {{string}}
  pool {name}Pool
  replicas int32
  template {name}PodSpec
  tokenizer {name}Tokenizer
{name}Router
  gateway LLMGatewayRoutes
  ingress LLMIngress
  route {name}Route
  scheduler {name}Scheduler
{name}Workload cel(replicas-or-scaling)
  annotations {{string}}
  {offload}
  labels {{string}}
  parallelism ParallelismSpec
  replicas int32 0..
  rolloutStrategy LLMRolloutStrategy
  scaling ScalingSpec
  template {name}PodSpec
  worker {name}PodSpec
{name}Spec
  ...{name}Workload
  baseRefs [LocalObjectReference]
  model LLMModelSpec{"V1alpha1" if old else ""}
  prefill {name}Workload
  router {name}Router
  storageInitializer StorageInitializerSpec
  tracing TracingSpec
"""


ROOTS = """
LLMInferenceService
  ...Object
  spec LLMSpec
  status LLMInferenceServiceStatus
LLMInferenceServiceV1alpha1
  ...Object
  spec LLMV1alpha1Spec
  status LLMInferenceServiceStatusV1alpha1
LLMConfigStatusV1alpha1
  ...KnativeStatus
LLMConfigStatus
  ...KnativeStatus
  referencedBy [ConfigUser] atomic
LLMInferenceServiceConfig
  ...Object
  spec LLMConfigSpec
  status LLMConfigStatus
LLMInferenceServiceConfigV1alpha1
  ...Object
  spec LLMConfigV1alpha1Spec
  status LLMConfigStatusV1alpha1
"""

TABLES = (
    SHARED,
    spec_tables("LLM", relaxed=False, old=False),
    spec_tables("LLMV1alpha1", relaxed=False, old=True),
    spec_tables("LLMConfig", relaxed=True, old=False),
    spec_tables("LLMConfigV1alpha1", relaxed=True, old=True),
    ROOTS,
)
