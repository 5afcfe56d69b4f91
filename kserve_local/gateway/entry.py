"""What becomes of a request before it goes on, the same from HTTP/1.1 and HTTP/2. Pure."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable

from kserve_local.gateway import errors
from kserve_local.gateway.head import RequestHead
from kserve_local.gateway.table import (
    RESERVED,
    CompiledTable,
    Found,
    Missed,
    NeedsModel,
    names_this_machine,
)

_AUTHORIZATION = re.compile(rb"^authorization:[^\r]*\r\n", re.IGNORECASE | re.MULTILINE)
_FORWARDED_FOR = b"X-Forwarded-For: "


def bears(authorization: bytes, token: bytes) -> bool:
    """Whether an Authorization header carries the token."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token)


def find(
    table: CompiledTable, service: bytes, host: bytes, target: bytes
) -> Found | Missed | NeedsModel:
    """Return where a request goes.

    Args:
        service: On a Service's own address: the host its requests are for at the latest.
    """
    if service and names_this_machine(host):
        # By the address itself, or by the name alone that it has within its namespace.
        own = table.find(service, target)
        if isinstance(own, Found):
            return own
    found = table.find(host, target)
    if not isinstance(found, Found) and service:
        found = table.find(service, target)
    return found


def missed(
    head: RequestHead,
    miss: Missed,
    admin: Callable[[bytes], errors.Answer | None],
    *,
    with_token: bool,
) -> errors.Answer:
    """Return the answer to a request that has no route.

    Args:
        admin: Answers the gateway's own paths; None for an unknown one.
        with_token: It carries the token that is demanded of every request.
    """
    # A web page may reach us by a foreign name that resolves here: figures are not for it.
    if head.target.startswith(RESERVED) and (with_token or names_this_machine(head.host)):
        answer = admin(head.target)
        if answer is not None:
            return answer
    if miss.text:
        openai = errors.is_openai(head.target)
        return errors.unknown_model(miss.text, miss.hint, openai=openai, models=miss.models)
    return errors.unknown_host(miss.hint)


def beginning(head: RequestHead, found: Found, *, without_token: bool) -> bytes:
    """Return the head that the replica gets, up to what tells of the client.

    Args:
        without_token: The token is for us, not for the model server.
    """
    target = head.target[found.cut :]
    if target[:1] != b"/" and target != b"*":
        target = b"/" + target
    lines = _AUTHORIZATION.sub(b"", head.lines) if without_token else head.lines
    return b"%b %b HTTP/1.1\r\n%b%b" % (head.method, target, lines, found.route.lines)


def forwarding(peer: str) -> bytes:
    """Return the header lines that tell of a client."""
    return b"%b%b\r\nX-Forwarded-Proto: http\r\n" % (_FORWARDED_FOR, peer.encode())


def forwarded(head: RequestHead, suffix: bytes) -> bytes:
    """Return what `forwarding` gave, behind those whom the request has passed already."""
    if not head.forwarded_for:
        return suffix
    return b"%b%b, %b" % (_FORWARDED_FOR, head.forwarded_for, suffix[len(_FORWARDED_FOR) :])
