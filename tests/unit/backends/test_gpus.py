"""What is found on a machine, from the drivers' own words and files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kserve_local.backends import gpus
from kserve_local.backends.gpus import Gpus, offered_of, parse_devices, parse_figures
from kserve_local.errors import Missing
from kserve_local.interfaces.devices import Device, DeviceFigures
from kserve_local.settings import Settings

SMI = """0, GPU-5a0f7e35-6c1b-2d4e-9a8b-0c1d2e3f4a5b, NVIDIA H100 80GB HBM3, 81559, Disabled
1, GPU-9b8a7c6d-5e4f-3a2b-1c0d-e9f8a7b6c5d4, NVIDIA A100-SXM4-40GB, 40960, Enabled
2, GPU-00000000-0000-0000-0000-000000000002, NVIDIA GB10, [N/A], [N/A]
"""


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, tests see what they make."""
    monkeypatch.setitem(sys.modules, "pynvml", None)


def settings(**more: Any) -> Settings:
    at = Path("/p")
    return replace(Settings(project=at, state=at, cache=at, runtime=at), **more)


def never(argv: Sequence[str]) -> str | None:
    raise AssertionError(f"asked for {argv}")


def with_driver(root: Path) -> Path:
    (root / "dev").mkdir()
    (root / "dev" / "nvidiactl").touch()
    return root


def test_nvidia_smi_is_read() -> None:
    found, left_out = parse_devices(SMI)
    assert found == (
        Device("GPU-5a0f7e35-6c1b-2d4e-9a8b-0c1d2e3f4a5b", 0, "NVIDIA H100 80GB HBM3", 81559 << 20),
        Device("GPU-00000000-0000-0000-0000-000000000002", 2, "NVIDIA GB10", 0),
    )
    (text,) = left_out
    assert text.startswith("GPU 1 (NVIDIA A100-SXM4-40GB) is split by MIG: ")
    assert "nvidia-smi -i 1 -mig 0" in text


def test_a_driver_from_before_mig_and_noise_are_read() -> None:
    text = "WARNING: infoROM is corrupted at gpu 0000:65:00.0\n\n0, GPU-a, Tesla K80, 11441\n"
    assert parse_devices(text) == ((Device("GPU-a", 0, "Tesla K80", 11441 << 20),), ())
    assert parse_devices("No devices were found\n") == ((), ())


def test_figures_are_read() -> None:
    assert parse_figures("GPU-a, 1024, 35\nGPU-b, [N/A], [N/A]\n\n") == {
        "GPU-a": DeviceFigures(1 << 30, 35),
        "GPU-b": DeviceFigures(0, None),
    }


def test_a_machine_without_a_gpu_is_asked_nothing(tmp_path: Path) -> None:
    """Starting must cost nothing there."""
    found = Gpus(tmp_path, never).inventory(settings())
    assert (found.offered, found.present, found.size) == ((), False, {})


def test_nvidia_smi_answers_where_nvml_is_not_installed(tmp_path: Path) -> None:
    asked: list[Sequence[str]] = []

    def smi(argv: Sequence[str]) -> str | None:
        asked.append(argv)
        return None if "mig" in argv[1] else "0, GPU-a, Tesla K80, 11441\n"

    found = Gpus(with_driver(tmp_path), smi).inventory(settings())
    assert [d.id for d in found.offered] == ["GPU-a"]
    assert found.present
    assert list(asked[0]) == [
        "nvidia-smi",
        "--query-gpu=index,uuid,name,memory.total,mig.mode.current",
        "--format=csv,noheader,nounits",
    ]


def test_a_driver_that_does_not_answer_is_told(tmp_path: Path) -> None:
    found = Gpus(with_driver(tmp_path), lambda argv: None).inventory(settings())
    assert found.offered == ()
    assert found.left_out == (
        "NVIDIA's driver or tools are here, but neither NVML nor nvidia-smi answers",
    )


@dataclass
class Card:
    uuid: str
    name: str
    total: int
    used: int = 0
    busy: int = 0
    mig: int = 0


def nvml(cards: Sequence[Card], *, broken: bool = False) -> ModuleType:
    """Return what `pynvml` is, as far as we use it; old versions give bytes."""
    module: Any = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    class Value:
        def __init__(self, **values: int) -> None:
            self.__dict__.update(values)

    def init() -> None:
        if broken:
            raise NVMLError("Driver/library version mismatch")

    def mig(card: Card) -> list[int]:
        if card.mig < 0:
            raise NVMLError("Not Supported")
        return [card.mig, 0]

    module.NVMLError = NVMLError
    module.nvmlInit = init
    module.nvmlDeviceGetCount = lambda: len(cards)
    module.nvmlDeviceGetHandleByIndex = lambda n: cards[n]
    module.nvmlDeviceGetName = lambda c: c.name.encode()
    module.nvmlDeviceGetUUID = lambda c: c.uuid
    module.nvmlDeviceGetMigMode = mig
    module.nvmlDeviceGetMemoryInfo = lambda c: Value(total=c.total, used=c.used)
    module.nvmlDeviceGetUtilizationRates = lambda c: Value(gpu=c.busy)
    return module  # type: ignore[no-any-return]  # built above


async def test_nvml_answers_without_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [Card("GPU-a", "L4", 24 << 30, used=2 << 30, busy=80, mig=-1), Card("GPU-b", "A", 1, 1)]
    cards[1].mig = 1
    monkeypatch.setitem(sys.modules, "pynvml", nvml(cards))
    machine = Gpus(with_driver(tmp_path), never)
    found = machine.inventory(settings())
    assert found.offered == (Device("GPU-a", 0, "L4", 24 << 30),)
    assert len(found.left_out) == 1
    assert (await machine.figures())["GPU-a"] == DeviceFigures(2 << 30, 80)


def test_a_broken_nvml_leaves_it_to_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], broken=True))
    found, _ = Gpus(with_driver(tmp_path), lambda argv: SMI).discover()
    assert [d.index for d in found] == [0, 2]


async def test_figures_are_asked_for_once_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` and a scraper must not each start a process."""
    asked: list[str] = []

    def smi(argv: Sequence[str]) -> str | None:
        asked.append(argv[1])
        return "GPU-a, 512, 7\n" if "utilization" in argv[1] else "0, GPU-a, T4, 15360, [N/A]\n"

    machine = Gpus(with_driver(tmp_path), smi)
    assert await machine.figures() == {}
    machine.discover()
    assert (await machine.figures())["GPU-a"] == DeviceFigures(512 << 20, 7)
    await machine.figures()
    assert len(asked) == 2
    monkeypatch.setattr(gpus, "FRESH", 0.0)
    await machine.figures()
    assert len(asked) == 3


def amd_machine(root: Path) -> None:
    """Make the kernel's files of a machine with a processor and two AMD GPUs."""
    for minor in (128, 129):
        (root / "dev" / "dri").mkdir(parents=True, exist_ok=True)
        (root / "dev" / "dri" / f"renderD{minor}").touch()
        card = root / f"sys/class/drm/renderD{minor}/device"
        card.mkdir(parents=True)
        (card / "mem_info_vram_total").write_text(f"{16 << 30}\n")
        (card / "mem_info_vram_used").write_text(f"{1 << 30}\n")
        (card / "gpu_busy_percent").write_text("12\n")
    (root / "dev" / "kfd").touch()
    for number, minor in enumerate((0, 129, 128)):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\ndrm_render_minor {minor}\n")
        (node / "name").write_text("gfx1100\n" if minor else "\n")


async def test_amd_gpus_come_from_the_kernel(tmp_path: Path) -> None:
    amd_machine(tmp_path)
    machine = Gpus(tmp_path, never)
    found = machine.inventory(settings())
    assert [(d.id, d.index, d.name) for d in found.offered] == [
        ("amd-renderD129", 0, "gfx1100"),
        ("amd-renderD128", 1, "gfx1100"),
    ]
    assert found.offered[0].paths == ("/dev/kfd", "/dev/dri/renderD129")
    assert found.offered[0].memory_bytes == 16 << 30
    assert found.size == {"amd.com/gpu": 2}
    assert (await machine.figures())["amd-renderD128"] == DeviceFigures(1 << 30, 12)


def test_gpu_says_which_may_be_used() -> None:
    found = tuple(Device(f"GPU-{n}", n, "L4") for n in range(3))
    assert offered_of(found, "auto") == found
    assert offered_of(found, "none") == ()
    assert [d.index for d in offered_of(found, "2,0")] == [2, 0]
    with pytest.raises(Missing, match=r"GPU 7 is not there; this machine offers: 0 \(L4\)"):
        offered_of(found, "0,7")


def test_simulated_gpus_take_the_place_of_real_ones(tmp_path: Path) -> None:
    """And the real ones are hidden: what a simulated GPU was given must not use them."""
    machine = Gpus(with_driver(tmp_path), lambda argv: SMI)
    found = machine.inventory(settings(simulate_gpus=2))
    assert [d.id for d in found.offered] == ["simulated-0", "simulated-1"]
    assert all(d.simulated for d in found.offered)
    assert found.present


def test_gpus_that_may_not_be_used_are_there_all_the_same(tmp_path: Path) -> None:
    """So that Pods are kept from seeing them."""
    machine = Gpus(with_driver(tmp_path), lambda argv: SMI)
    found = machine.inventory(settings(gpu="none"))
    assert (found.offered, found.present) == ((), True)
