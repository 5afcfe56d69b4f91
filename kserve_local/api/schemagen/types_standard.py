"""Tables of the kinds that KServe writes in Standard mode and that are CRDs on a cluster.

Source: Gateway API v1 (HTTPRoute and its status), KEDA 2.18 (ScaledObject).
"""

from __future__ import annotations

KINDS = {
    "gateway.networking.k8s.io/v1/HTTPRoute": "HTTPRoute",
    "keda.sh/v1alpha1/ScaledObject": "ScaledObject",
}

ROUTES = """
RouteParentStatus
  conditions [core.Condition] items(..8) map(type)
  controllerName! string len(1..253)
  parentRef! ParentReference
HTTPRouteStatus
  parents! [RouteParentStatus] items(..32) atomic
HTTPRoute
  apiVersion string
  kind string
  metadata core.ObjectMeta
  spec! HTTPRouteSpec
  status HTTPRouteStatus
"""

SCALED_OBJECTS = """
ScaleTarget
  apiVersion string
  envSourceContainerName string
  kind string
  name! string
ScaledObjectSpec
  ...KEDADirectScaling -triggers
  maxReplicaCount int32
  minReplicaCount int32
  scaleTargetRef! ScaleTarget
  triggers! [KEDATrigger]
ScaledObject
  apiVersion string
  kind string
  metadata core.ObjectMeta
  spec! ScaledObjectSpec
  status any
"""

TABLES = (ROUTES, SCALED_OBJECTS)
