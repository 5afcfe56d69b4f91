"""Tables of KServe's own kinds in serving.kserve.io: v1beta1 and v1alpha1, without the LLM ones.

Source: KServe v0.20 (control-plane.md sections 1, 2, 7, 9, 10). Shared blocks come first; the core
types (PodSpec, Container, ...) are there already when these tables are read.
"""

KINDS = {
    "serving.kserve.io/v1beta1/InferenceService": "InferenceService",
    "serving.kserve.io/v1alpha1/ServingRuntime": "ServingRuntime",
    "serving.kserve.io/v1alpha1/ClusterServingRuntime": "ServingRuntime",
    "serving.kserve.io/v1alpha1/ClusterStorageContainer": "ClusterStorageContainer",
    "serving.kserve.io/v1alpha1/InferenceGraph": "InferenceGraph",
    "serving.kserve.io/v1alpha1/TrainedModel": "TrainedModel",
    "serving.kserve.io/v1alpha1/LocalModelCache": "LocalModelCache",
    "serving.kserve.io/v1alpha1/LocalModelNamespaceCache": "LocalModelCache",
    "serving.kserve.io/v1alpha1/LocalModelNode": "LocalModelNode",
    "serving.kserve.io/v1alpha1/LocalModelNodeGroup": "LocalModelNodeGroup",
}

PATTERNS = {
    "variant": r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
    "absolute-path": "^/.*",
}

RULES = {
    "immutable-uri": [("self == oldSelf", "StorageUri is immutable")],
}

SHARED = """
Object
  apiVersion string
  kind string
  metadata ObjectMeta

# knative.dev/pkg/apis and duck/v1
KnativeCondition
  lastTransitionTime string
  message string
  reason string
  severity string
  status! string
  type! string
KnativeStatus
  annotations {string}
  conditions [KnativeCondition]
  observedGeneration int64
Addressable
  CACerts string
  audience string
  name string
  url string

NamespacedName
  name string
  namespace string
StorageParameters
  key string
  parameters {string}
StorageSpec
  ...StorageParameters
  path string
  schemaPath string
Confidential
  enabled! bool
  resourceId string
"""

COMPONENTS = """
ScaleMetric = string enum(cpu|memory|concurrency|rps)
AuthenticationReference
  name! string
ExternalMetricAuthentication
  authModes string
  authenticationRef! AuthenticationReference
ExternalMetric
  backend string enum(prometheus|graphite)
  namespace string
  query string
  serverAddress string
ExternalMetricSource
  authenticationRef ExternalMetricAuthentication
  metric! ExternalMetric
  target! MetricTarget
PodMetric
  backend string enum(opentelemetry)
  metricNames [string]
  operationOverTime string
  query string
  serverAddress string
PodMetricSource
  metric! PodMetric
  target! MetricTarget
ResourceMetricSource
  name! string enum(cpu|memory)
  target! MetricTarget
MetricsSpec
  external ExternalMetricSource
  podmetric PodMetricSource
  resource ResourceMetricSource
  type! string enum(Resource|External|PodMetric)
AutoScalingSpec
  behavior HorizontalPodAutoscalerBehavior
  metrics [MetricsSpec]
Batcher
  maxBatchSize integer
  maxLatency integer
  timeout integer
LoggerStorageSpec
  ...StorageParameters
  path string
  serviceAccountName string
LoggerSpec
  batchInterval string
  batchSize integer
  marshallerUrl string
  metadataAnnotations [string]
  metadataHeaders [string]
  mode string enum(all|request|response)
  storage LoggerStorageSpec
  url string
StorageUri
  mountPath string ="/mnt/models" len(..255) pattern(absolute-path)
  uri! string len(1..)
ComponentExtensionSpec
  annotations {string}
  autoScaling AutoScalingSpec
  batcher Batcher
  canaryTrafficPercent int64
  containerConcurrency int64
  deploymentStrategy DeploymentStrategy
  labels {string}
  logger LoggerSpec
  maxReplicas int32
  minReplicas int32
  scaleMetric ScaleMetric
  scaleMetricType string enum(Utilization|Value|AverageValue)
  scaleTarget int32
  timeout int64
"""

# The controller-gen output for `spec.predictor`, `transformer` and `explainer` is edited by KServe:
# containers inside need no name there and probes no port (the runtime brings them), and the
# pod template has no ephemeral containers. `canary[].predictor` is not edited.
INFERENCE_SERVICE = """
ModelFormat
  name! string
  version string
PredictorExtension
  confidential Confidential
  protocolVersion string
  runtimeVersion string
  storage StorageSpec
  storageUri string
ModelExtension
  ...PredictorExtension
  modelFormat! ModelFormat
  runtime string
FrameworkSpec
  ...Container
  ...PredictorExtension
ModelSpec
  ...Container
  ...ModelExtension
WorkerSpec
  ...PodSpec containers?
  pipelineParallelSize integer
  tensorParallelSize integer
PredictorOptions
  name string pattern(variant)
  storageContainerName string
  storageUris [StorageUri] items(1..) atomic
  workerSpec WorkerSpec
CanaryPredictorSpec
  ...PodSpec containers?
  ...ComponentExtensionSpec
  ...PredictorOptions
  huggingface FrameworkSpec
  lightgbm FrameworkSpec
  model ModelSpec
  onnx FrameworkSpec
  paddle FrameworkSpec
  pmml FrameworkSpec
  pytorch FrameworkSpec
  sklearn FrameworkSpec
  tensorflow FrameworkSpec
  triton FrameworkSpec
  xgboost FrameworkSpec
CanarySpec
  predictor! CanaryPredictorSpec
  trafficPercent! int32 0..100

EditedHTTPGetAction
  ...HTTPGetAction port?
EditedTCPSocketAction
  ...TCPSocketAction port?
EditedProbe
  ...Probe -httpGet -tcpSocket
  httpGet EditedHTTPGetAction
  tcpSocket EditedTCPSocketAction
EditedContainer
  ...Container name? -livenessProbe -readinessProbe
  livenessProbe EditedProbe
  readinessProbe EditedProbe
EditedFrameworkSpec
  ...EditedContainer
  ...PredictorExtension
EditedModelSpec
  ...EditedContainer
  ...ModelExtension modelFormat?
EditedInnerProbe
  ...Probe -httpGet
  httpGet EditedHTTPGetAction
EditedInnerContainer
  ...Container -livenessProbe -readinessProbe
  livenessProbe EditedInnerProbe
  readinessProbe EditedInnerProbe
EditedPodOS
  ...PodOS name?
EditedPodSpec
  ...PodSpec -containers -ephemeralContainers -os
  containers [EditedInnerContainer]
  os EditedPodOS
PredictorSpec
  ...EditedPodSpec
  ...ComponentExtensionSpec
  ...PredictorOptions
  huggingface EditedFrameworkSpec
  lightgbm EditedFrameworkSpec
  model EditedModelSpec
  onnx EditedFrameworkSpec
  paddle EditedFrameworkSpec
  pmml EditedFrameworkSpec
  pytorch EditedFrameworkSpec
  sklearn EditedFrameworkSpec
  tensorflow EditedFrameworkSpec
  triton EditedFrameworkSpec
  xgboost EditedFrameworkSpec
TransformerSpec
  ...EditedPodSpec
  ...ComponentExtensionSpec
  storageUris [StorageUri] items(1..) atomic
ARTExplainerSpec
  ...EditedContainer
  config {string}
  runtimeVersion string
  storage StorageSpec
  storageUri string
  type string
ExplainerSpec
  ...EditedPodSpec
  ...ComponentExtensionSpec
  art ARTExplainerSpec
  storageUris [StorageUri] items(1..) atomic
InferenceServiceSpec
  canary [CanarySpec] atomic
  explainer ExplainerSpec
  predictor! PredictorSpec
  transformer TransformerSpec

ModelState = string enum(|Pending|Standby|Loading|Loaded|FailedToLoad)
FailureInfo
  exitCode int32
  location string
  message string
  modelRevisionName string
  reason string enum(ModelLoadFailed|RuntimeUnhealthy|RuntimeDisabled|NoSupportingRuntime|RuntimeNotRecognized|InvalidPredictorSpec)
  time date-time
ModelCopies
  failedCopies! integer =0
  totalCopies integer
ModelRevisionStates
  activeModelState! ModelState ="Pending"
  targetModelState ModelState =""
ModelStatus
  copies ModelCopies
  lastFailureInfo FailureInfo
  states ModelRevisionStates
  transitionStatus! string ="UpToDate" enum(|UpToDate|InProgress|BlockedByFailedLoad|InvalidSpec)
CanaryStatus
  modelStatus ModelStatus
  name! string
  ready! bool
  trafficPercent! int32
TrafficTarget
  configurationName string
  latestRevision bool
  percent int64
  revisionName string
  tag string
  url string
ComponentStatus
  address Addressable
  grpcUrl string
  latestCreatedRevision string
  latestReadyRevision string
  latestRolledoutRevision string
  previousRolledoutRevision string
  restUrl string
  traffic [TrafficTarget]
  url string
InferenceServiceStatus preserve
  ...KnativeStatus
  address Addressable
  canaryStatuses [CanaryStatus] atomic
  clusterServingRuntimeName string
  components {ComponentStatus}
  deploymentMode string
  modelStatus ModelStatus
  servingRuntimeName string
  url string
InferenceService
  ...Object
  spec InferenceServiceSpec
  status InferenceServiceStatus
"""  # noqa: E501 - one field is one line

RUNTIMES = """
SupportedModelFormat
  autoSelect bool
  name! string
  priority int32 1..
  version string
RuntimePodSpec
  affinity Affinity
  annotations {string}
  containers! [Container]
  hostIPC bool
  imagePullSecrets [LocalObjectReference]
  labels {string}
  nodeSelector {string}
  resourceClaims [PodResourceClaim] map(name)
  schedulerName string
  tolerations [Toleration]
  volumes [Volume]
BuiltInAdapter
  env [EnvVar]
  memBufferBytes integer
  modelLoadingTimeoutMillis integer
  runtimeManagementPort integer
  serverType string
StorageHelper
  disabled bool
RuntimeWorkerSpec
  ...RuntimePodSpec
  pipelineParallelSize integer
  tensorParallelSize integer
ServingRuntimeSpec
  ...RuntimePodSpec
  builtInAdapter BuiltInAdapter
  disabled bool
  grpcDataEndpoint string
  grpcEndpoint string
  httpDataEndpoint string
  multiModel bool
  protocolVersions [string]
  replicas integer
  storageHelper StorageHelper
  supportedModelFormats [SupportedModelFormat]
  workerSpec RuntimeWorkerSpec
ServingRuntime
  ...Object
  spec ServingRuntimeSpec
  status object

SupportedUriFormat
  prefix string
  regex string
StorageContainerSpec
  container! Container
  supportedUriFormats! [SupportedUriFormat]
  supportsMultiModelDownload bool =false
  workloadType string ="initContainer"
ClusterStorageContainer
  ...Object
  disabled bool
  spec StorageContainerSpec
"""

GRAPHS = """
InferenceStep
  condition string
  data string
  dependency string enum(Soft|Hard)
  mapPredictionsToInstances bool
  name string
  nodeName string
  serviceName string
  serviceUrl string
  weight int64
InferenceRouter
  routerType! string enum(Sequence|Splitter|Ensemble|Switch)
  steps [InferenceStep]
RouterTimeouts
  serverIdle int64
  serverRead int64
  serverWrite int64
  serviceClient int64
InferenceGraphSpec
  affinity Affinity
  maxReplicas int32
  minReplicas int32
  nodeName string
  nodeSelector {string}
  nodes! {InferenceRouter}
  resources ResourceRequirements
  routerTimeouts RouterTimeouts
  scaleMetric ScaleMetric
  scaleTarget int32
  serviceAccountName string
  timeout int64
  tolerations [Toleration]
InferenceGraphStatus
  ...KnativeStatus
  deploymentMode string
  url string
InferenceGraph
  ...Object
  spec InferenceGraphSpec
  status InferenceGraphStatus

TrainedModelModelSpec
  framework! string
  memory! quantity
  storageUri! string
TrainedModelSpec
  inferenceService! string
  model! TrainedModelModelSpec
TrainedModelStatus
  ...KnativeStatus
  address Addressable
  url string
TrainedModel
  ...Object
  spec TrainedModelSpec
  status TrainedModelStatus
"""

LOCAL_MODELS = """
LocalModelCacheSpec
  modelSize! quantity
  nodeGroups! [string] items(1..)
  serviceAccountName string
  sourceModelUri! string cel(immutable-uri)
  storage StorageParameters
NodeDownloadStatus = string enum(|NodeNotReady|NodeDownloadPending|NodeDownloading|NodeDownloaded|NodeDownloadError)
LocalModelCopies
  available integer
  failed integer
  total integer
LocalModelCacheStatus
  copies LocalModelCopies
  inferenceServices [NamespacedName]
  llmInferenceServices [NamespacedName]
  nodeStatus {NodeDownloadStatus}
LocalModelCache
  ...Object
  spec LocalModelCacheSpec
  status LocalModelCacheStatus
LocalModelInfo
  modelName! string
  namespace string
  nodeGroup string
  serviceAccountName string
  sourceModelUri! string
  storage StorageParameters
LocalModelNodeSpec
  localModels! [LocalModelInfo]
ModelDownloadStatus = string enum(|ModelDownloadPending|ModelDownloading|ModelDownloaded|ModelDownloadError)
LocalModelNodeStatus
  modelStatus {ModelDownloadStatus}
LocalModelNode
  ...Object
  spec LocalModelNodeSpec
  status LocalModelNodeStatus
LocalModelNodeGroupSpec
  persistentVolumeClaimSpec! PersistentVolumeClaimSpec
  persistentVolumeSpec! PersistentVolumeSpec
  storageLimit! quantity
LocalModelNodeGroupStatus
  available quantity
  used quantity
LocalModelNodeGroup
  ...Object
  spec LocalModelNodeGroupSpec
  status LocalModelNodeGroupStatus
"""  # noqa: E501 - one field is one line

TABLES = (SHARED, COMPONENTS, INFERENCE_SERVICE, RUNTIMES, GRAPHS, LOCAL_MODELS)
