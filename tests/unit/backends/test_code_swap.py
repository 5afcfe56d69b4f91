"""A change of code carried to a container's processes, and what their words amount to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kserve_local.backends import code_swap, control
from kserve_local.interfaces.code import CodeChange, CodeVerdict
from tests.unit.backends.test_control import running

TEXT = (
    "import time\ndef tell():\n    return 1\nprint('up', flush=True)\n"
    "while True:\n    time.sleep(0.01)\n    if tell() == 2:\n        print('two', flush=True)\n"
)


def change(id: str = "c", text: str = TEXT) -> CodeChange:
    return CodeChange(id, {"model.py": text}, {"model.py": text.replace("return 1", "return 2")})


def test_a_program_is_checked_and_changed(tmp_path: Path):
    folder = tmp_path / "control"
    with running(tmp_path / "source", TEXT, folder) as process:
        (tmp_path / "source" / "model.py").write_text(change().after["model.py"])
        checked = asyncio.run(code_swap.check(folder, change()))
        assert checked == CodeVerdict(processes=1, functions=1)
        # A commit of what was not checked is checked first.
        wrong = asyncio.run(code_swap.commit(folder, change("d", "# Moved.\n" + TEXT)))
        assert "another version of model.py" in wrong.refused
        assert asyncio.run(code_swap.commit(folder, change())) == checked
        assert process.stdout is not None  # a pipe was asked for
        assert process.stdout.readline() == b"two\n"
        # It can still be asked for other things.
        assert len(asyncio.run(control.describe(folder))) == 1


def test_a_program_that_is_gone_says_nothing(tmp_path: Path):
    folder = tmp_path / "control"
    with running(tmp_path / "source", TEXT, folder):
        pass
    for ask in (code_swap.check, code_swap.commit):
        assert asyncio.run(ask(folder, change())).refused == code_swap.NO_PYTHON
    assert asyncio.run(code_swap.check(tmp_path / "none", change())).refused == code_swap.NO_PYTHON
    assert asyncio.run(code_swap.check(None, change())).refused == code_swap.NO_PYTHON


def test_more_than_a_process_reads_is_not_sent(tmp_path: Path):
    large = CodeChange("c", {"model.py": "#" * 5 * 2**20}, {"model.py": "#" * 5 * 2**20})
    refused = asyncio.run(code_swap.check(tmp_path, large)).refused
    assert "bytes of code are too many" in refused


@contextmanager
def answering(
    folder: Path, *lines: bytes, when: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Have processes, one a line, that read one request and answer with that line."""
    threads = []
    for number, line in enumerate(lines, start=1):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"{number}.sock"))
        listener.listen()

        def serve(listener: socket.socket = listener, line: bytes = line) -> None:
            with listener, listener.accept()[0] as client, client.makefile("rb") as file:
                file.readline()
                when()
                client.sendall(line)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
    yield
    for thread in threads:
        thread.join()


def test_one_that_refuses_refuses_for_all(tmp_path: Path):
    good = b'{"id": 1, "refused": "", "functions": 2}\n'
    bad = b'{"id": 1, "refused": "no", "functions": 0}\n'
    with answering(tmp_path, good, bad, good):
        verdict = asyncio.run(code_swap.check(tmp_path, change()))
    assert verdict == CodeVerdict(refused="no", processes=3, functions=4)


def test_who_comes_while_others_are_asked_is_asked_too(tmp_path: Path):
    """A worker that was forked from a parent just before it got the change."""
    later = answering(tmp_path / "later", b'{"refused": "no", "functions": 0}\n')
    (tmp_path / "later").mkdir()
    (tmp_path / "now").mkdir()

    def come() -> None:
        (tmp_path / "later" / "1.sock").rename(tmp_path / "now" / "2.sock")

    good = b'{"refused": "", "functions": 2}\n'
    with later, answering(tmp_path / "now", good, when=come):
        verdict = asyncio.run(code_swap.commit(tmp_path / "now", change()))
    assert verdict == CodeVerdict(refused="no", processes=2, functions=2)


def test_more_processes_than_are_looked_at_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that was not asked would go on with the old code."""
    monkeypatch.setattr(control, "MAX_SOCKETS", 2)
    good = b'{"refused": "", "functions": 2}\n'
    with answering(tmp_path, good):
        assert asyncio.run(code_swap.check(tmp_path, change())).refused == ""
    for name in ("7.sock", "8.sock"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / name))
    refused = asyncio.run(code_swap.check(tmp_path, change())).refused
    assert refused == "it has 2 processes or more"


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        (b'{"refused": "", "functions": 3}', ""),
        (b'{"refused": "why", "functions": 0}', "why"),
        (b'{"error": "unknown request \'check\'"}', "process 7 cannot take it: unknown request"),
        (b'{"refused": ""}', "process 7 gives no answer that can be read"),
        (b"[]", "process 7 gives no answer that can be read"),
        (b"\xff", "process 7 gives no answer that can be read"),
        (json.dumps({"refused": "x" * 9000, "functions": 0}).encode(), "x" * 500),
    ],
)
def test_what_a_process_says_is_bounded_text(line: bytes, refused: str):
    found = code_swap.parse(line, "process 7").refused
    assert found.startswith(refused)
    assert len(found) <= 600
    assert bool(found) == bool(refused)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_in_the_container_may_ask_but_not_change():
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    try:
        with running(place / "source", TEXT, place / "control"):
            (name,) = os.listdir(place / "control")

            def asked(request: str) -> str:
                with socket.socket(socket.AF_UNIX) as client:
                    os.seteuid(65534)
                    try:
                        client.connect(str(place / "control" / name))
                    finally:
                        os.seteuid(0)
                    client.sendall(request.encode() + b"\n")
                    with client.makefile() as file:
                        return file.readline()

            assert '"pid"' in asked('{"id": 1, "do": "describe"}')
            for what in ("check", "commit"):
                refused = asked(json.dumps({"id": 1, "do": what, "change": {"id": "c"}}))
                assert json.loads(refused) == {"id": 1, "error": f"not yours to ask '{what}'"}
    finally:
        shutil.rmtree(place)
