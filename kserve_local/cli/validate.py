"""`kserve-local validate`: what is wrong with manifests, with file, line and column. No server.

Reads files only, unless `--deep` asks the models' sources (`cli/reachability.py`). What it reports
else is `api/review.py`'s; see there for what counts as an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common

if TYPE_CHECKING:
    from kserve_local.api.review import FileReport

INVALID = 3


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--strict", is_flag=True, help="Warnings about fields are errors.")
@click.option(
    "--kserve-version", default="0.20", metavar="0.20", show_default=True,
    help="Whose rules; there are those of one version.",
)  # fmt: skip
@click.option("--deep", is_flag=True, help="Ask every storageUri whether it can be read.")
@common
def validate(
    flags: Common, paths: tuple[str, ...], strict: bool, kserve_version: str, deep: bool
) -> None:
    """Check YAML without a server.

    PATH is a file, a folder or "-" for standard input; without one, what `up` would use is checked.
    Reports `file:line:column severity message` and exits 3 if there are errors. --deep uses the
    credentials of the ServiceAccounts and Secrets among the files, else yours, and downloads
    nothing.
    """
    from kserve_local.api.review import review
    from kserve_local.controllers.standins import known
    from kserve_local.errors import UsageError
    from kserve_local.project.manifest_files import read_all
    from kserve_local.project.project_files import look_at, read_documents

    if kserve_version.removeprefix("v").split(".")[:2] != ["0", "20"]:
        raise UsageError(
            f"--kserve-version {kserve_version}: the rules here are those of KServe 0.20"
        )
    # Named files are what is judged; of the project's configuration they use what is right.
    settings = flags.settings() if deep or not paths else flags.settings_of_running(tell=False)
    if paths:
        files, namespace = read_all(paths), flags.namespace or "default"
    else:
        found = read_documents(settings)
        files = {p if p == "-" else os.path.relpath(p): d for p, d in found.items()}
        namespace = settings.namespace
    reports = review(
        files,
        namespace=namespace,
        strict=strict,
        # What --deep finds about local models is an error, in the words of `up`.
        look_at=look_at(settings, asked=deep),
        mirrors=settings.mirrors,
        stands_in=known(settings.images),
    )
    if deep:
        import asyncio

        from kserve_local.cli.reachability import with_reachability

        reports = asyncio.run(with_reachability(reports, files, settings, namespace=namespace))
    output = flags.output("validate")
    if flags.as_json:
        _print_envelope(output, reports)
    else:
        for report in reports:
            for finding in report.findings:
                output.data(finding.line_in(report.path))
                for detail in finding.details:
                    output.data(f"    {detail}")
        output.data(_summary(reports))
    if _errors(reports):
        click.get_current_context().exit(INVALID)


command = validate


def _summary(reports: Sequence[FileReport]) -> str:
    """Return the last line: `3 objects, 0 errors, 1 warning`."""
    from kserve_local.project.project_files import summary

    text = summary(reports, sum(report.objects for report in reports))
    return f"{text} (exit {INVALID})" if _errors(reports) else text


def _errors(reports: Sequence[FileReport]) -> int:
    return sum(report.count("error") for report in reports)


def _print_envelope(output: Any, reports: Sequence[FileReport]) -> None:
    from kserve_local.cli.output import error_body

    data = {
        "files": [
            {
                "path": report.path,
                "valid": report.valid,
                "schema_valid": report.schema_valid,
                "findings": [
                    {
                        "line": f.line,
                        "column": f.column,
                        "severity": f.severity,
                        "object": f.object,
                        "field": f.field,
                        "message": "\n".join((f.message, *f.details)),
                    }
                    for f in report.findings
                ],
            }
            for report in reports
        ]
    }
    warnings = [
        f.line_in(report.path)
        for report in reports
        for f in report.findings
        if f.severity == "warning"
    ]
    if _errors(reports):
        body = error_body(_summary(reports), exit_code=INVALID, code="VALIDATION_FAILED")
        output.envelope(data, status="error", warnings=warnings, error=body)
    else:
        output.envelope(data, warnings=warnings)
