"""GPUs are whole, exclusive, remembered, and refused in the scheduler's words."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_local.controllers.devices import (
    DeviceLedger,
    ids_of,
    of_container,
    simulation_of,
    wanted_by,
)
from kserve_local.interfaces.devices import Device, DeviceInventory

GPU = "nvidia.com/gpu"
ONE = {GPU: 1}


def nvidia(*numbers: int) -> tuple[Device, ...]:
    return tuple(Device(f"GPU-{n}", n, "H100") for n in numbers)


def ledger(count: int, *more: Device, left_out: tuple[str, ...] = ()) -> DeviceLedger:
    offered = (*nvidia(*range(count)), *more)
    return DeviceLedger(DeviceInventory(offered, present=True, left_out=left_out))


def ids(devices: tuple[Device, ...]) -> list[str]:
    return [device.id for device in devices]


def container(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "resources": {"limits": {GPU: limits.get("gpu", 0), "cpu": "1"}}}


def pod(*containers: dict[str, Any], init: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"containers": list(containers), "initContainers": list(init)},
    }


def test_a_pod_wants_what_its_containers_want_together() -> None:
    assert wanted_by(pod(container("a", gpu=1), container("b", gpu="2"), container("c"))) == {
        GPU: 3
    }
    assert wanted_by(pod({"name": "a"})) == {}
    hugepages = {"name": "a", "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "1Gi"}}}
    assert wanted_by(pod(hugepages)) == {}


def test_an_init_container_counts_alone() -> None:
    """It has ended before the others begin, so they share."""
    assert wanted_by(pod(container("a", gpu=2), init=(container("i", gpu=1),))) == {GPU: 2}
    assert wanted_by(pod(container("a", gpu=1), init=(container("i", gpu=3),))) == {GPU: 3}


def test_containers_of_a_pod_share_nothing_but_with_init_containers() -> None:
    made = pod(container("a", gpu=1), container("b", gpu=2), init=(container("i", gpu=2),))
    held = nvidia(4, 5, 6)
    assert ids(of_container(made, "a", held)) == ["GPU-4"]
    assert ids(of_container(made, "b", held)) == ["GPU-5", "GPU-6"]
    assert ids(of_container(made, "i", held)) == ["GPU-4", "GPU-5"]
    assert of_container(made, "other", held) == ()


def test_two_pods_never_share_a_device() -> None:
    book = ledger(3)
    assert book.take("a", ONE)
    assert book.take("b", {GPU: 2})
    assert ids(book.held_by("a")) == ["GPU-0"]
    assert ids(book.held_by("b")) == ["GPU-1", "GPU-2"]
    assert not book.take("c", ONE)
    assert book.held_by("c") == ()


def test_all_or_nothing() -> None:
    """A Pod that needs two must not sit on one."""
    book = ledger(2)
    book.take("a", ONE)
    assert not book.take("b", {GPU: 2})
    assert book.take("c", ONE)


def test_asking_twice_changes_nothing() -> None:
    book = ledger(2)
    assert book.take("a", ONE)
    assert book.take("a", ONE)
    assert ids(book.held_by("a")) == ["GPU-0"]


def test_what_is_given_back_can_be_had_again() -> None:
    book = ledger(1)
    book.take("a", ONE)
    assert book.release("a")
    assert not book.release("a")
    assert book.take("b", ONE)
    book.release_all_but({"c"})
    assert book.take("c", ONE)


def test_vendors_are_kept_apart() -> None:
    book = ledger(1, Device("amd-renderD128", 0, vendor="amd"))
    assert book.inventory.size == {GPU: 1, "amd.com/gpu": 1}
    assert book.take("a", {"amd.com/gpu": 1})
    assert ids(book.held_by("a")) == ["amd-renderD128"]
    assert not book.take("b", {"amd.com/gpu": 1, GPU: 1})
    assert book.take("c", ONE)


def test_a_new_supervisor_keeps_what_pods_hold() -> None:
    book = ledger(2)
    book.keep("a", ("GPU-1",), running=True)
    assert book.take("a", ONE)
    assert book.take("b", ONE)
    assert (ids(book.held_by("a")), ids(book.held_by("b"))) == (["GPU-1"], ["GPU-0"])


def test_a_device_that_is_gone_is_chosen_anew_unless_it_is_in_use() -> None:
    book = ledger(1)
    book.keep("waits", ("GPU-7",), running=False)
    book.keep("runs", ("GPU-8",), running=True)
    assert book.take("waits", ONE)
    assert ids(book.held_by("waits")) == ["GPU-0"]
    assert book.lost_by("waits") == ()
    assert (book.held_by("runs"), book.lost_by("runs")) == ((), ("GPU-8",))


def test_an_annotation_cannot_take_anothers_device() -> None:
    book = ledger(1)
    book.keep("a", ("GPU-0",), running=True)
    book.keep("b", ("GPU-0",), running=False)
    assert not book.take("b", ONE)


def test_held_by_others_is_told_as_the_scheduler_does() -> None:
    book = ledger(1)
    book.take("a", ONE)
    assert book.refusal(ONE, ["iris-1"]) == (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are "
        "available: 1 No preemption victims found for incoming pod.\n"
        "Next step: wait for, or delete, what holds them (iris-1)"
    )


def test_more_than_there_is_will_never_be_placed() -> None:
    text = ledger(1, left_out=("GPU 1 (A100) is split by MIG",)).refusal({GPU: 2})
    assert text == (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are "
        "available: 1 Preemption is not helpful for scheduling.\n"
        "Next step: this machine offers 1 nvidia.com/gpu; GPU 1 (A100) is split by MIG: "
        "kserve-local doctor   or kserve-local up --simulate-gpus 2"
    )


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        ("nvidia.com/mig-1g.5gb", "MIG slices are not offered here; ask for a whole GPU"),
        ("habana.ai/gaudi", "this machine offers no habana.ai/gaudi"),
        ("amd.com/gpu", "this machine offers 0 amd.com/gpu: kserve-local doctor"),
    ],
)
def test_what_is_not_offered_says_so(resource: str, words: str) -> None:
    book = ledger(1)
    assert not book.take("a", {resource: 1})
    text = book.refusal({resource: 1})
    assert f"1 Insufficient {resource}. preemption" in text
    assert words in text


def test_every_resource_that_lacks_is_named() -> None:
    text = ledger(0).refusal({GPU: 1, "amd.com/gpu": 1})
    assert "1 Insufficient amd.com/gpu, 1 Insufficient nvidia.com/gpu." in text


def test_the_annotation_is_what_a_pod_holds() -> None:
    made = pod(container("a", gpu=2))
    assert ids_of(made) == ()
    made["metadata"]["annotations"] = {"kserve-local.dev/devices": "GPU-1,GPU-2"}
    assert ids_of(made) == ("GPU-1", "GPU-2")


def test_a_simulated_gpu_says_what_it_is() -> None:
    held = (Device("simulated-0", 0, simulated=True), Device("simulated-1", 1, simulated=True))
    assert simulation_of(held) == (
        "simulated GPUs stand in for nvidia.com/gpu: 2; it runs on the CPU"
    )
    assert simulation_of(nvidia(0)) == ""
