"""`kserve-local predict`: one call to a model through the gateway; the answer's body on stdout."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import click

from kserve_local.cli import predict_sample, predict_trace
from kserve_local.cli.options import Common, Duration, common
from kserve_local.errors import (
    KServeLocalError,
    ModelError,
    NotFound,
    ServiceUnavailable,
    TimedOut,
    UsageError,
)

if TYPE_CHECKING:
    from kserve_local.cli.output import Output
    from kserve_local.settings import Settings

JSON = {"Content-Type": "application/json"}
REQUEST_ID = "x-request-id"
"""What servers write into their logs, so that `logs --request` finds a call. Envoy, in front of a
cluster, adds one to every request; our gateway passes on what it gets."""
PATIENCE = 1.0
"""Seconds without an answer after which it is said what is waited for."""
LOOK = 0.25
"""Seconds between two looks at it."""


def read_data(data: str) -> bytes:
    """Return the request body that DATA names: `@FILE`, `-` (stdin), or the JSON itself.

    Raises:
        UsageError: An unreadable file, or neither JSON nor a file.
    """
    if data == "-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).expanduser().read_bytes()
        except OSError as error:
            raise UsageError(f'cannot read "{data[1:]}": {error.strerror}') from error
    try:
        json.loads(data)
    except ValueError as error:
        there = Path(data).is_file()
        hint = f"a file is named with @: @{data}" if there else "quote it for the shell: '{...}'"
        raise UsageError(f"the request data is not JSON: {error}", hint=hint) from error
    return data.encode()


def detect_protocol(body: bytes) -> str:
    """Return `v2` for a body shaped like the Open Inference Protocol's, else `v1`."""
    try:
        parsed: Any = json.loads(body)
    except ValueError:
        return "v1"
    inputs = parsed.get("inputs") if isinstance(parsed, dict) else None
    first = inputs[0] if isinstance(inputs, list) and inputs else None
    return "v2" if isinstance(first, dict) and {"name", "shape", "datatype"} <= set(first) else "v1"


def call(
    url: str,
    path: str,
    body: bytes | None,
    *,
    timeout: float,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """POST (GET without a body) to the gateway; return status, headers (lower case), body.

    Args:
        headers: Default: of JSON.

    Raises:
        TimedOut: No answer in time.
        ServiceUnavailable: The gateway cannot be reached.
    """
    import http.client

    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=timeout)
    method = "GET" if body is None else "POST"
    sent = headers if headers is not None else {} if body is None else JSON
    try:
        connection.request(method, path, body=body, headers=dict(sent))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    except TimeoutError as error:
        raise TimedOut(f"no answer within {timeout:g} s from {url}{path}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ServiceUnavailable(
            f"the gateway at {url} did not answer: {error}", hint="kserve-local up"
        ) from error
    finally:
        connection.close()


@click.command("predict")
@click.argument("name")
@click.argument("data", required=False)
@click.option(
    "--protocol",
    type=click.Choice(["v1", "v2", "grpc"]),
    help="Default: what the data looks like.",
)
@click.option("--explain", is_flag=True, help="Ask for an explanation (V1) instead.")
@click.option("--model", help="Model name in the path (default: NAME).")
@click.option("--revision", metavar="REV", help="Ask this revision: name, number, latest or prev.")
@click.option("--binary", is_flag=True, help="Send and ask for V2 tensors in binary.")
@click.option("--repeat", type=click.IntRange(min=1), metavar="N", help="Call N times, time it.")
@click.option("--trace", is_flag=True, help="Show each hop: Pod, time, status.")
@click.option("--save", type=click.Path(dir_okay=False), metavar="FILE", help="Answer to a file.")
@click.option("--print-curl", is_flag=True, help="Print the call for curl; send nothing.")
@click.option("--print-python", is_flag=True, help="Print it as a Python program; send nothing.")
@click.option("--timeout", type=Duration(), default="300s", help="Wait at most this long.")
@common
def command(
    flags: Common,
    name: str,
    data: str | None,
    protocol: str | None,
    explain: bool,
    model: str | None,
    revision: str | None,
    binary: bool,
    repeat: int | None,
    trace: bool,
    save: str | None,
    print_curl: bool,
    print_python: bool,
    timeout: float,
) -> int:
    """Call the model NAME with DATA: @FILE, - for stdin, or JSON.

    Without DATA, a request is made from the model's metadata; where that names no inputs, the
    request.json beside the manifest is sent.
    Prints the answer's body; with --repeat the last one, and on stderr how long the calls took.
    Exit 9 when the model answered with an error.
    """
    from statistics import median
    from uuid import uuid4

    from kserve_local.client.project import find_running, need_running, read_run_file

    settings = flags.settings_of_running()
    body = read_data(data) if data is not None else b""
    # A gateway goes on serving when its supervisor has died, so only the run file is asked for.
    running = read_run_file(settings) or need_running(settings)
    if explain and protocol == "v2":
        raise UsageError("V2 has no explanations; --explain goes with --protocol v1")
    namespace = flags.namespace or settings.namespace
    path = f"/serving/{quote(namespace, safe='')}/{quote(name, safe='')}"
    headers = {**JSON, **({predict_trace.HEADER: "1"} if trace else {})}
    if revision:
        from kserve_local.cli.revision_host import revision_host

        host = revision_host(settings, name, namespace, revision)
        path, headers = ("", {**headers, "Host": host}) if host else (path, headers)
    out = flags.output("predict")
    made: predict_sample.Sample | None = None
    quiet = flags.quiet or flags.as_json
    if data is None:
        with nullcontext() if quiet else _telling(settings, out, namespace, name):
            made = _sample(
                settings, name, namespace, model or name, "v1" if explain else protocol or "",
                running.gateway_url, path, headers, timeout=timeout,
            )  # fmt: skip
        body, data = made.body, made.data
        if not flags.as_json:
            out.say(made.told())
    chosen = "v1" if explain else protocol or detect_protocol(body)
    target = quote(model or name, safe="")
    verb = "explain" if explain else "predict"
    tail = f"/v1/models/{target}:{verb}" if chosen == "v1" else f"/v2/models/{target}/infer"
    if chosen == "grpc":
        if binary:
            raise UsageError("--binary is for REST; gRPC is binary as it is")
        from kserve_local.cli import predict_grpc
    if print_curl or print_python:
        if binary:
            raise UsageError("--binary cannot be printed: its body is no text")
        if chosen == "grpc":
            if print_python:
                raise UsageError("--print-python prints REST calls; --print-curl prints grpcurl")
            wanted = (running.gateway_url, path, model or name, headers, body)
            text = predict_grpc.as_grpcurl(*wanted)
        else:
            write = as_curl if print_curl else as_python
            text = write(running.gateway_url + path + tail, headers, data)
        if flags.as_json:
            out.envelope({"print": text})
        else:
            out.data(text)
        return 0
    if binary:
        body, headers = _in_binary(body, headers, chosen)
    took: list[float] = []
    ids: list[str] = []
    statuses: Counter[int] = Counter()
    failure: tuple[int, dict[str, str], bytes, str] | None = None
    for _ in range(repeat or 1):
        ids.append(str(uuid4()))
        if flags.verbose and not flags.as_json:
            out.say(f"{REQUEST_ID}: {ids[-1]}")
        with nullcontext() if quiet else _telling(settings, out, namespace, name):
            begun = time.monotonic()
            try:
                sent = {**headers, REQUEST_ID: ids[-1]}
                status, told, answer = (
                    predict_grpc.call(
                        running.gateway_url, path, model or name, body,
                        timeout=timeout, headers=sent,
                    )
                    if chosen == "grpc"
                    else call(
                        running.gateway_url, path + tail, body, timeout=timeout, headers=sent
                    )
                )  # fmt: skip
            except ServiceUnavailable:
                need_running(settings)
                raise
            took.append(time.monotonic() - begun)
        statuses[status] += 1
        if status >= 400:
            failure = failure or (status, told, answer, ids[-1])
    hops = predict_trace.trace_of(told) if trace else None
    if trace and not flags.as_json:
        for line in predict_trace.trace_lines(hops):
            out.say(line)
    times = {"min": min(took), "median": median(took), "max": max(took)}
    if repeat and not flags.as_json:
        words = ", ".join(f"{what} {seconds * 1000:.1f} ms" for what, seconds in times.items())
        answers = ", ".join(f"{n} x {code}" for code, n in sorted(statuses.items()))
        out.say(f"{repeat} call{'' if repeat == 1 else 's'}: {answers}; {words}")
    if failure is not None:
        status, told, answer, request = failure
        text = answer.decode("utf-8", "replace")
        served = _served(told, name)
        hint = served or told.get("x-kserve-local-hint", "")
        # For a name that is no service the gateway can only list all hosts there are.
        look = not served and (status in (404, 501) or (not hint and status in (502, 503, 504)))
        if look and find_running(settings) is not None:
            own = _hint(settings, name, namespace, model or name, running.gateway_url, path)
            hint = own or hint
        share = f"{sum(n for c, n in statuses.items() if c >= 400)} of {repeat} calls failed: "
        raise ModelError(
            f"{share if repeat else ''}{name} answered {status}: {text.strip() or '(no body)'}",
            hint=hint
            or f"kserve-local logs {name} --tail 20"
            + ("" if trace else "   ·   the same with --trace tells which hop it was"),
            details={
                "service": name,
                "namespace": namespace,
                "status": status,
                "requestId": request,
                **({"trace": hops} if trace else {}),
            },
        )
    shown = _shown(answer, told)
    if save:
        try:
            Path(save).expanduser().write_text(shown + "\n")
        except OSError as error:
            raise UsageError(f'cannot write "{save}": {error.strerror}') from error
        out.say(f"saved to {save}")
    if flags.as_json:
        try:
            parsed = json.loads(shown)
        except ValueError:
            parsed = shown
        timed = {
            "repeat": {
                "count": repeat, "statuses": statuses, "seconds": times, "requestIds": ids,
            }
        }  # fmt: skip
        found = {"status": status, "protocol": chosen, "body": parsed, "requestId": ids[-1]}
        found |= {"trace": hops} if trace else {}
        found |= {"sent": {"data": made.data, "origin": made.origin}} if made else {}
        out.envelope({**found, **(timed if repeat else {})})
    elif not save:
        out.data(shown)
    return 0


def _sample(
    settings: Settings,
    name: str,
    namespace: str,
    model: str,
    protocol: str,
    gateway: str,
    path: str,
    headers: Mapping[str, str],
    *,
    timeout: float,
) -> predict_sample.Sample:
    """Return what to send without DATA.

    Raises:
        NotFound: There is no such service.
        UsageError: There is nothing to send.
    """
    statuses: list[int] = []
    asked = {k: v for k, v in headers.items() if k == "Host"}

    def get(tail: str) -> tuple[int, bytes]:
        status, _, answer = call(gateway, path + tail, None, timeout=timeout, headers=asked)
        statuses.append(status)
        return status, answer

    try:
        return predict_sample.find(settings, name, namespace, model, protocol, get)
    except UsageError as error:
        if statuses[-1] >= 400:
            error.hint = _hint(settings, name, namespace, model, gateway, path) or error.hint
        raise


def _served(told: Mapping[str, str], name: str) -> str:
    """Return the hint of an answer that names the models there are, empty for others."""
    models = told.get("x-kserve-local-models", "")
    if not models:
        return ""
    first = models.partition(", ")[0]
    return f"models served: {models}\nkserve-local predict {name} --model {first} ..."


@contextmanager
def _telling(settings: Settings, out: Output, namespace: str, name: str) -> Iterator[None]:
    """Say on stderr what a service that is not Ready waits for, while the block takes long.

    In a thread: the call itself blocks, where Ctrl-C can end it.
    """
    ended = threading.Event()

    def tell() -> None:
        if not ended.wait(PATIENCE):
            with suppress(KServeLocalError, OSError):  # the call itself says what is wrong
                _tell(settings, out, namespace, name, ended)

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PATIENCE)


def _tell(
    settings: Settings, out: Output, namespace: str, name: str, ended: threading.Event
) -> None:
    """Say each new state once, until `ended`."""
    import asyncio

    from kserve_local.cli.progress import waits_for
    from kserve_local.cli.session import run
    from kserve_local.client.client import Client

    async def follow(client: Client) -> None:
        said = ""
        while not ended.is_set():
            words = await waits_for(client, (namespace, name))
            if words and words != said and not ended.is_set():
                said = words
                out.say(f"waiting for {name}: {words}")
            await asyncio.sleep(LOOK)

    run(settings, follow)


def _in_binary(
    body: bytes, headers: Mapping[str, str], protocol: str
) -> tuple[bytes, dict[str, str]]:
    from kserve_local.cli import binary_data

    if protocol != "v2" or detect_protocol(body) != "v2":
        raise UsageError("--binary is for V2 requests: inputs with name, shape, datatype and data")
    content, length = binary_data.packed(body)
    kind = {"Content-Type": "application/octet-stream", binary_data.LENGTH: str(length)}
    return content, {**headers, **kind}


def _shown(answer: bytes, headers: Mapping[str, str]) -> str:
    """Return the body as text; binary tensors as the JSON they stand for."""
    from kserve_local.cli import binary_data

    length = headers.get(binary_data.LENGTH.lower(), "")
    if length.isdecimal():
        return json.dumps(binary_data.unpacked(answer, int(length)))
    return answer.decode("utf-8", "replace").rstrip("\n")


def as_curl(url: str, headers: Mapping[str, str], data: str) -> str:
    """Return the curl command of a call; `data` is as on our own command line."""
    words = ["curl", "-sS", url]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    words += ["--data-binary", f"@{data}" if data == "-" else data]
    return shlex.join(words)


def as_python(url: str, headers: Mapping[str, str], data: str) -> str:
    """Return a Python program (standard library only) that makes a call and prints the answer."""
    imports, body = ["import urllib.request"], repr(data.encode())
    if data == "-":
        imports, body = ["import sys", *imports], "sys.stdin.buffer.read()"
    elif data.startswith("@"):
        imports = [*imports, "from pathlib import Path"]
        body = f"Path({data[1:]!r}).expanduser().read_bytes()"
    return "\n".join(
        (
            *imports,
            "",
            "request = urllib.request.Request(",
            f"    {url!r},",
            f"    data={body},",
            f"    headers={dict(headers)!r},",
            ")",
            "with urllib.request.urlopen(request) as answer:",
            "    print(answer.read().decode())",
        )
    )


def _hint(
    settings: Settings, name: str, namespace: str, model: str, gateway: str, path: str
) -> str:
    """Say what is behind a refusal: one that is not Ready, another model name.

    Raises:
        NotFound: There is no such service.
    """
    from kserve_local.cli.session import near, run
    from kserve_local.cli.status import told
    from kserve_local.client.client import Client
    from kserve_local.client.project import STATUS

    async def fetch(client: Client) -> Any:
        return await client.call("GET", STATUS)

    try:
        services = run(settings, fetch)["services"]
    except KServeLocalError:
        return ""
    own = [s for s in services if s["namespace"] == namespace]
    found = next((s for s in own if s["name"] == name), None)
    if found is None:
        elsewhere = [s["namespace"] for s in services if s["name"] == name]
        names = sorted(s["name"] for s in own)
        guess = near(name, names)
        way_out = f"services here: {', '.join(names) or 'none'}"
        if elsewhere:
            way_out = (
                f"it is in namespace {elsewhere[0]}: kserve-local predict {name} -n {elsewhere[0]}"
            )
        elif guess:
            way_out = f'did you mean "{guess}"? {way_out}'
        raise NotFound(f'inferenceservices.serving.kserve.io "{name}" not found', hint=way_out)
    if not found["ready"] or found["state"] in ("Failed", "Loading"):
        why = told(str(found["reason"]), str(found["message"]))
        return f"{name} is not Ready: {why or found['state']}\nkserve-local status {name}"
    return _models_hint(gateway, path, name, model)


def _models_hint(gateway: str, path: str, name: str, model: str) -> str:
    """Name the models that the service really serves, if `model` is none of them."""
    try:
        status, _, answer = call(gateway, f"{path}/v1/models", None, timeout=5.0)
        models = [str(m) for m in json.loads(answer)["models"]]
    except (KServeLocalError, ValueError, KeyError, TypeError):
        return ""
    if status != 200 or model in models:
        return ""
    if not models:
        return f"{name} serves no model\nkserve-local status {name}"
    return f"{name} serves {', '.join(models)}; kserve-local predict {name} --model {models[0]} ..."
