"""A gRPC call that a replica did not look at is sent again as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from kserve_local.gateway.h2_connection import Stream
from kserve_local.gateway.proxy import TargetState
from kserve_local.gateway.rpc import _REPLAY, Call, Rpc
from kserve_local.gateway.table import CompiledRoute


def a_call(*pending: bytes) -> tuple[Call, Rpc]:
    """Return a call of which so much had come when its route was found."""
    call = Call(cast("Stream", SimpleNamespace(peer_done=True)), [])
    call.pending = list(pending)
    route = cast("CompiledRoute", SimpleNamespace(limit=1.0))
    target = cast("TargetState", SimpleNamespace(timeout=1.0))
    return call, Rpc(call, b"/inference.GRPCInferenceService/ModelInfer", b"a", route, target)


@pytest.mark.parametrize("read", [(), (b"mess",), (b"mess", b"a")])
def test_what_was_read_to_find_its_route_is_sent_again_too(read: tuple[bytes, ...]) -> None:
    """Without a host the message names the model, so it has come before there is a replica."""
    call, rpc = a_call(*read)
    rpc.keep(b"ge")
    call.pending = []
    assert rpc.rewind()
    assert b"".join(call.pending) == b"".join(read) + b"ge"


def test_a_message_of_which_too_much_had_come_is_not_sent_again() -> None:
    _, rpc = a_call(b"x" * (_REPLAY + 1))
    assert not rpc.rewind()
