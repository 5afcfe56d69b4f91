"""`kserve-local predict`: one call to a model through the gateway; the answer's body on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import click

from kserve_local.cli.options import Common, Duration, common
from kserve_local.errors import (
    KServeLocalError,
    ModelError,
    ServiceUnavailable,
    TimedOut,
    UsageError,
)

if TYPE_CHECKING:
    from kserve_local.settings import Settings


def read_data(data: str | None) -> bytes:
    """Return the request body that DATA names: `@FILE`, `-` (stdin), or the JSON itself.

    Raises:
        UsageError: No data, an unreadable file, or neither JSON nor a file.
    """
    if data is None:
        raise UsageError(
            "no request data", hint="kserve-local predict NAME @request.json   (or '-' for stdin)"
        )
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
    url: str, path: str, body: bytes | None, *, timeout: float
) -> tuple[int, dict[str, str], bytes]:
    """POST JSON (GET without a body) to the gateway; return status, headers (lower case), body.

    Raises:
        TimedOut: No answer in time.
        ServiceUnavailable: The gateway cannot be reached.
    """
    import http.client

    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=timeout)
    method = "GET" if body is None else "POST"
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        connection.request(method, path, body=body, headers=headers)
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
    type=click.Choice(["v1", "v2"]),
    help="Default: what the data looks like.",
)
@click.option("--model", help="Model name in the path (default: NAME).")
@click.option("--timeout", type=Duration(), default="300s", help="Wait at most this long.")
@common
def command(
    flags: Common,
    name: str,
    data: str | None,
    protocol: str | None,
    model: str | None,
    timeout: float,
) -> int:
    """Call the model NAME with DATA: @FILE, - for stdin, or JSON.

    Prints the answer's body. Exit 9 when the model answered with an error.
    """
    from kserve_local.client.project import find_running, need_running, read_run_file

    settings = flags.settings()
    body = read_data(data)
    # A gateway goes on serving when its supervisor has died, so only the run file is asked for.
    running = read_run_file(settings) or need_running(settings)
    chosen = protocol or detect_protocol(body)
    target = quote(model or name, safe="")
    tail = f"/v1/models/{target}:predict" if chosen == "v1" else f"/v2/models/{target}/infer"
    namespace = flags.namespace or settings.namespace
    path = f"/serving/{quote(namespace, safe='')}/{quote(name, safe='')}"
    try:
        status, headers, answer = call(running.gateway_url, path + tail, body, timeout=timeout)
    except ServiceUnavailable:
        need_running(settings)
        raise
    text = answer.decode("utf-8", "replace")
    if status >= 400:
        hint = headers.get("x-kserve-local-hint", "")
        if not hint and status in (404, 502, 503, 504) and find_running(settings) is not None:
            hint = _hint(settings, name, namespace, model or name, running.gateway_url, path)
        raise ModelError(
            f"{name} answered {status}: {text.strip() or '(no body)'}",
            hint=hint or f"kserve-local logs {name} --tail 20",
        )
    out = flags.output("predict")
    if flags.as_json:
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = text
        out.envelope({"status": status, "protocol": chosen, "body": parsed})
    else:
        out.data(text.rstrip("\n"))
    return 0


def _hint(
    settings: Settings, name: str, namespace: str, model: str, gateway: str, path: str
) -> str:
    """Say what is behind a refusal: no such service, one that is not Ready, another model name."""
    from kserve_local.cli.session import near, run
    from kserve_local.client.client import Client

    async def fetch(client: Client) -> Any:
        return await client.call("GET", "/apis/kserve-local.dev/v1/status")

    try:
        services = run(settings, fetch)["services"]
    except KServeLocalError:
        return ""
    own = [s for s in services if s["namespace"] == namespace]
    found = next((s for s in own if s["name"] == name), None)
    if found is None:
        elsewhere = [s["namespace"] for s in services if s["name"] == name]
        if elsewhere:
            return (
                f"it is in namespace {elsewhere[0]}: kserve-local predict {name} -n {elsewhere[0]}"
            )
        names = sorted(s["name"] for s in own)
        guess = near(name, names)
        known = f"services here: {', '.join(names) or 'none'}"
        return f'did you mean "{guess}"? {known}' if guess else known
    if not found["ready"]:
        first = (str(found["message"]).splitlines() or [""])[0]
        why = ": ".join(filter(None, (str(found["reason"]), first)))
        return f"{name} is not Ready: {why or found['state']}\nkserve-local status {name}"
    return _models_hint(gateway, path, name, model)


def _models_hint(gateway: str, path: str, name: str, model: str) -> str:
    """Name the models that the service really serves, if `model` is none of them."""
    try:
        status, _, answer = call(gateway, f"{path}/v1/models", None, timeout=5.0)
        models = [str(m) for m in json.loads(answer)["models"]] if status == 200 else []
    except (KServeLocalError, ValueError, KeyError, TypeError):
        return ""
    if not models or model in models:
        return ""
    return f"{name} serves {', '.join(models)}; kserve-local predict {name} --model {models[0]} ..."
