"""`kserve-local doctor`: is this machine fit, and what to do where it is not.

Changes nothing unless told to: `--fix` carries out what is safe without asking. It ends no process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import KServeLocalError
from kserve_local.settings import Settings


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `level` is `ok`, `warn` (works, less well) or `fail` (`up` will not work).

    Args:
        mend: What `--fix` does about it; says what it did.
    """

    name: str
    level: str
    message: str
    fix: str = ""
    mend: Callable[[], str] | None = None


def _ports(settings: Settings) -> Iterator[Check]:
    from kserve_local.client.project import find_running, find_survivor

    if find_running(settings):
        yield Check("ports", "ok", "this project runs and holds its ports")
        return
    survivor = find_survivor(settings)
    if survivor is not None:
        text = f"the supervisor is gone; its gateway {survivor.url} (pid {survivor.pid}) serves on"
        yield Check("ports", "warn", text, "kserve-local up")
        return
    for what, port, flag in (
        ("gateway", settings.gateway_port, "--port"),
        ("API", settings.api_port, "--api-port"),
    ):
        if port is None:
            yield Check(f"{what} port", "ok", "auto")
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.gateway_host if what == "gateway" else "127.0.0.1", port))
                yield Check(f"{what} port", "ok", f"{port} is free")
            except OSError:
                from kserve_local.supervisor.ports import holder

                yield Check(
                    f"{what} port",
                    "fail",
                    f"{port} is in use; {holder(port)}",
                    f"kserve-local up {flag} auto",
                )


def _python(settings: Settings) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok", f"{version} ({sys.executable})")
    names = {
        "scikit-learn": "sklearn",
        "xgboost": "xgboost",
        "lightgbm": "lightgbm",
        "onnxruntime": "onnxruntime",
        "torch": "torch",
        "kserve": "kserve",
    }
    have = [label for label, module in names.items() if importlib.util.find_spec(module)]
    rest = [label for label in names if label not in have]
    built = "; built into an environment of its own when a model needs it" if rest else ""
    yield Check(
        "frameworks",
        "ok",
        f"here: {', '.join(have) or 'none'}"
        + (f"; not here: {', '.join(rest)}{built}" if rest else ""),
    )


def _machine(settings: Settings) -> Iterator[Check]:
    folder = settings.cache
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    level = "ok" if free > 2 else "warn"
    yield Check("disk", level, f"{free:.1f} GiB free for the cache in {settings.cache}")
    if sys.platform.startswith("linux"):
        with socket.socket() as probe:
            try:
                probe.bind(("127.64.0.1", 0))
                yield Check("addresses", "ok", "every Pod gets its own loopback address")
            except OSError as error:
                yield Check(
                    "addresses", "warn", f"127.64.0.0/10 cannot be used ({error.strerror}); "
                    "Pods get ephemeral ports instead"
                )  # fmt: skip
        soft = _open_files()
        level = "ok" if soft >= 1024 else "warn"
        # A child cannot change the shell's limit, so --fix cannot either.
        yield Check("open files", level, f"limit {soft}", "" if level == "ok" else "ulimit -n 4096")
    else:
        yield Check("addresses", "warn", "own addresses for Pods need Linux; ports are assigned")
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    yield Check("sockets", "ok", f"in {settings.runtime}" + ("" if xdg else " (temporary folder)"))


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _tools(settings: Settings) -> Iterator[Check]:
    yield Check("kubectl", "ok", shutil.which("kubectl") or "not installed (optional)")
    yield _docker(settings)
    yield _gpus(settings)


def _docker(settings: Settings) -> Check:
    """Ask the engine: images without a stand-in need one, unless the project does without."""
    import asyncio

    from kserve_local.backends.docker_engine import Engine
    from kserve_local.errors import Missing

    async def ask() -> str:
        engine = await Engine.connect()
        try:
            return f"engine {engine.info.get('ServerVersion')} on {engine.architecture} answers"
        finally:
            await engine.close()

    try:
        return Check("docker", "ok", asyncio.run(ask()))
    except Missing as error:
        needed = settings.needs("docker")
        why = "" if needed else " (needed for images without a stand-in only)"
        level = "fail" if needed else "ok" if settings.backend == "process" else "warn"
        return Check("docker", level, f"{error}{why}", error.hint)


def _gpus(settings: Settings) -> Check:
    from kserve_local.backends.gpus import Gpus
    from kserve_local.errors import Missing

    gpus = Gpus()
    found, left_out = gpus.discover()
    what = "; ".join(
        (*(f"{d.index} {d.name} ({d.memory_bytes / 2**30:.0f} GiB)" for d in found), *left_out)
    )
    try:
        offered = gpus.inventory(settings).offered
    except Missing as error:
        return Check("GPUs", "fail", error.message, "kserve-local up --gpu auto")
    if settings.simulate_gpus:
        what = f"{settings.simulate_gpus} simulated; here: {what or 'none'}"
    elif len(offered) < len(found):
        used = ", ".join(str(d.index) for d in offered) or "none"
        what = f"{what}; Pods can have: {used}"
    return Check("GPUs", "warn" if left_out else "ok", what or "none; models run on the CPU")


def _config(settings: Settings) -> Iterator[Check]:
    for problem in settings.problems:
        yield Check("config", "fail", problem)
    for warning in settings.warnings:
        yield Check("config", "warn", warning)


def _state(settings: Settings) -> Iterator[Check]:
    from kserve_local.supervisor.remains import disorders

    for found in disorders(settings):
        level = "fail" if found.breaks else "warn"
        fix = found.hint if found.mend is None else "kserve-local doctor --fix"
        yield Check(found.name, level, found.message, fix, found.mend)


CHECKS: tuple[Callable[[Settings], Iterator[Check]], ...] = (
    _python,
    _ports,
    _machine,
    _tools,
    _config,
    _state,
)


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Do what is safe about it, then check again.")
@click.option(
    "--bundle", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Also write checks, status, Events and logs into FILE (.tar.gz), for a report.",
)  # fmt: skip
@common
def command(flags: Common, fix: bool, bundle: Path | None) -> int:
    """Check ports, Python, frameworks, disk, limits and state. Exit 7 if `up` would not work.

    --fix removes what a supervisor left that is gone with all it started, run files copied with a
    folder, and broken environments, and mends modes of files. It ends no process and asks nothing.
    """
    settings = flags.settings_of_running(tell=False)
    checks = _checked(settings)
    fixed: list[dict[str, str]] = []
    if fix:
        checks, fixed = _fix(settings, checks)
    failed = any(check.level == "fail" for check in checks)
    out = flags.output("doctor")
    data = [{"name": c.name, "level": c.level, "message": c.message, "fix": c.fix} for c in checks]
    written: list[str] = []
    if bundle is not None:
        from kserve_local.cli.bundle import write

        written = write(settings, data, bundle)
        out.say(f"{bundle}: {', '.join(written)}; it holds no secrets of ours, but logs are yours")
    if flags.as_json:
        told: dict[str, object]
        told = {"bundle": {"file": str(bundle), "holds": written}} if bundle is not None else {}
        told |= {"fixed": fixed} if fix else {}
        out.envelope({"checks": data, **told}, status="error" if failed else "ok")
    else:
        for done in fixed:
            out.data(f"✓ fixed {done['name']:<12} {done['message']}")
        for check in checks:
            mark = {"ok": "✓ ok  ", "warn": "! warn", "fail": "✗ fail"}[check.level]
            out.data(f"{mark}  {check.name:<12} {check.message}")
            if check.fix:
                out.data(f"        {'':<12} fix: {check.fix}")
    return 7 if failed else 0


def _checked(settings: Settings) -> list[Check]:
    return [check for group in CHECKS for check in group(settings)]


def _fix(settings: Settings, checks: list[Check]) -> tuple[list[Check], list[dict[str, str]]]:
    """Mend what can be; return what is found after that, and what was done.

    What could not be mended after all says why, and keeps its level.
    """
    fixed, refused = [], {}
    for check in checks:
        if check.mend is None:
            continue
        try:
            fixed.append({"name": check.name, "was": check.message, "message": check.mend()})
        except (OSError, KServeLocalError) as error:
            refused[check.message] = str(error)
    if fixed:
        checks = _checked(settings)
    why = {m: f"{m}; not fixed: {text}" for m, text in refused.items()}
    return [replace(c, message=why.get(c.message, c.message)) for c in checks], fixed
