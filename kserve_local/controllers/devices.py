"""Which Pod has which GPU: whole devices, each with one Pod at a time.

Pure but for the ledger's memory, which can be found out again: what a Pod holds is its annotation
`kserve-local.dev/devices`. Counts extended resources as Kubernetes does (whole numbers; a Pod needs
what its containers want together, or its hungriest init container alone), and refuses in the
scheduler's words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from kserve_local.api import names, quantity
from kserve_local.api.meta import Object, annotations_of
from kserve_local.api.validation_resources import is_extended
from kserve_local.interfaces.devices import Device, DeviceInventory

_NVIDIA, _AMD = "nvidia.com/gpu", "amd.com/gpu"
_MIG = "nvidia.com/mig-"
_NODES = "0/1 nodes are available: "


def limits_of(container: Mapping[str, Any]) -> dict[str, int]:
    """Return how many of each extended resource a container wants; requests are its limits."""
    resources = container.get("resources") or {}
    asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    counts = {r: math.ceil(quantity.parse(v)) for r, v in asked.items() if is_extended(r)}
    return {r: n for r, n in counts.items() if n > 0}


def wanted_by(pod: Object) -> dict[str, int]:
    """Return how many of each extended resource a Pod needs, empty for most."""
    spec = pod.get("spec") or {}
    wanted: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for resource, count in limits_of(container).items():
            wanted[resource] = wanted.get(resource, 0) + count
    for container in spec.get("initContainers") or ():
        for resource, count in limits_of(container).items():
            wanted[resource] = max(wanted.get(resource, 0), count)
    return wanted


def of_container(pod: Object, name: str, held: Sequence[Device]) -> tuple[Device, ...]:
    """Return which of the Pod's devices one of its containers gets, always the same.

    Init containers, which run before, get from the same ones.
    """
    spec = pod.get("spec") or {}
    taken: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        if container.get("name") == name:
            return _first(held, limits_of(container), {})
    for container in spec.get("containers") or ():
        limits = limits_of(container)
        if container.get("name") == name:
            return _first(held, limits, taken)
        for resource, count in limits.items():
            taken[resource] = taken.get(resource, 0) + count
    return ()


def _first(
    held: Sequence[Device], limits: Mapping[str, int], skip: Mapping[str, int]
) -> tuple[Device, ...]:
    found: list[Device] = []
    for resource, count in sorted(limits.items()):
        of_kind = [d for d in held if d.resource == resource]
        start = skip.get(resource, 0)
        found += of_kind[start : start + count]
    return tuple(found)


def ids_of(pod: Object) -> tuple[str, ...]:
    """Return the ids of the devices that the Pod was given."""
    text = annotations_of(pod).get(names.DEVICES, "")
    return tuple(filter(None, text.split(",")))


def simulation_of(held: Sequence[Device]) -> str:
    """Return what to say of a Pod whose GPUs are simulated, empty if none is."""
    counts: dict[str, int] = {}
    for device in held:
        if device.simulated:
            counts[device.resource] = counts.get(device.resource, 0) + 1
    text = ", ".join(f"{resource}: {count}" for resource, count in sorted(counts.items()))
    return f"simulated GPUs stand in for {text}; it runs on the CPU" if text else ""


class DeviceLedger:
    """What of the inventory is whose. Asking twice changes nothing."""

    def __init__(self, inventory: DeviceInventory) -> None:
        self.inventory = inventory
        self._known = {device.id: device for device in inventory.offered}
        self._held: dict[str, tuple[str, ...]] = {}

    def keep(self, uid: str, ids: Sequence[str], *, running: bool) -> None:
        """Take note of what a Pod was given by an earlier supervisor.

        Args:
            running: It uses them now. Else, one that is gone or another's makes it choose anew.
        """
        free = {device.id for device in self._free()}
        if ids and (running or free.issuperset(ids)):
            self._held[uid] = tuple(ids)

    def take(self, uid: str, wanted: Mapping[str, int]) -> bool:
        """Give a Pod what it wants, all or nothing; tell whether it has it now."""
        if uid in self._held or not wanted:
            return True
        free = self._free()
        chosen: list[str] = []
        for resource, count in sorted(wanted.items()):
            of_kind = [d.id for d in free if d.resource == resource]
            if len(of_kind) < count:
                return False
            chosen += of_kind[:count]
        self._held[uid] = tuple(chosen)
        return True

    def held_by(self, uid: str) -> tuple[Device, ...]:
        """Return the Pod's devices; those that are not there any more are missing."""
        return tuple(self._known[id] for id in self._held.get(uid, ()) if id in self._known)

    def lost_by(self, uid: str) -> tuple[str, ...]:
        """Return the ids of devices that the Pod was given and that are not there any more."""
        return tuple(id for id in self._held.get(uid, ()) if id not in self._known)

    def holders(self) -> tuple[str, ...]:
        """Return the uids of Pods that hold something."""
        return tuple(self._held)

    def release(self, uid: str) -> bool:
        """Take back what a Pod held; tell whether that was anything."""
        return self._held.pop(uid, None) is not None

    def release_all_but(self, uids: Collection[str]) -> None:
        """Take back what Pods hold that are no more."""
        for uid in [uid for uid in self._held if uid not in uids]:
            del self._held[uid]

    def refusal(self, wanted: Mapping[str, int], holders: Iterable[str] = ()) -> str:
        """Return why a Pod that wants this cannot be placed now.

        The scheduler's words; then, on a line of its own, what helps.

        Args:
            holders: Names of the Pods that hold something.
        """
        size = self.inventory.size
        free: dict[str, int] = {}
        for device in self._free():
            free[device.resource] = free.get(device.resource, 0) + 1
        short = sorted(r for r, n in wanted.items() if n > free.get(r, 0))
        hopeless = any(wanted[r] > size.get(r, 0) for r in short)
        why = ", ".join(f"1 Insufficient {resource}" for resource in short)
        victims = (
            "1 Preemption is not helpful for scheduling"
            if hopeless
            else "1 No preemption victims found for incoming pod"
        )
        text = f"{_NODES}{why}. preemption: {_NODES}{victims}."
        return f"{text}\nNext step: {self._way_out(wanted, short, holders)}"

    def _way_out(
        self, wanted: Mapping[str, int], short: Sequence[str], holders: Iterable[str]
    ) -> str:
        size = self.inventory.size
        for resource in short:
            if resource.startswith(_MIG):
                return f"MIG slices are not offered here; ask for a whole GPU ({_NVIDIA}: 1)"
            if resource not in (_NVIDIA, _AMD):
                return f"this machine offers no {resource}; take the limit out to run without"
            if wanted[resource] > size.get(resource, 0):
                here = f"this machine offers {size.get(resource, 0)} {resource}"
                why = "; ".join((here, *self.inventory.left_out))
                way_out = "kserve-local doctor"
                if resource == _NVIDIA:
                    way_out += f"   or kserve-local up --simulate-gpus {wanted[resource]}"
                return f"{why}: {way_out}"
        return f"wait for, or delete, what holds them ({', '.join(sorted(holders))})"

    def _free(self) -> list[Device]:
        taken = {id for ids in self._held.values() for id in ids}
        return [device for device in self.inventory.offered if device.id not in taken]
