"""`kserve-local debug`: a debugger for the user's own code, attached while it serves.

The command shows where the program stands and ends the session when it is interrupted; with
`--json` it only begins it.
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import COMPONENTS, Common, common
from kserve_local.errors import from_exit_code

if TYPE_CHECKING:
    from kserve_local.cli.output import Output
    from kserve_local.client.client import Client

AUTO = "auto"
_BEGIN = 90.0
"""Seconds that a session may take to begin: a service at zero is woken first."""
STANDS = (
    "while it stands at a breakpoint: its probes, the time limits of its requests, its autoscaling "
    "and its rollout stand still, too"
)


class Port(click.ParamType[Any]):
    """A port, or `auto`."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if text == AUTO:
            return text
        if text.isdecimal() and 0 < int(text) < 65536:
            return int(text)
        self.fail(f"{text!r} is no port, nor {AUTO}.", param, ctx)


@click.command("debug")
@click.argument("name")
@click.option("--component", type=click.Choice(COMPONENTS), default="predictor", show_default=True)
@click.option("--port", type=Port(), metavar="N|auto", help="For the IDE (default: 5678).")
@click.option("--pid", type=int, help="Which process, if several serve (default: the first).")
@click.option("--wait-for-client", is_flag=True, help="Hold requests until an IDE has attached.")
@click.option("--vscode", is_flag=True, help="Only the entry for VS Code's launch.json on stdout.")
@click.option("--pycharm", is_flag=True, help="Only what to enter in PyCharm on stdout.")
@click.option("--stop", is_flag=True, help="End the session that there is.")
@common
def command(
    flags: Common,
    name: str,
    component: str,
    port: int | str | None,
    pid: int | None,
    wait_for_client: bool,
    vscode: bool,
    pycharm: bool,
    stop: bool,
) -> int:
    """Attach a debugger to the code of the service NAME while it serves.

    An IDE connects to the port that is shown. At a breakpoint the clocks of that replica stand:
    probes, time limits, autoscaling, rollouts; a request waits for as long as it takes. Ctrl-C
    detaches: the service goes on as before. With --json the session stays, until --stop.
    """
    from kserve_local.cli.session import run, service_name

    settings = flags.settings_of_running()
    out = flags.output("debug")
    query = {
        "namespace": flags.namespace or settings.namespace,
        "name": service_name(name),
        "component": component,
    }
    if stop:
        run(settings, lambda client: _end(client, query))
        if flags.as_json:
            out.envelope({"stopped": True, **query})
        else:
            out.say(f"{query['name']}: the debugger is gone; it goes on as before")
        return 0
    asked = {"port": port or 0, "pid": pid, "waitForClient": wait_for_client}

    async def work(client: Client) -> int:
        session = await _begin(client, query, asked)
        if flags.as_json:
            out.envelope({**session, "vscode": _vscode(session), "stop": _stop_command(session)})
            return 0
        _show(out, session, vscode=vscode, pycharm=pycharm, held=wait_for_client)
        return await _attend(client, query, out)

    return run(settings, work)


async def _begin(client: Client, query: dict[str, str], asked: dict[str, Any]) -> dict[str, Any]:
    """Begin the session and return what the supervisor says of it.

    Raises:
        KServeLocalError: What keeps it from being debugged, with the exit code of that.
    """
    from kserve_local.client.project import DEBUG

    found = await client.call("POST", DEBUG, body=asked, query=query, seconds=_BEGIN)
    failed = found.get("failed")
    if failed is not None:
        raise from_exit_code(failed["exitCode"], failed["message"], hint=failed["hint"])
    return dict(found)


async def _end(client: Client, query: dict[str, str]) -> None:
    from kserve_local.client.project import DEBUG

    await client.call("DELETE", DEBUG, query=query)


async def _attend(client: Client, query: dict[str, str], out: Output) -> int:
    """Show what becomes of the session until it ends or the command is interrupted."""
    import asyncio

    stopped = asyncio.Event()
    heard: list[int] = []

    def hear(number: int) -> None:
        heard.append(number)
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, hear, number)
    shown = asyncio.create_task(_follow(client, query, out), name="debugger-states")
    until = asyncio.create_task(stopped.wait(), name="interrupted")
    try:
        await asyncio.wait([shown, until], return_when=asyncio.FIRST_COMPLETED)
        if not heard:
            await shown
            out.say("the session has ended")
            return 0
        await _end(client, query)
        out.say(f"detached; {query['name']} goes on as before")
        return 128 + signal.SIGTERM if heard[0] == signal.SIGTERM else 0
    finally:
        for task in (shown, until):
            task.cancel()
        await asyncio.gather(shown, until, return_exceptions=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _follow(client: Client, query: dict[str, str], out: Output) -> None:
    from contextlib import aclosing

    from kserve_local.client.project import DEBUG

    async with aclosing(client.lines(DEBUG, {**query, "follow": "true"})) as states:
        async for told in states:
            out.say(describe(told), fg={"stopped": "yellow", "failed": "red"}.get(told["state"]))


def describe(told: dict[str, Any]) -> str:
    """Return one state of a session as a person reads it."""
    state = told["state"]
    if state == "stopped" and told.get("file"):
        return f"stopped at {told['file']}:{told['line']} ({told['function']})"
    return {
        "waiting": "waiting for an IDE",
        "expected": "waiting for an IDE; requests are held until it has attached",
        "failed": f"not attached: {told.get('message', '')}",
    }.get(state, str(state))


def _show(out: Output, session: dict[str, Any], *, vscode: bool, pycharm: bool, held: bool) -> None:
    others = session["otherPids"]
    more = f"; others: --pid {', '.join(map(str, others))}" if others else ""
    out.say(f"{session['name']}: Pod {session['pod']}, process {session['pid']}{more}")
    out.say(f"a debugger attaches at {session['host']}:{session['port']}", fg="green")
    both = not vscode and not pycharm
    if vscode or both:
        out.say("VS Code: an entry of `configurations` in .vscode/launch.json")
        out.data(json.dumps(_vscode(session), indent=2, ensure_ascii=False))
    if pycharm or both:
        out.say("PyCharm: Run > Edit Configurations > + > Attach to DAP (debugpy), with")
        out.data(_pycharm(session))
    out.say(STANDS)
    out.say("Ctrl-C detaches")


def _vscode(session: dict[str, Any]) -> dict[str, Any]:
    """Return the entry for VS Code's launch.json."""
    return {
        "name": f"kserve-local: {session['name']} {session['component']}",
        "type": "debugpy",
        "request": "attach",
        "connect": {"host": session["host"], "port": session["port"]},
        "pathMappings": [{"localRoot": session["folder"], "remoteRoot": session["source"]}],
        "justMyCode": True,
    }


def _pycharm(session: dict[str, Any]) -> str:
    """Return what PyCharm's dialog asks for."""
    return (
        f"host: {session['host']}\nport: {session['port']}\n"
        f"path mapping: {session['folder']} = {session['source']}"
    )


def _stop_command(session: dict[str, Any]) -> str:
    component = session["component"]
    flag = "" if component == "predictor" else f" --component {component}"
    return f"kserve-local debug {session['name']}{flag} --stop"
