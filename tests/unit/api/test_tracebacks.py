"""Which file, line and error the last lines of a log name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kserve_local.api.tracebacks import Place, traceback_of

PROJECT = Path("/home/me/project")

LOADING = """\
2026-01-01 12:00:00.123 7 kserve INFO [model.py:1] starting
Traceback (most recent call last):
  File "/home/me/project/src/serve.py", line 30, in <module>
    model.load()
  File "/home/me/project/src/model.py", line 12, in load
    self.weights = joblib.load(path)
                   ^^^^^^^^^^^^^^^^^
  File "/usr/lib/python3.11/site-packages/joblib/numpy_pickle.py", line 658, in load
    raise ValueError("bad weights")
ValueError: bad weights
"""


def told(text: str, folder: Path | None = PROJECT) -> str:
    place = traceback_of(text.splitlines(), folder)
    return place.told() if place is not None else ""


def test_the_innermost_line_of_the_project_is_named() -> None:
    assert traceback_of(LOADING.splitlines(), PROJECT) == Place(
        "src/model.py", 12, "ValueError: bad weights"
    )


def test_elsewhere_the_users_own_code_goes_before_libraries() -> None:
    elsewhere = LOADING.replace("/home/me/project/src", "/app")
    assert told(elsewhere) == "/app/model.py:12: ValueError: bad weights"
    only = LOADING.replace("/home/me/project/src", "/usr/lib/python3.11/site-packages/kserve")
    assert told(only).endswith("joblib/numpy_pickle.py:658: ValueError: bad weights")


def test_a_virtual_environment_in_the_project_is_no_code_of_the_project() -> None:
    inside = LOADING.replace("/usr/lib", "/home/me/project/.venv/lib")
    assert told(inside) == "src/model.py:12: ValueError: bad weights"


def test_the_last_traceback_counts_whatever_follows_it() -> None:
    later = LOADING.replace("bad weights", "worse weights").replace("line 12", "line 13")
    after = "2026-01-01 12:00:09.123 7 kserve INFO [model.py:1] stopping\n"
    assert told(LOADING + after + later + after) == "src/model.py:13: ValueError: worse weights"


def test_an_exception_that_came_from_another_one() -> None:
    joined = "\nThe above exception was the direct cause of the following exception:\n\n"
    outer = """\
Traceback (most recent call last):
  File "/home/me/project/src/serve.py", line 31, in <module>
    raise RuntimeError("no model") from error
RuntimeError: no model
"""
    assert told(LOADING + joined + outer) == "src/serve.py:31: RuntimeError: no model"


def test_code_that_does_not_compile() -> None:
    text = """\
Traceback (most recent call last):
  File "/home/me/project/src/serve.py", line 1, in <module>
    import model
  File "/home/me/project/src/model.py", line 3
    def load(
            ^
SyntaxError: '(' was never closed
"""
    assert told(text) == "src/model.py:3: SyntaxError: '(' was never closed"


def test_a_traceback_whose_beginning_is_gone() -> None:
    assert told("\n".join(LOADING.splitlines()[3:])) == "src/model.py:12: ValueError: bad weights"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "INFO ready\nINFO stopping",
        "Traceback (most recent call last):\n",
        "\n".join(LOADING.splitlines()[:-1]),
        "Traceback (most recent call last):\nINFO something else",
        'see File "/x/y.py", line 3\nValueError: quoted',
    ],
)
def test_no_whole_traceback(text: str) -> None:
    assert told(text) == ""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def load():\n    return 1 / 0\n\nload()\n",
         "model.py:2: ZeroDivisionError: division by zero"),
        ("x = (\n", "model.py:1: SyntaxError: '(' was never closed"),
        ("import nothing_like_it\n",
         "model.py:1: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise ExceptionGroup('both', [ValueError('one')])\n",
         "model.py:1: ExceptionGroup: both (1 sub-exception)"),
        ("import asyncio\nasync def f():\n    raise ValueError('one')\nasync def main():\n"
         "    async with asyncio.TaskGroup() as tasks:\n        tasks.create_task(f())\n"
         "asyncio.run(main())\n", "model.py:3: ValueError: one"),
        ("class Odd(Exception):\n    pass\nraise Odd\n", "model.py:3: Odd"),
        ("raise ValueError('several\\nlines')\n", "model.py:1: ValueError: several"),
        ("import json\njson.loads('{')\n",
         "model.py:2: json.decoder.JSONDecodeError: Expecting property name enclosed in double "
         "quotes: line 1 column 2 (char 1)"),
        ("async def f():\n    assert False, 'no'\nimport asyncio\nasyncio.run(f())\n",
         "model.py:2: AssertionError: no"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("relative", [True, False])
def test_what_python_prints(tmp_path: Path, code: str, expected: str, *, relative: bool) -> None:
    (tmp_path / "model.py").write_text(code)
    script = "model.py" if relative else str(tmp_path / "model.py")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert told(done.stderr, tmp_path) == expected, done.stderr
