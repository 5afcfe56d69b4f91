"""Settings: flags, then `KSERVE_LOCAL_*`, then `kserve-local.yaml`, then the default; built once,
frozen, passed in.

`settings.Settings` is what everything else sees. `load()` reads the environment and the file; no
other module does. File keys are UX.md section 3.6's. Relative paths in the file start at the
project folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kserve_local.errors import Invalid, UsageError

CONFIG_FILE = "kserve-local.yaml"
MOST_GPUS = 1024


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image name mapped to local source (`images:`).

    `command` defaults to `python` plus the file that the Pod's own command names; `python` in it
    means the project's `.venv`, else `$VIRTUAL_ENV`, else the interpreter that runs kserve-local.
    A path to an interpreter is that one; a relative path starts at `context`.
    """

    context: Path
    command: tuple[str, ...] = ()
    python: Path | None = None
    requirements: Path | None = None
    reload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What a save does (`watch:`); whether anything is watched is `Settings.watch`.

    Args:
        quiet: Seconds without a save after which several files saved together are one change; long
            enough for a checkout, short enough not to be noticed.
        poll: `auto` (where the kernel cannot tell of changes), `never`, or seconds between looks.
        ignore: Patterns of paths relative to the project.
        code: `swap` functions in place where that is safe, `restart` always, or `off`.
        model, manifests: Whether model files and YAML are taken over.
    """

    quiet: float = 0.05
    poll: str | float = "auto"
    ignore: tuple[str, ...] = ()
    code: str = "swap"
    model: bool = True
    manifests: bool = True


@dataclass(frozen=True, slots=True)
class RequestsConfig:
    """What the gateway keeps of calls (`requests:`); only in its memory.

    Args:
        keep / max_bytes: Calls, and their bytes, per component of a service.
        redact_headers: Beside those that always are (`gateway.redaction`).
        redact_fields: `instances.*.ssn`, or a name that is redacted wherever it is.
    """

    enabled: bool = True
    keep: int = 100
    max_bytes: int = 4 << 20
    redact_headers: tuple[str, ...] = ()
    redact_fields: tuple[str, ...] = ()


BACKENDS = ("auto", "process", "docker")


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How a (Cluster)ServingRuntime runs here (`runtimes:`).

    Args:
        backend: Where its Pods run, whatever the project's `backend` says; empty: as that says.
    """

    backend: str = ""
    python: Path | None = None
    requirements: Path | None = None
    image: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one project. Durations are seconds.

    Args:
        project: The project folder, absolute.
        state: `<project>/.kserve-local`; holds kubeconfig, state.db, logs/, run/.
        cache: `$XDG_CACHE_HOME/kserve-local`: models, environments; shared by projects. With
            `$KSERVE_LOCAL_HOME` both are below it: `projects/<name>-<digest of the path>`, `cache`.
        runtime: Short private folder for Unix sockets (paths over 100 bytes do not bind).
        runtime_images: Whose images run in Docker for KServe's runtimes: `local` (ours, built here)
            or `upstream` (those that the runtimes name).
        gpu: Which GPUs Pods can have: `auto` (all), `none`, or their numbers with commas.
        simulate_gpus: How many NVIDIA GPUs to pretend instead, for trying out scheduling.
        standby / standby_memory_bytes: Whether Pods in Docker leave a paused one like them for the
            next start, and how much memory all of those may hold.
        gateway_port / api_port: None means `auto`: any free port.
        max_held_requests: Requests one revision may hold while waking; beyond it 503.
        seed: Has the gateway repeat its draws from one start to the next; None: they differ.
        mirrors: `gs://bucket/` -> folder; longest prefix wins.
        claims: PersistentVolumeClaim name -> folder, for `pvc://`.
        scaling_speed: How many times faster than a cluster's the autoscaler's clock runs.
        scale_to_zero_grace: In place of the ConfigMap's `scale-to-zero-grace-period`; None: that.
        memory_budget_bytes: What all replicas together may hold before idle services are scaled to
            zero (`resourcesBudget.memory`); None: no limit.
        pinned: InferenceServices that stay whatever the budget says (`services.NAME.pin`).
        debug_ports: InferenceService -> port for an IDE (`services.NAME.debug.port`); None: any.
        warnings: What of the file has no effect, or another one than one may think.
        problems: What of the file is wrong and was left out (`load_what_is_right` only).
    """

    project: Path
    state: Path
    cache: Path
    runtime: Path
    name: str = "default"
    namespace: str = "default"
    resources: tuple[Path, ...] = ()
    ignore: tuple[str, ...] = ()
    backend: str = "auto"
    runtime_images: str = "local"
    gpu: str = "auto"
    simulate_gpus: int = 0
    standby: bool = True
    standby_memory_bytes: int = 1 << 30
    gateway_host: str = "127.0.0.1"
    gateway_port: int | None = 8080
    gateway_domain: str = "example.com"
    max_held_requests: int = 1000
    request_timeout: float = 300.0
    seed: int | None = None
    api_port: int | None = 8089
    auth_token: str = ""
    watch: bool = True
    replay: bool = True
    watching: WatchSettings = field(default_factory=WatchSettings)
    offline: bool = False
    mirrors: Mapping[str, Path] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, ImageSource] = field(default_factory=dict)
    runtimes: Mapping[str, RuntimeConfig] = field(default_factory=dict)
    progress_deadline: float = 600.0
    scaling_speed: float = 1.0
    scale_to_zero_grace: float | None = None
    memory_budget_bytes: int | None = None
    pinned: frozenset[str] = frozenset()
    requests: RequestsConfig = RequestsConfig()
    debug_ports: Mapping[str, int | None] = field(default_factory=dict)
    log_max_bytes: int = 10 * 1024 * 1024
    log_files: int = 3
    storage_env: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    verbose: int = 0

    def may_use(self, backend: str) -> bool:
        """Whether Pods may run in `backend`: the project's, or that of one of its runtimes."""
        chosen = {self.backend, *(r.backend for r in self.runtimes.values() if r.backend)}
        return bool(chosen & {"auto", backend})

    def needs(self, backend: str) -> bool:
        """Whether Pods can run nowhere else than in `backend`, all or those of a runtime."""
        return backend in {self.backend, *(r.backend for r in self.runtimes.values())}

    @property
    def calls_socket(self) -> Path:
        """Where the gateway is told of calls within Pods."""
        return self.runtime / "calls.sock"

    @property
    def run_dir(self) -> Path:
        """Run files: `supervisor.json`, one folder a Pod, the gateway's."""
        return self.state / "run"

    @property
    def log_dir(self) -> Path:
        """`logs/<pod>/<container>.log`."""
        return self.state / "logs"

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig, mode 0600."""
        return self.state / "kubeconfig"

    @property
    def database(self) -> Path:
        """The store's SQLite file."""
        return self.state / "state.db"


_DURATION = re.compile(
    r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m(?!s))?"
    r"(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?"
)


def parse_duration(text: str | int | float, *, what: str) -> float:
    """Return seconds of `90`, `1.5`, `300s`, `5m`, `1h30m`, `50ms`.

    Raises:
        Invalid: Not a duration; the message names `what`.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text)
    text = str(text).strip()
    try:
        return float(text)
    except ValueError:
        pass
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise Invalid(f'{what}: "{text}" is not a duration; write for example 300s, 5m or 50ms')
    part = {k: float(v) for k, v in match.groupdict().items() if v}
    hours, minutes = part.get("h", 0.0), part.get("m", 0.0)
    return hours * 3600 + minutes * 60 + part.get("s", 0.0) + part.get("ms", 0.0) / 1000


# Known keys of kserve-local.yaml. True: used now; False: belongs to a part that is not there yet,
# which a warning says; a nested table: a mapping with those keys; "*": any keys.
_KEYS: dict[str, Any] = {
    "name": True,
    "kserveVersion": True,
    "namespace": True,
    "resources": True,
    "ignore": True,
    "backend": True,
    "runtimeImages": True,
    "gpu": True,
    "simulateGpus": True,
    "standby": {"enabled": True, "memory": True},
    "gateway": {
        "host": True,
        "port": True,
        "domain": True,
        "maxHeldRequests": True,
        "requestTimeout": True,
    },
    "requests": {
        "enabled": True,
        "keep": True,
        "maxBytes": True,
        "redactHeaders": True,
        "redactFields": True,
    },
    "api": {"port": True, "webUi": False},
    "auth": {"token": True},
    "watch": {
        "enabled": True,
        "debounce": True,
        "poll": True,
        "ignore": True,
        "onCodeChange": True,
        "onModelChange": True,
        "onYamlChange": True,
    },
    "storage": {
        "cacheDir": True,
        "maxSize": False,
        "offline": True,
        "s3": {"endpoint": True, "profile": True, "anonymous": True, "region": True},
        "mirrors": "*",
        "claims": "*",
    },
    "runtimes": "*",
    "images": "*",
    "llm": False,
    "resourcesBudget": {"memory": True, "gpuMemory": False},
    "autoscaling": {"scaleToZeroGrace": True, "speed": True},
    "services": "*",
    "logger": False,
    "telemetry": True,
    "profiles": "*",
}


def _check_keys(data: Mapping[str, Any], keys: Mapping[str, Any], at: str) -> list[str]:
    """Return warnings for keys that have no effect yet; raise Invalid for unknown ones."""
    warnings = []
    for key, value in data.items():
        path = f"{at}{key}"
        if key not in keys:
            near = difflib.get_close_matches(str(key), [str(k) for k in keys], n=1)
            guess = (
                f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(sorted(keys))}"
            )
            raise Invalid(f'{CONFIG_FILE}: unknown key "{path}"{guess}')
        known = keys[key]
        if known is False:
            warnings.append(f"{CONFIG_FILE}: {path} has no effect in this version")
        elif isinstance(known, dict):
            if value is not None and not isinstance(value, Mapping):
                raise Invalid(f'{CONFIG_FILE}: "{path}" must hold keys such as {", ".join(known)}')
            warnings += _check_keys(value or {}, known, f"{path}.")
        elif known == "*" and value is not None and not isinstance(value, Mapping):
            raise Invalid(f'{CONFIG_FILE}: "{path}" must be a mapping')
    return warnings


def _port(value: object, *, what: str) -> int | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit():
        raise Invalid(f'{what}: "{value}" is not a port; write a number from 1 to 65535, or auto')
    port = int(value)
    if not 0 < port < 65536:
        raise Invalid(f"{what}: {port} is not a port; write a number from 1 to 65535, or auto")
    return port


def _expand(value: Any, environ: Mapping[str, str], at: str) -> Any:
    """Replace `${NAME}` in all strings; an unset name is an error: no empty token slips in."""
    if isinstance(value, str):

        def one(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in environ:
                raise Invalid(f"{CONFIG_FILE}: {at} uses ${{{name}}}, which is not set")
            return environ[name]

        return re.sub(r"\$\{(\w+)\}", one, value)
    if isinstance(value, dict):
        return {k: _expand(v, environ, f"{at}.{k}" if at else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, environ, f"{at}[{i}]") for i, v in enumerate(value)]
    return value


def read_config(path: Path, environ: Mapping[str, str], profile: str = "") -> dict[str, Any]:
    """Return the file's content, `${NAME}` replaced and the profile merged over it; {} if absent.

    Raises:
        Invalid: Not YAML, not a mapping, an unset variable or an unknown profile.
    """
    return _expanded(_read(path, profile), environ)


def _expanded(data: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    return dict(_expand({k: v for k, v in data.items() if k != "profiles"}, environ, ""))


def _read(path: Path, profile: str) -> dict[str, Any]:
    """Return the file's content with the profile merged over it, `${NAME}` as written."""
    if not path.is_file():
        if profile:
            raise Invalid(f'profile "{profile}": there is no {CONFIG_FILE} in {path.parent}')
        return {}
    import yaml

    try:
        data = yaml.load(
            path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except OSError as error:
        raise Invalid(f"{path.name}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise Invalid(f"{path.name}{where}: not valid YAML: {problem}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise Invalid(f"{path.name}: must be a mapping with keys such as name, resources, gateway")
    if profile:
        profiles = data.get("profiles") or {}
        if profile not in profiles:
            names = ", ".join(profiles) or "none"
            raise Invalid(f'profile "{profile}" is not in {path.name}; defined: {names}')
        return _merged(data, profiles[profile] or {})
    return dict(data)


LIVE = frozenset(
    {
        "resources",
        "ignore",
        "images",
        "runtimes",
        "watch",
        "requests",
        "storage.mirrors",
        "storage.claims",
    }
)
"""Keys, as `fingerprint` names them, that a project takes over while it runs and is watched."""

_READ_EACH_TIME = frozenset({"name", "namespace", "resources", "ignore", "profiles"})
"""Keys of the configuration that the command line reads anew; the rest is the supervisor's."""


def fingerprint(
    project: Path,
    *,
    environ: Mapping[str, str] | None = None,
    profile: str = "",
    whole: bool = False,
) -> dict[str, str]:
    """Return key -> digest of what `kserve-local.yaml` says to a supervisor, to find changes.

    Args:
        whole: With the keys that the command line reads each time.

    Raises:
        Invalid: The file cannot be read.
    """
    data = dict(
        read_config(project / CONFIG_FILE, os.environ if environ is None else environ, profile)
    )
    storage = data.get("storage")
    if isinstance(storage, Mapping):
        for part in ("mirrors", "claims"):
            if part in storage:
                data[f"storage.{part}"] = storage[part]
        data["storage"] = {k: v for k, v in storage.items() if k not in ("mirrors", "claims")}
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for key, value in data.items()
        if whole or key not in _READ_EACH_TIME
    }


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, Mapping)
        out[key] = _merged(old, value) if both and isinstance(old, dict) else value
    return out


def default_python(project: Path, environ: Mapping[str, str]) -> Path:
    """Return what `python` means in a project: its `.venv`, else `$VIRTUAL_ENV`, else ours."""
    for folder in (project / ".venv", Path(environ.get("VIRTUAL_ENV") or "/nonexistent")):
        candidate = folder / "bin" / "python"
        if candidate.exists():
            return candidate
    return Path(sys.executable)


def runtime_folder(state: Path, environ: Mapping[str, str]) -> Path:
    """Return the short private folder for this project's Unix sockets (made by `statedir`)."""
    digest = hashlib.sha256(str(state).encode()).hexdigest()[:12]
    base = environ.get("XDG_RUNTIME_DIR")
    if base and len(base) < 60 and os.access(base, os.W_OK):
        return Path(base) / "kserve-local" / digest
    return Path(tempfile.gettempdir()) / f"kserve-local-{os.getuid()}" / digest


def load(
    project: Path,
    *,
    environ: Mapping[str, str] | None = None,
    profile: str = "",
    files: Sequence[str] = (),
    **flags: Any,
) -> Settings:
    """Return the settings of a project folder.

    Args:
        project: The folder; must exist.
        files: `-f` arguments; they replace `resources`. Relative to the working directory.
        flags: `Settings` fields given on the command line (None: not given); ports may be "auto".

    Raises:
        UsageError: The folder does not exist, or a port of the flags is none.
        Invalid: `kserve-local.yaml` or a value is wrong; the message names the key.
    """
    environ = os.environ if environ is None else environ
    project = _folder_of(project)
    data = read_config(project / CONFIG_FILE, environ, profile)
    return _built(project, data, environ, files, flags)


def load_what_is_right(
    project: Path,
    *,
    environ: Mapping[str, str] | None = None,
    profile: str = "",
    files: Sequence[str] = (),
    **flags: Any,
) -> Settings:
    """Return the settings of a project whose `kserve-local.yaml` may be wrong by now.

    For what stops a project or talks to one that runs: all that needs is the folder. Each key that
    is right counts, as for `load`; what is wrong with the others is in `Settings.problems`.

    Raises:
        UsageError: The folder does not exist, or a flag is wrong.
    """
    environ = os.environ if environ is None else environ
    project = _folder_of(project)
    problems: list[str] = []
    data: dict[str, Any] = {}
    for name in dict.fromkeys((profile, "")):
        try:
            data = _read(project / CONFIG_FILE, name)
            break
        except Invalid as error:
            problems.append(error.message)
    right: dict[str, Any] = {}
    # The token first: whether gateway.host is right depends on it.
    for key in sorted(data, key=lambda key: key != "auth"):
        try:
            one = _expanded({key: data[key]}, environ)
            _built(project, {**right, **one}, environ, (), {})
            right |= one
        except Invalid as error:
            problems.append(error.message)
    built = _built(project, right, environ, files, flags)
    return replace(built, problems=tuple(dict.fromkeys(problems)))


def _folder_of(project: Path) -> Path:
    try:
        if project.is_file():
            raise UsageError(
                f'"{project}" is a file; a project is a folder',
                hint=f"kserve-local up -f {shlex.quote(str(project))}",
            )
        if not project.is_dir():
            raise UsageError(f'project folder "{project}" does not exist')
        return project.resolve(strict=True)
    except PermissionError as error:
        raise UsageError(f'project folder "{project}": {error.strerror}') from error


def _built(
    project: Path,
    data: Mapping[str, Any],
    environ: Mapping[str, str],
    files: Sequence[str],
    flags: Mapping[str, Any],
) -> Settings:
    """Return the settings that the file's `data` and the flags make."""
    warnings = _check_keys(data, _KEYS, "")
    gateway, api = data.get("gateway") or {}, data.get("api") or {}
    storage, watch = data.get("storage") or {}, data.get("watch") or {}

    def folder(value: object) -> Path:
        return (project / Path(str(value)).expanduser()).resolve()

    home = environ.get("KSERVE_LOCAL_HOME")
    cache_base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = project / ".kserve-local"
    if home:
        digest = hashlib.sha256(str(project).encode()).hexdigest()[:12]
        state = Path(home).expanduser().resolve() / "projects" / f"{project.name}-{digest}"
    resources = tuple(folder(r) for r in _list(data, "resources"))
    if files:
        resources = tuple(Path(f).expanduser().resolve() if f != "-" else Path("-") for f in files)
    values: dict[str, Any] = {
        "project": project,
        "state": state,
        "cache": Path(home).expanduser().resolve() / "cache"
        if home
        else cache_base / "kserve-local",
        "runtime": runtime_folder(state, environ),
        "name": str(data.get("name") or project.name),
        "namespace": str(data.get("namespace") or "default"),
        "resources": resources,
        "ignore": tuple(map(str, _list(data, "ignore"))),
        "backend": str(data.get("backend") or "auto"),
        "runtime_images": str(data.get("runtimeImages") or "local"),
        "gpu": data.get("gpu", "auto"),
        "simulate_gpus": data.get("simulateGpus", 0),
        **_standby(data.get("standby") or {}),
        **_scaling(data.get("autoscaling") or {}, data.get("resourcesBudget") or {}),
        "pinned": frozenset(
            str(k) for k, v in (data.get("services") or {}).items() if _service(str(k), v)["pin"]
        ),
        "debug_ports": _debug_ports(data.get("services") or {}),
        "gateway_host": str(gateway.get("host") or "127.0.0.1"),
        "gateway_port": gateway.get("port", 8080),
        "gateway_domain": str(gateway.get("domain") or "example.com"),
        "max_held_requests": _count(
            gateway.get("maxHeldRequests", 1000), "gateway.maxHeldRequests"
        ),
        "request_timeout": parse_duration(
            gateway.get("requestTimeout", 300), what=f"{CONFIG_FILE}: gateway.requestTimeout"
        ),
        "requests": _requests(data.get("requests") or {}),
        "api_port": api.get("port", 8089),
        "auth_token": str((data.get("auth") or {}).get("token") or ""),
        "watch": bool(watch.get("enabled", True)),
        "watching": _watching(watch),
        "offline": bool(storage.get("offline", False)),
        "mirrors": {str(k): folder(v) for k, v in (storage.get("mirrors") or {}).items()},
        "claims": {str(k): folder(v) for k, v in (storage.get("claims") or {}).items()},
        "storage_env": _storage_env(storage.get("s3") or {}),
        "images": {
            str(k): _image(str(k), v, folder) for k, v in (data.get("images") or {}).items()
        },
        "runtimes": {
            str(k): _runtime(str(k), v, folder) for k, v in (data.get("runtimes") or {}).items()
        },
    }
    values["warnings"] = (
        *warnings,
        *_frozen_files(values["images"]),
        *_idle_keys(data.get("services") or {}),
    )
    if storage.get("cacheDir"):
        values["cache"] = folder(storage["cacheDir"])
    values.update({k: v for k, v in flags.items() if v is not None})
    for name, flag, key in (
        ("gateway_port", "--port", "gateway.port"),
        ("api_port", "--api-port", "api.port"),
    ):
        if flags.get(name) is None:
            values[name] = _port(values[name], what=f"{CONFIG_FILE}: {key}")
            continue
        try:
            values[name] = _port(values[name], what=flag)
        except Invalid as error:
            raise UsageError(error.message) from error
    if values["backend"] not in BACKENDS:
        raise Invalid(f'backend "{values["backend"]}" is unknown; use auto, process or docker')
    if values["runtime_images"] not in ("local", "upstream"):
        raise Invalid(
            f'runtimeImages "{values["runtime_images"]}" is unknown; use local or upstream'
        )
    values["gpu"] = _gpu(values["gpu"])
    if type(values["simulate_gpus"]) is not int or not 0 <= values["simulate_gpus"] <= MOST_GPUS:
        raise Invalid(
            f'simulateGpus (--simulate-gpus): "{values["simulate_gpus"]}" is no number from 0 to '
            f"{MOST_GPUS}"
        )
    loopback = values["gateway_host"] in ("localhost", "::1") or str(
        values["gateway_host"]
    ).startswith("127.")
    if not loopback and not values["auth_token"]:
        raise Invalid(
            f'gateway.host "{values["gateway_host"]}" is reachable from other machines; '
            "set auth.token, or use 127.0.0.1"
        )
    return Settings(**values)


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise Invalid(f'{CONFIG_FILE}: "{key}" must be a list, e.g. {key}: [{value}]')
    return value


def _count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit():
        raise Invalid(f'{CONFIG_FILE}: {what}: "{value}" is not a number')
    return int(value)


def _gpu(value: object) -> str:
    """Return `auto`, `none`, or numbers with commas, each once.

    Raises:
        Invalid: It is none of them.
    """
    # YAML: 0 is a number, "0,1" a text, [0, 1] a list.
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    words = [word.strip() for word in text.split(",")]
    if text in ("auto", "none"):
        return text
    if not all(word.isdecimal() for word in words):
        raise Invalid(f'gpu (--gpu): "{text}" is not auto, none or numbers of GPUs, e.g. 0,1')
    return ",".join(dict.fromkeys(str(int(word)) for word in words))


def _requests(data: Mapping[str, Any]) -> RequestsConfig:
    """Return the settings of `requests`.

    Raises:
        Invalid: A value is none of its kind; for what is redacted a near miss would be a leak.
    """
    default = RequestsConfig()
    enabled = data.get("enabled", default.enabled)
    if not isinstance(enabled, bool):
        raise Invalid(f'{CONFIG_FILE}: requests.enabled: "{enabled}" is not true or false')
    return RequestsConfig(
        enabled=enabled,
        keep=_count(data.get("keep", default.keep), "requests.keep"),
        max_bytes=_size(data.get("maxBytes", default.max_bytes), "requests.maxBytes"),
        redact_headers=_names(data, "redactHeaders", re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")),
        redact_fields=_names(data, "redactFields", re.compile(r"(?:\$\.)?[^.\s]+(?:\.[^.\s]+)*")),
    )


def _names(data: Mapping[str, Any], key: str, form: re.Pattern[str]) -> tuple[str, ...]:
    values = _list(data, key)
    for value in values:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise Invalid(
                f'{CONFIG_FILE}: requests.{key}: "{value}" is no name; write e.g. '
                + ("x-api-key" if key == "redactHeaders" else "password or instances.*.ssn")
            )
    return tuple(values)


def _standby(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `standby`.

    Raises:
        Invalid: `memory` is no quantity.
    """
    found: dict[str, Any] = {"standby": bool(data.get("enabled", True))}
    if "memory" in data:
        found["standby_memory_bytes"] = _size(data["memory"], "standby.memory")
    return found


def _size(value: object, what: str) -> int:
    """Return the bytes of `2Gi`, `500M`, `1048576`.

    Raises:
        Invalid: It is no size.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?", str(value))
    if parts is None:
        raise Invalid(f'{CONFIG_FILE}: {what} "{value}" is no size; write e.g. 2Gi')
    unit = parts[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    power = "KMGT".index(unit[0]) + 1 if unit else 0
    return int(float(parts[1]) * base**power)


FASTEST = 20.0
"""Largest `autoscaling.speed`: figures come once a second of the autoscaler's clock."""


def _watching(watch: Mapping[str, Any]) -> WatchSettings:
    """Return the settings of `watch`.

    Raises:
        Invalid: A value is none of its kind.
    """
    chosen = {}
    for key, allowed in (
        ("onCodeChange", ("swap", "restart", "off")),
        ("onModelChange", ("rollout", "off")),
        ("onYamlChange", ("apply", "off")),
    ):
        # YAML 1.1 reads `off` as false.
        value = watch.get(key, allowed[0])
        value = "off" if value is False else value
        if value not in allowed:
            raise Invalid(f'{CONFIG_FILE}: watch.{key}: "{value}" is none of {", ".join(allowed)}')
        chosen[key] = str(value)
    poll = watch.get("poll", "auto")
    if poll not in ("auto", "never"):
        poll = parse_duration(poll, what=f"{CONFIG_FILE}: watch.poll")
    return WatchSettings(
        quiet=parse_duration(watch.get("debounce", 0.05), what=f"{CONFIG_FILE}: watch.debounce"),
        poll=poll,
        ignore=tuple(map(str, _list(watch, "ignore"))),
        code=chosen["onCodeChange"],
        model=chosen["onModelChange"] != "off",
        manifests=chosen["onYamlChange"] != "off",
    )


def _scaling(autoscaling: Mapping[str, Any], budget: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `autoscaling` and `resourcesBudget`.

    Raises:
        Invalid: A value is none of its kind.
    """
    found: dict[str, Any] = {}
    speed = autoscaling.get("speed")
    if speed is not None:
        if (
            isinstance(speed, bool)
            or not isinstance(speed, (int, float))
            or not (1 <= speed <= FASTEST)
        ):
            raise Invalid(
                f'{CONFIG_FILE}: autoscaling.speed "{speed}" is no number from 1 to {FASTEST:g}; '
                "10 makes the autoscaler's windows ten times shorter"
            )
        found["scaling_speed"] = float(speed)
    if autoscaling.get("scaleToZeroGrace") is not None:
        what = f"{CONFIG_FILE}: autoscaling.scaleToZeroGrace"
        grace = parse_duration(autoscaling["scaleToZeroGrace"], what=what)
        if grace < 0:
            raise Invalid(f"{what}: {grace:g} s is less than nothing")
        found["scale_to_zero_grace"] = grace
    memory = budget.get("memory")
    if memory is not None and memory != "auto":
        found["memory_budget_bytes"] = _size(memory, "resourcesBudget.memory")
    return found


_OF_SERVICES = ("pin", "env", "envFile", "python", "debug", "samples", "predictor")


def _service(name: str, value: object) -> dict[str, Any]:
    """Return the entry of `services`; `pin` and `debug` are what has an effect in this version."""
    data = dict(_mapping(value or {}, f'services."{name}"', _OF_SERVICES))
    data.setdefault("pin", False)
    if not isinstance(data["pin"], bool):
        raise Invalid(f'{CONFIG_FILE}: services."{name}".pin must be true or false')
    return data


def _idle_keys(services: Mapping[str, Any]) -> list[str]:
    return [
        f'{CONFIG_FILE}: services."{name}".{key} has no effect in this version'
        for name, value in services.items()
        for key in value or {}
        if key not in ("pin", "debug")
    ]


def _debug_ports(services: Mapping[str, Any]) -> dict[str, int | None]:
    """Return `services.NAME.debug.port` of those that have one."""
    found: dict[str, int | None] = {}
    for name, value in services.items():
        what = f'services."{name}".debug'
        debug = _mapping((value or {}).get("debug") or {}, what, ("port",))
        port = debug.get("port")
        if port == "auto":
            found[str(name)] = None
        elif port is not None:
            if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
                raise Invalid(f"{CONFIG_FILE}: {what}.port: {port!r} is no port, nor auto")
            found[str(name)] = port
    return found


def _storage_env(s3: Mapping[str, Any]) -> dict[str, str]:
    """Return `storage.s3` as the environment that the storage initializer understands."""
    env = {}
    if s3.get("endpoint"):
        env["AWS_ENDPOINT_URL"] = str(s3["endpoint"])
    if s3.get("profile"):
        env["AWS_PROFILE"] = str(s3["profile"])
    if s3.get("region"):
        env["AWS_DEFAULT_REGION"] = str(s3["region"])
    if s3.get("anonymous"):
        env["awsAnonymousCredential"] = "true"
    return env


def _mapping(value: object, what: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"{CONFIG_FILE}: {what} must hold keys out of {', '.join(keys)}")
    for key in value:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            guess = f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(keys)}"
            raise Invalid(f'{CONFIG_FILE}: unknown key "{key}" in {what}{guess}')
    return value


def _python(value: object, folder: Any, what: str) -> tuple[Path | None, Path | None]:
    """Read `python: PATH` or `python: {path, requirements}`; return (interpreter, requirements)."""
    if value is None:
        return None, None
    if isinstance(value, str):
        return _interpreter(value, folder), None
    data = _mapping(value, what, ("path", "requirements", "version"))
    python = _interpreter(str(data["path"]), folder) if data.get("path") else None
    return python, folder(data["requirements"]) if data.get("requirements") else None


def _interpreter(text: str, folder: Any) -> Path:
    # Not resolved: a virtual environment's python is a link whose own place says which it is.
    path = Path(text).expanduser()
    return path if path.is_absolute() else Path(os.path.normpath(folder(".") / path))


def _image(name: str, value: object, folder: Any) -> ImageSource:
    what = f'images."{name}"'
    data = _mapping(value, what, ("context", "command", "python", "requirements", "reload"))
    context = folder(data.get("context") or ".")
    if not context.is_dir():
        raise Invalid(f'{CONFIG_FILE}: {what}.context: folder "{context}" does not exist')
    command = data.get("command") or ()
    if isinstance(command, str):
        raise Invalid(f"{CONFIG_FILE}: {what}.command must be a list, e.g. [python, model.py]")
    python, requirements = _python(data.get("python"), folder, f"{what}.python")
    if data.get("requirements"):
        requirements = folder(data["requirements"])
    return ImageSource(
        context=context,
        command=tuple(map(str, command)),
        python=python,
        requirements=requirements,
        reload=tuple(map(str, data.get("reload") or ())),
    )


def _frozen_files(images: Mapping[str, ImageSource]) -> list[str]:
    """Return a warning for each single file in a `reload`: most editors save by putting a new file
    in its place, and a container goes on to see the one that it was given.
    """
    return [
        f'{CONFIG_FILE}: images."{name}".reload: {path} is a file; a container does not see the '
        "new one that most editors put in its place. Name the folder that it lies in"
        for name, source in images.items()
        for path in source.reload
        if (source.context / path).is_file()
    ]


def _runtime(name: str, value: object, folder: Any) -> RuntimeConfig:
    what = f'runtimes."{name}"'
    data = _mapping(value, what, ("backend", "python", "image"))
    python, requirements = _python(data.get("python"), folder, f"{what}.python")
    backend = str(data.get("backend") or "")
    if backend not in ("", *BACKENDS):
        raise Invalid(f'{what}.backend "{backend}" is unknown; use auto, process or docker')
    return RuntimeConfig(
        backend=backend,
        python=python,
        requirements=requirements,
        image=str(data.get("image") or ""),
    )
