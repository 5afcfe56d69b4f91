"""Every error the data plane answers with, and the one place that turns an exception into a status
and a body, or into a gRPC code and details. Names, texts and statuses are KServe's
(`kserve.errors`, its exception handlers).

A model raises these to choose the answer; any other exception becomes a 500
`<ClassName> : <text>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class DataPlaneError(Exception):
    """Base of the errors with a fixed status; `str(error)` is the text of the answer."""

    status = 500


class InvalidInput(DataPlaneError):
    """The client's fault: 400."""

    status = 400


class InferenceError(DataPlaneError):
    """The model could not answer: 500, `[<code>] <text>` when a code is given; gRPC has no code."""

    def __init__(self, reason: str, code: str | None = None) -> None:
        self.reason = reason
        super().__init__(f"[{code}] {reason}" if code else reason)


MODELS_HEADER = "x-kserve-local-models"
"""Beside KServe's answer for an unknown model: those that are there. Ours; no cluster has it."""
_MOST_MODELS = 20


class ModelNotFound(DataPlaneError):
    """No model of that name is registered: 404.

    Args:
        served: The names that are registered, for `MODELS_HEADER`.
    """

    status = 404

    def __init__(self, name: str, served: Iterable[str] = ()) -> None:
        super().__init__(f"Model with name {name} does not exist.")
        self.served = tuple(served)

    def headers(self) -> dict[str, str]:
        """Return the extra headers of the answer: at most 20 names, as printable ASCII."""
        names = ", ".join(self.served[:_MOST_MODELS])
        clean = "".join(c if " " <= c <= "~" else "?" for c in names)
        return {MODELS_HEADER: clean} if clean else {}


class ModelNotReady(DataPlaneError):
    """The model is registered but does not serve (yet): 503."""

    status = 503

    def __init__(self, name: str, detail: str | None = None) -> None:
        text = f"Model with name {name} is not ready."
        super().__init__(f"{text} {detail}" if detail else text)


class ServerNotReady(DataPlaneError):
    """503 for the whole server."""

    status = 503

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(f"Server is not ready. {detail}" if detail else "Server is not ready.")


class ServerNotLive(DataPlaneError):
    """503 for the whole server."""

    status = 503

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(f"Server is not live. {detail}" if detail else "Server is not live.")


class UnsupportedProtocol(DataPlaneError):
    """501."""

    status = 501

    def __init__(self, protocol: str) -> None:
        super().__init__(f"Unsupported protocol {protocol}.")


class UnrecognizedRequest(DataPlaneError):
    """A body that is not JSON, outside the V2 JSON schema: 400."""

    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"Unrecognized request format: {reason}")


class CloudEventError(DataPlaneError):
    """A CloudEvent whose attributes make no sense: 400."""

    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"Cloud Event Exceptions: {reason}")


class HTTPError(Exception):
    """An answer `{"detail": ...}` with any status, as the web framework of the reference gives.

    Args:
        detail: Any JSON value.
        headers: Extra headers of the answer.
    """

    def __init__(
        self, status: int, detail: object, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


class LoadError(Exception):
    """A model could not be loaded at start; the text is what the log and the Pod's status show."""


def answer_of(error: BaseException) -> tuple[int, dict[str, object], dict[str, str]]:
    """Return status, JSON body and extra headers of the answer to `error`."""
    if isinstance(error, DataPlaneError):
        headers = error.headers() if isinstance(error, ModelNotFound) else {}
        return error.status, {"error": str(error)}, headers
    if isinstance(error, HTTPError):
        return error.status, {"detail": error.detail}, error.headers
    if isinstance(error, NotImplementedError):
        return 501, {"error": str(error)}, {}
    return 500, {"error": f"{type(error).__name__} : {error}"}, {}


# gRPC status codes by name; of the classes in an error's ancestry the first one counts.
_GRPC: dict[type[Exception], str] = {
    InvalidInput: "INVALID_ARGUMENT",
    InferenceError: "INVALID_ARGUMENT",
    UnsupportedProtocol: "INVALID_ARGUMENT",
    ModelNotFound: "NOT_FOUND",
    ModelNotReady: "UNAVAILABLE",
    ServerNotReady: "UNAVAILABLE",
    ServerNotLive: "UNAVAILABLE",
    NotImplementedError: "UNIMPLEMENTED",
}


def grpc_answer_of(error: BaseException) -> tuple[str, str]:
    """Return the name of the gRPC status code and the details of the answer to `error`."""
    code = next((_GRPC[kind] for kind in type(error).__mro__ if kind in _GRPC), None)
    if code is None:
        return "INTERNAL", "Internal server error"
    return code, error.reason if isinstance(error, InferenceError) else str(error)
