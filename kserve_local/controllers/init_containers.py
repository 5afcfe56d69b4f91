"""Carries out a Pod's `storage-initializer` or `modelcar-init` init container through the
`StorageInitializer` seam.

Reads the container's `source target` argument pairs, environment and mounted credentials; writes
its log file and gives what was fetched. Copies the contract of KServe's image: pairs run one after
the other, a failure is exit code 1 with the reason as last log line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import orjson

from kserve_local.api import names, storage_uris
from kserve_local.api.meta import Object, annotations_of, name_of, uid_of
from kserve_local.controllers.credentials import storage_config_env
from kserve_local.controllers.environment import resolve_command, resolve_env
from kserve_local.controllers.modelcars import modelcar_of
from kserve_local.controllers.oci_models import INSECURE_ENV
from kserve_local.controllers.pod_containers import Surroundings, pull_policy
from kserve_local.controllers.pod_volumes import (
    Content,
    VolumePlaces,
    make_mounts,
    rewrite_paths,
)
from kserve_local.controllers.pull_secrets import logins
from kserve_local.errors import KServeLocalError, NoModel
from kserve_local.interfaces.backend import Login, Progress
from kserve_local.interfaces.storage import StorageInitializer, StorageRequest

# One line and one Event at most in this many seconds; a fetch reports many times a second.
_LINE_EVERY = 1.0
_EVENT_EVERY = 10.0
_STATE_FILE = ".storage.json"


@dataclass(frozen=True, slots=True)
class Fetches:
    """What an init container is to fetch: `(source, target)` pairs and the environment.

    Args:
        logins, pull: How an image is pulled; see `StorageRequest`.
        linked: See `Content.linked`.
        pod: Its uid.
    """

    pairs: tuple[tuple[str, str], ...]
    env: Mapping[str, str]
    base: Path
    logins: tuple[Login, ...] = ()
    pull: Literal["Always", "IfNotPresent"] | None = None
    linked: bool = False
    pod: str = ""


class InitFailed(Exception):
    """The init container failed; the text is its last log lines.

    Args:
        is_there: The source could be read, and holds no model.
    """

    def __init__(self, text: str, *, is_there: bool = False) -> None:
        super().__init__(text)
        self.is_there = is_there


def base_folder(pod: Object, project: Path) -> Path:
    """Return where relative storageUris start: the folder of the YAML file, else the project."""
    manifest = annotations_of(pod).get(names.MANIFEST, "")
    return (project / manifest).parent if manifest else project


def plan_fetches(
    pod: Object, container: Mapping[str, Any], places: VolumePlaces, around: Surroundings
) -> Fetches:
    """Return what to fetch and with which environment. Blocking: makes credential volumes.

    Raises:
        ConfigError: A Secret or ConfigMap is missing, in kubelet's words.
        InitFailed: The arguments are no pairs.
    """
    car = modelcar_of(pod, str(container.get("name")))
    if car is not None:
        request = image_request(pod, car.image, around, pull=pull_policy(car.container))
        return Fetches(
            pairs=((request.uri, car.target),),
            env=request.env,
            base=base_folder(pod, around.settings.project),
            logins=request.logins,
            pull=request.pull,
            linked=True,
        )
    env = resolve_env(pod, container, around.sources, around.node)
    _, args = resolve_command(container, env)
    if not args or len(args) % 2:
        raise InitFailed(f"expected pairs of source and target, got {len(args)} arguments")
    pairs = tuple(zip(args[::2], args[1::2], strict=True))
    targets = {target for _, target in pairs}
    # The volumes that receive the models are the agent's own business (pod_volumes.Content).
    credentials = [
        m
        for m in container.get("volumeMounts") or ()
        if not any(_covers(str(m.get("mountPath") or ""), target) for target in targets)
    ]
    mounts = make_mounts(pod, {**container, "volumeMounts": credentials}, places, around.sources)
    return Fetches(
        pairs=pairs,
        env=rewrite_paths(storage_config_env(env), mounts),
        base=base_folder(pod, around.settings.project),
        pod=uid_of(pod),
    )


def image_request(pod: Object, image: str, around: Surroundings, *, pull: str) -> StorageRequest:
    """Return what storage is asked for to have an image's model, as a node would pull it.

    Args:
        pull: `imagePullPolicy`.
    """
    return StorageRequest(
        uri=f"oci://{image}",
        env={INSECURE_ENV: "true"} if around.insecure_registries else {},
        logins=logins(pod, image, around.sources.secret)[0],
        pull="Always" if pull == "Always" else "IfNotPresent",
    )


def _covers(mount_path: str, target: str) -> bool:
    mount = mount_path.rstrip("/")
    return target == mount or target.startswith(f"{mount}/")


def _megabytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def progress_line(progress: Progress) -> str:
    """Return one line of progress: what, bytes done and of how many, and the rate."""
    parts = [progress.message or progress.phase]
    if progress.done is not None:
        of = f" of {_megabytes(progress.total)}" if progress.total else ""
        parts.append(f"{_megabytes(progress.done)}{of}")
    if progress.rate:
        parts.append(f"{_megabytes(progress.rate)}/s")
    return ", ".join(parts)


class _Log:
    """The init container's log, and its coalesced Events."""

    def __init__(self, path: Path, event: Callable[[str], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._event = event
        self._line_at = 0.0
        self._last = ""
        self._held_back = ""
        self._event_at = time.monotonic()

    def line(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._file.write(f"{stamp} {text}\n")
        self._file.flush()

    def report(self, progress: Progress) -> None:
        now = time.monotonic()
        self._held_back = progress_line(progress)
        if now - self._line_at >= _LINE_EVERY:
            self._line_at = now
            self.catch_up()
        if now - self._event_at >= _EVENT_EVERY:
            self._event_at = now
            self._event(progress_line(progress))

    def catch_up(self) -> None:
        """Write the newest progress, unless it stands there already: "next try in 4 s" is true
        once.
        """
        if self._held_back != self._last:
            self._last = self._held_back
            self.line(self._last)

    def close(self) -> None:
        self._file.close()


async def fetch_all(
    fetches: Fetches,
    storage: StorageInitializer,
    *,
    log_path: Path,
    event: Callable[[str], None],
) -> tuple[Content, ...]:
    """Fetch every pair and return what lies where.

    Args:
        event: Takes a progress line now and then, for an Event.

    Raises:
        InitFailed: In the words of the storage error, with its hint as next step.
    """
    log = _Log(log_path, event)
    try:
        contents = []
        for source, target in fetches.pairs:
            shown = storage_uris.without_secrets(source)
            log.line(f"Copying contents of {shown} to {target}")
            started = time.monotonic()
            try:
                fetched = await storage.fetch(
                    StorageRequest(
                        uri=source,
                        env=fetches.env,
                        base=fetches.base,
                        logins=fetches.logins,
                        pull=fetches.pull,
                        holder=fetches.pod,
                    ),
                    log.report,
                )
            except KServeLocalError as error:
                lines = [error.message]
                if error.hint:
                    lines.append(f"Next step: {error.hint}")
                for line in lines:
                    log.line(line)
                there = isinstance(error, NoModel)
                raise InitFailed("\n".join(lines), is_there=there) from error
            # How it ended may be what matters: that the cached copy could not be compared.
            log.catch_up()
            took = time.monotonic() - started
            how = (
                "already here"
                if fetched.cached and not fetched.transferred_bytes
                else f"{_megabytes(fetched.transferred_bytes)} transferred"
            )
            log.line(f"Successfully copied {shown} to {target} ({how}, {took:.1f} s)")
            contents.append(Content(target, fetched.path, linked=fetches.linked))
        return tuple(contents)
    finally:
        log.close()


def remember(folder: Path, done: Mapping[str, tuple[Content, ...]]) -> None:
    """Write which init containers are done and what they fetched, for a later supervisor."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        name: [{"target": c.target, "path": str(c.path), "linked": c.linked} for c in contents]
        for name, contents in done.items()
    }
    temporary = folder / f"{_STATE_FILE}.new"
    temporary.write_bytes(orjson.dumps(content))
    temporary.rename(folder / _STATE_FILE)


def recall(folder: Path) -> dict[str, tuple[Content, ...]]:
    """Return what `remember` wrote; nothing when it is missing, broken, or content has vanished."""
    try:
        content = orjson.loads((folder / _STATE_FILE).read_bytes())
        found = {
            str(name): tuple(
                Content(str(c["target"]), Path(c["path"]), bool(c.get("linked"))) for c in contents
            )
            for name, contents in content.items()
        }
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return {}
    return {n: cs for n, cs in found.items() if all(c.path.exists() for c in cs)}


def log_path(log_dir: Path, pod: Object, container: Mapping[str, Any]) -> Path:
    """Return the init container's log file."""
    return log_dir / name_of(pod) / f"{container.get('name')}.log"
