"""What the dev loop sees of the Pods, and does to them (`devloop.workloads.Workloads`)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from kserve_local.api import names
from kserve_local.api.meta import (
    Key,
    Object,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from kserve_local.api.scheme import DEPLOYMENT, INFERENCE_SERVICE, POD
from kserve_local.api.workloads import replicas_of
from kserve_local.controllers import isvc_knative, pod_state
from kserve_local.controllers.endpoints import endpoint_of
from kserve_local.controllers.init_containers import base_folder
from kserve_local.controllers.modelcars import sources_of
from kserve_local.controllers.reload import replace_pods
from kserve_local.controllers.standins import source_for
from kserve_local.devloop.workloads import CodeUse, ModelUse
from kserve_local.errors import KServeLocalError, NotFound
from kserve_local.interfaces.backend import Backend
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from kserve_local.settings import ImageSource, Settings
from kserve_local.storage.local import claim_path, local_path, mirrored
from kserve_local.store.events import EventRecorder
from kserve_local.store.store import Store, Write
from kserve_local.supervisor.broken_pods import broken

_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
_GONE = CodeVerdict()


class DevWorkloads:
    """The Pods of a project, as far as its files concern them."""

    def __init__(
        self, settings: Settings, store: Store, backend: Backend, recorder: EventRecorder
    ) -> None:
        self._settings = settings
        self._store = store
        self._backend = backend
        self._recorder = recorder
        self._news = asyncio.Event()
        store.on_commit(self._committed)

    def _committed(self, write: Write) -> None:
        if write.record.key.resource == POD.id and write.type != "MODIFIED":
            self._news.set()

    async def changed(self) -> None:
        """See `Workloads.changed`."""
        await self._news.wait()
        self._news.clear()

    def contexts(self) -> Collection[Path]:
        """See `Workloads.contexts`."""
        return {source.context for source in self._settings.images.values()}

    def code(self) -> Sequence[CodeUse]:
        """See `Workloads.code`."""
        return list(self._code())

    def _code(self) -> Iterator[CodeUse]:
        if not self._settings.images:
            return
        for pod, deployment in self._pods():
            ready = pod_state.is_ready(pod)
            docker = annotations_of(pod).get(names.BACKEND) == "docker"
            for container in pod["spec"].get("containers") or ():
                source = source_for(str(container.get("image") or ""), self._settings.images)
                if source is None:
                    continue
                fixed = ""
                if docker and not source.reload:
                    fixed = "the image holds a copy of the code (images.*.reload mounts it)"
                yield CodeUse(
                    replica=uid_of(pod),
                    pod=name_of(pod),
                    namespace=namespace_of(pod),
                    service=labels_of(pod).get(names.ISVC_LABEL, ""),
                    component=labels_of(pod).get(names.COMPONENT_LABEL, ""),
                    container=str(container["name"]),
                    context=source.context,
                    argv=_argv(source, container),
                    ready=ready,
                    fixed=fixed,
                    deployment=deployment,
                )

    def models(self) -> Sequence[ModelUse]:
        """See `Workloads.models`."""
        return list(self._models())

    def _models(self) -> Iterator[ModelUse]:
        for pod, deployment in self._pods():
            base = base_folder(pod, self._settings.project)
            for init in pod["spec"].get("initContainers") or ():
                for uri in sources_of(pod, init):
                    path = self._place(uri, base)
                    if path is not None:
                        yield ModelUse(
                            pod=name_of(pod),
                            namespace=namespace_of(pod),
                            service=labels_of(pod).get(names.ISVC_LABEL, ""),
                            component=labels_of(pod).get(names.COMPONENT_LABEL, ""),
                            path=path,
                            deployment=deployment,
                        )

    def _place(self, uri: str, base: Path) -> Path | None:
        """Return where a storageUri's files lie on this machine, None if nowhere."""
        try:
            path = mirrored(uri, self._settings.mirrors) or local_path(uri, base)
            if path is None and uri.startswith("pvc://"):
                path = claim_path(uri, self._settings.claims)
        except KServeLocalError:
            return None  # the Pod's own status says why
        return path

    def _pods(self) -> Iterator[tuple[Object, Key]]:
        """Yield the Pods that are not ending, and what keeps them."""
        for pod in self._store.list(POD.id):
            if pod_state.is_terminating(pod):
                continue
            for owner in pod["metadata"].get("ownerReferences") or ():
                if owner.get("controller") and owner.get("kind") == DEPLOYMENT.kind:
                    yield pod, Key(DEPLOYMENT.id, namespace_of(pod), str(owner["name"]))

    async def check(self, use: CodeUse, change: CodeChange) -> CodeVerdict:
        """See `Workloads.check`."""
        try:
            return await self._backend.check_code(use.replica, use.container, change)
        except NotFound:
            return _GONE
        except KServeLocalError as error:
            return CodeVerdict(refused=error.message)

    async def commit(self, use: CodeUse, change: CodeChange) -> CodeVerdict:
        """See `Workloads.commit`."""
        try:
            return await self._backend.commit_code(use.replica, use.container, change)
        except NotFound:
            return _GONE
        except KServeLocalError as error:
            return CodeVerdict(refused=error.message)

    async def replace(self, deployment: Key, annotation: str, digest: str) -> bool:
        """See `Workloads.replace`."""
        found = self._store.find(deployment)
        if found is None:
            return False
        return await replace_pods(self._store, found, annotation, digest)

    async def replaced(self, deployment: Key, *, patience: float) -> bool:
        """See `Workloads.replaced`."""
        try:
            async with asyncio.timeout(patience):
                return await self._until_rolled(deployment)
        except TimeoutError:
            return False

    async def _until_rolled(self, deployment: Key) -> bool:
        async with self._store.watch(DEPLOYMENT.id, namespace=deployment.namespace) as changes:
            async for event in changes:
                if name_of(event.object) != deployment.name:
                    continue
                if event.type == "DELETED":
                    return False
                if _is_rolled(event.object):
                    return True
        return False

    def address(self, namespace: str, service: str) -> str:
        """See `Workloads.address`."""
        isvc = self._store.find(Key(INFERENCE_SERVICE.id, namespace, service))
        if isvc is None:
            return ""
        labels = {names.ISVC_LABEL: service, names.COMPONENT_LABEL: isvc_knative.entry_of(isvc)}
        pods = [
            pod
            for pod in self._store.list(POD.id, namespace=namespace, labels=labels)
            if pod_state.is_ready(pod) and not pod_state.is_terminating(pod)
        ]
        if not pods:
            return ""
        endpoint = endpoint_of(pod_state.newest_first(pods)[0])
        return f"http://{endpoint.address}:{endpoint.port}"

    async def failing(self, namespace: str, service: str) -> Sequence[str]:
        """See `Workloads.failing`."""
        labels = {names.ISVC_LABEL: service}
        pods = self._store.list(POD.id, namespace=namespace, labels=labels)
        found = await asyncio.to_thread(broken, pods, self._settings)
        return [one.told() for one in found]

    async def tell(
        self,
        namespace: str,
        service: str,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
    ) -> None:
        """See `Workloads.tell`."""
        isvc = self._store.find(Key(INFERENCE_SERVICE.id, namespace, service))
        if isvc is not None:
            await self._recorder.event(isvc, kind, reason, message, component="kserve-local")


def _argv(source: ImageSource, container: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what follows the interpreter in a container's command; empty if it is no Python."""
    own = (*(container.get("command") or ()), *(container.get("args") or ()))
    words = tuple(map(str, source.command or own))
    if words and _PYTHON.fullmatch(PurePosixPath(words[0]).name):
        return words[1:]
    return words if words and words[0].endswith(".py") else ()


def _is_rolled(deployment: Object) -> bool:
    """Whether all Pods are of the template, serve, and no older one does."""
    status = deployment.get("status") or {}
    if status.get("observedGeneration") != deployment["metadata"].get("generation"):
        return False
    want = replicas_of(deployment)
    keys = ("replicas", "updatedReplicas", "readyReplicas")
    return all(int(status.get(key) or 0) == want for key in keys)
