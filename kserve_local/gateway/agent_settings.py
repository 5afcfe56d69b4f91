"""The arguments of a Pod's `agent` container, read as KServe's agent reads them. Pure.

The gateway does that container's work, so what stands in the Pod is what it does. Flags and their
defaults are those of KServe v0.20 (cmd/agent/main.go; traffic.md section 6).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_BATCH_SIZE = 32
MAX_LATENCY = 5.0
AGENT_PORT = 9081
MARSHALLER = "http://localhost:9083/marshal"
"""Where the agent's own marshaller listens: what is asked of this URL is done in the gateway."""

_SWITCHES = frozenset(("--enable-batcher", "--enable-puller"))
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class LoggerSettings:
    """What is logged and where it goes.

    Args:
        source: `Ce-Source`.
        mode: `all`, `request` or `response`.
        headers: Canonical names of the request headers that become metadata.
        annotations: Sent with each event.
        batch_size / batch_interval: Records an object, and seconds until a smaller one; storage
            only.
    """

    url: str
    source: str
    mode: str
    service: str
    namespace: str
    endpoint: str
    component: str
    headers: frozenset[str]
    annotations: Mapping[str, str]
    certificate: str
    skip_verify: bool
    store_path: str
    store_format: str
    marshaller: str
    batch_size: int
    batch_interval: float


@dataclass(frozen=True, slots=True)
class BatcherSettings:
    """How many instances make a batch, and how many seconds the first of them waits for it."""

    max_size: int
    max_latency: float


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What one agent does; None: not that."""

    logger: LoggerSettings | None
    batcher: BatcherSettings | None


def read_args(args: Sequence[str]) -> AgentSettings:
    """Return what an agent with these arguments does."""
    flags = _flags(args)
    logger = None
    if flags.get("--log-url"):
        logger = LoggerSettings(
            url=flags["--log-url"],
            source=flags.get("--source-uri") or f"http://localhost:{AGENT_PORT}/",
            mode=flags.get("--log-mode", "all"),
            service=flags.get("--inference-service", ""),
            namespace=flags.get("--namespace", ""),
            endpoint=flags.get("--endpoint", ""),
            component=flags.get("--component", ""),
            headers=frozenset(_list(flags.get("--metadata-headers", ""))),
            annotations=_pairs(_list(flags.get("--metadata-annotations", ""))),
            certificate=flags.get("--logger-ca-cert-file", "service-ca.crt"),
            skip_verify=flags.get("--logger-tls-skip-verify", "false") == "true",
            store_path=flags.get("--log-store-path", ""),
            store_format=flags.get("--log-store-format", "json"),
            marshaller=flags.get("--log-marshaller-url", MARSHALLER),
            batch_size=_positive(flags.get("--log-batch-size", ""), 1),
            batch_interval=go_duration(flags.get("--log-batch-interval", "")),
        )
    batcher = None
    if "--enable-batcher" in flags:
        batcher = BatcherSettings(
            max_size=_positive(flags.get("--max-batchsize", ""), MAX_BATCH_SIZE),
            max_latency=_positive(flags.get("--max-latency", ""), int(MAX_LATENCY * 1000)) / 1000,
        )
    return AgentSettings(logger, batcher)


def go_duration(text: str) -> float:
    """Return the seconds of a duration as Go writes it (`1m30s`), 0 for what is none."""
    parts = _DURATION.findall(text)
    if "".join(f"{number}{unit}" for number, unit in parts) != text:
        return 0.0
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _flags(args: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name in _SWITCHES:
            if value != "false":
                found[name] = "true"
        elif name.startswith("--"):
            found[name] = value if equals else next(words, "")
    return found


def _list(text: str) -> list[str]:
    """Return a list as pflag reads it: one line of CSV."""
    return next(csv.reader([text]), []) if text else []


def _pairs(entries: Sequence[str]) -> dict[str, str]:
    return {key: value for key, equals, value in (e.partition("=") for e in entries) if equals}


def _positive(text: str, default: int) -> int:
    return int(text) if text.isdigit() and int(text) > 0 else default
