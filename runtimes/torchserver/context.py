"""What TorchServe hands to a handler beside the data: the context of a worker and of a request.

Names and meanings are TorchServe's (`ts.context.Context`, its metrics cache), because handlers use
them; the code is ours. Metrics that a handler records are log lines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# What `system_properties["server_version"]` says: the TorchServe of KServe's runtime.
SERVER_VERSION = "0.9.0"


class Metrics:
    """The recorder at `context.metrics`."""

    def add_counter(self, name: str, value: float, idx: Any = None, dimensions: Any = None) -> None:
        """Record a count."""
        _record(name, value, "count")

    def add_time(
        self, name: str, value: float, idx: Any = None, unit: str = "ms", dimensions: Any = None
    ) -> None:
        """Record a duration."""
        _record(name, value, unit)

    def add_size(
        self, name: str, value: float, idx: Any = None, unit: str = "MB", dimensions: Any = None
    ) -> None:
        """Record a size."""
        _record(name, value, unit)

    def add_percent(self, name: str, value: float, idx: Any = None, dimensions: Any = None) -> None:
        """Record a share."""
        _record(name, value, "percent")

    def add_error(self, name: str, value: Any, dimensions: Any = None) -> None:
        """Record an error."""
        _record(name, value, "error")

    def add_metric(self, *args: Any, **kwargs: Any) -> Metric:
        """Record a value under any name, or with a name alone make a metric to record to."""
        metric = Metric(str(args[0] if args else kwargs.get("metric_name", kwargs.get("name", ""))))
        value = kwargs.get("value", args[1] if len(args) > 1 else None)
        if isinstance(value, (int, float)):
            metric.add_or_update(value)
        return metric

    add_metric_to_cache = add_metric

    def get_metric(self, metric_name: str, metric_type: Any = None) -> Metric:
        """Return a metric to record to."""
        return Metric(metric_name)


class Metric:
    """One named metric."""

    def __init__(self, name: str) -> None:
        self.name = name

    def add_or_update(
        self, value: float, dimension_values: Sequence[str] = (), request_id: str = ""
    ) -> None:
        """Record a value."""
        _record(self.name, value, "")


def _record(name: str, value: Any, unit: str) -> None:
    logger.debug("[METRICS]%s%s:%s", name, f".{unit}" if unit else "", value)


class Context:
    """A worker's context. One request is in flight at a time; `begin` sets it.

    Args:
        folder: The unpacked archive.
        gpu: Number of the GPU, None on the CPU.
        config: The archive's `configFile` as an object.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        manifest: dict[str, Any],
        *,
        gpu: int | None,
        batch_size: int,
        config: dict[str, Any],
    ) -> None:
        self.model_name = name
        self.manifest = manifest
        self.system_properties: dict[str, Any] = {
            "model_dir": str(folder),
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": SERVER_VERSION,
            "limit_max_image_pixels": True,
        }
        self.model_yaml_config = config
        self.metrics = Metrics()
        self.request_ids: dict[int, str] | None = None
        self._headers: dict[str, Any] = {}
        self._response_headers: dict[str, str] = {}
        self._status: tuple[int, str] = (200, "")

    def begin(self, request_id: str, headers: Mapping[str, str]) -> None:
        """Begin a request."""
        self.request_ids = {0: request_id}
        self._headers = dict(headers)
        self._response_headers = {}
        self._status = (200, "")

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of request `idx`."""
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """Return a header of request `idx`, None if it was not sent."""
        found = self._headers.get(key)
        return self._headers.get(key.lower()) if found is None else found

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """Return all headers of request `idx`."""
        return self._headers

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type; KServe's envelope sends JSON whatever it is."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """Return the content type set."""
        return self._response_headers.get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header; KServe's server in front of TorchServe does not pass it on."""
        self._response_headers[key] = value

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """Return the headers set."""
        return self._response_headers

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of the answer."""
        self._status = (code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of all answers of the batch, which is one."""
        self._status = (code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str]:
        """Return status and phrase."""
        return self._status
