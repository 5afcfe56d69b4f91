"""`kserve-local replay`: recorded calls sent again through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import ModelError

if TYPE_CHECKING:
    from kserve_local.cli.replaying import Replayed

HEADER = ("PATH", "WAS", "NOW", "MS", "ANSWER", "ID")


@click.command("replay")
@click.argument("name")
@click.argument("id", required=False)
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Distinct calls; default 10.")
@click.option("--against", metavar="REV|URL", help="A revision, or the URL of a model server.")
@common
def command(flags: Common, name: str, id: str | None, last: int | None, against: str | None) -> int:
    """Send the last distinct calls of NAME again, or the one with ID; say what came of each.

    Exit 9 when one was answered with an error. They are not recorded again.
    """
    from kserve_local.cli.output import table
    from kserve_local.cli.replaying import LAST, failed, replay, tell_left_out

    if id and last:
        raise click.UsageError("an ID and --last exclude each other")
    settings = flags.settings_of_running()
    out = flags.output("replay")
    replayed, left_out = replay(
        flags, settings, name, id=id or "", last=last or LAST, against=against or ""
    )
    if not flags.as_json:
        out.data(table([_row(one) for one in replayed], HEADER))
        if text := tell_left_out(left_out) if not id else "":
            out.say(text)
    wrong = failed(replayed)
    if wrong:
        first = wrong[0].answer
        text = first.body.decode(errors="replace").strip() if first.status else first.error
        raise ModelError(
            f"{len(wrong)} of {len(replayed)} replayed calls failed: {name} answered "
            f"{first.status or 'nothing'}: {text[:500] or '(no body)'}",
            hint=f"kserve-local logs {name} --tail 20",
            details={"replayed": [_told(one) for one in replayed]},
        )
    if flags.as_json:
        out.envelope({"replayed": [_told(one) for one in replayed], "leftOut": len(left_out)})
    return 0


def _row(one: Replayed) -> tuple[str, ...]:
    from kserve_local.cli.requests import printable

    return (
        printable(one.call.path),
        str(one.call.status or "-"),
        str(one.answer.status or "-"),
        f"{one.answer.seconds * 1000:.1f}",
        _verdict(one) if one.answer.status else one.answer.error,
        printable(one.call.id[:8]),
    )


def _verdict(one: Replayed) -> str:
    from kserve_local.client.recorded import changes, incomparable

    if incomparable(one.call):
        return "not comparable"
    return "changed" if changes(one.call, one.answer) else "same"


def _told(one: Replayed) -> dict[str, Any]:
    return {
        "id": one.call.id,
        "path": one.call.path,
        "before": one.call.status,
        "status": one.answer.status,
        "ms": round(one.answer.seconds * 1000, 1),
        "answer": _verdict(one),
        "error": one.answer.error,
    }
