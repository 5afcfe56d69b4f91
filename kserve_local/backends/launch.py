"""What a container becomes as a process: interpreter arguments, environment, ports, paths. Pure.

The answer is the run file that `podlauncher` reads (its `child` module lists the fields). A Pod
with an address of its own keeps its ports; without one every port it names gets a free one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kserve_local.backends.control import FOLDER, SOURCE
from kserve_local.backends.processes import MARK
from kserve_local.interfaces.backend import ContainerSpec, Mount, Program, ReplicaSpec
from kserve_local.interfaces.devices import Device
from kserve_local.interfaces.routing import SERVICE_PORT

# What a container takes from the machine; everything else comes from the Pod, as in a cluster.
# fmt: off
_KEPT = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
    "XDG_DATA_HOME", "HF_HOME", "CUDA_HOME", "CUDA_PATH", "SYSTEMROOT",
))
# fmt: on
_KEPT_PREFIXES = ("LC_", "NVIDIA_")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

# Environment that libraries read while they are imported: a fork could not see it any more, so
# each set of values has its own zygote. Thread counts are not here: they are set after the fork.
# fmt: off
_IMPORT_TIME = (
    "PYTHON", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "LC_", "LANG", "OMP_", "KMP_", "GOMP_",
    "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_", "VECLIB_", "NPY_", "NUMPY_", "SCIPY_",
    "SKLEARN_", "JOBLIB_", "LOKY_", "PANDAS_", "PYARROW_", "ARROW_", "XGBOOST_", "LIGHTGBM_",
    "ORT_", "ONNX", "TORCH", "PYTORCH_", "TRITON_", "CUDA_", "CUBLAS_", "CUDNN_", "NCCL_",
    "NVIDIA_", "TF_", "XLA_", "JAX_", "FLAX_", "TRANSFORMERS_", "TOKENIZERS_", "HF_",
    "HUGGINGFACE_", "GRPC_", "PROTOCOL_BUFFERS_", "PROMETHEUS_", "UVLOOP_", "PYDANTIC_",
    "KSERVE_", "RAY_", "OTEL_", "SSL_", "OPENSSL_",
)
# fmt: on
# Which GPUs are visible is read when the first is used, which no zygote does.
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_NOT_IMPORT_TIME = frozenset(
    (*THREAD_VARIABLES, *_DEVICE_VARIABLES, "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the process backend keeps what a launch needs.

    Args:
        home: Folder with podlauncher and our servers, nothing else.
        state: The project's state folder; its end is the container's end.
        base_env: The machine's environment.
        cpus: Cores of the machine.
        service_port: Where port 80 of a Service is really listened on.
        calls: Where the gateway is told of calls within a Pod.
    """

    home: Path
    state: Path
    base_env: Mapping[str, str]
    cpus: int
    service_port: int = SERVICE_PORT
    calls: Path | None = None


def rewrite_paths(text: str, mounts: Sequence[Mount]) -> str:
    """Replace container paths in `text` by the real ones; `/mnt/models2` is not `/mnt/models`."""
    for mount in sorted(mounts, key=lambda m: len(m.path), reverse=True):
        path = mount.path.rstrip("/")
        if path and path in text:
            pattern = rf"(?:(?<![\w./-])|(?<=://)){re.escape(path)}(?![\w.-])"
            text = str(mount.source).join(re.split(pattern, text))
    return text


def pod_ports(spec: ReplicaSpec) -> tuple[int, ...]:
    """Return the ports that the Pod's containers name, in order; 8080 if they name none."""
    named = [port for container in spec.containers for _, port in container.ports]
    for container in spec.containers:
        named.extend(_argument_ports(container))
    return tuple(dict.fromkeys(named)) or (8080,)


def _argument_ports(container: ContainerSpec) -> list[int]:
    """Return the values of `--http_port` and `--grpc_port`, of our servers and of the SDK's."""
    if container.program is None:
        return []
    found = []
    argv = container.program.argv
    for position, item in enumerate(argv):
        flag, _, value = item.partition("=")
        if flag in ("--http_port", "--grpc_port"):
            value = value or (argv[position + 1] if position + 1 < len(argv) else "")
            if value.isdigit():
                found.append(int(value))
    return found


def _with_ports(
    argv: Sequence[str], ports: Mapping[int, int], container: ContainerSpec
) -> list[str]:
    """Give a built-in server its assigned ports; used only where Pods have no address."""
    out: list[str] = []
    flags: set[str] = set()
    previous = ""
    for item in argv:
        flag, equals, value = item.partition("=")
        if flag in ("--http_port", "--grpc_port"):
            flags.add(flag)
            if equals and value.isdigit():
                item = f"{flag}={ports.get(int(value), int(value))}"
        elif previous in ("--http_port", "--grpc_port") and item.isdigit():
            item = str(ports.get(int(item), int(item)))
        out.append(item)
        previous = item
    if "--http_port" not in flags:
        first = container.ports[0][1] if container.ports else 8080
        out += ["--http_port", str(ports.get(first, first))]
    return out


def thread_count(container: ContainerSpec, cpus: int) -> int:
    """Return how many threads math libraries may use: what the Pod says, its CPU limit, or all."""
    asked = dict(container.env).get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return cpus if container.cpu_limit is None else max(1, math.ceil(container.cpu_limit))


def import_time_env(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the variables that libraries read at import, sorted; they choose the zygote."""
    return tuple(
        sorted(
            (name, value)
            for name, value in env.items()
            if name.startswith(_IMPORT_TIME) and name not in _NOT_IMPORT_TIME
        )
    )


def machine_env(base: Mapping[str, str]) -> dict[str, str]:
    """Return what a container takes from the machine's environment."""
    return {
        name: value
        for name, value in base.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }


def hostname(spec: ReplicaSpec) -> str:
    """Return what the Pod calls itself."""
    return spec.hostname or spec.pod


def _names(spec: ReplicaSpec) -> dict[str, str]:
    names = dict(spec.resolve)
    if spec.domain:
        names.setdefault(f"{hostname(spec)}.{spec.domain}".lower(), spec.ip or "127.0.0.1")
    return names


def container_env(
    spec: ReplicaSpec, container: ContainerSpec, python: Path, ports: Mapping[int, int], cpus: int
) -> dict[str, str]:
    """Return the container's environment without what marks the process and patches workers."""
    env = {"HOSTNAME": hostname(spec), "PYTHONUNBUFFERED": "1"}
    if container.ports:
        first = container.ports[0][1]
        env["PORT"] = str(ports.get(first, first))
    elif ports and not spec.ip:
        env["PORT"] = str(next(iter(ports.values())))
    if container.cpu_limit is not None:
        count = str(thread_count(container, cpus))
        env.update(dict.fromkeys(THREAD_VARIABLES, count))
    env.update({name: rewrite_paths(value, container.mounts) for name, value in container.env})
    if not spec.ip and env.get("PORT", "").isdigit():
        env["PORT"] = str(ports.get(int(env["PORT"]), int(env["PORT"])))
    return env


def device_env(devices: Sequence[Device], given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that let a process see these GPUs and no others.

    What the Pod itself says picks among its own, by number from 0, as in a container. CUDA takes an
    empty list for none; HIP takes that for all, so it gets a number that no GPU has, and where it
    has no list it goes by CUDA's.
    """
    real = [device for device in devices if not device.simulated]
    nvidia = [d.id for d in real if d.vendor == "nvidia"]
    amd = [str(d.index) for d in real if d.vendor == "amd"]
    found = {"CUDA_VISIBLE_DEVICES": ",".join(_picked(nvidia, given.get("CUDA_VISIBLE_DEVICES")))}
    if amd:
        found["HIP_VISIBLE_DEVICES"] = ",".join(_picked(amd, given.get("HIP_VISIBLE_DEVICES")))
    elif not nvidia:
        found["HIP_VISIBLE_DEVICES"] = "-1"
    return found


def _picked(ids: Sequence[str], numbers: str | None) -> list[str]:
    words = (numbers or "").split(",")
    if all(word.isdigit() and int(word) < len(ids) for word in words):
        return [ids[int(word)] for word in dict.fromkeys(words)]
    return list(ids)


def with_interpreter(env: dict[str, str], python: Path) -> dict[str, str]:
    """Let commands of the interpreter's own environment be found, as an activated one would."""
    folder = str(python.parent)
    env["PATH"] = f"{folder}:{env['PATH']}" if env.get("PATH") else folder
    if (python.parent.parent / "pyvenv.cfg").is_file():
        env.setdefault("VIRTUAL_ENV", str(python.parent.parent))
    return env


def launch(
    spec: ReplicaSpec,
    container: ContainerSpec,
    program: Program,
    *,
    python: Path,
    ports: Mapping[int, int],
    token: str,
    run_file: Path,
    exit_file: Path,
    names_file: Path,
    control: Path,
    place: Place,
) -> dict[str, Any]:
    """Return the run file's content for one start of `container`.

    Args:
        names_file: The names of the namespace (`RunFiles.names`).
        control: Folder for the control sockets of the user's own code.
    """
    own = container_env(spec, container, python, ports, place.cpus)
    env = with_interpreter(machine_env(place.base_env), python)
    env.update(own)
    if container.devices is not None:
        env.update(device_env(container.devices, own))
    hook = str(place.home / "podlauncher" / "hook")
    env["PYTHONPATH"] = f"{hook}:{env['PYTHONPATH']}" if env.get("PYTHONPATH") else hook
    env[MARK] = token
    env["KSERVE_LOCAL_RUN_FILE"] = str(run_file)
    argv = [rewrite_paths(item, container.mounts) for item in program.argv]
    if program.kind == "runtime" and not spec.ip:
        argv = _with_ports(argv, ports, container)
    folder = program.cwd or (Path(container.working_dir) if container.working_dir else None)
    if folder is not None and not folder.is_dir():
        folder = program.cwd
    if program.kind == "source":
        env[FOLDER] = str(control)
        env[SOURCE] = str(program.cwd or folder or "")
    return {
        "token": token,
        "replica": spec.id,
        "container": container.name,
        "argv": argv,
        "is_python": program.is_python,
        "python": str(python),
        "cwd": str(folder) if folder else "",
        "env": env,
        "log": str(container.log_path),
        "exit_file": str(exit_file),
        "state": str(place.state),
        "home": str(place.home),
        "home_first": program.kind == "runtime",
        "threads": thread_count(container, place.cpus),
        "ports": {str(k): v for k, v in ports.items()},
        "network": {
            "ip": spec.ip or "127.0.0.1",
            "ports": {str(k): v for k, v in ports.items() if k != v},
            "listen": list(pod_ports(spec)),
            "resolve": _names(spec),
            "resolve_file": str(names_file),
            "namespace": spec.namespace,
            "hostname": hostname(spec),
            "service_port": place.service_port,
            "pod": spec.pod,
            "calls": str(place.calls) if place.calls and len(spec.containers) > 1 else "",
        },
    }
