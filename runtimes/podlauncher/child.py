"""Turn this process into a container: what happens between its birth and the user's first line.

Used by a plain start (`main`) and by a zygote's fork (`zygote`). Everything comes from the run
file, JSON that the process backend wrote before the start:

    token        value of the environment mark that all processes of this container carry
    argv         what follows the interpreter (`["-m", "sklearnserver", ...]`), or a whole command
    is_python    False: argv is an ordinary command
    python       the interpreter
    cwd          working directory, "" for the current one
    env          the whole environment
    log          file for stdout and stderr, appended
    exit_file    where the end is written down: `{"pid", "start_time", "code", "signal"}`
    state        the project's state folder; when it vanishes, so does the container
    home         folder with podlauncher and our servers; `home_first`: before everything else
    threads      size of the math libraries' thread pools after a fork; null: as they are
    network      see `network.Network`
    cgroup       folder of a cgroup to join, "" for none

The process adds `pid`, `start_time`, `started_at` and `began` to it, so that a supervisor that was
killed in the middle of a start finds what it had begun. `began` is the machine's monotonic clock.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import sys
import time
from types import ModuleType
from typing import Any, NoReturn

from podlauncher import control, guard, network, procfs

CANNOT_RUN = 128


def read(path: str) -> dict[str, Any]:
    """Return the run file's content."""
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def write(path: str, content: dict[str, Any]) -> None:
    """Replace `path` in one step, readable by the owner only (it holds the environment)."""
    temporary = f"{path}.{os.getpid()}.new"
    with open(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600),
        "w",
        encoding="utf-8",
    ) as file:
        json.dump(content, file)
    os.replace(temporary, path)


def record(path: str, launch: dict[str, Any], *, marked: bool = True) -> None:
    """Write down who runs this container now; `marked`: its environment block shows the token."""
    pid = os.getpid()
    start = procfs.start_time(pid)
    now = time.time()
    known = {"pid": pid, "start_time": start, "started_at": now, "began": time.monotonic()}
    write(path, {**launch, **known, "marked": marked})


def write_exit(launch: dict[str, Any], pid: int, start: int | None, code: int, signum: int) -> None:
    """Write down how process `pid` ended: `code`, or 128 + `signum` if a signal did it.

    A vanished folder is no error: nobody is left to read it.
    """
    with contextlib.suppress(OSError):
        write(
            launch["exit_file"],
            {"pid": pid, "start_time": start, "code": code, "signal": signum, "at": time.time()},
        )


def cannot_run(launch: dict[str, Any], message: str) -> NoReturn:
    """End before the user's code began; the backend reports ContainerCannotRun."""
    sys.stderr.write(f"kserve-local: {message}\n")
    sys.stderr.flush()
    pid = os.getpid()
    with contextlib.suppress(OSError):
        write(
            launch["exit_file"],
            {
                "pid": pid,
                "start_time": procfs.start_time(pid),
                "code": CANNOT_RUN,
                "signal": 0,
                "at": time.time(),
                "message": message,
            },
        )
    os._exit(CANNOT_RUN)


def own_session() -> None:
    """Lead a session and process group: signals meant for the container reach all of it."""
    if os.getsid(0) != os.getpid():
        os.setsid()


def enter_fork(path: str, launch: dict[str, Any]) -> None:
    """Make a zygote's child look as if its interpreter had just been started for it."""
    own_session()
    marked = procfs.remark(launch["token"])
    if read(path)["token"] != launch["token"]:
        # The backend lost the zygote's answer and has begun this container anew.
        os._exit(0)
    procfs.retitle([launch["python"], *launch["argv"]])
    record(path, {**launch, "started_how": "zygote"}, marked=marked)
    _redirect(launch)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    os.environ.clear()
    os.environ.update(launch["env"])
    time.tzset()
    sys.orig_argv = [launch["python"], *launch["argv"]]
    _reseed()
    _set_threads(launch)


def _redirect(launch: dict[str, Any]) -> None:
    log = os.open(launch["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    for text in (sys.stdout, sys.stderr):
        reconfigure = getattr(text, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)


def _reseed() -> None:
    """Give every fork its own random numbers and secrets."""
    import random

    random.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(int.from_bytes(os.urandom(7), "big"))
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)


def _set_threads(launch: dict[str, Any]) -> None:
    """Raise the thread pools that the zygote kept at one; later imports read the environment."""
    count = launch.get("threads")
    if not count:
        return
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    control = sys.modules.get("podlauncher.zygote")
    controller = getattr(control, "thread_pools", None)
    if controller is not None:
        controller.limit(limits=count)


def run(path: str, launch: dict[str, Any], *, forked: bool, fresh: bool = False) -> NoReturn:
    """Run the container's program in this process; never returns.

    Args:
        fresh: Only a new interpreter will do, for instance because the program's folder has a
            module that this one has imported from elsewhere.
    """
    _join_cgroup(launch)
    if launch["cwd"]:
        try:
            os.chdir(launch["cwd"])
        except OSError as error:
            cannot_run(launch, f"working directory {launch['cwd']}: {error.strerror}")
    if not launch["is_python"]:
        guard.watch_from_outside(launch)
        _execute(launch, launch["argv"])
    argv = launch["argv"][1:] if launch["argv"][:1] == ["-u"] else launch["argv"]
    if fresh or not argv or (argv[0].startswith("-") and argv[0] not in ("-m", "-c")):
        # Interpreter options can only be given to a new interpreter; sitecustomize does the rest.
        guard.watch_from_outside(launch)
        _execute(launch, [launch["python"], *launch["argv"]])
    guard.watch(launch)
    control.start()
    network.install(launch["network"])
    code = _run_python(launch, argv)
    _finish(launch, code, forked=forked)


def _join_cgroup(launch: dict[str, Any]) -> None:
    """Put this process under the kernel's memory limit, if the backend has made one."""
    folder = launch.get("cgroup")
    if folder:
        try:
            with open(os.path.join(folder, "cgroup.procs"), "w") as file:
                file.write("0")
        except OSError as error:
            # The backend samples memory as well; the limit is kept, less exactly.
            sys.stderr.write(f"kserve-local: cannot join {folder}: {error.strerror}\n")


# Modules that read `sys.argv` while imported, and who copied names from them: a zygote read its
# own arguments. The kserve SDK takes the defaults of ModelServer from there.
_READ_ARGUMENTS = {"kserve.model_server": ("kserve",)}


def _reread_arguments() -> None:
    import importlib

    for name, holders in _READ_ARGUMENTS.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        old = dict(vars(module))
        importlib.reload(module)
        for holder in (sys.modules[h] for h in holders if h in sys.modules):
            for key, value in list(vars(holder).items()):
                if old.get(key) is value and getattr(module, key, value) is not value:
                    setattr(holder, key, getattr(module, key))


def _execute(launch: dict[str, Any], argv: list[str]) -> NoReturn:
    try:
        os.execvpe(argv[0], argv, launch["env"])
    except FileNotFoundError:
        what = (
            "executable file not found in $PATH"
            if "/" not in argv[0]
            else "no such file or directory"
        )
        cannot_run(launch, f'exec: "{argv[0]}": {what}')
    except OSError as error:
        cannot_run(launch, f'exec: "{argv[0]}": {error.strerror}')


def _new_main() -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = main
    return main


def _run_python(launch: dict[str, Any], argv: list[str]) -> int:
    """Run `-m MODULE`, `-c CODE` or `FILE` as `__main__` and return the exit code."""
    home, here = launch["home"], os.path.dirname(os.path.abspath(__file__))
    path = [p for p in sys.path if p not in (home, here)]
    try:
        if argv[0] == "-m":
            sys.path[:] = [home, *path] if launch["home_first"] else [os.getcwd(), *path, home]
            sys.argv[:] = ["-m", *argv[2:]]
            _reread_arguments()
            _new_main()
            # What `python -m` itself calls; run_module() would undo `__main__` at its end.
            runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]  # private but stable
        elif argv[0] == "-c":
            sys.path[:] = ["", *path, home]
            sys.argv[:] = ["-c", *argv[2:]]
            _reread_arguments()
            exec(compile(argv[1], "<string>", "exec", dont_inherit=True), _new_main().__dict__)
        else:
            _run_file(argv[0], [*argv], path, home)
    except SystemExit as end:
        return _exit_code(end)
    except BaseException as error:
        _report(error)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run_file(name: str, argv: list[str], path: list[str], home: str) -> None:
    sys.argv[:] = argv
    full = os.path.abspath(name)
    from pkgutil import get_importer

    if get_importer(full) is not None:  # a folder or a zip file with a __main__
        sys.path[:] = [*path, home]
        _new_main()
        runpy.run_path(full, run_name="__main__")
        return
    try:
        with open(full, "rb") as file:
            source = file.read()
    except OSError as error:
        sys.stderr.write(
            f"{sys.executable}: can't open file {full!r}: [Errno {error.errno}] {error.strerror}\n"
        )
        raise SystemExit(2) from None
    sys.path[:] = [os.path.dirname(os.path.realpath(full)), *path, home]
    _reread_arguments()
    main = _new_main()
    from importlib.machinery import SourceFileLoader

    main.__dict__.update(
        __file__=full, __spec__=None, __cached__=None, __loader__=SourceFileLoader("__main__", full)
    )
    # Not by the rules that this file asks of the compiler for itself.
    exec(compile(source, full, "exec", dont_inherit=True), main.__dict__)


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _report(error: BaseException) -> None:
    """Print the traceback as the interpreter would: from the user's first frame on."""
    here = os.path.dirname(os.path.abspath(__file__))
    trace = error.__traceback__
    while trace is not None and (
        os.path.dirname(os.path.abspath(trace.tb_frame.f_code.co_filename)) == here
        or trace.tb_frame.f_code.co_filename in ("<frozen runpy>", runpy.__file__)
    ):
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _finish(launch: dict[str, Any], code: int, *, forked: bool) -> NoReturn:
    """End the process as the interpreter would; the code is also written down for an adopter.

    After a fork the interpreter is not torn down: that would touch, and so copy, every page shared
    with the zygote.
    """
    pid = os.getpid()
    import threading

    shutdown = getattr(threading, "_shutdown", None)
    if shutdown is not None:
        shutdown()
    if forked:
        run_exitfuncs = getattr(atexit, "_run_exitfuncs", None)
        if run_exitfuncs is not None:
            run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    write_exit(launch, pid, procfs.start_time(pid), code, 0)
    if forked:
        os._exit(code)
    sys.exit(code)
