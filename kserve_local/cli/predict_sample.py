"""The body that `predict NAME` sends when it is given none.

Made from what the model says of its inputs (V2's `/v2/models/NAME`): each one of its shape, zeros,
an unknown dimension as 1. Servers that describe none (KServe's sklearn server, most predictors of
one's own) get the `request.json` that lies beside their manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kserve_local.errors import KServeLocalError, UsageError
from kserve_local.modelfiles import sample_requests
from kserve_local.modelfiles.graphs import Tensor

if TYPE_CHECKING:
    from kserve_local.settings import Settings

FILE = "request.json"
_MOST_VALUES = 4_000_000
_SHOWN = 160

Get = Callable[[str], tuple[int, bytes]]
"""Path below the service -> status and body of the answer to a GET."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A body and how it came about.

    Args:
        data: As DATA names it on the command line: the JSON itself, or `@FILE`.
        origin: `made from the model's metadata`, `from request.json`.
    """

    body: bytes
    data: str
    origin: str

    def told(self) -> str:
        """Return the line that says what was sent."""
        text = " ".join(self.body.decode("utf-8", "replace").split())
        short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return f"sent: {short} ({self.origin})"


def find(
    settings: Settings, name: str, namespace: str, model: str, protocol: str, get: Get
) -> Sample:
    """Return what to send to a model.

    Args:
        protocol: `v1`, `v2`, `grpc`, or empty for what fits.

    Raises:
        UsageError: The model describes no inputs, and there is no file.
    """
    inputs = described(get, model)
    if inputs:
        made = (sample_requests.v1 if protocol == "v1" else sample_requests.v2)(inputs)
        body = json.dumps(made).encode()
        return Sample(body, body.decode(), "made from the model's metadata")
    path = _file(settings, name, namespace)
    try:
        body = path.read_bytes()
        if protocol in ("v2", "grpc") and (made_v2 := as_v2(body)) is not None:
            origin = f"the rows of {_shown(path, settings)} as V2"
            return Sample(made_v2, made_v2.decode(), origin)
        return Sample(body, f"@{path}", f"from {_shown(path, settings)}")
    except OSError as error:
        raise UsageError(
            f"no request data: {name} does not describe its inputs, and there is no {FILE} beside "
            f"its manifest ({_shown(path, settings)})",
            hint=f"kserve-local predict {name} @request.json   (or '-' for stdin, or the JSON)",
        ) from error


def as_v2(body: bytes) -> bytes | None:
    """Return a V1 body's rows as one V2 tensor; None if it is no V1 body with rows of numbers."""
    try:
        rows = json.loads(body)["instances"]
        shape = [len(rows), len(rows[0])]
        data = [float(value) for row in rows for value in row]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    if len(data) != shape[0] * shape[1]:
        return None
    tensor = {"name": "input-0", "shape": shape, "datatype": "FP64", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def described(get: Get, model: str) -> list[Tensor]:
    """Return the inputs that the model's metadata names, none if that is of no help."""
    status, answer = get(f"/v2/models/{quote(model, safe='')}")
    try:
        inputs = [_tensor(t) for t in json.loads(answer)["inputs"]] if status == 200 else []
    except (ValueError, KeyError, TypeError):
        return []
    return inputs if sum(sample_requests.size(t) for t in inputs) <= _MOST_VALUES else []


def _tensor(found: Mapping[str, Any]) -> Tensor:
    """Return an input of the metadata.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    # Some servers write int64 as protobuf's JSON does, as a text.
    shape = tuple(int(size) for size in found["shape"])
    return Tensor(str(found["name"]), str(found["datatype"]), shape)


def _file(settings: Settings, name: str, namespace: str) -> Path:
    """Return where a service's sample lies: beside its manifest, as far as that is known."""
    from kserve_local.api import names, scheme
    from kserve_local.api.meta import annotations_of
    from kserve_local.cli.session import run
    from kserve_local.client.client import Client

    async def fetch(client: Client) -> Any:
        return await client.get(scheme.INFERENCE_SERVICE, name, namespace)

    try:
        manifest = annotations_of(run(settings, fetch)).get(names.MANIFEST, "")
    except KServeLocalError:
        manifest = ""
    beside = (settings.project / manifest).parent / FILE
    return beside if manifest and beside.is_file() else settings.project / FILE


def _shown(path: Path, settings: Settings) -> str:
    try:
        return str(path.relative_to(settings.project))
    except ValueError:
        return str(path)
