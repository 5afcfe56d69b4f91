"""What the agents of a service's Pods do, in words, for `kserve-local status`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from kserve_local.api.meta import Object
from kserve_local.controllers.agent_injector import agent_args
from kserve_local.gateway.agent_settings import LoggerSettings, read_args
from kserve_local.gateway.logger import is_storage, names_cluster


def told_by(pods: Sequence[Object]) -> list[str]:
    """Return one sentence for each logger and batcher, every one once."""
    return list(dict.fromkeys(text for pod in pods for text in _sentences(pod)))


def _sentences(pod: Object) -> Iterator[str]:
    settings = read_args(agent_args(pod))
    batcher, logger = settings.batcher, settings.logger
    if batcher is not None:
        yield (
            f"batcher: :predict waits for {batcher.max_size} instances, at most "
            f"{round(batcher.max_latency * 1000)} ms"
        )
    if logger is not None:
        what = "requests and responses" if logger.mode == "all" else f"{logger.mode}s"
        yield f"logger: {what} go to {_where(logger)}"


def _where(logger: LoggerSettings) -> str:
    if is_storage(logger.url):
        return f"{logger.url} as {logger.store_format} objects"
    host = urlsplit(logger.url).hostname or ""
    if names_cluster(host, logger.namespace):
        return f"{logger.url}, kept here: kserve-local events --payloads"
    return logger.url
