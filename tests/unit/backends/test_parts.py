"""The small pure pieces of the process backend: requirements, memory looks, logs, run files."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from kserve_local.backends import environments, memory, output, processes, rhythm, runfiles
from kserve_local.backends.processes import Exit
from kserve_local.interfaces.backend import ContainerSpec, Probe, Program, ReplicaSpec

LINES = [
    'numpy>=1.26; extra == "server"',
    'uvloop>=0.19; (sys_platform != "win32") and extra == "server"',
    'grpcio>=1.60; extra == "grpc"',
    'kserve-local-runtimes[grpc,server]; extra == "sklearn"',
    'scikit-learn>=1.3; extra == "sklearn"',
    'torch>=2.4; extra == "torch"',
]


def test_requirements_come_from_the_extras_and_what_they_include():
    needs = environments.requirements("sklearnserver", LINES)
    assert [n.name for n in needs] == ["scikit-learn", "grpcio", "numpy", "uvloop"]
    assert needs[0].line == 'scikit-learn>=1.3; python_version >= "3"'
    assert needs[3].line == 'uvloop>=0.19; (sys_platform != "win32") and python_version >= "3"'
    assert needs[2].lowest == (1, 26)
    assert environments.requirements("my/image", LINES) == ()


def test_every_server_of_ours_has_requirements():
    for runtime in environments.EXTRAS:
        assert environments.requirements(runtime), runtime


def test_lacking_names_what_is_missing_or_too_old():
    needs = environments.requirements("sklearnserver", LINES)
    have = {"scikit-learn": "1.9.1", "numpy": "1.25.9"}
    assert environments.lacking(needs, have.get) == ["numpy", "uvloop"]


def test_an_interpreter_without_grpcio_will_do():
    """It is in what a managed environment gets, but nobody's reason to build one."""
    needs = environments.requirements("sklearnserver", LINES)
    have = {"scikit-learn": "1.9.1", "numpy": "2.4.6", "uvloop": "0.23.0"}
    assert environments.lacking(needs, have.get) == []
    assert 'grpcio>=1.60; python_version >= "3"' in [need.line for need in needs]


def test_memory_is_looked_at_more_often_near_the_limit():
    gib = 1 << 30
    assert memory.next_look(0, 8 * gib) == 2.0
    assert memory.next_look(7 * gib, 8 * gib) == 1.0
    assert memory.next_look(8 * gib, 8 * gib) == 0.1
    assert memory.next_look(9 * gib, 8 * gib) == 0.1


async def test_memory_of_a_child_that_comes_later_counts_too():
    # The child is made after the first look, when the tree was known.
    code = "import sys, subprocess; sys.stdin.readline(); subprocess.run([sys.executable, '-c', "
    code += "'b = bytearray(200 << 20); import sys; print(1, flush=True); sys.stdin.read()'])"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdin is not None
    found = asyncio.get_running_loop().create_future()
    watch = asyncio.create_task(memory.watch(parent.pid, 150 << 20, found.set_result))
    try:
        await asyncio.sleep(0)
        parent.stdin.write(b"go\n")
        assert await asyncio.wait_for(found, 30) > 150 << 20
    finally:
        watch.cancel()
        parent.stdin.close()
        await parent.wait()


def test_what_is_looked_at_again_and_again_is_looked_at_together():
    first = 10.07 + rhythm.together(1.0, 10.07)
    assert first == pytest.approx(11.0)
    assert 10.2 + rhythm.together(1.0, 10.2) == pytest.approx(11.25)
    # A timer that fires a little early or late keeps its step.
    for late in (-0.002, 0.0, 0.002):
        assert first + late + rhythm.together(1.0, first + late) == pytest.approx(12.0)
    assert rhythm.together(0.1, 10.07) == 0.1


def test_a_full_log_is_moved_aside_and_its_writer_goes_on(tmp_path: Path):
    log = tmp_path / "c.log"
    with log.open("a") as writer:
        for number in range(3):
            writer.write(f"{number}" * 100 + "\n")
            writer.flush()
            assert output.rotate(log, max_bytes=50, files=2)
        writer.write("now\n")
    assert not output.rotate(log, max_bytes=50, files=2)
    assert log.read_text() == "now\n"
    assert (tmp_path / "c.log.1").read_text().startswith("2")
    assert (tmp_path / "c.log.2").read_text().startswith("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.log", "c.log.1", "c.log.2"]


def test_rotation_of_no_log_does_nothing(tmp_path: Path):
    assert not output.rotate(tmp_path / "none.log", max_bytes=1, files=3)


def test_tail_reads_the_end_only(tmp_path: Path):
    log = tmp_path / "c.log"
    log.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert output.tail(log, lines=2) == ["line 998", "line 999"]
    assert output.tail(log, lines=3, max_bytes=15) == ["e 998", "line 999"]
    assert output.tail(tmp_path / "none", lines=2) == []


def test_the_log_before_a_restart_is_kept(tmp_path: Path):
    log = tmp_path / "c.log"
    log.write_text("old")
    output.keep_previous(log)
    assert output.previous(log).read_text() == "old"
    assert not log.exists()
    output.keep_previous(log)
    assert output.previous(log).read_text() == "old"


def test_run_files_keep_a_whole_spec_and_are_private(tmp_path: Path):
    files = runfiles.RunFiles(tmp_path / "pods")
    spec = ReplicaSpec(
        id="uid",
        namespace="ns",
        pod="pod",
        ip="127.64.0.2",
        resolve=(("a.b", "127.64.8.1"),),
        labels={"x": "y"},
        containers=(
            ContainerSpec(
                name="c",
                image="i",
                argv=("a",),
                log_path=tmp_path / "l",
                env=(("SECRET", "s"),),
                program=Program("source", "i", ("m.py",), cwd=tmp_path),
                readiness=Probe("http", port=8080, headers=(("a", "b"),)),
            ),
        ),
    )
    files.save(spec)
    (tmp_path / "pods" / "half").mkdir()
    assert files.load() == [spec]
    assert not (tmp_path / "pods" / "half").exists()
    saved = tmp_path / "pods" / "uid" / ".replica.json"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    files.remove("uid")
    files.remove("uid")
    assert files.load() == []


def test_run_files_that_are_no_json_count_as_empty(tmp_path: Path):
    (tmp_path / "f").write_text("{")
    assert runfiles.read(tmp_path / "f") == {}
    assert runfiles.read(tmp_path / "none") == {}


async def test_watching_works_without_pidfd(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(processes, "_exit_handle", lambda pid: None)
    pid = processes.spawn(["/bin/sh", "-c", "exit 7"], {}, log=tmp_path / "log")
    await processes.wait_gone(pid, processes.start_time(pid))
    assert processes.reap(pid) == Exit(7, 0)
    assert processes.reap(pid) is None


def test_a_zombie_is_dead(tmp_path: Path):
    pid = processes.spawn(["/bin/sh", "-c", "exit 0"], {}, log=tmp_path / "log")
    start = processes.start_time(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(pid) == start
    assert not processes.is_alive(pid, start)
    processes.reap(pid)


def test_a_reused_pid_is_another_process():
    start = processes.start_time(os.getpid())
    assert start is not None
    assert processes.is_alive(os.getpid(), start)
    assert not processes.is_alive(os.getpid(), start + 1)


async def test_facts_come_from_psutil_where_there_is_no_proc(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(processes, "_LINUX", False)
    env = {processes.MARK: "token-1", "PATH": os.environ["PATH"]}
    pid = processes.spawn(["/bin/sh", "-c", "sleep 600; true"], env, log=tmp_path / "log")
    try:
        start = processes.start_time(pid)
        assert processes.is_alive(pid, start)
        assert processes.parent_of(pid) == os.getpid()
        async with asyncio.timeout(20):
            while len(family := processes.descendants(pid)) < 2:  # noqa: ASYNC110 - tells nobody
                await asyncio.sleep(0.01)
        assert processes.mark_of(pid) == "token-1"
        assert set(processes.marked()["token-1"]) == set(family)
        assert processes.rss(family) > 0
        assert processes.cpu_seconds(family) >= 0
    finally:
        processes.send(-pid, signal.SIGKILL)
        await processes.wait_gone(pid, None)
        processes.reap(pid)
    assert processes.start_time(pid) is None
    assert not processes.is_alive(pid, start)
