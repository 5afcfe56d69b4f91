"""From a Pod to what a backend starts: containers with their program, environment, probes, limits.

Mostly pure; `container_spec` also writes the volumes that a container mounts. Copies kubelet's
defaults for probes and KServe's default readiness probe (TCP on the first port, else 8080).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kserve_local.api import names, quantity
from kserve_local.api.meta import Object, annotations_of, labels_of, name_of, namespace_of, uid_of
from kserve_local.controllers.agent_injector import agent_of
from kserve_local.controllers.environment import (
    ConfigError,
    NodeFacts,
    Sources,
    resolve_command,
    resolve_env,
)
from kserve_local.controllers.modelcars import modelcar_of, modelcars
from kserve_local.controllers.pod_volumes import VolumePlaces, make_mounts
from kserve_local.controllers.pull_secrets import logins
from kserve_local.controllers.standins import (
    ImageRequest,
    NoStandIn,
    StandIn,
    build_of,
    source_for,
    source_program,
    stand_in,
)
from kserve_local.interfaces.backend import (
    Build,
    ContainerSpec,
    Mount,
    Probe,
    ReplicaSpec,
    Security,
)
from kserve_local.interfaces.devices import Device
from kserve_local.interfaces.registries import pull_policy_of
from kserve_local.settings import RuntimeConfig, Settings

RUNTIME_ANNOTATION = f"{names.LOCAL_PREFIX}/runtime"
_PROBED_BY_DEFAULT = frozenset({names.PREDICTOR_CONTAINER, names.TRANSFORMER_CONTAINER})
SECCOMP_PROFILES = Path("/var/lib/kubelet/seccomp")
_TERMINATION_LOG = "/dev/termination-log"
_LISTED_DEPTH = 3
_LISTED_FILES = 2000


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What `python` means in this project.

    Args:
        has_kserve: It can import the `kserve` SDK, so a zygote may import it beforehand.
    """

    path: Path
    has_kserve: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything but the Pod that its containers depend on.

    Args:
        insecure_registries: Models in images may come without TLS (config ociInsecureRegistry).
    """

    settings: Settings
    node: NodeFacts
    sources: Sources
    interpreter: Interpreter
    insecure_registries: bool = False


def spec_containers(pod: Object) -> list[Mapping[str, Any]]:
    """Return all containers of the Pod that keep running, in order."""
    return list((pod.get("spec") or {}).get("containers") or ())


def all_containers(pod: Object) -> list[Mapping[str, Any]]:
    """Return the Pod's containers that a backend keeps running, in order: no played sidecars."""
    played = played_sidecars(pod)
    return [c for c in spec_containers(pod) if c.get("name") not in played]


def played_sidecars(pod: Object) -> tuple[str, ...]:
    """Return the sidecars for which no process runs: modelcars, and the agent."""
    cars = tuple(car.sidecar for car in modelcars(pod))
    return (*cars, names.AGENT_CONTAINER) if agent_of(pod) is not None else cars


def init_containers(pod: Object) -> list[Mapping[str, Any]]:
    """Return the Pod's init containers, in order."""
    return list((pod.get("spec") or {}).get("initContainers") or ())


def is_played(pod: Object, init: str) -> bool:
    """Whether an init container is KServe's own, which the node agent carries out itself."""
    return init == names.STORAGE_INITIALIZER or modelcar_of(pod, init) is not None


def custom_init_containers(pod: Object) -> list[Mapping[str, Any]]:
    """Return the init containers that are not KServe's own, in order."""
    return [c for c in init_containers(pod) if not is_played(pod, str(c.get("name")))]


def host_aliases(pod: Object) -> dict[str, str]:
    """Return host name -> address of `hostAliases`, the first mention of a name first."""
    found: dict[str, str] = {}
    for alias in (pod.get("spec") or {}).get("hostAliases") or ():
        for name in alias.get("hostnames") or ():
            found.setdefault(str(name), str(alias.get("ip") or ""))
    return found


def ports_of(container: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return the container's ports by name; a serving container without any has 8080."""
    ports = tuple(
        (str(p.get("name") or ""), int(p["containerPort"]))
        for p in container.get("ports") or ()
        if p.get("containerPort")
    )
    if not ports and container.get("name") in _PROBED_BY_DEFAULT:
        return (("", names.DEFAULT_PORT),)
    return ports


def probe_of(
    probe: Mapping[str, Any] | None,
    ports: tuple[tuple[str, int], ...],
    *,
    expand_port: Callable[[str], int] | None = None,
) -> Probe | None:
    """Return the probe with Kubernetes' defaults, None when there is none.

    Knative drops a probe's port: 0 or a missing one means the container's first port.

    Raises:
        ConfigError: A named port does not exist.
    """
    if not probe:
        return None

    def port(value: object) -> int:
        if isinstance(value, str) and not value.isdigit():
            found = dict(ports).get(value)
            if found is None:
                raise ConfigError(f'probe: couldn\'t find port "{value}" in container ports')
            return found
        number = int(str(value or 0))
        return number or (ports[0][1] if ports else names.DEFAULT_PORT)

    timing: dict[str, Any] = {
        "initial_delay": float(probe.get("initialDelaySeconds") or 0),
        "period": float(probe.get("periodSeconds") or 10),
        "timeout": float(probe.get("timeoutSeconds") or 1),
        "success_threshold": int(probe.get("successThreshold") or 1),
        "failure_threshold": int(probe.get("failureThreshold") or 3),
    }
    if (http := probe.get("httpGet")) is not None:
        return Probe(
            kind="http",
            port=port(http.get("port")),
            path=str(http.get("path") or "/"),
            scheme=str(http.get("scheme") or "HTTP").lower(),
            host=str(http.get("host") or ""),
            headers=tuple(
                (str(h["name"]), str(h.get("value") or "")) for h in http.get("httpHeaders") or ()
            ),
            **timing,
        )
    if (tcp := probe.get("tcpSocket")) is not None:
        return Probe(
            kind="tcp", port=port(tcp.get("port")), host=str(tcp.get("host") or ""), **timing
        )
    if (command := probe.get("exec")) is not None:
        words = tuple(str(word) for word in command.get("command") or ())
        return Probe(kind="exec", command=words, **timing)
    if (grpc := probe.get("grpc")) is not None:
        return Probe(
            kind="grpc",
            port=port(grpc.get("port")),
            service=str(grpc.get("service") or ""),
            **timing,
        )
    return None


def readiness_of(container: Mapping[str, Any], ports: tuple[tuple[str, int], ...]) -> Probe | None:
    """Return the readiness probe, KServe's default for a serving container that gives none."""
    given = probe_of(container.get("readinessProbe"), ports)
    if given is not None or container.get("name") not in _PROBED_BY_DEFAULT:
        return given
    return Probe(kind="tcp", port=ports[0][1] if ports else names.DEFAULT_PORT)


def limit_of(container: Mapping[str, Any], resource: str) -> float | None:
    """Return `resources.limits.<resource>` as cores or bytes; None: no limit."""
    value = ((container.get("resources") or {}).get("limits") or {}).get(resource)
    return None if value is None else float(quantity.parse(value))


def security_of(pod: Object, container: Mapping[str, Any]) -> Security:
    """Return the Pod's and the container's `securityContext` folded, the container's first.

    Raises:
        ConfigError: It wants to be root and must not, in kubelet's words.
    """
    whole = (pod.get("spec") or {}).get("securityContext") or {}
    own = container.get("securityContext") or {}

    def of(field: str) -> Any:
        return own[field] if own.get(field) is not None else whole.get(field)

    user, group, non_root = of("runAsUser"), of("runAsGroup"), bool(of("runAsNonRoot"))
    if non_root and user == 0:
        raise ConfigError(
            f"container's runAsUser breaks non-root policy (pod: "
            f'"{name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})", '
            f"container: {container.get('name')})"
        )
    groups = [*(whole.get("supplementalGroups") or ()), whole.get("fsGroup")]
    capabilities = own.get("capabilities") or {}
    return Security(
        user=None if user is None else int(user),
        group=None if group is None else int(group),
        groups=tuple(dict.fromkeys(int(g) for g in groups if g is not None)),
        non_root=non_root,
        read_only_root=bool(own.get("readOnlyRootFilesystem")),
        privilege_escalation=own.get("allowPrivilegeEscalation") is not False,
        privileged=bool(own.get("privileged")),
        add=tuple(str(c).removeprefix("CAP_") for c in capabilities.get("add") or ()),
        drop=tuple(str(c).removeprefix("CAP_") for c in capabilities.get("drop") or ()),
    )


def seccomp_of(pod: Object, container: Mapping[str, Any]) -> str:
    """Return `Security.seccomp` of the container's profile, or else its Pod's. Blocking.

    Raises:
        ConfigError: There is no such file on this node, in the words of a node's runtime.
    """
    whole = (pod.get("spec") or {}).get("securityContext") or {}
    own = container.get("securityContext") or {}
    profile = own.get("seccompProfile") or whole.get("seccompProfile") or {}
    kind = profile.get("type")
    if kind != "Localhost":
        return "unconfined" if kind == "Unconfined" else ""
    name = str(profile.get("localhostProfile") or "")
    if not name:
        raise ConfigError("localhostProfile must be set if seccompProfile type is Localhost.")
    path = SECCOMP_PROFILES / name
    if ".." in path.parts or path.parts[: len(SECCOMP_PROFILES.parts)] != SECCOMP_PROFILES.parts:
        raise ConfigError(f"localhostProfile must be a path below {SECCOMP_PROFILES}: {name}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        why = str(error.strerror or error).lower()
        raise ConfigError(f'cannot load seccomp profile "{path}": open {path}: {why}') from error
    except ValueError as error:
        raise ConfigError(f'cannot load seccomp profile "{path}": {error}') from error
    return json.dumps(content)


def pull_policy(container: Mapping[str, Any]) -> Literal["Always", "IfNotPresent", "Never"]:
    """Return `imagePullPolicy`, by default what the image's tag says: `latest` is always pulled."""
    given = container.get("imagePullPolicy")
    if given in ("Always", "IfNotPresent", "Never"):
        return given  # type: ignore[no-any-return]  # one of the three
    return pull_policy_of(str(container.get("image") or ""))


def list_files(folder: Path, *, depth: int = _LISTED_DEPTH) -> frozenset[str]:
    """Return the files below a model directory, relative, at most `depth` levels. Blocking."""
    found: set[str] = set()
    base = str(folder)
    for place, folders, files in os.walk(base, followlinks=True):
        relative = os.path.relpath(place, base)
        level = 0 if relative == "." else relative.count(os.sep) + 1
        if level + 1 >= depth:
            folders.clear()
        found.update(os.path.normpath(os.path.join(relative, name)) for name in files)
        if len(found) > _LISTED_FILES:
            break
    return frozenset(found)


def _model_settings(folder: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads((folder / "model-settings.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _model_folder(mounts: tuple[Mount, ...]) -> Path | None:
    return next((m.source for m in mounts if m.path == names.MODEL_DIR), None)


def program_of(
    pod: Object,
    container: Mapping[str, Any],
    env: Mapping[str, str],
    around: Surroundings,
    *,
    model_folder: Path | None,
) -> StandIn | NoStandIn:
    """Return what runs for the container: local source, else a stand-in, else why nothing.

    Args:
        model_folder: The fetched model, None while there is none yet.
    """
    image = str(container.get("image") or "")
    command, args = resolve_command(container, env)
    # The volume is there, and empty, before the storage initializer has filled it.
    files = list_files(model_folder) if model_folder is not None else frozenset()
    request = ImageRequest(
        image=image,
        command=command,
        args=args,
        env=env,
        model_files=files or None,
        model_settings=_model_settings(model_folder) if model_folder is not None else None,
    )
    source = source_for(image, around.settings.images)
    if source is not None:
        program = source_program(
            request,
            source,
            default_python=around.interpreter.path,
            has_kserve=around.interpreter.has_kserve,
        )
        return program if isinstance(program, NoStandIn) else StandIn(program)
    found = stand_in(request)
    configured = runtime_config(pod, found, around.settings.runtimes)
    if isinstance(found, StandIn) and configured is not None:
        return stand_in(request, runtime=configured)
    return found


def runtime_config(
    pod: Object, program: StandIn | NoStandIn | None, runtimes: Mapping[str, RuntimeConfig]
) -> RuntimeConfig | None:
    """Return what `runtimes` of kserve-local.yaml says about a Pod's runtime, None if nothing."""
    named = annotations_of(pod).get(RUNTIME_ANNOTATION, "")
    wanted = [named, named.removeprefix("kserve-")]
    if isinstance(program, StandIn):
        wanted += [f"kserve-{program.program.runtime}", program.program.runtime]
    return next((runtimes[name] for name in wanted if name in runtimes), None)


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """What runs for a container in Docker.

    Args:
        build: How it is made here; None: `image` is pulled, or there.
        argv: The whole command line, where it is not the Pod's own.
        note: What stands in for what; empty: the Pod's image runs.
    """

    image: str
    build: Build | None = None
    argv: tuple[str, ...] = ()
    note: str = ""


def image_of(
    pod: Object,
    container: Mapping[str, Any],
    around: Surroundings,
    program: StandIn | NoStandIn,
) -> ChosenImage:
    """Return the image for a container: built from the user's source, one of our servers, or as
    the Pod says.

    Args:
        program: What would run for it as a process.
    """
    image = str(container.get("image") or "")
    source = source_for(image, around.settings.images)
    if source is not None:
        return ChosenImage(image, build_of(source))
    configured = runtime_config(pod, program, around.settings.runtimes)
    if configured is not None and configured.image:
        note = f"image {configured.image} of kserve-local.yaml stands in for image {image}"
        return ChosenImage(configured.image, note=note)
    if around.settings.runtime_images == "upstream" or isinstance(program, NoStandIn):
        return ChosenImage(image)
    server = program.program.runtime
    return ChosenImage(
        image,
        Build(server=server),
        ("python", *program.program.argv),
        f"the image of kserve-local's {server} stands in for image {image}",
    )


@dataclass(frozen=True, slots=True)
class Built:
    """One container ready for the backend."""

    spec: ContainerSpec
    note: str


def container_spec(
    pod: Object,
    container: Mapping[str, Any],
    places: VolumePlaces,
    around: Surroundings,
    *,
    made: dict[str, Path],
    in_docker: bool = False,
    devices: tuple[Device, ...] | None = None,
) -> Built | NoStandIn:
    """Return one container resolved for the backend. Blocking: makes its volumes.

    Args:
        in_docker: Its image is what runs.
        devices: See `ContainerSpec.devices`.

    Raises:
        ConfigError: A reference cannot be resolved, in kubelet's words.
    """
    name = str(container.get("name") or "")
    env = resolve_env(pod, container, around.sources, around.node)
    mounts = make_mounts(pod, container, places, around.sources, made=made, linked=not in_docker)
    found = program_of(pod, container, env, around, model_folder=_model_folder(mounts))
    chosen = None
    if in_docker:
        chosen = image_of(pod, container, around, found)
    elif isinstance(found, NoStandIn):
        return found
    ports = ports_of(container)
    command, args = resolve_command(container, env)
    if chosen is not None and chosen.argv:
        command, args = chosen.argv, ()
    memory = limit_of(container, "memory")
    image = chosen.image if chosen is not None else str(container.get("image") or "")
    runs = found.program if isinstance(found, StandIn) and not in_docker else None
    note = found.note if isinstance(found, StandIn) and not in_docker else ""
    spec = ContainerSpec(
        name=name,
        image=image,
        argv=(*command, *args),
        command=tuple(command),
        pull=pull_policy(container),
        logins=logins(pod, image, around.sources.secret)[0] if in_docker else (),
        security=replace(security_of(pod, container), seccomp=seccomp_of(pod, container)),
        log_path=around.settings.log_dir / name_of(pod) / f"{name}.log",
        env=tuple(env.items()),
        build=chosen.build if chosen is not None else None,
        program=runs,
        working_dir=str(container.get("workingDir") or ""),
        termination_path=str(container.get("terminationMessagePath") or _TERMINATION_LOG),
        ports=ports,
        cpu_limit=limit_of(container, "cpu"),
        memory_limit_bytes=int(memory) if memory else None,
        devices=devices,
        mounts=mounts,
        readiness=readiness_of(container, ports),
        liveness=probe_of(container.get("livenessProbe"), ports),
        startup=probe_of(container.get("startupProbe"), ports),
    )
    return Built(spec, chosen.note if chosen is not None else note)


def grace_of(pod: Object) -> float:
    """Return how long the Pod may take to end."""
    metadata = pod.get("metadata") or {}
    given = metadata.get("deletionGracePeriodSeconds")
    if given is None:
        given = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return 30.0 if given is None else max(0.0, float(given))


def replica_spec(
    pod: Object,
    containers: tuple[ContainerSpec, ...],
    *,
    ip: str,
    resolve: tuple[tuple[str, str], ...],
) -> ReplicaSpec:
    """Return the Pod as the backend runs it."""
    spec = pod.get("spec") or {}
    subdomain = str(spec.get("subdomain") or "")
    return ReplicaSpec(
        id=uid_of(pod),
        namespace=namespace_of(pod),
        pod=name_of(pod),
        containers=containers,
        ip=ip,
        grace=grace_of(pod),
        resolve=resolve,
        labels=dict(labels_of(pod)),
        hostname=str(spec.get("hostname") or ""),
        domain=f"{subdomain}.{namespace_of(pod)}.svc.cluster.local" if subdomain else "",
    )
