"""`kserve-local up`: validate, start or find the supervisor, apply the project, follow to Ready."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kserve_local import __version__
from kserve_local.cli.interrupts import held_back
from kserve_local.cli.options import Common, Duration, common
from kserve_local.cli.output import Output, code_of, error_body, padded, width
from kserve_local.errors import Invalid, KServeLocalError, NotFound, PortTaken, UsageError

if TYPE_CHECKING:
    from kserve_local.api.meta import Object
    from kserve_local.cli.progress import Follower, Name, Reporter
    from kserve_local.cli.views import View
    from kserve_local.client.client import Client
    from kserve_local.client.project import Running
    from kserve_local.project.project_files import ProjectFiles
    from kserve_local.settings import Settings


_BACK_OFFS = frozenset(
    {
        "CrashLoopBackOff",
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "RunContainerError",
    }
)


@click.command("up")
@click.argument("directory", required=False, type=click.Path())
@click.option("-d", "--detach", is_flag=True, help="Return; the project runs on.")
@click.option("--wait", is_flag=True, help="With -d: return when every service is Ready.")
@click.option(
    "--timeout", type=Duration(), default="60s", envvar="KSERVE_LOCAL_TIMEOUT",
    help="How long to wait for Ready.",
)  # fmt: skip
@click.option("--no-tui", is_flag=True, help="Plain lines (there is no other way yet).")
@click.option("--backend", type=click.Choice(["auto", "process", "docker"]))
@click.option(
    "--runtime-images", type=click.Choice(["local", "upstream"]),
    help="In Docker, for KServe's runtimes: our images, built here, or those they name.",
)  # fmt: skip
@click.option("--gpu", metavar="auto|none|N,...", help="Which GPUs Pods can have (default: all).")
@click.option(
    "--simulate-gpus", type=click.IntRange(0), metavar="N",
    help="Pretend N NVIDIA GPUs, to try out scheduling; models run on the CPU.",
)  # fmt: skip
@click.option("--port", metavar="N|auto", help="The gateway's port.")
@click.option("--api-port", metavar="N|auto", help="The API's.")
@click.option("--host", help="The gateway's address.")
@click.option(
    "--seed", type=click.IntRange(0), metavar="N",
    help="Repeat the gateway's draws: the same requests reach the same revisions.",
)  # fmt: skip
@click.option("--no-watch", is_flag=True, help="Saves change nothing of what runs.")
@click.option("--no-replay", is_flag=True, help="After a reload, do not compare answers.")
@click.option("--fresh", is_flag=True, help="Forget the state of earlier runs first.")
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
    runtime_images: str | None,
    gpu: str | None,
    simulate_gpus: int | None,
    port: str | None,
    api_port: str | None,
    host: str | None,
    seed: int | None,
    no_watch: bool,
    no_replay: bool,
    fresh: bool,
    dry_run: bool,
) -> int:
    """Serve the project in DIRECTORY (default: here).

    Without -d it follows until Ctrl-C, which stops everything; a second Ctrl-C kills.
    """
    if directory is not None:
        flags = replace(flags, project=Path(directory))
    if wait and not detach:
        raise UsageError("--wait needs -d; without -d, up waits and then follows anyway")
    given = {
        "gateway_port": port,
        "api_port": api_port,
        "gateway_host": host,
        "backend": backend,
        "runtime_images": runtime_images,
        "gpu": gpu,
        "simulate_gpus": simulate_gpus,
        "seed": seed,
        "watch": False if no_watch else None,
        "replay": False if no_replay else None,
    }
    begun = time.monotonic()
    settings = flags.settings(**given)
    out = flags.output("up")
    stopped_by = _Signals()
    from kserve_local.controllers.standins import known
    from kserve_local.project import project_files

    project = project_files.load_project(settings, known(settings.images))
    objects = project.objects
    out.fit(str(obj["metadata"].get("name") or "") for obj in objects)
    _tell_findings(settings, out, project)
    if dry_run:
        return _dry_run(out, project)
    if fresh:
        _forget(settings)
    session = _Session(flags, settings, out, project, begun, stopped_by, detached=detach)
    try:
        session.ensure_supervisor(given)
        return session.run(wait=wait, timeout=timeout)
    except KeyboardInterrupt:
        return session.interrupted()
    except KServeLocalError:
        if session.started and session.unused:
            session.stop(grace=10.0)
        elif session.started:
            out.say("what ran before goes on as it was")
        raise


def _forget(settings: Settings) -> None:
    """Delete the project's state; logs, objects and history of earlier runs go with it.

    Raises:
        PortTaken: It runs, or something of it does.
    """
    from kserve_local.client.project import find_running
    from kserve_local.supervisor import statedir
    from kserve_local.supervisor.leftovers import has_leftovers

    if find_running(settings) is not None or has_leftovers(settings):
        raise PortTaken(
            f'project "{settings.name}" runs, or was not stopped; --fresh needs it stopped',
            hint="kserve-local down   and then   kserve-local up --fresh",
        )
    if settings.state.is_dir():
        statedir.remove_state(settings)


class _Signals:
    """SIGTERM and SIGHUP taken as the first Ctrl-C is, but remembered for the exit code."""

    def __init__(self) -> None:
        self.code = 130
        # Asked now: of a terminal that has gone the kernel says it is none.
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        signal.signal(signal.SIGTERM, self._terminated)
        # Who was started by nohup is to outlive its terminal.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._terminated)

    def _terminated(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            self._leave_terminals()
        self.code = 128 + number
        os.kill(os.getpid(), signal.SIGINT)

    def _leave_terminals(self) -> None:
        """Say what is still to be said to nobody: writing to a terminal that has gone fails."""
        nobody = os.open(os.devnull, os.O_RDWR)
        for stream in self._terminals:
            os.dup2(nobody, stream)
        os.close(nobody)


def _dry_run(out: Output, project: ProjectFiles) -> int:
    """Show what would be applied."""
    if out.as_json:
        found = [
            {"kind": o["kind"], "namespace": o["metadata"].get("namespace", ""),
             "name": o["metadata"].get("name", "")}
            for o in project.objects
        ]  # fmt: skip
        out.envelope({"objects": found}, warnings=project.warnings())
    else:
        for obj in project.objects:
            out.data(f"{obj['kind']} {obj['metadata'].get('name')}")
    return 0


def _passed(flags: Common, given: dict[str, Any], before: Running | None) -> dict[str, Any]:
    """Return what the supervisor is to be told.

    Args:
        before: One that was killed: what it was started with holds until told otherwise, or what
            still serves would move to other ports.
    """
    passed = dict(before.raw.get("flags") or {}) if before is not None else {}
    passed.pop("verbose", None)
    passed |= {k: v for k, v in given.items() if v is not None}
    passed["files"] = [f if f == "-" else str(Path(f).expanduser().resolve()) for f in flags.files]
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
    from kserve_local.project.project_files import summary

    count = len(project.objects)
    errors = project.errors()
    if errors:
        plural = "" if len(errors) == 1 else "s"
        of = f"{count} object{'' if count == 1 else 's'}"
        raise Invalid("\n".join([f"{len(errors)} error{plural} in {of}", *errors]))
    if out.as_json:
        return
    found = project.findings()
    fails = any(finding.severity == "error" for _, finding in found)
    out.say(f"kserve-local {__version__} · project {settings.name} · KServe 0.20 rules")
    text = summary(project.reports, count, len(settings.warnings))
    out.step("!" if fails else "✓", "validate", text)
    for path, finding in found:
        out.say(f"      {finding.line_in(path)}")
        for detail in finding.details:
            out.say(f"          {detail}")
    if fails:
        out.say(
            "      going on: a cluster takes these objects too and says in their status why not"
        )
    for text in settings.warnings:
        out.say(f"      {text}")


def _check_conflicts(
    settings: Settings, running: Running, given: dict[str, Any], flags: Common
) -> None:
    """Refuse flags that the running supervisor was not started with.

    Raises:
        PortTaken: One differs; it takes effect at a start only.
    """
    from urllib.parse import urlsplit

    if flags.offline and not (running.raw.get("flags") or {}).get("offline"):
        raise _runs_otherwise(settings, "without --offline", "--offline")
    if given["watch"] is False and (running.raw.get("flags") or {}).get("watch") is not False:
        raise _runs_otherwise(settings, "and is watched", "--no-watch")
    if given["replay"] is False and (running.raw.get("flags") or {}).get("replay") is not False:
        raise _runs_otherwise(settings, "and compares answers", "--no-replay")
    seed = (running.raw.get("flags") or {}).get("seed")
    if given["seed"] is not None and given["seed"] != seed:
        is_now = "without --seed" if seed is None else f"with --seed {seed}"
        raise _runs_otherwise(settings, is_now, f"--seed {given['seed']}")
    profile = str(running.raw.get("profile") or "")
    if flags.profile and flags.profile != profile:
        is_now = f"with --profile {profile}" if profile else "without a profile"
        raise _runs_otherwise(settings, is_now, f"--profile {flags.profile}")

    have: dict[str, tuple[Any, Any]] = {
        "--port": (given["gateway_port"], urlsplit(running.gateway_url).port),
        "--api-port": (given["api_port"], urlsplit(running.api_url).port),
        "--host": (given["gateway_host"], urlsplit(running.gateway_url).hostname),
        "--backend": (given["backend"], running.backend),
        "--runtime-images": (
            given["runtime_images"],
            (running.raw.get("flags") or {}).get("runtime_images") or "local",
        ),
        "--gpu": (given["gpu"] and settings.gpu, running.raw.get("gpu", "auto")),
        "--simulate-gpus": (given["simulate_gpus"], running.raw.get("simulate_gpus", 0)),
    }
    for flag, (wanted, is_now) in have.items():
        if wanted not in (None, "auto") and str(wanted) != str(is_now):
            raise _runs_otherwise(settings, f"with {flag} {is_now}", f"{flag} {wanted}")


def _runs_otherwise(settings: Settings, is_now: str, wanted: str) -> PortTaken:
    return PortTaken(
        f'project "{settings.name}" already runs {is_now}, not with {wanted}',
        hint=f"kserve-local down   and then   kserve-local up {wanted}",
    )


def _stale_settings(settings: Settings, running: Running) -> str:
    """Return a sentence on what of kserve-local.yaml has changed since the start, "" if nothing."""
    from kserve_local.settings import CONFIG_FILE, LIVE, fingerprint

    before = running.raw.get("config")
    if before is None:
        return ""
    now = fingerprint(settings.project, profile=str(running.raw.get("profile") or ""))
    # A project that is watched has taken those over already.
    live = LIVE if (running.raw.get("flags") or {}).get("watch") is not False else frozenset()
    changed = sorted(k for k in {*before, *now} - live if before.get(k) != now.get(k))
    if not changed:
        return ""
    return (
        f"{CONFIG_FILE}: {', '.join(changed)} changed since the project started, without effect "
        "so far; kserve-local down   and then   kserve-local up"
    )


class _Session:
    """One `up` from a supervisor that listens to its end."""

    def __init__(
        self,
        flags: Common,
        settings: Settings,
        out: Output,
        project: ProjectFiles,
        begun: float,
        stopped_by: _Signals,
        *,
        detached: bool,
    ) -> None:
        self.flags = flags
        self.settings = settings
        self.out = out
        self.project = project
        self.objects = project.objects
        self.begun = begun
        self.stopped_by = stopped_by
        self.started = False
        self.unused = True
        self.detached = detached
        self.result: dict[str, Any] | None = None
        self.told: list[str] = []
        self.applied: dict[Name, Object] = {}

    def ensure_supervisor(self, given: dict[str, Any]) -> None:
        """Start the project's supervisor, or check that the one there is what was asked for.

        Raises:
            PortTaken: It runs with other flags than given.
        """
        from kserve_local.cli.launch import start_supervisor
        from kserve_local.client.project import (
            find_running,
            find_survivor,
            need_running,
            read_run_file,
        )
        from kserve_local.project.project_files import runtimes_needed

        if find_running(self.settings) is None:
            survives = find_survivor(self.settings) is not None
            # What an earlier supervisor left serves already: no error of ours may stop it.
            self.unused = not survives
            before = read_run_file(self.settings) if survives else None
            profile = str(before.raw.get("profile") or "") if before is not None else ""
            warm = runtimes_needed(self.objects)
            with held_back() as hear:
                self.started = start_supervisor(
                    self.settings,
                    _passed(self.flags, given, before),
                    profile=self.flags.profile or profile,
                    warm=warm,
                    hear=hear,
                )
        if not self.started:
            _check_conflicts(self.settings, need_running(self.settings), given, self.flags)

    def run(self, *, wait: bool, timeout: float) -> int:
        import asyncio

        return asyncio.run(self._run(wait=wait, patience=timeout))

    def interrupted(self) -> int:
        """Stop everything (the first Ctrl-C); a second one kills. Returns the exit code."""
        code = self.stopped_by.code
        if self.detached and not (self.started and self.unused) and self._runs():
            self.out.say("interrupted; the project runs on (kserve-local down stops it)")
            return code
        self.stop(grace=60.0, say="stopping; Ctrl-C again kills")
        self.out.say("stopped")
        if self.out.as_json:
            self.out.envelope(self.result)
        return code

    def _runs(self) -> bool:
        from kserve_local.client.project import find_running

        return find_running(self.settings) is not None

    def stop(self, *, grace: float, say: str = "stopping") -> None:
        """Take everything down within `grace` seconds; Ctrl-C meanwhile kills."""
        from kserve_local.cli.launch import stop_supervisor

        with held_back() as hear:
            try:
                with hear():
                    self.out.say(say)
                    stop_supervisor(self.settings, grace=grace, say=self.out.say)
            except KeyboardInterrupt:
                self.out.say("killing")
                stop_supervisor(self.settings, grace=0.0, kill=True)

    async def _run(self, *, wait: bool, patience: float) -> int:
        import asyncio

        from kserve_local.cli import saves
        from kserve_local.cli.progress import Follower, Reporter
        from kserve_local.client.client import Client
        from kserve_local.client.project import TAKE_OVER, need_running

        running = need_running(self.settings)
        reporter = Reporter(self.out)

        def warn(text: str) -> None:
            self.told.append(text)
            reporter.emit("problem", message=text)
            if not self.out.as_json:
                self.out.step("!", "warning", text)

        if not self.started and (text := _stale_settings(self.settings, running)):
            warn(text)
        async with Client.from_kubeconfig(self.settings.kubeconfig, on_warning=warn) as client:
            names, changed, old = await self._apply(client, reporter)
            self.unused = False
            follower = Follower(client, reporter, names, changed, old)
            for text in [*await self._vanished(client), *await self._unread(client, old)]:
                warn(text)
            if self.detached and not wait:
                return await self._finish("started", follower, running)
            outcome = await follower.until_settled(patience)
            if outcome == "ready" and await saves.until_served(client, patience):
                outcome = await follower.until_settled(patience)
            code = await self._finish(outcome, follower, running)
            if self.detached:
                return code
            self.out.say("following; Ctrl-C stops everything")
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(follower.for_ever(), name="services")
                    tasks.create_task(saves.follow(client, reporter), name="saves")
            except* (KServeLocalError, OSError):
                # Its connections break a moment before the kernel has taken it apart.
                if await outlives(running, 1.0):
                    raise
            raise KServeLocalError(
                "the supervisor ended; what was serving still serves", hint=TAKE_OVER
            )

    async def _apply(
        self, client: Client, reporter: Reporter
    ) -> tuple[list[Name], list[Name], list[Name]]:
        """Send every object; return all services, those with news besides their spec, and those
        that were there.
        """
        from kserve_local.api.meta import name_of, namespace_of
        from kserve_local.project.project_files import missing_namespaces

        for namespace in missing_namespaces(self.objects):
            await client.apply(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            )
        names, configured, old = [], [], []
        others = False
        for obj in self.objects:
            applied, what = await client.apply(obj)
            kind, name = applied["kind"], name_of(applied)
            reporter.emit("step", name=f"{kind}/{name}", result=what)
            if what != "unchanged" and not self.out.as_json:
                self.out.step("✓", "apply", f"{kind} {name} {what}")
            if kind in ("InferenceService", "InferenceGraph"):
                key = (namespace_of(applied), name)
                names.append(key)
                self.applied[key] = applied
                if what != "created":
                    old.append(key)
                    if what != "unchanged":
                        configured.append(key)
            elif what == "configured":
                others = True  # What that means for a service shows a moment later.
        changed = await self._restart_failed(client, [n for n in old if n not in configured])
        return names, old if others else changed, old

    async def _restart_failed(self, client: Client, unchanged: list[Name]) -> list[Name]:
        """Replace the Pods of unchanged services that failed and wait; return those services.

        Who runs `up` again has mended something outside the YAML and will not wait for the timer.
        """
        from kserve_local.api import scheme
        from kserve_local.api.meta import name_of, namespace_of
        from kserve_local.api.names import ISVC_LABEL

        restarted = []
        for namespace, name in unchanged:
            labels = f"{ISVC_LABEL}={name}"
            pods = await client.list(scheme.POD, namespace=namespace, labels=labels)
            for pod in filter(_backs_off, pods):
                with suppress(NotFound):  # gone meanwhile: as good as deleted
                    await client.delete(scheme.POD, name_of(pod), namespace_of(pod))
                restarted.append((namespace, name))
        return list(dict.fromkeys(restarted))

    async def _vanished(self, client: Client) -> list[str]:
        """Say which services an earlier `up` took out of a file that holds them no more."""
        from kserve_local.api import scheme
        from kserve_local.api.meta import name_of, namespace_of
        from kserve_local.api.names import MANIFEST
        from kserve_local.cli.session import list_services

        now = {scheme.key_of(obj) for obj in self.objects}
        read = set(self.project.sources(self.settings.project))
        lines = []
        for obj in await list_services(client):
            source = (obj["metadata"].get("annotations") or {}).get(MANIFEST)
            if source is None or scheme.key_of(obj) in now:
                continue
            if source in read or not (self.settings.project / source).exists():
                where = namespace_of(obj)
                flag = "" if where == self.settings.namespace else f" -n {where}"
                lines.append(
                    f"{obj['kind']} {name_of(obj)} is not in {source} any more and runs on; "
                    f"kserve-local delete {scheme.of(obj).short_names[0]} {name_of(obj)}{flag}"
                )
        return lines

    async def _unread(self, client: Client, old: Sequence[Name]) -> list[str]:
        """Say which services serve code or a model that was edited since their Pod started."""
        from kserve_local.client.project import STATUS

        if not old or self.started:
            return []
        data = await client.call("GET", STATUS, query={"changes": "true"})
        return [
            f"{service['name']}: {text}"
            for service in data["services"]
            if (service["namespace"], service["name"]) in old
            for text in service["warnings"]
        ]

    async def _finish(self, outcome: str, follower: Follower, running: Running) -> int:
        """Print URLs and one command to copy, or what failed; return the exit code."""
        from kserve_local.cli.progress import labelled
        from kserve_local.cli.status import told

        code = {"ready": 0, "started": 0, "failed": 4, "timeout": 5}[outcome]
        seconds = time.monotonic() - self.begun
        views = follower.views
        failed = sorted(n for n in follower.names if n in views and views[n].state == "Failed")
        late = sorted(
            n for n in follower.names
            if n not in failed and (n not in views or views[n].state not in ("Ready", "Stopped"))
        )  # fmt: skip
        tails = {n: await follower.log_tail(n) for n in failed}
        reasons = await self._reasons(follower.client) if late and outcome == "timeout" else {}
        shown = labelled(follower.names)
        if self.out.as_json:
            self._envelope(code, follower, running, failed, late, tails, reasons)
            return code
        self._print_urls(follower, running, to_try=follower.names if outcome == "started" else ())
        if outcome == "ready":
            self.out.say(f"Ready in {seconds:.1f} s.")
        elif outcome == "failed":
            for name in failed:
                if not follower.reporter.lines.get(name):
                    for line in tails[name]:
                        self.out.say(f"      {shown[name]} │ {line}")
            also = f"; not Ready: {', '.join(shown[n] for n in late)}" if late else ""
            names = ", ".join(shown[n] for n in failed)
            whys = {n: told(views[n].reason, views[n].message) for n in failed}
            why = f": {whys[failed[0]]}" if len(failed) == 1 and whys[failed[0]] else ""
            self.out.say(f"error: {names} failed{why}{also} (exit 4)", fg="red")
            for name in failed if len(failed) > 1 else ():
                self.out.say(f"  {shown[name]}: {whys[name]}")
            logs = f"kserve-local logs {self._argument(failed[0])}"
            self.out.say(f"  {logs} --tail 50   ·   kserve-local status")
        elif outcome == "timeout":
            names = ", ".join(shown[n] for n in late)
            self.out.say(f"error: not Ready after {seconds:.0f} s: {names} (exit 5)", fg="red")
            for name in late:
                for line in reasons.get(name, "").splitlines():
                    self.out.say(f"  {shown[name]}: {line}")
            logs = f"kserve-local logs {self._argument(late[0])}"
            self.out.say(f"  kserve-local status   ·   {logs}")
        return code

    def _argument(self, name: Name) -> str:
        """Return what names the service in a command: with -n where its namespace is another."""
        return name[1] if name[0] == self.settings.namespace else f"{name[1]} -n {name[0]}"

    async def _reasons(self, client: Client) -> dict[Name, str]:
        """Return what `status` says keeps each service waiting, if it says anything."""
        from kserve_local.client.project import STATUS

        data = await client.call("GET", STATUS)
        return {
            (s["namespace"], s["name"]): ": ".join(filter(None, (s["reason"], s["message"])))
            for s in data["services"]
        }

    def _envelope(
        self,
        code: int,
        follower: Follower,
        running: Running,
        failed: Sequence[Name],
        late: Sequence[Name],
        tails: Mapping[Name, Sequence[str]],
        reasons: Mapping[Name, str],
    ) -> None:
        """Print the one JSON answer; in the foreground it waits for the end."""
        from kserve_local.cli.progress import urls

        services = []
        for name in sorted(follower.names):
            seen = follower.views.get(name)
            isvc = follower.objects.get(name) or self.applied[name]
            services.append(
                {
                    "namespace": name[0],
                    "name": name[1],
                    "state": seen.state if seen else "Pending",
                    "reason": seen.reason if seen else "",
                    "message": seen.message if seen else "",
                    "urls": urls(running.gateway_url, isvc) if _is_called(seen) else {},
                }
            )
        data = {"gateway": running.gateway_url, "api": running.api_url, "services": services}
        warnings = [*self.project.warnings(), *self.settings.warnings, *self.told]
        if code == 0 or not self.detached:
            self.result = data
            follower.reporter.emit("step", name="up", result="ready" if code == 0 else "failed")
            if self.detached:
                self.out.envelope(data, warnings=warnings)
            return
        name = (failed or late)[0]
        seen = follower.views.get(name)
        reason = seen.reason if seen else ""
        told = reasons.get(name) or (seen.message if seen else "")
        what = "failed" if failed else f"is not Ready after {time.monotonic() - self.begun:.0f} s"
        body = error_body(
            f'{self.applied[name]["kind"]} "{name[0]}/{name[1]}" {what}'
            + (f": {told}" if told else ""),
            exit_code=code,
            code=code_of(reason) if failed else "",
            details={
                "service": name[1],
                "namespace": name[0],
                "failed": [n for _, n in failed],
                "late": [n for _, n in late],
                "log": list(tails.get(name, ())),
            },
            hint=f"kserve-local logs {name[1]} --tail 50",
        )
        self.out.envelope(data, status="error", warnings=warnings, error=body)

    def _print_urls(
        self, follower: Follower, running: Running, *, to_try: Collection[Name]
    ) -> None:
        """Print how to call what is Ready or on its way: the addresses are known from the start.

        Args:
            to_try: Services that may be Ready by the time somebody tries.
        """
        from kserve_local.cli.progress import base_url, labelled, urls

        out = self.out
        out.say()
        shown = labelled(follower.names)
        column = max((width(n) for n in shown.values()), default=0)
        column = max(column, len("Gateway")) + 2
        out.say(f"  {'Gateway':<{column}}{base_url(running.gateway_url)}")
        for name in sorted(follower.names):
            if _is_called(follower.views.get(name)):
                isvc = follower.objects.get(name) or self.applied[name]
                found = urls(running.gateway_url, isvc)
                hosts = " · ".join(filter(None, (found["host"], found["localhost"])))
                # The short form leads nowhere where two services have the model.
                rest = found["rest" if shown[name] == name[1] else "predict"]
                out.say(f"  {padded(shown[name], column)}REST  {rest}")
                if found["path"] != rest:
                    out.say(f"  {'':<{column}}path  {found['path']}")
                out.say(f"  {'':<{column}}host  {hosts}")
        ready = [n for n, v in follower.views.items() if v.state == "Ready"]
        objects = {n: follower.objects.get(n) or self.applied[n] for n in ready or to_try}
        example = first_to_try(objects)
        if example is not None:
            isvc = follower.objects.get(example) or self.applied[example]
            words = f"{self._argument(example)} {sample_request(isvc, self.settings.project)}"
            out.say(f"  {'Try it':<{column}}kserve-local predict {words}")
        out.say(f"  {'Watch':<{column}}kserve-local status   ·   Stop  kserve-local down")


def first_to_try(objects: Mapping[Name, Object]) -> Name | None:
    """Return what to call first: a graph, of which the services are steps, else by the name."""

    def rank(name: Name) -> tuple[bool, Name]:
        return objects[name]["kind"] != "InferenceGraph", name

    return min(objects, key=rank, default=None)


def sample_request(isvc: Object, project: Path) -> str:
    """Return what to call a service with, as a word of the shell: a file of samples that lies
    there, else the shape of a request.
    """
    from shlex import quote

    from kserve_local.api.names import MANIFEST
    from kserve_local.api.runtime_selection import model_of

    manifest = (isvc["metadata"].get("annotations") or {}).get(MANIFEST, "")
    beside = (project / manifest).parent if manifest else project
    for folder in dict.fromkeys((beside, project)):
        samples = [folder / "request.json", *sorted((folder / "samples").glob("*.json"))]
        for file in samples:
            if file.is_file():
                return quote(f"@{os.path.relpath(file)}")
    if model_of(isvc).get("protocolVersion") in ("v2", "grpc-v2"):
        return """'{"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}'"""
    return """'{"instances": [[...]]}'"""


async def outlives(running: Running, seconds: float) -> bool:
    """Whether the supervisor still runs after `seconds`; False as soon as it does not."""
    import asyncio

    end = time.monotonic() + seconds
    while running.alive:
        if time.monotonic() > end:
            return True
        await asyncio.sleep(0.02)
    return False


def _is_called(seen: View | None) -> bool:
    """Whether a service answers, or will as far as is known."""
    return seen is None or seen.state not in ("Failed", "Stopped")


def _backs_off(pod: Object) -> bool:
    """Whether a container of the Pod failed and waits for its next try, in a back-off or yet to
    be taken into one.
    """
    status = pod.get("status") or {}
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or ():
            state = container.get("state") or {}
            if (state.get("waiting") or {}).get("reason") in _BACK_OFFS:
                return True
            if (state.get("terminated") or {}).get("exitCode"):
                return True
    return False
