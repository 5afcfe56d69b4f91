"""Tables of Knative Serving's Service, Revision and PodAutoscaler, as far as KServe writes them.

Knative's own CRDs take a subset of PodSpec that its webhook narrows further; here the whole PodSpec
is taken and defaults are left to the controllers. Source: serving.knative.dev/v1,
autoscaling.internal.knative.dev/v1alpha1.
"""

KINDS = {
    "serving.knative.dev/v1/Service": "KnativeService",
    "serving.knative.dev/v1/Revision": "KnativeRevision",
    "autoscaling.internal.knative.dev/v1alpha1/PodAutoscaler": "KnativePodAutoscaler",
}

TABLES = (
    """
DuckCondition
  lastTransitionTime string
  message string
  reason string
  severity string
  status! string
  type! string
DuckStatus
  annotations {string}
  conditions [DuckCondition]
  observedGeneration int64
DuckAddress
  CACerts string
  audience string
  name string
  url string
KnativeTraffic
  configurationName string
  latestRevision bool
  percent int64
  revisionName string
  tag string
  url string
KnativeRevisionSpec
  ...core.PodSpec
  containerConcurrency int64
  idleTimeoutSeconds int64
  responseStartTimeoutSeconds int64
  timeoutSeconds int64
KnativeRevisionTemplate
  metadata core.ObjectMeta
  spec KnativeRevisionSpec
KnativeServiceSpec
  template KnativeRevisionTemplate
  traffic [KnativeTraffic]
KnativeServiceStatus preserve
  ...DuckStatus
  address DuckAddress
  latestCreatedRevisionName string
  latestReadyRevisionName string
  traffic [KnativeTraffic]
  url string
KnativeService
  apiVersion string
  kind string
  metadata core.ObjectMeta
  spec KnativeServiceSpec
  status KnativeServiceStatus
KnativeContainerStatus
  imageDigest string
  name string
KnativeRevisionStatus preserve
  ...DuckStatus
  actualReplicas int32
  containerStatuses [KnativeContainerStatus]
  desiredReplicas int32
  initContainerStatuses [KnativeContainerStatus]
  logUrl string
KnativeRevision
  apiVersion string
  kind string
  metadata core.ObjectMeta
  spec KnativeRevisionSpec
  status KnativeRevisionStatus
KnativePodAutoscalerSpec
  containerConcurrency int64
  protocolType! string
  reachability string
  scaleTargetRef! core.ObjectReference
KnativePodAutoscalerStatus preserve
  ...DuckStatus
  actualScale int32
  desiredScale int32
  metricsServiceName string
  serviceName string
KnativePodAutoscaler
  apiVersion string
  kind string
  metadata core.ObjectMeta
  spec KnativePodAutoscalerSpec
  status KnativePodAutoscalerStatus
""",
)
