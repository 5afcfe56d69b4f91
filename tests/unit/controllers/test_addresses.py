"""Loopback addresses: every Pod its own, no two projects the same, the same ones again later."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_local.api.meta import Key, Object
from kserve_local.controllers.addresses import (
    NETWORK,
    AddressPool,
    listed_in,
    listening_addresses,
    service_names,
)
from kserve_local.errors import Missing


def pool(tmp_path: Path, project: str = "a", **options: Any) -> AddressPool:
    state = tmp_path / project / ".kserve-local"
    state.mkdir(parents=True, exist_ok=True)
    options.setdefault("listening", frozenset)
    return AddressPool(state, tmp_path / "cache", enabled=True, **options)


def test_pods_and_services_have_addresses_of_the_projects_block(tmp_path: Path) -> None:
    one = pool(tmp_path)
    block = ipaddress.ip_network(one.block)
    assert block.subnet_of(NETWORK)
    found = {one.pod_ip(f"uid-{n}") for n in range(50)}
    found |= {one.service_ip(Key("services", "default", f"s{n}")) for n in range(50)}
    assert len(found) == 100
    assert all(ipaddress.ip_address(a) in block for a in found)
    one.close()


def test_the_same_owner_gets_the_same_address(tmp_path: Path) -> None:
    one = pool(tmp_path)
    assert one.pod_ip("x") == one.pod_ip("x")
    one.close()


def test_two_projects_never_share_a_block(tmp_path: Path) -> None:
    pools = [pool(tmp_path, name) for name in "abcdefgh"]
    assert len({p.block for p in pools}) == len(pools)
    for each in pools:
        each.close()


def test_a_restarted_supervisor_has_the_same_block_and_addresses(tmp_path: Path) -> None:
    first = pool(tmp_path)
    block, address = first.block, first.pod_ip("x")
    service = first.service_ip(Key("services", "default", "s"))
    first.close()
    second = pool(tmp_path, listening=lambda: {int(ipaddress.ip_address(service))})
    assert second.block == block
    assert second.keep_pod("x", address)
    assert second.pod_ip("x") == address
    # A surviving gateway listens there, which is no reason to move away.
    assert second.service_ip(Key("services", "default", "s")) == service
    second.close()


def test_a_block_is_kept_while_replicas_outlive_their_supervisor(tmp_path: Path) -> None:
    first = pool(tmp_path)
    block = ipaddress.ip_network(first.block)
    (tmp_path / "a" / ".kserve-local" / "run" / "pods" / "uid").mkdir(parents=True)
    first.close()
    others = [pool(tmp_path, f"other{n}") for n in range(20)]
    assert all(not ipaddress.ip_network(o.block).overlaps(block) for o in others)
    for each in others:
        each.close()


def test_the_block_of_a_vanished_project_is_taken_over(tmp_path: Path) -> None:
    """Otherwise a machine that runs many short projects would run out."""
    first = pool(tmp_path)
    lease = next((tmp_path / "cache" / "addresses").glob("*.json"))
    first.close()
    lease.write_text('{"state": "/no/such/project"}')
    second = pool(tmp_path)
    assert second.block == first_block(lease)
    second.close()


def first_block(lease: Path) -> str:
    return str(ipaddress.ip_network((int(NETWORK.network_address) + int(lease.stem) * 4096, 20)))


def test_a_second_supervisor_of_one_project_is_refused(tmp_path: Path) -> None:
    first = pool(tmp_path)
    with pytest.raises(Missing, match="another supervisor of this project"):
        pool(tmp_path)
    first.close()


def test_down_gives_the_block_up(tmp_path: Path) -> None:
    first = pool(tmp_path)
    first.close(give_up=True)
    assert list((tmp_path / "cache" / "addresses").glob("*.json")) == []


def test_an_address_that_somebody_listens_on_is_not_given_to_a_pod(tmp_path: Path) -> None:
    busy: set[int] = set()

    def listening() -> Collection[int]:
        return busy

    one = pool(tmp_path, listening=listening)
    address = one.pod_ip("x")
    one.release("x")
    busy.add(int(ipaddress.ip_address(address)))
    assert one.pod_ip("x") != address
    one.close()


def test_a_released_address_is_free_again(tmp_path: Path) -> None:
    one = pool(tmp_path)
    address = one.pod_ip("x")
    one.release("x")
    one.release("x")
    assert one.keep_pod("y", address)
    one.close()


def test_an_address_outside_the_block_is_not_kept(tmp_path: Path) -> None:
    one = pool(tmp_path)
    assert not one.keep_pod("x", "127.0.0.1")
    assert not one.keep_pod("x", one.service_ip(Key("services", "default", "s")))
    one.close()


def test_elsewhere_there_are_no_addresses(tmp_path: Path) -> None:
    one = AddressPool(tmp_path, tmp_path / "cache", enabled=False)
    assert (one.block, one.pod_ip("x"), one.keep_pod("x", "127.64.0.9")) == ("", "", False)
    one.close()


@given(st.lists(st.uuids().map(str), unique=True, max_size=40))
def test_no_two_pods_share_an_address(tmp_path_factory: Any, uids: list[str]) -> None:
    one = pool(tmp_path_factory.mktemp("pool"))
    assert len({one.pod_ip(uid) for uid in uids}) == len(uids)
    one.close(give_up=True)


def test_listeners_are_read_from_the_kernel(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 0508407F:1F90 00000000:0000 0A 0\n"  # 127.64.8.5 listens
        "   1: 0608407F:1F90 0508407F:0001 01 0\n"  # established
        "   2: 0100007F:0016 00000000:0000 0A 0\n"  # 127.0.0.1 is outside
    )
    assert listed_in(table) == {int(ipaddress.ip_address("127.64.8.5"))}


def service(name: str, namespace: str = "default", **spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def test_services_have_all_their_dns_names() -> None:
    names = dict(service_names([service("s", clusterIP="127.64.8.9")], namespace="default"))
    assert set(names) == {"s", "s.default", "s.default.svc", "s.default.svc.cluster.local"}
    elsewhere = dict(service_names([service("s", clusterIP="127.64.8.9")], namespace="other"))
    assert "s" not in elsewhere


def test_an_external_name_is_where_it_points_to() -> None:
    """KServe's own Services point at Knative's local gateway."""
    gateway = service("knative-local-gateway", "istio-system", clusterIP="127.64.8.1")
    target = "knative-local-gateway.istio-system.svc.cluster.local"
    isvc = service("iris-predictor", type="ExternalName", externalName=target)
    names = dict(service_names([isvc, gateway], namespace="default"))
    assert names["iris-predictor.default"] == "127.64.8.1"
    headless = service("h", clusterIP="None")
    assert service_names([headless], namespace="default") == ()


def test_the_kernel_and_its_table_agree_on_who_listens() -> None:
    with socket.socket() as server:
        server.bind(("127.64.0.77", 0))
        server.listen()
        mine = int(ipaddress.ip_address("127.64.0.77"))
        assert mine in listening_addresses()
        assert mine in listed_in(Path("/proc/net/tcp"))
    assert mine not in listening_addresses()
