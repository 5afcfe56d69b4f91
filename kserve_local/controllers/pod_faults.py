"""What a container's end most likely means, and what the user can do about it. Pure.

Reads the termination and the last log lines; gives one sentence that goes below them into
`terminated.message`, and from there into Events and `modelStatus.lastFailureInfo`. A catalogue:
the first rule that matches wins, special ones first.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

MAX_LINES = 20
MAX_BYTES = 2048
_ADDRESS_IN_USE = re.compile(
    r"address already in use|Errno 98|EADDRINUSE|port is already allocated", re.I
)
_ADDRESS = re.compile(
    r"""\(\s*['"](?P<quoted>[\d.:a-f]*)['"]\s*,\s*(?P<quoted_port>\d+)\)"""
    r"""|\b(?P<host>\d+\.\d+\.\d+\.\d+|\[::\]|localhost):(?P<port>\d+)\b"""
    r"""|\bport[ =:]+(?P<bare>\d+)""",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended.

    Args:
        memory_limit_bytes: Its limit, None without one.
        image: As in the Pod.
        source: The image is local source of the user, not a server of ours.
        own_command: The Pod replaces the image's command.
        signal: What killed its process, None if it exited.
        killed_for: Why it was killed from here; empty: it was not.
        holder: Who holds the port it wanted, if that was found out.
    """

    reason: str
    exit_code: int | None
    image: str = ""
    source: bool = False
    own_command: bool = False
    signal: int | None = None
    memory_limit_bytes: int | None = None
    killed_for: str = ""
    holder: str = ""


def tail(text: str, *, lines: int = MAX_LINES, size: int = MAX_BYTES) -> str:
    """Return the last lines, at most `lines` and `size` bytes of whole lines where possible.

    Source: kubelet's FallbackToLogsOnError keeps 80 lines or 2 KiB; 20 are enough to read.
    """
    kept = [line.rstrip() for line in text.rstrip().splitlines()][-lines:]
    while len(kept) > 1 and len("\n".join(kept).encode()) > size:
        kept.pop(0)
    joined = "\n".join(kept)
    return joined.encode()[-size:].decode(errors="ignore") if joined else ""


def signal_of(ended: Ended) -> str:
    """Return the name of the signal that ended it (`SIGABRT`), empty if none did.

    A shell or another parent hands a signal on as exit code 128 + n, and a cluster knows no more.
    """
    number = ended.signal or (ended.exit_code or 0) - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def killed_by(ended: Ended) -> str:
    """Return in words what killed it: a signal, or too little memory; empty if it ended itself."""
    if ended.reason == "OOMKilled":
        code = "" if ended.exit_code is None else f" (exit code {ended.exit_code})"
        limit = ended.memory_limit_bytes
        return f"OOMKilled{code}" + (f", limit {limit / 2**20:.0f}Mi" if limit else "")
    name = signal_of(ended)
    if not name:
        return ""
    if ended.signal is None:
        return f"exit code {ended.exit_code}, as of a process killed by {name}"
    return f"killed by {name}"


_TELLING = re.compile(
    r"\b\w*(?:Error|Exception|Failure)\b|\b(?:error|fatal|critical|failed|cannot|panic)\b", re.I
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")
_ROUTINE = re.compile(
    r"\b(?:DEBUG|INFO|NOTICE|TRACE)\b|\b(?:GET|POST|PUT|HEAD|DELETE|OPTIONS|PATCH) /"
    r"|\bHTTP/\d"
)  # fmt: skip
"""What a server writes in the course of its work, whatever words it has in it."""


def is_cause(log: str) -> bool:
    """Whether the log's last line says why the process ended: an exception, or an error."""
    lines = log.rstrip().splitlines()
    if not lines or _ROUTINE.search(lines[-1]):
        return False
    if _TELLING.search(lines[-1]):
        return True
    # The end of a traceback names its exception, which may be called anything.
    began = max((n for n, line in enumerate(lines) if line.startswith("Traceback ")), default=-1)
    inside = began >= 0 and all(line.startswith(" ") or not line for line in lines[began + 1 : -1])
    return inside and _EXCEPTION.fullmatch(lines[-1]) is not None


def exited(ended: Ended, log: str) -> str:
    """Return with which exit code it ended, where neither the log nor a signal says why."""
    if ended.exit_code is None or killed_by(ended) or is_cause(log):
        return ""
    last = log.rstrip().rpartition("\n")[2].strip()
    said = f'; its last line: "{last}"' if last and not _ROUTINE.search(last) else ""
    return f"ended with exit code {ended.exit_code}{said}"


def is_address_taken(log: str) -> bool:
    """Whether the log says that an address could not be bound."""
    return _ADDRESS_IN_USE.search(log) is not None


def wanted_address(log: str) -> tuple[str, int] | None:
    """Return host and port that could not be bound, if the log names them."""
    for line in reversed(log.splitlines()):
        match = _ADDRESS.search(line) if _ADDRESS_IN_USE.search(line) else None
        if match is None:
            continue
        host = match.group("quoted") or match.group("host") or ""
        port = match.group("quoted_port") or match.group("port") or match.group("bare")
        return host.strip("[]"), int(port)
    return None


def _module_missing(match: re.Match[str], ended: Ended) -> str:
    module = match.group(1).partition(".")[0]
    if ended.source:
        return (
            f"the interpreter that runs {ended.image} lacks the package that provides `{module}`: "
            "install it there (pip install), or list it in a requirements file and name that in "
            f'kserve-local.yaml under images."{ended.image}".requirements'
        )
    return (
        f"the runtime's environment lacks the package that provides `{module}`: list it in a "
        "requirements file and name that in kserve-local.yaml under runtimes.<name>.requirements"
    )


def _memory(ended: Ended) -> str:
    limit = ended.memory_limit_bytes
    shown = f" (now {limit / 2**20:.0f} Mi)" if limit else ""
    return f"it needs more memory than it may use: raise resources.limits.memory{shown}"


def _in_use(_: re.Match[str], ended: Ended) -> str:
    who = f", held by {ended.holder}" if ended.holder else ""
    return (
        f"the port it wants to listen on is taken{who}: end that process, give the containers of "
        "the Pod different ports, or let the code listen on the port of its --http_port argument"
    )


def _no_program(match: re.Match[str], ended: Ended) -> str:
    program = match.group(1)
    if not ended.source or ended.own_command:
        return f"{program} cannot be run: check command of the container, and that it exists"
    return (
        f'kserve-local.yaml, images."{ended.image}".command: {program} cannot be run here. Correct '
        "the path (a relative one starts at the image's `context`), or write `python` for the "
        "project's own interpreter"
    )


_Answer = Callable[[re.Match[str], Ended], str]


def _say(text: str) -> _Answer:
    return lambda match, _: match.expand(text)


_RULES: tuple[tuple[re.Pattern[str], _Answer], ...] = (
    (_ADDRESS_IN_USE, _in_use),
    (re.compile(
        r'^(?:kserve-local: )?exec: "([^"]+)": '
        r"(?:no such file|executable file not found|Permission denied|Exec format error)", re.M
    ), _no_program),
    (re.compile(r"exec format error|Exec format error"), _say(
        "the image (or program) is for another machine architecture: build or pull it for this "
        "one, e.g. docker pull --platform linux/amd64"
    )),
    (re.compile(r"^MemoryError|bad_alloc|Cannot allocate memory", re.M), lambda _, e: _memory(e)),
    (re.compile(r"More than one model file is detected", re.I), _say(
        "the storageUri holds several model files: point it at one file or at a folder with one"
    )),
    (re.compile(r"unrecognized arguments?: (.+)|no such option: (\S+)", re.I), lambda m, _: (
        f"the server does not know `{(m.group(1) or m.group(2)).strip()}`: check args of the "
        "model container"
    )),
    (re.compile(r"invalid choice: .+|the following arguments are required: .+|argument \S+: .+"), (
        lambda m, _: f"the server refuses its arguments ({m.group(0)}): check args of the model "
        "container"
    )),
    (re.compile(
        r"unpickl|pickle data was truncated|invalid load key|InconsistentVersionWarning"
        r"|node array from the pickle has an incompatible dtype|Can't get attribute"
        r"|_pickle\.|could not find MARK|STACK_GLOBAL", re.I), _say(
        "the model file cannot be unpickled: it is damaged, or was written by another version of "
        "the library; save it again with the version that serves it, or give the runtime that "
        "version (kserve-local.yaml: runtimes.<name>.requirements)"
    )),
    (re.compile(r"No module named ['\"]?([\w.]+)"), _module_missing),
    (re.compile(r"cannot import name '(\w+)' from '([\w.]+)'"), _say(
        r"`\2` is there in a version without `\1`: pin the version the code was written for"
    )),
    (re.compile(
        r"model file .*(?:not found|does not exist|missing)|no model file|"
        r"Missing (?:M|m)odel file|MissingModelFile|ModelMissingError|Failed to locate model file"
        , re.I), _say(
        "the storageUri holds no model file of this format: check modelFormat and storageUri"
    )),
    (re.compile(r"model file \S+ could not be loaded: (.+)"), _say(
        r"the model file is damaged or of another format (\1): check modelFormat and storageUri, "
        "or save the model again with the library version that serves it"
    )),
    (re.compile(r"can't open file '([^']+)'"), _say(
        r"there is no file \1: the command's paths start at the image's `context`"
    )),
    (re.compile(r"(?:No such file or directory|FileNotFoundError)[^'\n]*'([^'\n]+)'"), _say(
        r"\1 does not exist: check the path, and storageUri if it lies in /mnt/models"
    )),
    (re.compile(r"Permission denied:? ?'?([^'\n]*)'?"), _say(
        r"the process may not use \1: check the file's permissions"
    )),
    (re.compile(r"^SyntaxError|^IndentationError", re.M), _say(
        "the code does not compile: correct the line shown above"
    )),
)  # fmt: skip


_CRASH = (
    "native code crashed: set env PYTHONFAULTHANDLER=1 on the container to see where in Python, "
    "and check that the versions of the libraries fit together"
)
_SIGNALS = {
    "SIGKILL": "something killed it (SIGKILL); if memory ran out, raise resources.limits.memory",
    "SIGABRT": (
        "the process aborted itself, mostly after a failed check in native code: its last log "
        "lines say which; env PYTHONFAULTHANDLER=1 on the container shows where in Python"
    ),
    "SIGSEGV": _CRASH,
    "SIGBUS": _CRASH,
    "SIGFPE": _CRASH,
    "SIGILL": (
        "a library uses instructions that this CPU lacks: install a build of it for this machine"
    ),
    "SIGTERM": "something asked it to end (SIGTERM); a model server must keep running",
    "SIGINT": "something interrupted it (SIGINT); a model server must keep running",
}


def diagnose(ended: Ended, log: str) -> str:
    """Return what the user can do next, one sentence; empty when nothing is known.

    Args:
        log: The container's last log lines.
    """
    if ended.reason == "OOMKilled":
        return _memory(ended)
    if "liveness" in ended.killed_for:
        return (
            "see the Events Unhealthy for what its liveness probe got; let it answer in time, give "
            "the probe more timeoutSeconds or failureThreshold, or the container a startupProbe"
        )
    if ended.killed_for:
        return ""  # What it was doing had no part in it.
    for pattern, answer in _RULES:
        matches = list(pattern.finditer(log))
        if matches:
            return answer(matches[-1], ended)
    if ended.exit_code == 127 or ended.reason == "ContainerCannotRun":
        return "the command cannot be run: check command and args, and that the program exists"
    if ended.exit_code == 0:
        return "the server ended by itself without an error; a model server must keep running"
    name = signal_of(ended)
    if name in _SIGNALS:
        return _SIGNALS[name]
    code = "" if ended.exit_code is None else f"it ended with exit code {ended.exit_code}; "
    return f"{code}read its log (kserve-local logs) and correct the cause it names"
