"""What a model is to the server: the `Model` base class and the values that go in and out.

A model server is one subclass of `Model` (anything) or `RowModel` (rows in, rows out, which the
server may batch) and a three-line `__main__`; see `modelserver.serve`. The values mirror KServe's
`InferRequest`/`InferResponse` in meaning, not in code: plain classes, no wire format inside.

    class Doubler(Model):
        def load(self) -> bool:                      # slow work; before the server listens
            self.ready = True
            return True

        def predict(self, request: InferRequest) -> InferResponse:
            x = request.inputs[0].as_numpy()
            return InferResponse(self.name, [InferOutput.of("output-0", 2 * x)], id=request.id)

Rules the server keeps:

* `load` runs before the server listens, or for the repository API in a worker thread; `unload`
  when the model leaves the repository or the server ends.
* A model's methods are never called by two threads at once. Calls that turn out to be fast run on
  the event loop, slow ones in one worker thread per model (so health checks still answer).
* `predict`, `predict_v1`, `explain_v1` may be `async def`; such calls run concurrently, each in a
  task on the event loop, cancelled when the client goes away.
* Exceptions choose the answer: see `modelserver.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from modelserver import tensors
from modelserver.errors import InferenceError, InvalidInput
from modelserver.tensors import Array

Parameters = dict[str, Any]


class RequestedOutput:
    """An entry of a request's `outputs`: which output, and whether as a binary tensor.

    Args:
        parameters: As sent; `binary_data` decides the form of this output.
    """

    __slots__ = ("name", "parameters")

    def __init__(self, name: str, parameters: Parameters | None = None) -> None:
        self.name = name
        self.parameters = parameters

    @property
    def binary_data(self) -> bool | None:
        """What the client asked for this output; None: nothing."""
        value = (self.parameters or {}).get("binary_data")
        return None if value is None else bool(value)


class InferInput:
    """One input tensor.

    Args:
        shape: As the client wrote it; one -1 is allowed for JSON data.
        datatype: Upper case OIP datatype.
        data: JSON elements, nested or flat; None when `raw` holds the tensor.
        raw: The binary tensor, little endian, row-major.
    """

    __slots__ = ("data", "datatype", "name", "parameters", "raw", "shape")

    def __init__(
        self,
        name: str,
        shape: list[int],
        datatype: str,
        data: list[Any] | None = None,
        parameters: Parameters | None = None,
        raw: bytes | memoryview | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.datatype = datatype
        self.data = data
        self.parameters = parameters
        self.raw = raw

    def as_numpy(self) -> Array:
        """Return the tensor in its declared shape and dtype; BYTES is an `object` array of `str`.

        Raises:
            InvalidInput: The datatype is unknown.
            InferenceError, ValueError, TypeError, OverflowError: The data do not fit.
        """
        if self.raw is not None:
            return tensors.from_raw(self.raw, self.datatype, self.shape)
        return tensors.from_json(self.data or [], self.datatype, self.shape)


class InferRequest:
    """One V2 request as the model sees it.

    Args:
        id: The client's id, or None; the server fills in a new one when the response has none.
        outputs: Requested outputs; None or empty: all.
        headers: Request headers (gRPC: metadata), names in lower case.
        model_version: As asked for over gRPC; REST refuses versions.
        raw: Over gRPC whether the tensors came as raw bytes, and so go back; None: it is REST.
    """

    __slots__ = (
        "headers",
        "id",
        "inputs",
        "model_name",
        "model_version",
        "outputs",
        "parameters",
        "raw",
    )

    def __init__(
        self,
        model_name: str,
        inputs: list[InferInput],
        id: str | None = None,
        parameters: Parameters | None = None,
        outputs: list[RequestedOutput] | None = None,
        headers: Mapping[str, str] | None = None,
        model_version: str | None = None,
        raw: bool | None = None,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.raw = raw
        self.inputs = inputs
        self.id = id
        self.parameters = parameters
        self.outputs = outputs
        self.headers: Mapping[str, str] = headers if headers is not None else {}

    @property
    def from_grpc(self) -> bool:
        """The request came over gRPC."""
        return self.raw is not None

    @property
    def binary_by_default(self) -> bool:
        """The client wants every output as a binary tensor (`binary_data_output`)."""
        return bool((self.parameters or {}).get("binary_data_output"))

    @property
    def wants_binary(self) -> bool:
        """At least one output is to be sent as a binary tensor."""
        if self.raw is not None:
            return self.raw
        if self.outputs:
            return any(output.binary_data for output in self.outputs)
        return self.binary_by_default


class InferOutput:
    """One output tensor. `data` is an array of any shape or a flat list; None is an error (400)
    when the output is sent.
    """

    __slots__ = ("data", "datatype", "name", "parameters", "shape")

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: Array | list[Any] | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.name = name
        self.shape = list(shape)
        self.datatype = datatype
        self.data = data
        self.parameters = parameters

    @classmethod
    def of(cls, name: str, array: Array, parameters: Parameters | None = None) -> InferOutput:
        """Return `array` as an output of its own shape and datatype (text becomes BYTES)."""
        return cls(name, array.shape, tensors.datatype_of(array.dtype), array, parameters)


class InferResponse:
    """One V2 answer. The server selects and orders outputs as the request asks and decides between
    JSON and binary; `id` None means the request's, or a new one.
    """

    __slots__ = ("id", "model_name", "model_version", "outputs", "parameters")

    def __init__(
        self,
        model_name: str,
        outputs: list[InferOutput],
        id: str | None = None,
        model_version: str | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self.model_name = model_name
        self.outputs = outputs
        self.id = id
        self.model_version = model_version
        self.parameters = parameters


# What V1 handlers may return: a JSON value (numpy allowed), text or bytes as they are, or a stream.
V1Result = object
V2Result = InferResponse | dict[str, Any]


class Model:
    """A served model. Subclasses override what they offer; `ready` is True once it can predict."""

    platform = ""
    # Whose V2 answers a server gives that stands in for another's: `kserve` or `mlserver`. Of the
    # process, set once before models are made.
    answers: ClassVar[str] = "kserve"

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False

    def load(self) -> bool:
        """Make the model ready; may be slow. Returns and sets `ready`.

        Raises:
            LoadError: With the words for the log and the Pod's status.
        """
        self.ready = True
        return True

    def unload(self) -> None:
        """Let go of what `load` took."""
        self.ready = False

    def healthy(self) -> bool:
        """Return whether the model can predict now; readiness endpoints ask this."""
        return self.ready

    def predict(self, request: InferRequest) -> V2Result | Awaitable[V2Result]:
        """Answer a V2 request. A dict with `model_name`, `id` and `outputs` is sent as it is.

        Raises:
            NotImplementedError: The model does not speak V2 (501).
        """
        raise NotImplementedError("Could not find predictor_host.")

    def predict_v1(
        self, payload: Any, headers: Mapping[str, str]
    ) -> V1Result | Awaitable[V1Result] | AsyncIterator[bytes]:
        """Answer a V1 request. `payload` is any JSON value, or `bytes` for other content types."""
        raise NotImplementedError("Could not find predictor_host.")

    def explain_v1(self, payload: Any, headers: Mapping[str, str]) -> V1Result:
        """Answer a V1 `:explain` request."""
        raise NotImplementedError("Could not find explainer_host.")

    def input_types(self) -> list[dict[str, Any]]:
        """Return `{"name", "datatype", "shape"}` per input for the metadata endpoint."""
        return []

    def output_types(self) -> list[dict[str, Any]]:
        """Return `{"name", "datatype", "shape"}` per output for the metadata endpoint."""
        return []


class RowModel(Model):
    """A model whose answer to a row does not depend on the other rows of the call.

    The server prepares each request on arrival, computes requests that wait together in one call
    when `batch_key` says that they may share it, and answers each from its own rows. `batchable`
    must be True only if `compute` on stacked rows gives the same bits as on each request alone; the
    server checks that on the first requests it stacks.
    """

    batchable = False
    # The name of the only output, if `respond` makes nothing but that one output of `y`: the server
    # may then write the answer without calling it.
    only_output: str | None = None

    def prepare(self, request: InferRequest) -> Any:
        """Return what `compute` takes, from the request's tensors."""
        raise NotImplementedError

    def prepare_v1(self, payload: Any, headers: Mapping[str, str]) -> Any:
        """Return what `compute` takes, from a V1 body."""
        raise NotImplementedError

    def compute(self, x: Any) -> Any:
        """Predict; `len(result)` equals `len(x)` for anything that `batch_key` let in."""
        raise NotImplementedError

    def respond(self, request: InferRequest, y: Any) -> V2Result:
        """Return the V2 answer that carries `y`."""
        raise NotImplementedError

    def respond_v1(self, y: Any) -> V1Result:
        """Return the V1 answer that carries `y`."""
        raise NotImplementedError

    def batch_key(self, x: Any) -> Hashable | None:
        """Return what must be equal for inputs to be stacked, or None: compute `x` alone."""
        if isinstance(x, _NDARRAY) and x.ndim == 2 and len(x) and x.dtype.kind in "biuf":
            return (x.dtype.num, x.shape[1])
        return None

    def predict(self, request: InferRequest) -> V2Result:
        """Answer one V2 request by itself, as the server does for requests that it cannot batch."""
        return self.respond(request, self.compute(self.prepare(request)))

    def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> V1Result:
        """Answer one V1 request by itself."""
        return self.respond_v1(self.compute(self.prepare_v1(payload, headers)))


_NDARRAY = np.ndarray

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceError",
    "InvalidInput",
    "Model",
    "RequestedOutput",
    "RowModel",
]
