"""The command line that every model server shares: KServe's arguments, and a few of ours.

Arguments that mean nothing here yet (predictor_*) are accepted, so that a runtime's `args`
work unchanged. Unknown arguments are ignored, as upstream.
"""

from __future__ import annotations

import argparse
import os

_TRUE = {"y", "yes", "t", "true", "on", "1"}
_FALSE = {"n", "no", "f", "false", "off", "0"}


def boolean(text: str) -> bool:
    """Return the truth of a KServe boolean argument."""
    value = text.lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"invalid truth value {text!r}")


def batching(text: str) -> str:
    """Return `auto`, `true` or `false`."""
    value = text.lower()
    if value == "auto":
        return value
    return "true" if boolean(value) else "false"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser to which a server adds its own arguments."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    add = parser.add_argument
    add("--http_port", type=int, default=8080, help="HTTP port")
    # None is 8081, unless somebody else has that: on one machine servers share an address.
    add("--grpc_port", type=int, default=None, help="gRPC port (default 8081, where it is free)")
    add("--workers", type=int, default=1, help="number of processes that answer requests")
    add("--max_threads", type=int, default=4, help="accepted, no effect")
    add("--max_asyncio_workers", type=int, default=None, help="accepted, no effect")
    add("--enable_grpc", type=boolean, default=True, help="serve gRPC, where grpcio is installed")
    add("--enable_docs_url", type=boolean, default=False, help="serve /docs")
    add("--enable_latency_logging", type=boolean, default=True, help="log latencies per request")
    add("--configure_logging", type=boolean, default=True, help="set up logging to stderr")
    add("--log_config_file", default=None, help="logging configuration, YAML or JSON")
    add("--access_log_format", default=None, help="accepted, no effect")
    add(
        "--event-loop",
        dest="event_loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        help="event loop implementation",
    )
    add(
        "--timeout-keep-alive",
        dest="timeout_keep_alive",
        type=int,
        default=65,
        help="seconds before an idle connection is closed",
    )
    add("--model_name", default="model", help="name under which the model is served")
    add("--predictor_host", default=None, help="accepted, no effect")
    add("--predictor_protocol", choices=("v1", "v2", "grpc-v2"), default="v1", help="no effect")
    add("--protocol", default="v1", help="accepted, no effect")
    add("--predictor_use_ssl", type=boolean, default=False, help="accepted, no effect")
    add("--predictor_request_timeout_seconds", type=int, default=600, help="no effect")
    add("--predictor_request_retries", type=int, default=0, help="accepted, no effect")
    add("--enable_predictor_health_check", action="store_true", help="accepted, no effect")
    add("--grpc_max_send_message_length", type=int, default=8388608, help="bytes")
    add("--grpc_max_receive_message_length", type=int, default=8388608, help="bytes")
    ours = parser.add_argument_group("kserve-local")
    ours.add_argument(
        "--enable_batching",
        type=batching,
        default=os.environ.get("KSERVE_LOCAL_ENABLE_BATCHING", "auto"),
        help="compute waiting requests together: auto (where answers stay equal bit for bit), "
        "true (any model of independent rows), false",
    )
    ours.add_argument(
        "--answers",
        choices=("kserve", "mlserver"),
        default="kserve",
        help="whose names and shapes V2 answers have, where a server stands in for another",
    )
    ours.add_argument(
        "--http_host",
        default=os.environ.get("KSERVE_LOCAL_HTTP_HOST", "127.0.0.1"),
        help="address to listen on",
    )
    return parser
