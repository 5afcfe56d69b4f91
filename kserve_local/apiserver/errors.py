"""Our exceptions as `metav1.Status`, what kubectl prints on failure. Pure."""

from __future__ import annotations

from typing import Any

from kserve_local.api.meta import Object
from kserve_local.apiserver.paths import Target
from kserve_local.errors import Invalid, KServeLocalError, TimedOut, status_of


def failure(error: KServeLocalError, target: Target | None = None) -> Object:
    """Return the `Status` for an error; its `code` is the HTTP status.

    Args:
        target: What the request was about, for `details`.
    """
    code, reason = status_of(error)
    details: dict[str, Any] = {}
    if target is not None:
        # An Invalid names the kind, everything else the resource, as the API machinery does.
        kind = target.kind.kind if isinstance(error, Invalid) else target.kind.plural
        details = {"name": target.name, "group": target.kind.group, "kind": kind}
        details = {k: v for k, v in details.items() if v}
    if error.causes:
        details["causes"] = [
            {"reason": c.reason, "message": c.message, "field": c.field} for c in error.causes
        ]
    if isinstance(error, TimedOut):
        details["retryAfterSeconds"] = 1
    return _status("Failure", error.message, reason, details, code)


def success(target: Target, uid: str) -> Object:
    """Return the `Status` of a deletion that is done."""
    details = {"name": target.name, "group": target.kind.group, "kind": target.kind.plural}
    details["uid"] = uid
    details = {k: v for k, v in details.items() if v}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"} | (
        {"details": details} if details else {}
    )


def _status(status: str, message: str, reason: str, details: dict[str, Any], code: int) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": status,
        "message": message,
        "reason": reason,
        **({"details": details} if details else {}),
        "code": code,
    }
