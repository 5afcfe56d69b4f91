"""A Docker engine (or Podman's Docker socket) on asyncio: the one importer of the Docker SDK.

The SDK blocks, so each call runs in a thread of a pool of its own; streams (events, output, pull
progress) have a thread each that hands over to the loop. Errors come out as ours, with the engine's
words and a way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, TypeVar

import docker
import docker.errors
import requests
from docker.utils import kwargs_from_env
from docker.utils.socket import frames_iter

from kserve_local.errors import (
    AlreadyExists,
    Conflict,
    KServeLocalError,
    Missing,
    NotFound,
    PortTaken,
    ServiceUnavailable,
    TimedOut,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 16
TIMEOUT = 60
"""Seconds that an engine may take to answer a call; stopping and pulling have their own."""

OUTPUT = 10_240
"""Bytes that are read of a command's output; as the kubelet."""

NO_ENGINE = (
    "start Docker (Debian: apt-get install docker.io; then: dockerd), or set DOCKER_HOST to the "
    "socket of a rootless Docker or of Podman (podman system service)"
)
DEFAULT_HOST = "unix:///var/run/docker.sock"
BUILD_TAIL = 12
"""Lines of a failed step's output that are told."""
_STEP_LENGTH = 120
_STEP = re.compile(r"^(?:Step \d+/\d+ : |STEP \d+/\d+: )")
_ENDED = re.compile(
    r"returned a non-zero code|exit status \d|exit code: \d|executor failed running"
)
_NOISE = re.compile(r"^(?:\[notice\]|WARNING: (?:You are using pip|Running pip as)|-+$)")
_NARRATION = ("--->", "Removing intermediate container", "Successfully ")
_RUN = re.compile(r"^The command '.*'(?= returned a non-zero code)", re.DOTALL)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FULL = "no space left on device"


class Engine:
    """One connection to an engine. Open it with `await Engine.connect()`."""

    def __init__(self, client: docker.APIClient, info: Mapping[str, Any]) -> None:
        self._client = client
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self.info = info

    @classmethod
    async def connect(cls, environ: Mapping[str, str] | None = None) -> Engine:
        """Return a connection to the engine that `DOCKER_HOST` names, else the default socket.

        Raises:
            Missing: None answers.
        """

        def connect() -> Engine:
            with _reached():
                client = _client(os.environ if environ is None else environ)
                return cls(client, client.info())

        return await asyncio.to_thread(connect)

    @property
    def architecture(self) -> str:
        """The engine's machine, e.g. `x86_64`."""
        return str(self.info.get("Architecture") or "")

    @property
    def is_rootless(self) -> bool:
        """Whether its networks are out of reach from here: rootless, or in a virtual machine."""
        options = [str(o) for o in self.info.get("SecurityOptions") or ()]
        return (
            any("rootless" in o for o in options)
            or bool(self.info.get("Rootless"))  # Podman's word
            or "Desktop" in str(self.info.get("OperatingSystem"))
        )

    @property
    def is_podman(self) -> bool:
        """Whether it is Podman that answers, in Docker's words."""
        return "BuildahVersion" in self.info

    @property
    def has_cgroups(self) -> bool:
        """Whether its figures of a container are that container's, not the whole machine's."""
        unmade = self.info.get("Rootless") and self.info.get("CgroupVersion") == "1"
        return self.info.get("CgroupDriver") != "none" and not unmade

    async def close(self) -> None:
        """Give up the connection. Streams must have ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._client.close)

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the SDK's `APIClient`.

        Raises:
            NotFound, Conflict, AlreadyExists, PortTaken: As the engine says.
            ServiceUnavailable: It does not answer, or its disk is full.
            TimedOut: It took longer than `TIMEOUT`.
        """
        call = functools.partial(getattr(self._client, method), *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, _translated, call)

    async def remove(self, container: str) -> None:
        """Remove a container and its anonymous volumes, running or not. Idempotent.

        Raises:
            Conflict: Others have joined its network (Podman).
            ServiceUnavailable, TimedOut: As `call`.
        """
        if self.is_podman:
            # Its removal alone would leave a running container the 10 s of a stop.
            with contextlib.suppress(KServeLocalError):
                await self.call("kill", container, signal.SIGKILL)
        with contextlib.suppress(NotFound):
            await self.call("remove_container", container, force=True, v=True)

    async def exec(self, id: str) -> bytes:
        """Start a command that `exec_create` has set up, and return its output, cut at `OUTPUT`.

        In a thread of its own, which ends with this call: a command that hangs holds up nobody.

        Raises:
            KServeLocalError: As `call`.
        """
        output = b""
        chunks = self.stream(lambda client: _Attached(client.exec_start(id, socket=True)))
        async with contextlib.aclosing(chunks) as news:
            async for chunk in news:
                output += chunk[: OUTPUT - len(output)]
        return output

    async def build(
        self,
        context: IO[bytes],
        image: str,
        *,
        dockerfile: str,
        labels: Mapping[str, str],
        arguments: Mapping[str, str],
    ) -> AsyncGenerator[str, None]:
        """Build an image with the engine's classic builder; yield what it prints.

        Args:
            context: A tar archive; closing it before the end gives the build up.

        Raises:
            Missing: It failed; ends with the builder's last lines.
        """
        lines = self.stream(
            lambda client: client.build(
                fileobj=context,
                custom_context=True,
                dockerfile=dockerfile,
                tag=image,
                labels=dict(labels),
                buildargs=dict(arguments),
                rm=True,
                forcerm=True,
                decode=True,
            )
        )
        step, last = "", deque[str](maxlen=BUILD_TAIL)
        async with contextlib.aclosing(lines) as news:
            async for line in news:
                if line.get("error"):
                    raise Missing(failed_build(image, step, last, str(line["error"]).strip()))
                for text in str(line.get("stream") or "").splitlines():
                    if text := _COLOURS.sub("", text).strip():
                        if _STEP.match(text):
                            step = text
                            last.clear()
                        elif not text.startswith(_NARRATION):
                            last.append(text)
                        yield text

    async def stream(self, open_: Callable[[docker.APIClient], Any]) -> AsyncGenerator[Any, None]:
        """Yield what a blocking stream of the SDK yields, until it ends or this is closed.

        Args:
            open_: Opens the stream, e.g. `lambda c: c.events(decode=True)`; runs in a thread.

        Raises:
            KServeLocalError: As `call`, when the stream breaks.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()
        ended = object()
        opened: list[Any] = []
        closed = threading.Event()

        def hand_over(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(items.put_nowait, item)

        def read() -> None:
            failed: BaseException | None = None
            try:
                stream = _translated(lambda: open_(self._client))
                opened.append(stream)
                if closed.is_set():
                    stream.close()  # Opened too late for who waited to close it.
                else:
                    for item in translated_items(stream):
                        hand_over(item)
            except KServeLocalError as error:
                failed = error
            except ValueError:
                if not closed.is_set():
                    raise
                # What it was sending from is closed as well.
            hand_over((ended, failed))

        # Not in the pool: a stream lasts, and a full pool would hold up every call.
        threading.Thread(target=read, name="docker-stream", daemon=True).start()
        try:
            while True:
                item = await items.get()
                if isinstance(item, tuple) and item and item[0] is ended:
                    if item[1] is not None:
                        raise item[1]
                    return
                yield item
        finally:
            closed.set()
            for stream in opened:
                with contextlib.suppress(Exception):
                    stream.close()


def failed_build(image: str, step: str, output: Iterable[str], error: str) -> str:
    """Return why an image could not be built: the step, its last output, and in the end the line
    that says most. Pure.

    Args:
        step: The instruction that failed, as the builder names it; empty: the error does.
        output: Its last lines.
        error: What the builder says in the end.
    """
    step = " ".join(step.split())
    if len(step) > _STEP_LENGTH:
        step = f"{step[: _STEP_LENGTH - 1]}…"
    lines = [line for line in output if not _NOISE.match(line)]
    if lines and _ENDED.search(error):
        # That a program failed; why is in what it printed.
        said = _RUN.sub(step, error) if step else error
        return "\n".join([f"cannot build image {image}: {said}", *lines])
    head = f"cannot build image {image}: {step}" if step else f"cannot build image {image}:"
    return "\n".join([head, *lines, _RUN.sub("it", error)])


class _Attached:
    """The output of a command that was started in a container.

    The SDK's own stream of it never closes the connection.
    """

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        # Of a Unix or TCP connection this is a reader of the socket, which both have to be closed.
        self._socket = getattr(opened, "_sock", opened)

    def __iter__(self) -> Iterator[bytes]:
        try:
            frames = frames_iter(self._opened, tty=False)  # type: ignore[no-untyped-call]  # SDK's
            for _, chunk in frames:
                yield chunk
        finally:
            self._opened.close()
            self._socket.close()

    def close(self) -> None:
        """Let the thread that reads find the end; the descriptor is its own to close."""
        self._socket.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def blocking(environ: Mapping[str, str]) -> Iterator[Callable[[str], Callable[..., Any]]]:
    """Give what calls methods of the SDK's `APIClient` in this thread, for work without a loop:
    `call("inspect_image")(name)`.

    Raises:
        Missing: No engine answers.
        KServeLocalError: As `Engine.call`, from the calls.
    """
    with _reached():
        client = _client(environ)

    def method(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: _translated(lambda: getattr(client, name)(*args, **kwargs))

    try:
        yield method
    finally:
        client.close()


def _client(environ: Mapping[str, str]) -> docker.APIClient:
    _knock(environ.get("DOCKER_HOST") or DEFAULT_HOST)
    return docker.APIClient(
        **kwargs_from_env(environment=dict(environ)), version="auto", timeout=TIMEOUT
    )


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise Missing(f"no Docker engine answers: {_words(error)}", hint=NO_ENGINE) from error


def _knock(host: str) -> None:
    """Raise OSError where nothing listens at a `unix://` address.

    The SDK (docker 7.2) leaves the socket of a failed connect open for the garbage collector.
    """
    scheme, _, path = host.partition("://")
    if scheme in ("unix", "http+unix"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect("/" + path.lstrip("/"))


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except docker.errors.ImageNotFound as error:
        raise NotFound(_words(error)) from error
    except docker.errors.APIError as error:
        raise _ours(error) from error
    except requests.Timeout as error:
        raise TimedOut(
            f"the Docker engine did not answer within {TIMEOUT} s",
            hint="docker info   tells whether it is well",
        ) from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise ServiceUnavailable(
            f"the Docker engine does not answer: {_words(error)}", hint=NO_ENGINE
        ) from error


def translated_items(stream: Iterator[T]) -> Iterator[T]:
    """Yield what a stream of the SDK yields, its errors as ours."""
    iterator = iter(stream)
    ended = object()
    while True:
        try:
            item: Any = _translated(lambda: next(iterator, ended))
        except ValueError:
            return  # closed while it was read
        if item is ended:
            return
        yield item


def _ours(error: docker.errors.APIError) -> KServeLocalError:
    words, code = _words(error), error.status_code
    if _FULL in words.lower():
        return ServiceUnavailable(
            f"the Docker engine's disk is full: {words}",
            hint="docker system df   shows by what; docker system prune   frees some",
        )
    if "port is already allocated" in words or "address already in use" in words:
        return PortTaken(words)
    if code == 404:
        return NotFound(words)
    # Podman says both with 500.
    if "already in use" in words:
        return AlreadyExists(words)
    if code == 409 or "has dependent containers" in words:
        return Conflict(words)
    return KServeLocalError(words)


def _words(error: BaseException) -> str:
    """Return what the engine says, without the SDK's and the HTTP library's wrapping."""
    explanation = getattr(error, "explanation", None)
    if isinstance(explanation, bytes):
        explanation = explanation.decode(errors="replace")
    text = str(explanation or error).strip()
    if "Connection refused" in text:
        return "connection refused"
    if "No such file or directory" in text and not explanation:
        return "its socket does not exist"
    if "Permission denied" in text and not explanation:
        return "permission denied on its socket (add yourself to the group docker)"
    return text


def filters(labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the engine's filter for `key` or `key=value` labels."""
    return {"label": list(labels)}
