"""Entry point of `kserve-local`: knows the commands by name and imports the one that is called.

`--help` and completion must answer in under 150 ms, so nothing but click is imported here.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from kserve_local import __version__
from kserve_local.cli.options import COLORS, FILE, finish

# name -> (module in kserve_local.cli, one-line help shown in `--help` without importing it)
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Make a project for a model file."),
    "up": ("up", "Start the project: validate, run, wait, print URLs."),
    "down": ("down", "Stop everything; the cache and the state stay."),
    "status": ("status", "Services, URLs, replicas, memory, problems."),
    "logs": ("logs", "Merged logs of services."),
    "wait": ("wait", "Block until services are Ready or gone."),
    "apply": ("apply", "Create or update objects from files."),
    "get": ("get", "List or show objects."),
    "delete": ("delete", "Delete objects."),
    "events": ("events", "What happened, oldest first."),
    "scale": ("scale", "Replicas by hand: a number, zero, or auto."),
    "simulate": ("simulate", "What the autoscaler would do with a load."),
    "predict": ("predict", "Call a model through the gateway."),
    "requests": ("requests", "The last calls of services, as the gateway kept them."),
    "replay": ("replay", "Send recorded calls again."),
    "diff": ("diff", "Recorded calls that are answered otherwise now."),
    "debug": ("debug", "Attach a debugger; clocks stand at a breakpoint."),
    "rollout": ("rollout", "Revisions, canary, promotion, rollback."),
    "validate": ("validate", "Check YAML without a server."),
    "kubeconfig": ("kubeconfig", "Print the kubeconfig or its path."),
    "kubectl": ("kubectl", "Run kubectl against this project."),
    "images": ("images", "Build, list and remove images for Docker."),
    "doctor": ("doctor", "Check ports, Python, disk, limits."),
    "completion": ("completion", "Print a shell completion script."),
    "version": ("version", "Print versions."),
}
ALIASES = {"ps": "status"}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command = import_module(f"kserve_local.cli.{COMMANDS[name][0]}").command
        assert isinstance(command, click.Command)
        return finish(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS and name not in ALIASES:
            import difflib

            near = difflib.get_close_matches(name, (*COMMANDS, *ALIASES), n=1)
            guess = f' Did you mean "{near[0]}"?' if near else ""
            ctx.fail(f'No such command "{name}".{guess}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-C", "--project", type=click.Path(), help="Project folder (default: here).")
@click.option(
    "-f", "--file", "files", multiple=True, type=FILE, help="Manifest file or folder; repeatable."
)
@click.option("-n", "--namespace", help="Namespace (default: the project's).")
@click.option("-p", "--profile", help="Profile of kserve-local.yaml.")
@click.option("-o", "--output", "form", metavar="FORM", help="table, json, ...; see `get --help`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON envelope on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No narration.")
@click.option("-v", "--verbose", count=True, help="More narration; repeatable.")
@click.option("--color", type=COLORS, help="Colours.")
@click.option(
    "--non-interactive", is_flag=True, expose_value=False, help="Never ask (it never does)."
)
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--timeout", metavar="DUR", help="How long commands that wait do so.")
@click.version_option(__version__, prog_name="kserve-local")
@click.pass_context
def cli(ctx: click.Context, /, **flags: object) -> None:
    """KServe on one machine, without Kubernetes."""
    ctx.obj = {k: v for k, v in flags.items() if v not in (None, False, (), 0)}
    # Not for all commands, and typed differently there: handed on as their default.
    own = {"timeout": ctx.obj.get("timeout"), "output": ctx.obj.get("form")}
    defaults = {k: v for k, v in own.items() if v is not None}
    ctx.default_map = dict.fromkeys((*COMMANDS, *ALIASES), defaults)
    if ctx.invoked_subcommand is None:
        from kserve_local.cli.overview import show

        ctx.exit(show(ctx.obj))


def _is_interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def main() -> None:
    """Run the command line and exit with UX.md section 3.3's codes."""
    from kserve_local.cli.output import report_error, wants_json

    try:
        code = cli.main(prog_name="kserve-local", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.UsageError as error:
        if wants_json():
            code = report_error(error, code=2)
        else:
            error.show()
            code = 2
    except click.ClickException as error:
        code = report_error(error, code=2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # The reader (head, less) has gone; the interpreter must not complain at its exit either.
        sys.stderr.close()
        code = 0
    except Exception as error:
        # What goes wrong while Ctrl-C is being obeyed is still an interruption, but not hushed up.
        code = report_error(error, code=130 if _is_interrupted(error) else None)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
