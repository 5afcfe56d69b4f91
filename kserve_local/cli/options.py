"""Flags that every command takes, before or after its name, and what they turn into.

Each flag mirrors `KSERVE_LOCAL_<FLAG>`; a flag after the command wins over one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kserve_local.cli.output import Output

if TYPE_CHECKING:
    from kserve_local.settings import Settings

F = Callable[..., Any]
COMPONENTS = ("predictor", "transformer", "explainer")
"""Of an InferenceService; `api.inferenceservice` has them, too, which `--help` need not import."""


@dataclass(frozen=True, slots=True)
class Common:
    """The global flags of one call."""

    project: Path
    files: tuple[str, ...]
    namespace: str | None
    profile: str
    as_json: bool
    quiet: bool
    verbose: int
    color: str | None
    offline: bool

    def settings(self, **flags: Any) -> Settings:
        """Return the project's settings with these and the given flags applied."""
        from kserve_local import settings

        return settings.load(self.project, **self._given(), **flags)

    def settings_of_running(self, *, tell: bool = True) -> Settings:
        """Return the settings as far as kserve-local.yaml is right, and warn of what is not.

        For commands that stop a project or talk to one that runs: an edit of the file must not
        keep them from it.

        Args:
            tell: False: who calls does so itself, by `Settings.problems`.
        """
        from kserve_local import settings

        found = settings.load_what_is_right(self.project, **self._given())
        for problem in found.problems if tell else ():
            text = f"warning: {problem}; going on without it"
            self.output("").say(text, fg="yellow")
        return found

    def _given(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "files": self.files,
            "namespace": self.namespace,
            "offline": self.offline or None,
            "verbose": self.verbose or None,
        }

    def output(self, command: str) -> Output:
        """Return this command's voice."""
        return Output(command, as_json=self.as_json, quiet=self.quiet, color=self.color)


_NAMES = (
    "project",
    "files",
    "namespace",
    "profile",
    "as_json",
    "form",
    "quiet",
    "verbose",
    "color",
    "offline",
)
COLORS = click.Choice(["auto", "always", "never"])


def _env(name: str) -> str:
    return f"KSERVE_LOCAL_{name}"


def common(function: F) -> F:
    """Add the global flags to a command; it gets them as its first argument, a `Common`."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        ctx = click.get_current_context()
        before = (ctx.find_root().obj or {}) if ctx.parent else {}
        given = {}
        for name in _NAMES:
            value = kwargs.pop(name, None)
            typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
            given[name] = value if typed else before.get(name) or value
        flags = Common(
            project=Path(given["project"] or "."),
            files=tuple(given["files"] or ()),
            namespace=given["namespace"],
            profile=given["profile"] or "",
            as_json=bool(given["as_json"]) or given["form"] == "json",
            quiet=bool(given["quiet"]),
            verbose=int(given["verbose"] or 0),
            color=given["color"],
            offline=bool(given["offline"]),
        )
        return function(flags, *args, **kwargs)

    options = (
        click.option("-C", "--project", type=click.Path(), hidden=True),
        click.option("-f", "--file", "files", multiple=True, type=FILE, hidden=True),
        click.option("-n", "--namespace", hidden=True),
        click.option("-p", "--profile", hidden=True),
        click.option("--json", "as_json", is_flag=True, hidden=True),
        click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), hidden=True),
        click.option("-q", "--quiet", is_flag=True, hidden=True),
        click.option("-v", "--verbose", count=True, hidden=True),
        click.option("--color", type=COLORS, hidden=True),
        click.option("--offline", is_flag=True, hidden=True),
        click.option("--non-interactive", is_flag=True, hidden=True, expose_value=False),
    )
    for option in reversed(options):
        option(call)
    return call


FILE = click.Path(allow_dash=True)


def finish(command: click.Command) -> click.Command:
    """Give every flag its `KSERVE_LOCAL_<FLAG>`, and a command's own flag its place before ours."""
    own = {opt for p in command.params if _shown(p) for opt in p.opts}
    command.params = [p for p in command.params if _shown(p) or not own & set(p.opts)]
    for param in command.params:
        if isinstance(param, click.Option) and param.envvar is None:
            name = max(param.opts, key=len).lstrip("-")
            param.envvar = _env(name.upper().replace("-", "_"))
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        finish(below)
    return command


def _shown(param: click.Parameter) -> bool:
    return not (isinstance(param, click.Option) and param.hidden)


class Duration(click.ParamType[float]):
    """`60s`, `5m`, `90`: seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from kserve_local.errors import Invalid
        from kserve_local.settings import parse_duration

        try:
            return parse_duration(value, what=param.opts[0] if param and param.opts else "duration")
        except Invalid as error:
            self.fail(error.message, param, ctx)
