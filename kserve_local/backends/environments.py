"""Find an interpreter that has what a program needs, or build one.

The interpreter that runs kserve-local is tried first (installed distributions are looked up,
nothing is imported), then a managed virtual environment below `cache/envs`, keyed by Python
version, platform and requirements. A build happens in a folder of its own under a file lock and
is renamed into place, so no half-built environment is ever found. What a runtime needs is read
from the extras of the installed `kserve-local-runtimes`; what it can do without is in the
environments that are built here, and no reason to build one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from kserve_local.backends.output import tail
from kserve_local.errors import Missing
from kserve_local.interfaces.backend import Program, Progress
from kserve_local.settings import Settings

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "sklearnserver": ("sklearn",),
    "xgbserver": ("xgboost",),
    "lgbserver": ("lightgbm",),
    "predictiveserver": ("sklearn", "xgboost", "lightgbm"),
    "onnxserver": ("onnx",),
    "torchserver": ("torch",),
}
_DISTRIBUTION = "kserve-local-runtimes"
# Without grpcio a server answers over REST only.
_OPTIONAL = frozenset({"grpc"})
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w.-]+)["']""")
_NAME = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[([\w.,\s-]*)\])?\s*(.*)")
_TAIL = 12
_LOOK = 0.3


@dataclass(frozen=True, slots=True)
class Requirement:
    """One `Requires-Dist` line of ours: distribution, lowest version, the line for pip, and whether
    a server starts without it.
    """

    name: str
    lowest: tuple[int, ...]
    line: str
    optional: bool = False


def requirements(runtime: str, lines: Sequence[str] | None = None) -> tuple[Requirement, ...]:
    """Return what a built-in runtime needs; empty for a name that is none of ours.

    Args:
        lines: `Requires-Dist` lines; by default those of the installed distribution.
    """
    if lines is None:
        lines = metadata.requires(_DISTRIBUTION) or ()
    wanted, found = list(EXTRAS.get(runtime, ())), {}
    for extra in wanted:
        for line in lines:
            match = _EXTRA.search(line)
            if match is None or match.group(1) != extra:
                continue
            head, _, marker = line.partition(";")
            parts = _NAME.fullmatch(head)
            if parts is None:
                continue
            name, extras, bounds = parts.groups()
            if name.lower() == _DISTRIBUTION:
                wanted += [e.strip() for e in (extras or "").split(",") if e.strip() not in wanted]
                continue
            # The extra is chosen already; for pip its clause has to be true.
            marker = _EXTRA.sub('python_version >= "3"', marker).strip()
            lowest = re.search(r">=\s*(\d+(?:\.\d+)*)", bounds)
            found[name.lower()] = Requirement(
                name=name,
                lowest=_version(lowest.group(1)) if lowest else (),
                line=f"{head.strip()}; {marker}",
                optional=extra in _OPTIONAL,
            )
    return tuple(found.values())


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def lacking(needs: Sequence[Requirement], installed: Callable[[str], str | None]) -> list[str]:
    """Return the names in `needs` that a server cannot do without and that are not installed, or
    too old. Pure.

    Args:
        installed: Distribution name -> its version, None if it is not there.
    """
    missing = []
    for need in needs:
        if need.optional or ("win32" in need.line and os.name == "nt"):
            continue
        version = installed(need.name)
        if version is None or (need.lowest and _version(version) < need.lowest):
            missing.append(need.name)
    return missing


def _installed_here(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_ASK = """
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


class Environments:
    """Interpreters for programs; remembers what it found."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._found: dict[tuple[object, ...], Path] = {}
        self._building: dict[str, asyncio.Lock] = {}

    async def find(self, program: Program) -> Path:
        """Return an interpreter that has what `program` needs, without building one.

        Raises:
            Missing: There is none yet; `prepare` may build it.
        """
        key = (program.kind, program.runtime, program.python, program.requirements)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = await self._look(program)
        return found

    async def _look(self, program: Program) -> Path:
        if program.python is not None:
            return await self._given(program, program.python)
        if program.requirements is not None:
            return self._managed_or_missing(program, self._file_lines(program.requirements))
        if program.kind == "source":
            return Path(sys.executable)
        needs = requirements(program.runtime)
        if not lacking(needs, _installed_here):
            return Path(sys.executable)
        return self._managed_or_missing(program, [need.line for need in needs])

    async def _given(self, program: Program, python: Path) -> Path:
        """Check the interpreter that the user named."""
        if not os.access(python, os.X_OK):
            raise Missing(f"interpreter {python} does not exist or cannot be run")
        needs = requirements(program.runtime) if program.kind == "runtime" else ()
        if needs:
            versions = await self._ask(python, [need.name for need in needs])
            missing = lacking(needs, versions.get)
            if missing:
                raise Missing(
                    f"{python} lacks {', '.join(missing)}, needed by {program.runtime}; install "
                    f"with: {python} -m pip install {' '.join(missing)}"
                )
        return python

    async def _ask(self, python: Path, names: Sequence[str]) -> dict[str, str | None]:
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-c",
            _ASK,
            *names,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await process.communicate()
        try:
            versions: dict[str, str | None] = json.loads(out)
        except ValueError:
            raise Missing(f"{python} is no working Python interpreter") from None
        return versions

    def _file_lines(self, file: Path) -> list[str]:
        try:
            return file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise Missing(f"requirements file {file}: {error.strerror}") from error

    def _managed_or_missing(self, program: Program, lines: Sequence[str]) -> Path:
        python = self._folder(program, lines) / "bin" / "python"
        if not python.exists():
            raise Missing(f"no environment for {program.runtime} has been built yet")
        return python

    def _folder(self, program: Program, lines: Sequence[str]) -> Path:
        """Return the managed environment's folder, whether it exists or not."""
        constraint = self._environ.get("PIP_CONSTRAINT", "")
        with contextlib.suppress(OSError):
            constraint = Path(constraint).read_text(encoding="utf-8") if constraint else ""
        about = [platform.python_version(), sys.implementation.cache_tag, platform.platform()]
        text = json.dumps([about, sorted(line.strip() for line in lines), constraint])
        name = re.sub(r"[^\w.-]+", "-", program.runtime.rpartition("/")[2]) or "env"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._settings.cache / "envs" / f"{name}-{digest}"

    async def prepare(self, program: Program, report: Callable[[Progress], None]) -> None:
        """Make sure `find` succeeds: build the managed environment if there is none.

        Raises:
            Missing: Offline, or pip failed; ends with pip's last lines.
        """
        try:
            await self.find(program)
            return
        except Missing:
            if program.python is not None:
                raise
        if program.requirements is not None:
            lines = self._file_lines(program.requirements)
            arguments = ["-r", str(program.requirements)]
        else:
            needs = requirements(program.runtime)
            lines = [need.line for need in needs]
            arguments = lines
        folder = self._folder(program, lines)
        if self._settings.offline:
            what = program.requirements or ", ".join(n.name for n in requirements(program.runtime))
            raise Missing(
                f"{program.runtime} needs {what}, and building an environment needs the network, "
                "but kserve-local is offline"
            )
        async with self._building.setdefault(folder.name, asyncio.Lock()), _locked(folder, report):
            if not (folder / "bin" / "python").exists():
                await self._build(program, folder, arguments, report)

    async def _build(
        self,
        program: Program,
        folder: Path,
        arguments: Sequence[str],
        report: Callable[[Progress], None],
    ) -> None:
        # Under the lock, so whatever lies there belongs to a build that died.
        for left in folder.parent.glob(f".{folder.name}.*"):
            if left.is_dir():
                await asyncio.to_thread(shutil.rmtree, left, ignore_errors=True)
        temporary = folder.parent / f".{folder.name}.{os.getpid()}"
        temporary.mkdir(mode=0o700)
        log = temporary / "build.log"
        try:
            report(Progress("env", f"{program.runtime}: creating a virtual environment"))
            venv = [sys.executable, "-m", "venv", str(temporary)]
            inside = str(temporary / "bin" / "python")
            if find_spec("pip") is not None:
                # The pip that is here can fill it: bootstrapping another one takes seconds.
                venv.insert(3, "--without-pip")
                pip = [sys.executable, "-m", "pip", "--python", inside]
            else:
                pip = [inside, "-m", "pip"]
            await self._run(venv, program, log, report)
            pip += ["--disable-pip-version-check", "install", "--no-input"]
            await self._run([*pip, "--progress-bar", "off", *arguments], program, log, report)
            temporary.replace(folder)
            report(Progress("env", f"{program.runtime}: environment ready"))
        finally:
            if temporary.exists():
                await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)

    async def _run(
        self,
        argv: Sequence[str],
        program: Program,
        log: Path,
        report: Callable[[Progress], None],
    ) -> None:
        """Run a build step, telling its lines as they come.

        Its output goes to a file: the step must not block or die with this process's pipe.
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(self._environ),
                start_new_session=True,
            )
        begun = _size(log)
        try:
            ended = asyncio.ensure_future(process.wait())
            while not ended.done():
                await asyncio.wait((ended,), timeout=_LOOK)
                begun = _tell(log, begun, program, report)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode != 0:
            last = "\n".join(tail(log, lines=_TAIL))
            raise Missing(
                f"cannot build an environment for {program.runtime}:\n{last}",
                hint="check the network and the requirements, or name an interpreter with "
                f"runtimes.{program.runtime}.python in kserve-local.yaml",
            )


def _size(log: Path) -> int:
    return log.stat().st_size


def _tell(log: Path, begun: int, program: Program, report: Callable[[Progress], None]) -> int:
    with log.open("rb") as file:
        file.seek(begun)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if line.startswith(("Collecting", "Downloading", "Installing", "Building", "Successfully")):
            report(Progress("env", f"{program.runtime}: {line.strip()}"))
    return begun + len(whole)


@contextlib.asynccontextmanager
async def _locked(folder: Path, report: Callable[[Progress], None]) -> AsyncIterator[None]:
    """Hold the environment's file lock; the kernel lets go of it when its holder dies."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder.parent / f".{folder.name}.lock").open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    report(Progress("env", f"{folder.name}: somebody else is building it"))
                    told = True
                await asyncio.sleep(_LOOK)
        yield
