"""`kserve-local up`: validate, start or find the supervisor, apply the project, follow to Ready."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kserve_local import __version__
from kserve_local.cli.options import Common, Duration, common
from kserve_local.cli.output import Output
from kserve_local.errors import Invalid, KServeLocalError, PortTaken, UsageError

if TYPE_CHECKING:
    from kserve_local.api.meta import Object
    from kserve_local.cli.progress import Follower
    from kserve_local.cli.project_files import ProjectFiles
    from kserve_local.client.project import Running
    from kserve_local.settings import Settings


@click.command("up")
@click.argument("directory", required=False, type=click.Path())
@click.option("-d", "--detach", is_flag=True, help="Return; the project runs on.")
@click.option("--wait", is_flag=True, help="With -d: return when every service is Ready.")
@click.option(
    "--timeout", type=Duration(), default="60s", envvar="KSERVE_LOCAL_TIMEOUT",
    help="How long to wait for Ready.",
)  # fmt: skip
@click.option("--no-tui", is_flag=True, help="Plain lines (there is no other way yet).")
@click.option(
    "--backend", type=click.Choice(["auto", "process", "docker"]), envvar="KSERVE_LOCAL_BACKEND"
)
@click.option("--port", metavar="N|auto", envvar="KSERVE_LOCAL_PORT", help="The gateway's port.")
@click.option("--api-port", metavar="N|auto", envvar="KSERVE_LOCAL_API_PORT", help="The API's.")
@click.option("--host", envvar="KSERVE_LOCAL_HOST", help="The gateway's address.")
@click.option("--dry-run", is_flag=True, help="Validate and show what would be applied.")
@common
def command(
    flags: Common,
    directory: str | None,
    detach: bool,
    wait: bool,
    timeout: float,
    no_tui: bool,
    backend: str | None,
    port: str | None,
    api_port: str | None,
    host: str | None,
    dry_run: bool,
) -> int:
    """Serve the project in DIRECTORY (default: here).

    Without -d it follows until Ctrl-C, which stops everything; a second Ctrl-C kills.
    """
    if directory is not None:
        flags = replace(flags, project=Path(directory))
    if wait and not detach:
        raise UsageError("--wait needs -d; without -d, up waits and then follows anyway")
    if backend == "docker":
        raise UsageError("the docker backend is not there yet; use process or auto")
    given = {
        "gateway_port": port,
        "api_port": api_port,
        "gateway_host": host,
        "backend": backend,
    }
    settings = flags.settings(**given)
    out = flags.output("up")
    begun = time.monotonic()
    from kserve_local.cli import project_files
    from kserve_local.client.project import find_running

    project = project_files.load_project(settings)
    objects = project.objects
    _tell_findings(settings, out, project)
    if dry_run:
        for obj in objects:
            out.data(f"{obj['kind']} {obj['metadata'].get('name')}")
        return 0
    running = find_running(settings)
    started = running is None
    if running is not None:
        _check_conflicts(settings, running, given)
    else:
        from kserve_local.cli.launch import start_supervisor

        start_supervisor(
            settings,
            _passed(flags, settings, given),
            profile=flags.profile,
            warm=project_files.runtimes_needed(objects),
        )
    session = _Session(flags, settings, out, objects, begun)
    try:
        return session.run(detach=detach, wait=wait, timeout=timeout)
    except (KServeLocalError, KeyboardInterrupt) as error:
        if started and session.unused:
            from kserve_local.cli.launch import stop_supervisor

            stop_supervisor(settings, grace=5.0)
        if isinstance(error, KeyboardInterrupt):
            return session.interrupted()
        raise


def _passed(flags: Common, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    passed = {k: v for k, v in given.items() if v is not None}
    if flags.offline:
        passed["offline"] = True
    if flags.namespace:
        passed["namespace"] = flags.namespace
    if flags.verbose:
        passed["verbose"] = flags.verbose
    return passed


def _tell_findings(settings: Settings, out: Output, project: ProjectFiles) -> None:
    """Refuse a project that the API server would refuse, before anything is started.

    Raises:
        Invalid: With all findings.
    """
    count = f"{len(project.objects)} object{'s' if len(project.objects) != 1 else ''}"
    errors, warnings = project.errors(), [*project.warnings(), *settings.warnings]
    if errors:
        plural = "" if len(errors) == 1 else "s"
        raise Invalid("\n".join([f"{len(errors)} error{plural} in {count}", *errors]))
    if not out.as_json:
        plural = "" if len(warnings) == 1 else "s"
        out.say(f"kserve-local {__version__} · project {settings.name} · KServe 0.20 rules")
        out.step("✓", "validate", f"{count}, 0 errors, {len(warnings)} warning{plural}")
        for text in warnings:
            out.say(f"      {text}")


def _check_conflicts(settings: Settings, running: Running, given: dict[str, Any]) -> None:
    from urllib.parse import urlsplit

    for flag, wanted, url in (
        ("--port", given["gateway_port"], running.gateway_url),
        ("--api-port", given["api_port"], running.api_url),
    ):
        have = urlsplit(url).port
        if wanted not in (None, "auto") and str(wanted) != str(have):
            raise PortTaken(
                f'project "{settings.name}" already runs at port {have}, not {wanted} ({flag})',
                hint="kserve-local down   and up again with the other port",
            )
    backend = given["backend"]
    if backend is not None and backend != running.backend:
        raise PortTaken(
            f'project "{settings.name}" already runs with --backend {running.backend}',
            hint="kserve-local down   and up again",
        )


class _Session:
    """One `up` from a supervisor that listens to its end."""

    def __init__(
        self,
        flags: Common,
        settings: Settings,
        out: Output,
        objects: Sequence[Object],
        begun: float,
    ) -> None:
        self.flags = flags
        self.settings = settings
        self.out = out
        self.objects = objects
        self.begun = begun
        self.unused = True
        self.detached = False
        self._signal = signal.SIGINT

    def run(self, *, detach: bool, wait: bool, timeout: float) -> int:
        self.detached = detach
        if not detach:
            signal.signal(signal.SIGTERM, self._terminated)
        return asyncio.run(self._run(detach=detach, wait=wait, patience=timeout))

    def _terminated(self, number: int, frame: object) -> None:
        self._signal = signal.SIGTERM
        raise KeyboardInterrupt

    def interrupted(self) -> int:
        """Stop everything (the first Ctrl-C); a second one kills."""
        from kserve_local.cli.launch import stop_supervisor

        code = 130 if self._signal == signal.SIGINT else 143
        if self.detached:
            self.out.say("interrupted; the project runs on (kserve-local down stops it)")
            return code
        self.out.say("stopping; Ctrl-C again kills")
        try:
            stop_supervisor(self.settings, grace=60.0)
        except KeyboardInterrupt:
            self.out.say("killing")
            stop_supervisor(self.settings, grace=0.0, kill=True)
        self.out.say("stopped")
        return code

    async def _run(self, *, detach: bool, wait: bool, patience: float) -> int:
        from kserve_local.cli.progress import Follower, Reporter
        from kserve_local.client.client import Client
        from kserve_local.client.project import need_running

        running = need_running(self.settings)
        reporter = Reporter(self.out)
        async with Client.from_kubeconfig(
            self.settings.kubeconfig, on_warning=lambda text: reporter.emit("warning", text=text)
        ) as client:
            names, changed = await self._apply(client, reporter)
            self.unused = False
            follower = Follower(client, reporter, names, changed)
            if detach and not wait:
                self._finish("started", follower, running)
                return 0
            outcome = await follower.until_settled(patience)
            code = self._finish(outcome, follower, running)
            if detach:
                return code
            self.out.say("following; Ctrl-C stops everything")
            try:
                await follower.for_ever()
            except* (KServeLocalError, OSError):
                if need_alive(running):
                    raise
            raise KServeLocalError(
                "the supervisor ended; what was serving still serves",
                hint="kserve-local up     takes over again\nkserve-local down   stops the rest",
            )

    async def _apply(self, client: Any, reporter: Any) -> tuple[list[Any], list[Any]]:
        """Send every object; return all services and those that changed."""
        from kserve_local.api.meta import name_of, namespace_of
        from kserve_local.cli.project_files import missing_namespaces

        for namespace in missing_namespaces(self.objects):
            await client.apply(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            )
        names, changed = [], []
        for obj in self.objects:
            applied, what = await client.apply(obj)
            kind, name = applied["kind"], name_of(applied)
            reporter.emit("step", name=f"{kind}/{name}", result=what)
            if what != "unchanged" and not self.out.as_json:
                self.out.step("✓", "apply", f"{kind} {name} {what}")
            if kind == "InferenceService":
                key = (namespace_of(applied), name)
                names.append(key)
                if what != "unchanged":
                    changed.append(key)
        return names, changed

    def _finish(self, outcome: str, follower: Follower, running: Running) -> int:
        """Print URLs and one command to copy, or what failed; return the exit code."""
        from kserve_local.cli.progress import urls

        code = {"ready": 0, "started": 0, "failed": 4, "timeout": 5}[outcome]
        seconds = time.monotonic() - self.begun
        if self.out.as_json:
            services = [
                {"namespace": ns, "name": n, "state": v.state, "reason": v.reason,
                 "message": v.message}
                for (ns, n), v in sorted(follower.views.items())
            ]  # fmt: skip
            self.out.envelope(
                {"gateway": running.gateway_url, "api": running.api_url, "services": services},
                status="ok" if code == 0 else "error",
            )
            return code
        self._print_urls(follower, running, urls)
        if outcome == "ready":
            self.out.say(f"Ready in {seconds:.1f} s.")
        elif outcome == "failed":
            bad = [n for (_, n), v in follower.views.items() if v.state == "Failed"]
            self.out.say(f"error: {', '.join(sorted(bad))} failed (exit 4)", fg="red")
            self.out.say(f"  kserve-local logs {bad[0]} --tail 50")
        elif outcome == "timeout":
            late = sorted(
                n for ns, n in follower.names
                if follower.views.get((ns, n)) is None or follower.views[ns, n].state != "Ready"
            )  # fmt: skip
            self.out.say(
                f"error: not Ready after {seconds:.0f} s: {', '.join(late)} (exit 5)", fg="red"
            )
            self.out.say(f"  kserve-local status   ·   kserve-local logs {late[0]}")
        return code

    def _print_urls(self, follower: Follower, running: Running, urls: Any) -> None:
        out = self.out
        out.say()
        for name, isvc in sorted(follower.objects.items()):
            if follower.views[name].state == "Ready":
                found = urls(running.gateway_url, isvc)
                out.say(f"  {name[1]:<10} REST  {found['rest']}")
                out.say(f"  {'':<10} path  {found['path']}")
                out.say(f"  {'':<10} host  {found['host']} · {found['localhost']}")
        example = next((n for _, n in sorted(follower.names)), "NAME")
        request = "@request.json" if (self.settings.project / "request.json").exists() else "'{}'"
        out.say(f"  {'Try it':<10} kserve-local predict {example} {request}")
        out.say(f"  {'Watch':<10} kserve-local status   ·   Stop  kserve-local down")


def need_alive(running: Running) -> bool:
    """Whether the supervisor still runs."""
    return running.alive
