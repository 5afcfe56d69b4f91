"""The command line's surface: where flags may stand, what mirrors them, what a help costs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kserve_local.cli.main import COMMANDS, cli
from kserve_local.cli.options import Common, common, finish

# Nothing but click and our own few modules may be imported for a help text.
HEAVY = ("asyncio", "yaml", "pydantic", "psutil", "ssl", "fastapi", "uvicorn", "orjson", "rich")


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, args, env=env, standalone_mode=False)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `version` a command that prints the flags it got."""

    @click.command("version")
    @click.option("--some-switch", is_flag=True)
    @click.option("--timeout", default="60s")
    @common
    def command(flags: Common, some_switch: bool, timeout: str) -> int:
        click.echo(json.dumps([str(flags.project), flags.namespace, list(flags.files),
                               flags.as_json, flags.quiet, some_switch, timeout]))  # fmt: skip
        return 0

    monkeypatch.setattr(import_module("kserve_local.cli.version"), "command", command)


@pytest.mark.usefixtures("probe")
def test_global_flags_stand_before_or_after_the_command_and_after_wins() -> None:
    before = run("-C", "p", "-n", "a", "--json", "-q", "-f", "x y.yaml", "version").output
    after = run("version", "-C", "p", "-n", "a", "--json", "-q", "-f", "x y.yaml").output
    assert before == after
    assert json.loads(after)[:5] == ["p", "a", ["x y.yaml"], True, True]
    assert json.loads(run("-n", "a", "version", "-n", "b").output)[1] == "b"


@pytest.mark.usefixtures("probe")
def test_every_flag_has_its_variable_and_a_flag_wins_wherever_it_stands() -> None:
    env = {
        "KSERVE_LOCAL_NAMESPACE": "e",
        "KSERVE_LOCAL_SOME_SWITCH": "true",
        "KSERVE_LOCAL_TIMEOUT": "5s",
        "KSERVE_LOCAL_QUIET": "1",
        "KSERVE_LOCAL_FILE": "a b.yaml",
    }
    assert json.loads(run("version", env=env).output) == [
        ".", "e", ["a b.yaml"], False, True, True, "5s",
    ]  # fmt: skip
    assert json.loads(run("-n", "a", "version", env=env).output)[1] == "a"
    assert json.loads(run("version", "-n", "b", env=env).output)[1] == "b"
    assert json.loads(run("--timeout", "7s", "version").output)[6] == "7s"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_mirrors_a_variable(name: str) -> None:
    command = finish(import_module(f"kserve_local.cli.{COMMANDS[name][0]}").command)
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [p.opts for p in options if not str(p.envvar).startswith("KSERVE_LOCAL_")] == []
    spelled = [opt for p in options for opt in p.opts]
    assert len(spelled) == len(set(spelled))


@pytest.mark.parametrize("args", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_but_click(args: list[str]) -> None:
    """Under 150 ms is a matter of what is imported; this asserts the cause, not the clock."""
    code = (
        "import sys\n"
        f"sys.argv = ['kserve-local', *{args!r}, '--help']\n"
        "from kserve_local.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "own = ('kserve_local.supervisor', 'kserve_local.api', 'kserve_local.client')\n"
        f"bad = [m for m in sys.modules if m.split('.')[0] in {HEAVY!r} or m.startswith(own)]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: kserve-local" in done.stdout


def main(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kserve_local.cli.main", *args],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_what_is_mistyped_is_guessed(tmp_path: Path) -> None:
    for args, guess in (
        (["statu"], 'Did you mean "status"?'),
        (["up", "--prot", "auto"], "--port"),
        (["get", "isv"], 'did you mean "isvc"?'),
    ):
        done = main(*args, cwd=tmp_path)
        assert done.returncode in (2, 4, 11)
        assert guess in done.stderr, done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["nonsense"], 2),
        (["up", "--wait"], 2),
        (["up", "--port", "none"], 2),
        (["up", "--port", "99999"], 2),
        (["up", "--api-port", "0"], 2),
        (["-C", "missing", "up"], 2),
        (["apply"], 2),
        (["predict", "x", "{broken"], 2),
        (["up"], 3),
        (["up", "-p", "nope"], 3),
        (["status"], 4),
        (["logs", "x"], 4),
        (["validate", "missing.yaml"], 2),
    ],
)
def test_exit_codes_without_a_project(args: list[str], code: int, tmp_path: Path) -> None:
    done = main(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert list(tmp_path.iterdir()) == []
    as_json = main(*args, "--json", cwd=tmp_path)
    assert as_json.returncode == code
    envelope = json.loads(as_json.stdout)
    assert envelope["schemaVersion"] == 1
    assert envelope["status"] == "error"
    assert envelope["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_alone_it_says_where_we_are_and_starts_nothing(tmp_path: Path) -> None:
    done = main(cwd=tmp_path)
    assert done.returncode == 0
    assert "is not running" in done.stdout
    assert "kserve-local up" in done.stdout
    assert json.loads(main("--json", cwd=tmp_path).stdout)["data"]["running"] is None
    assert list(tmp_path.iterdir()) == []
