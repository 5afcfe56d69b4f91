"""What runs from the project's files, and what the dev loop may ask of it.

The supervisor implements `Workloads`; nothing else here knows Pods, backends or the store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from kserve_local.api.meta import Key
from kserve_local.interfaces.code import CodeChange, CodeVerdict


@dataclass(frozen=True, slots=True)
class CodeUse:
    """A container that runs the user's own code.

    Args:
        replica: The Pod's uid.
        service: Name of its InferenceService; empty: it has none.
        context: The folder of the code.
        argv: What follows the interpreter; empty: not known.
        ready: The Pod is Ready, so it has read its code.
        fixed: Why new functions cannot be put into it, for people; empty: they can.
        deployment: What starts its Pods.
    """

    replica: str
    pod: str
    namespace: str
    service: str
    component: str
    container: str
    context: Path
    argv: tuple[str, ...]
    ready: bool
    fixed: str
    deployment: Key


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A Pod that serves model files of this machine.

    Args:
        path: File or folder, as the storageUri names it.
    """

    pod: str
    namespace: str
    service: str
    component: str
    path: Path
    deployment: Key


def services_of(uses: Iterable[CodeUse | ModelUse]) -> list[tuple[str, str]]:
    """Return (namespace, name) of the services whose Pods these are."""
    return sorted({(use.namespace, use.service) for use in uses if use.service})


class Workloads(Protocol):
    """What runs now, and the few things a save does to it."""

    async def changed(self) -> None:
        """Return when Pods have come or gone since the last call returned."""

    def contexts(self) -> Collection[Path]:
        """Return the folders of code that images are mapped to, running or not."""

    def code(self) -> Sequence[CodeUse]:
        """Return every container with the user's code in a Pod that is not ending."""

    def models(self) -> Sequence[ModelUse]:
        """Return every Pod with local model files that is not ending."""

    async def check(self, use: CodeUse, change: CodeChange) -> CodeVerdict:
        """Ask a container whether a change can be put into it. Never raises for one that ended."""

    async def commit(self, use: CodeUse, change: CodeChange) -> CodeVerdict:
        """Put a change that was checked into a container."""

    async def replace(self, deployment: Key, annotation: str, digest: str) -> bool:
        """Start new Pods for this digest behind the old ones; False: they are for it already."""

    async def replaced(self, deployment: Key, *, patience: float) -> bool:
        """Return once the newest Pods serve and no older one is left; False: not in time."""

    def address(self, namespace: str, service: str) -> str:
        """Return `http://ADDRESS:PORT` of the newest Ready Pod that takes a service's requests;
        empty: there is none.
        """

    async def failing(self, namespace: str, service: str) -> Sequence[str]:
        """Return why new Pods of a service do not come up beside those that serve."""

    async def tell(
        self,
        namespace: str,
        service: str,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
    ) -> None:
        """Record an Event on an InferenceService."""
