"""Where processes listen, and what is said about a probe that nobody answers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_local.backends.listening import addresses, listeners, why_refused


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "127.64.3.2"])
def test_a_listening_socket_is_found_by_its_process(host: str) -> None:
    with socket.socket() as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
        assert (host, port) not in addresses([os.getpid()])
        listener.listen()
        assert (host, port) in addresses([os.getpid()])
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            assert addresses([other.pid]) == []
            other.kill()


def test_tables_of_both_families_are_read(tmp_path: Path) -> None:
    """Lines are as Linux writes them on a little-endian machine; established ones do not count."""
    rest = "00000000:00000000 00:00000000 00000000  1000        0"
    rows = [
        f"   0: 0100007F:1F90 00000000:0000 0A {rest} 11 1 0 100 0 0 10 0",
        f"   1: 0100007F:1F91 0100007F:1F90 01 {rest} 12 1 0 100 0 0 10 0",
        f"   2: {'0' * 24}01000000:1F92 {'0' * 32}:0000 0A {rest} 13 1 0 100",
        f"   3: {'0' * 16}FFFF00000100007F:1F93 {'0' * 32}:0000 0A {rest} 14 1 0 100",
        f"   4: {'0' * 32}:1F94 {'0' * 32}:0000 0A {rest} 15 1 0 100",
    ]
    table = tmp_path / "tcp"
    table.write_text("\n".join(["  sl  local_address ...", *rows]) + "\n")
    assert listeners(str(table)) == [
        ("11", ("127.0.0.1", 8080)),
        ("13", ("::1", 8082)),
        ("14", ("127.0.0.1", 8083)),
        ("15", ("::", 8084)),
    ]


def test_a_process_that_is_gone_listens_nowhere() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        other.wait()
    assert addresses([other.pid]) == []


POD = "127.64.0.2"


@pytest.mark.parametrize(
    ("listening", "said"),
    [
        ([(POD, 9999)], "Nothing listens on port 8080; the process listens on 9999.\nNext step: "),
        ([(POD, 9999)], "ports: [{containerPort: 9999}]"),
        ([("127.0.0.1", 8081), (POD, 8081), (POD, 9999)], "the process listens on 8081, 9999."),
        ([], "The process listens on no port yet; it may still load.\nNext step: "),
        ([("127.0.0.1", 8080)], f"127.0.0.1:8080, not on the Pod's address {POD}."),
    ],
)
def test_a_refusal_is_explained(listening: list[tuple[str, int]], said: str) -> None:
    assert said in why_refused(POD, 8080, listening)


@pytest.mark.parametrize("address", [POD, "0.0.0.0", "::"])
def test_a_server_that_listens_by_now_needs_no_explanation(address: str) -> None:
    assert why_refused(POD, 8080, [(address, 8080), (POD, 1)]) == ""
