"""Start, run and stop a model server process: logging, loading, listening, draining, exit codes.

    def main(argv=None):
        parser = make_parser("myserver")
        parser.add_argument("--model_dir", required=True)
        args, _ = parser.parse_known_args(argv)
        return serve(args, lambda: ([MyModel(args.model_name, args.model_dir)], None))

Order, exit codes and signals are KServe's: models are loaded before the port listens; a model that
does not load, or a port that is taken, is exit 1; SIGTERM, SIGINT and SIGQUIT stop accepting at
once, let open requests finish (30 s) and exit 0. gRPC is served beside REST where grpcio is
installed; a gRPC port that nobody asked for may be taken.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import logging.config
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from modelserver.dataplane import DataPlane, ModelRepository
from modelserver.errors import LoadError, ModelNotReady
from modelserver.http import Server
from modelserver.latency import LatencyLog
from modelserver.model import Model
from modelserver.rest import Rest

logger = logging.getLogger(__name__)

# The KServe whose data plane this is; `GET /v2` says so.
VERSION = "0.20.0"
GRACE = 30.0
GRPC_PORT = 8081

Opener = Callable[[], tuple[Sequence[Model], ModelRepository | None]]


def serve(args: argparse.Namespace, open_models: Opener, *, max_workers: int | None = None) -> int:
    """Run a server until a signal stops it; returns the exit code.

    Args:
        args: From `cli.make_parser`.
        open_models: Makes the models to load and, for several, their repository.
        max_workers: Cap for `--workers`.
    """
    if args.configure_logging:
        configure_logging(args.log_config_file)
    Model.answers = args.answers
    try:
        listener = _bind(args.http_host, args.http_port)
    except OSError as error:
        logger.error(
            "cannot listen on %s:%d: %s", args.http_host, args.http_port, error.strerror or error
        )
        return 1
    with listener:
        try:
            grpc_server = _grpc(args)
        except OSError as error:
            where, why = f"{args.http_host}:{args.grpc_port}", error.strerror or error
            logger.error("cannot listen on %s for gRPC: %s", where, why)
            return 1
        try:
            models, repository = open_models()
            _load(models)
        except (LoadError, ModelNotReady) as error:
            logger.error("%s", error)
            return 1
        except Exception:
            logger.exception("the model could not be loaded")
            return 1
        # What was imported and loaded stays: keep the collector (and copy-on-write) off it.
        # The default threshold would run it for every few dozen requests in flight.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        workers = max(1, min(args.workers, max_workers or args.workers))
        if workers > 1:
            return _run_workers(workers, args, listener, grpc_server, models, repository)
        return _run(args, listener, grpc_server, models, repository)


def configure_logging(config_file: str | None = None) -> None:
    """Log to stderr as KServe formats it, or as a YAML or JSON `dictConfig` file says.

    `KSERVE_LOGLEVEL` sets the level.
    """
    if config_file:
        text = Path(config_file).read_text(encoding="utf-8")
        if config_file.endswith((".yaml", ".yml")):
            import yaml  # only this option needs it

            config: Any = yaml.safe_load(text)
        else:
            config = json.loads(text)
        logging.config.dictConfig(config)
        return
    logging.basicConfig(
        level=os.environ.get("KSERVE_LOGLEVEL", "INFO").upper(),
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(process)s %(name)s %(levelname)s [%(filename)s:"
        "%(funcName)s():%(lineno)s] %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        force=True,
    )


def _bind(host: str, port: int) -> socket.socket:
    """Reserve the address without listening: a taken port shows before a slow load."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _grpc(args: argparse.Namespace) -> ModuleType | None:
    """Return the module that serves gRPC; None: there will be none, which the log explains.

    Raises:
        OSError: The port that was asked for cannot be had.
    """
    if not args.enable_grpc:
        return None
    try:
        from modelserver import grpc_server
    except ImportError as error:
        logger.warning("gRPC is not served (pip install grpcio protobuf): %s", error)
        return None
    try:
        # Without SO_REUSEPORT, with which grpcio would share the port of another server.
        _bind(args.http_host, GRPC_PORT if args.grpc_port is None else args.grpc_port).close()
    except OSError as error:
        if args.grpc_port is not None:
            raise
        logger.warning("gRPC is not served: port %d: %s", GRPC_PORT, error.strerror or error)
        return None
    return grpc_server


def _load(models: Sequence[Model]) -> None:
    for model in models:
        logger.info("Loading model %s", model.name)
        model.load()
    unready = [model.name for model in models if not model.ready]
    if models and len(unready) == len(models):
        if len(unready) == 1:
            raise ModelNotReady(unready[0])
        raise LoadError(f"Models with names {','.join(unready)} are not ready.")


def _run(
    args: argparse.Namespace,
    listener: socket.socket,
    grpc_server: ModuleType | None,
    models: Sequence[Model],
    repository: ModelRepository | None,
    *,
    shared: bool = False,
) -> int:
    loop = _new_loop(args.event_loop)
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(
            _serve(args, loop, listener, grpc_server, models, repository, shared=shared)
        )
        return 0
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


async def _serve(
    args: argparse.Namespace,
    loop: asyncio.AbstractEventLoop,
    listener: socket.socket,
    grpc_server: ModuleType | None,
    models: Sequence[Model],
    repository: ModelRepository | None,
    *,
    shared: bool,
) -> None:
    dataplane = DataPlane(loop, repository=repository, batching=args.enable_batching)
    dataplane.register(model for model in models if model.ready)
    latency = LatencyLog(loop) if args.enable_latency_logging else None
    app = Rest(dataplane, version=VERSION, docs=args.enable_docs_url, latency=latency)
    server = Server(app, loop, keep_alive=args.timeout_keep_alive)
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, on_signal)
    grpc: Any = None
    # The same for both: a Pod's own address where `http_host` stands for any.
    host, http_port = listener.getsockname()[:2]
    if grpc_server is not None:
        service = grpc_server.Service(dataplane, loop, version=VERSION, latency=latency)
        grpc = grpc_server.GrpcServer(
            service,
            send_bytes=args.grpc_max_send_message_length,
            receive_bytes=args.grpc_max_receive_message_length,
            shared=shared,
        )
        port = GRPC_PORT if args.grpc_port is None else args.grpc_port
        port = await grpc.start(args.http_host, port)
        logger.info("Serving gRPC on %s:%d", host, port)
    listening = await loop.create_server(server.protocol, sock=listener, backlog=2048)
    names = ", ".join(dataplane.names()) or "no model"
    logger.info("Serving %s on http://%s:%d", names, host, http_port)
    try:
        await stop.wait()
    finally:
        logger.info("Stopping: open requests have %.0f s to finish", GRACE)
        listening.close()
        drains = [server.drain(GRACE)] if grpc is None else [server.drain(GRACE), grpc.stop(GRACE)]
        await asyncio.gather(*drains)
        dataplane.close()
        if latency is not None:
            latency.flush()


def _run_workers(
    count: int,
    args: argparse.Namespace,
    listener: socket.socket,
    grpc_server: ModuleType | None,
    models: Sequence[Model],
    repository: ModelRepository | None,
) -> int:
    """Answer from `count` forked processes that share the listener; replace those that die."""
    listener.listen(2048)
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        for pid in children:
            os.kill(pid, signal.SIGTERM)

    children: set[int] = set()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

    def fork() -> None:
        # Signals wait until the child is on the list, so that a stop reaches every child.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number in signals:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
                code = _run(args, listener, grpc_server, models, repository, shared=True)
            finally:
                logging.shutdown()
                os._exit(code)
        children.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    for number in signals:
        signal.signal(number, stop)
    for _ in range(count):
        fork()
    while children:
        pid, status = os.wait()
        children.discard(pid)
        if not stopping:
            logger.error(
                "worker %d ended with %d; starting another", pid, os.waitstatus_to_exitcode(status)
            )
            fork()
    return 0
