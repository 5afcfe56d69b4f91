"""`validate --deep`: can the models be read, with the credentials that the files give?

Makes for each source the Pod that `up` would make, as far as its storage initializer goes: KServe's
webhook adds what the ServiceAccount and Secrets give, and the initializer is asked instead of told
to fetch. Nothing is downloaded; Secrets that are files lie in a private folder meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kserve_local.api import names, schema, scheme
from kserve_local.api.manifest import Document
from kserve_local.api.meta import Object, annotations_of, name_of, namespace_of
from kserve_local.api.review import FileReport, Finding, ModelSource, Project, Severity
from kserve_local.api.storage_uris import without_secrets
from kserve_local.backends.engine_images import engine_images
from kserve_local.controllers import pod_mutators, podspec
from kserve_local.controllers.environment import ConfigError, NodeFacts, Sources
from kserve_local.controllers.init_containers import InitFailed, image_request, plan_fetches
from kserve_local.controllers.modelcars import image_volumes
from kserve_local.controllers.pod_containers import (
    Interpreter,
    Surroundings,
    init_containers,
    is_played,
)
from kserve_local.controllers.pod_volumes import VolumePlaces
from kserve_local.errors import KServeLocalError
from kserve_local.interfaces.storage import StorageRequest
from kserve_local.project.project_files import base_folder
from kserve_local.settings import Settings
from kserve_local.storage.http import Limits
from kserve_local.storage.initializer import Initializer

_AT_A_TIME = 8
_PATIENCE = 20.0
# Less patient than a download: somebody looks at the terminal meanwhile.
_LIMITS = Limits(connect=5.0, stall=10.0, attempts=2, longest_wait=2.0)
# Nothing of a storage initializer depends on the machine.
_NODE = NodeFacts(name="kserve-local", host_ip="127.0.0.1", pod_ip="", cpu=1.0, memory_bytes=0)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is told of one source."""

    severity: Severity
    message: str
    details: tuple[str, ...] = ()


async def with_reachability(
    reports: Sequence[FileReport],
    files: Mapping[str, Sequence[Document]],
    settings: Settings,
    *,
    namespace: str,
    patience: float = _PATIENCE,
) -> list[FileReport]:
    """Return the reports with a finding for each source that cannot be read or holds nothing.

    Args:
        files: Path -> documents, as they were reviewed.
        namespace: Where objects go that name none.
        patience: Longest time for one source.
    """
    initializer = Initializer.of(
        settings, os.environ, limits=_LIMITS, images=engine_images(settings, os.environ)
    )
    with tempfile.TemporaryDirectory(prefix="kserve-local-") as folder:
        project = Project(files, namespace)
        checks = _Checks(project, settings, initializer, Path(folder), patience)
        async with asyncio.TaskGroup() as tasks:
            running = [
                [
                    tasks.create_task(checks.finding(source), name=f"check-{number}")
                    for number, source in enumerate(report.sources)
                ]
                for report in reports
            ]
    return [
        report.plus(f for task in of_report if (f := task.result()) is not None)
        for report, of_report in zip(reports, running, strict=True)
    ]


class _Checks:
    """The checks of one call; the same source with the same credentials is asked once."""

    def __init__(
        self,
        project: Project,
        settings: Settings,
        initializer: Initializer,
        folder: Path,
        patience: float,
    ) -> None:
        self._project = project
        self._settings = settings
        self._initializer = initializer
        self._folder = folder
        self._patience = patience
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._asked: dict[object, asyncio.Lock] = {}
        self._answers: dict[object, _Answer | None] = {}

    async def finding(self, source: ModelSource) -> Finding | None:
        """Return what is wrong with a source, at its field."""
        answer = await self._answer(source)
        if answer is None:
            return None
        line, column = source.document.position_of(source.path)
        return Finding(
            line=line,
            column=column,
            severity=answer.severity,
            object=f"{source.object['kind']}/{name_of(source.object)}",
            field=schema.dotted(source.path),
            message=answer.message,
            source="storage",
            details=answer.details,
        )

    async def _answer(self, source: ModelSource) -> _Answer | None:
        try:
            request = self._request(source)
        except (KServeLocalError, ConfigError, InitFailed) as error:
            return _refusal(source.uri, error)
        if request is None:
            return None
        env = tuple(sorted(request.env.items()))
        key = (request.uri, env, request.base, request.logins, request.pull)
        async with self._asked.setdefault(key, asyncio.Lock()):
            if key not in self._answers:
                async with self._slots:
                    self._answers[key] = await self._ask(request)
        return self._answers[key]

    async def _ask(self, request: StorageRequest) -> _Answer | None:
        shown = without_secrets(request.uri)
        try:
            async with asyncio.timeout(self._patience):
                asked = await self._initializer.check(request)
        except TimeoutError:
            return _Answer("error", f"storageUri {shown}: no answer within {self._patience:g} s")
        except KServeLocalError as error:
            return _refusal(request.uri, error)
        if not asked:
            return _Answer("note", f"storageUri {shown}: not checked, offline mode is on")
        return None

    def _request(self, source: ModelSource) -> StorageRequest | None:
        """Return what the storage initializer would be asked for. Makes small files.

        None where a `storage` block names a claim: it is mounted.

        Raises:
            KServeLocalError: KServe's webhook refuses the Pod.
            ConfigError, InitFailed: Its init container cannot be started.
        """
        base = base_folder(source.document.path, self._settings.project)
        lookup = self._project.lookup
        config = self._project.config
        pod = pod_mutators.mutate(self._pod(source), config=config, lookup=lookup)
        secrets = {name_of(o): o for o in lookup(scheme.SECRET.id, namespace_of(pod))}
        maps = {name_of(o): o for o in lookup(scheme.CONFIG_MAP.id, namespace_of(pod))}
        places = VolumePlaces(
            folder=Path(tempfile.mkdtemp(dir=self._folder)),
            project=self._settings.project,
            claims=self._settings.claims,
        )
        around = Surroundings(
            settings=self._settings,
            node=_NODE,
            sources=Sources(secret=secrets.get, config_map=maps.get),
            interpreter=Interpreter(path=Path(sys.executable), has_kserve=False),
            insecure_registries=config.storage_initializer.oci_insecure_registry,
        )
        for volume in image_volumes(pod):
            return replace(image_request(pod, volume.image, around, pull=volume.pull), base=base)
        for container in init_containers(pod):
            if is_played(pod, str(container.get("name"))):
                fetches = plan_fetches(pod, container, places, around)
                return StorageRequest(
                    fetches.pairs[0][0],
                    env=fetches.env,
                    base=base,
                    logins=fetches.logins,
                    pull=fetches.pull,
                )
        # A claim is mounted, not fetched.
        return StorageRequest(source.uri, base=base) if source.uri else None

    def _pod(self, source: ModelSource) -> Object:
        """Return as much of the component's Pod as its storage depends on."""
        obj, component = source.object, source.component
        annotations = {**annotations_of(obj), **(component.get("annotations") or {})}
        if source.uri:
            annotations[names.SOURCE_URI] = source.uri
            if component.get("storageContainerName"):
                annotations[names.STORAGE_CONTAINER_NAME] = component["storageContainerName"]
        else:
            containers = self._project.lookup(scheme.CLUSTER_STORAGE_CONTAINER.id, None)
            annotations |= podspec.storage_annotations(component, containers, annotations)
        spec: dict[str, Any] = {"containers": [{"name": names.PREDICTOR_CONTAINER}]}
        account = str(component.get("serviceAccountName") or "")
        if account:
            spec["serviceAccountName"] = account
        accounts = self._project.lookup(scheme.SERVICE_ACCOUNT.id, namespace_of(obj))
        found = next((a for a in accounts if name_of(a) == (account or "default")), None)
        pull = component.get("imagePullSecrets") or (found or {}).get("imagePullSecrets")
        if pull:
            spec["imagePullSecrets"] = pull
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name_of(obj),
                "namespace": namespace_of(obj),
                "uid": "",
                "labels": {names.ISVC_LABEL: name_of(obj)},
                "annotations": annotations,
            },
            "spec": spec,
        }


def _refusal(uri: str, error: Exception) -> _Answer:
    """Return the answer for an error, in the words that `up` has for it."""
    message = error.message if isinstance(error, KServeLocalError) else str(error)
    first, *details = message.splitlines() or [type(error).__name__]
    if isinstance(error, KServeLocalError) and error.hint:
        details.append(f"Next step: {error.hint}")
    where = f"storageUri {without_secrets(uri)}: " if uri else ""
    return _Answer("error", f"{where}{first}", tuple(details))
