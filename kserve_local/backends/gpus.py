"""The GPUs of this machine: NVIDIA's through NVML (extra `gpu`) or `nvidia-smi`, AMD's through the
kernel's files.

The one importer of `pynvml`. Costs a few looks at file names where there is no GPU. What cannot be
read is left out and said; nothing here fails a start, but a GPU asked for by number that is not
there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kserve_local.errors import Missing
from kserve_local.interfaces.devices import Device, DeviceFigures, DeviceInventory
from kserve_local.settings import Settings

log = logging.getLogger(__name__)

_MIB = 1 << 20
_SMI_TIMEOUT = 10.0
# In WSL2 there is no device file of NVIDIA's.
_DRIVER_FILES = ("dev/nvidiactl", "usr/lib/wsl/lib/libnvidia-ml.so.1")
_QUERY = ("index", "uuid", "name", "memory.total")
_MIG = "mig.mode.current"
_SPLIT = (
    "GPU {index} ({name}) is split by MIG: slices are not offered, and the whole of it cannot be "
    "used meanwhile; nvidia-smi -i {index} -mig 0 joins it again"
)
FRESH = 1.0
"""Seconds that figures are good for."""

Run = Callable[[Sequence[str]], str | None]
"""Runs a command and returns what it printed, None if it cannot or fails."""


def run_tool(argv: Sequence[str]) -> str | None:
    """Run a vendor's tool. See `Run`."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_SMI_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s: %s", argv[0], error)
        return None
    if done.returncode != 0:
        log.info("%s ended with %s: %s", argv[0], done.returncode, done.stdout.strip()[-500:])
        return None
    return done.stdout


def simulated(count: int) -> tuple[Device, ...]:
    """Return GPUs for scheduling that are not there."""
    return tuple(
        Device(id=f"simulated-{n}", index=n, name="simulated", simulated=True) for n in range(count)
    )


def parse_devices(text: str) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Return the GPUs of `nvidia-smi --query-gpu=index,uuid,name,memory.total[,mig.mode.current]
    --format=csv,noheader,nounits`, and in words those that are left out.

    Memory is in MiB there, `[N/A]` where it is the machine's own.
    """
    found, left_out = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < len(_QUERY) or not cells[0].isdigit() or not cells[1]:
            continue  # A warning of the driver among them.
        index, id, name, memory = int(cells[0]), cells[1], cells[2], cells[3]
        if cells[4:5] == ["Enabled"]:
            left_out.append(_SPLIT.format(index=index, name=name))
            continue
        size = int(memory) * _MIB if memory.isdigit() else 0
        found.append(Device(id=id, index=index, name=name, memory_bytes=size))
    return tuple(found), tuple(left_out)


def parse_figures(text: str) -> dict[str, DeviceFigures]:
    """Return the figures of `nvidia-smi --query-gpu=uuid,memory.used,utilization.gpu ...`."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3:
            used = int(cells[1]) * _MIB if cells[1].isdigit() else 0
            found[cells[0]] = DeviceFigures(used, int(cells[2]) if cells[2].isdigit() else None)
    return found


def offered_of(found: Sequence[Device], wanted: str) -> tuple[Device, ...]:
    """Return which of the GPUs may be used: `auto`, `none`, or their numbers with commas.

    Raises:
        Missing: One of the numbers is not there.
    """
    if wanted == "auto":
        return tuple(found)
    if wanted == "none":
        return ()
    numbers = dict.fromkeys(int(n) for n in wanted.split(","))
    have = {device.index: device for device in found}
    for number in numbers:
        if number not in have:
            there = ", ".join(f"{d.index} ({d.name})" for d in found) or "none"
            raise Missing(
                f"GPU {number} is not there; this machine offers: {there}",
                hint="kserve-local doctor   or, without a GPU, kserve-local up --simulate-gpus N",
            )
    return tuple(have[number] for number in numbers)


@dataclass
class Gpus:
    """Finds GPUs and measures them.

    Args:
        root: Where `dev` and `sys` are; for tests.
    """

    root: Path = Path("/")
    run: Run = run_tool
    _nvml: Any = None
    _measured: float = float("-inf")
    _figures: dict[str, DeviceFigures] = field(default_factory=dict)
    _amd: dict[str, Path] = field(default_factory=dict)
    _has_nvidia: bool = False
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    def inventory(self, settings: Settings) -> DeviceInventory:
        """Return what there is, and what of it Pods can have. Blocking.

        Raises:
            Missing: A GPU that the settings name is not there.
        """
        found, left_out = self.discover()
        present = bool(found or left_out)
        if settings.simulate_gpus:
            return DeviceInventory(simulated(settings.simulate_gpus), present, left_out)
        return DeviceInventory(offered_of(found, settings.gpu), present, left_out)

    def discover(self) -> tuple[tuple[Device, ...], tuple[str, ...]]:
        """Return the real GPUs of this machine, and in words those of no use. Blocking."""
        found, left_out = self._nvidia()
        return (*found, *self._amd_devices()), left_out

    # -- NVIDIA

    def _may_have_nvidia(self) -> bool:
        if any((self.root / path).exists() for path in _DRIVER_FILES):
            return True
        return self.root == Path("/") and shutil.which("nvidia-smi") is not None

    def _nvidia(self) -> tuple[tuple[Device, ...], tuple[str, ...]]:
        if not self._may_have_nvidia():
            return (), ()
        self._nvml = _open_nvml()
        if self._nvml is not None:
            try:
                found = _nvml_devices(self._nvml)
            except self._nvml.NVMLError as error:
                log.warning("NVML: %s; asking nvidia-smi", error)
                self._nvml = None
            else:
                self._has_nvidia = bool(found[0])
                return found
        text = self._smi(*_QUERY, _MIG)
        if text is None:
            text = self._smi(*_QUERY)  # A driver from before MIG.
        if text is None:
            return (), (
                "NVIDIA's driver or tools are here, but neither NVML nor nvidia-smi answers",
            )
        found = parse_devices(text)
        self._has_nvidia = bool(found[0])
        return found

    def _smi(self, *fields: str) -> str | None:
        return self.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        )

    # -- AMD

    def _amd_devices(self) -> list[Device]:
        """Return the GPUs that ROCm sees, in its order.

        Source: the kernel's KFD topology; nodes that are processors have no render node.
        """
        kfd = self.root / "dev" / "kfd"
        if not kfd.exists():
            return []
        nodes = self.root / "sys/class/kfd/kfd/topology/nodes"
        found: list[Device] = []
        with contextlib.suppress(OSError):
            for node in sorted((p for p in nodes.iterdir() if p.name.isdigit()), key=_number):
                minor = _properties(node / "properties").get("drm_render_minor", 0)
                render = self.root / "dev" / "dri" / f"renderD{minor}"
                if not minor or not render.exists():
                    continue
                card = self.root / f"sys/class/drm/renderD{minor}/device"
                device = Device(
                    id=f"amd-renderD{minor}",
                    index=len(found),
                    name=_read(card / "product_name") or _read(node / "name") or "AMD GPU",
                    memory_bytes=int(_read(card / "mem_info_vram_total") or 0),
                    vendor="amd",
                    paths=("/dev/kfd", f"/dev/dri/renderD{minor}"),
                    groups=tuple(sorted({p.stat().st_gid for p in (kfd, render)} - {0})),
                )
                self._amd[device.id] = card
                found.append(device)
        return found

    # -- figures

    async def figures(self) -> Mapping[str, DeviceFigures]:
        """Return how busy the GPUs are. See `DeviceMeter.figures`."""
        if not self._has_nvidia and not self._amd:
            return {}
        async with self._one:
            if time.monotonic() - self._measured >= FRESH:
                self._figures = await asyncio.to_thread(self._measure)
                self._measured = time.monotonic()
        return self._figures

    def _measure(self) -> dict[str, DeviceFigures]:
        found: dict[str, DeviceFigures] = {}
        if self._nvml is not None:
            try:
                found = _nvml_figures(self._nvml)
            except self._nvml.NVMLError as error:
                log.info("NVML: %s", error)
        elif self._has_nvidia:
            found = parse_figures(self._smi("uuid", "memory.used", "utilization.gpu") or "")
        for id, card in self._amd.items():
            busy = _read(card / "gpu_busy_percent")
            used = int(_read(card / "mem_info_vram_used") or 0)
            found[id] = DeviceFigures(used, int(busy) if busy.isdigit() else None)
        return found


def _open_nvml() -> Any:
    """Return NVML, initialised for as long as this process lives; None: it cannot be had."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("NVML: %s", error)
        return None
    return pynvml


def _nvml_devices(nvml: Any) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    found, left_out = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(nvml.nvmlDeviceGetName(handle))
        mig = 0
        with contextlib.suppress(nvml.NVMLError):
            mig = nvml.nvmlDeviceGetMigMode(handle)[0]
        if mig:
            left_out.append(_SPLIT.format(index=index, name=name))
            continue
        memory = 0
        with contextlib.suppress(nvml.NVMLError):
            memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        id = _text(nvml.nvmlDeviceGetUUID(handle))
        found.append(Device(id=id, index=index, name=name, memory_bytes=memory))
    return tuple(found), tuple(left_out)


def _nvml_figures(nvml: Any) -> dict[str, DeviceFigures]:
    found = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        used, busy = 0, None
        with contextlib.suppress(nvml.NVMLError):
            used = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
        with contextlib.suppress(nvml.NVMLError):
            busy = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        found[_text(nvml.nvmlDeviceGetUUID(handle))] = DeviceFigures(used, busy)
    return found


def _text(value: object) -> str:
    # Older bindings give bytes.
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(path: Path) -> int:
    return int(path.name)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _properties(path: Path) -> dict[str, int]:
    words = (line.split() for line in _read(path).splitlines())
    return {w[0]: int(w[1]) for w in words if len(w) == 2 and w[1].isdigit()}
