"""Core Kubernetes types out of the `kubernetes` package's models, plus what those models leave out.

The models give fields, their types and which are required. They do not say which integers are 64
bit, which strings are quantities, how lists merge, or which defaults the schema carries: that is in
the tables below, as in Kubernetes 1.35's API types (the release KServe 0.20 is built with). The
package is newer than that; `ABSENT` holds the fields that came later.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from kserve_local.api.schemagen.tables import SCALARS, Node, TableReader

ROOTS = (
    "V1PodSpec", "V1PodStatus", "V1PodTemplateSpec", "V1ObjectMeta", "V1Container",
    "V1PersistentVolumeSpec", "V1PersistentVolumeClaimSpec", "V2HorizontalPodAutoscalerBehavior",
    "V2MetricTarget", "V1DeploymentStrategy", "V1TypedLocalObjectReference",
    "V1Namespace", "V1Node", "V1ServiceAccount", "V1Secret", "V1ConfigMap",
    "V1PersistentVolumeClaim", "CoreV1Event", "V1Pod", "V1Service", "V1Deployment",
    "V2HorizontalPodAutoscaler", "V1Ingress",
)  # fmt: skip

KINDS = {
    "v1/Namespace": "Namespace",
    "v1/Node": "Node",
    "v1/ServiceAccount": "ServiceAccount",
    "v1/Secret": "Secret",
    "v1/ConfigMap": "ConfigMap",
    "v1/PersistentVolumeClaim": "PersistentVolumeClaim",
    "v1/Event": "Event",
    "v1/Pod": "Pod",
    "v1/Service": "Service",
    "apps/v1/Deployment": "Deployment",
    "autoscaling/v2/HorizontalPodAutoscaler": "HorizontalPodAutoscaler",
    "networking.k8s.io/v1/Ingress": "Ingress",
}

_MODEL = re.compile(r"(?:Core)?V\d+(?:(?:alpha|beta)\d+)?([A-Z]\w*)")
_SIMPLE = {
    "str": "string", "int": "int32", "bool": "bool", "float": "number", "datetime": "date-time",
    "object": "int-or-string", "bytes": "bytes", "bytearray": "bytes",
}  # fmt: skip


def load(overlay: TableReader) -> None:
    """Add the core types to `overlay.types` and apply the tables of this module to them."""
    types = overlay.types
    models = importlib.import_module("kubernetes.client.models")
    waiting = list(ROOTS)
    while waiting:
        model = waiting.pop()
        name = short_name(model)
        if name in types:
            continue
        node: Node = {"type": "object", "properties": {}}
        types[name] = node
        cls = getattr(models, model)
        absent = ABSENT.get(name, "").split()
        required = []
        fields = {f.serialization_alias or n: f for n, f in cls.model_fields.items()}
        for attribute, key in sorted(cls.attribute_map.items(), key=lambda item: item[1]):
            if key in absent:
                continue
            node["properties"][key] = _node(cls.openapi_types[attribute], waiting)
            if fields[key].is_required():
                required.append(key)
        if required:
            node["required"] = required
    _apply(overlay, OVERLAY)


def short_name(model: str) -> str:
    """Return Kubernetes' own name of a model class: `V1PodSpec` -> `PodSpec`."""
    found = _MODEL.fullmatch(model)
    if found is None:
        raise ValueError(f"{model} is no model name")
    return found[1]


def _node(text: str, waiting: list[str]) -> Node:
    if inside := re.fullmatch(r"[Ll]ist\[(.*)\]", text):
        return {"type": "array", "items": _node(inside[1], waiting)}
    if inside := re.fullmatch(r"[Dd]ict[\[(]str, (.*)[\])]", text):
        return {"type": "object", "additionalProperties": _node(inside[1], waiting)}
    if text in _SIMPLE:
        return dict(SCALARS[_SIMPLE[text]])
    waiting.append(text)
    return {"$ref": short_name(text)}


def inside_kinds(reader: TableReader) -> None:
    """Finish the `core.` copies: what only the built-in kinds themselves have."""
    _apply(reader, KIND_OVERLAY)


def inside_crds(reader: TableReader) -> None:
    """Finish the types that CRDs embed: what controller-gen makes of them, and the variants."""
    _apply(reader, CRD_OVERLAY)
    reader.read(CRD_TYPES)


def _apply(reader: TableReader, overlay: str) -> None:
    """Change fields as the overlay says: `Type.field words`, or `Type words` for the type."""
    types = reader.types
    for line in overlay.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        for target in words[0].split("|"):
            name, _, field = target.rpartition(".") if target not in types else (target, "", "")
            node: Any = types[name]
            if not field:
                reader.change(node, words[1:])
                continue
            if field.endswith("?"):
                node["required"].remove(field[:-1])
                if not node["required"]:
                    del node["required"]
                continue
            if words[1] == "is":
                node["properties"][field] = reader.node(words[2:])
            else:
                reader.change(node["properties"][field], words[1:])


# Type -> fields that came after Kubernetes 1.35.
ABSENT: dict[str, str] = {
    "PodSpec": "evictionResponders schedulingGroup",
    "ClusterTrustBundleProjection": "user",
    "ConfigMapVolumeSource": "defaultUser",
    "DownwardAPIVolumeFile": "user",
    "DownwardAPIVolumeSource": "defaultUser",
    "EmptyDirVolumeSource": "mode",
    "GRPCAction": "mode",
    "HTTPGetAction": "protocol",
    "KeyToPath": "user",
    "PodCertificateProjection": "user userAnnotations",
    "ProjectedVolumeSource": "defaultUser",
    "SecretVolumeSource": "defaultUser",
    "ServiceAccountTokenProjection": "user",
    "VolumeMount": "bindMountOptions",
}

# `Type.field word...` changes a field, `is` replaces its type, `Type word...` changes the type
# itself, `Type.field?` makes the field optional. Several targets may share a line with `|`.
OVERLAY = """
# 64 bit integers
PodSpec.activeDeadlineSeconds|PodSpec.terminationGracePeriodSeconds is int64
Probe.terminationGracePeriodSeconds|Toleration.tolerationSeconds is int64
ServiceAccountTokenProjection.expirationSeconds|SleepAction.seconds is int64
SecurityContext.runAsUser|SecurityContext.runAsGroup is int64
PodSecurityContext.runAsUser|PodSecurityContext.runAsGroup|PodSecurityContext.fsGroup is int64
PodSecurityContext.supplementalGroups is [int64] atomic
ObjectMeta.generation|ObjectMeta.deletionGracePeriodSeconds is int64
DeploymentStatus.observedGeneration|PodStatus.observedGeneration is int64
PodCondition.observedGeneration|Condition.observedGeneration is int64

# Quantities
ResourceFieldSelector.divisor|EmptyDirVolumeSource.sizeLimit|HPAScalingRules.tolerance is quantity
MetricTarget.averageValue|MetricTarget.value is quantity
ResourceRequirements.limits|ResourceRequirements.requests is {quantity}
VolumeResourceRequirements.limits|VolumeResourceRequirements.requests is {quantity}
PodSpec.overhead|PersistentVolumeSpec.capacity is {quantity}
PersistentVolumeClaimStatus.capacity|PersistentVolumeClaimStatus.allocatedResources is {quantity}
ContainerStatus.allocatedResources|NodeStatus.capacity|NodeStatus.allocatable is {quantity}
PodStatus.allocatedResources is {quantity}

# Free-form values
ManagedFieldsEntry.fieldsV1 is object preserve

# Lists
Container.args|Container.command|Container.envFrom atomic
Container.resizePolicy|Container.restartPolicyRules atomic
Container.env map(name)
Container.ports map(containerPort,protocol)
Container.volumeDevices map(devicePath)
Container.volumeMounts map(mountPath)
EphemeralContainer.args|EphemeralContainer.command|EphemeralContainer.envFrom atomic
EphemeralContainer.resizePolicy|EphemeralContainer.restartPolicyRules atomic
EphemeralContainer.env map(name)
EphemeralContainer.ports map(containerPort,protocol)
EphemeralContainer.volumeDevices map(devicePath)
EphemeralContainer.volumeMounts map(mountPath)
ContainerRestartRuleOnExitCodes.values set
Capabilities.add|Capabilities.drop|ExecAction.command|HTTPGetAction.httpHeaders atomic
ResourceRequirements.claims map(name)
PodSpec.resourceClaims|PodSpec.schedulingGates map(name)
PodSpec.topologySpreadConstraints map(topologyKey,whenUnsatisfiable)
PodSecurityContext.sysctls|PodDNSConfig.nameservers atomic
PodDNSConfig.options|PodDNSConfig.searches|HostAlias.hostnames atomic
LabelSelector.matchExpressions|LabelSelectorRequirement.values atomic
NodeSelector.nodeSelectorTerms|NodeSelectorTerm.matchExpressions|NodeSelectorTerm.matchFields atomic
NodeSelectorRequirement.values atomic
NodeAffinity.preferredDuringSchedulingIgnoredDuringExecution atomic
PodAffinity.preferredDuringSchedulingIgnoredDuringExecution atomic
PodAffinity.requiredDuringSchedulingIgnoredDuringExecution atomic
PodAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution atomic
PodAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution atomic
PodAffinityTerm.matchLabelKeys|PodAffinityTerm.mismatchLabelKeys atomic
PodAffinityTerm.namespaces|TopologySpreadConstraint.matchLabelKeys atomic
PersistentVolumeClaimSpec.accessModes|PersistentVolumeSpec.accessModes atomic
PersistentVolumeSpec.mountOptions atomic
ConfigMapVolumeSource.items|ConfigMapProjection.items|SecretVolumeSource.items atomic
SecretProjection.items|DownwardAPIVolumeSource.items|DownwardAPIProjection.items atomic
ProjectedVolumeSource.sources atomic
CephFSVolumeSource.monitors|CephFSPersistentVolumeSource.monitors atomic
RBDVolumeSource.monitors|RBDPersistentVolumeSource.monitors atomic
ISCSIVolumeSource.portals|ISCSIPersistentVolumeSource.portals atomic
FCVolumeSource.targetWWNs|FCVolumeSource.wwids|HPAScalingRules.policies atomic

# Maps that are replaced as a whole
ConfigMapEnvSource|ConfigMapKeySelector|ConfigMapProjection|FileKeySelector|LabelSelector one
LocalObjectReference|NodeSelector|NodeSelectorTerm|ObjectFieldSelector|ResourceFieldSelector one
SecretEnvSource|SecretKeySelector|SecretProjection|SecretReference|TypedLocalObjectReference one
PodSpec.nodeSelector one
PersistentVolumeSpec.claimRef granular

# Defaults
ConfigMapEnvSource.name|ConfigMapKeySelector.name|ConfigMapProjection.name =""
ConfigMapVolumeSource.name|LocalObjectReference.name|SecretEnvSource.name =""
SecretKeySelector.name|SecretProjection.name|GRPCAction.service =""
ContainerPort.protocol ="TCP"
FileKeySelector.optional|AzureDiskVolumeSource.readOnly =false
AzureDiskVolumeSource.fsType ="ext4"
ScaleIOVolumeSource.fsType|ScaleIOPersistentVolumeSource.fsType ="xfs"
ScaleIOVolumeSource.storageMode|ScaleIOPersistentVolumeSource.storageMode ="ThinProvisioned"
ISCSIVolumeSource.iscsiInterface|ISCSIPersistentVolumeSource.iscsiInterface ="default"
RBDVolumeSource.keyring|RBDPersistentVolumeSource.keyring ="/etc/ceph/keyring"
RBDVolumeSource.pool|RBDPersistentVolumeSource.pool ="rbd"
RBDVolumeSource.user|RBDPersistentVolumeSource.user ="admin"
"""

# Lists that the built-in kinds keep unique by key.
KIND_OVERLAY = """
core.PodSpec.containers|core.PodSpec.initContainers|core.PodSpec.ephemeralContainers map(name)
core.PodSpec.volumes|core.PodSpec.imagePullSecrets map(name)
core.PodSpec.hostAliases map(ip)
core.ServiceSpec.ports map(port,protocol)
core.ServicePort.protocol ="TCP"
"""

# controller-gen leaves embedded metadata without fields.
CRD_OVERLAY = """
PersistentVolumeClaimTemplate.metadata is object
ConfigMapVolumeSource one
ObjectReference one
MetricTarget.type?
MetricTarget.type enum(Utilization|Value|AverageValue)
"""

CRD_TYPES = """
KeyedPodSpec
  ...PodSpec -hostAliases -imagePullSecrets -containers -initContainers -ephemeralContainers -volumes -readinessGates -tolerations
  containers! [Container] map(name)
  ephemeralContainers [EphemeralContainer] map(name)
  hostAliases [HostAlias] map(ip)
  imagePullSecrets [LocalObjectReference] map(name)
  initContainers [Container] map(name)
  readinessGates [PodReadinessGate] atomic
  tolerations [Toleration] atomic
  volumes [Volume] map(name)
"""  # noqa: E501 - one field is one line
