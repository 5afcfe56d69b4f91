"""`kserve-local init`: a project from a model file, with what was guessed and why.

Nothing of the model is loaded: it is recognised by its bytes (`modelfiles`).
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import UsageError

if TYPE_CHECKING:
    from kserve_local.modelfiles.recognise import Recognised

_KNOWN = (
    "scikit-learn (.joblib, .pkl), XGBoost (.bst, .json, .ubj), LightGBM (.bst, .txt), ONNX, "
    "PyTorch (.pt, .pth, .pt2, .mar), GGUF, a SavedModel or Hugging Face folder, and Python with a "
    "kserve.Model"
)


@click.command("init")
@click.argument("directory", required=False, metavar="[DIR]", type=click.Path(file_okay=False))
@click.option("--from", "source", type=click.Path(), metavar="PATH", help="Model file or folder.")
@click.option("--name", metavar="NAME", help="Of the InferenceService (default: as the model).")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--yes", is_flag=True, expose_value=False, help="Never ask (it never does).")
@common
def command(
    flags: Common, directory: str | None, source: str | None, name: str | None, force: bool
) -> None:
    """Make a project in DIR (default: here) for a model.

    The model is what --from names, else the only one in DIR. Its format is read off its bytes;
    nothing is loaded or unpickled. Writes inferenceservice.yaml, kserve-local.yaml and
    request.json.
    """
    from kserve_local.modelfiles import graphs
    from kserve_local.modelfiles.versions import runtime_version, warning
    from kserve_local.project import starter_files
    from kserve_local.project.starter import dns_label, name_for, plan

    folder = (Path(directory).expanduser() if directory else flags.project).resolve()
    model = _named(source) if source else _only(folder)
    if name and dns_label(name) != name:
        better = dns_label(name)
        hint = f"kserve-local init --name {better}" if better else ""
        raise UsageError(
            f'--name "{name}" is no name that Kubernetes takes: at most 40 of a-z, 0-9 and -, '
            "beginning with a letter",
            hint=hint,
        )
    extra = graphs.onnx_data_files(model.path) if model.format == "onnx" else ()
    starter = plan(model, folder, name or name_for(model, folder), extra)
    if model.format == "sklearn" and (other := warning(model.path, runtime_version())):
        starter.warnings.append(other)
    written = starter_files.write(starter, folder, force=force)
    out = flags.output("init")
    shown = {
        "name": starter.name,
        "folder": str(folder),
        "format": model.format,
        "kind": model.kind,
        "model": str(model.path),
        "written": written,
        "guesses": starter.said,
        "runsHere": not starter.not_here,
    }
    steps = _next_steps(folder, starter.name)
    if flags.as_json:
        problems = [*starter.warnings, *filter(None, [starter.not_here])]
        out.envelope({**shown, "next": steps}, warnings=problems)
        return
    for line in starter.said:
        out.say(f"  {line}")
    origin = "--name" if name else "as the model or its folder is called"
    out.say(f"  name     {starter.name}: {origin}")
    for problem in starter.warnings:
        out.say(f"warning: {problem}", fg="yellow")
    if starter.not_here:
        text = f"note: {starter.not_here}, and so does up where Docker runs"
        out.say(text, fg="yellow")
    for path in written:
        out.data(os.path.relpath(folder / path))
    out.say("Next:")
    for step in steps:
        out.say(f"  {step}")


def _next_steps(folder: Path, name: str) -> list[str]:
    away = [] if folder == Path.cwd() else [f"cd {shlex.quote(os.path.relpath(folder))}"]
    return [*away, "kserve-local up", f"kserve-local predict {name} @request.json"]


def _named(source: str) -> Recognised:
    """Return the model that --from names.

    Raises:
        UsageError: Nothing is there, or no model that is known, or several.
    """
    from kserve_local.modelfiles.recognise import candidates, recognise

    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise UsageError(f'--from "{source}" does not exist')
    try:
        found = [recognise(path)] if path.is_file() else candidates(path)
    except OSError as error:
        raise UsageError(f'--from "{source}" cannot be read: {error.strerror}') from error
    models = [m for m in found if m is not None]
    if not models:
        raise UsageError(
            f'--from "{source}" is no model that is known here', hint=f"known: {_KNOWN}"
        )
    return _one(models, f'"{source}"')


def _only(folder: Path) -> Recognised:
    """Return the only model of a folder.

    Raises:
        UsageError: There is none, or more than one.
    """
    from kserve_local.modelfiles.recognise import candidates

    try:
        models = candidates(folder)
    except OSError as error:
        raise UsageError(f'"{folder}" cannot be read: {error.strerror}') from error
    if not models:
        raise UsageError(
            f"no model that is known lies in {folder}",
            hint=f"kserve-local init --from PATH\nknown: {_KNOWN}",
        )
    return _one(models, str(folder))


def _one(models: Sequence[Recognised], where: str) -> Recognised:
    if len(models) == 1:
        return models[0]
    lines = [
        f"kserve-local init --from {shlex.quote(os.path.relpath(m.path))}   # {m.format}: {m.why}"
        for m in models
    ]
    raise UsageError(f"{where} holds {len(models)} models; name one", hint="\n".join(lines))
