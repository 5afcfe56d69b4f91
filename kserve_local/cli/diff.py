"""`kserve-local diff`: which recorded calls are answered otherwise now, field by field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from kserve_local.cli.options import Common, common
from kserve_local.errors import ThresholdFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kserve_local.cli.replaying import Replayed
    from kserve_local.client.answers import Difference

_SHOWN = 10
"""Differences of one answer that a person sees."""
_WIDTH = 60


@click.command("diff")
@click.argument("name")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Distinct calls; default 10.")
@click.option("--against", metavar="REV|URL", help="A revision, or the URL of a model server.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    help="Of numbers, relative and absolute.",
)
@click.option("--exit-code", is_flag=True, help="Exit 10 if an answer has changed.")
@common
def command(
    flags: Common,
    name: str,
    last: int | None,
    against: str | None,
    tolerance: float,
    exit_code: bool,
) -> int:
    """Send the last distinct calls of NAME again and list the answers that have changed.

    Each is compared with its recorded answer: JSON field by field, numbers within the tolerance.
    """
    from kserve_local.cli.replaying import LAST, replay, tell_left_out
    from kserve_local.client.recorded import changes, incomparable

    settings = flags.settings_of_running()
    out = flags.output("diff")
    replayed, left_out = replay(flags, settings, name, last=last or LAST, against=against or "")
    left_out += [one.call for one in replayed if incomparable(one.call)]
    compared = [one for one in replayed if not incomparable(one.call)]
    found = [(one, changes(one.call, one.answer, tolerance=tolerance)) for one in compared]
    changed = [(one, differences) for one, differences in found if differences]
    data = {
        "compared": len(compared),
        "leftOut": len(left_out),
        "tolerance": tolerance,
        "changed": [_told(*pair) for pair in changed],
    }
    text = f"{len(changed)} of {len(compared)} answers changed"
    if not flags.as_json:
        for one, differences in changed:
            out.data("\n".join(_lines(one, differences)))
        if more := tell_left_out(left_out):
            out.say(more)
        out.say(text, fg="yellow" if changed else "green")
    if changed and exit_code:
        raise ThresholdFailed(f"{name}: {text}", details=data)
    if flags.as_json:
        out.envelope(data)
    return 0


def _told(one: Replayed, differences: Sequence[Difference]) -> dict[str, Any]:
    return {
        "id": one.call.id,
        "path": one.call.path,
        "revision": one.call.revision,
        "before": one.call.status,
        "after": one.answer.status,
        "differences": [
            {
                "path": d.path,
                "what": d.what,
                "before": d.before,
                "after": d.after,
                **({"delta": d.delta} if d.delta is not None else {}),
            }
            for d in differences
        ],
    }


def _lines(one: Replayed, differences: Sequence[Difference]) -> list[str]:
    from kserve_local.cli.requests import printable, short_revision

    call = one.call
    lines = [f"{call.id[:8]}  {call.method} {call.path}  (recorded from {short_revision(call)})"]
    for d in differences[:_SHOWN]:
        before = _value(d.before) if d.what != "added" else "-"
        after = _value(d.after) if d.what != "removed" else "-"
        delta = f"  ({d.delta:+g})" if d.delta is not None else ""
        lines.append(f"  {d.path or 'answer'}: {before} -> {after}{delta}")
    if len(differences) > _SHOWN:
        lines.append(f"  ... {len(differences) - _SHOWN} more fields (--json has all)")
    if one.answer.status >= 400 and one.answer.status != call.status:
        text = one.answer.body.decode(errors="replace").strip()
        lines.append(f"  {text[:200]}")
    return [printable(line) for line in lines]


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."
