"""What each Pod uses now: CPU time and memory from the backend, GPUs from NVML or AMD's driver.

A GPU belongs to one Pod, so its figures are the Pod's, beside what programs outside kserve-local do
on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kserve_local.api.meta import Object, uid_of
from kserve_local.controllers.devices import ids_of
from kserve_local.errors import KServeLocalError
from kserve_local.interfaces.backend import Backend, Usage
from kserve_local.interfaces.devices import Device, DeviceFigures, DeviceInventory, DeviceMeter


@dataclass(frozen=True, slots=True)
class PodUsage:
    """Answers for single Pods.

    Args:
        meter: Says how busy the GPUs are.
        devices: The GPUs that Pods can have.
    """

    backend: Backend
    meter: DeviceMeter
    devices: DeviceInventory

    async def of(self, pod: Object) -> Usage | None:
        """Return CPU time and memory; None: it has ended, or its engine does not answer."""
        try:
            return await self.backend.usage(uid_of(pod))
        except KServeLocalError:
            return None

    def held_by(self, pod: Object) -> list[Device]:
        """Return the GPUs that the Pod was given and that are there."""
        known = {device.id: device for device in self.devices.offered}
        return [known[id] for id in ids_of(pod) if id in known]

    async def figures(self) -> Mapping[str, DeviceFigures]:
        """Return how busy the GPUs are, by id; simulated ones are not among them."""
        return await self.meter.figures()
