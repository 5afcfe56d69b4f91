"""Every exception kserve-local raises, and the one table from class to HTTP code and Kubernetes
reason.

The API server (`metav1.Status`), the gateway (OIP or OpenAI body) and the CLI (exit code, UX.md
3.3) only dress what is said here. Messages name the object, the field and the way out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """One `details.causes[]` entry of a Kubernetes `Status`."""

    reason: str
    message: str
    field: str = ""


class KServeLocalError(Exception):
    """Base of all our errors. `str(error)` is the whole message a user reads.

    Args:
        message: What happened, to which object and field, and what helps.
        causes: Field-level causes for a `Status` answer.
        hint: A command or edit that helps, printed by the CLI below the message.
        details: What the message says, for programs; plain JSON values.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        causes: Sequence[Cause] = (),
        hint: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.causes = tuple(causes)
        self.hint = hint
        self.details = dict(details or {})


class UsageError(KServeLocalError):
    """A flag, argument or value on the command line is wrong."""

    exit_code = 2


class BadRequest(KServeLocalError):
    """A request cannot be read: broken JSON, unknown selector, strict decoding."""

    exit_code = 3


class Invalid(KServeLocalError):
    """An object breaks its schema, a CEL rule or a validation rule (422)."""

    exit_code = 3


class InvalidImageName(Invalid):
    """What a Pod names as an image can be no image's name."""


class Forbidden(KServeLocalError):
    """An admission webhook refused, or the caller may not (403)."""

    exit_code = 3


class Unauthorized(KServeLocalError):
    """No or a wrong bearer token (401)."""

    exit_code = 11


class NotFound(KServeLocalError):
    """The object, resource type or path does not exist (404)."""

    exit_code = 11


class MethodNotAllowed(KServeLocalError):
    """The path exists but not with this method (405)."""

    exit_code = 11


class AlreadyExists(KServeLocalError):
    """Create of a name that is taken (409)."""

    exit_code = 11


class Conflict(KServeLocalError):
    """A stale resourceVersion, or a field owned by another manager (409)."""

    exit_code = 11


class Gone(KServeLocalError):
    """The resourceVersion is older than what the store keeps (410, `Expired`)."""

    exit_code = 11


class UnsupportedMediaType(KServeLocalError):
    """A patch or body type that this resource does not take (415)."""

    exit_code = 11


class NotAcceptable(KServeLocalError):
    """No representation in the Accept header can be produced (406)."""

    exit_code = 11


class QueueFull(KServeLocalError):
    """A bounded queue is full; try again later (503)."""

    exit_code = 9


class ServiceUnavailable(KServeLocalError):
    """What is needed does not run or is not ready (503)."""

    exit_code = 4


class TimedOut(KServeLocalError):
    """A bounded wait ended (504)."""

    exit_code = 5


class PortTaken(KServeLocalError):
    """A port is held by somebody else, or the project runs with conflicting flags."""

    exit_code = 6


class Missing(KServeLocalError):
    """Something needed on this machine is missing: Docker, a package, an interpreter."""

    exit_code = 7


class StorageError(KServeLocalError):
    """A model could not be fetched: scheme, credentials, network, content."""

    exit_code = 8


class NoModel(StorageError):
    """A source is there and can be read, and no model is where it should be in it."""


class ModelError(KServeLocalError):
    """A model answered with an error."""

    exit_code = 9


class ThresholdFailed(KServeLocalError):
    """What was measured or compared is not as it was asked to be."""

    exit_code = 10


class StateDamaged(KServeLocalError):
    """The state database is damaged or written by a newer version; it was left untouched."""

    exit_code = 1


class StateLocked(KServeLocalError):
    """Another process owns the state database."""

    exit_code = 6


class ApiError(KServeLocalError):
    """The Kubernetes API answered with a failure that has no class of its own.

    Args:
        code: The HTTP status.
        reason: `Status.reason`.
    """

    exit_code = 11

    def __init__(self, message: str, *, code: int = 500, reason: str = "InternalError") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


_STATUS: dict[type[KServeLocalError], tuple[int, str]] = {
    BadRequest: (400, "BadRequest"),
    UsageError: (400, "BadRequest"),
    Unauthorized: (401, "Unauthorized"),
    Forbidden: (403, "Forbidden"),
    NotFound: (404, "NotFound"),
    MethodNotAllowed: (405, "MethodNotAllowed"),
    NotAcceptable: (406, "NotAcceptable"),
    AlreadyExists: (409, "AlreadyExists"),
    Conflict: (409, "Conflict"),
    Gone: (410, "Expired"),
    UnsupportedMediaType: (415, "UnsupportedMediaType"),
    Invalid: (422, "Invalid"),
    QueueFull: (503, "ServiceUnavailable"),
    ServiceUnavailable: (503, "ServiceUnavailable"),
    TimedOut: (504, "Timeout"),
    KServeLocalError: (500, "InternalError"),
}


def status_of(error: KServeLocalError) -> tuple[int, str]:
    """Return the HTTP code and Kubernetes reason of the nearest listed ancestor."""
    if isinstance(error, ApiError):
        return error.code, error.reason
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)


def from_exit_code(exit_code: int, message: str, *, hint: str = "") -> KServeLocalError:
    """Return the error that another of our processes ended with."""
    error = _OF_EXIT_CODE.get(exit_code, KServeLocalError)(message, hint=hint)
    error.exit_code = exit_code
    return error


_OF_EXIT_CODE: dict[int, type[KServeLocalError]] = {
    error.exit_code: error
    for error in (
        UsageError, Invalid, ServiceUnavailable, TimedOut, PortTaken, Missing, StorageError,
    )
}  # fmt: skip


def from_status(code: int, reason: str, message: str) -> KServeLocalError:
    """Return the error a `Status` answer stands for; the inverse of `status_of` for clients."""
    for cls, listed in _STATUS.items():
        if listed == (code, reason) and cls not in (UsageError, QueueFull):
            return cls(message)
    return ApiError(message, code=code, reason=reason or "Unknown")
