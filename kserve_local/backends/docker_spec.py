"""From a ReplicaSpec to what a Docker engine is asked for. Pure.

A Pod becomes a sandbox, which owns the network, and one container for each of its own that joins
it. Labels carry all that a later supervisor needs: adoption reads nothing but the engine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kserve_local.backends import docker_pause
from kserve_local.backends.control import FOLDER, INSIDE, SOURCE, Launcher
from kserve_local.errors import Invalid, InvalidImageName
from kserve_local.interfaces.backend import (
    HOST_IP,
    POD_IP,
    ContainerSpec,
    Mount,
    ReplicaSpec,
)
from kserve_local.interfaces.devices import Device

PREFIX = "kserve-local.dev"
PROJECT = f"{PREFIX}/project"
STATE = f"{PREFIX}/state"
REPLICA = f"{PREFIX}/replica"
CONTAINER = f"{PREFIX}/container"
SANDBOX = ""
"""The value of `CONTAINER` on a sandbox."""
PERIOD = 100_000
"""Microseconds of a CPU quota's period, as the kubelet's."""
MINIMUM_QUOTA = 1_000
LAUNCHER = "/run/kserve-local"
"""Where a container with the user's own code sees podlauncher."""
NVIDIA_VISIBLE = "NVIDIA_VISIBLE_DEVICES"
_CAPABILITIES = ("gpu", "compute", "utility")
"""What of NVIDIA's driver a container gets: CUDA, and `nvidia-smi`."""


def project_id(state: Path) -> str:
    """Return what tells this project's containers from another's: a digest of its state folder."""
    return hashlib.sha256(str(state).encode()).hexdigest()[:12]


def labels(state: Path, replica: ReplicaSpec, container: str) -> dict[str, str]:
    """Return the labels of one container; the Pod's names as Kubernetes puts them."""
    return {
        PROJECT: project_id(state),
        STATE: str(state),
        REPLICA: replica.id,
        CONTAINER: container,
        "io.kubernetes.pod.name": replica.pod,
        "io.kubernetes.pod.namespace": replica.namespace,
        "io.kubernetes.pod.uid": replica.id,
        "io.kubernetes.container.name": container or "POD",
    }


def container_name(replica: ReplicaSpec, container: str, attempt: int = 0) -> str:
    """Return the engine's name for a container, as the kubelet's Docker runtime made them."""
    return f"k8s_{container or 'POD'}_{replica.pod}_{replica.namespace}_{replica.id}_{attempt}"


def hostname(replica: ReplicaSpec) -> str:
    """Return the Pod's hostname: what it says or its name, as far as Linux takes it."""
    return replica.hostname or replica.pod[:63].rstrip("-.")


def full_name(replica: ReplicaSpec) -> tuple[str, ...]:
    """Return the Pod's name in the cluster, if it is in a subdomain."""
    return (f"{hostname(replica)}.{replica.domain}",) if replica.domain else ()


def pod_ports(replica: ReplicaSpec) -> list[int]:
    """Return the ports that the Pod names, in order, each once."""
    return list(dict.fromkeys(port for c in replica.containers for _, port in c.ports))


def repository_and_tag(image: str) -> tuple[str, str]:
    """Return what to pull: repository, and tag (`latest` if none is named) or digest."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    head, slash, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag or "latest"


_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_REFERENCE = re.compile(
    rf"(?:(?:{_HOST}(?:\.{_HOST})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    rf"{_COMPONENT}(?:/{_COMPONENT})*(?::\w[\w.-]{{0,127}})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)
"""Source: distribution/reference, the grammar in its package comment."""


def check_image(image: str) -> None:
    """Refuse what cannot be an image's name.

    Raises:
        InvalidImageName: In kubelet's words.
    """
    if _REFERENCE.fullmatch(image) is None:
        raise InvalidImageName(
            f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": '
            "invalid reference format",
            hint="write registry/name:tag in lower case, without spaces",
        )


def hint_for(spec: ContainerSpec, refusal: str) -> str:
    """Return what helps when the engine does not make or start a container; empty: unknown."""
    if "No command specified" in refusal:
        return f"the image {spec.image} names no program to run: give the container a command"
    if spec.security.privileged:
        return (
            "it asks to be privileged, which this engine may not let it be: leave out "
            "securityContext.privileged, and name what it needs under capabilities.add"
        )
    return ""


def sandbox(
    state: Path, replica: ReplicaSpec, network: str, *, publish: bool = False
) -> dict[str, Any]:
    """Return the engine's request for the container that holds the Pod's network.

    Args:
        publish: The network cannot be reached from here: give each port one on the loopback.
    """
    ports = [f"{port}/tcp" for port in pod_ports(replica)] if publish else []
    bindings = {port: [{"HostIp": "127.0.0.1", "HostPort": ""}] for port in ports}
    return {
        "ExposedPorts": {port: {} for port in ports},
        "Hostname": hostname(replica),
        "Image": docker_pause.IMAGE,
        "Labels": labels(state, replica, SANDBOX),
        "HostConfig": {
            "NetworkMode": network,
            "CapDrop": ["ALL"],
            "ReadonlyRootfs": True,
            "LogConfig": {"Type": "none"},
            "PortBindings": bindings,
        },
    }


def address(found: Mapping[str, Any], network: str) -> str:
    """Return the address that a sandbox's inspection names, empty if it has none."""
    networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
    return str((networks.get(network) or {}).get("IPAddress") or "")


def sandboxes_last(listed: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return an engine's containers in the order in which they can be removed.

    Podman removes none whose network others have joined.
    """
    return sorted(listed, key=lambda found: (found.get("Labels") or {}).get(CONTAINER) == SANDBOX)


def imported(told: str) -> str:
    """Return the image's id from what an engine says of an import: lines of JSON, the id last."""
    lines = [json.loads(line) for line in told.splitlines() if line.strip()]
    return str(lines[-1]["status"])


def published(found: Mapping[str, Any]) -> dict[int, int]:
    """Return port -> loopback port of a sandbox that publishes its ports."""
    ports = (found.get("NetworkSettings") or {}).get("Ports") or {}
    return {
        int(port.partition("/")[0]): int(bindings[0]["HostPort"])
        for port, bindings in ports.items()
        if bindings
    }


def usage(stats: Mapping[str, Any]) -> tuple[float, int]:
    """Return (CPU seconds, bytes of memory without what the page cache could give up)."""
    cpu = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage") or 0
    memory = stats.get("memory_stats") or {}
    details = memory.get("stats") or {}
    # cgroup v1 and v2 name it differently.
    cache = details.get("total_inactive_file") or details.get("inactive_file") or 0
    return cpu / 1e9, max(0, int(memory.get("usage") or 0) - int(cache))


def container(
    state: Path,
    replica: ReplicaSpec,
    spec: ContainerSpec,
    *,
    sandbox_id: str,
    address: str,
    hosts: Path,
    machine: str = "",
    launcher: Launcher | None = None,
    with_hostname: bool = False,
) -> dict[str, Any]:
    """Return the engine's request for one of the Pod's containers.

    Args:
        sandbox_id: The container whose network it joins.
        address: The Pod's address, as its containers know it.
        hosts: The Pod's `/etc/hosts`.
        machine: This machine's address, as the Pod's containers know it; empty: they know none.
        launcher: What goes along with the user's own code.
        with_hostname: Name the Pod's hostname: on Podman it does not come with the network that is
            joined. Docker's engine refuses to be told.
    """

    def placed(text: str) -> str:
        return text.replace(POD_IP, address).replace(HOST_IP, machine or "127.0.0.1")

    security = spec.security
    # A bind is one word with colons in it; a folder named after an image's tag has one itself.
    binds = [_bind(m.source, m.path, m.read_only) for m in spec.mounts if ":" not in str(m.source)]
    others = [
        {"Type": "bind", "Source": str(m.source), "Target": m.path, "ReadOnly": m.read_only}
        for m in spec.mounts
        if ":" in str(m.source)
    ]
    if launcher is not None:
        binds.append(_bind(launcher.package, f"{LAUNCHER}/podlauncher", read_only=True))
        binds.append(_bind(launcher.sockets, INSIDE, read_only=False))
    options = [] if security.privilege_escalation else ["no-new-privileges"]
    if security.seccomp:
        options.append(f"seccomp={security.seccomp}")
    host: dict[str, Any] = {
        "NetworkMode": f"container:{sandbox_id}",
        "Binds": [*binds, _bind(hosts, "/etc/hosts", read_only=True)],
        "Mounts": others or None,
        "CapAdd": list(security.add) or None,
        "CapDrop": list(security.drop) or None,
        "GroupAdd": [str(g) for g in security.groups] or None,
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.read_only_root,
        "SecurityOpt": options or None,
    }
    if spec.cpu_limit is not None:
        host["CpuPeriod"] = PERIOD
        host["CpuQuota"] = max(MINIMUM_QUOTA, int(spec.cpu_limit * PERIOD))
    if spec.memory_limit_bytes is not None:
        # No swap on top: a limit is a limit, as on a node.
        host["Memory"] = host["MemorySwap"] = spec.memory_limit_bytes
    host.update(_devices(spec))
    request: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={placed(value)}" for name, value in _environment(spec)],
        "Labels": labels(state, replica, spec.name),
        "HostConfig": {k: v for k, v in host.items() if v is not None},
    }
    if with_hostname:
        request["Hostname"] = hostname(replica)
    if spec.command:
        request["Entrypoint"] = [placed(word) for word in spec.command]
    arguments = spec.argv[len(spec.command) :]
    if spec.command or arguments:
        request["Cmd"] = [placed(word) for word in arguments]
    if spec.working_dir:
        request["WorkingDir"] = spec.working_dir
    if security.user is not None:
        group = f":{security.group}" if security.group is not None else ""
        request["User"] = f"{security.user}{group}"
    return request


def _real(spec: ContainerSpec) -> list[Device]:
    return [device for device in spec.devices or () if not device.simulated]


def _devices(spec: ContainerSpec) -> dict[str, Any]:
    """Return what of `HostConfig` gives a container its GPUs, by id: no two share one.

    NVIDIA's go through the engine's driver (NVIDIA Container Toolkit), AMD's are device files that
    members of their groups may open.
    """
    found: dict[str, Any] = {}
    nvidia = [d.id for d in _real(spec) if d.vendor == "nvidia"]
    if nvidia:
        found["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": nvidia, "Capabilities": [list(_CAPABILITIES)]}
        ]
    amd = [d for d in _real(spec) if d.vendor == "amd"]
    if amd:
        found["Devices"] = [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}
            for path in dict.fromkeys(p for d in amd for p in d.paths)
        ]
        groups = (*spec.security.groups, *(g for d in amd for g in d.groups))
        found["GroupAdd"] = [str(group) for group in dict.fromkeys(groups)]
    return found


def _environment(spec: ContainerSpec) -> list[tuple[str, str]]:
    """Return the container's variables; on a machine with GPUs, which of them it may see.

    Where NVIDIA's runtime is the engine's default, an image that asks for all GPUs (CUDA's do) or a
    Pod that does would get them without a limit: `void` is what a device plugin's node says.
    """
    if spec.devices is None:
        return list(spec.env)
    own = [(name, value) for name, value in spec.env if name != NVIDIA_VISIBLE]
    if any(d.vendor == "nvidia" for d in _real(spec)):
        return own  # The engine's driver sets it, from the request.
    return [*own, (NVIDIA_VISIBLE, "void")]


def with_launcher(spec: ContainerSpec, image: Mapping[str, Any]) -> ContainerSpec:
    """Return the container with what lets its Python processes be asked (`podlauncher.control`).

    Args:
        image: The inspection of its image.
    """
    config = image.get("Config") or {}
    source = spec.working_dir or str(config.get("WorkingDir") or "/")
    path = dict(spec.env).get("PYTHONPATH", "")
    for entry in config.get("Env") or ():
        name, _, value = str(entry).partition("=")
        path = path or (value if name == "PYTHONPATH" else "")
    own = {
        "PYTHONPATH": ":".join(filter(None, (f"{LAUNCHER}/podlauncher/hook", path))),
        FOLDER: INSIDE,
        SOURCE: source,
    }
    return replace(spec, source=source, env=tuple({**dict(spec.env), **own}.items()))


def control_of(found: Mapping[str, Any]) -> Path | None:
    """Return the folder of a container's control sockets that its inspection names, if any."""
    mounts = found.get("Mounts") or ()
    return next((Path(m["Source"]) for m in mounts if m.get("Destination") == INSIDE), None)


def with_last_words(spec: ContainerSpec, file: Path) -> ContainerSpec:
    """Return the container with the file of its termination message, unless a volume is there."""
    path = spec.termination_path
    if not path or any(mount.path == path for mount in spec.mounts):
        return spec
    return replace(spec, mounts=(*spec.mounts, Mount(path, file, read_only=False)))


def last_words_of(found: Mapping[str, Any], spec: ContainerSpec, state: Path) -> Path | None:
    """Return the file of a container's termination message that its inspection names, if any."""
    for mount in found.get("Mounts") or ():
        source = Path(str(mount.get("Source") or ""))
        if mount.get("Destination") == spec.termination_path and source.is_relative_to(state):
            return source
    return None


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i386": "386"}
"""An engine's name of a machine -> an image's."""


def foreign(name: str, image: Mapping[str, Any], machine: str) -> str:
    """Return what is to say of an image that is built for another kind of machine; else empty.

    It may run all the same, where the kernel has an emulator for it.

    Args:
        image: The inspection of the image.
        machine: As the engine calls its own, e.g. `x86_64`.
    """
    built, here = str(image.get("Architecture") or ""), _ARCHITECTURES.get(machine, machine)
    if not built or not here or built == here:
        return ""
    return f'image "{name}" is built for {built}, and this machine is {here}'


def check_user(user: str) -> None:
    """Refuse an image whose own user is root, or may be, for a container that must not be root.

    Args:
        user: `Config.User` of the image: `uid`, `name` or either with `:group`; empty: root.

    Raises:
        Invalid: In kubelet's words.
    """
    own = user.partition(":")[0]
    if own in ("", "0", "root"):
        raise Invalid(
            "container has runAsNonRoot and image will run as root",
            hint="set runAsUser in the securityContext, or USER in the image",
        )
    if not own.isdigit():
        raise Invalid(
            f"container has runAsNonRoot and image has non-numeric user ({own}), cannot verify "
            "user is non-root",
            hint="set runAsUser in the securityContext, or a number as USER in the image",
        )


def _bind(source: Path, path: str, read_only: bool) -> str:
    return f"{source}:{path}:{'ro' if read_only else 'rw'}"


def gateway_of(network: Mapping[str, Any]) -> str:
    """Return the IPv4 address that a network's inspection gives this machine in it."""
    configs = (network.get("IPAM") or {}).get("Config") or ()
    found = (str(config.get("Gateway") or "") for config in configs)
    return next((address for address in found if address and ":" not in address), "")


def hosts_file(
    replica: ReplicaSpec,
    ip: str,
    *,
    host: str = "",
    names: tuple[tuple[str, str], ...] = (),
) -> str:
    """Return the Pod's `/etc/hosts`: the kubelet's lines, its hostname, and what it must resolve.

    A pattern (`*.domain`) has no line: this file knows whole names only.

    Args:
        host: This machine as the Pod sees it. Services, which have addresses on this machine's
            loopback, are there; 127.0.0.1 is the Pod's own.
        names: What all Pods of its namespace resolve (`Backend.resolve`).
    """
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "\t".join((ip, *full_name(replica), hostname(replica))),
    ]
    for name, address in {**dict(names), **dict(replica.resolve)}.items():
        ours = address.startswith("127.") and address != "127.0.0.1"
        there = host if host and ours else address
        if "*" not in name:
            lines.append(f"{there}\t{name}")
    return "\n".join(lines) + "\n"


def when(text: str) -> float | None:
    """Return an engine's time stamp as Unix time; None for its "never"."""
    if not text or text.startswith("0001-"):
        return None
    head, dot, fraction = text.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(f"{head}+00:00").timestamp()
    return seconds + float(f"0.{fraction}") if dot and fraction.isdigit() else seconds


def exit_reason(state: Mapping[str, Any]) -> tuple[str, int, int | None, str]:
    """Return (reason, exit code, signal, message) of a container that has ended.

    Args:
        state: `State` of its inspection.
    """
    code = int(state.get("ExitCode") or 0)
    number = code - 128 if 128 < code < 160 else None
    message = str(state.get("Error") or "")
    # The engine says so as well when the kernel killed a child of the container's first process;
    # Kubernetes tells of it only where that process ended by it.
    if state.get("OOMKilled") and code == 137:
        return "OOMKilled", code, 9, ""
    if message and when(str(state.get("StartedAt") or "")) is None:
        return "ContainerCannotRun", code, None, message
    return ("Completed" if code == 0 else "Error"), code, number, message
