"""The seam between who finds GPUs (`backends.gpus`), who gives them away (`controllers.devices`)
and who hands them to containers: plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU that a Pod can have.

    Args:
        id: What names it for good: NVIDIA's UUID (`GPU-...`), or what we make of its place.
        index: Its number on this machine, as `nvidia-smi` or `rocm-smi` counts.
        memory_bytes: 0: unknown.
        simulated: It is for scheduling only; nothing runs on it.
        paths: Device files that a container needs (AMD).
        groups: Numbers of the groups that may open them.
    """

    id: str
    index: int
    name: str = ""
    memory_bytes: int = 0
    vendor: Literal["nvidia", "amd"] = "nvidia"
    simulated: bool = False
    paths: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()

    @property
    def resource(self) -> str:
        """The extended resource it counts for, e.g. `nvidia.com/gpu`."""
        return f"{self.vendor}.com/gpu"


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """How busy a GPU is now.

    Args:
        utilization: Percent of the last moments in which something ran; None: it does not say.
    """

    memory_used_bytes: int
    utilization: int | None


@dataclass(frozen=True, slots=True)
class DeviceInventory:
    """The GPUs of this machine.

    Args:
        offered: Those that Pods can have.
        present: There are real ones, offered or not: a container that has none must see none.
        left_out: What is there and not offered, and why, in words.
    """

    offered: tuple[Device, ...] = ()
    present: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> dict[str, int]:
        """How many there are of each resource."""
        counts: dict[str, int] = {}
        for device in self.offered:
            counts[device.resource] = counts.get(device.resource, 0) + 1
        return counts


class DeviceMeter(Protocol):
    """Says how busy GPUs are."""

    async def figures(self) -> Mapping[str, DeviceFigures]:
        """Return what is known now, by the device's id. Never fails."""
