"""The echo server of the conformance corpus (`models/echo_model.py`) on our own Model protocol.

    python echo_port.py --http_port 8080

Same models, same parameters, same answers; what differs is the interface it is written against:
`modelserver` instead of the `kserve` SDK.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modelserver import errors
from modelserver.cli import make_parser
from modelserver.model import InferInput, InferOutput, InferRequest, InferResponse, Model
from modelserver.oip import new_id
from modelserver.serve import serve

SHOWN_HEADERS = ("x-request-id", "x-custom", "authorization")


class CustomError(Exception):
    """An exception that the server knows nothing about."""


def raise_kind(kind: str, message: str) -> None:
    """Raise the exception that a request asks for."""
    kinds: dict[str, Callable[[], Exception]] = {
        "invalid_input": lambda: errors.InvalidInput(message),
        "inference_error": lambda: errors.InferenceError(message),
        "inference_error_status": lambda: errors.InferenceError(message, "E42"),
        "model_not_found": lambda: errors.ModelNotFound(message),
        "model_not_ready": lambda: errors.ModelNotReady(message),
        "model_not_ready_detail": lambda: errors.ModelNotReady(message, "still loading"),
        "not_implemented": lambda: NotImplementedError(message),
        "unsupported_protocol": lambda: errors.UnsupportedProtocol(message),
        "server_not_ready": lambda: errors.ServerNotReady(),
        "server_not_live": lambda: errors.ServerNotLive(message),
        "value_error": lambda: ValueError(message),
        "key_error": lambda: KeyError(message),
        "zero_division": lambda: ZeroDivisionError(message),
        "custom": lambda: CustomError(message),
        "http_418": lambda: errors.HTTPError(418, message),
        "http_409_obj": lambda: errors.HTTPError(
            409, {"code": 7, "why": message}, {"x-why": "conflict"}
        ),
        "assertion": lambda: AssertionError(message),
    }
    if kind not in kinds:
        raise errors.InvalidInput(f"unknown raise kind {kind}")
    raise kinds[kind]()


RESPONSE_PARAMETERS: dict[str, dict[str, Any]] = {
    "str": {"s": "text"},
    "int": {"i": 7},
    "bool": {"b": True},
    "all": {"s": "text", "i": 7, "b": True},
    "float": {"f": 0.5},
}


class EchoModel(Model):
    """Answers a V2 request with its own tensors, a V1 request with its payload."""

    def __init__(self, name: str, *, with_metadata: bool = True) -> None:
        super().__init__(name)
        self._with_metadata = with_metadata

    def input_types(self) -> list[dict[str, Any]]:
        if not self._with_metadata:
            return []
        return [
            {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1]},
        ]

    def output_types(self) -> list[dict[str, Any]]:
        return self.input_types()[:1]

    def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> object:
        if isinstance(payload, dict):
            if "raise" in payload:
                raise_kind(payload["raise"], payload.get("message", "boom"))
            data = payload["inputs"] if "inputs" in payload else payload.get("instances")
            return {"predictions": data, "payload_type": "dict", "keys": sorted(payload)}
        if isinstance(payload, bytes):
            return {
                "payload_type": "bytes",
                "length": len(payload),
                "text": payload.decode("latin-1"),
            }
        return {"payload_type": type(payload).__name__, "predictions": payload}

    def predict(self, request: InferRequest) -> InferResponse | dict[str, Any]:
        asked = request.parameters or {}
        if "raise" in asked:
            raise_kind(asked["raise"], asked.get("message", "boom"))
        if asked.get("mode") == "dict" and not asked.get("summary"):
            return self._as_dict(request)
        if asked.get("summary"):
            outputs = [summary(request, show_headers=bool(asked.get("show_headers")))]
        else:
            outputs = [echo(tensor, asked) for tensor in request.inputs]
        return InferResponse(
            self.name,
            outputs,
            request.id,
            model_version=asked.get("version"),
            parameters=RESPONSE_PARAMETERS.get(asked.get("response_parameters", "")),
        )

    def _as_dict(self, request: InferRequest) -> dict[str, Any]:
        return {
            "id": request.id or new_id(),
            "model_name": self.name,
            "outputs": [
                {
                    "name": tensor.name,
                    "shape": tensor.shape,
                    "datatype": tensor.datatype,
                    "data": tensor.as_numpy().flatten().tolist(),
                }
                for tensor in request.inputs
            ],
        }


def echo(tensor: InferInput, asked: Mapping[str, Any]) -> InferOutput:
    """Return the input as an output, handed over as the request's `mode` says."""
    parameters: dict[str, Any] | None = None
    if asked.get("output_parameters"):
        parameters = {"note": "hi", "k": 3}
    if asked.get("echo_parameters"):
        parameters = {**(parameters or {}), **(tensor.parameters or {})}
    name = asked.get("prefix", "") + tensor.name
    if asked.get("drop") == tensor.name:
        return InferOutput(name, tensor.shape, tensor.datatype, None, parameters)
    array = tensor.as_numpy()
    mode = asked.get("mode", "set")
    if mode == "numpy":
        return InferOutput(name, tensor.shape, tensor.datatype, array, parameters)
    if mode == "list":
        flat = array.flatten().tolist()
        return InferOutput(name, tensor.shape, tensor.datatype, flat, parameters)
    return InferOutput(name, array.shape, tensor.datatype, array, parameters)


def summary(request: InferRequest, *, show_headers: bool) -> InferOutput:
    """Return one BYTES output that tells how the model saw the request."""
    text = json.dumps(
        {
            "id": request.id,
            "model_name": request.model_name,
            "model_version": request.model_version,
            "from_grpc": request.from_grpc,
            "use_binary_outputs": request.wants_binary,
            "parameters": {
                name: value
                for name, value in sorted((request.parameters or {}).items())
                if name not in ("summary", "show_headers")
            },
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": list(tensor.shape),
                    "parameters": dict(sorted((tensor.parameters or {}).items())),
                }
                for tensor in request.inputs
            ],
            "outputs": None
            if request.outputs is None
            else [
                {
                    "name": output.name,
                    "parameters": output.parameters or {},
                    "binary_data": output.binary_data,
                }
                for output in request.outputs
            ],
            **(
                {"headers": {n: request.headers[n] for n in SHOWN_HEADERS if n in request.headers}}
                if show_headers
                else {}
            ),
        },
        sort_keys=True,
    )
    return InferOutput("summary", [1], "BYTES", np.array([text.encode()], dtype=np.object_))


class RaiseModel(EchoModel):
    """Raises what the request names: V1 `kind` and `message`, V2 parameters of the same names."""

    def predict(self, request: InferRequest) -> InferResponse:
        asked = request.parameters or {}
        raise_kind(asked.get("kind", "value_error"), asked.get("message", "boom"))
        raise AssertionError("unreachable")

    def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> object:
        raise_kind(payload.get("kind", "value_error"), payload.get("message", "boom"))
        return None

    explain_v1 = predict_v1


class NotReadyModel(EchoModel):
    """Loads, but never says that it is healthy."""

    def healthy(self) -> bool:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    args, _ = make_parser("echo").parse_known_args(argv)
    models: list[Model] = [
        EchoModel("echo"),
        RaiseModel("raise"),
        NotReadyModel("notready"),
        EchoModel("a.b:c"),
        EchoModel("with space"),
        EchoModel("modèle-日本"),
        EchoModel("nometa", with_metadata=False),
    ]
    return serve(args, lambda: (models, None))


if __name__ == "__main__":
    sys.exit(main())
